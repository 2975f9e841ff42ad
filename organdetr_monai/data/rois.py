"""Boxes as labels: the ROIs that an annotator drew in 3D Slicer, in place of a mask.

A label that ends in ``.json`` is a markups document, any other one a mask. From either come *outlines*, points that
span an organ (:func:`organdetr_monai.data.truth.outline_organs`), and from outlines the boxes of training and
evaluation. Who drew boxes has said nothing of single voxels: such a case has no part in the segmentation loss.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform

from organdetr_monai.data.readers import LoadScand
from organdetr_monai.data.transforms import Data, affine_of
from organdetr_monai.data.truth import MapLabelsd, OutlineOrgansd, exact_boxes, truth_of
from organdetr_monai.errors import InputError
from organdetr_monai.geometry import OrientedBox
from organdetr_monai.organs import resolve

__all__ = ["LoadMaskOrRoisd", "TruthFromOutlinesd", "is_rois", "organ_named", "outline_boxes", "read_rois"]

logger = logging.getLogger(__name__)

_LPS = np.array([-1.0, -1.0, 1.0])  # to RAS and back
_SAVE_AGAIN = "Save the ROIs from 3D Slicer as .mrk.json."


def is_rois(label: str | os.PathLike) -> bool:
    """Whether a label is a markups document, by its name."""
    return Path(label).suffix.lower() == ".json"


def organ_named(names: Sequence[str], organs: Sequence[str]) -> int | None:
    """Id of the organ that the first name to fit means, in any spelling that the registry knows; None if none does."""
    known = {_resolved(organ): k for k, organ in enumerate(organs, start=1)}
    for name in names:
        if name in organs:
            return list(organs).index(name) + 1
        if _resolved(name) in known:
            return known[_resolved(name)]
    return None


def read_rois(path: str | os.PathLike, organs: Sequence[str]) -> dict[int, OrientedBox]:
    """Boxes of organs from a markups document of 3D Slicer.

    A ROI is called what its node or else its control point is called: MONAI Label's client renames the nodes and leaves
    the points. ROIs that mean no organ of the model are left out, with a line in the log.

    Parameters
    ----------
    path : path of the JSON
    organs : sequence of K str
        Organ ``organs[k]`` has id ``k + 1``.

    Returns
    -------
    dict of id to OrientedBox in patient LPS mm

    Raises
    ------
    InputError
        No markups, a ROI without place or size, two of one organ, or none of any organ of the model.
    """
    boxes: dict[int, OrientedBox] = {}
    strangers: list[str] = []
    for names, box in _rois(Path(path)):
        organ = organ_named(names, organs)
        if organ is None:
            strangers.append(names[0] if names else "without a name")
        elif organ in boxes:
            raise InputError(f"{path} has two ROIs of {organs[organ - 1]}.", "Draw one box around each organ.")
        else:
            boxes[organ] = box
    if not boxes:
        named = f" (there: {', '.join(strangers)})" if strangers else ""
        raise InputError(
            f"{path} has no ROI of an organ of the model{named}.", f"Name ROIs after organs: {', '.join(organs)}."
        )
    if strangers:
        logger.warning("%s: left out ROIs that are no organ of the model: %s", path, ", ".join(strangers))
    return boxes


def _resolved(name: str) -> str:
    try:
        return resolve(name)
    except InputError:
        return name  # an organ of the user's own, which only the config knows


def _rois(path: Path) -> Iterator[tuple[list[str], OrientedBox]]:
    """Names, best first, and box of each ROI of a document."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        markups = document["markups"]
        rois = [markup for markup in markups if markup["type"] == "ROI"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no markups document ({error}).", _SAVE_AGAIN) from error
    for roi in rois:
        points = roi.get("controlPoints") or []
        names = [str(name) for name in (roi.get("name"), *(point.get("label") for point in points)) if name]
        here = f"{path}: ROI {names[0] if names else 'without a name'}"
        if roi.get("coordinateUnits", "mm") != "mm":
            raise InputError(f"{here} is measured in {roi['coordinateUnits']!r}.", "Save it in mm.")
        to_lps = {"LPS": np.ones(3), "RAS": _LPS}.get(roi.get("coordinateSystem", "LPS"))
        if to_lps is None:
            raise InputError(f"{here} has the coordinate system {roi['coordinateSystem']!r}.", "Use LPS or RAS.")
        try:
            orientation = np.array(roi.get("orientation", np.eye(3)), dtype=np.float64).reshape(3, 3)
            center, size = np.array(roi["center"], dtype=np.float64), np.array(roi["size"], dtype=np.float64)
            box = OrientedBox(center * to_lps, size, to_lps[:, None] * orientation)
        except (KeyError, TypeError, ValueError) as error:  # an InputError is a ValueError
            raise InputError(f"{here} has no usable center, size and orientation ({error}).", _SAVE_AGAIN) from error
        if (box.size <= 0).any():
            raise InputError(f"{here} has the size {box.size.tolist()} mm.", "Drag its walls apart.")
        yield names, box


def outline_boxes(boxes: Mapping[int, OrientedBox]) -> dict[str, Any]:
    """Outlines, as :func:`organdetr_monai.data.truth.outline_organs` gives them, of organs known by their boxes.

    The points lie on the ellipsoid that touches the six walls. Its box is the given one, and where augmentation turns
    the scan it grows as that of a round organ does; the box's corners would grow it by a fifth at ten degrees.

    Parameters
    ----------
    boxes : mapping of id to OrientedBox
        In patient LPS mm.
    """
    points, organ, volume = [np.zeros((0, 3))], [np.zeros(0, dtype=np.int64)], {}
    for number, box in sorted(boxes.items()):
        surface = box.center + (_SPHERE * box.size / 2) @ box.orientation.T  # (P, 3) LPS
        points.append(surface * _LPS)
        organ.append(np.full(len(surface), number))
        volume[number] = float(np.pi / 6 * box.size.prod())
    return {
        "points": torch.from_numpy(np.concatenate(points)),
        "organ": torch.from_numpy(np.concatenate(organ)),
        "volume": volume,
    }


def _sphere(count: int) -> np.ndarray:
    """Even points on the unit sphere (Fibonacci's lattice), and its six poles, where the walls are."""
    k = np.arange(count) + 0.5
    z, turn = 1 - 2 * k / count, np.pi * (1 + 5**0.5) * k
    ring = np.sqrt(1 - z * z)
    return np.concatenate([np.stack([ring * np.cos(turn), ring * np.sin(turn), z], axis=1), np.eye(3), -np.eye(3)])


_SPHERE = _sphere(400)


class LoadMaskOrRoisd(MapTransform):
    """Read a label, be it a mask or ROIs.

    Sets ``outlines`` and ``has_mask``, a bool. The label becomes ids (1, X, Y, Z), uint8; of ROIs an empty one, for the
    transforms that follow.

    Parameters
    ----------
    keys : paths of labels
        Of cases of a datalist, with ``label_values`` and ``annotated``.
    organs : sequence of K str

    Raises
    ------
    InputError
        Whatever makes the file unusable.
    """

    def __init__(self, keys: KeysCollection, organs: Sequence[str], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.organs = list(organs)
        self.load_mask = Compose([LoadScand(keys, ensure_channel_first=True), MapLabelsd(keys), OutlineOrgansd(keys)])

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Read each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            if is_rois(d[key]):
                boxes = read_rois(d[key], self.organs)
                d["outlines"] = outline_boxes({k: box for k, box in boxes.items() if k in d["annotated"]})
                d["has_mask"] = False
                empty = torch.zeros((1, 2, 2, 2), dtype=torch.uint8)
                d[key] = MetaTensor(empty, affine=torch.eye(4, dtype=torch.float64))
            else:
                d = {**self.load_mask(d), "has_mask": True}
        return d


class TruthFromOutlinesd(MapTransform):
    """Boxes for evaluation from ``outlines``; what :class:`organdetr_monai.data.truth.TruthBoxesd` takes from a mask.

    Parameters
    ----------
    keys : label, which is removed
    num_organs : int
        K.
    reference : key of the image on the working grid
    ignore_truncated : bool
        See there.

    Notes
    -----
    Sets ``boxes`` (M, 6) float32 corners in voxels of the image, ``labels`` (M,) int64, ``annotated`` (K,) bool and
    ``spacing`` (3,) mm of the image.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_organs: int,
        reference: str = "image",
        ignore_truncated: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_organs, self.reference, self.ignore_truncated = int(num_organs), reference, bool(ignore_truncated)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Add the boxes."""
        d = dict(data)
        target = affine_of(d[self.reference])
        for key in self.key_iterator(d):
            del d[key]
        organs, boxes = exact_boxes(d.pop("outlines"), target)
        truth = truth_of(d, boxes, organs, target, num_organs=self.num_organs, ignore_truncated=self.ignore_truncated)
        d.update(truth)
        return d
