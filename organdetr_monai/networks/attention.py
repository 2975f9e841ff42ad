"""Multi-head attention and the feed-forward block: what the encoder and the decoder share."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention through ``scaled_dot_product_attention``.

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
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0)
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
