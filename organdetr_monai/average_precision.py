"""Reported boxes of an organ against its true ones: matching, COCO's average precision, distances. Numpy only.

All images go through together, IoU thresholds in blocks, so that memory does not grow with their number; within a block
the only loop is over the rank of a box within its image, because COCO's greedy matching is sequential there.

Boxes are corners ``(x0, y0, z0, x1, y1, z1)``, ``[start, stop)``, fractions allowed (``docs/architecture.md``).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

MARGIN_MM = 20.0  # what a user pads a box with before cropping
BLOCK = 20  # thresholds that go through together: all of a usual report


class OrganScore(NamedTuple):
    """What is known of one organ over all cases; T thresholds, M true boxes, F of them found."""

    num_cases: int  # cases that annotate the organ
    ap: np.ndarray  # (T,), NaN without truth
    recall: np.ndarray  # (T,), NaN without truth
    hits50: int  # true boxes matched at IoU 0.5 by a box above the score threshold
    volume: np.ndarray  # (M,) ml, of the true boxes
    iou: np.ndarray  # (F,)
    walls: np.ndarray  # (F, 6) mm, how far each wall of the box lies outside the true one; negative is inside
    centre: np.ndarray  # (F,) mm, between the centres


def box_volume(boxes: np.ndarray) -> np.ndarray:
    """Volume of corners ``(..., 6)``, in the cube of their unit: ``(...)``; an inverted box has volume 0."""
    return np.clip(boxes[..., 3:] - boxes[..., :3], 0, None).prod(-1)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of corners that broadcast against each other.

    Scaling an axis scales intersection and union alike: the IoU in voxels is the IoU in millimetres.

    Parameters
    ----------
    a, b : ndarray of shape (..., 6)
        Corners in the same unit. ``a[:, None]`` and ``b[None]`` give all pairs.

    Returns
    -------
    ndarray of shape (...)
        In [0, 1]; 0 where both boxes are empty.
    """
    inter = np.clip(np.minimum(a[..., 3:], b[..., 3:]) - np.maximum(a[..., :3], b[..., :3]), 0, None).prod(-1)
    union = box_volume(a) + box_volume(b) - inter
    return np.divide(inter, union, out=np.zeros(inter.shape), where=union > 0)


