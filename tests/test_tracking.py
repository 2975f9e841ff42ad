"""MONAI's ``--tracking mlflow`` with the bundle's configs."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from monai.handlers import from_engine

from tests.bundles import workflow
from tests.test_bundle import CONFIGS, overrides, parsed, phantoms  # noqa: F401 - a fixture


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["train.json"], ["train#handlers", "validate#handlers"]),
        (["train.json", "multi_gpu_train.json"], ["train#handlers", "validate#handlers"]),
        (["train.json", "evaluate.json"], ["handlers"]),
        (["inference.json"], ["handlers"]),
    ],
)
def test_every_engine_that_runs_gets_a_handler(names, places, tmp_path):
    parser = parsed(*names, output_dir=str(tmp_path))
    before = {place: len(parser[place]) for place in places}
    ConfigWorkflow.patch_bundle_tracking(parser, DEFAULT_MLFLOW_SETTINGS)
    assert {place: len(parser[place]) for place in places} == {k: n + 1 for k, n in before.items()}
    assert all(parser[place][-1]["_target_"] == "MLFlowHandler" for place in places)


def test_the_handler_of_a_trainer_finds_the_loss():
    output = [{"loss": torch.tensor(2.5), "class": torch.tensor(1.0)}]  # as TrainingStep gives it
    assert from_engine(["loss"], first=True)(output).item() == 2.5


def test_a_run_arrives_in_mlflow(phantoms, tmp_path):  # noqa: F811
    mlflow = pytest.importorskip("mlflow", reason='MLflow is an extra: pip install -e ".[mlflow]"')
    workflow(CONFIGS, "train", ["train"], run_id="training", tracking="mlflow", **overrides(phantoms, tmp_path)).run()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlruns.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "monai_experiment")
    (run,) = client.search_runs([experiment.experiment_id])
    assert {"train_loss", "mAP_coco", "wall_mean"} <= run.data.metrics.keys()
    assert [m.step for m in client.get_metric_history(run.info.run_id, "mAP_coco")] == [1, 2]
