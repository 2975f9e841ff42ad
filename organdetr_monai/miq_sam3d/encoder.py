"""Gated dual encoder: a convolutional trunk sees boundaries, a transformer of patches sees far, a gate lets the first
guide the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from organdetr_monai.networks.attention import Attention, FeedForward, attend
from organdetr_monai.networks.pointwise import PointwiseConv3d
from organdetr_monai.networks.position import grid_encoding
from organdetr_monai.networks.pyramid import PyramidBackbone

EPS = 1e-4  # of the saliency's logarithm: a place without any loses at most 9 gamma


class GatedAttention(Attention):
    """Self-attention whose keys and values are weighed by a saliency S in (0, 1).

    Head ``h`` adds ``gamma_h * log(S + eps)`` to the logit of a key and multiplies its value by ``1 + beta_h * S``. At
    gamma = beta = 0, where training starts, that is plain self-attention, bit for bit.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.gamma, self.beta = nn.Parameter(torch.zeros(heads)), nn.Parameter(torch.zeros(heads))

    def gated(self, x: Tensor, saliency: Tensor) -> Tensor:
        """Tokens (B, T, dim) and their saliency (B, T) to (B, T, dim)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, dim / heads), a view
            for layer in (self.query, self.key, self.value)
        )
        s = saliency[:, None].float()  # (B, 1, T)
        bias = self.gamma[:, None] * torch.log(s + EPS)  # (B, heads, T)
        v = v * (1 + self.beta[:, None] * s)[..., None].to(v.dtype)
        x = attend(q, k, v, bias[:, :, None].to(q.dtype))
        return self.out(x.transpose(1, 2).flatten(2))


class GatedBlock(nn.Module):
    """One layer of the transformer: gated self-attention, feed-forward; norms before each."""

    def __init__(self, dim: int, *, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(dim), GatedAttention(dim, heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), FeedForward(dim, hidden)

    def forward(self, x: Tensor, saliency: Tensor | None) -> Tensor:
        """Tokens (B, T, dim), saliency (B, T) or None for no gate, to tokens."""
        y = self.attention_norm(x)
        x = x + (self.attention(y, y, y) if saliency is None else self.attention.gated(y, saliency))
        return x + self.mlp(self.mlp_norm(x))


class PatchTransformer(nn.Module):
    """Transformer over the patches of a volume (Dosovitskiy et al. 2021), of any size: its positions are sines.

    Parameters
    ----------
    in_channels, dim : int
        Channels of the image; width, a multiple of 6 and of ``heads``.
    patch : int
        Edge of a patch in voxels, and stride of the map that comes out.
    layers, heads, hidden : int
        Number of layers, and the sizes of each.
    """

    def __init__(
        self, in_channels: int = 1, dim: int = 96, *, patch: int = 8, layers: int = 4, heads: int = 6, hidden: int = 192
    ) -> None:
        super().__init__()
        self.patch, self.dim = patch, dim
        self.embed = nn.Conv3d(in_channels, dim, patch, stride=patch)
        self.blocks = nn.ModuleList(GatedBlock(dim, heads=heads, hidden=hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor, saliency: Tensor | None = None) -> Tensor:
        """Transform.

        Parameters
        ----------
        image : Tensor of shape (B, in_channels, X, Y, Z)
        saliency : Tensor of shape (B, ⌈X/patch⌉, ⌈Y/patch⌉, ⌈Z/patch⌉), optional
            In (0, 1); None for no gate.

        Returns
        -------
        Tensor of shape (B, dim, ⌈X/patch⌉, ⌈Y/patch⌉, ⌈Z/patch⌉)
        """
        x, y, z = (-n % self.patch for n in image.shape[2:])
        grid = self.embed(F.pad(image, (0, z, 0, y, 0, x)) if x or y or z else image)
        shape = grid.shape[2:]
        code = grid_encoding(shape, self.dim, device=grid.device).to(grid.dtype)
        tokens = grid.flatten(2).transpose(1, 2) + code.flatten(0, 2)  # (B, T, dim)
        weight = None if saliency is None else saliency.flatten(1)
        for block in self.blocks:
            tokens = block(tokens, weight)
        return self.norm(tokens).transpose(1, 2).unflatten(2, shape)


class Maps(NamedTuple):
    """What the encoder makes of an image."""

    #: For the masks, (B, fine_channels, ⌈X/2⌉, ⌈Y/2⌉, ⌈Z/2⌉).
    fine: Tensor
    #: For the queries, (B, dim, ⌈X/2^k⌉, …) for each level of the backbone, finest first.
    pyramid: list[Tensor]


class DualEncoder(nn.Module):
    """Convolutional trunk and patch transformer, joined where their strides meet, under one feature pyramid.

    The gate's saliency is ``sigmoid(conv1(C - avgpool3(C)))`` of the trunk's map C at the transformer's stride: what
    stands out from its surroundings, which is where boundaries are. Trunk and top-down path are Organ-DETR's
    (:class:`organdetr_monai.networks.FPNBackbone`), and take its weights.

    Parameters
    ----------
    backbone : PyramidBackbone
        Its levels start at 2 or later, and include the transformer's stride.
    transformer : PatchTransformer
    channels : sequence of int
        Width of each stage of the backbone.
    dim : int
        Width of the backbone's maps.
    fine_channels : int
        Width of the map of stride 2 that the masks are read from.
    gated : bool
        False: no gate, to compare with; the weights are the same.
    """

    def __init__(
        self,
        backbone: PyramidBackbone,
        transformer: PatchTransformer,
        *,
        channels: Sequence[int],
        dim: int = 96,
        fine_channels: int = 24,
        gated: bool = True,
    ) -> None:
        super().__init__()
        strides = [2**level for level in backbone.levels]
        if transformer.patch not in strides:
            raise ValueError(f"the patch must be one of the backbone's strides {strides}, got {transformer.patch}")
        if backbone.levels[0] < 2:
            raise ValueError(f"the pyramid must start at level 2 or later, below the fine map, got {backbone.levels}")
        self.backbone, self.transformer, self.gated = backbone, transformer, gated
        self.meeting = strides.index(transformer.patch) + backbone.levels[0] - 1  # stage, counted from 0
        self.saliency = PointwiseConv3d(channels[self.meeting], 1)
        self.join = PointwiseConv3d(transformer.dim, channels[self.meeting])
        self.fine_lateral = PointwiseConv3d(channels[0], fine_channels)
        self.fine_down = PointwiseConv3d(dim, fine_channels)
        self.fine_mix = Convolution(
            3,
            fine_channels,
            fine_channels,
            kernel_size=3,
            act=("leakyrelu", {"negative_slope": 0.01, "inplace": True}),
            norm=("instance", {"affine": True}),
            bias=False,  # the norm that follows would remove it
        )
        self.fine_out = PointwiseConv3d(fine_channels, fine_channels)

    def forward(self, image: Tensor) -> Maps:
        """Image (B, 1, X, Y, Z), intensities in [0, 1], to its maps."""
        stages = self.backbone.trunk(image)
        here = stages[self.meeting]
        saliency = None
        if self.gated:
            around = F.avg_pool3d(here, 3, stride=1, padding=1, count_include_pad=False)
            saliency = self.saliency(here - around)[:, 0].sigmoid()
        far = self.transformer(image, saliency)
        stages[self.meeting] = here + self.join(far)
        pyramid = self.backbone.top_down(stages[self.backbone.levels[0] - 1 :])
        above = F.interpolate(self.fine_down(pyramid[0]), size=stages[0].shape[2:], mode="trilinear")
        fine = self.fine_out(self.fine_mix(self.fine_lateral(stages[0]) + above))
        return Maps(fine, pyramid)
