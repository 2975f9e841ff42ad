"""Frames: what goes to millimetres comes back, and a scan stored another way keeps its boxes in the patient."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, given, target
from hypothesis import strategies as st

from organdetr_monai import geometry as g
from organdetr_monai.errors import InputError
from tests.affines import SIGNED_PERMUTATIONS, affines, boxes_in, flip_flags, orders, reorient, rotation, scans, shapes

VOXEL = 1e-4  # what a trip to millimetres and back may cost


# For sums in the head: voxels of 2×3×4 mm, array axes R, A, S, the first voxel's centre at RAS (10, 20, 30).
PLAIN = np.array([[2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])


def test_first_voxel_stands_around_its_centre():
    box = g.box_to_oriented([0, 0, 0, 1, 1, 1], PLAIN)
    np.testing.assert_allclose(box.center, [-10, -20, 30])
    np.testing.assert_allclose(box.size, [2, 3, 4])
    np.testing.assert_allclose(box.min, [-11, -21.5, 28])
    np.testing.assert_allclose(box.max, [-9, -18.5, 32])
    assert box.is_axis_aligned


def test_corners_of_a_voxel_are_half_a_voxel_from_where_nibabel_puts_its_index():
    ras = nib.affines.apply_affine(PLAIN, [4, 5, 6])
    np.testing.assert_allclose(g.voxel_to_lps([4.5, 5.5, 6.5], PLAIN), ras * [-1, -1, 1])


def test_oblique_box_by_hand():
    turned = np.eye(4)
    turned[:3, :3] = rotation([0, 0, np.pi / 4])
    box = g.box_to_oriented([0, 0, 0, 2, 2, 1], turned)
    assert not box.is_axis_aligned
    np.testing.assert_allclose(box.size, [2, 2, 1])  # a cube keeps its width, which two transformed corners would not
    np.testing.assert_allclose(box.max[0] - box.min[0], 2 * np.sqrt(2))
    np.testing.assert_allclose(np.ptp(box.corners(), axis=0), [2 * np.sqrt(2), 2 * np.sqrt(2), 1])


@given(scan=scans())
def test_points_return(scan):
    affine, _, box = scan
    points = box.reshape(2, 3)
    error = np.abs(g.lps_to_voxel(g.voxel_to_lps(points, affine), affine) - points).max()
    target(error)
    assert error < VOXEL


@given(scan=scans())
def test_boxes_return(scan):
    affine, _, box = scan
    error = np.abs(g.oriented_to_box(g.box_to_oriented(box, affine), affine) - box).max()
    target(error)
    assert error < VOXEL


@given(scan=scans(), tilt=st.floats(1e-9, 1e-4))
def test_boxes_return_from_almost_straight_scans(scan, tilt):
    affine, _, box = scan
    directions = np.linalg.qr(affine[:3, :3])[0]
    straight = min(SIGNED_PERMUTATIONS, key=lambda m: np.abs(m - directions).sum())
    affine[:3, :3] = rotation([tilt, -tilt, tilt]) @ straight * np.linalg.norm(affine[:3, :3], axis=0)
    oriented = g.box_to_oriented(box, affine)
    # Only float32 noise may be called straight, and then a wall moves by less than the noise moved it.
    limit = (
        VOXEL if not oriented.is_axis_aligned else VOXEL + 2 * tilt * oriented.size.max() / g.spacing_of(affine).min()
    )
    assert np.abs(g.oriented_to_box(oriented, affine) - box).max() < limit
    assert oriented.is_axis_aligned or tilt > 1e-7


@given(scan=scans())
def test_corners_of_the_oriented_box_are_the_corners_of_the_voxel_box(scan):
    affine, _, box = scan
    corners = np.array([[box[i], box[j], box[k]] for i in (0, 3) for j in (1, 4) for k in (2, 5)])
    here = g.box_to_oriented(box, affine).corners()
    distances = np.linalg.norm(here[:, None] - g.voxel_to_lps(corners, affine), axis=-1)
    assert distances.min(axis=0).max() < 1e-6 and distances.min(axis=1).max() < 1e-6


@given(scan=scans(), order=orders, flips=flip_flags)
def test_storing_the_array_another_way_keeps_the_box_in_the_patient(scan, order, flips):
    affine, shape, box = scan
    _, other = reorient(np.broadcast_to(np.int8(0), shape), affine, order, flips)
    [moved] = g.transform_boxes([box], affine, other)
    first, second = g.box_to_oriented(box, affine), g.box_to_oriented(moved, other)
    np.testing.assert_allclose(first.center, second.center, atol=1e-6)
    distances = np.linalg.norm(first.corners()[:, None] - second.corners(), axis=-1)
    assert distances.min(axis=1).max() < 1e-6
    shares = np.sort(np.abs(first.orientation), axis=0)
    if (shares[2] - shares[1]).min() > 0.3:  # clearly nearest to one patient axis each
        np.testing.assert_allclose(first.orientation, second.orientation, atol=1e-9)
        np.testing.assert_allclose(first.size, second.size, atol=1e-6)


@given(scan=scans(oblique=False))
def test_straight_scans_give_straight_boxes(scan):
    affine, _, box = scan
    oriented = g.box_to_oriented(box, affine)
    assert oriented.is_axis_aligned
    lps = g.voxel_to_lps(box.reshape(2, 3), affine)
    np.testing.assert_allclose(oriented.min, lps.min(axis=0), atol=1e-6)
    np.testing.assert_allclose(oriented.max, lps.max(axis=0), atol=1e-6)


@given(affine=affines())
def test_orientation_is_a_right_handed_frame_along_the_patient(affine):
    axes = g.box_to_oriented([0, 0, 0, 1, 2, 3], affine).orientation
    assert np.linalg.det(axes) == pytest.approx(1, abs=1e-9)
    assert (np.diag(axes) >= 0).all()


@given(affine=affines())
def test_spacing_and_axis_codes_are_nibabels(affine):
    np.testing.assert_allclose(g.spacing_of(affine), nib.affines.voxel_sizes(affine))
    axes = np.sort(np.abs(affine[:3, :3] / g.spacing_of(affine)), axis=0)
    assume((axes[2] - axes[1]).min() > 0.3)  # at odd angles there is no one right name
    assert g.axcodes_of(affine) == nib.aff2axcodes(affine)


@given(scan=scans(), start=st.tuples(*[st.integers(-50, 50)] * 3))
def test_crops_pads_and_windows_return(scan, start):
    affine, _, box = scan
    inner = affine.copy()
    inner[:3, 3] += affine[:3, :3] @ start  # as a crop (positive) or a pad (negative) moves the first voxel
    [moved] = g.transform_boxes([box], affine, inner)
    np.testing.assert_allclose(moved, box - np.tile(start, 2), atol=VOXEL)
    np.testing.assert_allclose(g.transform_boxes([moved], inner, affine)[0], box, atol=VOXEL)


@given(scan=scans(), factor=st.tuples(*[st.floats(0.2, 5)] * 3))
def test_resampling_returns_and_scales_corners(scan, factor):
    affine, _, box = scan
    coarse = affine.copy()
    coarse[:3, :3] = affine[:3, :3] * factor
    coarse[:3, 3] += affine[:3, :3] @ (np.subtract(factor, 1) / 2)  # same outer corner: half voxels differ
    [moved] = g.transform_boxes([box], affine, coarse)
    np.testing.assert_allclose(moved, box / np.tile(factor, 2), atol=VOXEL)
    np.testing.assert_allclose(g.transform_boxes([moved], coarse, affine)[0], box, atol=VOXEL)


@given(scan=scans(), other=affines(), data=st.data())
def test_a_box_on_a_turned_grid_holds_its_eight_corners_tightly(scan, other, data):
    affine, shape, box = scan
    boxes = np.stack([box, data.draw(boxes_in(shape))])
    moved = g.transform_boxes(boxes, affine, other)
    for before, after in zip(boxes, moved, strict=True):
        corners = np.array([[before[i], before[j], before[k]] for i in (0, 3) for j in (1, 4) for k in (2, 5)])
        there = g.lps_to_voxel(g.voxel_to_lps(corners, affine), other)
        np.testing.assert_allclose(after, [*there.min(axis=0), *there.max(axis=0)], atol=1e-3)


def test_float32_noise_does_not_let_a_box_grow():
    noisy = PLAIN.copy()
    noisy[:3, :3] += 1e-7
    moved = g.transform_boxes([[0, 0, 0, 500, 500, 500]], PLAIN, noisy)[0]
    np.testing.assert_allclose(moved[3:] - moved[:3], 500, atol=1e-9 * 500 + 5e-5)


def test_no_boxes_are_no_boxes():
    assert g.transform_boxes(np.zeros((0, 6)), PLAIN, PLAIN).shape == (0, 6)
    assert g.transform_boxes([], PLAIN, PLAIN).shape == (0, 6)


@given(affine=affines(), where=st.sampled_from([(0, 1), (0, 2), (1, 2)]), shear=st.floats(0.002, 0.9))
def test_shear_is_refused(affine, where, shear):
    i, j = where
    affine[:3, j] += affine[:3, i] * shear * np.linalg.norm(affine[:3, j]) / np.linalg.norm(affine[:3, i])
    with pytest.raises(InputError, match="sheared"):
        g.box_to_oriented([0, 0, 0, 1, 1, 1], affine)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (np.eye(3), "shape"),
        (np.diag([1, 1, np.nan, 1]), "not finite"),
        (np.diag([1, 0, 1, 1]), "voxel size"),
        (np.diag([1, 1, 1, 2]), "last row"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "sheared"),  # not invertible
    ],
)
def test_bad_affines_are_refused(broken, says):
    for call in (g.spacing_of, g.axcodes_of, lambda a: g.voxel_to_lps([0, 0, 0], a)):
        with pytest.raises(InputError, match=says):
            call(broken)


@pytest.mark.parametrize("box", [[0, 0, 0, 1, 1], [0, 0, 0, 1, np.inf, 1], [2, 0, 0, 1, 1, 1]])
def test_bad_boxes_are_refused(box):
    with pytest.raises(InputError):
        g.box_to_oriented(box, PLAIN)
    with pytest.raises(InputError):
        g.transform_boxes([box], PLAIN, PLAIN)


def test_oriented_boxes_check_themselves_and_stay_as_they_are():
    box = g.OrientedBox([1, 2, 3], [4, 5, 6], np.eye(3))
    assert box == g.OrientedBox((1.0, 2, 3), (4, 5, 6), np.eye(3)) and hash(box) is not None
    assert box != g.OrientedBox([1, 2, 3.5], [4, 5, 6], np.eye(3))
    with pytest.raises(ValueError, match="read-only"):
        box.center[0] = 9
    for bad in (
        ([1, 2], [1, 1, 1], np.eye(3)),
        ([1, 2, 3], [1, -1, 1], np.eye(3)),
        ([1, 2, 3], [1, 1, 1], 2 * np.eye(3)),
    ):
        with pytest.raises(InputError):
            g.OrientedBox(*bad)


def test_clipping_keeps_what_lies_inside():
    boxes = [[-5, 1, 2, 3, 4, 99], [20, 20, 20, 30, 30, 30]]
    np.testing.assert_array_equal(g.clip_box(boxes, (10, 10, 10)), [[0, 1, 2, 3, 4, 10], [10] * 6])


@pytest.mark.parametrize(
    ("box", "faces"),
    [
        ([0, 5, 5, 6, 6, 6], ("left",)),  # array axis 0 grows to the patient's right
        ([5, 5, 5, 10, 6, 6], ("right",)),
        ([5, 0, 5, 6, 6, 6], ("posterior",)),
        ([5, 5, 5, 6, 10, 6], ("anterior",)),
        ([5, 5, 0, 6, 6, 6], ("inferior",)),
        ([5, 5, 5, 6, 6, 10], ("superior",)),
        ([1, 1, 1, 9, 9, 9], ()),
        ([0, 0, 0, 10, 10, 10], g.FACES),
    ],
)
def test_faces_of_a_ras_scan(box, faces):
    assert g.truncated_faces(box, (10, 10, 10), PLAIN) == faces


def test_face_tolerance_is_in_millimetres():
    box = [5, 5, 5, 6, 9, 9]  # one voxel short of the end: 3 mm on axis 1, 4 mm on axis 2
    assert g.truncated_faces(box, (10, 10, 10), PLAIN, tolerance=2.9) == ()
    assert g.truncated_faces(box, (10, 10, 10), PLAIN, tolerance=3.0) == ("anterior",)
    assert g.truncated_faces(box, (10, 10, 10), PLAIN, tolerance=(7.9, 0, 4)) == ("superior",)


@given(affine=affines(oblique=False), shape=shapes, order=orders, flips=flip_flags, data=st.data())
def test_faces_do_not_depend_on_how_the_array_is_stored(affine, shape, order, flips, data):
    box = data.draw(boxes_in(shape))
    for axis, end in enumerate(data.draw(st.tuples(*[st.integers(0, 2)] * 3))):
        if end == 1:
            box[axis] = 0
        if end == 2:
            box[3 + axis] = shape[axis]
    array, other = reorient(np.broadcast_to(np.int8(0), shape), affine, order, flips)
    [moved] = g.transform_boxes([box], affine, other)
    here = g.truncated_faces(box, shape, affine, tolerance=1e-3)
    assert here == g.truncated_faces(moved, array.shape, other, tolerance=1e-3)
