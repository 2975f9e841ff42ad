"""3D multi-scale deformable attention (Zhu et al. 2021, equation 3, with a third axis)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from organdetr_monai.networks.sampling import Shape, sample


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
        self.sample = sample
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
