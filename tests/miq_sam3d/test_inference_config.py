"""The bundle's own inference config: through ``monai.bundle``, with the oracle and with the real network."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from organdetr_monai.errors import InputError, input_error
from organdetr_monai.miq_sam3d import models_folder
from organdetr_monai.miq_sam3d.export import ExportClickNetwork
from organdetr_monai.miq_sam3d.finder import LesionFinder
from organdetr_monai.miq_sam3d.points import read_clicks
from tests.data.scan_files import write
from tests.miq_sam3d.click_bundle import CONFIG, LESIONS, make_click_bundle, scan

METADATA = CONFIG.with_name("metadata.json")


@pytest.fixture
def folder(tmp_path):
    """Two scans and clicks in them, one of which is on air."""
    write(tmp_path / "images" / "one.nii.gz", scan(lesions=LESIONS), np.diag([2.0, 2, 2, 1]))
    return tmp_path / "images"


@pytest.fixture(autouse=True)
def _images(tmp_path):
    (tmp_path / "images").mkdir()


def write_cases(folder, *cases, **common):
    path = folder / "clicks.json"
    path.write_text(json.dumps({"cases": list(cases), **common}))
    return path


def test_bundle_run_answers_the_clicks_of_a_file(folder, tmp_path):
    bundle = make_click_bundle(tmp_path / "bundle")
    write_cases(
        folder,
        {"image": "one.nii.gz", "points": [[9, 9, 9]], "name": "cysts"},
        {"image": "one.nii.gz", "points": [[0, 0, 0]]},
        {"image": "one.nii.gz", "points": [[-76.0, -20.0, 24.0]], "space": "lps", "name": "tumours"},
        space="voxel",
    )
    flow = ConfigWorkflow(
        str(bundle / "configs" / "inference.json"),
        str(METADATA),
        workflow_type="infer",
        bundle_root=str(bundle),
        dataset_dir=str(folder),
        output_dir=str(tmp_path / "out"),
    )
    flow.initialize()
    assert flow.check_properties() == []
    with pytest.raises(RuntimeError) as failure:
        flow.run()
    assert "1 of 3 cases failed: 001_one" in str(input_error(failure.value))
    answers = {p.name: json.loads((p / "lesions.json").read_text()) for p in (tmp_path / "out").iterdir()}
    assert {name: len(answer["lesions"]) for name, answer in answers.items()} == {"cysts": 3, "tumours": 2}
    own = LesionFinder.load(bundle)(folder / "one.nii.gz", [(9, 9, 9)], space="voxel")
    assert answers["cysts"] == json.loads(json.dumps(own.to_dict()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "lists no cases"),
        ('{"cases": [{"points": []}]}', "Case 0 .* has no image"),
    ],
)
def test_files_of_clicks_that_are_none_are_refused_with_an_example(tmp_path, content, message):
    path = tmp_path / "clicks.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        read_clicks(path, tmp_path)
    assert '"space": "voxel"' in refused.value.remedy


def real_network(**changes):
    parser = ConfigParser(json.loads(CONFIG.read_text(encoding="utf-8")))
    for key, value in {"settings": {}, **changes}.items():  # not those of the weights that are shipped
        parser[key] = value
    torch.manual_seed(0)
    return parser.get_parsed_content("network_def").eval()


def test_real_network_answers_through_the_real_config(tmp_path):
    """Untrained: it finds something or nothing, but never a lesion that is none of the label map's."""
    network_def = json.loads(CONFIG.read_text(encoding="utf-8"))["network_def"]
    bundle = make_click_bundle(
        tmp_path / "bundle",
        weights=False,
        network_def=network_def,
        window=[32, 32, 32],
        **{"inferer#score": 0.0, "inferer#keep": 0.0},
    )
    (bundle / "models").mkdir()
    torch.save(real_network().state_dict(), bundle / "models" / "model.pt")
    answer = LesionFinder.load(bundle)((scan(lesions=LESIONS), np.diag([2.0, 2, 2, 1])), [(9, 9, 9)], space="voxel")
    assert answer.found == (answer.labels[9, 9, 9] == 1)
    assert [lesion.id for lesion in answer.lesions] == np.unique(answer.labels[answer.labels > 0]).tolist()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes are fixed in a trace of one window
def test_export_network_says_what_the_network_says_of_a_click():
    network = real_network()
    export = ExportClickNetwork(network, example=(32, 32, 32))
    image = torch.rand(2, 2, 32, 32, 32)
    image[:, 1] = 0
    image[0, 1, 5, 20, 11] = 1
    image[1, 1, 16, 3, 30] = 1
    clicks = (torch.tensor([[5, 20, 11], [16, 3, 30]]) + 0.5) / 32
    with torch.no_grad():
        output = network(image[:, :1], clicks)
        score = output["objectness"].sigmoid() * output["quality"].sigmoid()
        wanted = output["masks"].sigmoid() * score[..., None, None, None]
        found, script = export(image), torch.jit.script(export)
        scripted, alone = script(image), script(image[:1])
    assert found.shape == (2, 12, 16, 16, 16)
    assert torch.allclose(found, wanted, atol=1e-5) and torch.allclose(scripted, wanted, atol=1e-4)
    assert torch.allclose(alone, wanted[:1], atol=1e-4), "the trace is of another number of windows"


def test_metadata_says_what_the_config_does():
    metadata = json.loads(METADATA.read_text(encoding="utf-8"))["network_data_format"]
    parser = ConfigParser(json.loads(CONFIG.read_text(encoding="utf-8")))
    config = {key: parser.get_parsed_content(key) for key in ("window", "num_queries")}
    assert metadata["inputs"]["image"]["spatial_shape"] == config["window"]
    pred = metadata["outputs"]["pred"]
    assert (pred["num_channels"], pred["spatial_shape"]) == (config["num_queries"], [n // 2 for n in config["window"]])


def test_weights_lie_apart_where_two_bundles_share_a_folder(tmp_path):
    assert models_folder(tmp_path) == str(tmp_path / "models")
    (tmp_path / "configs" / "miq_sam3d").mkdir(parents=True)
    assert models_folder(tmp_path) == str(tmp_path / "models" / "miq_sam3d")


def test_a_place_that_is_and_is_not_a_lesion_is_refused(folder):
    """Two voxels of 1 mm that are one of the working grid's."""
    path = folder / "fine.nii.gz"
    write(path, scan(lesions=LESIONS), np.eye(4))
    preprocessing = ConfigParser(json.loads(CONFIG.read_text(encoding="utf-8"))).get_parsed_content("preprocessing")
    sample = {"image": str(path), "points": [[8, 8, 8], [20, 8, 8]], "space": "voxel"}
    marks = preprocessing({**sample, "background": [[30, 8, 8]]})["image"][1]
    assert sorted(marks[marks != 0].tolist()) == [-1, 1, 2]
    with pytest.raises(Exception) as caught:
        preprocessing({**sample, "background": [[9, 9, 9]]})
    assert "in the voxel of a click on a lesion" in str(input_error(caught.value))
