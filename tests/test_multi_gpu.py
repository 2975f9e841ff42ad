"""Two processes as ``torchrun`` starts them, on the CPU: what they train and measure is what one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

import organdetr_monai.distributed
from organdetr_monai.data.phantom import write_phantoms
from organdetr_monai.errors import input_error
from tests.bundles import arguments, workflow
from tests.test_bundle import CONFIGS, overrides

#: Of one step's terms and of the weights after two epochs; a mistake in sharing a batch shows from 1e-3 on.
TOLERANCE = 5e-5
DELTAS = {
    "training": ("train.json", "multi_gpu_train.json"),
    "evaluating": ("train.json", "evaluate.json", "multi_gpu_evaluate.json"),
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Six cases to train on and three, an odd number, to validate on."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, cases=9, splits=(2 / 3, 1 / 3, 0), spacing=(10, 10, 10), workers=1, progress=False)
    return folder


def options(phantoms: Path, out: Path, **more) -> dict:
    return overrides(phantoms, out, amp_dtype="float32", **more)


def torchrun(run_id: str, **given) -> str:
    """Run with two processes; returns what they printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", run_id, "--config_file", str([str(CONFIGS / n) for n in DELTAS[run_id]])]
    command += arguments(given)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def together(phantoms, tmp_path_factory):
    """Folder of a run of two epochs by two processes that stopped after the first; two cases each in a batch."""
    out = tmp_path_factory.mktemp("together")
    torchrun("training", **options(phantoms, out, batch_size=2, **{"train#trainer#max_epochs": 1}))
    assert torch.load(out / "last.pt", weights_only=True)["epoch"] == 1
    printed = torchrun("training", **options(phantoms, out, batch_size=2))
    assert printed.count("resumed") == 1, "process 0 alone tells"
    return out


@pytest.fixture(scope="module")
def alone(phantoms, tmp_path_factory):
    """Folder of the same run by one process; four cases in a batch."""
    out = tmp_path_factory.mktemp("alone")
    workflow(CONFIGS, "train", ["train"], run_id="training", **options(phantoms, out, batch_size=4)).run()
    return out


def test_two_processes_train_what_one_does(alone, together):
    ours, theirs = (torch.load(out / "last.pt", weights_only=True) for out in (together, alone))
    for part in ("network", "ema"):
        for name, weight in theirs["parts"][part].items():
            off = (ours["parts"][part][name] - weight).abs()
            # In the refiner single weights have a gradient of nothing but rounding, which Adam makes whole steps of.
            assert (off.mean() if name.startswith("refiner.") else off.max()) < TOLERANCE, name
    assert ours["iteration"] == theirs["iteration"] == 4
    ours, theirs = (json.loads((out / "history.json").read_text()) for out in (together, alone))
    assert len(ours) == len(theirs) == 2
    for our, their in zip(ours, theirs, strict=True):
        assert our["train"] == pytest.approx(their["train"], rel=TOLERANCE)
        assert our["validation"]["num_cases"] == 3
        assert our["validation"] == pytest.approx(their["validation"], rel=TOLERANCE, nan_ok=True)


def test_one_process_writes(together):
    names = {path.name for path in together.iterdir()}
    assert names == {"last.pt", "model.pt", "model.json", "history.json", "training.png", "tensorboard"}
    assert len(list((together / "tensorboard").iterdir())) == 2 * 2, "each run's trainer and evaluator"
    weights = torch.load(together / "model.pt", weights_only=True)
    assert not any(name.startswith("module.") for name in weights)


def test_evaluation_counts_each_case_once_and_tells_it_once(phantoms, together, tmp_path):
    given = {"ckpt_dir": str(together), "ckpt_path": str(together / "model.pt")}
    printed = torchrun("evaluating", **options(phantoms, tmp_path / "two", **given))
    assert printed.count("3 cases, at most") == printed.count("saved in") == 1
    workflow(
        CONFIGS, "eval", ["train", "evaluate"], run_id="evaluating", **options(phantoms, tmp_path / "one", **given)
    ).run()
    two, one = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("two", "one"))
    assert two["num_cases"] == 3 and two == one, "to the last bit"


def test_deltas_name_what_they_mean():
    train, evaluate = ConfigParser(), ConfigParser()
    train.read_config([str(CONFIGS / name) for name in DELTAS["training"]])
    evaluate.read_config([str(CONFIGS / name) for name in DELTAS["evaluating"]])
    silent = [
        parser[key]["_target_"].rsplit(".", 1)[-1]
        for parser, handlers in ((train, "train#handlers"), (train, "validate#handlers"), (evaluate, "handlers"))
        for key in (f"{handlers}#{k}" for k in range(len(parser[handlers])))
        if parser[key].get("_disabled_") == "@follower"
    ]
    assert silent == [
        "LossBar",
        "TensorBoardStatsHandler",
        "TrainingHistory",
        "TensorBoardStatsHandler",
        "MetricReport",
    ]
    assert train["train#handlers#7#_target_"].endswith("TrainingState") and "save" in train["train#handlers#7"]
    for parser, base in ((train, "train.json"), (evaluate, "evaluate.json")):
        alone = json.loads((CONFIGS / base).read_text())["initialize"]
        assert [step for step in parser["initialize"] if "distributed" not in step] == alone
        assert any("distributed.start" in step for step in parser["initialize"])


@pytest.mark.parametrize("deltas", [[], ["size/paper"], ["refiner/none"]])
def test_processes_share_the_gradient_of_what_is_trained(deltas):
    """Of a second look that is added to trained weights, its own alone; also where others said that there is none."""
    names = ["train", *deltas, "fine_tune", "refiner/add", "multi_gpu_train"]
    parser = ConfigParser()
    parser.read_config([CONFIGS / f"{name}.json" for name in names])
    assert parser["train#trainer#network#module"] == "@trained" and "refiner_of(@network)" in parser["trained"]
    parser["organs"] = ["liver", "spleen"]
    assert parser.get_parsed_content("network_def#refiner").per_image == 6
    assert parser.get_parsed_content("loss").average is organdetr_monai.distributed.mean


def test_without_torchrun_it_says_how_to_start(phantoms, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(Exception) as failure:  # MONAI wraps what a config's expression raises
        workflow(CONFIGS, "train", ["train", "multi_gpu_train"], **options(phantoms, tmp_path))
    assert "torchrun" in str(input_error(failure.value))


@pytest.mark.parametrize("task", ["train", "evaluate"])
def test_delta_leaves_the_users_settings_alone(task, tmp_path):
    """Given last, as documented, it must not bring back what a settings file before it replaced."""
    mine = {"datalist": "mine.json", "organs": ["liver"], "spacing": [4, 4, 4], "window": [32, 32, 32], "batch_size": 3}
    mine |= {"ckpt_dir": "runs/mine", "output_dir": "runs/mine", "max_epochs": 7, "seed": 5, "amp_dtype": "float32"}
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    base = ["train.json"] if task == "train" else ["train.json", "evaluate.json"]
    parser = ConfigParser()
    parser.read_config([*(CONFIGS / name for name in base), tmp_path / "mine.json", CONFIGS / f"multi_gpu_{task}.json"])
    assert {key: parser[key] for key in mine} == mine
