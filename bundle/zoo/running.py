"""Checks that run the bundle as its README says, where our package is not installed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bundle.zoo import metadata
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
    """The table of metrics of the weights for phantoms, on the phantom of the test split."""
    configs, job = "['configs/train.json','configs/evaluate.json']", job_of(folder)
    options = ("--phantom_cases", str(PHANTOMS), "--split", "test", "--ckpt_dir", job.weights)
    call(folder, *_RUN, "evaluating", "--config_file", configs, *options)
    _made(folder, job.metrics)
    found = json.loads((folder / job.metrics).read_text(encoding="utf-8"))
    recall = found.get("summary", found)[job.recall]
    if recall is None or not recall >= LEAST_RECALL:  # NaN, where there is nothing to find, is not enough either
        raise CheckError(f"the weights in {job.weights} have {job.recall} {recall} on a phantom, below {LEAST_RECALL}")


def inference(folder: Path) -> None:
    """Results for the phantoms by the shipped weights."""
    job = job_of(folder)
    job.prepare(folder)
    call(folder, *_RUN, "inference", "--config_file", "configs/inference.json")
    _made(folder, *job.results(f"eval/{job.name}"))


def elsewhere(folder: Path) -> None:
    """Inference from another folder: with the bundle on ``PYTHONPATH`` and its place as ``--bundle_root``."""
    job = job_of(folder)
    job.prepare(folder)
    other = folder.parent / "elsewhere"
    other.mkdir(exist_ok=True)
    options = ("--config_file", str(folder / "configs" / "inference.json"), "--bundle_root", str(folder))
    call(folder, *_RUN, "inference", *options, "--output_dir", job.name, cwd=other, path=[folder])
    _made(other, *job.results(job.name))


def command_line(folder: Path) -> None:
    """``python -m PACKAGE COMMAND``, which is ``organdetr COMMAND`` where it is not installed."""
    job = job_of(folder)
    job.prepare(folder)
    made = job.command(folder)
    _made(folder, f"{made}/{job.name}.json", f"{made}/preview.png")


@dataclass(frozen=True)
class _Detecting:
    """What running a bundle that finds organs takes and leaves."""

    name: str = "detections"
    metrics: str = "eval/test/metrics.json"
    recall: str = "recall50"
    phantoms: str = "data/phantoms"
    prefix: str = ""  # of the names of phantoms
    weights: str = "models/phantom"  # the others know no phantoms
    options: tuple[str, ...] = ()  # of ``phantom``

    def prepare(self, folder: Path) -> None:
        """The phantoms that training makes for itself, where this check comes without it."""
        if not (folder / self.phantoms / "images").is_dir():
            call(folder, "-m", package_of(folder), "phantom", self.phantoms, "--cases", str(PHANTOMS), *self.options)

    def results(self, output: str) -> list[str]:
        """What inference leaves."""
        return [f"{output}/{self.prefix}case_{case:03d}/{self.name}.json" for case in range(PHANTOMS)]

    def command(self, folder: Path) -> str:
        """Run the command; the folder of its results."""
        scan = f"{self.phantoms}/images/{self.prefix}case_000.nii.gz"
        call(folder, "-m", package_of(folder), "detect", scan, "--output", "runs/detect")
        return f"runs/detect/{self.prefix}case_000"


@dataclass(frozen=True)
class _Clicking(_Detecting):
    """What running a bundle that answers clicks takes and leaves."""

    name: str = "lesions"
    metrics: str = "eval/lesions/test/metrics.json"
    recall: str = "lesion_recall"
    phantoms: str = "data/lesion_phantoms"
    prefix: str = "seed0_"
    weights: str = "models"
    options: tuple[str, ...] = ("--lesions",)

    def command(self, folder: Path) -> str:
        """Run the command; the folder of its results."""
        clicks = json.loads((folder / self.phantoms / "images" / "clicks.json").read_text(encoding="utf-8"))
        case = clicks["cases"][0]
        scan = f"{self.phantoms}/images/{case['image']}"
        point = ",".join(map(str, case["points"][0]))
        options = ("--point", point, "--space", clicks["space"], "--output", "runs/click")
        call(folder, "-m", package_of(folder), "click", scan, *options)
        return "runs/click"


DETECTING, CLICKING = _Detecting(), _Clicking()


def job_of(folder: Path) -> _Detecting:
    """What running this bundle takes and leaves."""
    return DETECTING if metadata.detects(folder) else CLICKING


def _made(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise CheckError(f"there is no {name}")
