"""Augmentation: image, mask and affine move together, left stays left, and nothing happens at probability zero."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialPadd

from organdetr_monai.data.augmentation import RandAffineWindowd, RandIntensityd, RandMirrord, rotation
from organdetr_monai.data.truth import BoxesFromMaskd, OutlineOrgansd
from organdetr_monai.errors import InputError

KEYS = ["image", "label"]
AFFINE = np.array([[0, -5.0, 0, 30], [5.0, 0, 0, -20], [0, 0, 5.0, 7], [0, 0, 0, 1]])


def sample(shape=(24, 20, 22), seed=0):
    """Smooth image, and the mask of three balls."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    rng = np.random.default_rng(seed)
    image = 0.5 + 0.3 * np.sin(grid @ [0.2, 0.15, 0.1])
    mask = np.zeros(shape, np.uint8)
    for organ in (1, 2, 3):
        mask[((grid - rng.uniform(6, np.array(shape) - 6)) ** 2).sum(-1) < 16] = organ
    tensors = {"image": torch.as_tensor(image[None], dtype=torch.float32), "label": torch.as_tensor(mask[None])}
    affine = torch.as_tensor(AFFINE)
    return {**{k: MetaTensor(v, affine=affine) for k, v in tensors.items()}, "annotated": [1, 2, 3]}


def augment(window=(24, 20, 22), seed=3, **options):
    return RandAffineWindowd(KEYS, window, **options).set_random_state(seed)


def test_probability_zero_is_the_identity():
    data = sample()
    out = augment(prob=0.0)(data)
    torch.testing.assert_close(out["image"].as_tensor(), data["image"].as_tensor(), rtol=0, atol=1e-5)
    assert torch.equal(out["label"].as_tensor(), data["label"].as_tensor())
    np.testing.assert_allclose(out["image"].affine, AFFINE, atol=1e-12)


@pytest.mark.parametrize("window", [(31, 20, 26), (24, 27, 22), (33, 33, 33)])
def test_a_small_volume_lies_where_padding_puts_it(window):
    data = sample()
    out, padded = augment(window, prob=0.0)(data), SpatialPadd(KEYS, window)(data)
    torch.testing.assert_close(out["image"].as_tensor(), padded["image"].as_tensor(), rtol=0, atol=1e-5)
    assert torch.equal(out["label"].as_tensor(), padded["label"].as_tensor())
    np.testing.assert_allclose(out["image"].affine, padded["image"].affine, atol=1e-9)


def test_a_large_volume_gives_windows_from_everywhere_in_it():
    data, window = sample(), (12, 20, 10)
    transform = augment(window, prob=0.0)
    starts = set()
    for _ in range(200):
        out = transform(data)
        start = np.linalg.solve(AFFINE, out["image"].affine.numpy()[:, 3])[:3].round(6)
        i, j, k = start.astype(int)
        assert torch.equal(out["label"].as_tensor(), data["label"].as_tensor()[:, i : i + 12, j : j + 20, k : k + 10])
        starts.add((i, k))
    assert {s[0] for s in starts} == set(range(12)) and {s[1] for s in starts} == set(range(12))
    fixed = augment(window, prob=0.0, random_position=False)(data)
    assert torch.equal(fixed["label"].as_tensor(), data["label"].as_tensor()[:, 6:18, :, 6:16])


@pytest.mark.parametrize("seed", range(6))
def test_image_and_mask_hold_at_each_voxel_what_the_affine_points_at(seed):
    data = sample(seed=seed)
    out = augment(seed=seed, prob=1.0)(data)
    matrix = np.linalg.solve(AFFINE, out["image"].affine.numpy())
    index = np.stack(np.meshgrid(*map(np.arange, out["image"].shape[1:]), indexing="ij"), -1)
    where = index @ matrix[:3, :3].T + matrix[:3, 3]
    inside = ((where > 0) & (where < np.array(data["image"].shape[1:]) - 1)).all(-1)
    assert 0.5 < inside.mean() < 1
    smooth = 0.5 + 0.3 * np.sin(where @ [0.2, 0.15, 0.1])
    np.testing.assert_allclose(out["image"][0].numpy()[inside], smooth[inside], atol=0.01)
    near = np.rint(where).astype(int)
    clear = inside & (np.abs(where - near) < 0.499).all(-1)
    assert (out["label"][0].numpy()[clear] == data["label"][0].numpy()[tuple(near[clear].T)]).all()
    outside = ((where < -1) | (where > np.array(data["image"].shape[1:]))).any(-1)
    assert (out["image"][0].numpy()[outside] == 0).all() and (out["label"][0].numpy()[outside] == 0).all()
    assert torch.equal(out["image"].affine, out["label"].affine)


