"""Swin transformer trunks (Liu et al. 2021; Swin UNETR, Hatamizadeh et al. 2022), of MONAI's blocks.

MONAI's ``SwinTransformer`` always runs four stages and throws away what is not asked for; its encoder shrinks windows
that are larger than a map and then reads the position biases of other places. So the trunks are put together here from
its blocks, embedding and merging.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import PatchEmbed, UnetrBasicBlock
from monai.networks.nets.swin_unetr import PatchMergingV2, SwinTransformerBlock, compute_mask
from torch import Tensor, nn

from organdetr_monai.networks.pointwise import PointwiseConv3d
from organdetr_monai.networks.pyramid import PyramidBackbone


class SwinBlocks(nn.Module):
    """Blocks of attention in windows, every second one in shifted windows; maps keep their shape.

    Parameters
    ----------
    dim, heads : int
        Width and attention heads.
    window : int
        Voxels along the edge of a window.
    drop_path : sequence of float
        Stochastic depth of each block; its length is the number of blocks.
    """

    def __init__(self, dim: int, heads: int, *, window: int, drop_path: Sequence[float]) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} is not a multiple of {heads} heads")
        if window < 2:
            raise ValueError(f"window must be at least 2 voxels, got {window}")
        self.window, self.shift = (window,) * 3, (window // 2,) * 3
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(dim, heads, self.window, self.shift if i % 2 else (0, 0, 0), drop_path=rate)
            for i, rate in enumerate(drop_path)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, X, Y, Z) to the same shape."""
        size = x.shape[2:]
        short = [max(w - n, 0) for w, n in zip(self.window, size, strict=True)]
        x = x.permute(0, 2, 3, 4, 1)  # (B, X, Y, Z, dim)
        if any(short):
            x = F.pad(x, (0, 0, 0, short[2], 0, short[1], 0, short[0]))
        # As a block does it: whole windows, and no shift along an axis that has a single one.
        whole = [math.ceil(n / w) * w for n, w in zip(x.shape[1:4], self.window, strict=True)]
        shift = [0 if n <= w else s for n, w, s in zip(x.shape[1:4], self.window, self.shift, strict=True)]
        mask = compute_mask(whole, self.window, shift, x.device) if any(shift) else None
        for block in self.blocks:
            x = block(x, mask)
        return x[:, : size[0], : size[1], : size[2]].permute(0, 4, 1, 2, 3)


class PatchMerge(nn.Module):
    """2×2×2 voxels become one of twice the width: (B, dim, X, Y, Z) to (B, 2 * dim, ⌈X/2⌉, ⌈Y/2⌉, ⌈Z/2⌉)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.merge = PatchMergingV2(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a map, nothing learned: a convolution follows, which scales and shifts."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) to the same shape."""
        return F.layer_norm(x.permute(0, 2, 3, 4, 1), x.shape[1:2]).permute(0, 4, 1, 2, 3)


class SwinBackbone(PyramidBackbone):
    """Swin transformer with a top-down path: at each stride halve the map, then attend within windows.

    Parameters
    ----------
    in_channels : int
        Channels of the image.
    feature_size : int
        Width of stage 1; it doubles from stage to stage.
    out_channels : int
        Width of all output maps.
    levels : sequence of int
        Which stages come out, ascending; level ``k`` has stride ``2**k``.
    depths : sequence of int
        Blocks of each stage; says how many stages there are.
    heads : sequence of int
        Attention heads of each stage. The paper's are 3, 6, 12, 24.
    window : int
        Voxels along the edge of a window. MONAI's SwinUNETR has 7, which are five times as many keys for each query.
    drop_path : float
        Stochastic depth of the last block in training, growing from zero at the first. The paper's is 0.1.
    checkpointing : bool
        In training keep only each stage's input and compute the rest again for the gradient: less memory, more time.
    """

    def __init__(
        self,
        in_channels: int = 1,
        feature_size: int = 24,
        out_channels: int = 96,
        levels: Sequence[int] = (2, 3, 4),
        *,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 4,
        drop_path: float = 0.1,
        checkpointing: bool = False,
    ) -> None:
        widths = [feature_size * 2**k for k in range(len(depths))]
        halve = [_embed(in_channels, feature_size), *(PatchMerge(w) for w in widths[:-1])]
        blocks = _blocks(widths, depths, heads, window=window, drop_path=drop_path)
        stages = [nn.Sequential(*parts) for parts in zip(halve, blocks, strict=True)]

        def lateral(width: int) -> nn.Module:
            return nn.Sequential(ChannelNorm(), PointwiseConv3d(width, out_channels))

        super().__init__(stages, widths, lateral, levels, checkpointing=checkpointing)


class SwinUNETRBackbone(PyramidBackbone):
    """Encoder of Swin UNETR with a top-down path: at each stride attend within windows, then halve the map.

    Stage 1 is the patch embedding; stage ``k`` from 2 on attends at stride ``2**(k - 1)``, the finest of all at stride
    2. Each map passes a residual block of two convolutions on its way out. Those at strides 1 and 2, and the fourth
    group of blocks at stride 32, are left out, because no level is there; four ``depths`` bring the latter back.

    Parameters
    ----------
    in_channels : int
        Channels of the image.
    feature_size : int
        Width of stage 1; it doubles from stage to stage. The paper's is 48.
    out_channels : int
        Width of all output maps.
    levels : sequence of int
        Which stages come out, ascending; level ``k`` has stride ``2**k``.
    depths, heads : sequence of int
        Blocks of each stage after the first, and their attention heads; say how many stages there are.
    window, drop_path, checkpointing
        See :class:`SwinBackbone`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        feature_size: int = 24,
        out_channels: int = 96,
        levels: Sequence[int] = (2, 3, 4),
        *,
        depths: Sequence[int] = (2, 2, 2),
        heads: Sequence[int] = (3, 6, 12),
        window: int = 4,
        drop_path: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        widths = [feature_size * 2**k for k in range(len(depths) + 1)]
        blocks = _blocks(widths[:-1], depths, heads, window=window, drop_path=drop_path)
        stages = [
            nn.Sequential(_embed(in_channels, feature_size)),
            *(nn.Sequential(b, PatchMerge(w)) for b, w in zip(blocks, widths, strict=False)),
        ]

        def lateral(width: int) -> nn.Module:
            block = UnetrBasicBlock(3, width, width, kernel_size=3, stride=1, norm_name="instance", res_block=True)
            return nn.Sequential(ChannelNorm(), block, PointwiseConv3d(width, out_channels))

        super().__init__(stages, widths, lateral, levels, checkpointing=checkpointing)


def _embed(in_channels: int, dim: int) -> PatchEmbed:
    return PatchEmbed(2, in_channels, dim, norm_layer=None)  # type: ignore[arg-type] # as MONAI's own trunk does


def _blocks(
    widths: Sequence[int], depths: Sequence[int], heads: Sequence[int], *, window: int, drop_path: float
) -> list[SwinBlocks]:
    if len(depths) != len(heads):
        raise ValueError(f"depths {tuple(depths)} and heads {tuple(heads)} must be of the same number")
    rates = torch.linspace(0, drop_path, sum(depths)).split(list(depths))
    return [
        SwinBlocks(w, h, window=window, drop_path=rate.tolist())
        for w, h, rate in zip(widths, heads, rates, strict=True)
    ]
