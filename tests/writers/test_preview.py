"""The picture: right things at the right side, whichever way the scan is stored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from organdetr_monai.detections import Detections, Model
from organdetr_monai.errors import InputError
from organdetr_monai.geometry import transform_boxes
from organdetr_monai.writers.appearance import color_of, title_of
from organdetr_monai.writers.preview import write_preview
from organdetr_monai.writers.views import standard_views
from tests.affines import flip_flags, orders, reorient
from tests.results import BOXES, SHAPE, STRAIGHT, make_result

HU = np.random.default_rng(0).integers(-200, 300, SHAPE).astype(np.int16)


def result_on(affine, shape, boxes) -> Detections:
    return make_result(affine=affine, shape=shape, boxes=boxes)


@given(order=orders, flips=flip_flags)
def test_views_do_not_depend_on_how_the_array_is_stored(order, flips):
    array, affine = reorient(HU, STRAIGHT, order, flips)
    moved = result_on(affine, array.shape, transform_boxes(BOXES, STRAIGHT, affine))
    for here, there in zip(standard_views(make_result(), HU), standard_views(moved, array), strict=True):
        np.testing.assert_array_equal(here.pixels, there.pixels)
        assert here.marks == there.marks and here.width == pytest.approx(there.width)
        for a, b in zip(here.boxes, there.boxes, strict=True):
            assert a.is_cut == b.is_cut
            np.testing.assert_allclose(a.edges, b.edges, atol=1e-6)


def test_views_show_the_patient_in_radiological_convention():
    axial, coronal, sagittal = standard_views(make_result(), HU)
    # STRAIGHT's axes grow to L, P and S: rows of the axial view go down to the back, columns to the patient's left.
    np.testing.assert_array_equal(axial.pixels, HU[:, :, axial.index].T)
    np.testing.assert_array_equal(coronal.pixels, HU[:, coronal.index, ::-1].T)
    np.testing.assert_array_equal(sagittal.pixels, HU[sagittal.index, :, ::-1].T)
    assert [view.marks for view in (axial, coronal, sagittal)] == [
        ("R", "A", "L", "P"),
        ("R", "S", "L", "I"),
        ("A", "S", "P", "I"),
    ]
    assert (axial.width, axial.height, coronal.height, sagittal.width) == (60, 60, 60, 60)
    liver, kidney, _ = axial.boxes
    assert (
        liver.edges == (0, 10, 30, 40) and kidney.edges[0] > 30
    )  # liver at the picture's left, left kidney at its right


@given(order=orders, flips=flip_flags)
def test_points_and_labels_lie_on_their_voxels_however_the_array_is_stored(order, flips):
    """The slices go through the first point, where the label map and the scan have one value each."""
    labels = np.arange(HU.size).reshape(SHAPE)
    points = np.array([[7, 21, 13], [30, 2, 5]])
    array, affine = reorient(labels, STRAIGHT, order, flips)
    moved = np.array([np.argwhere(array == labels[tuple(point)])[0] for point in points])
    result = result_on(affine, array.shape, transform_boxes(BOXES, STRAIGHT, affine))
    for view in standard_views(result, array.astype(float), labels=array, points=moved):
        np.testing.assert_array_equal(view.labels, view.pixels)
        (x, y, distance), (_, _, other) = view.points
        rows, columns = view.labels.shape
        row, column = int(y / view.height * rows), int(x / view.width * columns)
        assert view.labels[row, column] == labels[7, 21, 13] and distance == 0 < other


def test_air_around_the_body_is_cut_off_and_boxes_stay_on_their_organs():
    shape = (100, 80, 60)
    scan = np.full(shape, -1024, np.int16)
    scan[20:70, 30:60, 10:50] = 0  # the body
    scan[30:40, 35:45, 20:30] = 999  # an organ
    result = make_result(shape=shape, boxes=[[30, 35, 20, 40, 45, 30]], scores=[1], labels=[1])
    for view, (width, height) in zip(standard_views(result, scan), ((50, 30), (50, 40), (30, 40)), strict=True):
        assert view.pixels.shape == (height, width)
        x0, y0, x1, y1 = view.boxes[0].edges
        mm = view.width / width, view.height / height
        rows, columns = np.nonzero(view.pixels == 999)
        np.testing.assert_allclose((x0, x1), np.array([columns.min(), columns.max() + 1]) * mm[0])
        np.testing.assert_allclose((y0, y1), np.array([rows.min(), rows.max() + 1]) * mm[1])


def test_slices_cut_most_boxes():
    for view, axis in zip(standard_views(make_result(), HU), (2, 1, 0), strict=True):
        boxes = np.array([entry.box_voxel for entry in make_result().present])
        counts = [((boxes[:, axis] <= i + 0.5) & (i + 0.5 < boxes[:, 3 + axis])).sum() for i in range(SHAPE[axis])]
        assert counts[view.index] == max(counts) == sum(box.is_cut for box in view.boxes)


def test_png_shows_organ_colours_at_the_right_side(tmp_path):
    write_preview(make_result(), HU, tmp_path / "preview.png")
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    third = pixels[:, : pixels.shape[1] // 4]  # inside the axial view
    places = {}
    for organ_id in (1, 2):  # liver, left kidney
        color = np.round(np.multiply(color_of(organ_id), 255))
        places[organ_id] = np.argwhere((np.abs(third - color) < 6).all(axis=-1))
        assert len(places[organ_id]) > 100
    assert np.median(places[1][:, 1]) < np.median(places[2][:, 1])


def test_png_is_the_same_twice(tmp_path):
    for name in ("a.png", "b.png"):
        write_preview(make_result(), HU, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_many_organs_and_none_give_a_picture(tmp_path):
    rng = np.random.default_rng(1)
    start = rng.uniform(0, np.array(SHAPE) - 8, (60, 3))
    boxes = np.concatenate([start, start + rng.uniform(3, 8, (60, 3))], axis=1)
    grid = {"working_affine": STRAIGHT, "affine": STRAIGHT, "shape": SHAPE, "model": Model("m", "1")}
    many = Detections.from_boxes(
        boxes, np.full(60, 0.9), range(1, 61), organs=[f"organ_{i}" for i in range(60)], **grid
    )
    none = Detections.from_boxes([], [], [], organs=["liver"], **grid)
    for result in (many, none):
        write_preview(result, HU, tmp_path / "p.png")
        with Image.open(tmp_path / "p.png") as picture:
            picture.load()
            assert max(picture.size) < 2500


def test_long_and_thin_scans_fit(tmp_path):
    for shape in ((4, 4, 600), (200, 200, 1)):
        result = make_result(shape=shape, boxes=[[0, 0, 0, 2, 2, 1]], scores=[0.9], labels=[1])
        write_preview(result, np.zeros(shape, np.float32), tmp_path / "p.png")
        with Image.open(tmp_path / "p.png") as picture:
            assert max(picture.size) < 2500


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(InputError, match="shape"):
        write_preview(make_result(), HU[1:], tmp_path / "p.png")
    with pytest.raises(InputError, match="window"):
        write_preview(make_result(), HU, tmp_path / "p.png", window=(100, 100))


def test_colours_are_readable_on_black_and_differ():
    colors = np.array([color_of(i) for i in range(1, 118)])
    assert ((colors >= 0) & (colors <= 1)).all()
    assert (colors @ [0.2126, 0.7152, 0.0722]).min() > 0.49
    assert np.linalg.norm(colors[1:] - colors[:-1], axis=1).min() > 0.3
    assert title_of("kidney_left") == "Left kidney" and title_of("new_organ") == "new organ"
