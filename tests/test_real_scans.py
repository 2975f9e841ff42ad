"""Real scans, where they are at hand: the same patient in any storage gives the same boxes in millimetres."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import zoom

from organdetr_monai import OrganDetector

ROOT = Path(__file__).parents[1]
TORSO = ROOT.parent / "shared" / "data" / "torso" / "ct.nii.gz"

needs_data = pytest.mark.skipif(not TORSO.exists(), reason=f"no real scan at ../shared/data/torso/{TORSO.name}")
needs_weights = pytest.mark.skipif(not (ROOT / "models" / "model.pt").exists(), reason="no trained weights in models/")


def in_orientation(scan: nib.Nifti1Image, axcodes: str) -> tuple[np.ndarray, np.ndarray]:
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(scan.affine), nib.orientations.axcodes2ornt(axcodes)
    )
    turned = scan.as_reoriented(turn)
    return np.asarray(turned.dataobj, dtype=np.float32), turned.affine


def resampled(scan: nib.Nifti1Image, factors: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    array = zoom(np.asarray(scan.dataobj, dtype=np.float32), factors, order=1, grid_mode=True, mode="nearest")
    real = np.array(array.shape) / scan.shape  # zoom rounds the shape
    step = np.diag([*(1 / real), 1.0])
    step[:3, 3] = (1 / real - 1) / 2  # from edge to edge
    return array, scan.affine @ step


@pytest.fixture(scope="module")
def detector():
    return OrganDetector.load(device="cpu")


@needs_data
@needs_weights
def test_the_torso_gives_the_same_boxes_however_it_is_stored(detector):
    scan = nib.load(TORSO)
    base = detector(in_orientation(scan, "RAS"))
    assert base.present
    working = 5.0  # mm
    variants = {axcodes: in_orientation(scan, axcodes) for axcodes in ("LPS", "PIL", "SRA")}
    variants["anisotropic"] = resampled(scan, (1.5, 1.5, 0.75))
    for name, variant in variants.items():
        other = detector(variant)
        for organ in base.present:
            assert other[organ.organ].status == "present", (name, organ.organ)
            gap = np.abs(
                np.concatenate([other[organ.organ].box.min - organ.box.min, other[organ.organ].box.max - organ.box.max])
            )
            assert gap.max() <= working, (name, organ.organ, gap)
