"""Phantoms with lesions: instances, kinds and what they look like."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from organdetr_monai.cli import main
from organdetr_monai.data.phantom import make_phantom
from organdetr_monai.data.phantom_anatomy import IDS
from organdetr_monai.errors import InputError
from organdetr_monai.miq_sam3d import lesion_cases
from organdetr_monai.miq_sam3d.components import TOUCHING
from organdetr_monai.miq_sam3d.datalist import kind_names, load_lesions
from organdetr_monai.miq_sam3d.phantoms import KINDS, make_lesion_phantom, write_lesion_phantoms
from organdetr_monai.miq_sam3d.points import read_clicks

COARSE = (4.0, 4.0, 4.0)
FOLDER = {"cases": 3, "seed": 1, "spacing": (6.0, 6.0, 6.0), "splits": (0.4, 0.3, 0.3), "progress": False}


@pytest.fixture(scope="module")
def cohort():
    return [make_lesion_phantom((2, k), spacing=COARSE) for k in range(12)]


def test_every_instance_is_one_piece_and_has_a_kind(cohort):
    for case in cohort:
        assert case.image.shape == case.instances.shape
        present = np.unique(case.instances)
        assert present[present > 0].tolist() == list(range(1, len(case.kinds) + 1))
        assert set(case.kinds) <= set(KINDS)
        for k in present[1:]:
            assert ndimage.label(case.instances == k, TOUCHING)[1] == 1


def test_several_kinds_and_several_of_a_kind(cohort):
    counts = [Counter(case.kinds) for case in cohort]
    assert set().union(*counts) == set(KINDS)
    assert sum(len(c) >= 3 for c in counts) > len(counts) / 2
    assert sum(max(c.values()) >= 2 for c in counts) > len(counts) / 2


def test_some_lesions_touch_and_connected_components_would_merge_some(cohort):
    touching = merged = 0
    for case in cohort:
        for k, kind in enumerate(case.kinds, start=1):
            around = set(case.instances[ndimage.binary_dilation(case.instances == k, TOUCHING)].tolist()) - {0, k}
            touching += bool(around)
            merged += any(case.kinds[other - 1] == kind for other in around)
    lesions = sum(len(case.kinds) for case in cohort)
    assert 0.05 < touching / lesions < 0.8 and merged > 0


def test_kinds_look_different(cohort):
    """Mean HU against the organ's: what a radiologist would tell them apart by."""
    inside = {name: [] for name in KINDS}
    for case in cohort:
        for k, kind in enumerate(case.kinds, start=1):
            core = ndimage.binary_erosion(case.instances == k)
            if core.any():
                inside[kind].append(float(case.image[core].mean()))
    assert -10 < np.mean(inside["cyst"]) < 30
    assert np.mean(inside["solid_tumour"]) > 45
    assert np.mean(inside["hypervascular"]) > np.mean(inside["metastasis"]) + 50


def test_lesions_lie_in_their_organs():
    seed = next(k for k in range(20) if make_lesion_phantom((2, k), spacing=(6, 6, 6)).kinds)
    case = make_lesion_phantom((2, seed), spacing=COARSE)
    organs = {}

    def plain(entropy):  # the same patient without lesions
        return make_phantom(entropy, spacing=COARSE, field_of_view="abdomen")

    for attempt in range(10):
        phantom = plain((2, seed, attempt))
        if phantom.image.shape == case.image.shape and np.allclose(phantom.affine, case.affine):
            organs = phantom.label
            break
    for k, kind in enumerate(case.kinds, start=1):
        own = np.isin(organs, [IDS[organ] for organ in KINDS[kind].organs])
        share = own[case.instances == k].mean()
        assert share > (0.9 if KINDS[kind].organs == ("liver",) else 0.3), (k, kind)


def test_same_seed_same_case_in_any_orientation():
    ras, again, lps = (make_lesion_phantom((5, 1), spacing=(6, 6, 6), axcodes=a) for a in ("RAS", "RAS", "LPS"))
    np.testing.assert_array_equal(ras.instances, again.instances)
    np.testing.assert_array_equal(ras.image, again.image)
    np.testing.assert_array_equal(ras.instances, lps.instances[::-1, ::-1])
    assert ras.kinds == again.kinds == lps.kinds


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_folder(tmp_path, monkeypatch):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    path = write_lesion_phantoms(whole, workers=2, **FOLDER)
    content = json.loads(path.read_text())
    assert kind_names(path) == list(KINDS) and [c["split"] for c in content["cases"]] == ["train", "val", "test"]
    assert content["cases"][0]["patient"] == "seed1_case_000", "the first patient of another seed is another patient"
    items = load_lesions(path)
    for k, item in enumerate(items):
        case = make_lesion_phantom((1, k), spacing=FOLDER["spacing"])
        nifti = nib.load(item["instances"])
        np.testing.assert_array_equal(np.asarray(nifti.dataobj), case.instances)
        np.testing.assert_allclose(nifti.affine, case.affine, atol=1e-4)
        assert [list(KINDS)[kind - 1] for kind in item["kinds"]] == case.kinds
    clicks = read_clicks(whole / "images" / "clicks.json", whole / "images")
    assert [(click["case"], click["image"]) for click in clicks] == [(item["case"], item["image"]) for item in items]
    for click, item in zip(clicks, items, strict=True):
        instances = np.asarray(nib.load(item["instances"]).dataobj)
        sizes = np.bincount(instances.reshape(-1))
        (point,) = click["points"]
        assert click["space"] == "voxel" and sizes[instances[tuple(point)]] == sizes[1:].max()

    write_nifti, written = lesion_cases.write_nifti, []

    def interrupted(*arguments):
        if len(written) == 3:  # in the middle of the second case
            raise KeyboardInterrupt
        written.append(write_nifti(*arguments))

    monkeypatch.setattr(lesion_cases, "write_nifti", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_lesion_phantoms(resumed, workers=1, **FOLDER)
    assert not (resumed / "datalist.json").exists()
    monkeypatch.undo()
    write_lesion_phantoms(resumed, workers=1, **FOLDER)
    assert contents(resumed) == contents(whole)
    with pytest.raises(InputError, match="other options"):
        write_lesion_phantoms(whole, workers=1, **{**FOLDER, "seed": 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cases": 0}, "cases is 0"),
        ({"seed": "a"}, "'a'"),
        ({"splits": (1, 1, 1)}, "splits"),
        ({"workers": 0}, "workers"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        write_lesion_phantoms(tmp_path / "new", **{**FOLDER, **options})
    assert not (tmp_path / "new").exists()


def test_command_writes_them(tmp_path):
    options = ["--cases", "2", "--seed", "3", "--spacing", "6,6,6", "--workers", "1", "--quiet"]
    assert main(["phantom", str(tmp_path), "--lesions", *options]) == 0
    names = [Path(case["image"]).name for case in load_lesions(tmp_path / "datalist.json")]
    assert names == ["seed3_case_000.nii.gz", "seed3_case_001.nii.gz"]
    image = nib.load(tmp_path / "images" / names[1])
    assert np.array_equal(np.asarray(image.dataobj), make_lesion_phantom((3, 1), spacing=(6, 6, 6)).image)
