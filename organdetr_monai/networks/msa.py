"""MultiScale Attention encoder: coarse context guides fine detail, each place looking at its own place.

Top-down over the pyramid (Organ-DETR, section on the MSA encoder). At each level the map is cut into patches of 2×2×2
voxels, one token each. Tokens attend to the tokens of their window (intra-scale), then to the tokens of the coarser,
already refined level that lie over the same window (inter-scale), then pass an MLP.

Tokens are kept in window order, (B * windows, tokens in a window, dim), through the whole level, so that attention
needs no further copies. A token of level ``l`` at grid position ``i`` lies under the token ``i // 2`` of level ``l +
1``: a fine window of ``w`` tokens along an axis lies exactly under ``w / 2`` coarse tokens, and ``w`` is even.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from organdetr_monai.networks.attention import Attention, FeedForward
from organdetr_monai.networks.checkpointing import run
from organdetr_monai.networks.position import grid_encoding

Shape = tuple[int, int, int]


def symbolic(x: Tensor) -> bool:
    """Whether the sizes of ``x`` are unknown, because the code is being traced or exported for all sizes at once.

    Nothing may branch on them then: every map is padded, by nothing where it fits, and masked.
    """
    return not all(isinstance(n, int) for n in x.shape)


def cut(x: Tensor, shape: Sequence[int], *, first: int) -> Tensor:
    """What ``x`` holds within ``shape``, its three axes from ``first`` on cut at their far ends."""
    if symbolic(x):  # a slice may come out shorter than asked for, and that doubt in every size slows the exporter down
        less = [n - m for n, m in zip(shape, x.shape[first:], strict=False)]
        return F.pad(x, (0, 0) * (x.ndim - first - 3) + (0, less[2], 0, less[1], 0, less[0]))
    for axis, n in enumerate(shape, start=first):
        x = x.narrow(axis, 0, n)
    return x


def to_windows(grid: Tensor, window: Shape, count: Shape) -> Tensor:
    """Cut a token grid into windows, padding its far ends with zeros.

    Parameters
    ----------
    grid : Tensor of shape (B, X, Y, Z, C)
    window : tokens in a window along each axis
    count : windows along each axis; ``window * count`` covers the grid

    Returns
    -------
    Tensor of shape (B * windows, tokens, C)
    """
    pad = [w * n - s for w, n, s in zip(window, count, grid.shape[1:4], strict=True)]
    if symbolic(grid) or any(pad):
        grid = F.pad(grid, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
    (wx, wy, wz), (nx, ny, nz) = window, count
    x = grid.reshape(-1, nx, wx, ny, wy, nz, wz, grid.shape[-1])
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, wx * wy * wz, grid.shape[-1])


def from_windows(tokens: Tensor, window: Shape, count: Shape, shape: Shape) -> Tensor:
    """Inverse of :func:`to_windows`: (B * windows, tokens, C) to (B, X, Y, Z, C), the padding cut off."""
    (wx, wy, wz), (nx, ny, nz) = window, count
    x = tokens.reshape(-1, nx, ny, nz, wx, wy, wz, tokens.shape[-1]).permute(0, 1, 4, 2, 5, 3, 6, 7)
    x = x.reshape(-1, nx * wx, ny * wy, nz * wz, tokens.shape[-1])
    return cut(x, shape, first=1)


def window_layout(shape: Shape, window: int) -> tuple[Shape, Shape]:
    """Window size (even, no larger than the grid needs) and number of windows along each axis of a token grid."""
    x, y, z = (min(window, n + n % 2) if isinstance(n, int) else window for n in shape)
    # Not -(-n // w): ONNX rounds to zero.
    nx, ny, nz = ((n + w - 1) // w for n, w in zip(shape, (x, y, z), strict=True))
    return (x, y, z), (nx, ny, nz)


def window_constants(grid: Tensor, window: Shape, count: Shape) -> tuple[Tensor, Tensor | None]:
    """Position encoding and key mask of a windowed token grid, the same for every image of the batch.

    Returns
    -------
    position : Tensor of shape (B * windows, tokens, C)
    mask : Tensor of shape (B * windows, 1, 1, tokens) or None
        True for real tokens; None where the windows fit the grid and nothing is padding.
    """
    batch, shape = grid.shape[0], grid.shape[1:4]
    code = grid_encoding(shape, grid.shape[-1], device=grid.device).to(grid.dtype)
    position = to_windows(code[None], window, count).repeat(batch, 1, 1)
    if not symbolic(grid) and all(w * n == s for w, n, s in zip(window, count, shape, strict=True)):
        return position, None
    real = to_windows(torch.ones(1, *shape, 1, device=grid.device), window, count)[:, None, None, :, 0] > 0
    # A window may be padding alone when a small grid is cut by a coarser level's layout; let it see itself, not NaN.
    real = real | ~real.any(dim=-1, keepdim=True)
    return position, real.repeat(batch, 1, 1, 1)


class MSALevel(nn.Module):
    """One level of the encoder: embed patches, intra-scale attention, inter-scale attention, MLP, back to voxels.

    Parameters
    ----------
    dim, heads, hidden : int
        Width, attention heads, hidden width of the MLP.
    window : int
        Tokens along the edge of a window, even, at least 4.
    has_coarser : bool
        Whether there is a coarser level to look at.
    """

    def __init__(
        self, dim: int, heads: int, hidden: int, window: int, *, has_coarser: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if window < 4 or window % 2:
            raise ValueError(
                f"window must be even, to lie under whole coarse tokens, and at least 4, for else it lies under a "
                f"single one and there is nothing to choose from; got {window}"
            )
        self.window = window
        # A 2×2×2 convolution of stride 2 is one matrix product; 3×3×3 ones would be a third of the whole forward pass.
        self.embed = nn.Conv3d(dim, dim, 2, stride=2)
        self.unembed = nn.ConvTranspose3d(dim, dim, 2, stride=2)
        self.embed_norm, self.out_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.intra_norm, self.intra = nn.LayerNorm(dim), Attention(dim, heads, dropout=dropout)
        if has_coarser:
            self.inter_norm, self.coarse_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.inter = Attention(dim, heads, dropout=dropout)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), FeedForward(dim, hidden, dropout=dropout)
        self.drop = nn.Dropout(dropout)

    def forward(self, fmap: Tensor, coarse: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Refine one map.

        Parameters
        ----------
        fmap : Tensor of shape (B, dim, X, Y, Z)
        coarse : Tensor of shape (B, X', Y', Z', dim), optional
            Token grid of the coarser level, X' = ⌈⌈X/2⌉/2⌉.

        Returns
        -------
        fmap : Tensor of shape (B, dim, X, Y, Z)
        tokens : Tensor of shape (B, ⌈X/2⌉, ⌈Y/2⌉, ⌈Z/2⌉, dim)
        """
        size = fmap.shape[2:]
        # Of an even map the convolution leaves out the voxels that are too many.
        odd = [1, 1, 1] if symbolic(fmap) else [n % 2 for n in size]
        padded = F.pad(fmap, (0, odd[2], 0, odd[1], 0, odd[0])) if any(odd) else fmap
        grid = self.embed_norm(self.embed(padded).permute(0, 2, 3, 4, 1))  # (B, x, y, z, dim)
        shape: Shape = tuple(grid.shape[1:4])
        window, count = window_layout(shape, self.window)
        tokens = to_windows(grid, window, count)  # (B * windows, w, dim)
        position, mask = window_constants(grid, window, count)
        normed = self.intra_norm(tokens)
        queries = normed + position
        tokens = tokens + self.drop(self.intra(queries, queries, normed, mask))

        if coarse is not None:
            half = window[0] // 2, window[1] // 2, window[2] // 2
            above = self.coarse_norm(to_windows(coarse, half, count))  # (B * windows, w / 8, dim)
            where, mask = window_constants(coarse, half, count)
            attended = self.inter(self.inter_norm(tokens) + position, above + where, above, mask)
            tokens = tokens + self.drop(attended)

        tokens = tokens + self.drop(self.mlp(self.mlp_norm(tokens)))
        grid = from_windows(tokens, window, count, shape)
        fine = cut(self.unembed(self.out_norm(grid).permute(0, 4, 1, 2, 3)), size, first=2)
        return fmap + fine, grid


