"""Phantoms: the same patient for the same seed however it is scanned, and a folder that is written once."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from organdetr_monai.data import phantom as module
from organdetr_monai.data.generated import split_cases
from organdetr_monai.data.phantom import FIELDS_OF_VIEW, PHANTOM_ORGANS, make_phantom, write_phantoms
from organdetr_monai.errors import InputError
from organdetr_monai.geometry import transform_boxes
from organdetr_monai.mask_boxes import boxes_from_mask
from organdetr_monai.metrics import DetectionMetrics
from organdetr_monai.organs import SETS

COARSE = (8.0, 8.0, 8.0)
ID = {organ: k + 1 for k, organ in enumerate(PHANTOM_ORGANS)}


@pytest.fixture(scope="module")
def cohort():
    """Sixty patients, scanned as chance has it."""
    return [make_phantom((3, k), spacing=COARSE) for k in range(60)]


def boxes_in_mm(phantom) -> dict[int, np.ndarray]:
    """RAS corners of each organ, by id."""
    boxes, ids = boxes_from_mask(phantom.label)
    return dict(zip(ids.tolist(), transform_boxes(boxes, phantom.affine, np.eye(4)), strict=True))


def test_organs_are_those_of_the_registry():
    assert SETS["phantom"].organs == PHANTOM_ORGANS


def test_same_seed_same_arrays():
    first, again, other = (make_phantom(seed, spacing=COARSE) for seed in ((1, 2), [1, 2], (1, 3)))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    np.testing.assert_array_equal(first.affine, again.affine)
    assert not np.array_equal(first.affine, other.affine)


def test_types():
    phantom = make_phantom(0, spacing=COARSE)
    assert (phantom.image.dtype, phantom.label.dtype, phantom.affine.dtype) == (np.int16, np.uint8, np.float64)
    assert phantom.image.shape == phantom.label.shape
    assert phantom.image.flags.c_contiguous and phantom.label.flags.c_contiguous


@pytest.mark.parametrize("axcodes", ["LPS", "PIL", "SAR"])
def test_orientation_reorders_the_same_voxels(axcodes):
    spacing = {"R": 7.0, "A": 8.0, "S": 6.0, "L": 7.0, "P": 8.0, "I": 6.0}
    ras = make_phantom(4, spacing=[spacing[c] for c in "RAS"])
    turned = make_phantom(4, spacing=[spacing[c] for c in axcodes], axcodes=axcodes)
    assert "".join(nib.aff2axcodes(turned.affine)) == axcodes
    np.testing.assert_allclose(nib.affines.voxel_sizes(turned.affine), [spacing[c] for c in axcodes])
    back = nib.as_closest_canonical(nib.Nifti1Image(turned.image, turned.affine))
    np.testing.assert_array_equal(np.asarray(back.dataobj), ras.image)
    np.testing.assert_allclose(back.affine, ras.affine, atol=1e-9)
    for organ, box in boxes_in_mm(ras).items():
        np.testing.assert_allclose(boxes_in_mm(turned)[organ], box, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_spacing_leaves_the_organs_in_place(seed):
    fine, coarse = (make_phantom(seed, spacing=s, field_of_view="torso") for s in ((4, 4, 4), (5, 5, 8)))
    expected, found = boxes_in_mm(fine), boxes_in_mm(coarse)
    assert found.keys() == expected.keys()
    for organ, box in expected.items():
        assert (np.abs(found[organ] - box) <= np.tile([5, 5, 8], 2) + 2).all(), PHANTOM_ORGANS[organ - 1]


def test_oblique_scan_shows_the_same_patient():
    straight, tilted = (make_phantom(5, spacing=(6, 6, 6), field_of_view="torso", oblique=o) for o in (0, 10))
    cosines = tilted.affine[:3, :3] / 6
    np.testing.assert_allclose(cosines.T @ cosines, np.eye(3), atol=1e-9)
    assert np.degrees(np.arccos((np.trace(cosines) - 1) / 2)) == pytest.approx(10)
    for organ in ("heart", "liver", "kidney_left"):
        centres = [
            nib.affines.apply_affine(p.affine, np.argwhere(p.label == ID[organ])).mean(0) for p in (straight, tilted)
        ]
        assert np.linalg.norm(centres[0] - centres[1]) < 3


def test_sides_are_the_patients(cohort):
    flipped = [make_phantom((3, k), spacing=COARSE, axcodes="LPI") for k in range(5)]
    for phantom in cohort + flipped:
        centre = {organ: box.reshape(2, 3).mean(0) for organ, box in boxes_in_mm(phantom).items()}
        # RAS: x grows to the patient's right
        for right, left in (("lung_right", "lung_left"), ("kidney_right", "kidney_left"), ("liver", "spleen")):
            if ID[right] in centre and ID[left] in centre:
                assert centre[ID[right]][0] > centre[ID[left]][0] + 30
        for upper, lower in (("heart", "pancreas"), ("liver", "urinary_bladder")):
            if ID[upper] in centre and ID[lower] in centre:
                assert centre[ID[upper]][2] > centre[ID[lower]][2] + 30


def test_hu_are_those_of_tissue(cohort):
    plausible = {
        "lung_left": (-950, -550),
        "lung_right": (-950, -550),
        "heart": (20, 330),
        "aorta": (20, 450),
        "liver": (-20, 170),
        "gallbladder": (-20, 60),
        "stomach": (-950, 260),
        "spleen": (20, 180),
        "pancreas": (5, 150),
        "kidney_left": (5, 250),
        "kidney_right": (5, 250),
        "urinary_bladder": (-15, 320),
    }
    for phantom in cohort:
        assert -1024 <= phantom.image.min() < -900  # air around
        assert 300 < phantom.image.max() <= 3071  # bone
        for organ, (low, high) in plausible.items():
            inside = phantom.image[binary_erosion(phantom.label == ID[organ])]  # away from partial volume
            if inside.size > 20:
                assert low < np.median(inside) < high, organ


def test_organs_are_present_in_most_cases_and_absent_in_some(cohort):
    share = {organ: np.mean([(p.label == k).any() for p in cohort]) for organ, k in ID.items()}
    assert all(0.5 < s for s in share.values()), share
    assert sum(s < 1 for s in share.values()) >= 10, share  # the aorta, perhaps the liver, may be everywhere


def test_organs_are_large_enough_and_in_one_piece():
    least = {"gallbladder": 25, "pancreas": 60, "kidney_left": 60, "urinary_bladder": 35, "liver": 120, "aorta": 250}
    for seed in range(6):
        boxes = boxes_in_mm(make_phantom(seed, spacing=(5, 5, 5), field_of_view="torso"))
        assert {ID["heart"], ID["aorta"], ID["liver"], ID["lung_left"], ID["lung_right"]} <= boxes.keys()
        for organ, size in least.items():
            if ID[organ] in boxes:
                assert np.ptp(boxes[ID[organ]].reshape(2, 3), axis=0).max() >= size, organ


@pytest.mark.parametrize("name", FIELDS_OF_VIEW)
def test_fields_of_view_hold_what_they_are_named_for(name):
    expected = {
        "torso": {"heart", "liver", "aorta"},
        "abdomen_pelvis": {"liver", "urinary_bladder"},
        "chest_abdomen": {"heart", "liver", "lung_left"},
        "abdomen": {"liver", "pancreas"},
        "chest": {"heart", "lung_left", "lung_right"},
        "pelvis": {"urinary_bladder"},
    }
    excluded = {"chest": {"urinary_bladder"}, "pelvis": {"heart", "lung_left"}, "chest_abdomen": {"urinary_bladder"}}
    for seed in range(3):
        ids = set(np.unique(make_phantom((9, seed), spacing=COARSE, field_of_view=name).label))
        assert {ID[organ] for organ in expected[name]} <= ids
        assert not {ID[organ] for organ in excluded.get(name, ())} & ids


def test_a_missing_organ_changes_no_other(monkeypatch):
    from organdetr_monai.data import phantom_anatomy

    whole = make_phantom(6, spacing=COARSE, field_of_view="torso")
    monkeypatch.setattr(phantom_anatomy, "REMOVED", {"spleen": 1.0})
    without = make_phantom(6, spacing=COARSE, field_of_view="torso")
    assert (whole.label == ID["spleen"]).any() and not (without.label == ID["spleen"]).any()
    for organ in ("liver", "heart", "urinary_bladder", "lung_right"):
        np.testing.assert_array_equal(whole.label == ID[organ], without.label == ID[organ])


def test_a_constant_predictor_fails(cohort):
    """Mean box of the first half, relative to the body, for each scan of the second half."""

    def body(phantom):
        inside = phantom.image > -200
        inside &= inside.sum((1, 2), keepdims=True) > 50  # a table's skin is thin
        return np.concatenate([np.argwhere(inside).min(0), np.argwhere(inside).max(0) + 1])

    def frame(phantom):
        low, high = body(phantom).reshape(2, 3)
        return np.tile(low, 2), np.tile(high - low, 2)

    half = len(cohort) // 2
    relative = {organ: [] for organ in range(1, 13)}
    for phantom in cohort[:half]:
        start, size = frame(phantom)
        for box, organ in zip(*boxes_from_mask(phantom.label), strict=True):
            relative[organ].append((box - start) / size)
    constant = np.stack([np.mean(relative[organ], 0) for organ in range(1, 13)])

    def score(boxes_of):
        metrics = DetectionMetrics(PHANTOM_ORGANS)
        for phantom in cohort[half:]:
            truth, ids = boxes_from_mask(phantom.label)
            boxes, labels = boxes_of(phantom)
            metrics.update(
                {"boxes": boxes, "scores": np.ones(len(boxes)), "labels": labels},
                {"boxes": truth, "labels": ids},
                spacing=COARSE,
            )
        return metrics.compute()["mAP_coco"]

    assert score(lambda p: boxes_from_mask(p.label)) == pytest.approx(1)  # the measure itself
    assert score(lambda p: (constant * frame(p)[1] + frame(p)[0], np.arange(1, 13))) < 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed -1"),
        ({"seed": 0.5}, "seed 0.5"),
        ({"seed": ()}, "seed"),
        ({"spacing": (4, 4)}, "spacing"),
        ({"spacing": (4, 4, 0)}, "spacing"),
        ({"spacing": (4, 4, float("nan"))}, "spacing"),
        ({"axcodes": "RAL"}, "'RAL'"),
        ({"axcodes": "RA"}, "'RA'"),
        ({"axcodes": "XYZ"}, "'XYZ'"),
        ({"oblique": 90}, "90"),
        ({"field_of_view": "head"}, "'head'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(InputError, match=message):
        make_phantom(**{"seed": 0, **options})


FOLDER = {"seed": 2, "spacing": COARSE, "progress": False}


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six phantoms, written by two processes."""
    path = tmp_path_factory.mktemp("phantoms")
    assert write_phantoms(path, cases=6, splits=(0.5, 0.25, 0.25), workers=2, **FOLDER) == path / "datalist.json"
    return path


