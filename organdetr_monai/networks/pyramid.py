"""Feature pyramid: the stages of any trunk, and the top-down path that all backbones share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from organdetr_monai.networks.checkpointing import run


class _Float32(nn.Module):
    """A module outside of autocast."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.module(x.float())


def exact(module: nn.Module, x: Tensor, *, thin: int) -> nn.Module:
    """The module; or, where training would go wrong in bfloat16, the module in float32.

    On a CPU the weight gradient of a 3D convolution in bfloat16 is garbage, or written beyond its memory, for some maps
    with one or two voxels along an axis (torch 2.13 with its oneDNN). Such maps are small: float32 costs nothing there.

    Parameters
    ----------
    thin : int
        Voxels along an axis of ``x`` up to which the module's maps have one or two.
    """
    risky = x.device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    return _Float32(module) if risky and min(x.shape[2:]) <= thin else module


class PyramidBackbone(nn.Module):
    """Stages one after another, and a top-down path (Lin et al. 2017) over what they give.

    Stage ``k`` (1, 2, …) works at stride ``2**k``. Stages beyond the coarsest level take part in the top-down path.
    Lateral connections are 1×1×1; the usual 3×3×3 smoothing of the fine levels is left out, because the encoder mixes
    neighbours next and at the width of the maps such a convolution is the most expensive layer of all.

    Parameters
    ----------
    stages : sequence of nn.Module
        The first takes the image, each other what the one before gives, (B, C, X, Y, Z) to (B, C', ⌈X/2⌉, …).
    widths : sequence of int
        C' of each stage.
    lateral : callable
        From a stage's width to its lateral connection, a module from (B, C', …) to maps of the width of the pyramid;
        asked for the stages from ``levels[0]`` on.
    levels : sequence of int
        Which stages come out, ascending; level ``k`` has stride ``2**k``.
    checkpointing : bool
        In training keep only each stage's input and compute the rest again for the gradient: less memory, more time.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        widths: Sequence[int],
        lateral: Callable[[int], nn.Module],
        levels: Sequence[int],
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        levels, count = tuple(levels), len(stages)
        if not levels or sorted(set(levels)) != list(levels) or levels[0] < 1 or levels[-1] > count:
            raise ValueError(f"levels must ascend within 1..{count}, the number of stages, got {levels}")
        if [b - a for a, b in itertools.pairwise(levels)] != [1] * (len(levels) - 1):
            raise ValueError(f"levels must be consecutive, got {levels}")
        self.levels, self.checkpointing = levels, checkpointing
        self.stages = nn.ModuleList(stages)
        self.lateral = nn.ModuleList(lateral(width) for width in widths[levels[0] - 1 :])

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (B, in_channels, X, Y, Z) to maps (B, out_channels, ⌈X/2^k⌉, …), one for each level, finest first."""
        return self.top_down(self.trunk(image)[self.levels[0] - 1 :])

    def trunk(self, image: Tensor) -> list[Tensor]:
        """Image (B, in_channels, X, Y, Z) to what each stage makes of it, (B, C', ⌈X/2^k⌉, …), finest first."""
        maps = []
        x = image
        for stage in self.stages:
            x = run(exact(stage, x, thin=4), x, again=self.checkpointing and self.training)
            maps.append(x)
        return maps

    def top_down(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What the stages from ``levels[0]`` on made, finest first, to the maps of the levels."""
        top = None
        pyramid: list[Tensor] = []
        for lateral, x in zip(reversed(self.lateral), reversed(list(maps)), strict=True):
            x = run(exact(lateral, x, thin=2), x, again=self.checkpointing and self.training)
            top = x if top is None else x + F.interpolate(top, size=x.shape[2:], mode="nearest")
            pyramid.insert(0, top)
        return pyramid[: len(self.levels)]
