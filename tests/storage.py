"""One patient, stored in several ways, and how far apart the boxes are that this gives."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from scipy.ndimage import zoom

from organdetr_monai.detections import Detections

Scan = tuple[np.ndarray, np.ndarray]  # HU, affine


def in_orientation(scan: nib.Nifti1Image, axcodes: str) -> Scan:
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(scan.affine), nib.orientations.axcodes2ornt(axcodes)
    )
    turned = scan.as_reoriented(turn)
    return np.asarray(turned.dataobj, dtype=np.float32), turned.affine


def resampled(scan: nib.Nifti1Image, factors: tuple[float, float, float]) -> Scan:
    array = zoom(np.asarray(scan.dataobj, dtype=np.float32), factors, order=1, grid_mode=True, mode="nearest")
    real = np.array(array.shape) / scan.shape  # zoom rounds the shape
    step = np.diag([*(1 / real), 1.0])
    step[:3, 3] = (1 / real - 1) / 2  # from edge to edge
    return array, scan.affine @ step


def gaps(base: Detections, other: Detections) -> np.ndarray:
    """Signed distances in mm between the walls of the organs that `base` has found, and `other` must have found, too:
    (organs, 2, 3), lower and upper walls along LPS.
    """
    for organ in base.present:
        assert other[organ.organ].status == "present", organ.organ
    pairs = [(organ.box, other[organ.organ].box) for organ in base.present]
    return np.array([np.stack([b.min - a.min, b.max - a.max]) for a, b in pairs])
