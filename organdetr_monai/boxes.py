"""Box arithmetic on tensors, always in float32 (half precision overflows on volumes and loses small boxes).

Two modes, and no third (``docs/architecture.md``):

* *corners*: ``(x0, y0, z0, x1, y1, z1)``, ``[start, stop)`` per axis, in voxels or normalised;
* *centre*: ``(cx, cy, cz, w, h, d)``, normalised to [0, 1] of the window, inside the network only.

MONAI's ``box_utils`` has the same arithmetic (modes ``xyzxyz`` and ``cccwhd``); it checks its inputs on the host, which
makes a GPU wait at each call, so the training path has its own. The tests compare the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-9  # below the volume of any normalised box (a voxel of a 512-cubed window is 7e-9)


def corners_to_centre(boxes: Tensor) -> Tensor:
    """``(..., 6)`` corners to centre and size."""
    start, stop = boxes.chunk(2, dim=-1)
    return torch.cat([(start + stop) / 2, stop - start], dim=-1)


def centre_to_corners(boxes: Tensor) -> Tensor:
    """``(..., 6)`` centre and size to corners."""
    centre, size = boxes.chunk(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def normalise(boxes: Tensor, window: Tensor | tuple[int, ...]) -> Tensor:
    """Corners in voxels of a window of shape ``(X, Y, Z)`` to normalised centre boxes, both ``(..., 6)``."""
    return corners_to_centre(boxes.float() / _twice(window, boxes))


def denormalise(boxes: Tensor, window: Tensor | tuple[int, ...]) -> Tensor:
    """Normalised centre boxes to corners in voxels of a window of shape ``(X, Y, Z)``, both ``(..., 6)``."""
    return centre_to_corners(boxes.float()) * _twice(window, boxes)


def _twice(window: Tensor | tuple[int, ...], like: Tensor) -> Tensor:
    size = torch.as_tensor(window, dtype=torch.float32, device=like.device)
    return torch.cat([size, size])


def volume(boxes: Tensor) -> Tensor:
    """Volume of corners ``(..., 6)``: ``(...)``; an inverted box has volume 0."""
    start, stop = boxes.float().chunk(2, dim=-1)
    return (stop - start).clamp(min=0).prod(dim=-1)


def iou_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of corners that broadcast against each other.

    GIoU = IoU - |C \\ (A u B)| / |C| with C the smallest box around both (Rezatofighi et al. 2019, algorithm 1).

    Parameters
    ----------
    a, b : Tensor of shape (..., 6)
        Corners, in the same unit. ``a[:, None]`` and ``b[None]`` give all pairs.

    Returns
    -------
    iou, giou : Tensor of shape (...)
        In [0, 1] and (-1, 1], float32.
    """
    a, b = a.float(), b.float()
    (a0, a1), (b0, b1) = a.chunk(2, dim=-1), b.chunk(2, dim=-1)
    inter = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp(min=0).prod(dim=-1)
    union = volume(a) + volume(b) - inter
    hull = (torch.maximum(a1, b1) - torch.minimum(a0, b0)).clamp(min=0).prod(dim=-1)
    iou = inter / (union + EPS)
    return iou, iou - (hull - union) / (hull + EPS)


def inverse_sigmoid(x: Tensor, eps: float = 1e-4) -> Tensor:
    """Logit of ``x`` in [0, 1], clamped to ``eps`` from both ends so that it stays finite."""
    x = x.float().clamp(eps, 1 - eps)
    return torch.log(x) - torch.log1p(-x)