class MSAEncoder(nn.Module):
    """MultiScale Attention over a feature pyramid, coarsest level first.

    Parameters
    ----------
    dim : int
        Width of all maps, a multiple of 6 (sine encoding) and of ``heads``.
    windows : sequence of int
        Window edge of each level in tokens, finest first, even, at least 4; its length is the number of levels. A
        window larger than a level's grid makes its attention global.
    heads, hidden : int
        Attention heads; hidden width of the MLPs.
    dropout : float
        Dropout in training.
    checkpointing : bool
        In training keep only each level's input and compute the rest again for the gradient: less memory, more time.
    """

    def __init__(
        self,
        dim: int = 96,
        windows: Sequence[int] = (4, 4, 8),
        *,
        heads: int = 6,
        hidden: int = 192,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.levels = nn.ModuleList(
            MSALevel(dim, heads, hidden, window, has_coarser=i + 1 < len(windows), dropout=dropout)
            for i, window in enumerate(windows)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, dim, X/2^k, …), finest first, to refined maps of the same shapes."""
        refined: list[Tensor] = []
        coarse = None
        for level, fmap in zip(reversed(self.levels), reversed(list(maps)), strict=True):
            fine, coarse = run(level, fmap, coarse, again=self.checkpointing and self.training)
            refined.insert(0, fine)
        return refined
