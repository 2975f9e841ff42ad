"""Made-up results that several tests write and read."""

from __future__ import annotations

import numpy as np

from organdetr_monai.detections import Detections, Model
from tests.affines import rotation

# Array axes L, P, S as DICOM gives them: 1.5×2×3 mm.
STRAIGHT = np.array([[-1.5, 0, 0, 30], [0, -2.0, 0, 40], [0, 0, 3, -50], [0, 0, 0, 1]])
OBLIQUE = STRAIGHT.copy()
OBLIQUE[:3, :3] = rotation([0.1, -0.2, 0.3]) @ STRAIGHT[:3, :3]

ORGANS = ("liver", "kidney_left", "spleen", "portal_vein_and_splenic_vein", "colon")
SHAPE = (40, 30, 20)
BOXES = [[0, 5, 4, 20, 20, 12.5], [25.25, 15, 5, 33, 24, 11], [30, 20, 8, 36, 28, 14], [10, 10, 9, 20, 14, 20]]


def make_result(*, affine: np.ndarray = STRAIGHT, **changes) -> Detections:
    """Liver (cut at the right), left kidney, portal vein (cut on top) present; spleen unsure, colon not proposed."""
    options = {
        "boxes": BOXES,
        "scores": [0.97, 0.83, 0.31, 0.6],
        "labels": [1, 2, 3, 4],
        "organs": ORGANS,
        "working_affine": affine,
        "affine": affine,
        "shape": SHAPE,
        "model": Model("organ-detr", "0.1.0", "sha256:0123456789abcdef"),
        "truncation_tolerance": 0.0,
        "image": "scans/case [1].nii.gz",
    }
    return Detections.from_boxes(**{**options, **changes})
