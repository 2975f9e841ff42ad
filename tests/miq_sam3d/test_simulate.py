"""CT simulated from masks: HU, instances, and a split by patient. The real masks are tested where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from organdetr_monai.errors import InputError
from organdetr_monai.miq_sam3d.components import label_components
from organdetr_monai.miq_sam3d.datalist import load_lesions
from organdetr_monai.miq_sam3d.simulate import CYST, KIDNEY, TUMOUR, simulate_ct, simulate_kits
from tests.miq_sam3d.cases import ball

KITS = Path(__file__).parents[2].parent / "shared" / "data" / "kits23"
needs_data = pytest.mark.skipif(not (KITS / "cases.json").exists(), reason="no masks at ../shared/data/kits23")
SHAPE = (60, 40, 40)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


def mask() -> np.ndarray:
    """Two kidneys; a tumour, two cysts and a speck."""
    values = np.zeros(SHAPE, np.uint8)
    values[ball((12, 18, 20), 9, SHAPE)] = KIDNEY
    values[ball((46, 18, 20), 9, SHAPE)] = KIDNEY
    values[ball((14, 24, 20), 5, SHAPE)] = TUMOUR
    values[ball((46, 12, 20), 4, SHAPE)] = CYST
    values[ball((48, 22, 26), 4, SHAPE)] = CYST
    values[46, 18, 20] = CYST
    return values


def folder_of_masks(path: Path, count: int) -> Path:
    path.mkdir()
    names = [f"case_{k:05d}.nii.gz" for k in range(count)]
    for k, name in enumerate(names):
        nib.save(nib.Nifti1Image(np.roll(mask(), k % 3, axis=2), AFFINE), path / name)
    (path / "cases.json").write_text(json.dumps({"cases": [{"mask": name} for name in names]}))
    return path


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hu(seed):
    values = mask()
    image = simulate_ct(values, AFFINE, seed)
    assert image.dtype == np.int16 and image.shape == SHAPE
    core = {v: image[ndimage.binary_erosion(values == v, iterations=2)].mean() for v in (KIDNEY, TUMOUR, CYST)}
    assert -8 < core[CYST] < 28
    assert core[CYST] + 15 < core[TUMOUR] < core[KIDNEY]
    assert np.percentile(image, 5) > -1024 and np.median(image[values == 0]) < 80
    assert np.array_equal(image, simulate_ct(values, AFFINE, seed))
    assert not np.array_equal(image, simulate_ct(values, AFFINE, seed + 10))


def test_noise_is_correlated_within_slices():
    values = mask()
    values[values > 0] = CYST  # the same everywhere but for the noise
    inside = ndimage.binary_erosion(values == CYST, iterations=3)
    image = simulate_ct(values, AFFINE, 3).astype(float)

    def along(axis):
        return np.corrcoef(image[inside], np.roll(image, 1, axis)[inside])[0, 1]

    parts, _ = ndimage.label(values == CYST, np.ones((3, 3, 3)))
    image -= ndimage.mean(image, parts, np.arange(parts.max() + 1))[parts]  # each cyst has HU of its own
    assert along(0) > 0.15 and along(1) > 0.15 and abs(along(2)) < 0.1


def test_folder(tmp_path):
    source = folder_of_masks(tmp_path / "masks", 5)
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    path = simulate_kits(source, tmp_path / "ct", workers=1, progress=False)
    items = load_lesions(path)
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before
    assert len(items) == len({item["patient"] for item in items}) == 5
    for item in items:
        assert item["kinds"] == [1, 2, 2]  # the speck is no lesion
        ids = np.asarray(nib.load(item["instances"]).dataobj)
        real = np.asarray(nib.load(source / Path(item["instances"]).name).dataobj)
        assert set(real[ids == 1]) == {TUMOUR} and set(real[ids > 1]) == {CYST}
    splits = [case["split"] for case in json.loads(path.read_text())["cases"]]
    assert set(splits) == {"train", "val", "test"}
    assert simulate_kits(source, tmp_path / "ct", workers=1, progress=False) == path
    with pytest.raises(InputError, match="other options"):
        simulate_kits(source, tmp_path / "ct", seed=1, workers=1, progress=False)


def test_wrong_source(tmp_path):
    with pytest.raises(InputError, match=r"no cases\.json"):
        simulate_kits(tmp_path, tmp_path / "ct")


@needs_data
def test_components_of_the_real_masks_are_the_lesions_that_were_counted():
    cases = json.loads((KITS / "cases.json").read_text())["cases"]
    for case in cases[::20]:
        nifti = nib.load(KITS / case["mask"])
        volume = float(np.prod(nifti.header.get_zooms()))
        _, kinds = label_components(np.asarray(nifti.dataobj), {TUMOUR: 1, CYST: 2}, voxel_volume=volume)
        assert np.bincount(kinds, minlength=3).tolist() == [0, case["tumour"], case["cyst"]], case["mask"]


@needs_data
def test_a_real_mask(tmp_path):
    name = "case_00064.nii.gz"
    source = tmp_path / "masks"
    source.mkdir()
    (source / name).write_bytes((KITS / name).read_bytes())
    (source / "cases.json").write_text(json.dumps({"cases": [{"mask": name}]}))
    (item,) = load_lesions(simulate_kits(source, tmp_path / "ct", splits=(1.0, 0.0, 0.0), workers=1, progress=False))
    assert item["kinds"] == [1] + [2] * 8
    image, ids = (np.asarray(nib.load(item[key]).dataobj) for key in ("image", "instances"))
    large = [k for k, kind in enumerate(item["kinds"], start=1) if kind == 2 and (ids == k).sum() > 60]
    assert large and all(-15 < image[ndimage.binary_erosion(ids == k)].mean() < 60 for k in large)
