"""The sampling of deformable attention in C, for training on a CPU: built once where there is a compiler.

Everything works without it. ``ORGANDETR_COMPILE=0`` switches it off.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SOURCE = Path(__file__).with_name("deformable.c")
WORTH_THREADS = 10_000_000
FLAGS = ("-O3", "-march=native", "-fopenmp-simd", "-shared", "-fPIC")

logger = logging.getLogger(__name__)


class _Sizes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in "SHCQLP")


_found: dict[str, ctypes.CDLL | None] = {}  # what was found, once and for all


def library(*, build: bool = True) -> ctypes.CDLL | None:
    """The compiled functions; None where they are switched off, or there is no compiler, or it fails.

    Without ``build`` also where they were not built before.
    """
    if "library" not in _found:
        try:
            path = _path()
            if path is not None and not build and not path.is_file():
                return None  # a later call may build it
            _found["library"] = None if path is None else _load(path)
        except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
            detail = getattr(error, "stderr", None) or error
            logger.warning("deformable attention runs in PyTorch, for %s does not compile: %s", SOURCE.name, detail)
            _found["library"] = None
    return _found["library"]


@functools.cache
def _path() -> Path | None:
    """Where the compiled file is or will be, in the user's cache folder; None without a compiler."""
    if os.environ.get("ORGANDETR_COMPILE", "1") == "0" or not hasattr(os, "getuid") or _compiler() is None:
        return None
    # The name holds what the code depends on: another source, or another processor, builds its own.
    key = "\n".join([SOURCE.read_text(), *FLAGS, platform.platform(), _processor()])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "organdetr_monai"
    return cache / f"deformable-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def _load(path: Path) -> ctypes.CDLL:
    """Load, after building if need be: also where the file that is there does not load."""
    if path.is_file():
        _check_own(path)
        try:
            return _open(path)
        except (OSError, AttributeError):
            path.unlink()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_own(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / "deformable.so"
        command = [str(_compiler()), *FLAGS, "-o", str(built), str(SOURCE), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        built.chmod(0o700)
        built.replace(path)  # atomic: another process may be building the same
    return _open(path)


def _open(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    for name in ("sample_forward", "sample_backward"):
        getattr(found, name).restype = None  # an AttributeError if it is another library
    return found


def _check_own(path: Path) -> None:
    """What is loaded runs: nobody else may be able to write it, nor the folder it is in."""
    for part in {path, path.parent} if path.is_file() else {path}:
        info = part.stat()
        if info.st_uid != os.getuid() or info.st_mode & 0o022:
            raise OSError(f"{part} belongs to another user, or others may write to it")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def sample_compiled(value: Tensor, shapes: Sequence[tuple[int, int, int]], points: Tensor, weights: Tensor) -> Tensor:
    """:func:`organdetr_monai.networks.sampling.sample` in C; computes in float32, on CPU tensors."""
    return _SampleCompiled.apply(value, points, weights, tuple(shapes))


class _Call:
    """Sizes, and one call for each image and head on torch's number of threads; ctypes lets go of the interpreter."""

    def __init__(self, value: Tensor, points: Tensor, weights: Tensor, shapes: Sequence[tuple[int, int, int]]) -> None:
        self.batch, length, self.heads, channels = value.shape
        self.sizes = _Sizes(length, self.heads, channels, points.shape[1], points.shape[3], points.shape[4])
        self.shapes = torch.tensor(shapes, dtype=torch.int64)
        count = self.shapes.prod(1)
        self.starts = count.cumsum(0) - count
        # C believes what it is told: a wrong size would read and write elsewhere in memory.
        if len(shapes) != points.shape[3] or int(count.sum()) != length:
            raise ValueError(f"value has {length} rows on {points.shape[3]} levels, but the shapes are {list(shapes)}")
        if points.shape[::2][:2] != (self.batch, self.heads) or weights.shape != points.shape[:-1]:
            sizes = [tuple(t.shape) for t in (value, points, weights)]
            raise ValueError(f"value, points and weights do not fit together: shapes {sizes}")

    def __call__(self, name: str, *tensors: Tensor) -> None:
        function = getattr(library(), name)
        fixed = [ctypes.c_void_p(t.data_ptr()) for t in (self.shapes, self.starts)]
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in tensors]

        def one(part: int) -> None:
            image, head = divmod(part, self.heads)
            function(ctypes.byref(self.sizes), *fixed, ctypes.c_int64(image), ctypes.c_int64(head), *pointers)

        parts = range(self.batch * self.heads)
        # Starting threads, beside those of torch that still spin, costs milliseconds: little work is done at once.
        n = self.sizes
        work = len(parts) * n.Q * n.L * n.P * 8 * n.C  # multiplications and additions
        threads = min(torch.get_num_threads(), len(parts)) if work > WORTH_THREADS else 1
        if threads <= 1:
            for part in parts:
                one(part)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(one, parts))


class _SampleCompiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, points: Tensor, weights: Tensor, shapes: Sequence) -> Tensor:
        ctx.dtypes = [t.dtype for t in (value, points, weights)]
        value, points, weights = (t.detach().float().contiguous() for t in (value, points, weights))
        call = _Call(value, points, weights, shapes)
        out = value.new_empty(points.shape[0], points.shape[1], value.shape[2] * value.shape[3])
        call("sample_forward", value, points, weights, out)
        ctx.save_for_backward(value, points, weights)
        ctx.call = call
        return out.to(ctx.dtypes[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        value, points, weights = ctx.saved_tensors
        grads = torch.zeros_like(value), torch.empty_like(points), torch.empty_like(weights)
        ctx.call("sample_backward", value, points, weights, grad.float().contiguous(), *grads)
        grad_value, grad_points, grad_weights = (g.to(d) for g, d in zip(grads, ctx.dtypes, strict=True))
        return grad_value, grad_points, grad_weights, None
