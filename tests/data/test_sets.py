"""Each public set, read as downloaded: organs where the patient has them, cases in the right split."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from organdetr_monai.data.sets.base import parse_labels
from organdetr_monai.data.sets.sides import is_left
from organdetr_monai.errors import InputError
from organdetr_monai.organs import SETS
from tests.data import trees
from tests.data.trees import centres, run


def expected_centre(*names: str) -> np.ndarray:
    lows = np.min([np.subtract(*trees.ORGANS[name]) for name in names], axis=0)
    highs = np.max([np.add(*trees.ORGANS[name]) for name in names], axis=0)
    return (np.maximum(lows, -100) + np.minimum(highs, 100)) / 2  # the scans end at 100 mm


MERGED = {
    "colon": ("colon", "rectum"),
    "lung_left": ("lung_upper_lobe_left", "lung_lower_lobe_left"),
    "lung_right": ("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"),
    "heart": ("heart", "atrial_appendage_left"),
}


@pytest.mark.parametrize("set_name", ["abdomenct1k", "word", "totalsegmentator", "amos", "nnunet", "folder"])
def test_organs_are_where_the_patient_has_them(set_name, tmp_path):
    """Whatever the orientation of the arrays: left stays left, merged parts make one organ."""
    report, content = run(set_name, trees.TREES[set_name](tmp_path / "in"), tmp_path / "out")
    organs = set(content["labels"]) & (set(trees.ORGANS) | set(MERGED))
    assert len(organs) >= 2
    assert not report.skipped
    merged = MERGED if set_name in ("word", "totalsegmentator", "folder") else {}
    merged = {**merged, "colon": ("colon",)} if set_name == "totalsegmentator" else merged
    for case in content["cases"]:
        found = centres(report.datalist, content, case)
        for organ in organs & found.keys():
            want = expected_centre(*merged.get(organ, (organ,)))
            np.testing.assert_allclose(found[organ], want, atol=8.0, err_msg=f"{case['name']} {organ}")


def test_kidneys_of_abdomenct1k_are_parted(tmp_path):
    report, content = run("abdomenct1k", trees.abdomenct1k(tmp_path / "in", cases=4), tmp_path / "out")
    for case in content["cases"]:
        found = centres(report.datalist, content, case)
        assert set(found) == set(SETS["abdomenct1k"].organs)
        assert found["kidney_left"][0] < 0 < found["kidney_right"][0]


def test_one_kidney_goes_to_its_side(tmp_path):
    """Without a fellow to compare with, the body's midline decides; the other kidney is annotated as absent."""
    source = tmp_path / "in"
    for k, kidney in enumerate(("kidney_left", "kidney_right")):
        name = f"Case_{k + 1:05d}"
        organs = ["liver", kidney, "spleen", "pancreas"]
        trees.pair(source / "Images" / f"{name}_0000.nii.gz", source / "Mask" / f"{name}.nii.gz", organs, "PLI")
    report, content = run("abdomenct1k", source, tmp_path / "out")
    sides = ("kidney_left", "kidney_right")
    for case, kidney, other in zip(content["cases"], sides, reversed(sides), strict=True):
        found = centres(report.datalist, content, case)
        assert kidney in found and other not in found
        assert other in case["annotated"]


def test_is_left_of_a_horseshoe_and_of_pieces():
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[0, 3] = 100.0  # x from 100 (right) down to -98 (left)
    horseshoe = np.zeros((100, 10, 10), bool)
    horseshoe[20:80, 4:6, 4:6] = True
    left = is_left(horseshoe, affine, lambda: 1.0)
    assert left.sum() == (~left).sum()
    # A large organ on the right that reaches over the middle plane stays whole; a crumb goes with the nearer organ.
    pair = np.zeros((100, 10, 10), bool)
    pair[5:62, 3:8, 3:8] = True
    pair[80:95, 3:6, 3:6] = True
    pair[98, 0, 0] = True
    sides = np.zeros(pair.shape, bool)
    sides[pair] = is_left(pair, affine, lambda: pytest.fail("two organs need no midline"))
    assert not sides[5:62].any()
    assert sides[98, 0, 0] and sides[80:95].sum() == pair[80:95].sum()


@pytest.mark.parametrize("release", [1, 2])
def test_totalsegmentator_releases(release, tmp_path):
    """Heart and lungs come out whole from either release; other fields of view are left out, own splits are kept."""
    report, content = run("totalsegmentator", trees.totalsegmentator(tmp_path / "in", release), tmp_path / "out")
    assert [case["split"] for case in content["cases"]] == ["train", "val", "test"]
    assert "1 scans of other fields of view" in report.notes[0]
    for case in content["cases"]:
        found = centres(report.datalist, content, case)
        assert {"heart", "lung_left", "lung_right"} <= set(found)
        assert "gallbladder" in case["annotated"] and "gallbladder" not in found  # looked for, absent
        assert "trachea" not in case["annotated"]  # has no file: nobody looked
        assert "urinary_bladder" in case["truncated"] and "liver" not in case["truncated"]


def test_totalsegmentator_names_the_study_types_it_found(tmp_path):
    source = trees.totalsegmentator(tmp_path / "in", cases=1)
    with pytest.raises(InputError, match="ct head"):
        run("totalsegmentator", source, tmp_path / "out")


