"""3D multi-scale deformable attention (Zhu et al. 2021, equation 3, with a third axis), in portable PyTorch.

Two implementations of the sampling stand side by side behind one signature: ``sample_grid`` is the textbook one, a
``grid_sample`` for each level; ``sample_bag`` gathers the eight neighbours of every point of every level and sums them
with one ``embedding_bag``, so that no sampled value is ever written to memory. They agree to rounding (tested).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]


def sample_grid(value: Tensor, shapes: Sequence[Shape], points: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of trilinear samples, with ``grid_sample``.

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
    """:func:`sample_grid` as one ``embedding_bag``: same arguments, same result."""
    batch, length, heads, channels = value.shape
    queries = points.shape[1]
    device = value.device
    size = torch.tensor(list(shapes), dtype=torch.float32, device=device)  # (levels, 3)
    starts = [0]
    for x, y, z in shapes:
        starts.append(starts[-1] + x * y * z)
    start = torch.tensor(starts[:-1], device=device)[:, None, None]  # (levels, 1, 1)
    limit = size[:, None] - 1
    strides = torch.stack([size[:, 1] * size[:, 2], size[:, 2], torch.ones_like(size[:, 2])], -1)[:, None]

    where = points.float() * size[:, None] - 0.5  # in voxel indices
    low = where.floor()
    part = where - low
    indices, shares = [], []
    for corner in ((i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)):
        offset = torch.tensor(corner, dtype=torch.float32, device=device)
        at = low + offset
        share = torch.where(offset > 0, part, 1 - part)
        inside = ((at >= 0) & (at <= limit)).all(-1)
        shares.append(share.prod(-1) * inside)
        # Clamped in float, so that a point far away cannot overflow the index.
        indices.append((at.clamp(min=0).minimum(limit) * strides).sum(-1))
    index = torch.stack(indices, -1).long() + start  # (B, Q, heads, levels, P, 8)
    base = torch.arange(batch, device=device).view(-1, 1, 1) * length  # rows of value are (B, S, heads)
    head = torch.arange(heads, device=device).view(1, 1, -1)
    index = (index + base[..., None, None, None]) * heads + head[..., None, None, None]
    share = torch.stack(shares, -1).to(value.dtype) * weights[..., None]
    out = F.embedding_bag(
        index.reshape(batch * queries * heads, -1),
        value.reshape(-1, channels),
        mode="sum",
        per_sample_weights=share.reshape(batch * queries * heads, -1),
    )
    return out.view(batch, queries, heads * channels)


def unit_directions(heads: int) -> Tensor:
    """One direction for each head, (heads, 3), largest component 1: with six heads, the six faces of a box."""
    faces = torch.tensor([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=torch.float32)
    if heads <= 6:
        return faces[:heads]
    # Fibonacci lattice on the sphere for any other number.
    k = torch.arange(heads, dtype=torch.float32) + 0.5
    polar, azimuth = torch.arccos(1 - 2 * k / heads), torch.pi * (1 + 5**0.5) * k
    spread = torch.stack([polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()], -1)
    return spread / spread.abs().amax(-1, keepdim=True)


class DeformableAttention(nn.Module):
    """Each query samples a few learned points around its reference box, on every level.

    Point ``p`` of head ``h`` starts out at the fraction ``(p + 1) / P`` of the way from the box's centre to its face
    in the direction of the head, so with six heads the outermost points lie on the six walls that the box head must
    place.

    Parameters
    ----------
    dim, heads : int
        Width and heads.
    levels, points : int
        Feature maps, and points on each for every head.
    """

    def __init__(self, dim: int, *, heads: int = 6, levels: int = 3, points: int = 4) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} is not a multiple of {heads} heads")
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(dim, heads * levels * points * 3)
        self.weights = nn.Linear(dim, heads * levels * points)
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.sample = sample_bag
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        fractions = (torch.arange(points) + 1.0) / points
        bias = unit_directions(heads)[:, None, None] * fractions[:, None]
        with torch.no_grad():
            self.offsets.bias.copy_(bias.expand(heads, levels, points, 3).flatten())

    def forward(self, query: Tensor, reference: Tensor, memory: Tensor, shapes: Sequence[Shape]) -> Tensor:
        """Attend.

        Parameters
        ----------
        query : Tensor of shape (B, Q, dim)
        reference : Tensor of shape (B, Q, 6)
            Normalised centre boxes; offsets count in half sizes of the box.
        memory : Tensor of shape (B, S, dim)
        shapes : sequence of (X, Y, Z)

        Returns
        -------
        Tensor of shape (B, Q, dim)
        """
        batch, queries, _ = query.shape
        layout = (batch, queries, self.heads, self.levels, self.points)
        offsets = self.offsets(query).view(*layout, 3).float()
        weights = self.weights(query).view(batch, queries, self.heads, -1).softmax(-1).view(layout)
        centre, size = reference.float().view(batch, queries, 1, 1, 1, 6).chunk(2, dim=-1)
        value = self.value(memory).view(batch, -1, self.heads, memory.shape[-1] // self.heads)
        return self.out(self.sample(value, shapes, centre + offsets * size / 2, weights.to(value.dtype)))
