"""Training for a budget: the clock, the end, the learning rate, when to validate, and going on after a kill."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.handlers import LrScheduleHandler
from monai.optimizers import WarmupCosineSchedule

from organdetr_monai.budget import BudgetSchedule, BudgetValidation, TrainingBudget
from organdetr_monai.errors import InputError
from tests.bundles import workflow
from tests.test_bundle import CONFIGS, overrides, phantoms  # noqa: F401 - a fixture


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (1.0, 0.1)])


def evaluator() -> SupervisedEvaluator:
    return SupervisedEvaluator(torch.device("cpu"), [0], torch.nn.Identity(), iteration_update=lambda e, b: None)


def train(budget, *, batches=4, step=lambda engine, batch: None, handlers=()) -> Engine:
    """A run without an end of its own, with the handlers in the order of the bundle's config."""
    engine = Engine(step)
    for handler in (*handlers, budget):
        handler.attach(engine)
    engine.run([0] * batches, max_epochs=1000)
    return engine


def test_steps_end_in_the_middle_of_an_epoch_which_is_completed():
    completed = []
    budget = TrainingBudget(10, "steps")
    record = SimpleNamespace(
        attach=lambda engine: engine.add_event_handler(
            Events.EPOCH_COMPLETED, lambda e: completed.append(e.state.epoch)
        )
    )
    engine = train(budget, handlers=[record])
    assert engine.state.iteration == budget.spent["steps"] == 10
    assert completed == [1, 2, 3] and engine.state.max_epochs == 3
    assert budget.share == 1


@pytest.mark.parametrize("batches", [5, 10])
def test_budget_that_ends_with_an_epoch_does_not_start_another(batches):
    engine = train(TrainingBudget(10, "steps"), batches=batches)
    assert (engine.state.iteration, engine.state.epoch) == (10, 10 // batches)


def test_waiting_costs_wall_time_and_computing_costs_cpu_time():
    waiting, computing = TrainingBudget(0.2 / 60), TrainingBudget(0.2 / 60, "cpu_minutes")
    train(waiting, step=lambda engine, batch: time.sleep(0.05))
    assert waiting.spent["steps"] in (3, 4) and waiting.spent["cpu_minutes"] < 0.1 / 60

    def compute(engine, batch):
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    train(computing, step=compute)
    assert computing.spent["steps"] in (3, 4)
    assert computing.spent["cpu_minutes"] == pytest.approx(0.2 / 60, abs=0.06 / 60)


def test_validation_costs_nothing():
    budget = TrainingBudget(12, "steps")
    slow = evaluator()
    slow.add_event_handler(Events.STARTED, lambda engine: time.sleep(0.2))
    train(budget, handlers=[BudgetValidation(slow, budget, times=3)])
    assert slow.state.epoch > 0 and budget.spent["wall_minutes"] < 0.2 / 60


@pytest.mark.parametrize(
    ("times", "epochs"), [(1, [3]), (2, [2, 3]), (5, [1, 2, 3]), (100, [1, 2, 3])], ids=lambda v: str(v)
)
def test_validation_follows_the_shares_of_the_budget_and_comes_at_its_end(times, epochs):
    # Epochs end at 0.4, 0.8 and 1 of the budget.
    budget, validator, seen = TrainingBudget(10, "steps"), evaluator(), []
    handler = BudgetValidation(validator, budget, times)
    validator.run = lambda epoch: seen.append(epoch)
    train(budget, handlers=[handler])
    assert seen == epochs


def test_learning_rate_is_that_of_monai_with_shares_for_steps():
    ours, theirs, budget = optimizer(), optimizer(), TrainingBudget(50, "steps")
    schedule = BudgetSchedule(ours, budget, warmup=0.2, warmup_multiplier=0.1)
    reference = WarmupCosineSchedule(theirs, warmup_steps=10, t_total=50, warmup_multiplier=0.1)
    rates = []

    def step(engine, batch):
        rates.append([[group["lr"] for group in o.param_groups] for o in (ours, theirs)])
        reference.step()

    train(budget, step=step, handlers=[LrScheduleHandler(schedule, epoch_level=False, print_lr=False)])
    ours_over_time, theirs_over_time = torch.tensor(rates, dtype=torch.float64).unbind(1)
    assert len(rates) == 50
    torch.testing.assert_close(ours_over_time, theirs_over_time)
    assert ours.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_schedule_goes_on_from_its_state_with_the_shape_of_now():
    budget = TrainingBudget(10, "steps")
    saved = BudgetSchedule(optimizer(), budget, warmup=0.5).state_dict()
    budget.load_state_dict({"cpu": 0, "wall": 0, "steps": 5})
    schedule = BudgetSchedule(optimizer(), budget, warmup=0.0)
    schedule.load_state_dict(saved)
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.5, 0.05])


def test_resumed_run_has_what_is_left():
    first = TrainingBudget(6, "steps")
    train(first)
    second, restored = TrainingBudget(10, "steps"), []

    def attach(engine):  # as TrainingState does it, before the budget's handler
        engine.add_event_handler(Events.STARTED, lambda e: second.load_state_dict(first.state_dict()))
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: restored.append(second.spent["steps"]))

    train(second, handlers=[SimpleNamespace(attach=attach)])
    assert restored == [7, 8, 9, 10]
    assert second.spent["wall_minutes"] > first.spent["wall_minutes"]


def test_run_whose_budget_is_used_up_trains_nothing():
    budget = TrainingBudget(3, "steps")
    budget.load_state_dict({"cpu": 1.0, "wall": 1.0, "steps": 3})
    assert train(budget).state.iteration == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainingBudget(5, "hours"),
        lambda: TrainingBudget(0),
        lambda: TrainingBudget(float("nan")),
        lambda: BudgetSchedule(optimizer(), TrainingBudget(1), warmup=1.0),
        lambda: BudgetValidation(evaluator(), TrainingBudget(1), times=0),
    ],
)
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(InputError):
        make()


def bundle(folder, phantoms, **more):  # noqa: F811
    """The bundle's training of five steps, two in each epoch, as `configs/budget.json` has it."""
    options = overrides(phantoms, folder, **{"budget#limit": 5, "budget#unit": "steps", "max_epochs": 1000, **more})
    workflow(CONFIGS, "train", ["train", "budget"], run_id="training", **options).run()
    return torch.load(folder / "last.pt", weights_only=True), json.loads((folder / "history.json").read_text())


def test_bundle_trains_for_a_budget_and_goes_on_after_an_interruption(phantoms, tmp_path):  # noqa: F811
    whole, history = bundle(tmp_path / "whole", phantoms)
    assert [entry["spent"]["steps"] for entry in history] == [2, 4, 5]
    assert all("validation" in entry for entry in history), "five shares in three epochs"
    costs = [entry["spent"]["cpu_minutes"] for entry in history]
    assert 0 < costs[0] < costs[1] < costs[2]
    assert whole["parts"]["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-12)
    # The first process just ends after two epochs.
    parts, _ = bundle(tmp_path / "parts", phantoms, **{"train#trainer#max_epochs": 2})
    assert parts["parts"]["budget"]["steps"] == 4
    parts, again = bundle(tmp_path / "parts", phantoms)
    assert [entry["train"] for entry in again] == [entry["train"] for entry in history]
    for name in ("network", "ema"):
        assert all(torch.equal(v, whole["parts"][name][k]) for k, v in parts["parts"][name].items()), name
    # Once more: nothing is left.
    assert bundle(tmp_path / "parts", phantoms)[0]["iteration"] == 5
