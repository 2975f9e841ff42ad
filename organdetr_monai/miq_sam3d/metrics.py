"""How well an answer's instances agree with the lesions that were asked for.

Definitions, for one answer and its truth, the lesions of the kind that was clicked:

- *union Dice* and *union NSD*: of all predicted voxels against all true ones. NSD (normalised surface Dice) is the
  share of both surfaces that lies within a tolerance, in mm, of the other (MONAI's ``compute_surface_dice``).
- *found*: predicted and true instances are paired one to one, each pair with an IoU above ``found_iou``, as many pairs
  as possible. A true instance with a partner is found; a predicted one without is a false positive.
- *panoptic quality* (Kirillov et al. 2019): pairs with an IoU above 0.5, which are unique. ``sq`` is their mean IoU,
  ``rq`` is TP / (TP + FP/2 + FN/2), ``pq`` their product.

What is not defined is NaN, never 0: Dice, NSD and PQ without truth, ``sq`` without a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_surface_dice
from scipy.optimize import linear_sum_assignment

from organdetr_monai.errors import InputError

TOLERANCE_MM = 2.0
"""mm of NSD, by default: a voxel of the working grid."""
FOUND_IOU = 0.1
"""IoU above which a lesion counts as found, by default, as in lesion detection."""
PANOPTIC_IOU = 0.5

COUNTS = ("num_truth", "num_predicted", "num_found", "false_positives", "num_matched", "matched_iou")


def evaluate_instances(
    predicted: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float],
    *,
    tolerance: float = TOLERANCE_MM,
    found_iou: float = FOUND_IOU,
) -> dict[str, float]:
    """Figures of one answer.

    Parameters
    ----------
    predicted, truth : ndarray of shape (X, Y, Z)
        Ids of instances, up to 65535, not all of which must occur; 0 is background. The truth holds the lesions asked
        for and no others.
    spacing : sequence of 3 floats
        mm per voxel along the array axes.
    tolerance : float
        mm, of NSD.
    found_iou : float
        In [0, 1): IoU above which a pair counts as found.

    Returns
    -------
    dict
        ``union_dice``, ``union_nsd``, ``lesion_recall``, ``pq``, ``sq``, ``rq``, and the counts `COUNTS`:
        ``matched_iou`` is the sum of the IoU of the ``num_matched`` pairs of PQ.

    Raises
    ------
    InputError
        For arrays of different shape, ids, a spacing or an option that cannot be.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    sizes = np.asarray(spacing, dtype=float)
    if predicted.shape != truth.shape or predicted.ndim != 3:
        raise InputError(f"The answer has shape {predicted.shape}, its truth {truth.shape}.", "Give both on one grid.")
    if sizes.shape != (3,) or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise InputError(f"The spacing is {spacing}.", "Give 3 positive numbers, in mm.")
    if not (0 <= found_iou < 1 and 0 <= tolerance < np.inf):
        raise InputError(
            f"found_iou is {found_iou}, tolerance {tolerance} mm.", "Give 0 <= found_iou < 1, tolerance >= 0."
        )
    x, y, z = _extent((predicted > 0) | (truth > 0))  # all else is background in both
    predicted, truth = predicted[x, y, z], truth[x, y, z]
    iou = iou_table(predicted, truth)  # (P, T)
    pairs = _assign(iou, found_iou)
    matched = iou[iou > PANOPTIC_IOU]
    counts = {
        "num_truth": iou.shape[1],
        "num_predicted": iou.shape[0],
        "num_found": pairs,
        "false_positives": iou.shape[0] - pairs,
        "num_matched": len(matched),
        "matched_iou": float(matched.sum()),
    }
    return {
        "union_dice": dice(predicted > 0, truth > 0) if counts["num_truth"] else np.nan,
        "union_nsd": _surface_dice(predicted > 0, truth > 0, sizes, tolerance),
        **_shares(counts),
        **counts,
    }


