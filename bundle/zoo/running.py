"""Checks that run the bundle as its README says, where our package is not installed."""

from __future__ import annotations

import json
from pathlib import Path

from bundle.zoo.failure import CheckError
from bundle.zoo.uninstalled import call, package_of

#: Enough for the three splits.
PHANTOMS = 6
#: Of the shipped weights on a single phantom: not how good they are, but whether they are weights at all.
LEAST_RECALL = 0.5
_TINY = ("--phantom_cases", str(PHANTOMS), "--ckpt_dir", "runs/check")
_RUN = ("-m", "monai.bundle", "run")


def training(folder: Path) -> None:
    """One epoch of the default training, on few phantoms that it makes itself."""
    call(folder, *_RUN, "training", "--config_file", "configs/train.json", *_TINY, "--max_epochs", "1")
    _made(folder, "runs/check/model.pt", "runs/check/model.json")


def evaluating(folder: Path) -> None:
    """The table of metrics of the shipped weights, on the phantom of the test split."""
    configs = "['configs/train.json','configs/evaluate.json']"
    call(folder, *_RUN, "evaluating", "--config_file", configs, "--phantom_cases", str(PHANTOMS), "--split", "test")
    _made(folder, "eval/metrics.json")
    recall = json.loads((folder / "eval" / "metrics.json").read_text(encoding="utf-8"))["recall50"]
    if not recall >= LEAST_RECALL:  # NaN, where there is no organ, is not enough either
        raise CheckError(f"the shipped weights have recall {recall} at IoU 0.5 on a phantom, below {LEAST_RECALL}")


def inference(folder: Path) -> None:
    """Boxes of the phantoms by the shipped weights."""
    _phantoms(folder)
    call(folder, *_RUN, "inference", "--config_file", "configs/inference.json")
    _made(folder, *(f"eval/detections/case_{case:03d}/detections.json" for case in range(PHANTOMS)))


def elsewhere(folder: Path) -> None:
    """Inference from another folder: with the bundle on ``PYTHONPATH`` and its place as ``--bundle_root``."""
    _phantoms(folder)
    other = folder.parent / "elsewhere"
    other.mkdir(exist_ok=True)
    options = ("--config_file", str(folder / "configs" / "inference.json"), "--bundle_root", str(folder))
    call(folder, *_RUN, "inference", *options, "--output_dir", "detections", cwd=other, path=[folder])
    _made(other, *(f"detections/case_{case:03d}/detections.json" for case in range(PHANTOMS)))


def command_line(folder: Path) -> None:
    """``python -m PACKAGE detect``, which is ``organdetr detect`` where it is not installed."""
    _phantoms(folder)
    scan = "data/phantoms/images/case_000.nii.gz"
    call(folder, "-m", package_of(folder), "detect", scan, "--output", "runs/detect")
    _made(folder, "runs/detect/case_000/detections.json", "runs/detect/case_000/preview.png")


def _phantoms(folder: Path) -> None:
    """The phantoms that training makes for itself, where this check comes without it."""
    if not (folder / "data" / "phantoms" / "images").is_dir():
        call(folder, "-m", package_of(folder), "phantom", "data/phantoms", "--cases", str(PHANTOMS))


def _made(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise CheckError(f"there is no {name}")
