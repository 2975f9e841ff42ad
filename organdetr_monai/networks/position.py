"""Sine position encoding in three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def sine_encoding(x: Tensor, dim: int, *, temperature: float = 10000.0) -> Tensor:
    """Sine and cosine of one coordinate at geometrically spaced wavelengths (Vaswani et al. 2017, section 3.5).

    Parameters
    ----------
    x : Tensor of shape (...)
        Coordinate, normalised to [0, 1]; scaled by 2 pi as in DETR.
    dim : int
        Even number of features.

    Returns
    -------
    Tensor of shape (..., dim)
    """
    if dim % 2:
        raise ValueError(f"dim must be even, got {dim}")
    power = torch.arange(dim // 2, device=x.device, dtype=torch.float32) * (2 / dim)
    phase = x.float()[..., None] * (2 * math.pi) / temperature**power
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


def grid_encoding(shape: Sequence[int], dim: int, *, device: torch.device | None = None) -> Tensor:
    """Encoding of the cell centres of a grid; each axis takes a third of the features.

    Parameters
    ----------
    shape : sequence of 3 int
        Grid size (X, Y, Z).
    dim : int
        Features, a multiple of 6.

    Returns
    -------
    Tensor of shape (X, Y, Z, dim)
    """
    if dim % 6:
        raise ValueError(f"the width of a 3D sine encoding must be a multiple of 6, got {dim}")
    parts = []
    for axis, n in enumerate(shape):
        # One axis at a time, then broadcast: X + Y + Z sines instead of X * Y * Z.
        code = sine_encoding((torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n, dim // 3)
        view = [1, 1, 1, dim // 3]
        view[axis] = n
        parts.append(code.view(view).expand(*shape, dim // 3))
    return torch.cat(parts, dim=-1)


def box_encoding(boxes: Tensor, dim: int) -> Tensor:
    """Encoding of normalised centre boxes, one ``dim`` for each of the six numbers: (..., 6) to (..., 6 * dim)."""
    return sine_encoding(boxes, dim).flatten(-2)
