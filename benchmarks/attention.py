"""Attention within windows, forward and gradient: PyTorch's own kernel against two matrix products."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import table, timed
from torch import Tensor

from organdetr_monai.networks.attention import attend

#: Name to (windows, heads, tokens, width of a head), and whether a bias is learned: two training windows.
SHAPES = {
    "MSA, stride 4": ((432, 6, 64, 16), False),
    "MSA, stride 8": ((54, 6, 64, 16), False),
    "MSA, stride 16": ((2, 6, 240, 16), False),
    "patches of MIQ-SAM3D": ((2, 6, 512, 16), False),
    "the same, gated": ((2, 6, 512, 16), True),
}


def seconds(way: Callable[..., Tensor], shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> float:
    """Median CPU-seconds of forward and backward."""
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = torch.zeros(*shape[:2], 1, shape[2], dtype=dtype, requires_grad=True) if bias else None

    def work() -> Tensor:
        q.grad = k.grad = v.grad = None
        out = way(q, k, v, mask)
        out.backward(torch.ones_like(out))
        return out

    return timed(work)[1]


def rows() -> str:
    """The table."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    out = []
    for name, (shape, bias) in SHAPES.items():
        for dtype in (torch.bfloat16, torch.float32):
            plain, ours = (seconds(way, shape, bias, dtype) for way in (F.scaled_dot_product_attention, attend))
            out.append([name, str(dtype).removeprefix("torch."), plain * 1e3, ours * 1e3, plain / ours])
    header = ["where", "precision", "PyTorch's kernel, ms", "ours, ms", "times faster"]
    return table("Attention, forward and gradient, CPU time", header, out)


if __name__ == "__main__":
    print(rows())
