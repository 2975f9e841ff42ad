"""Who is responsible for which organ: the assignment of queries to annotated organs.

A matcher is an ``nn.Module`` without parameters: the pair costs of all images and decoder layers are computed on the
device and brought to the host in one transfer, the only one of a training step; the assignment itself is exact
(:mod:`organdetr_monai.assignment`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from organdetr_monai.assignment import balanced_assignment
from organdetr_monai.boxes import centre_to_corners, iou_giou

Targets = Sequence[dict[str, Tensor]]

#: Cost of a query that is left out: more than any other cost, so that it is matched only where no other one is left.
FAR = 1e3


class Matches(NamedTuple):
    """Matched pairs of a batch, three int64 tensors of shape (P,): image, query in the image, organ in the image."""

    image: Tensor
    query: Tensor
    organ: Tensor
    #: Queries that have no part in the loss, (B, N) bool; None: every query that serves no organ is "no organ".
    ignored: Tensor | None = None


class HungarianMatcher(nn.Module):
    """One query for each annotated organ, of least total cost (Carion et al. 2020, equation 1).

    The cost of a pair is ``-class_weight * p(class) + l1_weight * |box - truth|_1 - giou_weight * GIoU``.

    Parameters
    ----------
    class_weight, l1_weight, giou_weight : float
        Weights of the three parts.
    """

    def __init__(self, *, class_weight: float = 2.0, l1_weight: float = 5.0, giou_weight: float = 2.0) -> None:
        super().__init__()
        if min(class_weight, l1_weight, giou_weight) < 0 or class_weight + l1_weight + giou_weight == 0:
            raise ValueError(
                f"cost weights must not be negative nor all zero, got {class_weight}, {l1_weight}, {giou_weight}"
            )
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight

    def positives(self, queries: int, organs: int) -> int:
        """Queries for each organ: one."""
        if organs > queries:
            raise ValueError(f"{organs} organs cannot each have a query of {queries}: raise num_queries")
        return 1

    @torch.no_grad()
    def cost(self, outputs: dict[str, Tensor], targets: Targets) -> Tensor:
        """Pair costs, (B, N, M), M the largest number of organs in the batch; what lies beyond an image's own is void.

        ``outputs`` and ``targets`` as in :meth:`forward`.
        """
        probability = outputs["logits"].float().softmax(-1)  # (B, N, K + 1)
        labels = nn.utils.rnn.pad_sequence([t["labels"] for t in targets], batch_first=True)  # (B, M)
        truth = nn.utils.rnn.pad_sequence([t["boxes"].float() for t in targets], batch_first=True)  # (B, M, 6)
        boxes = outputs["boxes"].float()
        likely = probability.gather(2, labels[:, None].expand(-1, boxes.shape[1], -1))  # (B, N, M)
        l1 = torch.cdist(boxes, truth, p=1)
        giou = iou_giou(centre_to_corners(boxes)[:, :, None], centre_to_corners(truth)[:, None])[1]
        return self.l1_weight * l1 - self.class_weight * likely - self.giou_weight * giou

    def left_out(self, output: dict[str, Tensor]) -> Tensor | None:
        """Queries that are not to be matched, (B, N) bool: none. ``output`` as in :meth:`forward`."""
        return None

    def forward(self, outputs: Sequence[dict[str, Tensor]], targets: Targets) -> list[Matches]:
        """Match the queries of every decoder layer.

        Parameters
        ----------
        outputs : sequence of dict
            For each layer ``logits`` (B, N, K + 1), those of organs that an image does not annotate at -inf, and
            ``boxes`` (B, N, 6), normalised centre boxes.
        targets : sequence of dict
            For each image ``boxes`` (M, 6), normalised centre boxes, and ``labels`` (M,), 1..K.

        Returns
        -------
        list of Matches
            One for each layer, on the device of ``outputs``. An image without organs has none.

        Raises
        ------
        ValueError
            More organs than queries, or a cost that is not finite (the network has diverged).
        """
        return match_together([(self, output) for output in outputs], targets)

    def assign(self, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Optimal assignment: cost (N, M) to matched query and organ, int64 arrays of the same length."""
        return balanced_assignment(np.ascontiguousarray(cost.T, dtype=np.float64), self.positives(*cost.shape))


