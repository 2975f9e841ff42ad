"""What annotators submitted becomes a datalist that training reads."""

from __future__ import annotations

import json

import numpy as np
import pytest

from organdetr_monai.data.datalist import load_datalist
from organdetr_monai.errors import InputError
from organdetr_monai.monai_label.submissions import Submission, case_of, write_datalist
from tests.data.scan_files import write

ORGANS = ["liver", "kidney_left", "spleen"]
ROI = {"type": "ROI", "name": "spleen", "center": [0, 0, 0], "size": [9, 9, 9]}


@pytest.fixture
def submit(tmp_path):
    """Factory of submissions: a mask with the given values, or ROIs."""
    made = iter(range(100))

    def make(label, *, shape=(6, 5, 4), **info) -> Submission:
        k = next(made)
        image = write(tmp_path / f"scan_{k}.nii.gz", np.zeros((6, 5, 4), np.int16), np.eye(4))
        if isinstance(label, dict):
            path = tmp_path / f"{k}.json"
            path.write_text(json.dumps(label))
        else:
            mask = np.zeros(shape, np.uint8)
            mask[0, 0, : len(label)] = label
            path = write(tmp_path / f"mask_{k}.nii.gz", mask, np.eye(4))
        return Submission(str(image), str(path), info)

    return make


def listed(**values):
    return [{"name": name, "idx": value} for name, value in values.items()]


def test_without_label_info_values_are_the_models_ids(submit):
    case = case_of(submit([3, 1]), ORGANS)
    assert case["labels"] == {"liver": 1, "kidney_left": 2, "spleen": 3}
    assert case["annotated"] == ["liver", "spleen"]  # of the left kidney nothing is known


def test_label_info_says_what_the_values_mean(submit):
    case = case_of(submit([4, 2], label_info=listed(Spleen=4, tumour=2, LeftKidney=7)), ORGANS)
    assert case["labels"] == {"spleen": 4, "kidney_left": 7} and case["annotated"] == ["spleen"]


def test_annotated_organs_that_are_not_there_are_absent(submit):
    for label in ([1], {"markups": [{**ROI, "name": "liver"}]}):
        case = case_of(submit(label, annotated=["left kidney"]), ORGANS)
        assert case["annotated"] == ["liver", "kidney_left"]
        assert len(set(case["labels"].values())) == len(case["labels"])


def test_another_structure_does_not_become_an_absent_organ(submit):
    label = submit([1, 4], label_info=listed(liver=1, tumour=4), annotated=["spleen", "left kidney"])
    labels = case_of(label, ORGANS)["labels"]
    assert set(labels) == {"liver", "spleen", "kidney_left"} and labels["liver"] == 1
    assert not {labels["spleen"], labels["kidney_left"]} & {1, 4} and labels["spleen"] != labels["kidney_left"]


@pytest.mark.parametrize(
    ("label", "info", "message"),
    [
        ([0], {}, "shows no organ"),
        ([1], {"label_info": listed(liver=2)}, "shows no organ"),
        ([1], {"label_info": listed(tumour=1)}, "names no organ"),
        ([1], {"label_info": listed(liver=1, Liver=2)}, "each organ once"),
        ([1], {"label_info": listed(liver=1, spleen=1)}, "a value of its own"),
        ([1], {"label_info": [{"name": "liver"}]}, "label_info has"),
        ([1], {"annotated": ["pancreas"]}, "annotated names 'pancreas'"),
        ({"markups": []}, {}, "no ROI"),
    ],
)
def test_a_label_that_says_nothing_is_refused(submit, label, info, message):
    with pytest.raises(InputError, match=message):
        case_of(submit(label, **info), ORGANS)


def test_a_mask_of_another_grid_is_refused(submit):
    with pytest.raises(InputError, match="voxels, its image"):
        case_of(submit([1], shape=(5, 5, 5)), ORGANS)


def test_datalist_holds_what_can_be_used_and_training_reads_it(submit, tmp_path, caplog):
    submissions = [submit([1]), submit([0]), submit({"markups": [ROI]}), submit([2], label_info=listed(spleen=2))]
    path = tmp_path / "run" / "datalist.json"
    assert write_datalist(submissions, ORGANS, path, val_split=0.4) == {"train": 2, "val": 1}
    assert "shows no organ" in caplog.text
    items = [item for split in ("train", "val") for item in load_datalist(path, organs=ORGANS, split=split)]
    assert sorted(tuple(item["annotated"]) for item in items) == [(1,), (3,), (3,)]


def test_a_case_stays_on_its_side(submit, tmp_path):
    submissions = [submit([1]) for _ in range(8)]
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    write_datalist(submissions[:5], ORGANS, first, val_split=0.2)
    write_datalist(submissions[::-1], ORGANS, second, val_split=0.99)
    sides = [{c["name"]: c["split"] for c in json.loads(p.read_text())["cases"]} for p in (first, second)]
    assert list(sides[0].values()).count("val") == 1 and list(sides[1].values()).count("train") == 1
    assert all(sides[1][name] == "val" for name, side in sides[0].items() if side == "val")


def test_too_few_labels_are_refused_with_the_reasons(submit, tmp_path):
    with pytest.raises(InputError, match="1 usable labels.*shows no organ"):
        write_datalist([submit([1]), submit([0])], ORGANS, tmp_path / "a.json")
    with pytest.raises(InputError, match="val_split is 0"):
        write_datalist([submit([1]), submit([1])], ORGANS, tmp_path / "a.json", val_split=0)
    assert not (tmp_path / "a.json").exists()
