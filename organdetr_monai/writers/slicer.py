"""3D Slicer markups: one ROI box for each present organ."""

from __future__ import annotations

import json
import os
from typing import Any

from organdetr_monai.detections import Detections, OrganDetection
from organdetr_monai.files import replacing
from organdetr_monai.geometry import OrientedBox
from organdetr_monai.writers.appearance import color_of

__all__ = ["markups", "write_slicer"]

# Slicer tells the version by this name; it is no address to fetch.
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


def markups(detections: Detections) -> dict[str, Any]:
    """The markups document: ROIs in LPS mm, oriented, named by organ, locked. Absent organs have none."""
    return {
        "@schema": _SCHEMA,
        "markups": [_roi(entry, entry.box) for entry in detections.organs if entry.box is not None],
    }


def write_slicer(detections: Detections, path: str | os.PathLike) -> None:
    """Write a ``.mrk.json`` file that 3D Slicer opens by drag and drop."""
    with replacing(path) as draft:
        draft.write_text(json.dumps(markups(detections), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _roi(entry: OrganDetection, box: OrientedBox) -> dict[str, Any]:
    # Columns of the orientation are the box's axes; turning the first two round leaves the box as it is, and makes
    # the axes of a straight one Slicer's own (RAS), which it then draws and names as users know them.
    orientation = (box.orientation * (-1.0, -1.0, 1.0) + 0.0).reshape(-1).tolist()
    center = box.center.tolist()
    color = list(color_of(entry.id))
    note = f"score {entry.score:.3f}"
    if entry.truncated:
        note += f"; reaches the scan's end: {', '.join(entry.truncated)}"
    return {
        "type": "ROI",
        "name": entry.organ,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": True,
        "fixedNumberOfControlPoints": False,
        "labelFormat": "%N",
        "lastUsedControlPointNumber": 1,
        "roiType": "Box",
        "center": center,
        "orientation": orientation,
        "size": box.size.tolist(),
        "insideOut": False,
        "controlPoints": [
            {
                "id": "1",
                "label": entry.organ,
                "description": note,
                "position": center,
                "orientation": orientation,
                "selected": True,
                "locked": True,
                "visibility": True,
                "positionStatus": "defined",
            }
        ],
        "measurements": [],
        "display": {
            "visibility": True,
            "opacity": 1.0,
            "color": color,
            "selectedColor": color,
            "propertiesLabelVisibility": True,
            "pointLabelsVisibility": False,
            "fillVisibility": False,
            "outlineVisibility": True,
            "handlesInteractive": False,
        },
    }
