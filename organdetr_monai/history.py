"""What a training run went through, epoch by epoch: in a file, and at the end as a picture."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from organdetr_monai.files import replacing
from organdetr_monai.handlers import scalar_tensors

if TYPE_CHECKING:
    from organdetr_monai.budget import TrainingBudget

logger = logging.getLogger(__name__)


class TrainingHistory:
    """Handler: keeps ``history.json`` and, when the run ends, draws ``training.png`` from it.

    ``history.json`` is a list with one entry for each epoch: ``epoch``, counted from 1; ``train``, the mean of every
    loss term over the steps; ``validation``, the evaluator's figures, where the epoch was validated; ``spent``, what
    training has cost so far, where there is a budget. A resumed run goes on with the list of its ``output_dir`` up to
    the epoch it starts from. What is not a finite number is null.

    Parameters
    ----------
    output_dir : path
        Of both files.
    evaluator : Engine, optional
        What the trainer validates with.
    budget : TrainingBudget, optional
        Of the run.
    """

    def __init__(
        self, output_dir: str | Path, evaluator: Engine | None = None, *, budget: TrainingBudget | None = None
    ) -> None:
        self.path = Path(output_dir) / "history.json"
        self.picture = Path(output_dir) / "training.png"
        self.evaluator, self.budget = evaluator, budget
        #: One for each epoch, as in the file.
        self.entries: list[dict[str, Any]] = []
        # By the names of a step's terms, which not every step has all of: their sums, and over how many steps.
        self._sums: dict[tuple[str, ...], tuple[Tensor, int]] = {}
        self._validation: dict[str, float | None] | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that validates and before the one that saves the run's state."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.record)
        engine.add_event_handler(Events.COMPLETED, self.draw)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self.validated)

    def begin(self, engine: Engine) -> None:
        """Start of an epoch: find what came before it, and forget what a killed process began."""
        self._sums, self._validation = {}, None
        if not self.entries and engine.state.epoch > 1:
            self.entries = load_history(self.path)
        self.entries = [entry for entry in self.entries if entry["epoch"] < engine.state.epoch]

    def add(self, engine: Engine) -> None:
        """Sum up a step's terms where they are: no transfer from the device."""
        terms = scalar_tensors(cast(Mapping[str, Any], engine.state.output))  # ignite's annotation says int
        names, values = tuple(terms), torch.stack([*terms.values()])
        total, steps = self._sums.get(names, (torch.zeros_like(values), 0))
        self._sums[names] = (total + values, steps + 1)

    def validated(self, evaluator: Engine) -> None:
        """Keep the figures of a validation for the epoch that it belongs to."""
        self._validation = _finite(evaluator.state.metrics)

    def record(self, engine: Engine) -> None:
        """End of an epoch: write the file."""
        entry: dict[str, Any] = {"epoch": engine.state.epoch, "train": {}}
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for names, (total, steps) in self._sums.items():
            for name, value in zip(names, total.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + steps
        entry["train"] = _finite({name: sums[name] / counts[name] for name in sums})
        if self._validation is not None:
            entry["validation"] = self._validation
        if self.budget is not None:
            entry["spent"] = self.budget.spent
        self.entries.append(entry)
        with replacing(self.path) as draft:
            draft.write_text(_text(self.entries), encoding="utf-8")

    def draw(self, engine: Engine) -> None:
        """End of the run: the picture."""
        if not self.entries:
            return  # nothing was left to train
        from organdetr_monai.curves import draw_curves

        draw_curves(self.entries, self.picture)
        logger.info("training curves: %s", self.picture)


def load_history(path: str | Path) -> list[dict[str, Any]]:
    """Entries of a ``history.json``; none where there is no such file or it is not one."""
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
        return [entry for entry in entries if isinstance(entry["epoch"], int) and isinstance(entry["train"], dict)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("%s cannot be read (%s): the curves start anew", path, error)
        return []


def _finite(figures: Mapping[str, Any]) -> dict[str, float | None]:
    numbers = {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def _text(entries: list[dict[str, Any]]) -> str:
    """JSON with one line for each epoch."""
    return "[\n" + ",\n".join(json.dumps(entry, allow_nan=False) for entry in entries) + "\n]\n"
