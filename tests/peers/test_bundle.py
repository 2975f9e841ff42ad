"""Every peer in the bundle: trained for two epochs, evaluated, and given to the detector's commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from organdetr_monai import OrganDetector
from organdetr_monai.data.phantom import write_phantoms
from organdetr_monai.organs import SETS
from tests.bundles import SMALL, workflow

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
PEERS = sorted(path.stem for path in (CONFIGS / "peers").glob("*.json"))
GRID = {key: SMALL[key] for key in ("spacing", "window")}
SIZES = {
    "unet": {"network_def#channels": [4, 8, 8], "network_def#strides": [2, 2]},
    "retinanet": {"hidden_dim": 16, "network_def#backbone#channels": [4, 8, 8, 8]},
    "retina_unet": {"hidden_dim": 16, "network_def#backbone#channels": [4, 8, 8, 8]},
    "focused_decoder": {
        "hidden_dim": 24,
        "network_def#backbone#channels": [4, 8, 8, 8],
        "network_def#hidden": 24,
        "network_def#layers": 2,
    },
    "d_detr": {**SMALL, "network_def#encoder#layers": 1},
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Six phantoms of coarse voxels, split into training and validation."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, cases=6, splits=(0.5, 0.25, 0.25), spacing=(10, 10, 10), workers=1, progress=False)
    return folder


def options(peer: str, phantoms: Path, out: Path) -> dict:
    paths = {"bundle_root": str(ROOT), "dataset_dir": str(phantoms), "ckpt_dir": str(out), "output_dir": str(out)}
    quick = {"max_epochs": 2, "val_interval": 1, "device": "$torch.device('cpu')", "amp_dtype": "float32"}
    return {**GRID, **SIZES[peer], **paths, **quick, "datalist": str(phantoms / "datalist.json")}


def run(kind: str, task: str, files: list[str], changes: dict) -> None:
    workflow(CONFIGS, kind, files, run_id=task, **changes).run()


def config(peer: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / "peers" / f"{peer}.json")])
    parser["device"] = "$torch.device('cpu')"
    return parser


@pytest.mark.parametrize("peer", PEERS)
def test_peer_trains_resumes_evaluates_and_detects(peer, phantoms, tmp_path):
    changes = options(peer, phantoms, tmp_path)
    files = ["train", f"peers/{peer}"]
    run("train", "training", files, {**changes, "train#trainer#max_epochs": 1})
    run("train", "training", files, changes)
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["epoch"] == 2 and all(value.isfinite().all() for value in last["parts"]["network"].values())
    organs = list(SETS["phantom"].organs)
    assert json.loads((tmp_path / "model.json").read_text())["organs"] == organs
    run("eval", "evaluating", [*files, "evaluate"], changes)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["per_organ"]) == set(organs) and 0 <= metrics["mAP_coco"] <= 1
    # Detection takes the same files, and what of them is of the network.
    network = {k: v for k, v in SIZES[peer].items() if k.startswith("network_def#")}
    (tmp_path / "sizes.json").write_text(json.dumps(network))
    deltas = [CONFIGS / "peers" / f"{peer}.json", tmp_path / "sizes.json"]
    detector = OrganDetector.load(tmp_path / "model.pt", configs=deltas, device="cpu")
    detections = detector(sorted((phantoms / "images").iterdir())[0])
    assert [entry.organ for entry in detections.organs] == organs


@pytest.mark.parametrize("peer", PEERS)
def test_peer_is_of_the_detectors_size_and_no_parameter_is_left_out(peer, make_targets):
    parser = config(peer)
    network, loss = parser.get_parsed_content("network_def"), parser.get_parsed_content("loss")
    assert 1.5e6 < sum(p.numel() for p in network.parameters()) < 3.5e6
    targets = make_targets([12], num_classes=12, shape=(48, 32, 48))
    loss(network(torch.rand(1, 1, 48, 32, 48)), targets)["loss"].backward()
    # Not the amount: where attention starts uniform, what would tell its places apart has a gradient of 0 as yet.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("peer", PEERS)
def test_processes_that_share_a_batch_divide_by_its_numbers(peer, make_targets):
    parser = config(peer)
    network, loss = parser.get_parsed_content("network_def"), parser.get_parsed_content("loss")
    output, targets = network(torch.rand(1, 1, 48, 32, 48)), make_targets([12], num_classes=12, shape=(48, 32, 48))
    costs = []
    for average in (None, lambda counts: 2 * counts):  # as if the others had three times as many of everything
        torch.manual_seed(0)  # of sampled anchors
        loss.average = average
        costs.append(loss(output, targets)["loss"].item())
    assert costs[1] == pytest.approx(costs[0] / 2, rel=1e-4)


def test_retina_unet_is_the_retinanet_with_segmentation():
    plain, with_heads = (
        json.loads((CONFIGS / "peers" / f"{n}.json").read_text()) for n in ("retinanet", "retina_unet")
    )
    assert plain["network_def"].pop("segmentation") is None
    assert with_heads["network_def"].pop("segmentation")["_target_"].endswith("SegmentationHeads")
    assert plain == with_heads


@pytest.mark.parametrize("peer", PEERS)
def test_peer_changes_nothing_but_the_method(peer):
    """Data, transforms, trainer, evaluator and metrics are the base's."""
    delta = json.loads((CONFIGS / "peers" / f"{peer}.json").read_text())
    assert set(delta.pop("+validate", {"inferer": ""})) == {"inferer"}
    method = {"network_def", "loss", "start_queries", "hidden_dim", "inferer", "peer_inferer"}
    assert {key.split("#")[0] for key in delta} <= method
