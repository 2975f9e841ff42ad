"""Multiscale segmentation heads: an extra task for the encoder, in training only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from organdetr_monai.networks.pointwise import PointwiseConv3d


class SegmentationHeads(nn.Module):
    """A 1×1×1 convolution on each of the encoder's maps.

    Parameters
    ----------
    dim : int
        Width of the maps.
    num_classes : int
        Organs; channel 0 is background.
    levels : int
        Number of maps, finest first.
    """

    def __init__(self, dim: int = 96, num_classes: int = 12, *, levels: int = 3) -> None:
        super().__init__()
        self.heads = nn.ModuleList(PointwiseConv3d(dim, num_classes + 1) for _ in range(levels))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, dim, X, Y, Z) to logits (B, K + 1, X, Y, Z), float32."""
        return [head(m).float() for head, m in zip(self.heads, maps, strict=True)]
