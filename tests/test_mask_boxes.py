"""Boxes from masks: [min, max + 1), every organ, however the array lies in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from organdetr_monai.errors import InputError
from organdetr_monai.geometry import boxes_from_mask, remove_stray_voxels
from tests.affines import flip_flags, orders

small_masks = hnp.arrays(
    np.uint8, st.tuples(*[st.integers(1, 7)] * 3), elements=st.integers(0, 5), fill=st.integers(0, 5)
)


def by_scipy(mask):
    found = [(i, s) for i, s in enumerate(ndimage.find_objects(mask), start=1) if s is not None]
    boxes = [[*(a.start for a in s), *(a.stop for a in s)] for _, s in found]
    return np.array(boxes, dtype=float).reshape(-1, 6), np.array([i for i, _ in found], dtype=int)


@given(mask=small_masks, order=orders, flips=flip_flags, dtype=st.sampled_from(["u1", "i2", "u2", "i4", "i8", ">i2"]))
def test_as_scipy_finds_them_in_any_memory_order(mask, order, flips, dtype):
    boxes, present = by_scipy(mask)
    axes = tuple(np.flatnonzero(flips))
    view = np.ascontiguousarray(mask.astype(dtype).transpose(order)).transpose(np.argsort(order))
    for array in (
        view,
        np.asfortranarray(view),
        np.repeat(view, 2, axis=1)[:, ::2],
        np.flip(np.flip(view, axes).copy(), axes),
    ):
        found, ids = boxes_from_mask(array)
        np.testing.assert_array_equal(found, boxes)
        np.testing.assert_array_equal(ids, present)


def test_one_voxel_has_size_one():
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1, 2, 3] = 7
    boxes, present = boxes_from_mask(mask)
    assert boxes.tolist() == [[1, 2, 3, 2, 3, 4]] and present.tolist() == [7]
    assert boxes.dtype == np.float64


def test_ids_keep_their_order_and_absent_ones_have_no_box():
    mask = np.zeros((3, 3, 3), np.int16)
    mask[0], mask[2] = 4, 2
    boxes, present = boxes_from_mask(mask, [9, 4, 2])
    assert present.tolist() == [4, 2] and boxes[:, 0].tolist() == [0, 2]


def test_empty_and_boolean_masks():
    boxes, present = boxes_from_mask(np.zeros((2, 3, 4), np.uint8))
    assert boxes.shape == (0, 6) and present.shape == (0,)
    boxes, present = boxes_from_mask(np.ones((2, 3, 4), bool))
    assert boxes.tolist() == [[0, 0, 0, 2, 3, 4]] and present.tolist() == [1]


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((2, 2, 2)),  # floats: rounding is not ours to do
        np.zeros((2, 2), np.uint8),
        np.full((2, 2, 2), -1),
        np.full((2, 2, 2), 70_000),
        np.zeros((0, 2, 2), np.uint8),
    ],
)
def test_bad_masks_are_refused(mask):
    with pytest.raises(InputError):
        boxes_from_mask(mask)


def test_bad_ids_are_refused():
    for ids in ([0], [1, 1]):
        with pytest.raises(InputError, match="ids"):
            boxes_from_mask(np.zeros((2, 2, 2), np.uint8), ids)


def organ_with_speck(speck: int) -> np.ndarray:
    mask = np.zeros((40, 30, 30), np.uint8)
    mask[2:14, 2:14, 2:14] = 3  # 1728 voxels
    mask[30 : 30 + speck, 5, 5] = 3
    return mask


def test_specks_go_and_the_box_shrinks():
    mask = organ_with_speck(8)
    before = mask.copy()
    cleaned = remove_stray_voxels(mask)
    np.testing.assert_array_equal(mask, before)  # the caller's mask is not touched
    assert boxes_from_mask(mask)[0].tolist() == [[2, 2, 2, 38, 14, 14]]
    assert boxes_from_mask(cleaned)[0].tolist() == [[2, 2, 2, 14, 14, 14]]
    assert cleaned.dtype == mask.dtype


def test_real_parts_stay():
    mask = organ_with_speck(9)
    np.testing.assert_array_equal(remove_stray_voxels(mask), mask)
    assert remove_stray_voxels(mask, max_voxels=9).sum() == 3 * 1728


def test_thin_and_small_organs_keep_their_box():
    mask = np.zeros((30, 30, 30), np.uint8)
    mask[np.arange(5, 25), np.arange(5, 25), np.arange(5, 25)] = 1  # a diagonal thread: voxels touch by corners only
    mask[0, 0, :3] = mask[0, 0, 6:12] = 2  # two pieces of like size
    mask[20, 2, 2] = 4  # all there is of it
    np.testing.assert_array_equal(remove_stray_voxels(mask), mask)


def test_other_organs_in_the_same_place_are_not_touched():
    mask = organ_with_speck(2)
    mask[31:33, 6:20, 5:20] = 5
    cleaned = remove_stray_voxels(mask, [3])
    np.testing.assert_array_equal(cleaned == 5, mask == 5)
    assert (cleaned == 3).sum() == 1728


@given(mask=small_masks)
def test_no_organ_is_lost(mask):
    cleaned = remove_stray_voxels(mask, max_voxels=8, max_fraction=0.99)
    np.testing.assert_array_equal(boxes_from_mask(cleaned)[1], boxes_from_mask(mask)[1])
    assert ((cleaned == mask) | (cleaned == 0)).all()
