"""Several samples of each case in an epoch: a scan is loaded once and holds many windows and many clicks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monai.data import CacheDataset
from monai.transforms import Randomizable

from organdetr_monai.data.cache import SampleDataset
from organdetr_monai.sampling import seed_of


class PromptDataset(SampleDataset):
    """:class:`organdetr_monai.data.cache.SampleDataset` with ``samples`` samples of each case, each of its own seed.

    Parameters
    ----------
    data : sequence
        Cases.
    transform : Compose
        Everything before its first random transform is cached, once for each case.
    samples : int
        Of each case in an epoch.
    **options
        Of ``SampleDataset``.
    """

    def __init__(
        self, data: Sequence[Any], transform: Callable[..., Any] | None = None, *, samples: int = 1, **options: Any
    ) -> None:
        if samples < 1:
            raise ValueError(f"samples must be positive, got {samples}")
        self.samples = samples
        super().__init__(data, transform, **options)

    def __len__(self) -> int:
        return len(self.data) * self.samples

    def _transform(self, index: int) -> Any:
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed_of(self.seed, self.epoch, index))
        return CacheDataset._transform(self, index % len(self.data))
