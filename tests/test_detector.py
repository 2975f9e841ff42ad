"""The Python API: what it loads, what it takes, that it agrees with the bundle, and what it refuses."""

from __future__ import annotations

import doctest
import hashlib
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from organdetr_monai import loading
from organdetr_monai.calibration import save_thresholds
from organdetr_monai.data.phantom import make_phantom
from organdetr_monai.data.scans import find_scan
from organdetr_monai.detections import Detections
from organdetr_monai.detector import OrganDetector
from organdetr_monai.errors import InputError
from organdetr_monai.organs import SETS
from organdetr_monai.writers.schema import validate
from tests.bundles import SPACING, make_bundle
from tests.data.scan_files import write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def detector(bundle):
    return OrganDetector.load(bundle)


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, spacing=(8, 8, 8))


@pytest.fixture(scope="module")
def scan(phantom, tmp_path_factory):
    return write(tmp_path_factory.mktemp("scan") / "case.nii.gz", phantom.image, phantom.affine)


def walls(detections: Detections) -> np.ndarray:
    """Millimetres of all boxes, (K, 6); NaN where absent."""
    absent = np.full(6, np.nan)
    return np.array([absent if o.box is None else np.r_[o.box.min, o.box.max] for o in detections.organs])


def test_every_organ_of_the_model_is_in_the_result(detector, scan, tmp_path):
    detections = detector(scan)
    assert tuple(o.organ for o in detections.organs) == detector.organs == SETS["phantom"].organs
    assert len(detections.present) > 6  # else the comparisons below compare nothing
    assert detections.image == str(scan) and detections.model.name == "organ_detr_ct_detection"
    detections.save(tmp_path / "detections.json")
    validate(json.loads((tmp_path / "detections.json").read_text()))


def test_it_gives_what_the_bundle_gives(bundle, detector, scan, tmp_path):
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser.update({"bundle_root": str(bundle), "dataset_dir": str(scan.parent), "output_dir": str(tmp_path)})
    parser.get_parsed_content("evaluator").run()
    assert Detections.load(tmp_path / "case" / "detections.json") == detector(scan)


@pytest.mark.parametrize("axcodes", ["LPS", "PIL", "SAR"])
def test_orientation_of_the_array_does_not_matter(detector, phantom, axcodes):
    other = make_phantom(3, spacing=(8, 8, 8), axcodes=axcodes)
    assert not np.allclose(other.affine, phantom.affine)
    first, second = (walls(detector((p.image, p.affine))) for p in (phantom, other))
    assert np.nanmax(np.abs(first - second)) < 1e-2 * SPACING  # far below the working voxel that the spec allows
    assert np.array_equal(np.isnan(first), np.isnan(second))


@pytest.mark.parametrize("name", ["case.nrrd", "case.mha", "dicom"])
def test_format_of_the_file_does_not_matter(detector, phantom, scan, tmp_path, name):
    again = detector(write(tmp_path / name, phantom.image, phantom.affine))
    assert np.allclose(walls(again), walls(detector(scan)), atol=1e-2 * SPACING, equal_nan=True)
    assert (again.series_uid is not None) == (name == "dicom")


def test_path_scan_array_and_volume_are_the_same(detector, phantom, scan):
    expected = walls(detector(str(scan)))
    assert np.array_equal(walls(detector(find_scan(scan))), expected, equal_nan=True)
    assert np.array_equal(walls(detector(detector.read(scan))), expected, equal_nan=True)
    from_array = detector((phantom.image, phantom.affine))
    assert np.allclose(walls(from_array), expected, atol=1e-3, equal_nan=True)
    assert from_array.image is None and from_array.shape == phantom.image.shape


def test_views_with_negative_strides_are_taken(detector, phantom):
    flipped = phantom.affine.copy()
    flipped[:3, 3] += flipped[:3, 0] * (phantom.image.shape[0] - 1)
    flipped[:3, 0] *= -1
    boxes = walls(detector((phantom.image.astype(np.float32)[::-1], flipped)))
    assert np.allclose(boxes, walls(detector((phantom.image, phantom.affine))), atol=1e-2 * SPACING, equal_nan=True)


