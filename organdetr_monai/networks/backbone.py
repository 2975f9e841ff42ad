"""Feature pyramid: a plain convolutional trunk and a top-down path."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from organdetr_monai.networks.checkpointing import run
from organdetr_monai.networks.pointwise import PointwiseConv3d


class FPNBackbone(nn.Module):
    """Convolutional trunk with a top-down path (Lin et al. 2017), instance norm throughout.

    Stage ``k`` (1, 2, …) works at stride ``2**k``. The stem halves the volume at once: a stage at full resolution would
    take most of the time of the whole network and hold the least context. Lateral connections are 1×1×1; the usual
    3×3×3 smoothing of the fine levels is left out, because the encoder mixes neighbours next and at width
    ``out_channels`` such a convolution is the most expensive layer of all.

    Parameters
    ----------
    in_channels : int
        Channels of the image.
    channels : sequence of int
        Width of each stage, finest first; says how many stages there are. Never derived from the image size.
    out_channels : int
        Width of all output maps.
    levels : sequence of int
        Which stages come out, ascending; level ``k`` has stride ``2**k``.
    depth : int
        Convolutions in each stage, the strided one included.
    checkpointing : bool
        In training keep only each stage's input and compute the rest again for the gradient: less memory, more time.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (24, 48, 96, 192),
        out_channels: int = 96,
        levels: Sequence[int] = (2, 3, 4),
        *,
        depth: int = 2,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        levels = tuple(levels)
        if not levels or sorted(set(levels)) != list(levels) or levels[0] < 1 or levels[-1] > len(channels):
            raise ValueError(f"levels must ascend within 1..{len(channels)} (one stage per channel), got {levels}")
        if [b - a for a, b in itertools.pairwise(levels)] != [1] * (len(levels) - 1):
            raise ValueError(f"levels must be consecutive, got {levels}")
        self.levels, self.checkpointing = levels, checkpointing
        self.out_channels = out_channels
        widths = [in_channels, *channels]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    Convolution(
                        3,
                        widths[k] if i == 0 else widths[k + 1],
                        widths[k + 1],
                        strides=2 if i == 0 else 1,
                        kernel_size=3,
                        act=("leakyrelu", {"negative_slope": 0.01, "inplace": True}),
                        norm=("instance", {"affine": True}),
                        bias=False,  # the norm that follows would remove it
                    )
                    for i in range(depth)
                )
            )
            for k in range(len(channels))
        )
        self.lateral = nn.ModuleList(PointwiseConv3d(c, out_channels) for c in channels[levels[0] - 1 :])

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (B, in_channels, X, Y, Z) to maps (B, out_channels, ⌈X/2^k⌉, …), one for each level, finest first."""
        maps = []
        x = image
        for stage in self.stages:
            x = run(stage, x, again=self.checkpointing and self.training)
            maps.append(x)
        maps = maps[self.levels[0] - 1 :]
        top = None
        pyramid: list[Tensor] = []
        for lateral, x in zip(reversed(self.lateral), reversed(maps), strict=True):
            x = lateral(x)
            top = x if top is None else x + F.interpolate(top, size=x.shape[2:], mode="nearest")
            pyramid.insert(0, top)
        return pyramid[: len(self.levels)]
