"""The config's keys for MONAI Label, called as MONAI Label calls them."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from monai.bundle import ConfigParser

from organdetr_monai.data.phantom import make_phantom
from organdetr_monai.detections import Model
from organdetr_monai.detector import OrganDetector
from organdetr_monai.geometry import box_to_oriented
from organdetr_monai.monai_label import LabelDetector, PatientBoxesd
from organdetr_monai.monai_label.inference import editable_markups
from organdetr_monai.organs import SETS
from tests.affines import rotation, scans
from tests.bundles import make_bundle
from tests.data.scan_files import write
from tests.results import OBLIQUE, make_result

ORGANS = SETS["phantom"].organs
TURNED = np.eye(4)
TURNED[:3, :3] = rotation([0.1, -0.15, 0.2])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


def infer(bundle, path):
    """The steps of monailabel.tasks.infer: basic_infer.BasicInferTask.__call__ and run_detector."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser.config.update({"bundle_root": str(bundle), "use_click": False})
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    data = {"device": "cpu", "model": "organ_detr_ct_detection", "image": str(path), "image_path": str(path)}
    for transform in parser.get_parsed_content("preprocessing").transforms:
        data = transform(data)
    detector = parser.get_parsed_content("detector")
    parser.get_parsed_content("detector_ops")
    detector.network = network.eval()
    with torch.no_grad():
        data.update(detector(data["image"][None], use_inferer=True)[0])
    for transform in parser.get_parsed_content("postprocessing").transforms:
        data = transform(data)
    return data


def storages():
    """One patient, stored along the axes, flipped and permuted, and lying oblique in the scanner."""
    phantom = make_phantom(3, spacing=(7, 9, 11))
    flip = np.eye(4)
    flip[:3, :3] = np.diag([-1, -1, 1])
    flip[:2, 3] = np.array(phantom.image.shape[:2]) - 1
    turned = np.ascontiguousarray(phantom.image[::-1, ::-1].transpose(2, 0, 1))
    yield phantom.image, phantom.affine
    yield turned, phantom.affine @ flip @ np.eye(4)[:, [2, 0, 1, 3]]
    yield phantom.image, TURNED @ phantom.affine


@pytest.mark.parametrize("storage", range(3))
def test_the_servers_steps_give_the_boxes_of_our_own_detector(bundle, tmp_path, storage):
    image, affine = list(storages())[storage]
    path = write(tmp_path / "case.nii.gz", image, affine)
    data, own = infer(bundle, path), OrganDetector.load(bundle)(path)
    assert data["label"].tolist() == [entry.id for entry in own.present] and len(own.present) > 6
    assert data["score"].tolist() == pytest.approx([entry.score for entry in own.present])
    assert data["detections"] == own
    wanted = np.array([np.r_[entry.box.center, entry.box.max - entry.box.min] for entry in own.present])
    assert np.allclose(data["box"], wanted)
    # What the server sends.
    assert json.loads(json.dumps(data["result"]))["organ"] == [entry.organ for entry in own.present]


def test_storage_does_not_move_a_box(bundle, tmp_path):
    straight, flipped, _ = storages()
    a, b = (
        infer(bundle, write(tmp_path / f"{k}.nii.gz", *scan)) for k, scan in enumerate((straight, flipped), start=1)
    )
    assert a["label"].tolist() == b["label"].tolist()
    assert torch.allclose(a["box"], b["box"], atol=1e-2)


@given(scans())
def test_boxes_hold_the_eight_corners_in_lps(scan):
    """Against the definition: voxel corners through the affine of centres, RAS to LPS, the smallest box around them."""
    affine, shape, box = scan
    frame = {"working_affine": affine, "affine": affine, "shape": shape, "image": None, "series_uid": None}
    found = {"box": torch.tensor(box)[None], "label": torch.tensor([2]), "score": torch.tensor([0.9])}
    data = PatientBoxesd(["liver", "spleen"], model=Model("m", "1"))({**found, "frame": frame})
    corners = np.array(
        [[box[3 * side + axis] for axis, side in enumerate(sides)] for sides in product((0, 1), repeat=3)]
    )
    lps = ((corners - 0.5) @ affine[:3, :3].T + affine[:3, 3]) * [-1, -1, 1]
    center, size = np.split(data["box"][0].numpy(), 2)
    tolerance = 1e-6 * np.abs(lps).max() + 1e-3
    assert np.allclose(center, (lps.min(0) + lps.max(0)) / 2, atol=tolerance)
    assert np.allclose(size, np.ptp(lps, axis=0), atol=tolerance)
    assert (data["label"].tolist(), data["result"]["organ"]) == ([2], ["spleen"])


def test_absent_organs_have_no_box():
    frame = {"working_affine": np.eye(4), "affine": np.eye(4), "shape": (9, 9, 9), "image": None, "series_uid": None}
    found = {"box": torch.tensor([[1.0, 1, 1, 4, 4, 4]]), "label": torch.tensor([1]), "score": torch.tensor([0.2])}
    data = PatientBoxesd(["liver"], model=Model("m", "1"))({**found, "frame": frame})
    assert data["box"].shape == (0, 6) and data["label"].shape == data["score"].shape == (0,)
    assert data["result"]["box"] == [] and data["result"]["detections"]["organs"][0]["status"] == "absent"


def test_markups_can_be_edited_and_keep_names_at_their_points():
    result = make_result(affine=OBLIQUE)
    rois = editable_markups(result)["markups"]
    assert [roi["controlPoints"][0]["label"] for roi in rois] == [entry.organ for entry in result.present]
    for roi, entry in zip(rois, result.present, strict=True):
        assert not roi["locked"] and roi["display"]["handlesInteractive"] and roi["display"]["pointLabelsVisibility"]
        axes = np.reshape(roi["orientation"], (3, 3))
        reach = np.abs(axes) @ np.array(roi["size"]) / 2
        assert np.allclose(np.array(roi["center"]) - reach, entry.box.min)
    straight = box_to_oriented([0, 0, 0, 1, 1, 1], OBLIQUE)
    assert not straight.is_axis_aligned, "the case above is oblique"


def test_a_detector_without_a_network_says_so():
    with pytest.raises(ValueError, match="network"):
        LabelDetector(lambda image, network: [])(torch.zeros(1, 1, 4, 4, 4), use_inferer=True)
