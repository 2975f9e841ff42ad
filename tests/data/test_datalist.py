"""The datalist: what it gives training, and every way in which it can be wrong, told before anything is computed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from organdetr_monai.data.datalist import check_annotated, check_disjoint, datalist_from_images, load_datalist
from organdetr_monai.data.headers import read_grid
from organdetr_monai.errors import InputError

ORGANS = ["spleen", "liver", "kidney_left"]
OPENKBP = Path(__file__).parents[2].parent / "shared" / "data" / "openkbp"


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2, 3, 1]) if affine is None else affine), path)


@pytest.fixture
def folder(tmp_path):
    for name in "abc":
        save(tmp_path / f"{name}_ct.nii.gz", np.zeros((6, 5, 4), np.int16))
        save(tmp_path / f"{name}_seg.nii.gz", np.ones((6, 5, 4), np.uint8))
    return tmp_path


def case(stem, **more):
    return {"image": f"{stem}_ct.nii.gz", "label": f"{stem}_seg.nii.gz", **more}


def write(folder, cases, labels=None):
    path = folder / "datalist.json"
    content = {"labels": {"liver": 1, "spleen": 3, "stomach": 4} if labels is None else labels, "cases": cases}
    path.write_text(json.dumps(content))
    return path


def test_items_speak_of_the_models_organs_only(folder):
    items = load_datalist(
        write(folder, [case("a", truncated=["liver"]), case("b", annotated=["liver"])]), organs=ORGANS
    )
    assert items[0] == {
        "image": str(folder / "a_ct.nii.gz"),
        "label": str(folder / "a_seg.nii.gz"),
        "label_values": {2: 1, 1: 3},  # the stomach is not the model's; the model's left kidney is not in the file
        "annotated": [1, 2],
        "truncated": [2],
        "case": "a_ct",
    }
    assert items[1]["annotated"] == [2]


def test_organ_names_may_be_spelt_otherwise(folder):
    path = write(folder, [case("a", annotated=["Left Kidney"])], labels={"left kidney": 7})
    item = load_datalist(path, organs=ORGANS)[0]
    assert item["label_values"] == {3: 7} and item["annotated"] == [3]


def test_an_organ_of_the_users_own_is_known_if_the_model_has_it(folder):
    path = write(folder, [case("a")], labels={"left_flipper": 2})
    assert load_datalist(path, organs=["left_flipper"])[0]["label_values"] == {1: 2}


def test_splits_names_and_own_label_maps(folder):
    cases = [
        case("a", split="train"),
        case("b", split="val", name="patient b", labels={"liver": 9}),
        case("c", split="val"),
    ]
    path = write(folder, cases)
    val = load_datalist(path, organs=ORGANS, split="val")
    assert [item["case"] for item in val] == ["patient b", "c_ct"]
    assert val[0]["label_values"] == {2: 9}
    assert len(load_datalist(path, organs=ORGANS)) == 3
    with pytest.raises(InputError, match=r"'test'.*train \(1\), val \(2\)"):
        load_datalist(path, organs=ORGANS, split="test")


def test_a_file_without_splits_is_returned_whole(folder):
    assert len(load_datalist(write(folder, [case("a"), case("b")]), organs=ORGANS, split="val")) == 2


def test_base_dir_and_absolute_paths(folder, tmp_path_factory):
    elsewhere = write(tmp_path_factory.mktemp("lists"), [case("a"), {k: str(folder / v) for k, v in case("b").items()}])
    items = load_datalist(elsewhere, organs=ORGANS, base_dir=folder)
    assert [Path(item["image"]).parent for item in items] == [folder, folder]


@pytest.mark.parametrize(
    ("cases", "labels", "message"),
    [
        ([], None, "has no cases"),
        ([case("a", annotated=["livver"])], None, "case 1.*unknown organ 'livver'.*liver"),
        ([case("a")], {"livver": 1}, "unknown organ 'livver'.*liver"),
        ([case("a")], {"liver": "1"}, "liver the value '1'"),
        ([case("a")], {"liver": 0}, "liver the value 0"),
        ([case("a")], {"liver": 1, "spleen": 1}, "liver and spleen the same value 1"),
        ([case("a")], {"kidney_left": 1, "left kidney": 2}, "names kidney_left twice"),
        ([case("a")], {}, "no label map"),
        ([case("a", annotated=["kidney_left"])], None, "annotates kidney_left, which its label map does not hold"),
        ([case("a", annotated="liver")], None, "annotated is 'liver'"),
        ([case("a")], {"stomach": 1}, "none of the model's organs"),
        ([case("a"), case("a")], None, "'a_ct'"),
        ([{"image": "a_ct.nii.gz"}], None, "case 1.*no label"),
        (["a_ct.nii.gz"], None, "case 1 is 'a_ct.nii.gz'"),
        ([case("a"), case("missing")], None, "missing_ct.nii.gz does not exist"),
    ],
)
def test_bad_content_is_named(folder, cases, labels, message):
    with pytest.raises(InputError, match=message):
        load_datalist(write(folder, cases, labels), organs=ORGANS)


def test_bad_files_are_named(folder):
    with pytest.raises(InputError, match="does not exist"):
        load_datalist(folder / "nothing.json", organs=ORGANS)
    (folder / "broken.json").write_text('{"cases": [\n{"image" "x"}]}')
    with pytest.raises(InputError, match="line 2"):
        load_datalist(folder / "broken.json", organs=ORGANS)
    (folder / "a_ct.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a_ct\.nii\.gz cannot be read"):
        load_datalist(write(folder, [case("a")]), organs=ORGANS)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 4, 2)])
def test_what_is_no_volume_is_refused(folder, shape):
    save(folder / "a_ct.nii.gz", np.zeros(shape, np.int16))
    with pytest.raises(InputError, match="no 3D volume"):
        load_datalist(write(folder, [case("a")]), organs=ORGANS)


def test_a_fourth_axis_of_one_is_fine(folder):
    save(folder / "a_ct.nii.gz", np.zeros((6, 5, 4, 1), np.int16))
    assert len(load_datalist(write(folder, [case("a")]), organs=ORGANS)) == 1


def test_mask_on_another_grid_is_refused(folder):
    path = write(folder, [case("a")])
    save(folder / "a_seg.nii.gz", np.ones((6, 5, 5), np.uint8))
    with pytest.raises(InputError, match=r"6×5×5 voxels, its image .* 6×5×4"):
        load_datalist(path, organs=ORGANS)
    for shift, fine in ((0.4, True), (3.0, False)):  # mm; voxels of 2 mm
        affine = np.diag([2.0, 2, 3, 1])
        affine[0, 3] = shift
        save(folder / "a_seg.nii.gz", np.ones((6, 5, 4), np.uint8), affine)
        if fine:
            load_datalist(path, organs=ORGANS)
        else:
            with pytest.raises(InputError, match=r"3\.0 mm away"):
                load_datalist(path, organs=ORGANS)
    assert load_datalist(path, organs=ORGANS, check_files=False)


def test_itk_headers_agree_with_nibabel(tmp_path):
    import itk

    affine = nib.affines.from_matvec(np.array([[0, -2.0, 0], [1.5, 0, 0], [0, 0, -3]]), [10, -20, 30])
    save(tmp_path / "ct.nii.gz", np.zeros((4, 5, 6), np.int16), affine)
    for name in ("ct.nrrd", "ct.mha"):
        itk.imwrite(itk.imread(str(tmp_path / "ct.nii.gz")), str(tmp_path / name))
        grid = read_grid(tmp_path / name)
        assert grid.shape == (4, 5, 6)
        np.testing.assert_allclose(grid.affine, affine, atol=1e-5)


def test_shared_images_are_found(folder):
    train = load_datalist(write(folder, [case("a"), case("b")]), organs=ORGANS)
    check_disjoint(train[:1], train[1:])
    with pytest.raises(InputError, match=r"b_ct\.nii\.gz"):
        check_disjoint(train, train[1:])
    first, second = ([{**item, "patient": name}] for item, name in zip(train, "pp", strict=True))
    with pytest.raises(InputError, match="patients in training, such as 'p'"):
        check_disjoint(first, second)
    check_disjoint(first, [{**second[0], "patient": "q"}])


def test_images_without_labels(folder):
    items = datalist_from_images([folder / "a_ct.nii.gz", folder / "b_ct.nii.gz"])
    assert [item["case"] for item in items] == ["a_ct", "b_ct"]
    assert len(datalist_from_images(folder)) == 6
    with pytest.raises(InputError, match=r"nothing\.nii\.gz does not exist"):
        datalist_from_images([folder / "a_ct.nii.gz", folder / "nothing.nii.gz"])
    save(folder / "flat.nii.gz", np.zeros((6, 5), np.int16))
    with pytest.raises(InputError, match="no 3D volume"):
        datalist_from_images(folder / "flat.nii.gz")
    assert len(datalist_from_images(folder)) == 7, "one that cannot be read is reported when its turn comes"


@pytest.mark.skipif(not OPENKBP.exists(), reason="OpenKBP lies on development machines only")
def test_openkbp_is_partially_annotated():
    organs = ["brainstem", "spinal_cord", "esophagus", "larynx"]
    train = load_datalist(OPENKBP / "train.json", organs=organs, check_files=False)
    val = load_datalist(OPENKBP / "val.json", organs=organs, check_files=False)
    assert (len(train), len(val)) == (136, 29)
    check_disjoint(train, val)
    assert train[0]["annotated"] == [1, 2] and train[0]["truncated"] == [2]


def test_an_organ_that_nobody_annotates_is_told():
    train = [{"annotated": [1]}, {"annotated": [1, 3]}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_annotated(train, ["liver"])
    with pytest.raises(InputError, match=r"annotates spleeen\..*Did you mean spleen\?"):
        check_annotated(train, ["liver", "spleeen", "pancreas"])
    with pytest.warns(UserWarning, match="annotates spleen: "):
        check_annotated(train, ["liver", "spleen", "pancreas"])