class DenseQueryMatcher(HungarianMatcher):
    """Dense Query Matching: ``1 + ceil(matching_ratio * N / M)`` queries for each annotated organ (Organ-DETR, DQM).

    The assignment is the optimum over all such one-to-many assignments. Where the queries do not suffice, the number is
    clamped to ``N // M``.

    Parameters
    ----------
    matching_ratio : float
        Lambda, in (0, 0.9).
    class_weight, l1_weight, giou_weight : float
        Weights of the pair cost.
    """

    def __init__(
        self,
        matching_ratio: float = 0.2,
        *,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
    ) -> None:
        super().__init__(class_weight=class_weight, l1_weight=l1_weight, giou_weight=giou_weight)
        if not 0 < matching_ratio < 0.9:
            raise ValueError(f"matching_ratio must lie in (0, 0.9), got {matching_ratio}; 0 is HungarianMatcher")
        self.matching_ratio = matching_ratio

    def positives(self, queries: int, organs: int) -> int:
        """Queries for each organ: 1 + ⌈lambda * N / M⌉, clamped so that the total does not exceed N."""
        most = super().positives(queries, organs) * (queries // organs)
        # The product of decimal fractions may lie a rounding above an integer (0.3 * 10 / 1 is 3.0000…4 in some forms).
        extra = math.ceil(round(self.matching_ratio * queries / organs, 9))
        return min(1 + extra, most)


class RepeatedMatcher(HungarianMatcher):
    """A fixed number of queries for each annotated organ (the one-to-many branch of H-DETR, Jia et al. 2022).

    The assignment is optimal, as that of the organs repeated so many times would be. Where the queries do not suffice,
    the number is clamped to ``N // M``.

    Parameters
    ----------
    repeats : int
        K of the paper.
    class_weight, l1_weight, giou_weight : float
        Weights of the pair cost.
    """

    def __init__(
        self, repeats: int = 6, *, class_weight: float = 2.0, l1_weight: float = 5.0, giou_weight: float = 2.0
    ) -> None:
        super().__init__(class_weight=class_weight, l1_weight=l1_weight, giou_weight=giou_weight)
        if repeats < 1:
            raise ValueError(f"repeats must be positive, got {repeats}")
        self.repeats = repeats

    def positives(self, queries: int, organs: int) -> int:
        """Queries for each organ: ``repeats``, clamped so that the total does not exceed N."""
        return min(self.repeats, super().positives(queries, organs) * (queries // organs))


@torch.no_grad()
def match_together(parts: Sequence[tuple[HungarianMatcher, dict[str, Tensor]]], targets: Targets) -> list[Matches]:
    """Match several sets of queries, each by a matcher of its own, with one transfer to the host for all.

    Parameters
    ----------
    parts : sequence of (matcher, output)
        ``output`` as in :meth:`HungarianMatcher.forward`; the number of queries may differ.
    targets : sequence of dict
        As in :meth:`HungarianMatcher.forward`.

    Returns
    -------
    list of Matches
        One for each part.
    """
    counts = [len(t["labels"]) for t in targets]
    device = parts[0][1]["boxes"].device
    left_out = [matcher.left_out(output) for matcher, output in parts]  # (B, N) each, or None
    if not any(counts):
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return [Matches(none, none, none, out) for out in left_out]
    costs = [matcher.cost(output, targets) for matcher, output in parts]  # (B, N, M) each
    costs = [c if out is None else c + FAR * out[..., None] for c, out in zip(costs, left_out, strict=True)]
    flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
    if not np.isfinite(flat).all():
        raise ValueError("matching cost is not finite: the network's output has diverged; lower the learning rate")
    found: list[np.ndarray] = []
    ends = np.cumsum([cost.numel() for cost in costs])
    for (matcher, _), like, part in zip(parts, costs, np.split(flat, ends[:-1]), strict=True):
        rows = [np.zeros((3, 0), dtype=np.int64)]
        for image, (cost, organs) in enumerate(zip(part.reshape(like.shape), counts, strict=True)):
            if organs:
                query, organ = matcher.assign(cost[:, :organs])
                rows.append(np.stack([np.full_like(query, image), query, organ]))
        found.append(np.concatenate(rows, axis=1))
    # One transfer back for all.
    pairs = torch.from_numpy(np.concatenate(found, axis=1)).to(device, non_blocking=True)
    matches = [Matches(*rows) for rows in pairs.split([f.shape[1] for f in found], dim=1)]
    for k, out in enumerate(left_out):
        if out is not None:  # but for those that were needed after all
            ignored = out.clone()
            ignored[matches[k].image, matches[k].query] = False
            matches[k] = matches[k]._replace(ignored=ignored)
    return matches
