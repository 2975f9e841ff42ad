"""The same patient in any storage gives the same boxes in millimetres, with weights that know such patients."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from organdetr_monai import OrganDetector
from organdetr_monai.data.phantom import make_phantom
from tests.storage import Scan, gaps, in_orientation

WORKING = 5.0  # mm, the grid that these weights look at


@pytest.fixture(scope="module")
def detector() -> OrganDetector:
    return OrganDetector.load("phantom", device="cpu")


def stored(patient: int, **storage) -> Scan:
    phantom = make_phantom((7, patient), **storage)
    return phantom.image.astype(np.float32), phantom.affine


@pytest.mark.parametrize("patient", [0, 1])
def test_a_phantom_gives_the_same_boxes_however_it_is_stored(detector, patient):
    scan = stored(patient)
    base = detector(scan)
    assert len(base.present) >= 10
    for axcodes in ("LPS", "PIL", "SRA"):
        turned = in_orientation(nib.Nifti1Image(*scan), axcodes)
        assert np.abs(gaps(base, detector(turned))).max() < 0.01, axcodes
    for axcodes, spacing in (("PIL", (2.5, 5.0, 2.5)), ("SRA", (5.0, 3.0, 3.0))):  # scanned anew, other noise
        found = gaps(base, detector(stored(patient, axcodes=axcodes, spacing=spacing)))
        assert np.abs(found).max() <= WORKING, axcodes
        assert np.abs(np.median(found, axis=(0, 1))).max() <= 0.5, "nothing is shifted as a whole"
