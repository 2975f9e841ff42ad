"""How good the boxes are: average precision, recall and, what a clinician reads, distances in millimetres.

Numpy alone; ``metric_handler`` does it inside a MONAI or Ignite engine, ``metric_report`` shows and keeps the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from organdetr_monai.average_precision import OrganScore, group_by_volume, rank_within, score_organ, summarise
from organdetr_monai.errors import InputError

DISTANCES = ("wall_mean", "wall_p95", "centre_mean")  # mm


class Case(NamedTuple):
    """What one image contributes: boxes in voxels of the working image, those of annotated organs only."""

    name: str | None
    boxes: np.ndarray  # (P, 6) reported, at most max_detections for each organ
    scores: np.ndarray  # (P,)
    labels: np.ndarray  # (P,) ids 1..K
    truth_boxes: np.ndarray  # (M, 6)
    truth_labels: np.ndarray  # (M,) ids 1..K
    annotated: np.ndarray  # (K,) bool
    spacing: np.ndarray  # (3,) mm per voxel


class DetectionMetrics:
    """Average precision, recall and distances in mm of the boxes of a set of cases.

    What a case does not annotate is ignored there, as truth and as false positive. An organ annotated as absent and
    reported nevertheless is a false positive. An organ without any truth in the set has no AP and enters no mean.

    Parameters
    ----------
    organs : sequence of str
        Names; ``organs[k]`` has id ``k + 1``.
    max_detections : int
        Boxes that count for each organ and image, the best-scoring ones. 1 is the way Organ-DETR and its rivals are
        published, 100 is plain COCO.
    iou_thresholds : sequence of float
        Thresholds in (0, 1] to report one by one: 0.5 as ``AP50``.
    score_threshold : float, optional
        Least score of a box that enters the distances, ``within_20mm``, ``recall50`` and ``mean_iou``. AP and mAR go
        through all scores.
    size_groups : "terciles", sequence of float, or mapping of str to sequence of str, optional
        Groups of organs to report on besides the whole: thirds of the organs by the median volume of their true boxes
        in this set; ascending bounds of that volume in ml; or named lists of organs.

    Raises
    ------
    InputError
        For options that make no sense here, unusable boxes in :meth:`update`, nothing to evaluate in :meth:`compute`.

    Examples
    --------
    >>> metrics = DetectionMetrics(["liver", "spleen"])
    >>> box = np.array([[10, 20, 30, 60, 70, 50]])
    >>> metrics.update(
    ...     {"boxes": box, "scores": [0.9], "labels": [1]},
    ...     {"boxes": box + 1, "labels": [1], "annotated": [True, False]},
    ...     spacing=(1.5, 1.5, 3.0),
    ... )
    >>> result = metrics.compute()
    >>> result["AP75"], result["wall_mean"], result["per_organ"]["spleen"]["AP75"]
    (1.0, 2.0, nan)
    """

    def __init__(
        self,
        organs: Sequence[str],
        *,
        max_detections: int = 1,
        iou_thresholds: Sequence[float] = (0.5, 0.75),
        score_threshold: float | None = None,
        size_groups: str | Sequence[float] | Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.organs = list(organs)
        if not self.organs or len(set(self.organs)) < len(self.organs):
            raise InputError(f"organs are {self.organs}.", "Give at least one, and each name once.")
        if max_detections < 1:
            raise InputError(f"max_detections is {max_detections}.", "Count at least 1 box for each organ and image.")
        if not all(0 < t <= 1 for t in iou_thresholds):
            raise InputError(f"iou_thresholds are {list(iou_thresholds)}.", "Give each in (0, 1].")
        if isinstance(size_groups, str) and size_groups != "terciles":
            raise InputError(f"size_groups is {size_groups!r}.", "Give 'terciles', bounds in ml or lists of organs.")
        if not isinstance(size_groups, str | Mapping | None) and (np.diff([0.0, *size_groups]) <= 0).any():
            raise InputError(f"size_groups are {list(size_groups)}.", "Give ascending bounds above 0, in ml.")
        if isinstance(size_groups, Mapping):
            unknown = {organ for group in size_groups.values() for organ in group} - set(self.organs)
            if unknown:
                raise InputError(f"size_groups names {sorted(unknown)}.", f"Choose among {self.organs}.")
        self.max_detections, self.score_threshold, self.size_groups = max_detections, score_threshold, size_groups
        self.reported = {f"AP{100 * t:g}": t for t in iou_thresholds}
        # k / 20 is the float nearest to the decimal, as a literal 0.55 is.
        self.thresholds = np.union1d(np.arange(2, 20) / 20, list(iou_thresholds))
        self.reset()

    def reset(self) -> None:
        """Forget all cases."""
        self.cases: list[Case] = []
        self._named: dict[str, Case] = {}

    def update(
        self,
        prediction: Mapping[str, Any],
        truth: Mapping[str, Any],
        *,
        spacing: Sequence[float] | None = None,
        case: str | None = None,
    ) -> None:
        """Add one image; arrays, lists and tensors on any device are welcome.

        Parameters
        ----------
        prediction : mapping
            ``boxes`` (P, 6) corners in voxels of the working image, ``scores`` (P,), ``labels`` (P,) ids 1..K; P may be
            0. A box that ends before it starts overlaps nothing.
        truth : mapping
            ``boxes`` (M, 6), ``labels`` (M,), and where there ``annotated`` (K,) bool (without it all organs count as
            annotated), ``spacing`` (3,) and ``case``, which come before the arguments of the same name.
        spacing : sequence of 3 float, optional
            Millimetres per voxel of the working image, in array axis order.
        case : str, optional
            Name of the image; one that was seen before with the same truth is not counted again.
        """
        name = truth.get("case", case)
        where = f"case number {len(self.cases) + 1}" if name is None else f"case {name!r}"
        spacing = truth.get("spacing", spacing)
        if spacing is None:
            raise InputError(f"The spacing of {where} is unknown.", "Give it in mm per voxel: distances need it.")
        sizes = _array(spacing)
        if sizes.shape != (3,) or not (np.isfinite(sizes) & (sizes > 0)).all():
            raise InputError(f"The spacing of {where} is {sizes.tolist()}.", "Give 3 positive numbers, in mm.")
        annotated = _array(truth.get("annotated", np.ones(len(self.organs)))).astype(bool)
        if annotated.shape != (len(self.organs),):
            remedy = f"Give one bool for each of the {len(self.organs)} organs."
            raise InputError(f"'annotated' of {where} has shape {annotated.shape}.", remedy)
        boxes, labels, scores = self._boxes(prediction, ("boxes", "labels", "scores"), f"the prediction for {where}")
        keep = annotated[labels - 1] & (rank_within(labels, scores) < self.max_detections)
        truth_boxes, truth_labels = self._boxes(truth, ("boxes", "labels"), f"the truth of {where}")
        known = annotated[truth_labels - 1]
        if (truth_boxes[known, 3:] <= truth_boxes[known, :3]).any():
            raise InputError(f"A box in the truth of {where} is empty.", "Make every box [start, stop), stop > start.")
        reported = boxes[keep], scores[keep], labels[keep]
        self.add([Case(name, *reported, truth_boxes[known], truth_labels[known], annotated, sizes)])

    def _boxes(self, source: Mapping[str, Any], keys: Sequence[str], where: str) -> list[np.ndarray]:
        """``boxes`` (n, 6) float64, ``labels`` (n,) int64 and, if among the keys, ``scores`` (n,), checked."""
        missing = [key for key in keys if key not in source]
        if missing:
            raise InputError(f"Of {where}, {missing} is missing; there are {sorted(source)}.", "Give what is missing.")
        boxes, labels, *scores = (_array(source[key]) for key in keys)
        boxes = boxes if boxes.size else boxes.reshape(0, 6)
        if boxes.shape != (len(boxes), 6) or any(a.shape != (len(boxes),) for a in (labels, *scores)):
            shapes = dict(zip(keys, (boxes.shape, labels.shape, *(a.shape for a in scores)), strict=True))
            raise InputError(f"Shapes of {where} are {shapes}.", "Give boxes (n, 6) and (n,) of everything else.")
        if not all(np.isfinite(a).all() for a in (boxes, *scores)):
            raise InputError(f"Boxes or scores of {where} are not finite.", "Find what made them so, e.g. divergence.")
        if not np.isin(labels, np.arange(1, len(self.organs) + 1)).all():
            raise InputError(f"Labels of {where} are {labels.tolist()}.", f"Give ids from 1 to {len(self.organs)}.")
        return [boxes, labels.astype(np.int64), *scores]

    def add(self, cases: Sequence[Case]) -> None:
        """Add cases collected elsewhere, each name once: samplers of distributed runs repeat some to fill up."""
        for case in cases:
            seen = self._named.get(case.name) if case.name is not None else None
            if seen is None:
                self.cases.append(case)
                if case.name is not None:
                    self._named[case.name] = case
            elif not all(
                np.array_equal(getattr(seen, field), getattr(case, field))
                for field in ("truth_boxes", "truth_labels", "annotated")
            ):
                raise InputError(
                    f"Two cases with different truth are called {case.name!r}.", "Name each case differently."
                )

    def compute(self) -> dict[str, Any]:
        """Evaluate all cases.

        Returns
        -------
        dict
            ``mAP_coco``, ``mAP_nndet`` : mean AP over IoU 0.50:0.05:0.95 and 0.10:0.05:0.50; ``AP50``, ``AP75`` at one
            threshold. COCO's 101-point interpolation, mean over the organs that have truth.

            ``mAR`` : mean recall over IoU 0.50:0.05:0.95, mean over the same organs.

            ``wall_mean``, ``wall_p95``, ``centre_mean`` : mm. Mean and 95th percentile of the distance between reported
            and true wall, over the six walls of all found organs; mean distance of the centres. Found is an annotated,
            present organ with a reported box, wherever that lies.

            ``within_20mm`` : share of present organs whose box has no wall more than 20 mm inside the organ. No box is
            a miss, a box that is too large is none.

            ``recall50``, ``mean_iou`` : share of present organs found at IoU 0.5; mean IoU over present organs, 0 for
            those without a box.

            ``num_truth``, ``num_found``, ``num_cases`` : present organs, found ones, cases.

            ``per_organ`` : the same for each organ, with ``num_cases_annotated``; ``per_group`` likewise where
            ``size_groups`` is given, with ``organs``. ``settings`` : the options behind the figures.

            Figures in mm and shares over several organs pool their true boxes. What is not defined is NaN.
        """
        if not self.cases:
            raise InputError("There is no case to evaluate.", "Check that the datalist's section is not empty.")
        scores = self._score_organs()
        result: dict[str, Any] = {"num_cases": len(self.cases), **summarise(scores, self.thresholds, self.reported)}
        result["per_organ"] = {
            organ: {"num_cases_annotated": score.num_cases, **summarise([score], self.thresholds, self.reported)}
            for organ, score in zip(self.organs, scores, strict=True)
        }
        if self.size_groups is not None:
            result["per_group"] = {
                group: {
                    "organs": [self.organs[k] for k in members],
                    **summarise([scores[k] for k in members], self.thresholds, self.reported),
                }
                for group, members in self._groups(scores).items()
            }
        result["settings"] = {
            "max_detections": self.max_detections,
            "score_threshold": self.score_threshold,
            "average_precision": "COCO, 101 points",
        }
        return result

    def _score_organs(self) -> list[OrganScore]:
        """One score for each organ, in the order of ``organs``."""

        def gather(field: str) -> np.ndarray:
            return np.concatenate([getattr(case, field) for case in self.cases])

        boxes, scores, labels = gather("boxes"), gather("scores"), gather("labels")
        truth_boxes, truth_labels = gather("truth_boxes"), gather("truth_labels")
        index = np.arange(len(self.cases))
        case = np.repeat(index, [len(c.labels) for c in self.cases])
        truth_case = np.repeat(index, [len(c.truth_labels) for c in self.cases])
        spacing = np.stack([c.spacing for c in self.cases])
        num_annotated = np.sum([c.annotated for c in self.cases], axis=0)
        result = []
        for k in range(len(self.organs)):
            mine, real = labels == k + 1, truth_labels == k + 1
            result.append(
                score_organ(
                    boxes[mine],
                    scores[mine],
                    case[mine],
                    truth_boxes[real],
                    truth_case[real],
                    spacing,
                    num_cases=int(num_annotated[k]),
                    thresholds=self.thresholds,
                    score_threshold=self.score_threshold,
                )
            )
        return result

    def _groups(self, scores: Sequence[OrganScore]) -> dict[str, list[int]]:
        """Indices of the organs of each size group."""
        if isinstance(self.size_groups, Mapping):
            return {name: [self.organs.index(o) for o in group] for name, group in self.size_groups.items()}
        return group_by_volume(scores, None if isinstance(self.size_groups, str) else self.size_groups)


def _array(value: Any) -> np.ndarray:
    """Array, list or tensor as float64 on the host; through torch, because numpy does not know bfloat16."""
    value = value.detach().cpu().double() if hasattr(value, "detach") else value
    return np.asarray(value, dtype=np.float64)
