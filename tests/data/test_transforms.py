"""From file to working grid: the patient stays where he is, the label is never looked at, bad scans are named."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, Orientationd, ScaleIntensityRanged, SpatialPadd
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.ndimage import map_coordinates

from organdetr_monai.data.readers import LoadScand
from organdetr_monai.data.transforms import BlockAveraged, CheckImaged, CropBodyd, WorkingSpacingd
from organdetr_monai.data.truth import MapLabelsd, TruthBoxesd
from organdetr_monai.errors import InputError
from organdetr_monai.geometry import box_to_oriented, transform_boxes
from tests.data.cases import AORTA, axial_affine, oblique_affine, save_case

TORSO = Path(__file__).parents[2].parent / "shared" / "data" / "torso"
SPACING, WINDOW = 5.0, (48, 40, 48)


def image_steps():
    return [
        LoadScand("image", ensure_channel_first=True),
        CheckImaged("image"),
        Orientationd("image", axcodes="RAS"),
        BlockAveraged("image", SPACING),
        CropBodyd("image"),
        WorkingSpacingd("image", SPACING),
        ScaleIntensityRanged("image", -200, 300, 0, 1, clip=True),
        SpatialPadd("image", WINDOW),
    ]


def prepare(item):
    return Compose(image_steps())(item)


def evaluate(item):
    label = [LoadScand("label", ensure_channel_first=True), MapLabelsd("label")]
    return Compose([*label, *image_steps(), TruthBoxesd("label", num_organs=3)])(item)


def volume(values, affine=None):
    return MetaTensor(torch.as_tensor(values)[None], affine=torch.as_tensor(np.eye(4) if affine is None else affine))


def boxes_mm(sample):
    """LPS mm (M, 2, 3)."""
    oriented = [box_to_oriented(box, sample["image"].affine.numpy()) for box in sample["boxes"].numpy()]
    return np.array([[o.min, o.max] for o in oriented])


def test_a_sample_is_what_the_network_expects(tmp_path):
    image = prepare(save_case(tmp_path, *axial_affine()))["image"]
    assert image.shape == (1, *WINDOW) and image.dtype == torch.float32 and image.is_contiguous()
    assert 0 <= image.min() and image.max() <= 1
    np.testing.assert_allclose(np.abs(np.diag(image.affine)[:3]), SPACING)


def test_preprocessing_never_looks_at_the_label(tmp_path):
    item = save_case(tmp_path, *axial_affine())
    bare = prepare({"image": item["image"], "case": "bare"})["image"]
    labelled = evaluate(item)["image"]
    assert torch.equal(bare.as_tensor(), labelled.as_tensor())
    assert torch.equal(bare.affine, labelled.affine)


@pytest.mark.parametrize("axcodes", ["LPS", "RAS", "SAR", "PIL", "ALI"])
def test_the_same_scan_stored_otherwise_gives_the_same_sample(tmp_path, axcodes):
    affine, shape = axial_affine((2.0, 3.0, 4.5))
    one = evaluate(save_case(tmp_path, affine, shape))
    other = evaluate(save_case(tmp_path, affine, shape, axcodes=axcodes, name="stored"))
    torch.testing.assert_close(one["image"].as_tensor(), other["image"].as_tensor(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(boxes_mm(one), boxes_mm(other), atol=1e-3)


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (0.9, 0.9, 4.0), (5.0, 5.0, 5.0), (6.0, 2.0, 7.0)])
def test_truth_in_mm_is_that_of_the_patient_whatever_the_spacing(tmp_path, spacing):
    sample = evaluate(save_case(tmp_path, *axial_affine(spacing)))
    assert sample["labels"].tolist() == [1, 2, 3] and sample["annotated"].tolist() == [True] * 3
    np.testing.assert_allclose(sample["spacing"], SPACING)
    low, high = np.array(AORTA)
    aorta = np.array([[-high[0], -high[1], low[2]], [-low[0], -low[1], high[2]]])  # RAS to LPS
    assert (np.abs(boxes_mm(sample)[2] - aorta) <= np.array(spacing) / 2 + 1e-3).all()


@pytest.mark.parametrize("axcodes", [None, "LIP"])
@pytest.mark.parametrize("grid", [axial_affine((1.1, 1.3, 3.7)), oblique_affine()])
def test_boxes_come_back_to_the_original_voxels(tmp_path, grid, axcodes):
    item = save_case(tmp_path, *grid, axcodes=axcodes)
    sample = evaluate(item)
    original = LoadScand("label")(item)["label"]
    back = transform_boxes(sample["boxes"].numpy(), sample["image"].affine.numpy(), original.affine.numpy())
    for box, value in zip(back, (5, 3, 9), strict=True):
        where = np.argwhere(original.numpy() == value)
        np.testing.assert_allclose(box, [*where.min(0), *where.max(0) + 1], atol=1e-3)


@pytest.mark.parametrize("size", [(20, 18, 16), (23, 17, 19)])
def test_averaging_and_resampling_leave_a_linear_ramp_in_place(size):
    """A ramp in mm is itself under averaging and linear interpolation, if the affines are right."""
    affine = np.array([[0, -1.5, 0, 7], [0.8, 0, 0, -3], [0, 0, 2.4, 11], [0, 0, 0, 1.0]])
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    slope = np.array([3.0, -2.0, 5.0])
    ramp = ((index @ affine[:3, :3].T + affine[:3, 3]) @ slope).astype(np.float32)
    image = Compose([BlockAveraged("image", 4.0), WorkingSpacingd("image", 4.0)])({"image": volume(ramp, affine)})[
        "image"
    ]
    index = np.stack(np.meshgrid(*map(np.arange, image.shape[1:]), indexing="ij"), -1)
    expected = (index @ image.affine[:3, :3].numpy().T + image.affine[:3, 3].numpy()) @ slope
    inside = (slice(1, -2),) * 3  # partial blocks and replicated edges are off the ramp
    np.testing.assert_allclose(image[0][inside].numpy(), expected[inside], atol=1e-2)


def test_block_average_is_the_mean_of_the_blocks_and_keeps_partial_ones():
    values = np.arange(5 * 4 * 3, dtype=np.float32).reshape(5, 4, 3)
    image = BlockAveraged("image", 2.0)({"image": volume(values)})["image"]
    assert image.shape == (1, 3, 2, 2)
    assert image[0, 0, 0, 0] == values[:2, :2, :2].mean()
    assert image[0, 2, 1, 1] == values[4:, 2:, 2:].mean()
    np.testing.assert_allclose(image.affine @ torch.tensor([0.0, 0, 0, 1]).double(), [0.5, 0.5, 0.5, 1])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_block_averages_do_not_depend_on_how_the_voxels_lie_in_memory(order):
    values = np.random.default_rng(0).integers(-1024, 3072, (33, 29, 17)).astype(np.float32)
    stored = np.ascontiguousarray(values.transpose(order)).transpose(np.argsort(order))
    affine = np.diag([0.7, 0.9, 2.4, 1.0])
    plain = torch.nn.functional.avg_pool3d(
        torch.from_numpy(values)[None], (7, 5, 2), ceil_mode=True, count_include_pad=False
    )
    image = BlockAveraged("image", 5.0)({"image": volume(stored, affine)})["image"]
    assert torch.equal(image.as_tensor(), plain), "sums of whole HU are exact in any order"
    noise = np.random.default_rng(1).random(values.shape, dtype=np.float32)
    plain = torch.nn.functional.avg_pool3d(
        torch.from_numpy(values + noise)[None], (7, 5, 2), ceil_mode=True, count_include_pad=False
    )
    image = BlockAveraged("image", 5.0)({"image": volume(stored + noise, affine)})["image"]
    torch.testing.assert_close(image.as_tensor(), plain, rtol=0, atol=1e-3)  # HU


def test_coarse_volumes_are_not_averaged():
    image = volume(np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32))
    assert BlockAveraged("image", 1.9)({"image": image})["image"] is image


def test_resampling_is_linear_interpolation_from_edge_to_edge():
    values = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    image = WorkingSpacingd("image", 0.7)({"image": volume(values)})["image"]
    assert image.shape == (1, 13, 12, 10)
    where = np.stack(np.meshgrid(*[np.arange(n) * 0.7 - 0.15 for n in image.shape[1:]], indexing="ij"))
    expected = map_coordinates(values, where, order=1, mode="nearest")
    np.testing.assert_allclose(image[0].numpy(), expected, atol=1e-4)


def test_a_path_beside_the_image_survives(tmp_path):
    item = save_case(tmp_path, *axial_affine())
    sample = prepare({"image": item["image"], "image_path": item["image"]})  # as MONAI Label gives it
    assert sample["image_path"] == item["image"]


def body(shape=(40, 30, 20)):
    values = np.full(shape, -1000, np.float32)
    values[10:30, 8:22, :] = 40
    return values


def test_crop_keeps_the_body_and_a_margin():
    image = CropBodyd("image", margin=3)({"image": volume(body(), np.diag([2.0, 2, 2, 1]))})["image"]
    assert image.shape == (1, 24, 18, 20)
    np.testing.assert_allclose(image.affine[:3, 3], [16, 12, 0])


def test_hot_voxels_in_the_air_do_not_widen_the_crop():
    values = body()
    values[[0, 39, 2], [0, 29, 3], [1, 5, 9]] = 3000
    clean, noisy = (CropBodyd("image", min_area=20)({"image": volume(v)})["image"] for v in (body(), values))
    assert clean.shape == noisy.shape


@pytest.mark.parametrize("value", [-1000.0, -1024.0, -3024.0])
def test_a_scan_of_air_is_refused(value):
    with pytest.raises(InputError, match=r"no body.*Hounsfield"):
        CropBodyd("image")({"image": volume(np.full((9, 9, 9), value, np.float32))})


@pytest.mark.parametrize("order", "CF")
def test_voxels_that_are_no_numbers_are_counted(order):
    values = np.zeros((4, 5, 6), np.float32, order)
    values[0, 0, :2], values[1, 1, 1] = np.nan, np.inf
    image = volume(values)
    image.meta["filename_or_obj"] = "scan.nii.gz"
    with pytest.raises(InputError, match=r"scan\.nii\.gz has 3 voxels"):
        CheckImaged("image")({"image": image})


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 4, 2), (5, 6, 1)])
def test_what_is_no_volume_is_refused(shape):
    with pytest.raises(InputError, match="no 3D volume"):
        CheckImaged("image")({"image": volume(np.zeros(shape, np.float32))})


def test_integer_volumes_become_float32():
    assert CheckImaged("image")({"image": volume(np.zeros((4, 5, 6), np.int16))})["image"].dtype == torch.float32


def test_monai_reader_and_ours_lead_to_the_same_image(tmp_path):
    item = save_case(tmp_path, *axial_affine(), axcodes="PIR")
    ours = prepare(item)["image"]
    steps = [LoadImaged("image", ensure_channel_first=True), *image_steps()[1:]]
    torch.testing.assert_close(Compose(steps)(item)["image"].as_tensor(), ours.as_tensor())


@pytest.mark.skipif(not TORSO.exists(), reason="the real torso CT lies on development machines only")
@pytest.mark.parametrize("axcodes", ["LPS", "SRP"])
def test_a_real_scan_stored_otherwise_gives_the_same_image(tmp_path, axcodes):
    scan = nib.load(TORSO / "ct.nii.gz")
    turn = ornt_transform(io_orientation(scan.affine), axcodes2ornt(axcodes))
    nib.save(scan.as_reoriented(turn), tmp_path / "stored.nii.gz")
    one, other = (prepare({"image": str(path)})["image"] for path in (TORSO / "ct.nii.gz", tmp_path / "stored.nii.gz"))
    torch.testing.assert_close(one.as_tensor(), other.as_tensor(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-3)


def test_each_axis_may_have_its_own_spacing():
    image = WorkingSpacingd("image", (2.0, 3.0, 6.0))(
        {"image": volume(torch.rand(12, 12, 12).numpy(), np.diag([1, 1, 2, 1.0]))}
    )
    assert tuple(image["image"].shape[1:]) == (6, 4, 4)
    np.testing.assert_allclose(np.linalg.norm(image["image"].affine[:3, :3], axis=0), (2, 3, 6))


@pytest.mark.parametrize("spacing", [0, -1.0, (1, 2), (1, 2, float("nan"))])
def test_spacing_that_cannot_be_is_refused(spacing):
    with pytest.raises(InputError, match="working spacing"):
        WorkingSpacingd("image", spacing)
