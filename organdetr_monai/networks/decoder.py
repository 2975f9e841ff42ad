"""Deformable decoder: learned queries that look at the feature maps and move their boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from organdetr_monai.boxes import inverse_sigmoid
from organdetr_monai.networks.attention import MLP, Attention, FeedForward
from organdetr_monai.networks.deformable import DeformableAttention
from organdetr_monai.networks.position import box_encoding
from organdetr_monai.networks.quality import rated


class DecoderLayer(nn.Module):
    """Self-attention among the queries, deformable cross-attention, feed-forward; norms after each (as in DETR)."""

    def __init__(
        self, dim: int, *, heads: int = 6, levels: int = 3, points: int = 4, hidden: int = 256, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.self_attention = Attention(dim, heads, dropout=dropout)
        self.cross_attention = DeformableAttention(dim, heads=heads, levels=levels, points=points)
        self.feed_forward = FeedForward(dim, hidden, dropout=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int, int]],
        mask: Tensor | None = None,
    ) -> Tensor:
        """Query and position (B, N, dim), reference (B, N, 6), memory (B, S, dim) to the new query (B, N, dim)."""
        where = query + position
        query = self.norms[0](query + self.drop(self.self_attention(where, where, query, mask)))
        query = self.norms[1](query + self.drop(self.cross_attention(query + position, reference, memory, shapes)))
        return self.norms[2](query + self.drop(self.feed_forward(query)))


class DeformableDecoder(nn.Module):
    """Layers of the decoder with a class and a box head after each.

    A box head's output is added to the query's reference box in logit space and squashed. With ``refine`` the sum is
    the reference of the next layer (iterative box refinement, Zhu et al. 2021): without its gradient where each layer
    has a loss, with it where the last one alone has.

    Parameters
    ----------
    dim : int
        Width.
    num_classes : int
        Organs; the class head has one more logit, index 0, for "no organ".
    layers, heads, levels, points, hidden : int
        Number of layers, and the sizes of each.
    dropout : float
        Dropout in training.
    refine : bool
        Iterative box refinement.
    auxiliary : bool
        False: a class head after the last layer only, for a loss on nothing else. Box heads of earlier layers are then
        there for refinement alone, and learn through the references that they hand on.
    quality : bool
        A third head beside each class head: the expected IoU of the box (:mod:`organdetr_monai.networks.quality`).
    """

    def __init__(
        self,
        dim: int = 96,
        num_classes: int = 12,
        *,
        layers: int = 3,
        heads: int = 6,
        levels: int = 3,
        points: int = 4,
        hidden: int = 256,
        dropout: float = 0.0,
        refine: bool = True,
        auxiliary: bool = True,
        quality: bool = False,
    ) -> None:
        super().__init__()
        self.refine, self.auxiliary, self.dim, self.num_levels = refine, auxiliary, dim, levels
        self.layers = nn.ModuleList(
            DecoderLayer(dim, heads=heads, levels=levels, points=points, hidden=hidden, dropout=dropout)
            for _ in range(layers)
        )
        self.position = MLP(6 * 2 * (dim // 6), dim, dim, depth=2)
        self.level_embedding = nn.Parameter(torch.randn(levels, dim) * 0.02)
        # Of the last layers: a head that neither the loss nor the next layer asks would never learn.
        self.class_heads = nn.ModuleList(nn.Linear(dim, num_classes + 1) for _ in range(layers if auxiliary else 1))
        box_heads = [MLP(dim, dim, 6) for _ in range(layers if auxiliary or refine else 1)]
        for head in box_heads:  # hardly a step at the start: the first boxes are the reference boxes
            weight, bias = head[-1].parameters()
            nn.init.normal_(weight, std=1e-3)
            nn.init.zeros_(bias)
        self.box_heads = nn.ModuleList(box_heads)
        heads_for_quality = len(self.class_heads) if quality else 0
        self.quality_heads = nn.ModuleList(MLP(dim, dim, 1, depth=2) for _ in range(heads_for_quality))

    def forward(
        self, maps: Sequence[Tensor], content: Tensor, reference: Tensor, mask: Tensor | None = None
    ) -> list[dict[str, Tensor]]:
        """Decode.

        Parameters
        ----------
        maps : sequence of Tensor of shape (B, dim, X, Y, Z)
            Finest first, ``levels`` of them.
        content : Tensor of shape (N, dim) or (B, N, dim)
        reference : Tensor of shape (N, 6) or (B, N, 6)
            Reference boxes, normalised centre boxes as logits.
        mask : Tensor of shape (B or 1, 1, N, N), optional
            True where a query (row) may see another (column).

        Returns
        -------
        list of dict
            For each layer, without ``auxiliary`` for the last one: ``logits`` (B, N, K + 1) and ``boxes`` (B, N, 6),
            normalised centre boxes in [0, 1]. With ``quality`` in training also ``quality`` (B, N), the logit of the
            expected IoU; else it is in the logits already.
        """
        batch = maps[0].shape[0]
        shapes = [tuple(m.shape[2:]) for m in maps]
        memory = torch.cat(
            [m.flatten(2).transpose(1, 2) + e for m, e in zip(maps, self.level_embedding, strict=True)], dim=1
        )  # (B, S, dim)
        query = content.expand(batch, -1, -1)
        logit = reference.float().expand(batch, -1, -1)
        outputs = []
        for to_come, layer in zip(reversed(range(len(self.layers))), self.layers, strict=True):
            box = logit.sigmoid()
            position = self.position(box_encoding(box, 2 * (self.dim // 6)).to(query.dtype))
            query = layer(query, position, box, memory, shapes, mask)
            if to_come >= len(self.box_heads):
                continue
            moved = logit + self.box_heads[-1 - to_come](query).float()
            if to_come < len(self.class_heads):
                output = {"logits": self.class_heads[-1 - to_come](query).float(), "boxes": moved.sigmoid()}
                if self.quality_heads:
                    output["quality"] = self.quality_heads[-1 - to_come](query).float()[..., 0]
                    if not self.training:
                        output["logits"] = rated(output["logits"], output.pop("quality"))
                outputs.append(output)
            if self.refine:
                logit = inverse_sigmoid((moved.detach() if self.auxiliary else moved).sigmoid())
        return outputs
