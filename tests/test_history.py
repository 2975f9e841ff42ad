"""The history of a run: what it keeps, over a resumption and through NaN, and the picture."""

import json
import math
from types import SimpleNamespace

import torch
from ignite.engine import Engine, Events

from organdetr_monai.history import TrainingHistory, load_history


def train(folder, epochs, *, start=0, metrics=None):
    """A run of two steps in each epoch, whose loss is the step's number."""
    trainer = Engine(lambda engine, batch: [{"loss": torch.tensor(float(engine.state.iteration)), "boxes": [1]}])
    validator = Engine(lambda engine, batch: None)
    validator.add_event_handler(Events.STARTED, lambda e: e.state.metrics.update(metrics or {"mAP_coco": 0.5}))
    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda e: validator.run([0]))
    TrainingHistory(folder, validator).attach(trainer)

    def restore(engine):  # as TrainingState does it, after the history was attached
        engine.state.epoch, engine.state.iteration = start, 2 * start

    trainer.add_event_handler(Events.STARTED, restore)
    trainer.run([0, 0], max_epochs=epochs)
    return json.loads((folder / "history.json").read_text())


def test_every_epoch_has_its_means_and_what_was_validated(tmp_path):
    entries = train(tmp_path, 4)
    assert [e["epoch"] for e in entries] == [1, 2, 3, 4]
    assert [e["train"] for e in entries] == [{"loss": v} for v in (1.5, 3.5, 5.5, 7.5)]
    assert [e.get("validation") for e in entries] == [None, {"mAP_coco": 0.5}] * 2
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


def test_a_term_is_the_mean_over_the_steps_that_have_it(tmp_path):
    terms = [{"loss": 1.0}, {"loss": 2.0, "dice": 5.0}, {"dice": 7.0, "loss": 6.0}, {"loss": 3.0}]
    trainer = Engine(lambda engine, batch: [{name: torch.tensor(value) for name, value in batch.items()}])
    TrainingHistory(tmp_path).attach(trainer)
    trainer.run(terms, max_epochs=1)
    assert json.loads((tmp_path / "history.json").read_text())[0]["train"] == {"loss": 3.0, "dice": 6.0}


def test_resumed_run_goes_on_with_its_history_up_to_where_it_starts(tmp_path):
    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 3)  # killed after the third epoch was recorded and before its state was saved
    assert train(tmp_path / "parts", 4, start=2) == whole


def test_run_that_starts_anew_forgets(tmp_path):
    train(tmp_path, 3)
    assert len(train(tmp_path, 1)) == 1


def test_what_is_not_a_number_is_null(tmp_path):
    entries = train(tmp_path, 2, metrics={"wall_mean": math.nan, "mAP_coco": 0.0})
    assert entries[1]["validation"] == {"wall_mean": None, "mAP_coco": 0.0}


def test_a_broken_file_costs_the_past_and_not_the_run(tmp_path, caplog):
    (tmp_path / "history.json").write_text('[{"epoch": 1')
    assert load_history(tmp_path / "history.json") == []
    assert "history.json" in caplog.text
    assert [e["epoch"] for e in train(tmp_path, 3, start=2)] == [3]


def test_run_with_nothing_left_to_train_leaves_the_picture_alone(tmp_path):
    history = TrainingHistory(tmp_path)
    history.draw(SimpleNamespace())
    assert not (tmp_path / "training.png").exists()
