"""Options of matching, queries and decoder, each as its delta: trained by the bundle, and what its model needs."""

from __future__ import annotations

import json

import pytest
import torch
from monai.bundle import ConfigParser

from organdetr_monai.checkpoints import load_weights
from organdetr_monai.data.phantom import write_phantoms
from tests.bundles import SMALL, workflow
from tests.test_bundle import CONFIGS, overrides, parsed

#: Deltas whose model is that of the plain bundle: given to training alone.
TRAINING_ONLY = ["matcher/dn", "matcher/cdn", "matcher/hybrid", "matcher/distinct", "average/off"]
#: Deltas that change the network, so that detection needs them, too.
OF_THE_NETWORK = ["queries/two_stage", "refiner/none", "decoder/auxiliary", "decoder/no_refinement"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, cases=4, splits=(0.5, 0.25, 0.25), spacing=(14, 14, 14), workers=1, progress=False)
    return folder


def plain_network(*deltas: str) -> torch.nn.Module:
    """The network of ``configs/inference.json``, in the size of the tests."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("inference.json", *(f"{delta}.json" for delta in deltas))])
    parser.update({**SMALL, "device": "$torch.device('cpu')", "settings": {}})
    return parser.get_parsed_content("network_def")


@pytest.mark.parametrize("delta", [*TRAINING_ONLY, *OF_THE_NETWORK])
def test_two_epochs_leave_a_model_that_detects(delta, phantoms, tmp_path):
    options = overrides(phantoms, tmp_path)
    workflow(CONFIGS, "train", ["train", delta], run_id="training", **options).run()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["epoch"] == 2
    train = json.loads((tmp_path / "history.json").read_text())[-1]["train"]
    assert all(value == value for value in train.values())
    has_extra = delta in ("matcher/dn", "matcher/cdn", "matcher/hybrid")
    assert ("class_extra" in train) == has_extra and ("class_aux" in train) == (
        delta in ("decoder/auxiliary", "queries/two_stage")
    )
    assert any(name.startswith("extra_queries.") for name in state["parts"]["network"]) == has_extra
    network = load_weights(plain_network(*[delta][: delta in OF_THE_NETWORK]), tmp_path / "model.pt")
    with torch.inference_mode():
        assert network.eval()(torch.rand(1, 1, 32, 32, 32))["boxes"].isfinite().all()
    if delta == "average/off":
        assert all(torch.equal(v, state["parts"]["ema"][k]) for k, v in state["parts"]["network"].items())


def test_a_second_look_is_added_to_a_model_that_has_none(phantoms, tmp_path):
    options = overrides(phantoms, tmp_path / "plain")
    workflow(CONFIGS, "train", ["train", "refiner/none"], run_id="training", **options).run()
    before = torch.load(tmp_path / "plain" / "model.pt", weights_only=True)
    options = overrides(phantoms, tmp_path / "refined", pretrained=str(tmp_path / "plain" / "model.pt"))
    workflow(CONFIGS, "train", ["train", "fine_tune", "refiner/add"], run_id="training", **options).run()
    after = torch.load(tmp_path / "refined" / "model.pt", weights_only=True)
    assert not any(name.startswith("refiner.") for name in before)
    assert any(name.startswith("refiner.") for name in after)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    train = json.loads((tmp_path / "refined" / "history.json").read_text())[-1]["train"]
    assert set(train) == {"loss", "walls", "roi_mask", "grad_norm"}  # no decoder runs whose loss trains nothing
    network = load_weights(plain_network(), tmp_path / "refined" / "model.pt").eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 1, 32, 32, 32))["boxes"].shape[1] == 12  # one for each organ


def test_evaluation_takes_the_delta_of_training_queries_too(phantoms, tmp_path):
    options = overrides(phantoms, tmp_path)
    workflow(CONFIGS, "train", ["train", "matcher/hybrid"], run_id="training", **options).run()
    workflow(CONFIGS, "eval", ["train", "evaluate", "matcher/hybrid"], run_id="evaluating", **options).run()
    assert (tmp_path / "metrics.json").is_file()


def test_denoising_goes_with_dense_matching(phantoms, tmp_path):
    dense = json.loads((CONFIGS / "train.json").read_text())["loss"]["matcher"]
    options = {"loss#matcher": dense, "train#dataset#cache_rate": 0.0, "max_epochs": 1}
    flow = workflow(
        CONFIGS, "train", ["train", "matcher/cdn"], run_id="training", **overrides(phantoms, tmp_path, **options)
    )
    assert type(flow.parser.get_parsed_content("loss").matcher).__name__ == "DenseQueryMatcher"
    flow.run()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 1


@pytest.mark.parametrize(("organ_set", "organs", "queries"), [("phantom", 12, 100), ("totalsegmentator", 19, 600)])
def test_denoising_queries_are_no_more_than_the_matched_ones(organ_set, organs, queries):
    for delta, kinds in (("dn", 1), ("cdn", 2)):
        parser = parsed("train.json", f"matcher/{delta}.json", organ_set=organ_set)
        module = parser.get_parsed_content("network_def#extra_queries")
        assert module.kinds == kinds and module.box_noise == 0.4 and module.label_noise == 0.5
        added = module.groups * kinds * organs
        assert queries - kinds * organs < added <= queries
