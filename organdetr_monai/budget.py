"""Training for a given time instead of a given number of epochs: the clock, the learning rate, when to validate."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import ValidationHandler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from organdetr_monai import distributed
from organdetr_monai.errors import InputError

logger = logging.getLogger(__name__)

UNITS = ("cpu_minutes", "wall_minutes", "steps")


class TrainingBudget:
    """Handler: counts what training costs and ends it when a budget is used up, in the middle of an epoch if need be.

    Training is data, forward, backward, step and the handlers of a step. Caching the data, validating and saving are
    not counted. CPU minutes are those of all threads of this process, so with ``num_workers`` of a data loader above 0
    the workers' are missing. Of several processes the mean counts, so that all end at the same step.

    Parameters
    ----------
    limit : float
        Positive.
    unit : str
        ``"cpu_minutes"``, ``"wall_minutes"`` or ``"steps"`` of the optimiser.

    Raises
    ------
    InputError
        For an unknown unit or a limit that is not positive.

    Notes
    -----
    The cost so far is a part of the state of a run (``state_dict``): a resumed one has what is left. What a killed
    epoch cost is forgotten with what it learned.
    """

    def __init__(self, limit: float, unit: str = "wall_minutes") -> None:
        if unit not in UNITS:
            raise InputError(f"The budget's unit is {unit!r}.", f"Choose among {', '.join(UNITS)}.")
        if not (math.isfinite(limit) and limit > 0):
            raise InputError(f"The budget is {limit} {unit}.", "Give a positive number.")
        self.limit, self.unit = float(limit), unit
        self._seconds = {"cpu": 0.0, "wall": 0.0}
        self._steps = 0
        self._mark = {"cpu": 0.0, "wall": 0.0}

    @property
    def spent(self) -> dict[str, float]:
        """Cost so far in every unit."""
        cpu, wall = (self._seconds[kind] / 60 for kind in ("cpu", "wall"))
        return {"cpu_minutes": cpu, "wall_minutes": wall, "steps": self._steps}

    @property
    def share(self) -> float:
        """Part of the budget that is used up, in [0, 1]."""
        return min(self.spent[self.unit] / self.limit, 1.0)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that restores a run's state."""
        engine.add_event_handler(Events.STARTED, self._check)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)

    def state_dict(self) -> dict[str, float]:
        """Seconds and steps so far."""
        return {**self._seconds, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a `state_dict`."""
        self._seconds = {kind: float(state[kind]) for kind in ("cpu", "wall")}
        self._steps = int(state["steps"])

    def _check(self, engine: Engine) -> None:
        if self.share >= 1:
            logger.info("the budget of %g %s is used up: nothing is left to train", self.limit, self.unit)
            engine.state.max_epochs = engine.state.epoch

    def _start(self, engine: Engine) -> None:
        self._mark = _clocks()

    def _step(self, engine: Engine) -> None:
        self._steps += 1  # already now: the schedule's handler comes before this one when the step is done

    def _count(self, engine: Engine) -> None:
        now = _clocks()
        passed = [now[kind] - self._mark[kind] for kind in ("cpu", "wall")]
        if distributed.world_size() > 1 and self.unit != "steps":  # or one process would wait for another that is done
            device = getattr(engine.state, "device", None)
            passed = distributed.mean(torch.tensor(passed, dtype=torch.float64, device=device)).tolist()
        self._seconds = {kind: self._seconds[kind] + more for kind, more in zip(("cpu", "wall"), passed, strict=True)}
        self._mark = now
        if self.share >= 1:
            logger.info("the budget of %g %s is used up in epoch %d", self.limit, self.unit, engine.state.epoch)
            # Not Engine.terminate: the epoch is to be completed, with its validation and its files.
            engine.state.max_epochs = engine.state.epoch
            engine.terminate_epoch()


def _clocks() -> dict[str, float]:
    return {"cpu": time.process_time(), "wall": time.perf_counter()}


class BudgetSchedule(LRScheduler):
    """Learning rate over the used share of a budget: linear warm-up, then half a cosine down to nothing.

    MONAI's ``WarmupCosineSchedule`` with shares of a budget instead of steps, whose number nobody knows beforehand.

    Parameters
    ----------
    optimizer : Optimizer
    budget : TrainingBudget
    warmup : float
        Share of the budget, in [0, 1).
    warmup_multiplier : float
        Of the learning rate at the start, in [0, 1].

    Raises
    ------
    InputError
        For numbers out of range.
    """

    def __init__(
        self, optimizer: Optimizer, budget: TrainingBudget, *, warmup: float = 0.05, warmup_multiplier: float = 0.01
    ) -> None:
        if not (0 <= warmup < 1 and 0 <= warmup_multiplier <= 1):
            raise InputError(f"warmup is {warmup}, warmup_multiplier {warmup_multiplier}.", "Give shares of 1.")
        self.budget, self.warmup, self.warmup_multiplier = budget, warmup, warmup_multiplier
        super().__init__(optimizer)

    def factor(self, share: float) -> float:
        """Of the learning rate when that share of the budget is used up."""
        if share < self.warmup:
            return self.warmup_multiplier + (1 - self.warmup_multiplier) * share / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (share - self.warmup) / (1 - self.warmup)))

    def get_lr(self) -> list[Any]:
        """Learning rate of every parameter group now, of the type that the optimiser was given."""
        return [base * self.factor(self.budget.share) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Without the budget, which keeps a state of its own, and the shape, which is the config's."""
        drop = ("budget", "warmup", "warmup_multiplier")
        return {key: value for key, value in super().state_dict().items() if key not in drop}


class BudgetValidation(ValidationHandler):
    """MONAI's ``ValidationHandler`` in shares of a budget: after the epoch in which a share is used up.

    Parameters
    ----------
    validator : Evaluator
    budget : TrainingBudget
    times : int
        How many shares; the last one ends with the budget. Where an epoch costs more than one, they are fewer.

    Raises
    ------
    InputError
        For less than one time.
    """

    def __init__(self, validator: Evaluator, budget: TrainingBudget, times: int = 5) -> None:
        if times < 1:
            raise InputError(f"Validation is to happen {times} times.", "Give at least 1.")
        super().__init__(1, validator)
        self.budget, self.times = budget, times
        self._before = 0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._due), self)

    def _start(self, engine: Engine) -> None:
        self._before = math.floor(self.budget.share * self.times)  # of a resumed run, too: its state was saved here

    def _due(self, engine: Engine, epoch: int) -> bool:
        return math.floor(self.budget.share * self.times) > self._before