def iou_table(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU of every predicted with every true instance, (P, T), by ascending ids."""
    rows, row = _places(predicted)
    columns, column = _places(truth)
    shared = np.bincount((row * len(columns) + column).reshape(-1), minlength=len(rows) * len(columns))
    shared = shared.reshape(len(rows), len(columns))
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    return shared[1:, 1:] / union[1:, 1:]


def _places(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids that occur, ascending, 0 first whether or not it does; and for each voxel its id's place among them."""
    highest = int(ids.max(initial=0))
    if ids.min(initial=0) < 0 or highest > 65_535:
        raise InputError(f"Ids run from {ids.min()} to {highest}.", "Number the instances from 1, at most 65535.")
    ids = ids.astype(np.int64)
    there = np.bincount(ids.reshape(-1), minlength=1) > 0
    there[0] = True
    return np.flatnonzero(there), (np.cumsum(there) - 1)[ids]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two masks (bool); NaN where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else np.nan


def aggregate(results: Sequence[Mapping[str, float]], weights: Sequence[float] | None = None) -> dict[str, float]:
    """Figures of many answers.

    Parameters
    ----------
    results : sequence of dict
        Of `evaluate_instances`.
    weights : sequence of float, optional
        Of each answer; 1 by default.

    Returns
    -------
    dict
        ``union_dice`` and ``union_nsd``: mean over the answers that have truth. ``lesion_recall``, ``pq``, ``sq``,
        ``rq`` from the summed counts, in which every lesion weighs as much. ``false_positives``: mean over all
        answers. ``num_answers``: how many there are.

    Raises
    ------
    InputError
        There is no answer.
    """
    if not results:
        raise InputError("There is no answer to evaluate.", "Check that the datalist's split has lesions.")
    weight = np.ones(len(results)) if weights is None else np.asarray(weights, dtype=float)
    totals = {key: float(sum(w * r[key] for w, r in zip(weight, results, strict=True))) for key in COUNTS}
    return {
        **{key: mean([r[key] for r in results], weight) for key in ("union_dice", "union_nsd")},
        **_shares(totals),
        "false_positives": totals["false_positives"] / float(weight.sum()),
        "num_answers": len(results),
    }


def mean(values: Sequence[float], weights: np.ndarray | None = None) -> float:
    """Mean of the values that are there; NaN if none is."""
    found = np.asarray(values, dtype=float)
    weight = np.ones(len(found)) if weights is None else weights
    there = ~np.isnan(found)
    return float(np.average(found[there], weights=weight[there])) if there.any() else np.nan


def _shares(counts: Mapping[str, Any]) -> dict[str, float]:
    """Recall and panoptic quality from counts."""
    truth, matched = counts["num_truth"], counts["num_matched"]
    half = (counts["num_predicted"] + truth) / 2  # TP + FP / 2 + FN / 2
    return {
        "lesion_recall": counts["num_found"] / truth if truth else np.nan,
        "pq": counts["matched_iou"] / half if truth else np.nan,
        "sq": counts["matched_iou"] / matched if matched else np.nan,
        "rq": matched / half if truth else np.nan,
    }


def _assign(iou: np.ndarray, threshold: float) -> int:
    """Most pairs, one to one, whose IoU is above a threshold."""
    allowed = iou > threshold
    row, column = linear_sum_assignment(allowed, maximize=True)
    return int(allowed[row, column].sum())


def _extent(mask: np.ndarray) -> list[slice]:
    """The box of a mask (bool), with a voxel around it where the array goes on."""
    if not mask.any():
        return [slice(0, 1)] * 3
    found = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        found.append(slice(max(int(inside[0]) - 1, 0), int(inside[-1]) + 2))
    return found


def _surface_dice(predicted: np.ndarray, truth: np.ndarray, spacing: np.ndarray, tolerance: float) -> float:
    """NSD of two masks; NaN without truth, 0 where nothing was predicted."""
    if not truth.any():
        return np.nan
    if not predicted.any():
        return 0.0
    one, other = (torch.from_numpy(mask)[None, None] for mask in (predicted, truth))  # (1, 1, x, y, z)
    score = compute_surface_dice(one, other, [tolerance], include_background=True, spacing=spacing.tolist())
    return float(score[0, 0])
