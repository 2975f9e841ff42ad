"""Trilinear sampling of 3D deformable attention (Zhu et al. 2021, equation 3, with a third axis).

Three implementations stand side by side behind one signature and agree to rounding (tested): :func:`sample_grid` is the
textbook one, a ``grid_sample`` for each level; :func:`sample_bag` gathers the eight neighbours of every point of every
level and sums them with one ``embedding_bag``, so that no sampled value is written to memory; and
:mod:`organdetr_monai.networks.compiled` does the same in C where a compiler is at hand. :func:`sample` picks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from organdetr_monai.networks import compiled

Shape = tuple[int, int, int]


def sample(value: Tensor, shapes: Sequence[Shape], points: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of trilinear samples, by the fastest way there is for the device.

    Parameters
    ----------
    value : Tensor of shape (B, S, heads, C)
        All levels one after another, each level's voxels in array order.
    shapes : sequence of (X, Y, Z)
        Size of each level; their products add up to S.
    points : Tensor of shape (B, Q, heads, levels, P, 3)
        Where to sample, (x, y, z) normalised to [0, 1] of the volume; voxel ``i`` has its centre at ``(i + 0.5) / n``.
        What lies outside is zero.
    weights : Tensor of shape (B, Q, heads, levels, P)

    Returns
    -------
    Tensor of shape (B, Q, heads * C)
    """
    # Training is worth the second that compiling takes; a single detection uses what is there.
    if value.device.type == "cpu" and compiled.library(build=torch.is_grad_enabled()) is not None:
        return compiled.sample_compiled(value, shapes, points, weights)
    return sample_bag(value, shapes, points, weights)


def sample_grid(value: Tensor, shapes: Sequence[Shape], points: Tensor, weights: Tensor) -> Tensor:
    """:func:`sample` with ``grid_sample``: slow, simple, what the fast ways are measured against."""
    batch, queries, heads, _, p, _ = points.shape
    out = value.new_zeros(batch * heads, value.shape[-1], queries)
    start = 0
    for level, shape in enumerate(shapes):
        n = shape[0] * shape[1] * shape[2]
        volume = value[:, start : start + n].permute(0, 2, 3, 1).reshape(batch * heads, -1, *shape)
        # grid_sample wants its coordinates last axis first: (z, y, x) for a volume (X, Y, Z).
        where = points[:, :, :, level].permute(0, 2, 1, 3, 4).reshape(batch * heads, 1, queries, p, 3).flip(-1)
        sampled = F.grid_sample(volume, where.to(volume.dtype) * 2 - 1, align_corners=False)  # (B * heads, C, 1, Q, P)
        weight = weights[:, :, :, level].permute(0, 2, 1, 3).reshape(batch * heads, 1, queries, p)
        out = out + (sampled[:, :, 0] * weight).sum(-1)
        start += n
    return out.view(batch, heads, -1, queries).permute(0, 3, 1, 2).flatten(2)


def sample_bag(value: Tensor, shapes: Sequence[Shape], points: Tensor, weights: Tensor) -> Tensor:
    """:func:`sample` with one ``embedding_bag``, in portable PyTorch."""
    return _SampleBag.apply(value, points, weights, tuple(shapes))


def _corners(points: Tensor, shapes: Sequence[Shape], length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The eight voxels around each point.

    Returns
    -------
    index : int64 Tensor of shape (B, Q, heads, levels, P, 2, 2, 2)
        Row of ``value`` seen as (B * S * heads, C); where a neighbour lies outside, some row inside.
    share : Tensor of shape (B, Q, heads, levels, P, 3, 2)
        Of the lower and the upper neighbour along each axis; zero outside.
    inside : bool Tensor, of the shape of ``share``
    size : Tensor of shape (levels, 3)
    """
    batch, heads, device = points.shape[0], points.shape[2], points.device
    size = torch.tensor(shapes, dtype=torch.float32).to(device, non_blocking=True)  # (levels, 3); no wait for a GPU
    stride = torch.stack([size[:, 1] * size[:, 2], size[:, 2], torch.ones_like(size[:, 2])], -1)
    count = size.prod(-1).long()
    start = count.cumsum(0) - count
    where = points * size[:, None] - 0.5  # in voxel indices
    low = where.floor()
    part = where - low
    at = torch.stack([low, low + 1], -1)
    # Clamped in float, so that a point far away cannot overflow the index.
    near = at.clamp(min=0).minimum((size - 1)[:, None, :, None])
    inside = at == near
    share = torch.stack([1 - part, part], -1) * inside
    x, y, z = (near * stride[:, None, :, None]).long().unbind(-2)
    row = x[..., :, None, None] + y[..., None, :, None] + z[..., None, None, :]
    image = torch.arange(batch, device=device).view(-1, 1, 1, 1, 1) * length
    head = torch.arange(heads, device=device).view(-1, 1, 1, 1, 1, 1)
    return (row + (image + start.view(-1, 1))[..., None, None, None]) * heads + head, share, inside, size


class _SampleBag(torch.autograd.Function):
    """``embedding_bag`` over the corners, with a backward that adds up by ``scatter_add``.

    The derivative with respect to a point is that of its trilinear shares; autograd would keep and pass through every
    intermediate of them.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, points: Tensor, weights: Tensor, shapes: Sequence[Shape]) -> Tensor:
        batch, length, heads, channels = value.shape
        bags = batch * points.shape[1] * heads
        index, share, inside, size = _corners(points.float(), shapes, length)
        x, y, z = share.unbind(-2)
        trilinear = x[..., :, None, None] * y[..., None, :, None] * z[..., None, None, :]
        total = (trilinear * weights.float()[..., None, None, None]).view(bags, -1).to(value.dtype)
        out = F.embedding_bag(
            index.view(bags, -1), value.reshape(-1, channels), mode="sum", per_sample_weights=total
        )  # (B * Q * heads, C)
        ctx.save_for_backward(value, weights, index.view(bags, -1), share, inside, size, trilinear, total)
        return out.view(batch, -1, heads * channels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        value, weights, index, share, inside, size, trilinear, total = ctx.saved_tensors
        (bags, per), channels, flat = index.shape, value.shape[-1], index.flatten()
        grad = grad.reshape(bags, channels).to(value.dtype)
        grad_value = torch.zeros_like(value, memory_format=torch.contiguous_format).view(-1, channels)
        grad_value.scatter_add_(
            0, flat[:, None].expand(-1, channels), (total[..., None] * grad[:, None]).view(-1, channels)
        )
        first = torch.arange(0, bags * per, per, device=grad.device)
        bag = torch.arange(bags, device=grad.device).repeat_interleave(per)
        # Product of each gathered row with the gradient of its sum, without writing the gathered rows: 0 is mode "sum".
        dot = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad, value.reshape(-1, channels), flat, first, bag, 0
        )
        dot = dot.view(trilinear.shape).float()
        grad_weights = (trilinear * dot).sum((-3, -2, -1)).to(weights.dtype)
        dot = dot * weights.float()[..., None, None, None]
        x, y, z = share.unbind(-2)
        along_xy = (dot * z[..., None, None, :]).sum(-1)
        sides = torch.stack(
            [
                (along_xy * y[..., None, :]).sum(-1),
                (along_xy * x[..., :, None]).sum(-2),
                (dot * (x[..., :, None] * y[..., None, :])[..., None]).sum((-3, -2)),
            ],
            -2,
        )
        sides = sides * inside  # (B, Q, heads, levels, P, 3, 2)
        return grad_value.view(value.shape), (sides[..., 1] - sides[..., 0]) * size[:, None], grad_weights, None
