"""The result: carried home from the working grid, exact through JSON, and never at odds with itself."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from organdetr_monai.detections import Detections, Model, OrganDetection
from organdetr_monai.errors import InputError
from organdetr_monai.geometry import box_to_oriented, oriented_to_box
from tests.affines import affines, boxes_in, scans
from tests.results import BOXES, OBLIQUE, ORGANS, SHAPE, STRAIGHT, make_result


def test_present_absent_and_truncated():
    result = make_result()
    assert [entry.status for entry in result.organs] == ["present", "present", "absent", "present", "absent"]
    assert [entry.id for entry in result.organs] == [1, 2, 3, 4, 5]
    assert result["liver"].truncated == ("right",)  # the array grows to the patient's left
    assert result["portal_vein_and_splenic_vein"].truncated == ("superior",)
    assert result["kidney_left"].truncated == ()
    assert result["kidney_left"].box_voxel == (25.25, 15, 5, 33, 24, 11)
    spleen, colon = result["spleen"], result["colon"]
    assert (spleen.score, spleen.box, spleen.box_voxel, spleen.truncated) == (0.31, None, None, ())
    assert colon.score is None  # nothing was proposed: no score is made up
    assert [entry.organ for entry in result.present] == ["liver", "kidney_left", "portal_vein_and_splenic_vein"]


def test_millimetres_by_hand():
    box = make_result()["kidney_left"].box
    np.testing.assert_allclose(box.min, [-30 + 1.5 * 24.75, -40 + 2 * 14.5, -50 + 3 * 4.5])
    np.testing.assert_allclose(box.max, [-30 + 1.5 * 32.5, -40 + 2 * 23.5, -50 + 3 * 10.5])


def test_best_of_several_boxes_of_an_organ():
    result = make_result(boxes=[BOXES[0], BOXES[1]], scores=[0.6, 0.9], labels=[1, 1])
    assert result["liver"].score == 0.9 and result["liver"].box_voxel == tuple(BOXES[1])


def test_thresholds_for_each_organ():
    thresholds = dict.fromkeys(ORGANS, 0.5) | {"spleen": 0.3, "liver": 0.98}
    result = make_result(threshold=thresholds)
    assert result["spleen"].status == "present" and result["liver"].status == "absent"
    assert make_result(threshold=0.97)["liver"].status == "present"  # from the threshold up
    with pytest.raises(InputError, match="threshold for 'colon'"):
        make_result(threshold={key: 0.5 for key in ORGANS[:-1]}, boxes=[BOXES[0]], scores=[0.9], labels=[5])


def test_boxes_are_clipped_and_one_in_the_padding_is_not_there():
    result = make_result(boxes=[[-9, -9, -9, 99, 99, 99], [50, 50, 50, 60, 60, 60]], scores=[1, 1], labels=[1, 2])
    assert result["liver"].box_voxel == (0, 0, 0, *SHAPE)
    assert result["liver"].truncated == ("left", "right", "anterior", "posterior", "inferior", "superior")
    assert result["kidney_left"].status == "absent" and result["kidney_left"].score == 1


def test_default_tolerance_is_a_working_voxel():
    near = [[0.9, 5, 5, 20, 20, 12]]  # 1.35 mm from the end; the working grid's largest voxel size is 3 mm
    only = {"boxes": near, "scores": [1], "labels": [1]}
    assert make_result(**only, truncation_tolerance=None)["liver"].truncated == ("right",)
    assert make_result(**only, truncation_tolerance=1.3)["liver"].truncated == ()


@given(scan=scans(), working=affines(oblique=False))
def test_boxes_come_home_from_the_working_grid(scan, working):
    affine, shape, box = scan
    straight = affine.copy()
    straight[:3, :3] = working[:3, :3]  # a working grid parallel to the scan, other spacing, axes and origin
    there = oriented_to_box(box_to_oriented(box, straight), working)
    result = Detections.from_boxes(
        [there], [0.5], [1], organs=["x"], working_affine=working, affine=straight, shape=shape, model=Model("m", "1")
    )
    np.testing.assert_allclose(result["x"].box_voxel, box, atol=1e-4)


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE])
def test_json_round_trip_is_exact(tmp_path, affine):
    result = make_result(affine=affine, series_uid="1.2.3")
    path = tmp_path / "new" / "detections.json"
    result.save(path)
    assert Detections.load(path) == result
    again = json.loads(path.read_text())
    assert again == result.to_dict()
    assert again["image"] == "scans/case [1].nii.gz"  # brackets in strings survive the compact lists
    assert [p.name for p in path.parent.iterdir()] == ["detections.json"]  # no draft is left


@given(affine=affines(), data=st.data())
def test_json_round_trip_is_exact_for_any_scan(affine, data):
    shape = (200, 200, 200)
    box, score = data.draw(boxes_in(shape)), data.draw(st.floats(0, 1))
    grid = {"working_affine": affine, "affine": affine, "shape": shape}
    result = Detections.from_boxes([box], [score], [1], organs=["x"], **grid, model=Model("m", "1"), threshold=0)
    text = json.dumps(result.to_dict())
    assert json.dumps(Detections.from_dict(json.loads(text)).to_dict()) == text


def test_straight_and_oblique_boxes_have_their_own_form():
    straight = make_result().to_dict()["organs"][1]
    assert set(straight["box_mm"]) == {"min", "max"}
    assert straight["box_voxel"] == [[25.25, 33], [15, 24], [5, 11]]
    assert set(make_result(affine=OBLIQUE).to_dict()["organs"][1]["box_mm"]) == {"center", "size", "orientation"}


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "detections.json"
    make_result().save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        make_result(image="other").save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_select_keeps_ids_and_equality_sees_differences():
    result = make_result()
    chosen = result.select(["spleen", "liver"])
    assert [(entry.organ, entry.id) for entry in chosen.organs] == [("spleen", 3), ("liver", 1)]
    assert chosen != result and make_result() == result
    with pytest.raises(InputError, match="'heart'"):
        result.select(["heart"])


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [1, 2, 3, 6]},
        {"labels": [0, 2, 3, 4]},
        {"labels": [1, 2, 3]},
        {"scores": [0.9, 0.9, np.nan, 0.9]},
        {"scores": [1.7, 0.9, 0.9, 0.9]},
        {"boxes": [[0, 0, 0, np.nan, 1, 1]] * 4},
        {"shape": (0, 30, 20)},
        {"organs": ("liver", "liver", "spleen", "colon", "heart")},
    ],
)
def test_bad_arrays_are_refused(change):
    with pytest.raises(InputError):
        make_result(**change)


def _set(document, value, *keys):
    *way, last = keys
    for key in way:
        document = document[key]
    document[last] = value


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("format",), "coco"),
        (("version",), 2),
        (("space",), "RAS"),
        (("units",), "cm"),
        (("shape",), [40, 30]),
        (("shape",), [10, 10, 10]),  # the boxes leave it
        (("affine_ras", 0, 3), 31.0),  # 1 mm beside the boxes
        (("model",), None),
        (("organs", 0, "id"), 2),  # twice
        (("organs", 0, "id"), "one"),
        (("organs", 0, "status"), "maybe"),
        (("organs", 0, "score"), None),
        (("organs", 0, "score"), 1.1),
        (("organs", 0, "box_voxel"), None),
        (("organs", 0, "box_mm", "min"), [0, 0, 0]),
        (("organs", 0, "box_mm"), {}),
        (("organs", 0, "center_mm"), [0, 0]),
        (("organs", 0, "truncated"), ["top"]),
        (("organs", 2, "status"), "present"),  # has no box
        (("organs", 1, "status"), "absent"),  # has one
    ],
)
def test_documents_at_odds_with_themselves_are_refused(keys, value):
    document = copy.deepcopy(make_result().to_dict())
    _set(document, value, *keys)
    with pytest.raises(InputError):
        Detections.from_dict(document)


@pytest.mark.parametrize("key", ["affine_ras", "shape", "organs", "model"])
def test_missing_keys_are_named(key):
    document = make_result().to_dict()
    del document[key]
    with pytest.raises(InputError, match=key):
        Detections.from_dict(document)


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "cut.json"
    path.write_text('{"format": "organdetr-')
    with pytest.raises(InputError, match=r"cut\.json"):
        Detections.load(path)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"cut\.json"):
        Detections.load(path)
    with pytest.raises(InputError, match=r"none\.json"):
        Detections.load(tmp_path / "none.json")


def test_an_entry_checks_itself():
    box = box_to_oriented(BOXES[0], STRAIGHT)
    good = {"organ": "liver", "id": 1, "status": "present", "score": 0.5, "box_voxel": tuple(BOXES[0]), "box": box}
    OrganDetection(**good)
    for change in ({"organ": ""}, {"id": 0}, {"box": None}, {"score": -0.1}, {"box_voxel": (0, 0, 0, 0, 1, 1)}):
        with pytest.raises(InputError):
            OrganDetection(**{**good, **change})
    with pytest.raises(InputError, match="in that order"):
        OrganDetection(**good, truncated=("right", "left"))


def test_results_import_no_heavy_library():
    import subprocess
    import sys

    code = "import sys, organdetr_monai.detections; print({'torch', 'monai', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
