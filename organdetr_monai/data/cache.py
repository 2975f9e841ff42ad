"""Training cases, kept in memory as far as they are the same in every epoch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset
from monai.transforms import Randomizable

from organdetr_monai import distributed
from organdetr_monai.sampling import seed_of


class SampleDataset(CacheDataset):
    """MONAI's ``CacheDataset`` whose random transforms draw from a seed of the case and the epoch.

    A sample then depends neither on the samples drawn before it nor on the process or loader worker that draws it: the
    numbers of both change nothing in what is trained.

    Parameters
    ----------
    data : sequence
        Cases.
    transform : Compose
        Everything before its first random transform is cached.
    seed : int
    shared : bool
        Each process of a run of several prepares its part of the cases and leaves them in files, which all processes of
        the machine map into their memory: a shuffled epoch brings every case to every process, and each would else
        prepare and keep all of them. The files lie in the folder for temporary files (``TMPDIR``) and have lost their
        names before training starts: nothing is left of a run that ends later, however it ends.
    **options
        Of ``CacheDataset``.
    """

    def __init__(
        self,
        data: Sequence[Any],
        transform: Callable[..., Any] | None = None,
        *,
        seed: int = 0,
        shared: bool = False,
        **options: Any,
    ) -> None:
        self.seed, self.epoch, self.shared = seed, 0, shared
        self._folder: Path | None = None  # while the shared cases are prepared
        super().__init__(data, transform, **options)

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose samples come next. Loader workers that outlive an epoch do not hear of it."""
        self.epoch = epoch

    def _transform(self, index: int) -> Any:
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed_of(self.seed, self.epoch, index))
        return super()._transform(index)

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list[Any]:
        if not self.shared or distributed.world_size() == 1:
            return super()._fill_cache(indices)
        indices = list(range(self.cache_num)) if indices is None else list(indices)
        number, processes = distributed.local_rank()
        proposed = tempfile.mkdtemp(prefix="organdetr-") if number == 0 else ""
        # Process 0 of this machine comes `number` before this one.
        folder = self._folder = Path(distributed.gather(proposed)[distributed.rank() - number])
        try:
            error: Exception | None = None
            try:
                super()._fill_cache(indices[number::processes])
            except Exception as problem:
                error = problem
            distributed.agree(error)
            cases = [torch.load(self._path(index), mmap=True, weights_only=False) for index in indices]
            distributed.agree(None)  # all have opened them: what is mapped outlives its name
        finally:
            self._folder = None
            if number == 0:
                shutil.rmtree(folder, ignore_errors=True)
        return cases

    def _load_cache_item(self, idx: int) -> Any:
        item = super()._load_cache_item(idx)
        if self._folder is None:
            return item
        torch.save(item, self._path(idx))
        return None  # kept in the file alone

    def _path(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{index}.pt"
