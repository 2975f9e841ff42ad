"""`Answer` as JSON: the one place that knows its keys. ``writers/lesions.schema.json`` describes the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from organdetr_monai.detections_json import box_to_dict, model_to_dict
from organdetr_monai.miq_sam3d.answer import Answer, Lesion

FORMAT, VERSION = "organdetr-lesions", 1


def to_dict(answer: Answer) -> dict[str, Any]:
    """Plain data. Floats are written in full."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "image": answer.image,
        "series_uid": answer.series_uid,
        "space": "LPS",
        "units": "mm",
        "shape": list(answer.labels.shape),
        "affine_ras": answer.affine.tolist(),
        "model": model_to_dict(answer.model),
        "found": answer.found,
        "reason": answer.reason,
        "clicks": [
            {"voxel": list(click.voxel), "point_mm": list(click.point_mm), "lesion": click.lesion}
            for click in answer.clicks
        ],
        "lesions": [_lesion_to_dict(lesion) for lesion in answer.lesions],
    }


def _lesion_to_dict(lesion: Lesion) -> dict[str, Any]:
    return {
        "id": lesion.id,
        "score": lesion.score,
        "clicked": lesion.clicked,
        "kind": lesion.kind,
        "box_voxel": np.reshape(lesion.box_voxel, (2, 3)).T.tolist(),
        "box_mm": box_to_dict(lesion.box),
        "centroid_mm": list(lesion.centroid_mm),
        "volume_ml": lesion.volume_ml,
        "truncated": list(lesion.truncated),
    }
