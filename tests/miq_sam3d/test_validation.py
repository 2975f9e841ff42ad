"""Figures inside an engine, and several samples of a case in an epoch."""

import json

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.transforms import Compose, RandomizableTransform, Transform

from organdetr_monai.errors import InputError
from organdetr_monai.miq_sam3d.dataset import PromptDataset
from organdetr_monai.miq_sam3d.targets import wanted_instances
from organdetr_monai.miq_sam3d.validation import LesionReport, WindowMetric
from tests.miq_sam3d.toys import BALL, CUBE, draw

THINGS = [(BALL, (10, 10, 10), 5), (CUBE, (12, 25, 12), 3), (BALL, (30, 20, 12), 5)]


def answered(objectness):
    """Output of an evaluator: two queries that have the balls right, as far as they say they are there."""
    _, ids = draw(THINGS)
    targets = wanted_instances(torch.from_numpy(ids)[None], [torch.tensor([BALL, CUBE, BALL])], [BALL], [1])
    pred = {
        "masks": 20 * targets.shares((20, 16, 12)) - 10,
        "objectness": torch.tensor([objectness]).logit(),
        "quality": torch.full((1, 2), 3.0),
        "boxes": targets.boxes,
    }
    return {"pred": pred, "label": targets}


def run(metric, outputs):
    engine = Engine(lambda _, output: output)
    metric.attach(engine, "pq")
    engine.run(outputs, max_epochs=1)
    return engine.state.metrics


def test_right_answers_have_high_figures_and_missed_ones_half():
    assert run(WindowMetric(2.0), [answered([0.9, 0.9])])["pq"] > 0.75
    figures = run(WindowMetric([2.0, 2.0, 2.0]), [answered([0.9, 0.9]), answered([0.9, 0.1])])
    assert figures["lesion_recall"] == pytest.approx(0.75) and figures["false_positives"] == 0


def test_no_lesion_at_all_is_an_error_and_no_zero():
    _, ids = draw(THINGS)
    nothing = wanted_instances(torch.from_numpy(ids)[None], [torch.tensor([BALL, CUBE, BALL])], [0], [0])
    with pytest.raises(InputError, match="No validation case has a lesion"):
        run(WindowMetric(2.0), [{**answered([0.1, 0.1]), "label": nothing}])


def test_an_unknown_key_is_an_error():
    with pytest.raises(InputError, match="'iou'.*'pq'"):
        run(WindowMetric(2.0, key="iou"), [answered([0.9, 0.9])])


def test_report_is_printed_and_saved(tmp_path, capsys):
    metric = WindowMetric(2.0)
    engine = Engine(lambda _, output: output)
    metric.attach(engine, "pq")
    LesionReport(metric, tmp_path).attach(engine)
    engine.run([answered([0.1, 0.1])], max_epochs=1)
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["summary"]["pq"] == 0 and report["summary"]["sq"] is None
    assert report["cases"][0]["num_truth"] == 2
    assert "lesion_recall" in capsys.readouterr().out


class Load(Transform):
    """Writes down what it is asked for."""

    def __init__(self, loaded: list) -> None:
        self.loaded = loaded

    def __call__(self, case):
        self.loaded.append(case["case"])
        return dict(case)


class Draw(RandomizableTransform):
    """Adds a random number to a case."""

    def __call__(self, case):
        return {**case, "number": self.R.random()}


def dataset(samples: int, loaded: list) -> PromptDataset:
    data = [{"case": name} for name in "abc"]
    return PromptDataset(data, Compose([Load(loaded), Draw()]), samples=samples, seed=1, progress=False, num_workers=0)


def test_each_case_is_loaded_once_and_sampled_often():
    loaded: list = []
    found = dataset(4, loaded)
    items = [found[k] for k in range(len(found))]
    assert len(items) == 12 and sorted(loaded) == ["a", "b", "c"]
    assert [i["case"] for i in items] == list("abc") * 4
    assert len({i["number"] for i in items}) == 12


def test_samples_depend_on_the_epoch_and_on_nothing_else():
    ours, theirs = dataset(2, []), dataset(2, [])
    first = [ours[k]["number"] for k in range(6)]
    assert [theirs[k]["number"] for k in reversed(range(6))] == first[::-1]
    ours.set_epoch(1)
    assert not np.isin([ours[k]["number"] for k in range(6)], first).any()


def test_no_sample_is_refused():
    with pytest.raises(ValueError, match="samples"):
        dataset(0, [])
