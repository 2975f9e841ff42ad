"""`Detections` as JSON: the one place that knows its keys. ``writers/detections.schema.json`` describes the same."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from organdetr_monai.detections import Detections, Model, OrganDetection
from organdetr_monai.errors import InputError
from organdetr_monai.files import replacing
from organdetr_monai.geometry import OrientedBox

FORMAT, VERSION = "organdetr-detections", 1

_LIST = re.compile(r"\[\n([^\[\]{}]*)\n *\]")  # a list of numbers or names, for which json takes a line each


def to_dict(detections: Detections) -> dict:
    """Plain data. Floats are written in full, so that reading gives the same numbers."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "image": detections.image,
        "series_uid": detections.series_uid,
        "space": "LPS",
        "units": "mm",
        "shape": list(detections.shape),
        "affine_ras": detections.affine.tolist(),
        "model": model_to_dict(detections.model),
        "organs": [_organ_to_dict(entry) for entry in detections.organs],
    }


def _organ_to_dict(entry: OrganDetection) -> dict:
    box = entry.box
    return {
        "name": entry.organ,
        "id": entry.id,
        "status": entry.status,
        "score": entry.score,
        "truncated": list(entry.truncated),
        "box_mm": None if box is None else box_to_dict(box),
        "box_voxel": None if entry.box_voxel is None else np.reshape(entry.box_voxel, (2, 3)).T.tolist(),
        "center_mm": None if box is None else box.center.tolist(),
        "size_mm": None if box is None else box.size.tolist(),
    }


def model_to_dict(model: Model) -> dict:
    """Who made a result."""
    return {"name": model.name, "version": model.version, "weights": model.weights}


def box_to_dict(box: OrientedBox) -> dict:
    """``box_mm`` of a box: its corners, or where it is oblique centre, size and orientation."""
    if box.is_axis_aligned:
        return {"min": box.min.tolist(), "max": box.max.tolist()}
    return {"center": box.center.tolist(), "size": box.size.tolist(), "orientation": box.orientation.tolist()}


def from_dict(document: Mapping) -> Detections:
    """Read what `to_dict` gives; keys that are not known are passed over.

    Raises
    ------
    InputError
        Another format or a later version, a missing key, a value of the wrong kind, or boxes that contradict each
        other.
    """
    if not isinstance(document, Mapping):
        raise InputError(f"The document is a {type(document).__name__}.", "Give the object that detections.json holds.")
    found = document.get("format"), document.get("version")
    if found != (FORMAT, VERSION):
        raise InputError(f"The format is {found[0]!r}, version {found[1]!r}.", f"This reads {FORMAT!r}, {VERSION}.")
    if (document.get("space"), document.get("units")) != ("LPS", "mm"):
        raise InputError(
            f"The boxes are in {document.get('space')!r} and {document.get('units')!r}.", "Convert them to LPS and mm."
        )
    try:
        model = document["model"]
        return Detections(
            organs=tuple(_organ_from_dict(entry) for entry in document["organs"]),
            affine=np.asarray(document["affine_ras"], dtype=np.float64),
            shape=tuple(document["shape"]),
            model=Model(model["name"], model["version"], model.get("weights")),
            image=document.get("image"),
            series_uid=document.get("series_uid"),
        )
    except InputError:
        raise
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise InputError(f"The document lacks or garbles a key: {error!r}.", "See detections.schema.json.") from error


def _organ_from_dict(entry: Mapping[str, Any]) -> OrganDetection:
    box_voxel, box = entry["box_voxel"], None
    if entry["box_mm"] is not None:
        stated = entry["box_mm"]
        orientation = np.asarray(stated.get("orientation", np.eye(3)), dtype=np.float64)
        box = OrientedBox(np.asarray(entry["center_mm"]), np.asarray(entry["size_mm"]), orientation)
        # center_mm and size_mm say the same once more, without the rounding of (min + max) / 2: those are kept.
        low = np.asarray(stated["min"] if "min" in stated else stated["center"], dtype=np.float64)
        high = np.asarray(stated["max"] if "max" in stated else stated["size"], dtype=np.float64)
        first, second = (box.min, box.max) if "min" in stated else (box.center, box.size)
        if (
            low.shape != (3,)
            or high.shape != (3,)
            or max(np.abs(low - first).max(), np.abs(high - second).max()) > 0.01
        ):
            raise InputError(
                f"box_mm of {entry['name']!r} is {stated}, but center_mm {entry['center_mm']} and size_mm "
                f"{entry['size_mm']}.",
                "Make them agree.",
            )
    return OrganDetection(
        organ=entry["name"],
        id=entry["id"],
        status=entry["status"],
        score=entry["score"],
        box_voxel=None if box_voxel is None else tuple(np.asarray(box_voxel, dtype=np.float64).T.reshape(-1)),
        box=box,
        truncated=tuple(entry["truncated"]),
    )


def save(detections: Detections, path: str | os.PathLike) -> None:
    """Write the JSON file, whole or not at all."""
    write_document(to_dict(detections), path)


def write_document(document: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write plain data as JSON for people to read, too: a list of numbers takes one line."""
    text = json.dumps(document, indent=2, allow_nan=False)
    text = _LIST.sub(lambda match: f"[{' '.join(match[1].split())}]", text)
    with replacing(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def load(path: str | os.PathLike) -> Detections:
    """Read the JSON file; errors name it."""
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.", "Give a detections.json.") from error
    try:
        return from_dict(document)
    except InputError as error:
        raise InputError(f"{path}: {error.what}", error.remedy) from error
