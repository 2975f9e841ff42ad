"""The answer to clicks: a label map on the original array, and of each lesion what a report says of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from organdetr_monai.detections import Detections, Model, OrganDetection
from organdetr_monai.geometry import (
    OrientedBox,
    box_to_oriented,
    boxes_from_mask,
    check_affine,
    truncated_faces,
    voxel_to_lps,
)
from organdetr_monai.miq_sam3d.grids import GridMap
from organdetr_monai.miq_sam3d.inference import Found

__all__ = ["Answer", "Click", "Lesion"]


@dataclass(frozen=True)
class Click:
    """One click and what it lies on.

    Attributes
    ----------
    voxel : (x, y, z)
        Index in the original array.
    point_mm : (x, y, z)
        Centre of that voxel, patient LPS mm.
    lesion : int or None
        Id of the lesion there; None where the model sees none.
    """

    voxel: tuple[int, int, int]
    point_mm: tuple[float, float, float]
    lesion: int | None


@dataclass(frozen=True)
class Lesion:
    """One lesion.

    Attributes
    ----------
    id : int
        Its value in the label map.
    score : float
        In [0, 1]: how sure the model is that it is one, and of its outline.
    clicked : bool
        Whether a click lies in it.
    kind : int
        From 1 up: lesions that were found for clicks of one kind.
    box_voxel : tuple of 6 int
        Corners ``[start, stop)`` in voxels of the original array.
    box : OrientedBox
        The same box in patient LPS mm.
    centroid_mm : (x, y, z)
        Patient LPS mm.
    volume_ml : float
    truncated : tuple of str
        Faces of the scan that it reaches, some of `geometry.FACES`: it may go on there.
    """

    id: int
    score: float
    clicked: bool
    kind: int
    box_voxel: tuple[int, ...]
    box: OrientedBox
    centroid_mm: tuple[float, float, float]
    volume_ml: float
    truncated: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Answer:
    """What clicks in one scan found.

    Attributes
    ----------
    labels : ndarray of shape (X, Y, Z), uint16
        Ids on the original array, 0 where there is no lesion. Id 1 is the lesion of the first click that lies on one.
    lesions : tuple of Lesion
        In the order of their ids, 1 to n: those that were clicked, then the rest by score.
    clicks : tuple of Click
    affine : ndarray of shape (4, 4)
        Of the original array: indices of voxel centres to RAS+ mm.
    model : Model
    image : str, optional
        Where the scan came from.
    series_uid : str, optional
        DICOM series instance UID.
    """

    labels: np.ndarray
    lesions: tuple[Lesion, ...]
    clicks: tuple[Click, ...]
    affine: np.ndarray
    model: Model
    image: str | None = None
    series_uid: str | None = None

    @property
    def found(self) -> bool:
        """Whether any click lies on a lesion."""
        return bool(self.lesions)

    @property
    def reason(self) -> str | None:
        """Which clicks have nothing to find, in words; None if each lies on a lesion."""
        empty = [str(click.voxel) for click in self.clicks if click.lesion is None]
        return f"There is nothing to find at voxel {', '.join(empty)}: no lesion there." if empty else None

    @classmethod
    def from_found(
        cls,
        found: Found,
        clicks: np.ndarray,
        *,
        model: Model,
        working_affine: np.ndarray,
        affine: np.ndarray,
        shape: Sequence[int],
        image: str | None = None,
        series_uid: str | None = None,
    ) -> Answer:
        """Carry lesions of the working grid home to the original array, nearest voxel.

        Parameters
        ----------
        found : Found
        clicks : ndarray of shape (n, 3), int
            Voxels of the original array.
        model, image, series_uid
            See `Answer`.
        working_affine, affine : ndarray of shape (4, 4)
            Voxel centres to RAS+ mm.
        shape : (X, Y, Z)
            Of the original array.
        """
        grid = GridMap(working_affine, found.labels.shape, affine, shape)
        labels = grid.to_original(found.labels.astype(np.uint16))
        boxes, ids = boxes_from_mask(labels)
        if len(ids) < len(found.scores):  # an array coarser than the working grid may miss small lesions
            table = np.zeros(len(found.scores) + 1, dtype=np.uint16)
            table[ids] = np.arange(1, len(ids) + 1)
            labels = table[labels]
        affine = check_affine(affine)
        points = voxel_to_lps(np.asarray(clicks) + 0.5, affine)
        made = []
        for voxel, point in zip(np.asarray(clicks).tolist(), points.tolist(), strict=True):
            made.append(Click((*voxel,), (*point,), int(labels[tuple(voxel)]) or None))
        owners = {click.lesion for click in made}
        voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
        lesions = []
        for number, (old, box) in enumerate(zip(ids.tolist(), boxes, strict=True), start=1):
            start, stop = box[:3].astype(int), box[3:].astype(int)
            inside = np.argwhere(labels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] == number)
            x, y, z = voxel_to_lps(inside.mean(axis=0) + start + 0.5, affine).tolist()
            lesions.append(
                Lesion(
                    id=number,
                    score=found.scores[old - 1],
                    clicked=number in owners,
                    kind=found.kinds[old - 1],
                    box_voxel=tuple(box.astype(int).tolist()),
                    box=box_to_oriented(box, affine),
                    centroid_mm=(x, y, z),
                    volume_ml=len(inside) * voxel_ml,
                    truncated=truncated_faces(box, shape, affine),
                )
            )
        return cls(labels, tuple(lesions), tuple(made), affine, model, image, series_uid)

    def as_detections(self) -> Detections:
        """The lesions as boxes with names, for writers of boxes; scores and ids stay."""
        entries = tuple(
            OrganDetection(
                f"lesion_{lesion.id}",
                lesion.id,
                "present",
                lesion.score,
                lesion.box_voxel,
                lesion.box,
                lesion.truncated,
            )
            for lesion in self.lesions
        )
        x, y, z = self.labels.shape
        return Detections(entries, self.affine, (x, y, z), self.model, self.image, self.series_uid)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON, all but the label map; ``writers/lesions.schema.json`` describes it."""
        from organdetr_monai.miq_sam3d.answer_json import to_dict

        return to_dict(self)

    def save(self, path: str | os.PathLike) -> None:
        """Write ``lesions.json``."""
        from organdetr_monai.detections_json import write_document

        write_document(self.to_dict(), path)