def test_detection_leaves_the_scan_as_it_was(detector, phantom, scan):
    volume, array = detector.read(scan), phantom.image.astype(np.float32)
    detector(volume)
    detector((array, phantom.affine))
    assert np.array_equal(volume[0].numpy(), phantom.image) and np.array_equal(array, phantom.image)


def test_threshold_of_each_organ_comes_from_the_bundle(scan, tmp_path):
    bundle = make_bundle(tmp_path / "b", thresholds="$dict.fromkeys(@organs, 0.0) | {'liver': 1.0}")
    detections = OrganDetector.load(bundle)(scan)
    assert detections["liver"].status == "absent" and detections["liver"].score is not None
    assert len(detections.present) > 5


def test_without_thresholds_it_is_one_half(bundle, scan, tmp_path):
    delta = tmp_path / "delta.json"
    delta.write_text('{"thresholds": 0.5}')
    by_delta = OrganDetector.load(bundle, configs=[delta])(scan)
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    del config["thresholds"], config["handlers"][0]["threshold"]
    copy = make_bundle(tmp_path / "b")
    (copy / "configs" / "inference.json").write_text(json.dumps(config))
    assert OrganDetector.load(copy)(scan) == by_delta
    assert all((o.score >= 0.5) == (o.status == "present") for o in by_delta.organs)


def test_missing_threshold_is_refused(tmp_path):
    with pytest.raises(InputError, match="no threshold for lung_right"):
        OrganDetector.load(make_bundle(tmp_path / "b", thresholds={"lung_left": 0.3}))


def test_checkpoint_is_read_with_the_config_of_its_bundle(bundle, detector, scan):
    assert OrganDetector.load(bundle / "models" / "model.pt")(scan) == detector(scan)


def test_checkpoint_elsewhere_is_read_with_the_default_config(bundle, detector, scan, tmp_path, monkeypatch):
    loose = tmp_path / "mine.pt"
    loose.write_bytes((bundle / "models" / "model.pt").read_bytes())
    with pytest.raises(InputError, match="another architecture"):
        OrganDetector.load(loose)
    monkeypatch.setattr(loading, "DEFAULT_BUNDLE", bundle)
    assert OrganDetector.load(loose)(scan) == OrganDetector.load()(scan) == detector(scan)


def test_thresholds_are_those_beside_the_checkpoint(scan, tmp_path, monkeypatch):
    fitted = "$organdetr_monai.calibration.load_thresholds(@thresholds_path, @organs)"
    bundle = make_bundle(tmp_path / "b", thresholds=fitted)
    organs = SETS["phantom"].organs
    save_thresholds(dict.fromkeys(organs, 0.0), bundle / "models" / "thresholds.json")
    loose = tmp_path / "run" / "model.pt"
    loose.parent.mkdir()
    loose.write_bytes((bundle / "models" / "model.pt").read_bytes())
    save_thresholds(dict.fromkeys(organs, 1.0), loose.parent / "thresholds.json")
    monkeypatch.setattr(loading, "DEFAULT_BUNDLE", bundle)
    assert len(OrganDetector.load()(scan).present) > 6
    assert len(OrganDetector.load(loose)(scan).present) == 0
    assert len(OrganDetector.load(loose.parent)(scan).present) == 0, "the folder of a training is that training's model"


def test_weights_that_come_with_the_bundle_have_a_name(scan, tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "b")
    (bundle / "models" / "phantom").mkdir()
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    other = {name: value.flip(0) if name == "content" else value for name, value in weights.items()}
    torch.save(other, bundle / "models" / "phantom" / "model.pt")
    monkeypatch.setattr(loading, "DEFAULT_BUNDLE", bundle)
    monkeypatch.chdir(tmp_path)
    named = OrganDetector.load("phantom")(scan)
    assert named == OrganDetector.load(bundle / "models" / "phantom")(scan) != OrganDetector.load()(scan)
    (tmp_path / "phantom").mkdir()  # a path goes before a name
    with pytest.raises(InputError, match="phantom is no bundle"):
        OrganDetector.load("phantom")


