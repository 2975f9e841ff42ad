"""Focused Decoder (Wittmann et al., MELBA 2023): queries of one organ each, which look at that organ's region only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from organdetr_monai.boxes import EPS, centre_to_corners, iou_giou, normalise
from organdetr_monai.errors import InputError
from organdetr_monai.matching import Targets
from organdetr_monai.networks.attention import MLP, Attention, FeedForward
from organdetr_monai.networks.position import box_encoding, grid_encoding
from organdetr_monai.peers.shared import Average, counts_of_batch, organ_queries

#: Queries of an organ: three places of its centre along each axis.
QUERIES = 27
DEFAULT_WEIGHTS = {"class": 2.0, "l1": 5.0, "giou": 2.0}


class FocusedLayer(nn.Module):
    """Self-attention among the queries, cross-attention within the organs' regions, feed-forward; norms after each."""

    def __init__(self, dim: int, *, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(dim, heads, dropout=dropout)
        self.cross_attention = Attention(dim, heads, dropout=dropout)
        self.feed_forward = FeedForward(dim, hidden, dropout=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.drop = nn.Dropout(dropout)

    def forward(self, query: Tensor, position: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """Query (B, N, dim), key and value (B, S, dim), visible (1, 1, N, S) bool to the new query (B, N, dim)."""
        where = query + position
        query = self.norms[0](query + self.drop(self.self_attention(where, where, query)))
        query = self.norms[1](query + self.drop(self.cross_attention(query + position, key, value, visible)))
        return self.norms[2](query + self.drop(self.feed_forward(query)))


class FocusedDecoder(nn.Module):
    """Detector with an anatomical region atlas.

    The atlas comes from training boxes (`set_atlas`) and is part of the weights: for each organ a region, which its
    queries cannot see beyond, and 27 anchor boxes of its median size, whose centres lie on a grid of three quantiles
    along each axis. A query says whether its organ is there and moves its anchor's box within a reach: ``max_offset``,
    or as far as the organ's training boxes lie from their median. The paper's offsets are fixed shares of the volume,
    for scans cropped alike; quantiles fit scans of any extent.

    Parameters
    ----------
    backbone : nn.Module
        Image (B, 1, X, Y, Z) to a list of one map (B, dim, x, y, z).
    dim : int
        Width, a multiple of 6 and of ``heads``.
    num_classes : int
        K.
    layers, heads, hidden : int
        Number of layers, and the sizes of each.
    dropout : float
        Dropout in training.
    max_offset : float
        Least reach along an axis, as a share of the volume.
    """

    regions: Tensor
    anchors: Tensor
    reach: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 96,
        num_classes: int = 12,
        layers: int = 3,
        heads: int = 6,
        hidden: int = 256,
        dropout: float = 0.0,
        max_offset: float = 0.1,
    ) -> None:
        super().__init__()
        self.backbone, self.dim, self.max_offset = backbone, dim, max_offset
        self.register_buffer("regions", torch.tensor([0.0, 0, 0, 1, 1, 1]).repeat(num_classes, 1))  # corners
        self.register_buffer("anchors", torch.tensor([0.5, 0.5, 0.5, 0.2, 0.2, 0.2]).repeat(num_classes, QUERIES, 1))
        self.register_buffer("reach", torch.full((num_classes, 6), 0.5))
        self.content = nn.Parameter(torch.randn(num_classes * QUERIES, dim))
        self.position = MLP(6 * 2 * (dim // 6), dim, dim, depth=2)
        self.layers = nn.ModuleList(
            FocusedLayer(dim, heads=heads, hidden=hidden, dropout=dropout) for _ in range(layers)
        )
        self.presence_head, self.box_head = nn.Linear(dim, 1), MLP(dim, dim, 6)
        weight, bias = self.box_head[-1].parameters()  # hardly a step at the start: the first boxes are the anchors
        nn.init.normal_(weight, std=1e-3)
        nn.init.zeros_(bias)

    @torch.no_grad()
    def set_atlas(self, boxes: Tensor, labels: Tensor, *, margin: float = 0.05) -> None:
        """Take the atlas from training boxes; an organ without any keeps the whole volume.

        Parameters
        ----------
        boxes : Tensor of shape (M, 6)
            Normalised centre boxes.
        labels : Tensor of shape (M,)
            Ids 1..K.
        margin : float
            What a region has around all of its organ's boxes, as a share of the volume: augmentation goes on moving.
        """
        levels = torch.tensor([0.5, 1 / 6, 5 / 6])
        for k in labels.unique().tolist():
            mine = boxes[labels == k].float()
            corners = centre_to_corners(mine)
            low, high = corners[:, :3].amin(0) - margin, corners[:, 3:].amax(0) + margin
            self.regions[k - 1] = torch.cat([low, high]).clamp(0, 1)
            median = mine.median(dim=0).values
            centres = torch.cartesian_prod(*torch.quantile(mine[:, :3], levels, dim=0).unbind(1))  # (27, 3)
            self.anchors[k - 1] = torch.cat([centres, median[3:].expand(QUERIES, 3)], dim=1)
            self.reach[k - 1] = (mine - median).abs().amax(0).clamp(min=self.max_offset)

    def forward(self, image: Tensor) -> dict[str, Any]:
        """Detect.

        Parameters
        ----------
        image : Tensor of shape (B, 1, X, Y, Z)
            Intensities in [0, 1].

        Returns
        -------
        dict
            As :func:`organdetr_monai.peers.shared.organ_queries` gives it: the best query of each organ. In training
            ``presence`` (B, K, 27) logits and ``boxes`` (B, K, 27, 6) normalised centre boxes, ``aux``, the same for
            each earlier layer, and ``anchors`` (K, 27, 6).
        """
        (features,) = self.backbone(image)
        shape = tuple(features.shape[2:])
        memory = features.flatten(2).transpose(1, 2)  # (B, S, dim)
        key = memory + grid_encoding(shape, self.dim, device=memory.device).flatten(0, 2).to(memory.dtype)
        visible = cells_within(self.regions, shape).repeat_interleave(QUERIES, dim=0)[None, None]  # (1, 1, N, S)
        query = self.content.expand(len(image), -1, -1)
        position = self.position(box_encoding(self.anchors.flatten(0, 1), 2 * (self.dim // 6)).to(query.dtype))
        outputs = []
        for layer in self.layers:
            query = layer(query, position, key, memory, visible)
            outputs.append(self._answers(query))
        if self.training:
            *aux, last = outputs
            return {**last, "aux": aux, "anchors": self.anchors}
        presence, best = outputs[-1]["presence"].max(dim=2)  # (B, K)
        boxes = outputs[-1]["boxes"].gather(2, best[..., None, None].expand(-1, -1, 1, 6))[:, :, 0]
        return organ_queries(presence, boxes)

    def _answers(self, query: Tensor) -> dict[str, Tensor]:
        organs = (len(self.anchors), QUERIES)
        step = self.box_head(query).float().tanh().unflatten(1, organs)  # (B, K, 27, 6)
        centre, size = self.anchors.chunk(2, dim=-1)
        reach = self.reach[:, None]
        # Downwards a size moves by nine tenths of itself at most: a box stays one.
        shrink = torch.minimum(reach[..., 3:], 0.9 * size)
        grown = size + torch.where(step[..., 3:] < 0, shrink, reach[..., 3:]) * step[..., 3:]
        boxes = torch.cat([centre + reach[..., :3] * step[..., :3], grown], dim=-1)
        return {"presence": self.presence_head(query).float()[..., 0].unflatten(1, organs), "boxes": boxes}


def cells_within(regions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Which cells of a map (X, Y, Z) a region touches: corners in [0, 1], (K, 6), to bool (K, X * Y * Z)."""
    inside = torch.ones((len(regions), 1), dtype=torch.bool, device=regions.device)
    for axis, n in enumerate(shape):
        first = (regions[:, axis] * n).floor().clamp(max=n - 1)[:, None]
        stop = torch.maximum((regions[:, 3 + axis] * n).ceil()[:, None], first + 1)  # one cell at least
        index = torch.arange(n, device=regions.device)
        inside = (inside[:, :, None] & ((index >= first) & (index < stop))[:, None]).flatten(1)
    return inside


def labelled_boxes(samples: Iterable[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """Boxes of training samples, (M, 6) normalised centre boxes, and their ids (M,).

    Raises
    ------
    InputError
        No sample has a box.
    """
    boxes, labels = [], []
    for sample in samples:
        boxes.append(normalise(torch.as_tensor(sample["boxes"]).view(-1, 6), tuple(sample["image"].shape[1:])))
        labels.append(torch.as_tensor(sample["labels"]))
    if not sum(map(len, boxes)):
        raise InputError("no training sample has a box.", "Check the datalist's label map and the masks.")
    return torch.cat(boxes), torch.cat(labels)


class FocusedLoss(nn.Module):
    """``2 presence + 5 L1 + 2 GIoU`` over all layers.

    Queries belong to an organ from the start, so matching is within the organ: the query whose anchor overlaps the
    truth best is responsible for the box. The presence of each query is taught the GIoU of its anchor, scaled so that
    the best has 1 and the worst 0; of an organ that is annotated as absent all have 0. Organs that an image does not
    annotate count for nothing.

    Parameters
    ----------
    weights : mapping, optional
        Weights of the terms ``class``, ``l1``, ``giou``; others keep the paper's.
    average : callable, optional
        For a batch that several processes share, as :class:`organdetr_monai.losses.DetectionLoss` has it.
    """

    def __init__(self, *, weights: Mapping[str, float] | None = None, average: Average | None = None) -> None:
        super().__init__()
        unknown = set(weights or {}) - set(DEFAULT_WEIGHTS)
        if unknown:
            raise ValueError(f"unknown loss terms {sorted(unknown)}; the terms are {sorted(DEFAULT_WEIGHTS)}")
        self.weights = {**DEFAULT_WEIGHTS, **(weights or {})}
        self.average = average

    def forward(self, output: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        """Cost of a batch.

        Parameters
        ----------
        output : mapping
            As `FocusedDecoder` gives it in training.
        targets : sequence of dict
            As :class:`organdetr_monai.losses.DetectionLoss` takes them.

        Returns
        -------
        dict
            ``loss``, the weighted sum, and the unweighted terms it is made of: ``class``, ``l1``, ``giou`` of the last
            layer, and the same with suffix ``_aux`` for the mean of the earlier layers. All scalars.
        """
        annotated = torch.stack([t["annotated"] for t in targets])  # (B, K)
        truth = torch.cat([t["boxes"] for t in targets]).float()
        image = torch.cat([torch.full_like(t["labels"], i) for i, t in enumerate(targets)])
        organ = torch.cat([t["labels"] for t in targets]) - 1
        query, labels = self._responsible(output["anchors"], truth, image, organ, annotated)
        counts = [float(annotated.sum()) * QUERIES, float(len(truth))]
        taught, positives = counts_of_batch(counts, self.average, truth.device)
        per_layer = []
        for layer in (output, *output["aux"]):
            entropy = F.binary_cross_entropy_with_logits(layer["presence"], labels, reduction="none")
            matched = layer["boxes"][image, organ, query]
            giou = iou_giou(centre_to_corners(matched), centre_to_corners(truth))[1]
            per_layer.append(
                {
                    "class": (entropy * annotated[..., None]).sum() / taught,
                    "l1": (matched - truth).abs().sum() / positives,
                    "giou": (1 - giou).sum() / positives,
                }
            )
        loss = torch.stack([self.weights[name] * term for terms in per_layer for name, term in terms.items()]).sum()
        named = dict(per_layer[0])
        for name in per_layer[0] if len(per_layer) > 1 else ():
            named[f"{name}_aux"] = torch.stack([terms[name] for terms in per_layer[1:]]).mean()
        return {"loss": loss, **{name: term.detach() for name, term in named.items()}}

    @staticmethod
    @torch.no_grad()
    def _responsible(
        anchors: Tensor, truth: Tensor, image: Tensor, organ: Tensor, annotated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Responsible query of each true box (M,), and what the presences are taught (B, K, 27)."""
        overlap = iou_giou(centre_to_corners(anchors[organ]), centre_to_corners(truth)[:, None])[1]  # (M, 27)
        low, high = overlap.aminmax(dim=1, keepdim=True)
        soft = (overlap - low) / (high - low).clamp(min=EPS)
        query = overlap.argmax(dim=1)
        soft[torch.arange(len(query), device=query.device), query] = 1.0  # where all anchors are one box, too
        labels = torch.zeros((*annotated.shape, QUERIES), device=truth.device)
        labels[image, organ] = soft
        return query, labels