def test_datalist(folder):
    datalist = json.loads((folder / "datalist.json").read_text())
    assert datalist["labels"] == ID
    assert [case["split"] for case in datalist["cases"]] in (
        ["train"] * 3 + ["val"] * 2 + ["test"],
        ["train"] * 3 + ["val"] + ["test"] * 2,
    )
    straight = 0
    for k, case in enumerate(datalist["cases"]):
        assert case["image"] == f"images/case_{k:03d}.nii.gz" and case["annotated"] == list(PHANTOM_ORGANS)
        image, label = nib.load(folder / case["image"]), nib.load(folder / case["label"])
        np.testing.assert_array_equal(image.affine, label.affine)
        assert image.get_data_dtype() == np.int16 and label.get_data_dtype() == np.uint8
        if np.count_nonzero(image.affine[:3, :3]) == 3:  # not oblique: make_phantom's voxels in another order
            expected = make_phantom((2, k), spacing=COARSE).image
            np.testing.assert_array_equal(np.sort(np.ravel(image.dataobj)), np.sort(expected.ravel()))
            straight += 1
        edge = np.ones(label.shape, bool)
        edge[1:-1, 1:-1, 1:-1] = False
        cut = set(np.asarray(label.dataobj)[edge]) - {0}
        assert case["truncated"] == [organ for organ in PHANTOM_ORGANS if ID[organ] in cut]
    assert straight > 2
    assert not list(folder.rglob(".*")) and not (folder / "datalist.json.part").exists()


