"""The result: for every organ of a scan a box with a score, or that it is absent, and where the scan cuts it off."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from organdetr_monai.errors import InputError
from organdetr_monai.geometry import (
    FACES,
    OrientedBox,
    box_to_oriented,
    check_affine,
    clip_box,
    spacing_of,
    transform_boxes,
    truncated_faces,
)

__all__ = ["Detections", "Model", "OrganDetection"]

STATUSES = ("present", "absent")


@dataclass(frozen=True)
class Model:
    """Who says so.

    Attributes
    ----------
    name, version : str
        Of the bundle.
    weights : str, optional
        Which weights: :func:`organdetr_monai.checkpoints.weights_id` of their file, which an exported model keeps. None
        where that is not known.
    """

    name: str
    version: str
    weights: str | None = None


@dataclass(frozen=True)
class OrganDetection:
    """What is known of one organ in one scan.

    Attributes
    ----------
    organ : str
        Name, such as ``"kidney_left"``.
    id : int
        Its id in the model's list, from 1 up.
    status : {"present", "absent"}
    score : float or None
        In [0, 1]: how sure the model is of the best box it had; an absent organ keeps the score that was too low. None
        if the model proposed no box at all.
    box_voxel : tuple of 6 floats, or None when absent
        Corners ``[start, stop)`` in voxels of the original array, inside it.
    box : OrientedBox, or None when absent
        The same box in patient LPS mm.
    truncated : tuple of str
        Faces of the scan that the box reaches, some of `geometry.FACES` in that order: the organ may go on there.
    """

    organ: str
    id: int
    status: str
    score: float | None
    box_voxel: tuple[float, ...] | None = None
    box: OrientedBox | None = None
    truncated: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        here = f"Organ {self.organ!r}"
        if not self.organ or int(self.id) != self.id or self.id < 1:
            raise InputError(f"{here} has the id {self.id}.", "Give a name, and an id from 1 up.")
        if self.status not in STATUSES:
            raise InputError(f"{here} has the status {self.status!r}.", f"Use one of {', '.join(STATUSES)}.")
        if self.score is not None and not 0 <= self.score <= 1:
            raise InputError(f"{here} has the score {self.score}.", "Scores are probabilities in [0, 1].")
        if self.status == "absent" and (self.box_voxel is not None or self.box is not None or self.truncated):
            raise InputError(f"{here} is absent and has a box.", "Only a present organ has a box.")
        if self.status == "present" and (self.box_voxel is None or self.box is None or self.score is None):
            raise InputError(f"{here} is present without box or score.", "Give both boxes and the score.")
        if self.truncated != tuple(face for face in FACES if face in self.truncated):
            raise InputError(f"{here} is truncated at {self.truncated}.", f"Use some of {FACES}, in that order.")
        if self.box_voxel is not None:
            box = np.asarray(self.box_voxel, dtype=np.float64)
            if box.shape != (6,) or not np.isfinite(box).all() or (box[3:] <= box[:3]).any():
                raise InputError(
                    f"{here} has the box {self.box_voxel}.", "Give (x0, y0, z0, x1, y1, z1), stop > start."
                )
            object.__setattr__(self, "box_voxel", tuple(box.tolist()))


@dataclass(frozen=True, eq=False)
class Detections:
    """All organs of one scan, on the grid in which the scan was given.

    Attributes
    ----------
    organs : tuple of OrganDetection
        One for each organ that was looked for.
    affine : ndarray of shape (4, 4)
        Of the original array: indices of voxel centres to RAS+ mm.
    shape : (X, Y, Z)
        Of the original array.
    model : Model
    image : str, optional
        Where the scan came from.
    series_uid : str, optional
        DICOM series instance UID.
    """

    organs: tuple[OrganDetection, ...]
    affine: np.ndarray
    shape: tuple[int, int, int]
    model: Model
    image: str | None = None
    series_uid: str | None = None
    _by_name: dict[str, OrganDetection] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        affine = check_affine(self.affine)
        affine.setflags(write=False)
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"The scan's shape is {self.shape}.", "Give three lengths from 1 up.")
        organs = tuple(self.organs)
        for key in ("organ", "id"):
            values = [getattr(organ, key) for organ in organs]
            if len(set(values)) != len(values):
                raise InputError(f"The result has an {key} twice: {values}.", "Give one entry for each organ.")
        for entry in organs:
            _check_place(entry, affine, shape)
        image = None if self.image is None else os.fspath(self.image)
        for name, value in (("affine", affine), ("shape", shape), ("organs", organs), ("image", image)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_by_name", {entry.organ: entry for entry in organs})

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, Detections) else NotImplemented

    def __getitem__(self, organ: str) -> OrganDetection:
        try:
            return self._by_name[organ]
        except KeyError:
            raise InputError(f"The result has no organ {organ!r}.", f"It has {', '.join(self._by_name)}.") from None

    @property
    def present(self) -> tuple[OrganDetection, ...]:
        """The organs that are there."""
        return tuple(entry for entry in self.organs if entry.status == "present")

    def select(self, organs: Iterable[str]) -> Detections:
        """Keep some organs, in the order asked for; ids stay those of the model."""
        return replace(self, organs=tuple(self[organ] for organ in organs))

    @classmethod
    def from_boxes(
        cls,
        boxes: ArrayLike,
        scores: ArrayLike,
        labels: ArrayLike,
        *,
        organs: Sequence[str],
        working_affine: ArrayLike,
        affine: ArrayLike,
        shape: Sequence[int],
        model: Model,
        threshold: float | Mapping[str, float] = 0.5,
        truncation_tolerance: float | None = None,
        image: str | None = None,
        series_uid: str | None = None,
    ) -> Detections:
        """Carry a model's boxes home to the original scan, one for each organ.

        Parameters
        ----------
        boxes : array_like of shape (P, 6)
            Corners ``[start, stop)`` in voxels of the working grid.
        scores : array_like of shape (P,)
            In [0, 1]. Of several boxes of an organ the best-scoring one counts.
        labels : array_like of shape (P,)
            Ids: organ ``organs[k]`` is ``k + 1``.
        organs : sequence of K str
        working_affine, affine : array_like of shape (4, 4)
            Of the working grid and of the original array, voxel centres to RAS+ mm.
        shape : (X, Y, Z)
            Of the original array. Boxes are clipped to it.
        threshold : float or mapping from organ to float, default 0.5
            From this score up an organ is present, if some of its box lies in the scan.
        truncation_tolerance : float, optional
            In mm: a box this near to the scan's end reaches it. By default the working grid's largest voxel size:
            closer than that, a model cannot tell. For boxes from a mask use 0.

        Raises
        ------
        InputError
            Arrays that do not fit each other, ids that no organ has, boxes or scores that are not finite, an organ
            without a threshold.
        """
        scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
        boxes = clip_box(transform_boxes(boxes, working_affine, affine), shape)
        if not len(boxes) == len(scores) == len(labels):
            raise InputError(
                f"{len(boxes)} boxes have {len(scores)} scores and {len(labels)} ids.", "Give one of each."
            )
        if len(labels) and (labels.min() < 1 or labels.max() > len(organs)):
            raise InputError(f"The ids are {labels.tolist()}.", f"{len(organs)} organs have ids 1 to {len(organs)}.")
        if not np.isfinite(scores).all():
            raise InputError(f"The scores are {scores.tolist()}.", "Scores are probabilities in [0, 1].")
        tolerance = spacing_of(working_affine).max() if truncation_tolerance is None else truncation_tolerance
        entries = []
        for number, organ in enumerate(organs, start=1):
            mine = np.flatnonzero(labels == number)
            if len(mine) == 0:
                entries.append(OrganDetection(organ, number, "absent", None))
                continue
            best = mine[np.argmax(scores[mine])]
            box, score = boxes[best], float(scores[best])
            if score < _threshold_of(organ, threshold) or (box[3:] <= box[:3]).any():
                entries.append(OrganDetection(organ, number, "absent", score))
                continue
            faces = truncated_faces(box, shape, affine, tolerance=tolerance)
            entries.append(
                OrganDetection(organ, number, "present", score, tuple(box), box_to_oriented(box, affine), faces)
            )
        x, y, z = shape
        return cls(tuple(entries), np.asarray(affine), (x, y, z), model, image, series_uid)

    def to_dict(self) -> dict:
        """As plain data for JSON; `writers.schema` describes it."""
        from organdetr_monai.detections_json import to_dict

        return to_dict(self)

    @classmethod
    def from_dict(cls, document: Mapping) -> Detections:
        """The inverse of `to_dict`; exact, and refuses what contradicts itself."""
        from organdetr_monai.detections_json import from_dict

        return from_dict(document)

    def save(self, path: str | os.PathLike) -> None:
        """Write ``detections.json``."""
        from organdetr_monai.detections_json import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Detections:
        """Read ``detections.json``."""
        from organdetr_monai.detections_json import load

        return load(path)


def _threshold_of(organ: str, threshold: float | Mapping[str, float]) -> float:
    if not isinstance(threshold, Mapping):
        return float(threshold)
    if organ not in threshold:
        raise InputError(f"There is no threshold for {organ!r}.", f"There are some for {', '.join(threshold)}.")
    return float(threshold[organ])


def _check_place(entry: OrganDetection, affine: np.ndarray, shape: tuple[int, ...]) -> None:
    """A box lies in the scan, and is the same in voxels and in mm: a tool that mixed up its frames is caught here."""
    if entry.box_voxel is None or entry.box is None:
        return
    box = np.asarray(entry.box_voxel)
    if (box[:3] < -1e-6).any() or (box[3:] > np.asarray(shape) + 1e-6).any():
        raise InputError(
            f"The box of {entry.organ!r}, {list(entry.box_voxel)}, leaves the scan of shape {shape}.",
            "Clip it, or give the shape of the array that it belongs to.",
        )
    expected = box_to_oriented(box, affine)
    gap = max(np.abs(expected.min - entry.box.min).max(), np.abs(expected.max - entry.box.max).max())
    if gap > 0.01:
        raise InputError(
            f"The boxes of {entry.organ!r} in voxels and in mm lie {gap:.3g} mm apart.",
            "Give LPS mm, and apply the affine to the voxel corners less 0.5.",
        )
