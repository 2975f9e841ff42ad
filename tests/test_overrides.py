"""Misspelt options of ``monai.bundle run`` are refused; everything that MONAI itself or a config reads is not."""

import subprocess
import sys
from pathlib import Path

import pytest

from organdetr_monai.errors import InputError
from organdetr_monai.overrides import check_overrides

ROOT = Path(__file__).parents[1]
PROGRAM = "/anywhere/monai/bundle/__main__.py"
TRAIN = ["run", "training", "--config_file", str(ROOT / "configs" / "train.json")]
INFERENCE = ["run", "--config_file", f"{ROOT}/configs/inference.json"]
BOTH = ["run", "--config_file", f"['{ROOT}/configs/train.json','{ROOT}/configs/evaluate.json']"]


def check(*words: str) -> None:
    check_overrides([PROGRAM, *words])


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ([*TRAIN, "--max_epoch", "3"], "--max_epochs?"),
        ([*TRAIN, "--batchsize=4"], "--batch_size?"),
        ([*TRAIN, "--network_def#decode#layers", "2"], "--network_def#decoder#layers?"),
        ([*TRAIN, "--network_def::decode::layers", "2"], "--network_def#decoder#layers?"),
        ([*TRAIN, "--train#handlers#99#decay", "0.9"], "no '99' in train#handlers"),
        ([*TRAIN, "--split", "test"], "no 'split'"),
        ([*TRAIN, "--nonsense", "1"], f"see {ROOT}/configs/train.json"),
        ([*TRAIN, "--max_minutes", "1"], f"{ROOT}/configs/budget.json has it"),
        ([*INFERENCE, "--model", "phantom"], "--ckpt_path?"),
        ([*BOTH, "--splits", "test"], "--split?"),
    ],
)
def test_unknown_options_are_refused(words, meant):
    with pytest.raises(InputError) as error:
        check(*words)
    assert meant in str(error.value)
    assert next(word.split("=")[0] for word in reversed(words) if word.startswith("--")) in str(error.value)


def test_what_else_lies_beside_a_config_is_not_read(tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"budget\.json has it"):
        check("run", "--config_file", f"{tmp_path}/mine.json", "--max_minutes", "1")


@pytest.mark.parametrize(
    "words",
    [
        TRAIN,
        [*BOTH, "--split", "test", "--ignore_truncated", "true"],
        [*TRAIN, "--network_def#decoder#dropout", "0.1"],  # the config does not have it, the class does
        [*TRAIN, "--train#handlers#1#decay", "0.99", "--loss#weights", "{'giou': 1.0}"],
        [*TRAIN, "--tracking", "mlflow", "--experiment_name", "x", "--logging_file", "none", "--meta_file=m.json"],
        [*TRAIN, "--args_file", "mine.json", "--whatever", "1"],
        ["verify_metadata", "--whatever", "1"],
    ],
)
def test_the_rest_passes(words):
    check(*words)


@pytest.mark.parametrize("argv", [["/usr/bin/pytest", *TRAIN, "--max_epoch", "3"], ["mine.py"], [PROGRAM], []])
def test_other_programs_are_none_of_its_business(argv):
    check_overrides(argv)


def test_the_command_line_says_so_in_one_line(tmp_path):
    command = [sys.executable, "-m", "monai.bundle", *TRAIN, "--bundle_root", str(tmp_path), "--max_epoch", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == (
        "error: No config of this command knows --max_epoch. Did you mean --max_epochs?"
    )