def test_one_process_writes_the_same_bytes_in_fewer_cases(folder, tmp_path):
    write_phantoms(tmp_path, cases=2, workers=1, **FOLDER)
    expected = contents(folder)
    written = contents(tmp_path)
    del written["datalist.json"]
    assert len(written) == 4 and all(expected[name] == data for name, data in written.items())


def test_orientations_and_spacings_are_drawn(tmp_path):
    write_phantoms(tmp_path, cases=5, workers=1, progress=False)
    affines = [nib.load(path).affine for path in sorted((tmp_path / "images").iterdir())]
    assert len({nib.aff2axcodes(affine) for affine in affines}) > 2
    sizes = np.array([nib.affines.voxel_sizes(affine) for affine in affines])
    assert (sizes >= 2.5 - 1e-6).all() and (sizes <= 5 + 1e-6).all() and sizes.std() > 0.2


def test_second_call_writes_nothing(folder, monkeypatch):
    monkeypatch.setattr(module, "make_phantom", None)  # calling it would fail
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_phantoms(folder, cases=6, splits=(0.5, 0.25, 0.25), workers=1, **FOLDER)
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_missing_file_is_made_again(tmp_path):
    write_phantoms(tmp_path, cases=2, workers=1, **FOLDER)
    before = contents(tmp_path)
    (tmp_path / "labels/case_001.nii.gz").unlink()
    kept = (tmp_path / "images/case_000.nii.gz").stat().st_mtime_ns
    write_phantoms(tmp_path, cases=2, workers=1, **FOLDER)
    assert contents(tmp_path) == before
    assert (tmp_path / "images/case_000.nii.gz").stat().st_mtime_ns == kept


