"""One training for a fixed budget and its evaluation, each in a process of its own; the result is one JSON.

A run whose result is there is not repeated, one that was interrupted goes on, one that failed is tried again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contenders import CONFIGS, deltas
from measure import ROOT

from organdetr_monai.files import replacing


class RunError(RuntimeError):
    """A run that cannot be finished; the text is the reason that the table gives."""


@dataclass(frozen=True)
class Run:
    """Everything that decides what a run gives."""

    config: str  # as benchmarks/contenders.py takes it
    seed: int
    limit: float
    unit: str  # of organdetr_monai.budget
    data: str = "phantom"  # a file of configs/data, or the embedded phantoms
    datalist: str | None = None
    val: str | None = None
    validations: int = 5
    threads: int = 1
    options: tuple[str, ...] = ()  # further KEY=VALUE for monai.bundle, in training and evaluation

    @property
    def name(self) -> str:
        """Of its folder and its result; two runs that differ in anything have different names."""
        text = json.dumps(asdict(self), sort_keys=True)
        config = "+".join(Path(part).stem for part in self.config.split("+"))
        return f"{config}-{self.limit:g}_{self.unit}-seed{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def files(self) -> list[Path]:
        """Config files of the training without the budget.

        Raises
        ------
        RunError
            One does not exist.
        """
        data = [] if self.data == "phantom" else [CONFIGS / "data" / f"{self.data}.json"]
        # A set's organs and grid first: a contender may set what a set sets, too.
        files = [CONFIGS / "train.json", *data, *deltas(self.config)]
        for path in files:
            if not path.is_file():
                shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
                raise RunError(f"{shown} does not exist")
        return files


def result_path(run: Run, folder: Path) -> Path:
    """Where the result of a run is kept."""
    return folder / "results" / f"{run.name}.json"


def finish(run: Run, folder: Path) -> dict[str, Any]:
    """Train and evaluate, or go on with it, or read what is there.

    Returns
    -------
    dict
        ``run``, and ``status``: ``"done"`` with the figures, ``"failed"`` with ``reason``, or ``"busy"`` where another
        process is at it. The first two are kept as a file.
    """
    path = result_path(run, folder)
    if path.exists():
        result = json.loads(path.read_text())
        if result["status"] == "done":
            return result
    own = folder / "runs" / run.name
    own.mkdir(parents=True, exist_ok=True)
    with alone(own / "lock") as mine:
        if not mine:
            return {"run": asdict(run), "status": "busy"}
        try:
            result = {"run": asdict(run), "status": "done", **_train_and_evaluate(run, own)}
        except (RunError, OSError, ValueError, KeyError) as error:
            # Whatever is wrong with one run: the others go on, and the table says so.
            result = {"run": asdict(run), "status": "failed", "reason": str(error) or repr(error)}
        with replacing(path) as draft:
            draft.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether no other process holds this lock.

    Processes started meanwhile hold it, too: a training that outlives its killed benchmark is not disturbed by another.
    """
    with open(path, "w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _train_and_evaluate(run: Run, own: Path) -> dict[str, Any]:
    files = run.files()
    common = {"bundle_root": ROOT, "ckpt_dir": own, "seed": run.seed}
    lists = {"datalist": run.datalist, "val_datalist": run.val}
    common |= {key: path for key, path in lists.items() if path is not None}
    budget = {
        "budget#limit": run.limit,
        "budget#unit": run.unit,
        "train#handlers#5#times": run.validations,
        "output_dir": own,
    }
    gib = bundle(run, "training", [*files, CONFIGS / "budget.json"], {**common, **budget}, own / "training.log")
    gib = _most(own / "peak_gib.json", gib)
    # Last: it says which weights are evaluated, whatever a contender says of those that are validated.
    files = [*files, CONFIGS / "evaluate.json", _evaluation_delta(own)]
    bundle(run, "evaluating", files, {**common, "output_dir": own / "evaluation"}, own / "evaluation.log")
    history = json.loads((own / "history.json").read_text())
    metrics = json.loads((own / "evaluation" / "metrics.json").read_text())
    curve = [{**entry["spent"], **entry["validation"]} for entry in history if "validation" in entry]
    best: Any = max((point["mAP_coco"] for point in curve), default=None)
    evaluated = metrics["mAP_coco"]
    if None in (best, evaluated) or not math.isclose(best, evaluated, abs_tol=1e-4):
        # Seldom: weights or a config that training and evaluation do not have in common.
        raise RunError(f"evaluated, mAP_coco is {evaluated}; at its best validation it was {best}")
    return {
        "metrics": metrics,
        "curve": curve,
        "spent": {**history[-1]["spent"], "epochs": history[-1]["epoch"]},
        "peak_gib": gib,
        "inference": json.loads((own / "evaluation" / "cost.json").read_text()),
    }


def _evaluation_delta(own: Path) -> Path:
    path = own / "evaluation.json"
    cost = {"_target_": "benchmarks.evaluation_cost.EvaluationCost", "path": str(own / "evaluation" / "cost.json")}
    path.write_text(json.dumps({"+handlers": [cost]}))
    return path


def _most(path: Path, gib: float) -> float:
    """The highest peak of a run's processes: a resumed one has several."""
    gib = max(gib, json.loads(path.read_text()) if path.exists() else 0.0)
    path.write_text(json.dumps(gib))
    return gib


def bundle(run: Run, what: str, files: Sequence[Path], options: dict[str, Any], log: Path) -> float:
    """``python -m monai.bundle run`` in a process of its own; its peak memory in GiB.

    Raises
    ------
    RunError
        It failed; the log, to which both streams are added, says more.
    """
    command = [sys.executable, "-m", "monai.bundle", "run", what, "--config_file", str([str(path) for path in files])]
    command += [f"--{key}={value}" for key, value in options.items()]
    command += [f"--{option}" for option in run.options]
    threads = {name: str(run.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    before = log.stat().st_size if log.exists() else 0
    with open(log, "a") as stream:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **threads},
            stdout=stream,
            stderr=subprocess.STDOUT,
            close_fds=False,  # the lock
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
    process.returncode = code = os.waitstatus_to_exitcode(status)
    if code:
        raise RunError(f"{what} {_reason(log.read_bytes()[before:].decode(errors='replace'), code)}")
    return usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, KiB elsewhere


#: An error of the bundle's own, or the last line of a traceback; not MONAI's, which only says where in the config.
_ERROR = re.compile(r"error: .+|(?!.*Failed to (evaluate|instantiate))(\w+\.)*\w*(Error|Exception|Interrupt)\b.*")


def _reason(said: str, code: int) -> str:
    """Why a process failed, in one line, from what it wrote."""
    if code < 0:
        return f"was ended by signal {-code}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.fullmatch(line)]
    return f"failed: {(errors or lines or ['no word'])[-1][:300]}"