def test_missing_bundle_weights_and_files_are_named(bundle, tmp_path, monkeypatch):
    bare = make_bundle(tmp_path / "bare", weights=False)
    with pytest.raises(InputError, match=r"bare has no weights.*model\.pt.*Train"):
        OrganDetector.load(bare)
    with pytest.raises(InputError, match=r"is no bundle"):
        OrganDetector.load(tmp_path)
    with pytest.raises(InputError, match=r"nowhere\.pt does not exist"):
        OrganDetector.load(tmp_path / "nowhere.pt")
    with pytest.raises(InputError, match=r"neither a bundle's folder nor"):
        OrganDetector.load(bare / "configs" / "inference.json")
    with pytest.raises(InputError, match=r"delta\.json does not exist"):
        OrganDetector.load(bundle, configs=[tmp_path / "delta.json"])
    monkeypatch.setattr(loading, "DEFAULT_BUNDLE", tmp_path)
    with pytest.raises(InputError, match=r"not part of a bundle"):
        OrganDetector.load()


def test_weights_of_another_kind_of_model_are_named(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "b")
    for name, settings in (("phantom", {"spacing": 5.0}), ("clicks", {"num_kinds": 4})):
        (bundle / "models" / name).mkdir()
        (bundle / "models" / name / "model.pt").write_bytes((bundle / "models" / "model.pt").read_bytes())
        (bundle / "models" / name / "model.json").write_text(json.dumps(settings))
    monkeypatch.setattr(loading, "DEFAULT_BUNDLE", bundle)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="another kind of model.*has no num_kinds.*such as phantom"):
        OrganDetector.load("clicks")
    with pytest.raises(InputError, match="comes? with this bundle: phantom") as error:
        OrganDetector.load("nowhere")
    assert "clicks" not in str(error.value)


def test_results_say_which_weights_made_them(bundle, detector, scan, tmp_path):
    weights = bundle / "models" / "model.pt"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert detector(scan).model.weights == f"sha256:{digest[:16]}"
    state = torch.load(weights, weights_only=True)
    other = make_bundle(tmp_path / "other")
    torch.save({name: value + (name == "content") * 1e-3 for name, value in state.items()}, other / "models/model.pt")
    assert OrganDetector.load(other).model.weights != detector.model.weights


def test_broken_config_and_weights_are_named(tmp_path):
    broken = make_bundle(tmp_path / "a")
    (broken / "models" / "model.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="not a checkpoint"):  # itself, although MONAI had wrapped it
        OrganDetector.load(broken)
    (broken / "configs" / "inference.json").write_text("{")
    with pytest.raises(InputError, match=r"inference\.json is no config"):
        OrganDetector.load(broken)
    (broken / "configs" / "inference.json").write_text("{}")
    with pytest.raises(InputError, match="no 'ckpt_path'"):
        OrganDetector.load(broken)


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_device_that_is_not_there_is_refused(bundle, device):
    with pytest.raises(InputError, match=f"device '{device}'"):
        OrganDetector.load(bundle, device=device)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, m: (a[0], m), "shape"),
        (lambda a, m: (a.astype(complex), m), "complex"),
        (lambda a, m: (np.where(a == a.max(), np.nan, a), m), "NaN"),
        (lambda a, m: (np.full_like(a, -1000), m), "no body"),
        (lambda a, m: (a, m[:3]), "4×4"),
        (lambda a, m: (a, m @ (np.eye(4) + np.eye(4, k=1) * 0.1)), "sheared"),
    ],
)
def test_unusable_array_is_refused(detector, phantom, change, message):
    with pytest.raises(InputError, match=message):
        detector(change(phantom.image, phantom.affine))


def test_unusable_file_is_refused_by_name(detector, tmp_path):
    (tmp_path / "text.nii.gz").write_text("hello")
    with pytest.raises(InputError, match=r"text\.nii\.gz"):
        detector(tmp_path / "text.nii.gz")
    with pytest.raises(InputError, match=r"gone\.nii.*does not exist"):
        detector(tmp_path / "gone.nii")


def test_preprocessing_must_read_files(detector):
    from monai.transforms import Compose, Identityd

    with pytest.raises(InputError, match="starts with Identityd"):
        OrganDetector(
            torch.nn.Identity(), Compose([Identityd("image")]), detector.inferer, ["liver"], model=detector.model
        )


def test_example_of_the_documentation_runs(detector, phantom, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), "scan.nii.gz")
    failures = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    (example,) = doctest.DocTestFinder(recurse=False).find(OrganDetector, globs={"detector": detector})
    assert failures.run(example).failed == 0
    assert Detections.load("detections.json") == detector("scan.nii.gz")