def test_interrupted_run_is_resumed(tmp_path, monkeypatch):
    def interrupted(seed, **options):
        if seed == (2, 1):
            raise KeyboardInterrupt
        return make_phantom(seed, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "make_phantom", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_phantoms(tmp_path, cases=3, workers=1, **FOLDER)
    assert not (tmp_path / "datalist.json").exists()
    with pytest.raises(InputError, match="other options"):
        write_phantoms(tmp_path, cases=3, workers=1, **{**FOLDER, "seed": 5})

    first = tmp_path / "images/case_000.nii.gz"
    kept = first.stat().st_mtime_ns
    (tmp_path / "images/case_001.nii.gz").write_bytes(first.read_bytes()[:1000])  # half a file
    (tmp_path / "labels/case_001.nii.gz").write_bytes(b"")
    write_phantoms(tmp_path, cases=3, workers=1, **FOLDER)
    assert first.stat().st_mtime_ns == kept
    assert len(json.loads((tmp_path / "datalist.json").read_text())["cases"]) == 3
    for path in tmp_path.glob("*/*.nii.gz"):
        assert np.asarray(nib.load(path).dataobj).ndim == 3


@pytest.mark.parametrize("other", [{"seed": 3}, {"cases": 5}, {"spacing": (9, 8, 8)}, {"axcodes": "RAS"}])
def test_folder_of_other_options_is_refused(folder, other):
    before = contents(folder)
    with pytest.raises(InputError, match="other options"):
        write_phantoms(folder, **{"cases": 6, "splits": (0.5, 0.25, 0.25), **FOLDER, **other})
    assert contents(folder) == before


def test_foreign_datalist_is_refused(tmp_path):
    (tmp_path / "datalist.json").write_text('{"cases": []}')
    with pytest.raises(InputError, match="other options"):
        write_phantoms(tmp_path, cases=1, **FOLDER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cases": 0}, "cases is 0"),
        ({"cases": 2.5}, "2.5"),
        ({"seed": "a"}, "'a'"),
        ({"splits": (0.5, 0.2, 0.2)}, "splits"),
        ({"splits": (1.5, -0.5, 0)}, "splits"),
        ({"splits": (1, 0)}, "splits"),
        ({"workers": 0}, "workers is 0"),
        ({"axcodes": "QQQ"}, "'QQQ'"),
    ],
)
def test_wrong_folder_options(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        write_phantoms(tmp_path / "new", **{"cases": 1, **FOLDER, **options})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("cases", [3, 4, 10, 101])
def test_no_split_is_left_empty(cases):
    split = split_cases(cases, (0.8, 0.1, 0.1))
    assert len(split) == cases and set(split) == {"train", "val", "test"}
    assert set(split_cases(cases, (1, 0, 0))) == {"train"}
    if cases == 10:
        assert split == ["train"] * 8 + ["val", "test"]
