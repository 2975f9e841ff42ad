"""The second bundle's training and evaluation as MONAI runs them, on a few coarse phantoms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from organdetr_monai.checkpoints import load_settings, load_weights
from organdetr_monai.errors import input_error
from organdetr_monai.history import load_history
from organdetr_monai.miq_sam3d import robustness
from organdetr_monai.miq_sam3d.phantoms import write_lesion_phantoms
from tests.bundles import workflow

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "miq_sam3d"
#: A network, a grid and a window that take milliseconds.
SMALL = {
    "spacing": 6.0,
    "window": [32, 32, 32],
    "hidden_dim": 24,
    "num_queries": 6,
    "samples": 1,
    "validate#samples": 2,
    "channels": [4, 8, 8, 8],
    "network_def#encoder#transformer#layers": 1,
    "network_def#encoder#transformer#hidden": 24,
    "network_def#decoder#layers": 2,
    "network_def#decoder#hidden": 24,
    "train#dataset#num_workers": 0,
    "validate#dataset#num_workers": 0,
    "max_epochs": 2,
    "val_interval": 1,
    "device": "$torch.device('cpu')",
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Six coarse phantoms: four to train on, one to validate with, one to test with."""
    folder = tmp_path_factory.mktemp("lesions")
    options = {"cases": 6, "seed": 3, "splits": (4 / 6, 1 / 6, 1 / 6), "spacing": (6.0, 6.0, 6.0)}
    return write_lesion_phantoms(folder, **options, workers=1, progress=False)


def options(datalist: Path, out: Path, **more) -> dict:
    paths = {"bundle_root": str(ROOT), "datalist": str(datalist), "ckpt_dir": str(out), "output_dir": str(out)}
    return {**SMALL, **paths, **more}


def train(datalist: Path, out: Path, **more) -> None:
    workflow(CONFIGS, "train", ["train"], run_id="training", **options(datalist, out, **more)).run()


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory):
    """Folder of a finished run of two epochs."""
    out = tmp_path_factory.mktemp("run")
    train(phantoms, out)
    return out


def test_properties_are_complete(phantoms, trained):
    assert workflow(CONFIGS, "train", ["train"], **options(phantoms, trained)).check_properties() == []
    assert workflow(CONFIGS, "eval", ["train", "evaluate"], **options(phantoms, trained)).check_properties() == []


def test_training_leaves_weights_settings_and_history(phantoms, trained):
    parser = ConfigParser(json.loads((CONFIGS / "train.json").read_text()))
    for key, value in options(phantoms, trained).items():
        parser[key] = value
    load_weights(parser.get_parsed_content("network_def"), trained / "model.pt")
    kept = {key: SMALL[key] for key in ("spacing", "window", "channels", "hidden_dim")}
    assert load_settings(trained / "model.json") == kept | {"hu_window": [-160.0, 240.0], "num_kinds": 4}
    history = load_history(trained / "history.json")
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert {"loss", "dice", "objectness", "kinds", "middles", "votes", "dice_aux"} <= set(history[0]["train"])
    assert {"pq", "union_dice", "lesion_recall", "false_positives"} <= set(history[0]["validation"])


def test_resumed_run_equals_an_uninterrupted_one(phantoms, trained, tmp_path):
    train(phantoms, tmp_path, **{"train#trainer#max_epochs": 1})
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 1
    train(phantoms, tmp_path)
    ours, theirs = (torch.load(p / "last.pt", weights_only=True)["parts"] for p in (tmp_path, trained))
    for part in ("network", "ema"):
        assert all(torch.equal(v, theirs[part][k]) for k, v in ours[part].items()), part


def test_evaluation_clicks_every_lesion_of_every_case(phantoms, trained, tmp_path, capsys, monkeypatch):
    spacings = []
    judge = robustness.evaluate_instances
    monkeypatch.setattr(robustness, "evaluate_instances", lambda *a, **k: spacings.append(a[2]) or judge(*a, **k))
    flow = workflow(
        CONFIGS,
        "eval",
        ["train", "evaluate"],
        run_id="evaluating",
        **options(phantoms, trained, output_dir=str(tmp_path), split="test"),
    )
    flow.run()
    report = json.loads((tmp_path / "test" / "metrics.json").read_text())
    (case,) = (c for c in json.loads(phantoms.read_text())["cases"] if c["split"] == "test")
    assert [c["case"] for c in report["cases"]] == [case["name"]]
    assert len(report["cases"][0]["answers"]) == 3 * len(case["kinds"]) == report["summary"]["num_answers"]
    assert {"pq", "robustness_worst", "agreement", "silent"} <= set(report["summary"])
    printed = capsys.readouterr()
    assert "lesion_recall" in printed.out
    assert "cases" in printed.err and "100%" in printed.err, "minutes without a sign of life"
    assert len(spacings) == 3 * len(case["kinds"])
    assert all(spacing == pytest.approx([6.0, 6.0, 6.0], abs=0.01) for spacing in spacings), "surfaces are in mm"


@pytest.mark.parametrize(
    ("other", "message"),
    [({"spacing": 5.0}, "with spacing 6.0"), ({"channels": [4, 8, 8, 16]}, "with channels [4, 8, 8, 8]")],
)
def test_evaluation_of_other_settings_is_refused(phantoms, trained, tmp_path, other, message):
    with pytest.raises(Exception) as caught:
        workflow(
            CONFIGS,
            "eval",
            ["train", "evaluate"],
            run_id="evaluating",
            **{**options(phantoms, trained, output_dir=str(tmp_path)), **other},
        )
    assert message in str(input_error(caught.value))


def test_scan_in_training_and_validation_is_refused(phantoms, tmp_path):
    datalist = json.loads(phantoms.read_text())
    for case in datalist["cases"]:
        del case["split"]
    path = phantoms.with_name("no_split.json")
    path.write_text(json.dumps(datalist))
    with pytest.raises(Exception) as caught:
        train(path, tmp_path)
    assert "in training and in validation" in str(input_error(caught.value))


def test_validation_without_lesions_says_so(phantoms, trained, tmp_path):
    datalist = json.loads(phantoms.read_text())
    for case in datalist["cases"]:
        case["split"] = "train"
    datalist["cases"] = datalist["cases"][:2]
    path = phantoms.with_name("no_val.json")
    path.write_text(json.dumps(datalist))
    with pytest.raises(Exception) as caught:
        train(path, tmp_path)
    assert input_error(caught.value) is not None and "val" in str(input_error(caught.value))


def test_network_is_the_one_of_inference():
    ours, theirs = (json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("train", "inference"))
    for key in ("network_def", "query_channels", "num_queries", "models_dir"):
        assert ours[key] == theirs[key], key


def test_inference_is_on_the_grid_of_the_weights(trained):
    parser = ConfigParser(json.loads((CONFIGS / "inference.json").read_text()))
    defaults = ConfigParser(json.loads((CONFIGS / "train.json").read_text()))
    for key in ("spacing", "window", "hu_window", "channels", "hidden_dim"):
        assert parser.get_parsed_content(key) == defaults[key], key
    parser = ConfigParser(json.loads((CONFIGS / "inference.json").read_text()))
    parser["ckpt_path"] = str(trained / "model.pt")
    for key in ("spacing", "window", "channels", "hidden_dim"):
        assert parser.get_parsed_content(key) == SMALL[key], key
