"""What is shown while an engine runs."""

import torch
from ignite.engine import Engine

from organdetr_monai.budget import TrainingBudget
from organdetr_monai.handlers import LossBar


def test_bar_reads_the_terms_now_and_then_and_at_the_end_of_each_epoch(capsys):
    read = []

    class Term(torch.Tensor):
        def float(self):
            read.append(1)
            return torch.tensor(2.5)

    engine = Engine(lambda engine, batch: [{"loss": torch.tensor(1.0).as_subclass(Term)}])
    bar = LossBar()
    bar.every = 1e6
    bar.attach(engine)
    engine.run(range(40), max_epochs=3)
    assert len(read) == 1 + 3, "the first step and the last of each epoch"
    assert "loss=2.5" in capsys.readouterr().err


def test_bar_shows_the_used_share_of_a_budget(capsys):
    engine = Engine(lambda engine, batch: [{"loss": torch.tensor(1.0)}])
    budget = TrainingBudget(40, "steps")
    LossBar(budget=budget).attach(engine)
    budget.attach(engine)
    engine.run(range(20), max_epochs=9)
    shown = capsys.readouterr().err
    assert "budget=0.5" in shown and "budget=1" in shown and engine.state.epoch == 2
