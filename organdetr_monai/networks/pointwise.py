"""1×1×1 convolution as the matrix product that it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PointwiseConv3d(nn.Conv3d):
    """1×1×1 convolution; same parameters and result as ``nn.Conv3d(in_channels, out_channels, 1)``.

    On a CPU, PyTorch sends small convolutions of a single image to a path that copies the input first; a matrix product
    needs no copy at any size.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, X, Y, Z) to (B, out_channels, X, Y, Z)."""
        assert self.bias is not None
        weight = self.weight.flatten(1).expand(x.shape[0], -1, -1)  # (B, out, in), a view
        return torch.baddbmm(self.bias[:, None], weight, x.flatten(2)).unflatten(2, x.shape[2:])
