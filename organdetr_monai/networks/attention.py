"""Multi-head attention and the feed-forward block: what the encoder and the decoder share."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORT = 256  # keys up to which matrices win


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, dropout: float = 0.0) -> Tensor:
    """``scaled_dot_product_attention``, by the fastest way there is.

    In bfloat16 on a CPU its gradient takes several times as long as that of two matrix products where keys are few, and
    wherever the mask is learned (torch 2.13, ``benchmarks/attention.py``).

    Parameters
    ----------
    q : Tensor of shape (B, heads, Q, d)
    k, v : Tensor of shape (B, heads, S, d)
    mask : Tensor, optional
        Broadcasts to (B, heads, Q, S): bool, True where a key may be seen, at least one by each query; or what is added
        to the logits.
    dropout : float
        Of the attention weights.

    Returns
    -------
    Tensor of shape (B, heads, Q, d)
    """
    slow = k.shape[-2] <= SHORT or (mask is not None and mask.requires_grad)
    if not (slow and q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    with torch.autocast("cpu", enabled=False):  # which would run the softmax in float32, and keep that
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if mask is not None:
            if mask.dtype == torch.bool:
                logits = logits.masked_fill(~mask, float("-inf"))
            else:
                logits = logits + mask.to(logits.dtype)
        return F.dropout(logits.softmax(-1), dropout) @ v


class Attention(nn.Module):
    """Multi-head attention (:func:`attend`).

    Parameters
    ----------
    dim : int
        Width, a multiple of ``heads``.
    heads : int
        Number of heads.
    dropout : float
        Dropout of the attention weights in training.
    """

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} is not a multiple of {heads} heads")
        self.heads, self.dropout = heads, dropout
        # A bias of the keys adds the same to all of a query's logits: softmax takes it out, and it would never learn.
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Parameters
        ----------
        query : Tensor of shape (B, Q, dim)
        key, value : Tensor of shape (B, S, dim)
        mask : Tensor of shape (B or 1, 1, Q or 1, S), optional
            True where a key may be seen.

        Returns
        -------
        Tensor of shape (B, Q, dim)
        """
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, length, dim / heads), a view
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        x = attend(q, k, v, mask, dropout=self.dropout if self.training else 0.0)
        return self.out(x.transpose(1, 2).flatten(2))


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between: (..., dim) to (..., dim)."""

    def __init__(self, dim: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))


class MLP(nn.Sequential):
    """``depth`` linear layers with ReLU between: the box head of DETR."""

    def __init__(self, dim: int, hidden: int, out: int, *, depth: int = 3) -> None:
        widths = [dim, *[hidden] * (depth - 1), out]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        super().__init__(*layers[:-1])