def test_amos_takes_cts_only_and_labels_in_place(tmp_path):
    report, content = run("amos", trees.amos(tmp_path / "in"), tmp_path / "out")
    assert [case["name"] for case in content["cases"]] == ["amos_0001", "amos_0004", "amos_0500", "amos_0008"]
    # Unlabelled test scans are no cases; the labelled held-out part becomes the test.
    assert {case["name"]: case["split"] for case in content["cases"]}["amos_0008"] == "test"
    assert report.counts["val"] == 1
    assert "imagesTs left out" in report.notes[0]
    assert not list((tmp_path / "out" / "labels").iterdir())
    assert content["labels"]["inferior_vena_cava"] == 9


def test_own_splits_are_kept_where_all_three_exist(tmp_path):
    _, content = run("amos", trees.amos(tmp_path / "in", test_labels=True), tmp_path / "out")
    splits = {case["name"]: case["split"] for case in content["cases"]}
    assert splits == {
        f"amos_{n:04d}": s for n, s in ((1, "train"), (4, "train"), (500, "train"), (8, "val"), (9, "test"))
    }


def test_verse_releases(tmp_path):
    report, content = run("verse", trees.verse(tmp_path / "in"), tmp_path / "out")
    cases = {case["name"]: case for case in content["cases"]}
    assert set(cases) == {
        *("sub-verse004", "sub-verse005", "sub-verse082", "sub-gl003_dir-ax", "sub-gl003_dir-sag"),
        *("sub-verse500_split-verse290", "sub-verse600_dir-ax"),
    }
    assert cases["sub-verse004"]["split"] == "test", "what one release tests on is not trained on"
    assert "verse20test" in cases["sub-verse004"]["image"] and "verse20test" in cases["sub-verse004"]["label"]
    assert cases["sub-verse600_dir-ax"]["split"] == "val"
    assert "both releases" in report.notes[0]
    found = centres(report.datalist, content, cases["sub-verse005"])
    assert set(found) == {"vertebrae_L1", "vertebrae_L2", "vertebrae_L5"}  # L6 and T13 are dropped


def test_verse_challenge_files(tmp_path):
    _, content = run("verse", trees.verse_flat(tmp_path / "in"), tmp_path / "out")
    assert len(content["cases"]) == 3
    assert all(case["label"].endswith("_seg.nii.gz") for case in content["cases"])


@pytest.mark.parametrize("version", [1, 2])
def test_nnunet_versions(version, tmp_path):
    _, content = run("nnunet", trees.nnunet(tmp_path / "in", version), tmp_path / "out")
    assert content["labels"] == {"liver": 1, "kidney_left": 2, "tumour": 3}
    assert content["cases"][0]["image"].endswith("imagesTr/a_001_0000.nii.gz")


def test_decathlon_merges_by_label_map(tmp_path):
    source = trees.decathlon(tmp_path / "in")
    report, content = run("decathlon", source, tmp_path / "out")
    assert content["labels"] == {"liver": 1, "cancer": 2}
    assert report.notes == ("1 test scans left out: they have no labels.",)
    _, content = run("decathlon", source, tmp_path / "merged", label_map={"liver": [1, 2]})
    label = nib.load(tmp_path / "merged" / content["cases"][0]["label"])
    assert content["labels"] == {"liver": 1}
    assert set(np.unique(np.asarray(label.dataobj))) == {0, 1}


def test_folder_with_partial_annotation_and_other_formats(tmp_path):
    itk = pytest.importorskip("itk")
    source = trees.folder(tmp_path / "in", cases=3)
    image = nib.load(source / "images" / "p0.nii.gz")
    for folder, name in (("images", "p0"), ("labels", "p0_seg")):
        path = source / folder / f"{name}.nii.gz"
        itk.imwrite(itk.imread(str(path)), str(source / folder / f"{name}.nrrd"))
        path.unlink()
    labels = {"liver": 1, "spleen": 9}
    report, content = run("folder", source, tmp_path / "out", label_map={"labels": labels, "annotated": "present"})
    assert not report.skipped
    assert all(case["annotated"] == ["liver"] for case in content["cases"])
    _, merged = run("folder", source, tmp_path / "merged")
    case = merged["cases"][0]
    assert case["image"].endswith("p0.nrrd")
    written = nib.load(tmp_path / "merged" / case["label"])
    np.testing.assert_allclose(written.affine, image.affine, atol=1e-4)
    assert case["annotated"] == ["liver", "kidney_left", "kidney_right", "colon"]


@pytest.mark.parametrize(
    "labels, message",
    [
        ({"a": [1, 2], "b": 2}, "stands for"),
        ({"a": "b"}, "not a name"),
        ({"background": 0}, "no organ"),
        ({"a": -1}, "-1"),
    ],
)
def test_label_maps_that_cannot_be(labels, message):
    with pytest.raises(InputError, match=message):
        parse_labels(labels, "here")


def test_label_maps_in_both_directions():
    assert parse_labels({"0": "background", "2": "Left Kidney", "1": "liver"}, "") == {
        "liver": (1,),
        "kidney_left": (2,),
    }
    assert parse_labels({"background": 0, "colon": [10, 13], "ignore": 14}, "") == {"colon": (10, 13)}