@pytest.mark.parametrize("outlined", [False, True])
def test_boxes_after_augmentation(outlined):
    """Without outlines they are the mask's own; with outlines they are within a voxel or so of these."""
    data = OutlineOrgansd("label")(sample()) if outlined else sample()
    transform = augment((30, 26, 28), prob=1.0)
    for _ in range(5):
        out = BoxesFromMaskd("label", num_organs=3)(transform(data))
        mask = out["label"][0].numpy()
        assert out["labels"].tolist() == sorted(set(np.unique(mask)) - {0})
        for box, organ in zip(out["boxes"].numpy(), out["labels"].tolist(), strict=True):
            where = np.argwhere(mask == organ)
            expected = [*where.min(0), *where.max(0) + 1]
            np.testing.assert_allclose(box, expected, atol=1.2 if outlined else 0)


def test_an_organ_of_one_voxel_keeps_its_box_whatever_the_turn():
    data = sample()
    data["label"][:] = 0
    data["label"][0, 6, 5, 6] = 2
    data = OutlineOrgansd("label")(data)
    transform, lost = augment(prob=1.0, translate=0.0), 0
    for _ in range(40):
        out = transform(data)
        lost += int(not (out["label"] == 2).any())
        out = BoxesFromMaskd("label", num_organs=3)(out)
        assert out["labels"].tolist() == [2]
        size = (out["boxes"][0, 3:] - out["boxes"][0, :3]).numpy()
        assert (size > 0.85).all() and (size < 1.6).all()
    assert lost  # the mask alone does lose it


def test_zoom_and_rotation_are_of_the_patient():
    data = sample()
    for seed in range(10):
        out = augment(seed=seed, prob=1.0)(data)
        linear = np.linalg.solve(AFFINE[:3, :3], out["image"].affine.numpy()[:3, :3])
        factor = np.cbrt(np.linalg.det(linear))
        assert 1 / 1.1 <= factor <= 1 / 0.9 and np.linalg.det(linear) > 0  # never mirrored
        np.testing.assert_allclose(linear.T @ linear, factor**2 * np.eye(3), atol=1e-9)
        assert np.trace(linear / factor) >= 1 + 2 * np.cos(np.deg2rad(10 * np.sqrt(3) + 1))


def test_anisotropic_voxels_are_not_sheared():
    data = sample()
    affine = np.diag([2.0, 2.0, 6.0, 1.0])
    for key in KEYS:
        data[key] = MetaTensor(data[key].as_tensor(), affine=torch.as_tensor(affine))
    new = augment(prob=1.0)(data)["image"].affine.numpy()[:3, :3]
    cosines = new.T @ new
    np.testing.assert_allclose(cosines, np.diag(np.diag(cosines)), atol=1e-9)


def test_each_of_the_three_happens_half_of_the_time():
    transform = augment()
    drawn = []
    for _ in range(400):
        transform.randomize()
        drawn.append([transform.angles.any(), transform.factor != 1, transform.shift.any()])
        assert np.abs(transform.angles).max() <= np.deg2rad(10) and np.abs(transform.shift).max() <= 0.1
        assert 0.9 <= transform.factor <= 1.1
    assert (np.abs(np.mean(drawn, axis=0) - 0.5) < 0.1).all()


