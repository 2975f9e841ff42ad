"""The default trunk: plain strided convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from monai.networks.blocks import Convolution
from torch import nn

from organdetr_monai.networks.pointwise import PointwiseConv3d
from organdetr_monai.networks.pyramid import PyramidBackbone


class FPNBackbone(PyramidBackbone):
    """Convolutional trunk with a top-down path, instance norm throughout.

    The stem halves the volume at once: a stage at full resolution would take most of the time of the whole network and
    hold the least context.

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
        widths = [in_channels, *channels]
        stages = [
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
        ]
        lateral = partial(PointwiseConv3d, out_channels=out_channels)
        super().__init__(stages, channels, lateral, levels, checkpointing=checkpointing)
