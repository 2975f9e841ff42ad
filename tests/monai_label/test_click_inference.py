"""Clicks through the steps of MONAI Label's server, which hands an inferer nothing but image and network."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from organdetr_monai.errors import InputError
from organdetr_monai.geometry import voxel_to_lps
from organdetr_monai.miq_sam3d.finder import LesionFinder
from organdetr_monai.writers.schema import validate
from tests.affines import reorient, rotation
from tests.data.scan_files import write
from tests.miq_sam3d.click_bundle import KINDS, LESIONS, make_click_bundle, scan
from tests.miq_sam3d.oracle import Oracle

STRAIGHT = np.diag([2.0, 2.0, 2.0, 1.0])
TURNED = np.eye(4)
TURNED[:3, :3] = rotation([0.1, -0.15, 0.2])
CYST = (9, 9, 9)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_click_bundle(tmp_path_factory.mktemp("bundle"))


class Server:
    """The steps of monailabel.tasks.infer: bundle.BundleInferTask and basic_infer.BasicInferTask, type deepgrow."""

    def __init__(self, bundle) -> None:
        self.parser = ConfigParser()
        self.parser.read_config(bundle / "configs" / "inference.json")
        self.parser.config.update({"bundle_root": str(bundle), "use_click": False})
        self.network = Oracle().eval()

    def infer(self, path, **params):
        data = {"device": "cpu", "model": "x_deepgrow", "image": str(path), "image_path": str(path), **params}
        for transform in self.parser.get_parsed_content("preprocessing").transforms:
            data = transform(data)
        inferer = self.parser.get_parsed_content("inferer")
        with torch.no_grad():
            outputs = inferer(data["image"][None].to(torch.device("cpu")), self.network)
        data["pred"] = outputs[0]
        for transform in self.parser.get_parsed_content("postprocessing").transforms:
            data = transform(data)
        return self.restored(data)

    @staticmethod
    def restored(data):
        """monailabel.transform.post.Restored: would stretch a mask of another size, and drops the channel."""
        assert isinstance(data["image"], MetaTensor)
        assert tuple(data["pred"].shape[1:]) == tuple(data["image"].meta["spatial_shape"])
        data["pred"] = data["pred"][0].numpy()
        data["affine"] = np.asarray(data["image"].meta["original_affine"])
        return data


def storages():
    """One patient, stored along the axes, flipped and permuted, and lying oblique in the scanner."""
    volume = scan(lesions=LESIONS)
    yield volume, STRAIGHT
    yield reorient(volume, STRAIGHT, (2, 0, 1), (True, False, True))
    yield volume, TURNED @ STRAIGHT


@pytest.mark.parametrize("storage", range(3))
def test_foreground_clicks_reach_the_network(bundle, tmp_path, storage):
    """Voxel indices of the stored array, as 3D Slicer's plugin sends them; the mask lies on that array."""
    array, affine = list(storages())[storage]
    path = write(tmp_path / "case.nii.gz", np.ascontiguousarray(array), affine)
    click = np.argwhere(array == KINDS["cyst"])[10].tolist()
    data = Server(bundle).infer(path, foreground=[click], background=[], label="cyst")
    assert np.array_equal(data["pred"], (array == KINDS["cyst"]).astype(np.uint8))
    assert np.allclose(data["affine"], affine)
    document = json.loads(json.dumps(data["result"]))["answer"]
    validate(document, "lesions")
    assert document["clicks"][0]["voxel"] == click and document["clicks"][0]["lesion"] == 1
    assert np.allclose(document["clicks"][0]["point_mm"], voxel_to_lps(np.add(click, 0.5), affine), atol=1e-4)
    own = LesionFinder.load(bundle)(path, [click], space="voxel")
    assert data["answer"].to_dict() == own.to_dict() and np.array_equal(data["answer"].labels, own.labels)


def test_instances_on_request(bundle, tmp_path):
    array, affine = next(storages())
    path = write(tmp_path / "case.nii.gz", array, affine)
    data = Server(bundle).infer(path, foreground=[[38, 10, 12], [9, 9, 9]], instances=True)
    assert sorted(np.unique(data["pred"])) == [0, 1, 2, 3, 4, 5]
    assert data["pred"][38, 10, 12] == 1 and data["pred"][CYST] == 2


def test_background_clicks_take_lesions_out(bundle, tmp_path):
    array, affine = next(storages())
    path = write(tmp_path / "case.nii.gz", array, affine)
    data = Server(bundle).infer(path, foreground=[list(CYST)], background=[[34, 27, 44], [25, 20, 5]])
    assert data["pred"][CYST] and not data["pred"][34, 27, 44] and len(data["answer"].lesions) == 2


def test_second_request_for_an_image_needs_no_encoder(bundle, tmp_path):
    """The server reads and prepares the image anew; what is kept must be found by what is in it."""
    server = Server(bundle)
    array, affine = next(storages())
    path = write(tmp_path / "case.nii.gz", array, affine)
    first = server.infer(path, foreground=[list(CYST)])
    encoded = server.network.encoded
    server.infer(path, foreground=[[38, 10, 12]])
    assert server.network.encoded == encoded
    other = write(tmp_path / "other.nii.gz", np.where(array == KINDS["cyst"], -60, array), affine)
    assert not server.infer(other, foreground=[list(CYST)])["pred"].any()
    assert server.network.encoded > encoded
    server.network = Oracle().eval()  # other weights
    again = server.infer(path, foreground=[list(CYST)])
    assert server.network.encoded == encoded and np.array_equal(again["pred"], first["pred"])


def test_click_on_background_is_an_empty_mask_and_a_reason(bundle, tmp_path):
    array, affine = next(storages())
    data = Server(bundle).infer(write(tmp_path / "case.nii.gz", array, affine), foreground=[[25, 20, 5]])
    assert not data["pred"].any()
    assert not data["result"]["answer"]["found"] and "nothing to find" in data["result"]["answer"]["reason"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "no click"),
        ({"foreground": []}, "no click"),
        ({"foreground": [[0, 0, 0]]}, "lies on air"),
        ({"foreground": [[99, 0, 0]]}, "outside of the scan"),
    ],
)
def test_requests_that_cannot_be_answered_say_why(bundle, tmp_path, params, message):
    array, affine = next(storages())
    with pytest.raises(InputError, match=message):
        Server(bundle).infer(write(tmp_path / "case.nii.gz", array, affine), **params)
