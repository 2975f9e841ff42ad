"""ROIs as labels: read wherever they come from, and as good as a mask where boxes are all that is asked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose

from organdetr_monai.data.datalist import load_datalist
from organdetr_monai.data.match import MatchImaged
from organdetr_monai.data.rois import LoadMaskOrRoisd, TruthFromOutlinesd, outline_boxes, read_rois
from organdetr_monai.data.truth import BoxesFromMaskd, TruthBoxesd, exact_boxes, outline_organs
from organdetr_monai.errors import InputError
from organdetr_monai.geometry import OrientedBox, box_to_oriented
from organdetr_monai.writers.slicer import markups
from tests.affines import rotation, scans
from tests.data.scan_files import write
from tests.results import OBLIQUE, ORGANS, SHAPE, STRAIGHT, make_result


def save(path, document):
    path.write_text(json.dumps(document))
    return path


def roi(name="liver", **changes):
    return {"type": "ROI", "name": name, "center": [1, 2, 3], "size": [10, 20, 30], **changes}


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE])
def test_our_own_markups_come_back_as_the_boxes_they_were(tmp_path, affine):
    result = make_result(affine=affine)
    boxes = read_rois(save(tmp_path / "a.json", markups(result)), ORGANS)
    assert sorted(boxes) == [entry.id for entry in result.present]
    for entry in result.present:
        found = boxes[entry.id]
        assert np.allclose(found.center, entry.box.center) and np.allclose(found.size, entry.box.size)
        assert np.allclose([found.min, found.max], [entry.box.min, entry.box.max])


def test_a_renamed_node_is_known_by_its_control_point_and_any_spelling(tmp_path):
    document = markups(make_result())
    for k, entry in enumerate(document["markups"]):
        entry["name"] = f"Detection ROI - {k}"
    document["markups"][1]["controlPoints"][0]["label"] = "Left Kidney"
    document["markups"].append(roi("lesion"))
    document["markups"].append({"type": "Fiducial", "controlPoints": []})
    assert sorted(read_rois(save(tmp_path / "a.json", document), ORGANS)) == [1, 2, 4]


def test_ras_and_lps_name_the_same_place(tmp_path):
    turn = rotation([0.2, 0.3, -0.1])
    lps = roi(orientation=turn.reshape(-1).tolist(), coordinateSystem="LPS")
    flip = np.array([-1, -1, 1])
    ras = {**lps, "coordinateSystem": "RAS", "center": [-1, -2, 3]}
    ras["orientation"] = (flip[:, None] * turn).reshape(-1).tolist()
    a, b = (read_rois(save(tmp_path / "a.json", {"markups": [entry]}), ORGANS)[1] for entry in (lps, ras))
    assert np.allclose(a.center, b.center) and np.allclose(a.orientation, b.orientation)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "no markups document"),
        ({"markups": []}, "no ROI of an organ"),
        ({"markups": [roi("lesion")]}, "lesion"),
        ({"markups": [roi(), roi("Liver")]}, "two ROIs of liver"),
        ({"markups": [roi(size=[1, 0, 1])]}, "has the size"),
        ({"markups": [roi(size=[1, None, 1])]}, "no usable center"),
        ({"markups": [roi(orientation=[1, 0, 0, 1, 0, 0, 0, 0, 1])]}, "no usable center"),
        ({"markups": [roi(coordinateUnits="um")]}, "'um'"),
        ({"markups": [roi(coordinateSystem="IJK")]}, "'IJK'"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, document, message):
    with pytest.raises(InputError, match=message):
        read_rois(save(tmp_path / "a.json", document), ORGANS)


@given(scans())
def test_a_box_drawn_on_a_scan_is_that_box_on_any_grid_of_the_scan(scan):
    affine, _, box = scan
    organs, found = exact_boxes(outline_boxes({3: box_to_oriented(box, affine)}), affine)
    assert organs.tolist() == [3]
    assert np.allclose(found[0], box, atol=1e-6 * np.abs(affine[:3, 3]).max() + 1e-6)


@given(st.tuples(*[st.floats(-0.17, 0.17)] * 3))
def test_a_turned_scan_widens_a_box_as_a_round_organ_and_less_than_its_corners(angles):
    box = OrientedBox(np.zeros(3), np.array([40.0, 60.0, 90.0]), np.eye(3))
    turned = np.eye(4)
    turned[:3, :3] = rotation(angles)
    _, found = exact_boxes(outline_boxes({1: box}), turned)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 61)] * 3, indexing="ij"), -1).reshape(-1, 3)
    ball = grid[(grid**2).sum(1) <= 1] * box.size / 2
    organ = ball @ np.linalg.inv(turned[:3, :3]).T
    assert np.allclose(found[0, 3:] - found[0, :3], np.ptp(organ, axis=0), rtol=0.05)
    corners = np.ptp((box.corners()) @ np.linalg.inv(turned[:3, :3]).T, axis=0)
    assert (found[0, 3:] - found[0, :3] <= corners + 1e-9).all()


@pytest.fixture
def case(tmp_path):
    """A scan with an organ, its mask, and the ROI around it, in two datalists."""
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 1000, SHAPE).astype(np.float32)
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:20, 8:22, 3:14] = 7
    write(tmp_path / "ct.nii.gz", image, OBLIQUE)
    write(tmp_path / "mask.nii.gz", mask, OBLIQUE)
    box = box_to_oriented([5, 8, 3, 20, 22, 14], OBLIQUE)
    drawn = roi("spleen", center=box.center.tolist(), size=box.size.tolist())
    drawn["orientation"] = box.orientation.reshape(-1).tolist()
    save(tmp_path / "rois.mrk.json", {"markups": [drawn]})
    cases = [
        {"image": "ct.nii.gz", "label": name, "annotated": ["spleen"]} for name in ("mask.nii.gz", "rois.mrk.json")
    ]
    items = []
    for name, entry in zip("ab", cases, strict=True):
        path = save(tmp_path / f"{name}.json", {"labels": {"spleen": 7}, "cases": [entry]})
        items += load_datalist(path, organs=ORGANS)
    reference = MetaTensor(torch.from_numpy(image)[None], affine=torch.from_numpy(OBLIQUE))
    return [{**item, "image": reference} for item in items]


def test_mask_and_rois_give_the_same_truth(case):
    from_mask, from_rois = (
        Compose([LoadMaskOrRoisd("label", ORGANS), TruthFromOutlinesd("label", len(ORGANS))])(item) for item in case
    )
    plain = Compose([LoadMaskOrRoisd("label", ORGANS).load_mask, TruthBoxesd("label", len(ORGANS))])(case[0])
    for truth in (from_mask, from_rois):
        assert truth["labels"].tolist() == plain["labels"].tolist() == [3]
        assert torch.allclose(truth["boxes"], plain["boxes"], atol=1e-3)
        assert torch.equal(truth["annotated"], plain["annotated"])
        assert torch.allclose(truth["spacing"], plain["spacing"])
        assert "label" not in truth and "outlines" not in truth


def test_rois_make_a_training_sample_without_a_mask(case):
    steps = [LoadMaskOrRoisd("label", ORGANS), MatchImaged("label"), BoxesFromMaskd("label", num_organs=len(ORGANS))]
    with_mask, without = (Compose(steps)(item) for item in case)
    assert (with_mask["has_mask"], without["has_mask"]) == (True, False)
    assert with_mask["label"].any() and not without["label"].any()
    assert without["label"].shape == without["image"].shape
    assert torch.allclose(with_mask["boxes"], without["boxes"], atol=1e-3)
    assert without["annotated"].tolist() == [False, False, True, False, False]


def test_outlines_of_boxes_and_of_masks_have_one_form():
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[2:5, 2:6, 1:7] = 2
    ours, theirs = outline_boxes({2: box_to_oriented([2, 2, 1, 5, 6, 7], np.eye(4))}), outline_organs(mask, np.eye(4))
    assert ours.keys() == theirs.keys() and ours["volume"].keys() == theirs["volume"].keys()
    for key in ("points", "organ"):
        assert ours[key].dtype == theirs[key].dtype and ours[key].ndim == theirs[key].ndim
    assert np.allclose(exact_boxes(ours, np.eye(4))[1], exact_boxes(theirs, np.eye(4))[1])
    assert len(exact_boxes(outline_boxes({}), np.eye(4))[0]) == 0
