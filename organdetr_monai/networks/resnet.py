"""Residual trunk: ResNet-50 (He et al. 2016) in three dimensions, of MONAI's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from monai.networks.nets.resnet import ResNetBottleneck
from torch import nn

from organdetr_monai.networks.pointwise import PointwiseConv3d
from organdetr_monai.networks.pyramid import PyramidBackbone

_NORM = ("instance", {"affine": True})


class ResNetBackbone(PyramidBackbone):
    """Stem, max pooling and bottleneck blocks with a top-down path, instance norm throughout.

    MONAI's ``ResNet`` itself hands no norm on to its blocks, which are then batch norms; at batch 2 those are noise. So
    it is put together here from MONAI's blocks.

    The stem is stage 1, and ``depths`` are the stages from 2 on. ResNet-50's fourth group of three blocks, at stride
    32, is left out: no level is there, and in three dimensions it would hold more than half of the trunk's parameters.

    Parameters
    ----------
    in_channels : int
        Channels of the image.
    start : int
        Width of the stem; stage ``k`` from 2 on has ``start * 2**k``. The paper's is 32.
    out_channels : int
        Width of all output maps.
    levels : sequence of int
        Which stages come out, ascending; level ``k`` has stride ``2**k``.
    depths : sequence of int
        Bottleneck blocks of each stage after the stem: (3, 4, 6) of ResNet-50, (3, 4, 23) of ResNet-101.
    checkpointing : bool
        In training keep only each stage's input and compute the rest again for the gradient: less memory, more time.
    """

    def __init__(
        self,
        in_channels: int = 1,
        start: int = 24,
        out_channels: int = 96,
        levels: Sequence[int] = (2, 3, 4),
        *,
        depths: Sequence[int] = (3, 4, 6),
        checkpointing: bool = False,
    ) -> None:
        stem = nn.Sequential(
            nn.Conv3d(in_channels, start, 7, stride=2, padding=3, bias=False),
            nn.InstanceNorm3d(start, affine=True),
            nn.ReLU(inplace=True),
        )
        stages, widths = [stem], [start]
        for k, depth in enumerate(depths):
            planes = start * 2**k
            blocks: list[nn.Module] = [nn.MaxPool3d(3, stride=2, padding=1)] if k == 0 else []
            for i in range(depth):
                blocks.append(_bottleneck(widths[-1] if i == 0 else 4 * planes, planes, stride=2 if k and not i else 1))
            stages.append(nn.Sequential(*blocks))
            widths.append(4 * planes)
        for layer in (m for stage in stages for m in stage.modules() if isinstance(m, nn.Conv3d)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        lateral = partial(PointwiseConv3d, out_channels=out_channels)
        super().__init__(stages, widths, lateral, levels, checkpointing=checkpointing)


def _bottleneck(width: int, planes: int, *, stride: int) -> ResNetBottleneck:
    """(B, width, …) to (B, 4 * planes, …)."""
    out = planes * ResNetBottleneck.expansion
    shortcut = None
    if stride != 1 or width != out:
        shortcut = nn.Sequential(
            nn.Conv3d(width, out, 1, stride=stride, bias=False), nn.InstanceNorm3d(out, affine=True)
        )
    return ResNetBottleneck(width, planes, stride=stride, downsample=shortcut, norm=_NORM)
