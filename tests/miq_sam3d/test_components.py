"""Instances of a semantic mask are its connected components, kind by kind."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from organdetr_monai.errors import InputError
from organdetr_monai.miq_sam3d.components import check_min_volume, label_components


def mask() -> np.ndarray:
    values = np.zeros((12, 10, 8), np.uint8)
    values[1:4, 1:4, 1:4] = 2
    values[4, 4, 4] = 2  # touches by a corner: 26-connectivity
    values[8:11, 1:3, 1:3] = 2
    values[1:3, 7:9, 5:7] = 3
    values[3, 7:9, 5:7] = 2  # another kind beside it
    values[9, 8, 6] = 3  # a speck
    values[6, 6, 6] = 1  # no kind
    return values


def test_instances_are_the_connected_components():
    ids, kinds = label_components(mask(), {2: 1, 3: 2}, voxel_volume=1.0, min_volume=0)
    assert kinds.tolist() == [1, 1, 1, 2, 2]
    assert set(np.unique(ids)) == {0, 1, 2, 3, 4, 5}
    for value, kind in ((2, 1), (3, 2)):
        expected, count = ndimage.label(mask() == value, np.ones((3, 3, 3)))
        of_kind = np.flatnonzero(kinds == kind) + 1
        assert len(of_kind) == count
        assert {np.flatnonzero(ids == k).tobytes() for k in of_kind} == {
            np.flatnonzero(expected == k).tobytes() for k in range(1, count + 1)
        }


def test_specks_are_dropped_by_volume_in_mm():
    ids, kinds = label_components(mask(), {2: 1, 3: 2}, voxel_volume=3.0, min_volume=12)  # 4 voxels and more
    assert kinds.tolist() == [1, 1, 1, 2] and ids[9, 8, 6] == 0
    assert [int((ids == k).sum()) for k in (1, 2, 3, 4)] == [28, 4, 12, 8]
    ids, kinds = label_components(mask(), {2: 1, 3: 2}, voxel_volume=3.0, min_volume=36.1)
    assert kinds.tolist() == [1] and ids.max() == 1


def test_a_lesion_of_one_voxel_stays_where_asked_for():
    ids, kinds = label_components(mask(), {3: 1}, voxel_volume=1.0, min_volume=0)
    assert ids[9, 8, 6] == 2 and kinds.tolist() == [1, 1]


def test_a_mask_without_lesions_has_no_instances():
    ids, kinds = label_components(np.zeros((4, 4, 4), np.uint8), {2: 1}, voxel_volume=1.0)
    assert not ids.any() and kinds.shape == (0,)


@pytest.mark.parametrize("volume", [-1, float("nan"), float("inf")])
def test_least_volume_must_be_one(volume):
    with pytest.raises(InputError, match="least volume"):
        check_min_volume(volume)