def test_a_seed_decides():
    data = sample()
    one, again, other = (augment(seed=s)(data)["image"].affine for s in (5, 5, 6))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_rotation_is_right_handed_about_each_axis():
    quarter = np.pi / 2
    np.testing.assert_allclose(rotation([quarter, 0, 0]) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(rotation([0, quarter, 0]) @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(rotation([0, 0, quarter]) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_grids_that_differ_are_an_error():
    data = sample()
    data["label"] = data["label"][:, :-1]
    with pytest.raises(ValueError, match="not on one grid"):
        augment()(data)


def test_intensity_stays_in_range_and_leaves_the_mask():
    data = sample()
    transform = RandIntensityd("image").set_random_state(0)
    changed = 0
    for _ in range(60):
        out = transform(data)
        assert 0 <= out["image"].min() and out["image"].max() <= 1 and out["image"].dtype == torch.float32
        assert out["label"] is data["label"]
        changed += not torch.equal(out["image"].as_tensor(), data["image"].as_tensor())
    assert 35 < changed < 55  # one of two independent halves: three in four
    assert RandIntensityd("image", prob=0.0)(data)["image"] is data["image"]


def test_a_volume_without_its_affine_is_an_error():
    data = {key: tensor.as_tensor() for key, tensor in sample().items() if key in KEYS}
    with pytest.raises(TypeError, match="track_meta=True"):
        augment()(data)


ORGANS = ["kidney_left", "liver", "kidney_right"]
SIDES = {1: 3, 2: 2, 3: 1}


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIL", "oblique"])
def test_mirrored_organs_change_sides_and_stay_where_they_are(axcodes):
    """Told by millimetres: the voxels of an organ are those of its counterpart, in a mirrored array."""
    data = sample()
    affine = np.array(AFFINE)
    if axcodes == "oblique":
        affine[:3, :3] = rotation(np.deg2rad([10, -15, 20])) @ affine[:3, :3]
    else:
        affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(axcodes), (24, 20, 22)) * 1.0
        affine[:3] *= 5
    for key in KEYS:
        data[key] = MetaTensor(data[key].as_tensor(), affine=torch.as_tensor(affine))
    data = OutlineOrgansd("label")({**data, "annotated": [1, 2]})
    out = RandMirrord(KEYS, ORGANS, prob=1.0)(data)
    side = int(np.abs(affine[0, :3]).argmax())
    assert torch.equal(out["image"].as_tensor(), data["image"].as_tensor().flip(side + 1))
    for organ, other in SIDES.items():
        before, after = (
            nib.affines.apply_affine(d["label"].affine.numpy(), np.argwhere(d["label"][0].numpy() == k))
            for d, k in ((data, organ), (out, other))
        )
        assert len(before) and {tuple(p) for p in before.round(6)} == {tuple(p) for p in after.round(6)}
    assert out["annotated"] == [2, 3]
    boxes = BoxesFromMaskd("label", 3)({**out, "annotated": [1, 2, 3]})
    plain_boxes = BoxesFromMaskd("label", 3)({**data, "annotated": [1, 2, 3]})
    size = data["label"].shape[side + 1]
    for organ, other in SIDES.items():
        box, mirrored = plain_boxes["boxes"][organ - 1].clone(), boxes["boxes"][other - 1]
        box[[side, side + 3]] = size - box[[side + 3, side]]
        torch.testing.assert_close(box, mirrored, rtol=0, atol=1e-4)
    again = RandMirrord(KEYS, ORGANS, prob=1.0)(out)
    assert torch.equal(again["label"].as_tensor(), data["label"].as_tensor()) and again["annotated"] == [1, 2]
    np.testing.assert_allclose(again["image"].affine, affine, atol=1e-9)


def test_mirroring_wants_both_sides_and_happens_as_often_as_asked():
    with pytest.raises(InputError, match="kidney_left cannot be mirrored.*mirror_prob to 0"):
        RandMirrord(KEYS, ["kidney_left", "liver"])
    data = sample()
    assert RandMirrord(KEYS, ["kidney_left", "liver", "spleen"], prob=0.0)(data)["label"] is data["label"]
    transform = RandMirrord(KEYS, ORGANS, prob=0.3).set_random_state(0)
    moved = sum(transform(data)["label"] is not data["label"] for _ in range(300))
    assert 60 < moved < 120
