"""Crops written with nibabel, read with ITK: the same voxels at the same place in the patient."""

from __future__ import annotations

import itk
import nibabel as nib
import numpy as np
import pytest

from organdetr_monai.errors import InputError
from organdetr_monai.writers.crops import crop_slices, write_crops
from tests.results import BOXES, OBLIQUE, SHAPE, STRAIGHT, make_result


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(-1024, 2000, SHAPE, dtype=np.int16)


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE])
def test_voxels_stay_where_they_are(tmp_path, image, affine):
    whole = tmp_path / "whole.nii.gz"
    nib.save(nib.Nifti1Image(image, affine), whole)
    scan = itk.imread(str(whole))
    written = write_crops(make_result(affine=affine), image, tmp_path / "crops", margin=6.0)
    assert sorted(written) == ["kidney_left", "liver", "portal_vein_and_splenic_vein"]
    assert sorted(p.name for p in (tmp_path / "crops").iterdir()) == sorted(f"{organ}.nii.gz" for organ in written)
    for path in written.values():
        crop = itk.imread(str(path))
        voxels = itk.array_from_image(crop)  # z, y, x
        assert voxels.dtype == np.int16
        last = [int(n) - 1 for n in crop.GetLargestPossibleRegion().GetSize()]
        for index in ([0, 0, 0], last):
            point = crop.TransformIndexToPhysicalPoint(index)
            where = np.array(list(scan.TransformPhysicalPointToContinuousIndex(point)))
            np.testing.assert_allclose(where, where.round(), atol=1e-3)
            assert voxels[tuple(index[::-1])] == image[tuple(where.round().astype(int))]


def test_crop_holds_box_and_margin():
    result = make_result()
    assert crop_slices(result["kidney_left"], result, margin=0) == (slice(25, 33), slice(15, 24), slice(5, 11))
    # 6 mm are 4, 3 and 2 voxels; the scan ends at 40, 30 and 20
    assert crop_slices(result["kidney_left"], result, margin=6) == (slice(21, 37), slice(12, 27), slice(3, 13))
    assert crop_slices(result["liver"], result, margin=6) == (slice(0, 24), slice(2, 23), slice(2, 15))
    assert crop_slices(result["liver"], result, margin=1000) == tuple(slice(0, n) for n in SHAPE)


def test_chosen_organs_only_and_absent_ones_passed_over(tmp_path, image):
    assert list(write_crops(make_result(), image, tmp_path, organs=["spleen", "liver"])) == ["liver"]
    with pytest.raises(InputError, match="heart"):
        write_crops(make_result(), image, tmp_path, organs=["heart"])


def test_an_organ_name_is_no_path(tmp_path, image):
    result = make_result(organs=("prostate/uterus",), boxes=[BOXES[1]], scores=[1], labels=[1])
    [path] = write_crops(result, image, tmp_path / "crops").values()
    assert path == tmp_path / "crops" / "prostate_uterus.nii.gz" and path.is_file()


def test_bad_input_is_refused(tmp_path, image):
    with pytest.raises(InputError, match="shape"):
        write_crops(make_result(), image[1:], tmp_path)
    for margin in (-1, np.nan):
        with pytest.raises(InputError, match="margin"):
            write_crops(make_result(), image, tmp_path, margin=margin)
    with pytest.raises(InputError, match="bool"):
        write_crops(make_result(), image > 0, tmp_path)
