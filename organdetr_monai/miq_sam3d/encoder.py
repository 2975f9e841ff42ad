"""Gated dual encoder: a U-Net sees boundaries, a transformer of patches sees far, a gate lets the first guide the
second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution, ResidualUnit
from torch import Tensor, nn

from organdetr_monai.networks.attention import Attention, FeedForward, attend
from organdetr_monai.networks.pointwise import PointwiseConv3d
from organdetr_monai.networks.position import grid_encoding

EPS = 1e-4  # of the saliency's logarithm: a place without any loses at most 9 gamma
ACTIVATION = ("LEAKYRELU", {"negative_slope": 0.01})  # the gradient of MONAI's PReLU is a tenth of a step on CPUs


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
    """What the encoder makes of an image, finest first: `channels` says how wide each is."""

    #: (B, channels[0], X, Y, Z)
    voxels: Tensor
    #: (B, channels[0], ⌈X/2⌉, ⌈Y/2⌉, ⌈Z/2⌉)
    fine: Tensor
    #: (B, channels[1], …) and (B, channels[-1], …) at strides 4 and 8.
    pyramid: list[Tensor]


class DualEncoder(nn.Module):
    """A U-Net of MONAI's blocks and a patch transformer, joined where their strides meet: at the U-Net's bottom.

    The gate's saliency is ``sigmoid(conv1(C - avgpool3(C)))`` of the U-Net's map C at the bottom: what stands out from
    its surroundings, which is where boundaries are.

    The U-Net is built and works as ``monai.networks.nets.UNet`` does with ``num_res_units=1``, but shows the maps
    inside. It is kept channels last, which on CPUs saves oneDNN from copying.

    Parameters
    ----------
    transformer : PatchTransformer
        Of patch 8.
    channels : sequence of 4 int
        Of the stages at strides 2, 4 and 8 and of the bottom, at stride 8.
    gated : bool
        False: no gate, to compare with; the weights are the same.
    """

    def __init__(
        self, transformer: PatchTransformer, *, channels: Sequence[int] = (16, 32, 64, 128), gated: bool = True
    ) -> None:
        super().__init__()
        if transformer.patch != 8:
            raise ValueError(f"the patch must be the stride of the U-Net's bottom, 8, got {transformer.patch}")
        if len(channels) != 4:
            raise ValueError(f"channels must be four numbers, of three stages and the bottom, got {tuple(channels)}")
        self.transformer, self.channels, self.gated = transformer, tuple(channels), gated
        widths = [1, *channels]
        self.down = nn.ModuleList(_unit(widths[k], widths[k + 1], stride=2 if k < 3 else 1) for k in range(4))
        self.saliency = PointwiseConv3d(channels[3], 1)
        self.join = PointwiseConv3d(transformer.dim, channels[3])
        inputs = [channels[2] + channels[3], 2 * channels[1], 2 * channels[0]]
        outputs = [channels[1], channels[0], channels[0]]
        self.widen = nn.ModuleList(
            Convolution(3, a, b, strides=2, kernel_size=3, is_transposed=True, norm="INSTANCE", act=ACTIVATION)
            for a, b in zip(inputs, outputs, strict=True)
        )
        # The last one ends without a norm: normalised features cannot say that most of a window is background.
        self.mix = nn.ModuleList(_unit(b, b, bare=k == 2) for k, b in enumerate(outputs))
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing in torch's stubs

    def forward(self, image: Tensor) -> Maps:
        """Image (B, 1, X, Y, Z), intensities in [0, 1], to its maps."""
        stages, x = [], image
        for unit in self.down:
            x = unit(x)
            stages.append(x)
        saliency = None
        if self.gated:
            around = F.avg_pool3d(x, 3, stride=1, padding=1, count_include_pad=False)
            saliency = self.saliency(x - around)[:, 0].sigmoid()
        bottom = x + self.join(self.transformer(image, saliency))
        x, up = torch.cat([stages[2], bottom], 1), []
        for k, (widen, mix) in enumerate(zip(self.widen, self.mix, strict=True)):
            like = image if k == 2 else stages[1 - k]
            size = like.shape[2:]
            x = mix(widen(x)[:, :, : size[0], : size[1], : size[2]])  # an odd map gets a voxel too many
            up.append(x)
            if k < 2:
                x = torch.cat([like, x], 1)
        return Maps(up[2], up[1], [up[0], bottom])


def _unit(in_channels: int, out_channels: int, *, stride: int = 1, bare: bool = False) -> nn.Module:
    """MONAI's residual unit of one convolution; ``bare``: without norm and activation."""
    return ResidualUnit(
        3, in_channels, out_channels, strides=stride, subunits=1, norm="INSTANCE", act=ACTIVATION, last_conv_only=bare
    )
