"""Exported models: they answer as the checkpoint does, for volumes of any size, and need nothing beside them."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ckpt_export, verify_net_in_out
from torch import Tensor

from organdetr_monai import export_file, loading
from organdetr_monai.cli import main
from organdetr_monai.data.phantom import make_phantom
from organdetr_monai.detector import OrganDetector
from organdetr_monai.errors import InputError
from organdetr_monai.export import ExportNetwork, join_output, sample_gather, split_output
from organdetr_monai.export_file import export_model
from organdetr_monai.exported import ModelSettings, build, load_exported
from organdetr_monai.inference import best_queries
from organdetr_monai.networks import HybridQueries
from organdetr_monai.networks.sampling import sample_grid
from tests.bundles import make_bundle
from tests.data.scan_files import write

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "models" / "phantom" / "model.pt"
#: One map and one decoder layer keep the ONNX export short; the shipped model has them all.
FEWER = {
    "network_def#backbone#levels": [3],
    "network_def#encoder#windows": [4],
    "network_def#segmentation#levels": 1,
    "network_def#decoder#levels": 1,
    "network_def#decoder#layers": 1,
}
#: Two-stage query selection, for maps of one level.
PROPOSALS = json.loads((ROOT / "configs" / "queries" / "two_stage.json").read_text())
PROPOSALS["network_def#proposals"]["levels"] = 1
TOLERANCE = 3e-4  # of a logit or a normalised box: rounding; measured maxima are about a fifth of it
SIZES = {  # of the window; odd along each axis; smaller than a window of attention; longer than the window
    "small": [(32, 32, 32), (37, 21, 50), (17, 16, 31), (96, 32, 40)],
    "two_stage": [(32, 32, 32), (37, 21, 50), (17, 16, 31)],
    "shipped": [(96, 64, 96), (33, 47, 128), (17, 16, 31), (50, 70, 90)],
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    changes = {"small": FEWER, "two_stage": {**FEWER, **PROPOSALS, "network_def#refiner": None}}
    made = {n: make_bundle(tmp_path_factory.mktemp(n), **c) / "models" / "model.pt" for n, c in changes.items()}
    return {**made, "shipped": SHIPPED}


@pytest.fixture(scope="module")
def exported(checkpoints, tmp_path_factory):
    """Path of an exported model, by network and suffix; each exported once."""
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def get(name: str, suffix: str) -> Path:
        if (name, suffix) not in done:
            path = folder / name / f"model{suffix}"
            done[name, suffix] = export_model(path, model=checkpoints[name], device="cpu").path
        return done[name, suffix]

    return get


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, spacing=(8, 8, 8))


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def difference(ours, theirs, image: Tensor) -> float:
    return float((join_output(ours(image)) - join_output(theirs(image))).abs().max())


def test_output_survives_joining_and_splitting():
    output = {"logits": noise(2, 9, 5), "boxes": noise(2, 9, 6)}
    pred = join_output(output)
    assert pred.shape == (2, 5 + 6, 9)
    assert all(torch.equal(split_output(pred)[key], output[key]) for key in output)


def test_sampling_by_look_up_equals_grid_sample():
    shapes = [(5, 4, 6), (3, 1, 2)]
    value = noise(2, sum(x * y * z for x, y, z in shapes), 3, 4)
    points = noise(2, 7, 3, 2, 5, 3) * 3 - 1  # most of them outside
    points[0, 0] = 1e12  # must not overflow an index
    weights = noise(2, 7, 3, 2, 5)
    expected = sample_grid(value, shapes, points.clamp(-10, 10), weights)
    assert torch.allclose(sample_gather(value, shapes, points, weights), expected, atol=1e-6)
    assert expected.abs().max() > 0.1


def test_wrapper_has_no_segmentation_and_takes_checkpoints_of_the_network(small_network):
    network = small_network().eval()
    export = ExportNetwork(network)
    assert not any("segmentation" in key for key in export.state_dict()) and network.segmentation is not None
    other = small_network().eval()
    with torch.no_grad():
        other.content += 1
    export.load_state_dict(other.state_dict())
    assert difference(lambda image: split_output(export(image)), other, noise(1, 1, 24, 16, 32)) < TOLERANCE
    assert difference(network, other, noise(1, 1, 24, 16, 32)) > TOLERANCE
    with pytest.raises(RuntimeError, match="Missing key"):
        export.load_state_dict({})


def test_wrapper_has_no_queries_of_training(small_network):
    network = small_network(extra_queries=HybridQueries(24)).eval()
    export = ExportNetwork(network)
    assert not any("extra_queries" in key for key in export.state_dict()) and network.extra_queries is not None
    export.load_state_dict(network.state_dict())
    assert difference(lambda image: split_output(export(image)), network, noise(1, 1, 24, 16, 32)) < TOLERANCE


@pytest.mark.parametrize("suffix", [".ts", ".onnx"])
@pytest.mark.parametrize("name", ["small", "two_stage", "shipped"])
def test_export_answers_as_the_checkpoint_for_any_size_and_batch(name, suffix, checkpoints, exported):
    ours = OrganDetector.load(checkpoints[name], device="cpu").network
    theirs, _, _ = load_exported(exported(name, suffix))
    for batch, size in enumerate(SIZES[name], start=1):
        assert difference(ours, theirs, noise(batch % 3 + 1, 1, *size)) < TOLERANCE, size


@pytest.mark.parametrize("suffix", [".ts", ".onnx"])
def test_detections_are_those_of_the_checkpoint_with_nothing_beside_the_file(
    suffix, checkpoints, exported, phantom, tmp_path, monkeypatch
):
    scan = write(tmp_path / "scan.nii.gz", phantom.image, phantom.affine)
    expected = OrganDetector.load(checkpoints["small"], device="cpu")(scan)
    path = tmp_path / f"alone{suffix}"
    path.write_bytes(exported("small", suffix).read_bytes())
    monkeypatch.setattr(loading, "DEFAULT_BUNDLE", tmp_path / "nowhere")
    found = OrganDetector.load(path)(scan)
    assert found.model == expected.model and len(expected.present) > 6
    for a, b in zip(expected.organs, found.organs, strict=True):
        assert (a.organ, a.status, a.truncated) == (b.organ, b.status, b.truncated)
        assert np.allclose(np.r_[a.score, a.box.min, a.box.max], np.r_[b.score, b.box.min, b.box.max], atol=0.02)  # mm


def test_settings_are_those_of_the_model(exported):
    _, settings, _ = load_exported(exported("shipped", ".ts"))
    beside = json.loads(SHIPPED.with_suffix(".json").read_text())
    assert list(settings.organs) == beside["organs"] and settings.window == beside["window"]
    assert settings.spacing == beside["spacing"] and settings.hu_window == beside["hu_window"]
    assert settings.thresholds == json.loads(SHIPPED.with_name("thresholds.json").read_text())["thresholds"]
    assert ModelSettings.from_json(settings.to_json()) == settings
    assert "amp_dtype" not in settings.inferer, "the machine that exports must not decide for the one that detects"


def test_onnx_file_is_what_the_documents_say(exported):
    model = onnx.load(exported("shipped", ".onnx"))
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)] and not model.functions
    assert not any("GridSample" in node.op_type for node in model.graph.node)  # TensorRT refuses it in 3D
    (image,), (pred,) = model.graph.input, model.graph.output
    axes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (image, pred)]
    assert axes == [["batch", 1, "x", "y", "z"], ["batch", 19, 12]]
    sizes = onnx.shape_inference.infer_shapes(model).graph.value_info
    assert max(len(value.type.tensor_type.shape.dim) for value in sizes) <= 8  # TensorRT's limit


def test_files_tell_no_paths_of_this_machine(exported):
    with zipfile.ZipFile(exported("small", ".ts")) as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    for content in (*contents, exported("small", ".onnx").read_bytes()):
        assert str(ROOT).encode() not in content and b"site-packages" not in content


def test_bundle_commands_of_monai_take_the_wrapper(tmp_path):
    bundle = make_bundle(tmp_path / "bundle", organ_set="openkbp", **FEWER)
    meta = json.loads((ROOT / "configs" / "metadata.json").read_text())
    meta["network_data_format"]["inputs"]["image"]["spatial_shape"] = [32, 32, 32]
    (tmp_path / "metadata.json").write_text(json.dumps(meta))
    files = {"meta_file": str(tmp_path / "metadata.json"), "config_file": str(bundle / "configs" / "inference.json")}
    verify_net_in_out("export_network", device="cpu", **files, bundle_root=str(bundle))
    checkpoint = bundle / "models" / "model.pt"
    network = OrganDetector.load(bundle).network
    for traced in (False, True):
        path = tmp_path / f"{traced}.ts"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated
            ckpt_export("export_network", path, checkpoint, **files, use_trace=traced, bundle_root=str(bundle))
        script = torch.jit.load(path)
        assert difference(network, lambda image, s=script: split_output(s(image)), noise(1, 1, 37, 21, 50)) < TOLERANCE


def test_command_exports_and_detects(checkpoints, phantom, tmp_path, capsys):
    write(tmp_path / "scan.nii.gz", phantom.image, phantom.affine)
    model = str(tmp_path / "model.ts")
    assert main(["export", "--output", model, "--model", str(checkpoints["small"])]) == 0
    assert re.search(r"model\.ts: \d\.\d MB, differs from the checkpoint by at most \d", capsys.readouterr().out)
    out = tmp_path / "out"
    assert main(["detect", str(tmp_path / "scan.nii.gz"), "--output", str(out), "--model", model, "--quiet"]) == 0
    assert (out / "scan" / "detections.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.bin"], "Name a .onnx or .ts file"),
        (["model.ts", "--format", "onnx"], "Name a .onnx file"),
        (["model.onnx", "--format", "tflite"], "Choose onnx or torchscript"),
        (["model.onnx", "--device", "cuda"], "Leave --device out"),
        (["folder.ts"], "is a folder"),
        (["model.ts", "--model", "nowhere.pt"], "does not exist"),
        (["model.ts", "--device", "abacus"], "device 'abacus'"),
    ],
)
def test_bad_usage_is_2_and_nothing_is_written(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.ts").mkdir()
    assert main(["export", *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.ts"]


def test_missing_packages_are_named(exported, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(export_file, "find_spec", lambda name: None)
        with pytest.raises(InputError, match=r"needs onnx, onnxscript, onnxruntime.*pip install onnx"):
            export_model("model.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"needs ONNX Runtime.*pip install onnxruntime"):
        load_exported(exported("small", ".onnx"))


def test_preprocessing_that_cannot_travel_is_refused(tmp_path):
    own = [{"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x"}]
    bundle = make_bundle(tmp_path / "a", **{"preprocessing#transforms": own})
    with pytest.raises(InputError, match="cannot hold preprocessing#transforms#0#func"):
        export_model(tmp_path / "model.ts", model=bundle)
    bundle = make_bundle(tmp_path / "b", **{"preprocessing#transforms": [{"_target_": "subprocess.run"}]})
    with pytest.raises(InputError, match="cannot hold 'subprocess.run'"):
        export_model(tmp_path / "model.ts", model=bundle)
    assert not (tmp_path / "model.ts").exists()
    assert build({"a": ["$1 + 1", {"b": "@x"}]}) == {"a": ["$1 + 1", {"b": "@x"}]}  # nothing is evaluated


def test_file_that_answers_otherwise_is_not_put_in_place(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(export_file, "TOLERANCE", 0.0)
    with pytest.raises(RuntimeError, match="differs from the checkpoint"):
        export_model(tmp_path / "model.ts", model=checkpoints["small"])
    assert list(tmp_path.iterdir()) == []


def test_files_of_another_kind_are_refused(exported, tmp_path):
    for suffix, kind in ((".ts", "no TorchScript file"), (".onnx", "no ONNX model")):
        text = tmp_path / f"text{suffix}"
        with pytest.raises(InputError, match="does not exist"):
            OrganDetector.load(text)
        text.write_text("hello")
        with pytest.raises(InputError, match=kind):
            OrganDetector.load(text)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "relu.ts")
    with pytest.raises(InputError, match="does not say what it was trained on"):
        OrganDetector.load(tmp_path / "relu.ts")
    with pytest.raises(InputError, match="holds its settings itself"):
        OrganDetector.load(exported("small", ".ts"), configs=["delta.json"])
    with pytest.raises(InputError, match=r"was exported for cpu and does not run on cuda:0"):
        load_exported(exported("small", ".ts"), device="cuda")
    with pytest.raises(InputError, match="this ONNX Runtime has .*CPU"):
        load_exported(exported("small", ".onnx"), device="mps")


def test_settings_that_lie_are_refused(exported, tmp_path):
    model = onnx.load(exported("small", ".onnx"))
    plain = json.loads(model.metadata_props[0].value)
    for change, message in (
        ({"organs": ["../../liver"] * 12}, "organs are"),
        ({"thresholds": {"liver": "0.5"}}, "thresholds are"),
        ({"version": 2}, "not version 1"),
        ({"extra": 1}, "extra"),
        ({"inferer": {"_target_": "os.system", "command": "true"}}, "cannot hold 'os.system'"),
    ):
        model.metadata_props[0].value = json.dumps({**plain, **change})
        onnx.save(model, tmp_path / "model.onnx")
        with pytest.raises(InputError, match=message):
            OrganDetector.load(tmp_path / "model.onnx")


def test_code_in_the_document_runs(exported, phantom, tmp_path, monkeypatch):
    alone, crop = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(exported("shipped", ".onnx").read_bytes())
    path = write(tmp_path / "scan.nii.gz", phantom.image, phantom.affine)

    detector = OrganDetector.load(SHIPPED, device="cpu")
    volume = make_phantom(3, spacing=(5, 5, 5), axcodes="RAS").image[:90, :60, :90]
    names = {"volume": volume}
    exec(alone, names)
    low, high = 0.0, 1.0
    image = torch.from_numpy(np.clip((volume - -300.0) / (400.0 - -300.0), low, high)).float()[None, None]
    with torch.inference_mode():
        (scores,), (boxes,) = best_queries(detector.network(image), volume.shape)
    present = [k for k, organ in enumerate(detector.organs) if scores[k] >= detector.threshold[organ]]
    assert list(names["found"]) == [detector.organs[k] for k in present] and len(present) > 6
    for k, (score, box) in zip(present, names["found"].values(), strict=True):
        assert abs(score - float(scores[k])) < 1e-4 and np.allclose(box, boxes[k], atol=0.01)  # voxels

    assert "mandible" in json.loads((ROOT / "models" / "model.json").read_text())["organs"]  # what the page exports
    exec(crop.replace("mandible", "liver"), names)
    assert path.exists() and names["crops"]["liver"] == Path("crops/liver.nii.gz") and names["crops"]["liver"].is_file()
