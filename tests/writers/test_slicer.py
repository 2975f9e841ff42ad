"""Markups, read as Slicer does and compared with where ITK puts the voxels."""

from __future__ import annotations

import json
from itertools import product

import itk
import numpy as np
import pytest

from organdetr_monai.writers.slicer import write_slicer
from tests.results import OBLIQUE, SHAPE, STRAIGHT, make_result


def itk_image(affine):
    """An ITK image on the grid of an affine; ITK's world is LPS, and so is a different road to the same place."""
    image = itk.Image[itk.UC, 3].New()
    image.SetRegions(list(SHAPE))
    image.Allocate()
    lps = np.diag([-1.0, -1, 1]) @ affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:, 3].tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:, :3] / spacing)))
    return image


def to_patient(image, corner):
    index = itk.ContinuousIndex[itk.D, 3]()
    for axis, value in enumerate(corner):
        index.SetElement(axis, float(value) - 0.5)  # ITK's index is 0 at the first voxel's centre
    return list(image.TransformContinuousIndexToPhysicalPoint(index))


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE])
def test_rois_stand_on_the_voxel_corners(tmp_path, affine):
    result = make_result(affine=affine)
    write_slicer(result, tmp_path / "a.mrk.json")
    document = json.loads((tmp_path / "a.mrk.json").read_text())
    assert document["@schema"].endswith("markups-schema-v1.0.3.json#")
    assert [roi["name"] for roi in document["markups"]] == [entry.organ for entry in result.present]
    image = itk_image(affine)
    for roi, entry in zip(document["markups"], result.present, strict=True):
        assert (roi["type"], roi["roiType"]) == ("ROI", "Box")
        assert (roi["coordinateSystem"], roi["coordinateUnits"]) == ("LPS", "mm")
        axes = np.reshape(roi["orientation"], (3, 3))  # row by row; columns are the ROI's axes
        assert np.linalg.det(axes) == pytest.approx(1)
        signs = np.array(list(product((-0.5, 0.5), repeat=3)))
        roi_corners = roi["center"] + signs * roi["size"] @ axes.T
        box = np.reshape(entry.box_voxel, (2, 3))
        voxel_corners = [[box[i, 0], box[j, 1], box[k, 2]] for i, j, k in product((0, 1), repeat=3)]
        there = [to_patient(image, corner) for corner in voxel_corners]
        distances = np.linalg.norm(roi_corners[:, None] - np.array(there), axis=-1)
        assert distances.min(axis=0).max() < 1e-6 and distances.min(axis=1).max() < 1e-6
        assert roi["controlPoints"][0]["position"] == roi["center"]


def test_straight_boxes_have_slicers_own_axes(tmp_path):
    write_slicer(make_result(), tmp_path / "a.mrk.json")
    roi = json.loads((tmp_path / "a.mrk.json").read_text())["markups"][0]
    assert roi["orientation"] == [-1, 0, 0, 0, -1, 0, 0, 0, 1]  # RAS written in LPS


def test_score_and_cut_faces_are_told_and_colours_differ(tmp_path):
    write_slicer(make_result(), tmp_path / "a.mrk.json")
    rois = json.loads((tmp_path / "a.mrk.json").read_text())["markups"]
    assert rois[0]["controlPoints"][0]["description"] == "score 0.970; reaches the scan's end: right"
    colors = {tuple(roi["display"]["selectedColor"]) for roi in rois}
    assert len(colors) == len(rois) and all(0 <= c <= 1 for color in colors for c in color)


def test_nothing_found_is_an_empty_list(tmp_path):
    write_slicer(make_result(threshold=1.0), tmp_path / "a.mrk.json")
    assert json.loads((tmp_path / "a.mrk.json").read_text())["markups"] == []
