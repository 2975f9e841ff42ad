"""Detection in bfloat16, an option, finds with the shipped weights for phantoms what float32 finds."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from organdetr_monai import OrganDetector
from organdetr_monai.data.phantom import make_phantom

ROOT = Path(__file__).parents[1]
TORSO = ROOT.parent / "shared" / "data" / "torso" / "ct.nii.gz"
WORKING = 5.0  # mm, a working voxel
MEDIAN, MOST = 0.1 * WORKING, WORKING  # distances of half the walls, and of 95 % of them: sometimes another query wins
SCORE = 0.02

WEIGHTS = ROOT / "models" / "phantom"
needs_data = pytest.mark.skipif(not TORSO.exists(), reason=f"no real scan at ../shared/data/torso/{TORSO.name}")


def phantoms():
    made = [make_phantom(seed, spacing=(5, 5, 5)) for seed in range(200, 204)]
    return [(phantom.image, phantom.affine) for phantom in made]


def torso():
    scan = nib.load(TORSO)
    return [(np.asarray(scan.dataobj), scan.affine)]


@pytest.mark.parametrize("scans", [phantoms, pytest.param(torso, marks=needs_data)])
def test_bfloat16_is_an_option_that_moves_few_walls(scans, tmp_path):
    (tmp_path / "delta.json").write_text('{"amp_dtype": "bfloat16"}')
    default = OrganDetector.load(WEIGHTS, device="cpu")
    option = OrganDetector.load(WEIGHTS, device="cpu", configs=[tmp_path / "delta.json"])
    gaps = []
    for scan in scans():
        for exact, rounded in zip(default(scan).organs, option(scan).organs, strict=True):
            assert abs(exact.score - rounded.score) < SCORE, exact.organ
            margin = abs(exact.score - default.threshold[exact.organ])
            assert exact.status == rounded.status or margin < SCORE, exact.organ
            if exact.box is not None and rounded.box is not None:
                gaps.append(np.abs(np.r_[exact.box.min - rounded.box.min, exact.box.max - rounded.box.max]))
    assert len(gaps) > 8 and np.any(gaps), "nothing was found, or the network did not run in bfloat16"
    assert np.median(gaps) < MEDIAN and np.quantile(gaps, 0.95) < MOST, (np.median(gaps), np.quantile(gaps, 0.95))
