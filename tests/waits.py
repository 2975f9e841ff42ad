"""What makes the host wait for a GPU, noticed on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from organdetr_monai.networks import compiled

#: Operations whose result the host reads, or whose size depends on values on the device.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "bincount")


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            t is not None and t.dtype == torch.bool for t in args[1] if isinstance(args[1], list | tuple)
        )
        if name in WAITING or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def without_waits(*, transfers: int) -> Iterator[None]:
    """Fail if the body would make the host wait for a GPU other than by ``transfers`` calls of ``Tensor.cpu``."""
    calls: list[torch.Size] = []
    to_host = torch.Tensor.cpu

    def cpu(tensor, *args, **kwargs):
        calls.append(tensor.shape)
        return to_host(tensor, *args, **kwargs)

    watch = _Watch()
    # As on a GPU, sampling is not compiled here.
    with patch.object(compiled, "library", lambda **_: None), patch.object(torch.Tensor, "cpu", cpu), watch:
        yield
    assert not watch.seen, f"operations that wait for the device: {sorted(set(watch.seen))}"
    assert len(calls) == transfers, f"{len(calls)} transfers to the host: {calls}"
