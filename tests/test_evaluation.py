"""`organdetr evaluate`: boxes of any tool against the masks of a datalist."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np

from organdetr_monai.cli import main
from organdetr_monai.data.phantom import PHANTOM_ORGANS
from organdetr_monai.detections import Detections, Model
from organdetr_monai.geometry import boxes_from_mask, remove_stray_voxels
from tests.bundles import make_bundle


def run(*argv) -> int:
    return main([str(word) for word in argv])


def datalist_of(folder, cases: int = 3):
    assert run("phantom", folder, "--cases", cases, "--spacing", "10,10,10", "--workers", 1, "--quiet") == 0
    return folder / "datalist.json"


def truth_as_prediction(folder, case: str, *, image: str | None = None, **changes) -> Detections:
    """What a perfect tool says of a phantom."""
    label = nib.load(folder / "labels" / f"{case}.nii.gz")
    boxes, ids = boxes_from_mask(remove_stray_voxels(np.asarray(label.dataobj)))
    options = {"affine": label.affine, "working_affine": label.affine, "shape": label.shape, **changes}
    return Detections.from_boxes(
        boxes,
        np.ones(len(ids)),
        ids,
        organs=PHANTOM_ORGANS,
        model=Model("perfect", "1"),
        truncation_tolerance=0.0,
        image=image,
        **options,
    )


def test_perfect_boxes_have_perfect_figures(tmp_path, capsys):
    datalist = datalist_of(tmp_path / "set")
    # Known by the image's path, by where the image would lie elsewhere, and by the file's own name.
    link = tmp_path / "link.nii.gz"
    link.symlink_to(tmp_path / "set" / "images" / "case_000.nii.gz")
    truth_as_prediction(tmp_path / "set", "case_000", image=str(link)).save(tmp_path / "p" / "x" / "detections.json")
    moved = "/elsewhere/images/case_001.nii.gz"
    truth_as_prediction(tmp_path / "set", "case_001", image=moved).save(tmp_path / "p" / "y" / "detections.json")
    truth_as_prediction(tmp_path / "set", "case_002").save(tmp_path / "p" / "images_case_002.json")
    output = tmp_path / "out"
    assert run("evaluate", tmp_path / "p", datalist, "--output", output, "--quiet") == 0
    result = json.loads((output / "metrics.json").read_text())
    assert result["num_cases"] == 3 and result["cases_without_boxes"] == []
    assert result["mAP_coco"] == result["AP75"] == result["mAR"] == result["within_20mm"] == 1.0
    assert result["wall_mean"] == result["centre_mean"] == 0.0
    out, err = capsys.readouterr()
    assert "liver" in out and err == ""
    assert (output / "metrics.csv").exists()


def test_a_missing_unreadable_or_foreign_prediction_counts_as_a_miss(tmp_path, capsys):
    datalist = datalist_of(tmp_path / "set", cases=4)
    truth_as_prediction(tmp_path / "set", "case_000").save(tmp_path / "p" / "images_case_000.json")
    (tmp_path / "p" / "images_case_001.json").write_text("{")
    foreign = np.diag([7.0, 7.0, 7.0, 1.0])
    one = truth_as_prediction(tmp_path / "set", "case_002", affine=foreign, working_affine=foreign)
    one.save(tmp_path / "p" / "images_case_002.json")
    assert run("evaluate", tmp_path / "p", datalist, "--output", tmp_path / "out") == 1
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert result["num_cases"] == 4
    assert result["cases_without_boxes"] == [f"images/case_00{k}" for k in (1, 2, 3)]
    assert result["recall50"] < 0.5
    err = capsys.readouterr().err
    assert "speaks of another grid" in err and "images_case_001.json" in err
    assert "images/case_003: There is no prediction" in err


def test_unreadable_truth_is_left_out_and_said(tmp_path, capsys):
    datalist = datalist_of(tmp_path / "set", cases=2)
    for case in ("case_000", "case_001"):
        truth_as_prediction(tmp_path / "set", case).save(tmp_path / "p" / f"images_{case}.json")
    (tmp_path / "set" / "labels" / "case_001.nii.gz").write_text("hello")
    assert run("evaluate", tmp_path / "p", datalist, "--output", tmp_path / "out") == 1
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert result["num_cases"] == 1 and result["cases_left_out"] == ["images/case_001"] and result["mAP_coco"] == 1.0
    assert "images/case_001: " in capsys.readouterr().err


def test_split_and_organs_of_an_evaluation(tmp_path, capsys):
    datalist = datalist_of(tmp_path / "set")
    splits = {case["split"]: case["image"] for case in json.loads(datalist.read_text())["cases"]}
    case = splits["test"].removeprefix("images/").removesuffix(".nii.gz")
    some = truth_as_prediction(tmp_path / "set", case).select(["liver", "heart"])
    some.save(tmp_path / "p" / f"images_{case}.json")
    arguments = ("evaluate", tmp_path / "p", datalist, "--split", "test", "--output", tmp_path / "out")
    assert run(*arguments) == 0
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(result["per_organ"]) == {"liver", "heart"}
    assert "not measured: " in capsys.readouterr().err
    assert run(*arguments, "--organs", "liver,spleen") == 0  # the spleen was not even looked for: missed
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert result["per_organ"]["liver"]["recall50"] == 1 and result["per_organ"]["spleen"]["recall50"] == 0
    assert run(*arguments, "--organs", "brain") == 2
    assert run("evaluate", tmp_path / "p", datalist, "--split", "train") == 2
    assert "split 'train'" in capsys.readouterr().err


def test_two_predictions_for_a_case_are_refused(tmp_path, capsys):
    datalist = datalist_of(tmp_path / "set")
    one = truth_as_prediction(tmp_path / "set", "case_000")
    one.save(tmp_path / "p" / "images_case_000.json")
    one.save(tmp_path / "p" / "images_case_000" / "detections.json")
    assert run("evaluate", tmp_path / "p", datalist) == 2
    assert "both for the case" in capsys.readouterr().err


def test_what_detect_writes_evaluate_reads(tmp_path, capsys):
    bundle = make_bundle(tmp_path / "bundle")
    datalist = datalist_of(tmp_path / "set")
    assert run("detect", tmp_path / "set" / "images", "--output", tmp_path / "p", "--model", bundle, "-q") == 0
    assert run("evaluate", tmp_path / "p", datalist) == 0
    assert "3 cases" in capsys.readouterr().out
