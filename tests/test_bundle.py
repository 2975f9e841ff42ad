"""The bundle as MONAI sees it: configs, properties, and the workflow from training to boxes in millimetres."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms.traits import RandomizableTrait

from organdetr_monai.calibration import load_thresholds
from organdetr_monai.checkpoints import SETTINGS
from organdetr_monai.data.phantom import write_phantoms
from organdetr_monai.data.prepare import prepare
from organdetr_monai.detections import Detections
from organdetr_monai.errors import input_error
from organdetr_monai.organs import SETS, channel_def
from tests.bundles import SMALL, arguments, small, workflow
from tests.data import trees

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
#: Those of other methods, which have other sizes, are in tests/peers, and another bundle's in tests/miq_sam3d.
#: But those of other methods and bundles, one that goes on from weights (tests/test_query_options.py), and one that
#: brings back what another took away, and so changes nothing by itself.
DELTAS = sorted(
    p.relative_to(CONFIGS).as_posix()
    for p in CONFIGS.glob("*/*.json")
    if p.parent.name not in ("peers", "miq_sam3d") and p.name not in ("add.json", "default.json")
)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Six phantoms of coarse voxels, split into training and validation."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, cases=6, splits=(0.5, 0.25, 0.25), spacing=(10, 10, 10), workers=1, progress=False)
    return folder


def overrides(phantoms: Path, out: Path, **more) -> dict:
    paths = {"bundle_root": str(ROOT), "dataset_dir": str(phantoms), "ckpt_dir": str(out), "output_dir": str(out)}
    quick = {"max_epochs": 2, "val_interval": 1, "device": "$torch.device('cpu')"}
    quick["datalist"] = str(phantoms / "datalist.json")
    return {**SMALL, **paths, **quick, **more}


def parsed(*names: str, **options) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in names])
    parser.update(options)
    return parser


def run(out: Path, phantoms: Path, **more) -> None:
    workflow(CONFIGS, "train", ["train"], run_id="training", **overrides(phantoms, out, **more)).run()


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory):
    """Folder of a finished run of two epochs."""
    out = tmp_path_factory.mktemp("run")
    run(out, phantoms)
    return out


def test_properties_are_complete(phantoms, trained):
    assert workflow(CONFIGS, "train", ["train"], **overrides(phantoms, trained)).check_properties() == []
    assert workflow(CONFIGS, "eval", ["train", "evaluate"], **overrides(phantoms, trained)).check_properties() == []
    options = inference_options(phantoms, trained, trained, phantoms / "images")
    assert workflow(CONFIGS, "infer", ["inference"], **options).check_properties() == []


def test_training_leaves_a_plain_state_dict_logs_and_the_state_of_the_run(trained):
    weights = torch.load(trained / "model.pt", weights_only=True)
    assert all(torch.is_tensor(v) for v in weights.values())
    assert any(p.name.startswith("events") for p in (trained / "tensorboard").iterdir())
    assert torch.load(trained / "last.pt", weights_only=True)["epoch"] == 2


def test_resumed_run_equals_an_uninterrupted_one(phantoms, trained, tmp_path):
    # The schedule spans both epochs in either case; the first process just ends after one.
    run(tmp_path, phantoms, **{"train#trainer#max_epochs": 1})
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 1
    run(tmp_path, phantoms)
    ours, theirs = (torch.load(p / "last.pt", weights_only=True)["parts"] for p in (tmp_path, trained))
    for part in ("network", "ema"):
        assert all(torch.equal(v, theirs[part][k]) for k, v in ours[part].items()), part


def test_killed_run_goes_on_from_any_folder(phantoms, tmp_path):
    out = tmp_path / "out"
    options = overrides(phantoms, out, max_epochs=40, val_interval=50)
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(CONFIGS / "train.json")]
    command += arguments(options)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 240
        while not (out / "last.pt").exists():
            assert process.poll() is None, process.stdout.read().decode()[-3000:]
            assert time.monotonic() < deadline, "no epoch was finished"
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    reached = torch.load(out / "last.pt", weights_only=True)["epoch"]
    assert 1 <= reached < 40
    run(out, phantoms, max_epochs=reached + 1, val_interval=50)
    assert torch.load(out / "last.pt", weights_only=True)["epoch"] == reached + 1


def test_evaluation_prints_and_saves_the_table(phantoms, trained, tmp_path, capsys):
    options = overrides(phantoms, tmp_path, ckpt_dir=str(trained))
    workflow(CONFIGS, "eval", ["train", "evaluate"], run_id="evaluating", **options).run()
    printed = capsys.readouterr().out
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert all(organ in printed for organ in SETS["phantom"].organs)
    assert set(saved["per_organ"]) == set(SETS["phantom"].organs) and 0 <= saved["mAP_coco"] <= 1
    before = (tmp_path / "metrics.json").read_bytes()
    workflow(CONFIGS, "eval", ["train", "evaluate"], run_id="evaluating", split="test", **options).run()
    assert (tmp_path / "test" / "metrics.json").exists() and (tmp_path / "metrics.json").read_bytes() == before
    assert set(load_thresholds(trained / "thresholds.json", SETS["phantom"].organs)) == set(SETS["phantom"].organs)


def inference_options(phantoms, trained, out, images) -> dict:
    options = overrides(phantoms, out, dataset_dir=str(images), ckpt_path=str(trained / "model.pt"))
    for key in ("ckpt_dir", "max_epochs", "val_interval", "datalist"):
        options.pop(key)
    return options


def test_inference_writes_boxes_without_labels_and_one_bad_case_costs_only_itself(phantoms, trained, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    good = sorted((phantoms / "images").iterdir())[:2]
    for path in good:
        os.link(path, images / path.name)
    (images / "case_000a.nii.gz").write_bytes(good[0].read_bytes()[:5000])  # cut off, between two good ones
    flow = workflow(
        CONFIGS,
        "infer",
        ["inference"],
        run_id="inference",
        **inference_options(phantoms, trained, tmp_path / "out", images),
    )
    flow.parser["thresholds"] = 0.0
    with pytest.raises(Exception) as failure:  # MONAI wraps what a config's expression raises
        flow.run()
    assert "1 of 3 cases failed: case_000a" in str(input_error(failure.value))
    for path in good:
        name = path.name.removesuffix(".nii.gz")
        detections = Detections.load(tmp_path / "out" / name / "detections.json")
        assert [organ.organ for organ in detections.organs] == list(SETS["phantom"].organs)
        assert detections.present, "with a threshold of 0 every organ has its best box"


def test_train_and_inference_describe_one_network_and_one_preprocessing():
    train, inference = (json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("train", "inference"))
    assert train["network_def"] == inference["network_def"]
    *steps, pad, record = inference["preprocessing"]["transforms"]
    assert train["preprocess"]["transforms"] == steps
    assert pad in train["validate"]["transforms"] and record["_target_"].endswith("RecordFramed")


def test_inference_takes_organs_and_grid_from_beside_the_weights(tmp_path):
    train, inference = (parsed(f"{name}.json", ckpt_path=str(tmp_path / "model.pt")) for name in ("train", "inference"))
    own = [key for key in SETTINGS if key not in ("num_kinds", "channels")]  # which are the click bundle's
    for key in own:  # nothing there: the same defaults
        assert train.get_parsed_content(key) == inference.get_parsed_content(key)
    settings = {"organs": ["liver"], "spacing": [4.0, 3.0, 2.0], "window": [64, 32, 96], "hu_window": [0.0, 80.0]}
    settings |= {"hidden_dim": 48, "num_queries": 20, "refiner_size": 16}
    assert set(settings) == set(own)
    (tmp_path / "model.json").write_text(json.dumps(settings))
    parser = parsed("inference.json", ckpt_path=str(tmp_path / "model.pt"))
    assert {key: parser.get_parsed_content(key) for key in own} == settings
    network = parser.get_parsed_content("network_def")
    assert network.decoder.dim == 48 and len(network.content) == 20 and network.refiner.size == 16
    other = parsed("inference.json", ckpt_path=str(tmp_path / "mine.pt"))  # beside which lies another model's
    assert other.get_parsed_content("organs") == train.get_parsed_content("organs")


def test_everything_before_the_first_random_transform_is_cached(phantoms, tmp_path):
    flow = workflow(CONFIGS, "train", ["train"], **overrides(phantoms, tmp_path))
    train, validate = (flow.parser.get_parsed_content(f"{part}#dataset").transform for part in ("train", "validate"))

    def first_random(transforms):
        return next((type(t).__name__ for t in transforms.transforms if isinstance(t, RandomizableTrait)), None)

    assert first_random(train) == "RandMirrord" and first_random(validate) is None


def test_second_look_of_another_size_is_detected_with_as_trained(tmp_path):
    trained = parsed("train.json", "size/paper.json", "refiner/default.json", refiner_size=32, **SMALL)
    settings = trained.get_parsed_content("train#handlers#7#settings")
    assert settings["refiner_size"] == 32 == trained.get_parsed_content("network_def").refiner.size
    torch.save({}, tmp_path / "model.pt")
    (tmp_path / "model.json").write_text(json.dumps({"refiner_size": settings["refiner_size"]}))
    options = {**SMALL, "ckpt_path": str(tmp_path / "model.pt")}
    assert parsed("inference.json", **options).get_parsed_content("network_def").refiner.size == 32
    paper = parsed("inference.json", "size/paper.json", **options)
    assert paper.get_parsed_content("network_def").refiner is None
    again = parsed("inference.json", "size/paper.json", "refiner/default.json", **options)
    assert again.get_parsed_content("network_def").refiner.size == 32


def test_only_a_second_look_that_is_there_can_be_trained_alone():
    plain = parsed("train.json", "fine_tune.json", "refiner/add.json", "refiner/none.json", network="@network_def")
    with pytest.raises(RuntimeError, match="refiner_of") as error:
        plain.get_parsed_content("trained")
    assert "no refiner to train" in str(input_error(error.value))


def test_default_network_is_light_and_the_papers_fits_its_limit():
    count = lambda parser: sum(p.numel() for p in parser.get_parsed_content("network_def").parameters())  # noqa: E731
    assert count(parsed("train.json")) <= 5e6
    paper = parsed("train.json", "size/paper.json")
    assert 20e6 < count(paper) <= 60e6
    network = paper.get_parsed_content("network_def")
    attention = network.decoder.layers[0].cross_attention
    assert (network.decoder.dim, attention.heads, attention.levels, attention.points) == (384, 6, 3, 4)


@pytest.mark.parametrize("delta", DELTAS)
def test_every_delta_changes_the_base_and_still_trains(delta, phantoms, tmp_path, make_targets):
    content = json.loads((CONFIGS / delta).read_text())
    parser = parsed("train.json", delta)
    base = parsed("train.json")
    assert all(parser[key] != base.get(key) for key in content), "a delta that changes nothing"
    tiny = small(delta)
    if "organ_set" not in content:
        tiny["num_queries"] = 24
    else:
        tiny.pop("num_queries")
    parser.update({**tiny, "device": "$torch.device('cpu')"})
    network, loss = parser.get_parsed_content("network"), parser.get_parsed_content("loss")
    organs = len(parser.get_parsed_content("organs"))
    targets = make_targets([3], num_classes=organs, shape=(32, 32, 32))
    given = [targets] if getattr(network, "needs_targets", False) else []
    terms = loss(network(torch.rand(1, 1, 32, 32, 32), *given), targets)
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert all(p.grad is not None for p in network.parameters()), "many GPUs would wait for its gradient"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"datalist": "nowhere.json"}, "nowhere.json"),
        (
            {"dataset_dir": "empty", "datalist": json.loads((CONFIGS / "train.json").read_text())["datalist"]},
            "there is no",
        ),
        ({"organs": ["femur_left"]}, "none of the model's organs"),
        ({"val_datalist": "copy.json"}, "in training and in validation"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(phantoms, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    content = json.loads((phantoms / "datalist.json").read_text())
    cases = [{**case, "split": "val"} for case in content["cases"]]
    for case in cases:
        case["image"], case["label"] = (str(phantoms / case[key]) for key in ("image", "label"))
    (tmp_path / "copy.json").write_text(json.dumps({**content, "cases": cases}))
    with pytest.raises(Exception) as failure:  # MONAI wraps what a config's expression raises
        run(tmp_path / "out", phantoms, **options)
    assert message in str(input_error(failure.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["abdomenct1k", "word", "totalsegmentator", "amos", "verse"])
def test_each_public_set_goes_from_download_to_a_trained_model(name, tmp_path):
    source = trees.TREES[name](tmp_path / "download")
    report = prepare(name, source, tmp_path / "prepared", workers=1, progress=False)
    out = tmp_path / "out"
    options = overrides(tmp_path, out, datalist=str(report.datalist))
    options["num_queries"] = 48  # at least one for each vertebra
    flow = workflow(CONFIGS, "train", ["train", f"data/{name}"], run_id="training", **options)
    flow.run()
    assert torch.load(out / "last.pt", weights_only=True)["epoch"] == 2
    assert json.loads((out / "model.json").read_text())["organs"] == list(SETS[name].organs)


@pytest.mark.parametrize("delta", ["encoder/deformable", "backbone/resnet3d", "backbone/swin", "backbone/swin_unetr"])
def test_each_option_of_the_network_trains_and_goes_on(delta, phantoms, tmp_path):
    names, kept = ["train", delta], small(f"{delta}.json")
    options = {k: v for k, v in overrides(phantoms, tmp_path).items() if k not in SMALL or k in kept}
    workflow(CONFIGS, "train", names, run_id="training", **{**options, "train#trainer#max_epochs": 1}).run()
    flow = workflow(CONFIGS, "train", names, run_id="training", **options)
    flow.run()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 2
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert weights.keys() == flow.parser.get_parsed_content("network").state_dict().keys()
    assert all(v.isfinite().all() for v in weights.values())


def test_metadata_tells_what_the_registry_and_the_package_say():
    import organdetr_monai

    meta = json.loads((CONFIGS / "metadata.json").read_text())
    assert meta["version"] == organdetr_monai.__version__ and meta["version"] in meta["changelog"]
    output = meta["network_data_format"]["outputs"]["pred"]
    assert output["channel_def"] == channel_def(SETS["openkbp"].organs)
    assert meta["network_data_format"]["inputs"]["image"]["spatial_shape"] == list(SETS["openkbp"].window)


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_many_processes_check_what_one_does(name):
    one, many = (
        json.loads((ROOT / "configs" / f"{prefix}{name}.json").read_text())["initialize"]
        for prefix in ("", "multi_gpu_")
    )
    assert [line for line in many if line in one] == one
