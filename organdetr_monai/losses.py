"""What a detection costs: class, box and segmentation terms, each blind to organs that a case does not annotate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from organdetr_monai.boxes import centre_to_corners, iou_giou
from organdetr_monai.matching import HungarianMatcher, Matches, Targets, match_together
from organdetr_monai.roi_loss import refiner_terms
from organdetr_monai.segmentation_loss import multiscale_segmentation_loss, or_any, shown_organs

#: "extra" multiplies those of the layers for queries that exist in training only.
DEFAULT_WEIGHTS = {
    "class": 2.0,
    "l1": 5.0,
    "giou": 2.0,
    "quality": 1.0,
    "segmentation": 2.0,
    "extra": 1.0,
    "walls": 1.0,
    "roi_mask": 1.0,
}
#: Class of a query that has no part in the loss.
IGNORED = -1


class Counts(NamedTuple):
    """What the sums over a batch are divided by: numbers, or scalar tensors where several processes share a batch."""

    images: float | Tensor
    #: Queries that have a part in the loss, for each decoder layer.
    queries: Sequence[float | Tensor]
    #: Those of them that serve an organ.
    positives: Sequence[float | Tensor]
    #: Pairs of an image and an organ that it annotates and shows; None: count them in the masks at hand.
    organs: Tensor | None = None


class DetectionLoss(nn.Module):
    """``2 class + 5 L1 + 2 GIoU + 2 segmentation`` over all decoder layers (Organ-DETR, loss section).

    Parameters
    ----------
    matcher : HungarianMatcher
        Assigns queries to organs, e.g. :class:`organdetr_monai.matching.DenseQueryMatcher`.
    extra_matcher : HungarianMatcher, optional
        The same for the network's extra queries, where these do not say themselves whom they stand for.
    weights : mapping, optional
        Weights of the terms ``class``, ``l1``, ``giou``, ``segmentation``; others keep the paper's. ``quality``,
        default 1, is for layers that estimate it; ``extra``, default 1, multiplies all terms of extra queries.
    organ_weight : float
        Weight of organs in the cross-entropy; "no organ" weighs 1.
    average : callable, optional
        For a batch that several processes share: the mean over the processes of a tensor of counts, such as
        :func:`organdetr_monai.distributed.mean`, called once for each batch. The terms are then divided by the numbers
        of the whole batch, so that the mean over the processes, of the terms and of the gradients, is what one process
        with the whole batch has. Divided by its own numbers, an image beside few organs would weigh more.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        *,
        extra_matcher: HungarianMatcher | None = None,
        weights: Mapping[str, float] | None = None,
        organ_weight: float = 10.0,
        average: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        unknown = set(weights or {}) - set(DEFAULT_WEIGHTS)
        if unknown:
            raise ValueError(f"unknown loss terms {sorted(unknown)}; the terms are {sorted(DEFAULT_WEIGHTS)}")
        self.matcher, self.extra_matcher = matcher, extra_matcher
        self.weights = {**DEFAULT_WEIGHTS, **(weights or {})}
        self.organ_weight = organ_weight
        self.average = average

    def forward(self, output: Mapping, targets: Targets) -> dict[str, Tensor]:
        """Cost of a batch.

        Parameters
        ----------
        output : mapping
            As :class:`organdetr_monai.networks.OrganDETR` gives it; ``aux``, ``segmentation`` and ``extra`` where
            there.
        targets : sequence of dict
            For each image ``boxes`` (M, 6) normalised centre boxes, ``labels`` (M,) in 1..K, ``annotated`` (K,) bool,
            and ``mask`` (X, Y, Z) ids where the output has a segmentation. ``segmented`` (K,) bool says which organs
            the mask speaks of, if others than ``annotated``: none where the organs are known by boxes only.

        Returns
        -------
        dict
            ``loss``, the weighted sum, and the unweighted terms it is made of: ``class``, ``l1``, ``giou`` of the last
            layer, the same with suffix ``_aux`` for the mean of the earlier layers and ``_extra`` for the mean of all
            layers of the extra queries, ``quality`` with the same suffixes where layers have it, and ``segmentation``.
            All scalars.
        """
        annotated = torch.stack([t["annotated"] for t in targets])  # (B, K)
        others: Mapping = output.get("extra", {})
        layers, extra = _layers(output, annotated), _layers(others, annotated) if others else []
        matches = self.match(layers, extra, targets, known=others.get("matches"))
        masks, segmented = None, annotated
        if "segmentation" in output:
            masks = torch.stack([t["mask"] for t in targets])
            segmented = torch.stack([t.get("segmented", t["annotated"]) for t in targets])
        counts = self.counts(layers + extra, matches, masks, segmented)
        terms: dict[str, Tensor] = {}
        per_layer = [
            self.layer_terms(o, m, targets, queries=n, positives=p)
            for o, m, n, p in zip(layers + extra, matches, counts.queries, counts.positives, strict=True)
        ]
        own, more = per_layer[: len(layers)], per_layer[len(layers) :]
        terms.update(own[0])
        for suffix, group in (("aux", own[1:]), ("extra", more)):
            for name in dict.fromkeys(name for t in group for name in t):  # proposals have fewer terms than layers
                terms[f"{name}_{suffix}"] = torch.stack([t[name] for t in group if name in t]).mean()
        loss = self.weighted(own)
        if more:
            loss = loss + self.weights["extra"] * self.weighted(more)
        if masks is not None:
            terms["segmentation"] = multiscale_segmentation_loss(
                output["segmentation"], masks, segmented, images=counts.images, organs=counts.organs
            )
            loss = loss + self.weights["segmentation"] * terms["segmentation"]
        if "refined" in output:
            refined = refiner_terms(output["refined"], share=len(targets) / counts.images)
            terms.update(refined)
            loss = self.weighted([refined]) + loss
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def match(
        self,
        layers: Sequence[dict[str, Tensor]],
        extra: Sequence[dict[str, Tensor]],
        targets: Targets,
        *,
        known: Matches | None = None,
    ) -> list[Matches]:
        """Matches of the layers, then of those of the extra queries, which may be ``known``, alike in all layers."""
        if not extra:
            return self.matcher(layers, targets)
        if known is not None:
            return [*self.matcher(layers, targets), *[known] * len(extra)]
        if self.extra_matcher is None:
            raise ValueError("the network has extra queries that nobody matches: give the loss an extra_matcher")
        both = [(self.matcher, o) for o in layers] + [(self.extra_matcher, o) for o in extra]
        return match_together(both, targets)

    def weighted(self, per_layer: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Weighted sum of the terms of all layers."""
        first, *others = (self.weights[name] * t[name] for t in per_layer for name in t)
        return sum(others, start=first)

    def counts(
        self, layers: Sequence[dict[str, Tensor]], matches: Sequence[Matches], masks: Tensor | None, segmented: Tensor
    ) -> Counts:
        """Numbers of a batch with ``masks`` (B, X, Y, Z) of the organs ``segmented`` (B, K); with `average`, their mean
        over the processes.
        """
        images, positives = len(segmented), [len(m.image) for m in matches]
        queries = [o["boxes"].shape[:2].numel() for o in layers]
        none = torch.zeros((), device=segmented.device)
        ignored = [none if m.ignored is None else m.ignored.sum().float() for m in matches]
        if self.average is None:
            taking_part = [n if m.ignored is None else n - i for n, m, i in zip(queries, matches, ignored, strict=True)]
            return Counts(images, taking_part, positives)
        organs = none if masks is None else shown_organs(masks, segmented).sum().float()
        own = torch.tensor([images, *positives, *queries], dtype=torch.float32).to(none.device, non_blocking=True)
        means = self.average(torch.cat([own, torch.stack([*ignored, organs])]))
        n = len(layers)
        mean_images, mean_positives, mean_queries, mean_ignored, mean_organs = means.split([1, n, n, n, 1])
        taking_part = (mean_queries - mean_ignored).unbind()
        return Counts(mean_images[0], taking_part, mean_positives.unbind(), mean_organs[0])

    def layer_terms(
        self,
        layer: Mapping[str, Tensor],
        matches: Matches,
        targets: Targets,
        *,
        queries: float | Tensor,
        positives: float | Tensor,
    ) -> dict[str, Tensor]:
        """Terms of one decoder layer; ``queries`` and ``positives`` as in :class:`Counts`.

        The box terms are divided by the number of positives of the batch: a larger matching ratio gives more
        positives, not a larger box loss. The class term is the mean over the queries, each weighing as its class does.
        """
        logits, boxes = layer["logits"], layer["boxes"].float()
        labels = torch.cat([t["labels"] for t in targets])
        truth = torch.cat([t["boxes"] for t in targets]).float()
        first = torch.tensor([0, *(len(t["labels"]) for t in targets)]).cumsum(0).to(boxes.device, non_blocking=True)
        flat = first[matches.image] + matches.organ  # row of each match among all organs of the batch
        wanted = torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)
        wanted[matches.image, matches.query] = labels[flat]
        if matches.ignored is not None:
            wanted = wanted.masked_fill(matches.ignored, IGNORED)
        class_weight = torch.full((logits.shape[-1],), float(self.organ_weight), device=logits.device)
        class_weight[0] = 1.0
        entropy = F.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), class_weight, ignore_index=IGNORED, reduction="sum"
        )
        terms = {"class": entropy / or_any(queries + (self.organ_weight - 1) * positives)}
        matched, truth = boxes[matches.image, matches.query], truth[flat]
        count = or_any(positives)
        terms["l1"] = (matched - truth).abs().sum() / count
        iou, giou = iou_giou(centre_to_corners(matched), centre_to_corners(truth))
        terms["giou"] = (1 - giou).sum() / count
        if "quality" in layer:
            estimate = layer["quality"][matches.image, matches.query]
            terms["quality"] = F.binary_cross_entropy_with_logits(estimate, iou.detach(), reduction="sum") / count
        return terms


def _layers(output: Mapping, annotated: Tensor) -> list[dict[str, Tensor]]:
    """What each decoder layer gives, the last one first; logits of organs not ``annotated`` (B, K) are -inf."""
    return [
        {key: o[key] for key in ("boxes", "quality") if key in o} | {"logits": mask_unannotated(o["logits"], annotated)}
        for o in (output, *output.get("aux", ()))
    ]


def mask_unannotated(logits: Tensor, annotated: Tensor) -> Tensor:
    """Take the classes that an image does not annotate out of its softmax.

    With a logit of minus infinity such a class has no probability and no gradient: a query may call itself that organ
    and is neither right nor wrong.

    Parameters
    ----------
    logits : Tensor of shape (B, N, K + 1)
    annotated : Tensor of shape (B, K), bool

    Returns
    -------
    Tensor of shape (B, N, K + 1), float32
    """
    return logits.float().masked_fill(~F.pad(annotated, (1, 0), value=True)[:, None], float("-inf"))
