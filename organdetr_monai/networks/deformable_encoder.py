"""Deformable encoder (Deformable DETR, Zhu et al. 2021): every voxel of every level is a query."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from organdetr_monai.networks.attention import FeedForward
from organdetr_monai.networks.checkpointing import run
from organdetr_monai.networks.deformable import DeformableAttention
from organdetr_monai.networks.position import grid_encoding
from organdetr_monai.networks.sampling import Shape


def voxel_boxes(shape: Shape, half: float, *, device: torch.device | None = None) -> Tensor:
    """A box around the centre of each voxel of a grid, in array order: (X * Y * Z, 6), normalised centre boxes.

    Parameters
    ----------
    shape : (X, Y, Z)
    half : float
        Half size of the boxes in voxels. A box may reach beyond the volume.
    """
    parts = []
    for axis, n in enumerate(shape):
        view = [1, 1, 1]
        view[axis] = n
        parts.append(((torch.arange(n, device=device) + 0.5) / n).view(view).expand(*shape))
    centre = torch.stack(parts, -1).flatten(0, 2)
    size = torch.stack([torch.ones_like(centre[:, 0]) * (2 * half) / n for n in shape], -1)
    return torch.cat([centre, size], -1)


class DeformableEncoderLayer(nn.Module):
    """Deformable attention among the voxels of all levels, then feed-forward; a norm after each (as in DETR)."""

    def __init__(
        self, dim: int, *, heads: int = 6, levels: int = 3, points: int = 4, hidden: int = 256, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention = DeformableAttention(dim, heads=heads, levels=levels, points=points)
        self.feed_forward = FeedForward(dim, hidden, dropout=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, shapes: Sequence[Shape]) -> Tensor:
        """Tokens (B, S, dim), position (S, dim), reference (B, S, 6) to the new tokens (B, S, dim)."""
        attended = self.attention(tokens + position, reference, tokens, shapes)
        tokens = self.norms[0](tokens + self.drop(attended))
        return self.norms[1](tokens + self.drop(self.feed_forward(tokens)))


class DeformableEncoder(nn.Module):
    """Each voxel samples a few points around itself, on its own level and on all others.

    A voxel's reference box has its centre in the voxel and ``points`` voxels of its level to each side, so that the
    points of a head start 1, 2, …, ``points`` voxels away in the head's direction, as in Deformable DETR.

    One layer where this lineage has three to six: each takes ``heads * levels * points`` samples for every voxel, and
    at the default window one alone costs a CPU several times what MultiScale Attention does.

    Parameters
    ----------
    dim : int
        Width of all maps, a multiple of 6 (sine encoding) and of ``heads``.
    layers, heads, levels, points, hidden : int
        Number of layers, and the sizes of each; ``levels`` is the number of maps.
    dropout : float
        Dropout in training. Deformable DETR's is 0.1.
    checkpointing : bool
        In training keep only each layer's input and compute the rest again for the gradient: less memory, more time.
    """

    def __init__(
        self,
        dim: int = 96,
        *,
        layers: int = 1,
        heads: int = 6,
        levels: int = 3,
        points: int = 4,
        hidden: int = 256,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.points, self.checkpointing = points, checkpointing
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(dim, heads=heads, levels=levels, points=points, hidden=hidden, dropout=dropout)
            for _ in range(layers)
        )
        self.level_embedding = nn.Parameter(torch.randn(levels, dim) * 0.02)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, dim, X, Y, Z), finest first, to refined maps of the same shapes."""
        shapes: list[Shape] = [(m.shape[2], m.shape[3], m.shape[4]) for m in maps]
        batch, dim, device = maps[0].shape[0], maps[0].shape[1], maps[0].device
        codes = [grid_encoding(shape, dim, device=device).flatten(0, 2) for shape in shapes]
        position = torch.cat([code + e for code, e in zip(codes, self.level_embedding, strict=True)])  # (S, dim)
        reference = torch.cat([voxel_boxes(shape, self.points, device=device) for shape in shapes])
        reference = reference.expand(batch, -1, -1)  # (B, S, 6)
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)  # (B, S, dim)
        for layer in self.layers:
            tokens = run(layer, tokens, position, reference, shapes, again=self.checkpointing and self.training)
        levels = tokens.transpose(1, 2).split([x * y * z for x, y, z in shapes], dim=2)
        return [level.unflatten(2, shape) for level, shape in zip(levels, shapes, strict=True)]
