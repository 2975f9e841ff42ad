"""The datalist of lesions and what is loaded from it: instances as told apart, or as components of a mask."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose

from organdetr_monai.errors import InputError
from organdetr_monai.miq_sam3d.datalist import kind_names, load_lesions
from organdetr_monai.miq_sam3d.loading import LoadInstancesd, case_transforms
from tests.miq_sam3d.cases import instances

LPS = np.diag([-2.0, -2.0, 2.0, 1.0])


@pytest.fixture
def folder(tmp_path):
    """Case a with instances, case b with a semantic mask; 2 mm, stored LPS."""
    ids, kinds = instances()
    mask = np.concatenate([[0], kinds + 1])[ids].astype(np.uint8)  # 2 and 3
    mask[0, 0, 0] = 1
    image = (40 + 10 * ids).astype(np.int16)
    for name, array in (("image", image), ("ids", ids.astype(np.uint8)), ("mask", mask)):
        nib.save(nib.Nifti1Image(array, LPS), tmp_path / f"{name}.nii.gz")
    return tmp_path


A = {"image": "image.nii.gz", "instances": "ids.nii.gz", "kinds": ["cyst", "cyst", "tumour", "tumour"], "name": "a"}
B = {"image": "image.nii.gz", "label": "mask.nii.gz", "labels": {"kidney": 1, "cyst": 2, "tumour": 3}, "name": "b"}


def write(folder, *cases, **more):
    path = folder / "datalist.json"
    path.write_text(json.dumps({"kinds": ["cyst", "tumour"], "cases": list(cases), **more}))
    return path


def test_datalist(folder):
    path = write(folder, {**A, "split": "train", "patient": "p"}, {**B, "split": "test"})
    assert kind_names(path) == ["cyst", "tumour"]
    (a,) = load_lesions(path, split="train")
    assert (a["case"], a["patient"], a["kinds"]) == ("a", "p", [1, 1, 2, 2])
    (b,) = load_lesions(path, split="test")
    assert (b["case"], b["patient"], b["values"]) == ("b", None, {2: 1, 3: 2}) and "kinds" not in b
    assert len(load_lesions(path)) == 2


@pytest.mark.parametrize(
    ("cases", "more", "message"),
    [
        ([A], {"kinds": []}, "kinds is"),
        ([A], {"kinds": ["cyst", "cyst"]}, "twice"),
        ([{**A, "kinds": ["cyst", "wart"]}], {}, "'wart'"),
        ([{**A, "kinds": None}], {}, "kinds is None"),
        ([{**A, "label": "mask.nii.gz"}], {}, "instances and a label"),
        ([{"image": "image.nii.gz"}], {}, "no instances"),
        ([{**B, "labels": {"kidney": 1}}], {}, "none of the kinds"),
        ([{**B, "labels": {"cyst": 0}}], {}, "value 0"),
        ([{**B, "labels": None}], {}, "label map"),
        ([{**A, "image": "none.nii.gz"}], {}, "none.nii.gz"),
        ([A, A], {}, "twice"),
        ([{**A, "split": "train", "patient": "p"}, {**B, "split": "test", "patient": "p"}], {}, "patient 'p'"),
    ],
)
def test_wrong_datalists(folder, cases, more, message):
    with pytest.raises(InputError, match=message):
        load_lesions(write(folder, *cases, **more))


def test_both_ways_load_the_same_lesions(folder):
    a, b = load_lesions(write(folder, A, B))
    load = Compose(case_transforms(spacing=2.0))
    told, found = load(a), load(b)
    assert told["image"].shape == told["instances"].shape == (1, 30, 26, 22)
    assert told["kinds"].tolist() == [1, 1, 2, 2]
    ids = told["instances"][0].numpy()
    assert np.array_equal(ids, instances()[0][::-1, ::-1])  # RAS
    np.testing.assert_allclose(told["image"][0].numpy(), (40 + 10 * ids + 160) / 400, atol=1e-5)
    # as components: a voxel of 8 mm³ is below the least volume, and lesions of a kind that touch are one
    assert found["kinds"].tolist() == [1, 2]
    assert np.array_equal(found["instances"][0].numpy() == 2, ids >= 3)


def test_no_lesion_is_lost_on_a_coarse_grid(folder):
    (item,) = load_lesions(write(folder, A))
    coarse = Compose(case_transforms(spacing=7.0))(item)
    assert coarse["instances"].shape == coarse["image"].shape == (1, 9, 8, 7)
    assert coarse["instances"].unique().tolist() == [0, 1, 2, 3, 4]


def test_image_alone(folder):
    (item,) = load_lesions(write(folder, A))
    found = Compose(case_transforms(truth=False))({"image": item["image"]})
    assert (
        found["image"].shape == (1, 30, 26, 22) and 0 <= float(found["image"].min()) <= float(found["image"].max()) <= 1
    )


def test_wrong_masks(folder):
    load = LoadInstancesd("instances")
    with pytest.raises(InputError, match="kinds of 3 instances"):
        load({"instances": str(folder / "ids.nii.gz"), "kinds": [1, 1, 2]})
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 0.5, np.float32), LPS), folder / "half.nii.gz")
    with pytest.raises(InputError, match=r"holds 0\.5"):
        load({"instances": str(folder / "half.nii.gz"), "kinds": []})
    with pytest.raises(InputError, match="least volume"):
        LoadInstancesd("instances", min_volume=-1)


def test_specks_of_instances_that_were_told_apart_stay(folder):
    sample = LoadInstancesd("instances")({"instances": str(folder / "ids.nii.gz"), "kinds": [1, 1, 2, 2]})
    assert int((sample["instances"] == 2).sum()) == 1 and sample["instances"].dtype == torch.int32