def match_greedily(iou: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Match boxes to truths of one class as COCO does, in every image and at every threshold.

    Boxes choose in falling order of score. Each takes the truth it overlaps most among those still free, if that
    overlap reaches the threshold. At threshold 0 every box takes a truth as long as one is free.

    Parameters
    ----------
    iou : ndarray of shape (C, D, G)
        IoU of D boxes and G truths in each of C images, boxes in falling order of score. Pairs that do not exist
        (images have fewer boxes or truths than D and G) hold a negative number.
    thresholds : ndarray of shape (T,)
        IoU that a match must reach, in [0, 1].

    Returns
    -------
    ndarray of shape (T, C, D), int
        Index of the truth that the box took, -1 for none.
    """
    images, boxes, truths = iou.shape
    taken_by = np.full((len(thresholds), images, boxes), -1)
    if truths == 0:
        return taken_by
    free = np.ones((len(thresholds), images, truths), dtype=bool)
    for rank in range(boxes):
        candidates = np.where(free, iou[:, rank], -1.0)  # (T, C, G)
        best = candidates.argmax(-1)[..., None]  # (T, C, 1)
        hit = np.take_along_axis(candidates, best, -1) >= thresholds[:, None, None]
        taken_by[..., rank] = np.where(hit, best, -1)[..., 0]
        np.put_along_axis(free, best, np.take_along_axis(free, best, -1) & ~hit, -1)
    return taken_by


def average_precision(hits: np.ndarray, scores: np.ndarray, num_truth: int) -> np.ndarray:
    """COCO's average precision: mean, over the recalls 0, 0.01, ... 1, of the best precision at that recall or above.

    Two details differ from COCO's own program. Boxes of equal score enter together, because no score threshold
    separates them; there the order of the images ranks them, and the result depends on it. Recalls are compared as
    whole numbers (``100 * hits >= j * num_truth``), which rounding cannot upset.

    Parameters
    ----------
    hits : ndarray of shape (T, P), bool
        Whether each of the P boxes of the class, from all images, was matched, at each of T thresholds.
    scores : ndarray of shape (P,)
        Their scores, in any order.
    num_truth : int
        True boxes of the class in all images.

    Returns
    -------
    ndarray of shape (T,)
        In [0, 1]; NaN for a class without truth, which has no average precision.
    """
    if num_truth == 0:
        return np.full(len(hits), np.nan)
    if scores.size == 0:
        return np.zeros(len(hits))  # there was something to find and nothing was reported
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_ties = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    found = hits[:, order].cumsum(1)[:, last_of_ties]  # (T, S): hits among boxes of at least this score
    precision = found / (last_of_ties + 1)
    best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = 100 * found // num_truth  # the largest j whose recall j / 100 is reached
    points = np.diff(reached, axis=1, prepend=-1)  # recalls reached here first; recall 0 at the first box
    return (best_from_here * points).sum(1) / 101


def rank_within(group: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Rank of each of P elements within its group: 0 for the highest score, ties in the order given."""
    order = np.lexsort((-score, group))
    rank = np.empty(len(group), dtype=np.intp)
    rank[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
    return rank


def score_organ(
    boxes: np.ndarray,
    scores: np.ndarray,
    case: np.ndarray,
    truth_boxes: np.ndarray,
    truth_case: np.ndarray,
    spacing: np.ndarray,
    *,
    num_cases: int,
    thresholds: np.ndarray,
    score_threshold: float | None = None,
) -> OrganScore:
    """Evaluate the boxes of one organ in all cases.

    AP and recall come from COCO's matching at each threshold. The distances compare a truth with the box that takes
    it when no overlap is asked for: the best-scoring box of the organ, however far away; where a case has several
    truths of the organ, the next boxes take the next truths.

    Parameters
    ----------
    boxes, scores, case : ndarrays of shape (P, 6), (P,) and (P,)
        Reported boxes in voxels, their scores and the index of their case.
    truth_boxes, truth_case : ndarrays of shape (M, 6) and (M,)
        True boxes in voxels and the index of their case.
    spacing : ndarray of shape (C, 3)
        Millimetres per voxel and axis, for each case.
    num_cases : int
        Cases that annotate the organ.
    thresholds : ndarray of shape (T,)
        IoU thresholds in (0, 1].
    score_threshold : float, optional
        Least score of a box that counts for ``hits50`` and the distances.

    Returns
    -------
    OrganScore
    """
    rank, slot = rank_within(case, scores), rank_within(truth_case, np.zeros(len(truth_case)))
    shape = (len(spacing), int(rank.max(initial=-1)) + 1, int(slot.max(initial=-1)) + 1)
    predicted, real = np.full((*shape[:2], 6), np.nan), np.full((shape[0], shape[2], 6), np.nan)
    predicted[case, rank], real[truth_case, slot] = boxes, truth_boxes
    iou = box_iou(predicted[:, :, None], real[:, None])  # (C, D, G)
    iou[np.isnan(predicted[:, :, None, 0] + real[:, None, :, 0])] = -1.0  # no such pair

    num_truth = len(truth_boxes)
    ap, recall = np.full(len(thresholds), np.nan), np.full(len(thresholds), np.nan)
    for first in range(0, len(thresholds), BLOCK):
        block = slice(first, first + BLOCK)
        hits = match_greedily(iou, thresholds[block])[:, case, rank] >= 0  # (T, P)
        ap[block] = average_precision(hits, scores, num_truth)
        if num_truth:
            recall[block] = hits.sum(1) / num_truth
    nearest, hits50 = match_greedily(iou, np.array([0.0, 0.5]))[:, case, rank]  # (P,) each
    counts = np.ones(len(scores), dtype=bool) if score_threshold is None else scores >= score_threshold
    of = np.flatnonzero((nearest >= 0) & counts)  # boxes that found something, F of them
    box, truth, mm = boxes[of], real[case[of], nearest[of]], np.tile(spacing[case[of]], 2)
    outwards = np.repeat([-1.0, 1.0], 3)
    offset = (box - truth) * mm
    return OrganScore(
        num_cases=num_cases,
        ap=ap,
        recall=recall,
        hits50=int(((hits50 >= 0) & counts).sum()),
        volume=box_volume(truth_boxes) * spacing[truth_case].prod(-1) / 1000,
        iou=iou[case[of], rank[of], nearest[of]],
        walls=offset * outwards,
        centre=np.linalg.norm((offset[:, :3] + offset[:, 3:]) / 2, axis=-1),
    )


def summarise(scores: Sequence[OrganScore], thresholds: np.ndarray, reported: Mapping[str, float]) -> dict[str, float]:
    """Figures over some organs; :meth:`organdetr_monai.metrics.DetectionMetrics.compute` says what each means.

    AP and recall are means over the organs that have truth, so that a frequent organ does not outweigh a rare one.
    Distances and shares pool all true boxes, because a percentile has no useful mean.

    Parameters
    ----------
    scores : sequence of OrganScore
    thresholds : ndarray of shape (T,)
        IoU thresholds of ``scores``, ascending; 0.10:0.05:0.95 are among them.
    reported : mapping of str to float
        Names of single thresholds to give the AP of.
    """
    known = [s for s in scores if len(s.volume)]
    ap, recall = (np.reshape([getattr(s, name) for s in known], (-1, len(thresholds))) for name in ("ap", "recall"))
    coco, nndet = (np.isin(thresholds, np.arange(*ends) / 20) for ends in ((10, 20), (2, 11)))
    walls = np.concatenate([s.walls for s in known] or [np.zeros((0, 6))])
    iou = np.concatenate([s.iou for s in known] or [np.zeros(0)])
    centre = np.concatenate([s.centre for s in known] or [np.zeros(0)])
    num_truth = sum(len(s.volume) for s in known)
    return {
        "mAP_coco": _mean(ap[:, coco]),
        "mAP_nndet": _mean(ap[:, nndet]),
        **{name: _mean(ap[:, np.searchsorted(thresholds, t)]) for name, t in reported.items()},
        "mAR": _mean(recall[:, coco]),
        "wall_mean": _mean(np.abs(walls)),
        "wall_p95": float(np.percentile(np.abs(walls), 95)) if walls.size else float("nan"),
        "centre_mean": _mean(centre),
        "within_20mm": _share((walls.min(-1) >= -MARGIN_MM).sum(), num_truth),
        "recall50": _share(sum(s.hits50 for s in known), num_truth),
        "mean_iou": _share(iou.sum(), num_truth),
        "num_truth": num_truth,
        "num_found": len(walls),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _share(part: float, whole: int) -> float:
    return float(part / whole) if whole else float("nan")


def group_by_volume(scores: Sequence[OrganScore], bounds_ml: Sequence[float] | None) -> dict[str, list[int]]:
    """Group organs by the median volume of their true boxes; organs without truth are in no group.

    Parameters
    ----------
    scores : sequence of OrganScore
    bounds_ml : sequence of float, or None
        Bounds between the groups, ascending, in ml; a group begins at its lower bound. None: three groups of the same
        number of organs, ``small``, ``medium`` and ``large``.

    Returns
    -------
    dict of str to list of int
        Indices into ``scores``, from small to large.
    """
    median = {k: float(np.median(s.volume)) for k, s in enumerate(scores) if len(s.volume)}
    if bounds_ml is None:
        thirds = np.array_split(sorted(median, key=median.__getitem__), 3)
        return {name: [int(k) for k in part] for name, part in zip(("small", "medium", "large"), thirds, strict=True)}
    ends = [0.0, *bounds_ml, np.inf]
    return {
        f"{low:g}-{high:g} ml": [k for k, volume in median.items() if low <= volume < high]
        for low, high in itertools.pairwise(ends)
    }
