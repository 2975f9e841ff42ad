"""Competitively optimised query decoder: the queries of all instances are refined together and compete for places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from organdetr_monai.boxes import inverse_sigmoid
from organdetr_monai.miq_sam3d.heads import Evidence, InstanceHeads
from organdetr_monai.networks.attention import MLP
from organdetr_monai.networks.decoder import DecoderLayer
from organdetr_monai.networks.position import box_encoding, grid_encoding
from organdetr_monai.networks.sampling import Shape

COMPETITIONS = ("self", "slot")


class SlotCompetition(nn.Module):
    """Every place of a map is shared among the queries and a background slot (slot attention, Locatello et al. 2020).

    The softmax runs over the queries, not over the places: what one query takes, the others lose.

    Parameters
    ----------
    dim : int
        Width, a multiple of 6.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        # A bias of the query would add the same to all of a place's logits but the background's, which has its own.
        self.query, self.key, self.value = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.background = nn.Parameter(torch.randn(dim) * 0.02)
        self.out = nn.Linear(dim, dim)

    def forward(self, query: Tensor, fmap: Tensor) -> Tensor:
        """Query with its position (B, K, dim) and map (B, dim, X, Y, Z) to (B, K, dim)."""
        tokens = fmap.flatten(2).transpose(1, 2)  # (B, S, dim)
        code = grid_encoding(fmap.shape[2:], fmap.shape[1], device=fmap.device).flatten(0, 2)  # (S, dim)
        key, value = self.key(tokens + code.to(tokens.dtype)), self.value(tokens)
        slots = torch.cat([self.query(query), self.background.to(key.dtype).expand(len(query), 1, -1)], 1)
        logits = (slots @ key.transpose(1, 2)).float() / key.shape[-1] ** 0.5  # (B, K + 1, S)
        share = logits.softmax(1)[:, :-1]
        share = share / (share.sum(-1, keepdim=True) + 1e-6)  # a mean over the places that a query has won
        return self.out(share.to(value.dtype) @ value)


class CompetitiveLayer(DecoderLayer):
    """Organ-DETR's decoder layer, with ``slots`` preceded by a :class:`SlotCompetition`."""

    def __init__(self, dim: int, *, slots: bool = False, **options: int) -> None:
        super().__init__(dim, **options)
        if slots:
            self.slots, self.slot_norm = SlotCompetition(dim), nn.LayerNorm(dim)

    def compete(self, query: Tensor, position: Tensor, fmap: Tensor) -> Tensor:
        """Query and position (B, K, dim) and map (B, dim, X, Y, Z) to the new query (B, K, dim)."""
        taken: Tensor = self.slots(query + position, fmap)
        return self.slot_norm(query + taken)


class CompetitiveDecoder(nn.Module):
    """Layers of the decoder, the same heads after each, and boxes refined from layer to layer.

    Parameters
    ----------
    dim, fine_channels : int
        Width of queries and maps; of the map that masks are read from.
    layers, heads, levels, points, hidden : int
        Number of layers, and the sizes of each.
    competition : str
        ``"self"``: queries compete through self-attention. ``"slot"``: before that they share out the places of the map
        in the middle of the pyramid.
    """

    def __init__(
        self,
        dim: int = 96,
        fine_channels: int = 16,
        *,
        layers: int = 3,
        heads: int = 6,
        levels: int = 2,
        points: int = 4,
        hidden: int = 256,
        competition: str = "self",
    ) -> None:
        super().__init__()
        if competition not in COMPETITIONS:
            raise ValueError(f"competition must be one of {COMPETITIONS}, got {competition!r}")
        self.dim, self.competition, self.middle = dim, competition, (levels - 1) // 2
        self.layers = nn.ModuleList(
            CompetitiveLayer(dim, slots=competition == "slot", heads=heads, levels=levels, points=points, hidden=hidden)
            for _ in range(layers)
        )
        self.position = MLP(6 * 2 * (dim // 6), dim, dim, depth=2)
        self.level_embedding = nn.Parameter(torch.randn(levels, dim) * 0.02)
        self.heads = InstanceHeads(dim, fine_channels)

    def forward(
        self, pyramid: Sequence[Tensor], fine: Tensor, content: Tensor, boxes: Tensor, evidence: Evidence
    ) -> list[dict[str, Tensor]]:
        """Decode.

        Parameters
        ----------
        pyramid : sequence of Tensor of shape (B, dim, X, Y, Z)
            Finest first, ``levels`` of them.
        fine : Tensor of shape (B, fine_channels, X', Y', Z')
            What the masks are read from.
        content : Tensor of shape (B, K, dim)
        boxes : Tensor of shape (B, K, 6)
            Where the queries start, normalised centre boxes.
        evidence : Evidence
            In the cells of the fine map.

        Returns
        -------
        list of dict
            For each layer, in evaluation mode for the last one only: ``masks`` (B, K, X', Y', Z'), ``objectness`` (B,
            K) and ``quality`` (B, K), all logits, and ``boxes`` (B, K, 6), normalised centre boxes.
        """
        shapes: list[Shape] = [(m.shape[2], m.shape[3], m.shape[4]) for m in pyramid]
        memory = torch.cat(
            [m.flatten(2).transpose(1, 2) + e for m, e in zip(pyramid, self.level_embedding, strict=True)], dim=1
        )  # (B, S, dim)
        query, logit = content, inverse_sigmoid(boxes)
        outputs = []
        for layer in self.layers:
            box = logit.sigmoid()
            position = self.position(box_encoding(box, 2 * (self.dim // 6)).to(query.dtype))
            if self.competition == "slot":
                query = cast(CompetitiveLayer, layer).compete(query, position, pyramid[self.middle])
            query = layer(query, position, box, memory, shapes)
            moved = logit + self.heads.box(query).float()
            if self.training or layer is self.layers[-1]:
                outputs.append(self.heads(query, moved.sigmoid(), fine, evidence))
            logit = inverse_sigmoid(moved.detach().sigmoid())
        return outputs
