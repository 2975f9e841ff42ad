"""`organdetr click`: what it leaves, what it says, and the exit codes 0, 1 and 2."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from organdetr_monai.cli import main
from organdetr_monai.geometry import voxel_to_lps
from organdetr_monai.writers.schema import validate
from tests.affines import rotation
from tests.data.scan_files import write
from tests.miq_sam3d.click_bundle import KINDS, LESIONS, make_click_bundle, scan

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = rotation([0.1, -0.2, 0.3]) * 2.0
OBLIQUE[:3, 3] = (-50, 20, -700)
POINT = (9, 9, 9)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_click_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def volume():
    return scan(lesions=LESIONS)


@pytest.fixture(scope="module")
def path(volume, tmp_path_factory):
    return write(tmp_path_factory.mktemp("scans") / "case.nii.gz", volume, OBLIQUE)


def run(*argv) -> int:
    return main([str(word) for word in argv])


def texts(*points) -> list[str]:
    """Options for points."""
    return [word for point in points for word in ("--point", ",".join(map(str, point)))]


def test_label_map_table_and_picture(bundle, path, volume, tmp_path, capsys):
    assert run("click", path, *texts(POINT), "--space", "voxel", "--output", tmp_path, "--model", bundle) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lesions.json", "lesions.nii.gz", "preview.png"]
    image = nib.load(tmp_path / "lesions.nii.gz")
    labels = np.asarray(image.dataobj)
    assert image.get_data_dtype() == np.uint16 and np.allclose(image.affine, OBLIQUE, atol=1e-4)
    assert np.array_equal(labels > 0, volume == KINDS["cyst"]) and labels[POINT] == 1
    document = json.loads((tmp_path / "lesions.json").read_text())
    validate(document, "lesions")
    assert document["image"] == str(path) and document["found"] and document["reason"] is None
    for lesion in document["lesions"]:
        cut = tuple(slice(*ends) for ends in lesion["box_voxel"])
        voxels = np.argwhere(labels == lesion["id"])
        assert (labels[cut] == lesion["id"]).sum() == len(voxels) == round(lesion["volume_ml"] * 1000 / 8)
        assert np.allclose(voxel_to_lps(voxels.mean(axis=0) + 0.5, OBLIQUE), lesion["centroid_mm"], atol=1e-3)
    assert (tmp_path / "preview.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 + 3 + 1 and "clicked" in out[1] and out[-1] == f"3 found, results in {tmp_path}"


def test_millimetres_mean_the_same_click(bundle, path, tmp_path):
    (point,) = voxel_to_lps([np.add(POINT, 0.5)], OBLIQUE)
    for name, space, numbers in (("a", "voxel", POINT), ("b", "lps", point)):
        assert run("click", path, *texts(numbers), "--space", space, "-o", tmp_path / name, "-m", bundle, "-q") == 0
    a, b = (json.loads((tmp_path / name / "lesions.json").read_text()) for name in "ab")
    assert a == b


def test_several_clicks_and_background(bundle, path, tmp_path, capsys):
    points = texts(POINT, (38, 10, 12))
    options = ("--background", "34,27,44", "--space", "voxel", "--output", tmp_path, "--model", bundle)
    assert run("click", path, *points, *options) == 0
    document = json.loads((tmp_path / "lesions.json").read_text())
    assert [lesion["clicked"] for lesion in document["lesions"]] == [True, True, False, False]
    assert "kind 2" in capsys.readouterr().out


def test_nothing_to_find_is_1_with_an_empty_label_map(bundle, path, tmp_path, capsys):
    assert run("click", path, "--point", "25,20,5", "--space", "voxel", "--output", tmp_path, "--model", bundle) == 1
    assert "nothing to find at voxel (25, 20, 5)" in capsys.readouterr().out
    document = json.loads((tmp_path / "lesions.json").read_text())
    validate(document, "lesions")
    assert not document["found"] and not np.asarray(nib.load(tmp_path / "lesions.nii.gz").dataobj).any()
    assert (tmp_path / "preview.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--point", "9,9,9"], "have no unit. Say --space voxel"),
        (["--point", "9,9,9", "--space", "mm"], "space is 'mm'"),
        (["--space", "voxel"], "There is no click."),
        (["--point", "9,9", "--space", "voxel"], "'9,9' is not three numbers"),
        (["--point", "9,9,99", "--space", "voxel"], "outside of the scan"),
        (["--point=-9,9,9", "--space", "voxel"], "outside of the scan"),
        (["--point", "0,0,0", "--space", "voxel"], "lies on air (-1000 HU)"),
    ],
)
def test_bad_usage_is_2_and_leaves_nothing(bundle, path, tmp_path, capsys, arguments, message):
    assert run("click", path, *arguments, "--output", tmp_path / "out", "--model", bundle) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("error: ") and captured.out == ""
    assert not (tmp_path / "out").exists()


def test_no_scan_and_no_weights_are_told(bundle, path, tmp_path, capsys):
    options = ("--point", "9,9,9", "--space", "voxel", "--output", tmp_path / "out")
    assert run("click", tmp_path / "gone.nii", *options, "--model", bundle) == 2
    untrained = make_click_bundle(tmp_path / "bundle", weights=False)
    assert run("click", path, *options, "--model", untrained) == 2
    err = capsys.readouterr().err
    assert "does not exist" in err and "has no weights" in err
