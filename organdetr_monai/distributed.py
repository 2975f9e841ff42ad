"""Processes that train or evaluate together, as ``torchrun`` starts them: who is who, and what they tell each other.

Without a process group there is one process, number 0, and every function does what is right for it alone.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from organdetr_monai.errors import InputError, input_error

T = TypeVar("T")

#: A process may wait that long for another one that prepares data.
PATIENCE = timedelta(hours=2)


class OtherProcessError(RuntimeError):
    """Another process has failed and says why; this one can only end."""


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_rank() -> tuple[int, int]:
    """Number of this process on its machine, from 0, and how many there are on it."""
    if world_size() == 1:
        return 0, 1
    return int(os.environ.get("LOCAL_RANK", rank())), int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def local_device() -> torch.device:
    """The GPU of this process; the CPU where there is no GPU.

    Raises
    ------
    InputError
        The machine has fewer GPUs than processes.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index, found = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if index >= found:
        raise InputError(
            f"process {index} of this machine has no GPU: there are {found}.", f"Give --nproc_per_node={found}."
        )
    return torch.device("cuda", index)


def start(device: torch.device | str) -> None:
    """Join the other processes: over NCCL where the device is a GPU, else over Gloo.

    From here on the others than process 0 log warnings and errors only, and a process that ends because another one
    did shows no traceback of its own.

    Parameters
    ----------
    device : torch.device
        Of this process.

    Raises
    ------
    InputError
        The program was not started by ``torchrun``.
    """
    device = torch.device(device)
    if not dist.is_initialized():
        missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise InputError(
                f"a run of several processes was asked for, but {missing[0]} is not set.",
                "Start it with `torchrun --standalone --nproc_per_node=N -m monai.bundle run …`, "
                "or leave out the multi_gpu config.",
            )
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    if rank() > 0:
        logging.disable(logging.INFO)
    _end_quietly_with_others()


def stop() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def gather(value: T) -> list[T]:
    """``value`` of every process, in their order; whatever can be pickled. Waits for all processes."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def mean(values: Tensor) -> Tensor:
    """Mean over the processes of a tensor of the same shape in each."""
    if world_size() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def agree(error: BaseException | None) -> None:
    """Go on if no process has an error, else end all of them. Waits for all processes.

    To be called where the processes have worked apart: one that left alone would keep the others waiting.

    Raises
    ------
    BaseException
        ``error``, where there is one.
    OtherProcessError
        In the processes without one.
    """
    failed = [k for k, bad in enumerate(gather(error is not None)) if bad]
    if error is not None:
        raise error
    if failed:
        raise OtherProcessError(f"process {failed[0]} of {world_size()} failed")


def once(function: Callable[..., T], *args: Any, **options: Any) -> T:
    """Call in process 0 alone, e.g. because it writes files; every process gets the result. Waits for process 0."""
    result: Any = None
    error: BaseException | None = None
    if rank() == 0:
        try:
            result = function(*args, **options)
        except Exception as problem:
            error = problem
    agree(error)
    return gather(result)[0]


def share(items: Sequence[T]) -> list[T]:
    """This process's part of a list: every ``world_size``-th item.

    Where there are fewer items than processes, those left over get the first one a second time, because an engine
    without data cannot run; :meth:`organdetr_monai.metrics.DetectionMetrics.add` counts it once.
    """
    mine = list(items[rank() :: world_size()])
    return mine or list(items[:1])


def _end_quietly_with_others() -> None:
    """Show one line instead of a traceback for an error that only says that another process is gone."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if input_error(error) is None and _of_another_process(error):
            print(f"process {os.environ.get('RANK')} ends because another one failed", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = hook


def _of_another_process(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OtherProcessError | dist.DistError):
            return True
        # Gloo says it in a plain RuntimeError.
        if isinstance(error, RuntimeError) and "gloo" in str(error) and "onnection" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
