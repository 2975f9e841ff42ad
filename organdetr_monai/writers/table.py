"""One table over many scans: a line for each case and organ, and for each case that failed."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping

from organdetr_monai.detections import Detections, OrganDetection
from organdetr_monai.files import replacing

__all__ = ["COLUMNS", "write_table"]

_AXES = "xyz"
COLUMNS = (
    *("case", "image", "series_uid", "model", "model_version", "model_weights"),
    *("organ", "id", "status", "score", "truncated"),
    *(f"center_{axis}_mm" for axis in _AXES),
    *(f"size_{axis}_mm" for axis in _AXES),
    *(f"min_{axis}_mm" for axis in _AXES),
    *(f"max_{axis}_mm" for axis in _AXES),
    *(f"start_{axis}_voxel" for axis in _AXES),
    *(f"stop_{axis}_voxel" for axis in _AXES),
    "warning",
    "error",
)


def write_table(
    cases: Iterable[tuple[str, Detections]],
    path: str | os.PathLike,
    *,
    failed: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
    doubts: Mapping[str, str] | None = None,
) -> None:
    """Write a CSV summary.

    Parameters
    ----------
    cases : iterable of (str, Detections)
        Name and result; taken one at a time.
    path : path
    failed : mapping from str to str, optional
        Cases without a result, and why: a line with status ``failed`` and the reason under ``error``, so that a case
        never vanishes from the table.
    notes : mapping from str to str, optional
        Cases with a result of which something else failed, and what: stands under ``error`` of each of their lines.

    doubts : mapping from str to str, optional
        Cases with a result that may mean nothing, and why: stands under ``warning`` of each of their lines.

    Notes
    -----
    Millimetres are LPS. In an oblique scan ``size`` runs along the box's own axes, ``min`` and ``max`` stand around it.
    An absent organ leaves the box columns empty. Several faces in ``truncated`` are joined by semicolons.
    """
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, restval="")
        writer.writeheader()
        for case, detections in cases:
            for entry in detections.organs:
                said = {"warning": (doubts or {}).get(case, ""), "error": (notes or {}).get(case, "")}
                writer.writerow({**_row(case, detections, entry), **said})
        for case, error in (failed or {}).items():
            writer.writerow({"case": case, "status": "failed", "error": " ".join(error.split())})


def _row(case: str, detections: Detections, entry: OrganDetection) -> dict[str, object]:
    row: dict[str, object] = {
        "case": case,
        "image": detections.image or "",
        "series_uid": detections.series_uid or "",
        "model": detections.model.name,
        "model_version": detections.model.version,
        "model_weights": detections.model.weights or "",
        "organ": entry.organ,
        "id": entry.id,
        "status": entry.status,
        "score": "" if entry.score is None else entry.score,
        "truncated": ";".join(entry.truncated),
    }
    if entry.box is not None and entry.box_voxel is not None:
        columns = COLUMNS[COLUMNS.index("center_x_mm") : COLUMNS.index("warning")]
        box = entry.box
        values = [*box.center, *box.size, *box.min, *box.max, *entry.box_voxel]
        row.update(zip(columns, map(float, values), strict=True))
    return row
