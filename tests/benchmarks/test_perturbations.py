"""Changed scans: image, mask and outline stay true to each other, and the truth is that of what can be seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from benchmarks.perturbations import AIR, HalfView, Moved, Noisy, VisibleTruthd
from organdetr_monai.data.truth import outline_organs
from organdetr_monai.geometry import boxes_from_mask

SPACING = np.array([3.0, 2.0, 4.0])
SHAPE = (40, 60, 36)


def scan() -> dict:
    """Two balls in mm, off the middle: organ 1 of 30 mm radius, organ 2 of 12 mm near the upper end."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-50, 20, 300)
    points = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) * SPACING
    mask = np.zeros(SHAPE, np.uint8)
    mask[np.linalg.norm(points - (55, 60, 70), axis=-1) < 30] = 1
    mask[np.linalg.norm(points - (75, 40, 120), axis=-1) < 12] = 2
    image = np.where(mask > 0, 100.0 * mask, 0.0).astype(np.float32)
    wrap = {key: MetaTensor(torch.from_numpy(a[None]), affine=affine) for key, a in (("image", image), ("label", mask))}
    return {**wrap, "outlines": outline_organs(mask, affine), "annotated": [1, 2], "case": "a"}


def truth(sample: dict) -> dict:
    return VisibleTruthd(keys="label", num_organs=2)(sample)


CHANGES = {
    "zoom": Moved(zoom=1.1),
    "shrink": Moved(zoom=0.9),
    "shift": Moved(shift=0.1),
    "rotate": Moved(rotate=10.0),
    "all": Moved(zoom=0.95, rotate=10.0, shift=0.05, seed=3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_boxes_are_those_of_what_the_changed_image_shows(name):
    sample = CHANGES[name](scan())
    got = truth(dict(sample))
    assert got["labels"].tolist() == [1, 2]
    shown, _ = boxes_from_mask(sample["label"][0].numpy())
    assert np.abs(got["boxes"].numpy() - shown).max() < 1.01
    # Organ 1 alone in the image: the rim of organ 2, half of it air, is as bright.
    alone = scan()
    alone["image"][alone["label"] == 2] = 0
    bright, _ = boxes_from_mask((CHANGES[name](alone)["image"][0].numpy() > 50).astype(np.uint8))
    assert np.abs(got["boxes"][0].numpy() - bright[0]).max() < 1.01


@pytest.mark.parametrize(
    ("name", "factor", "mm"), [("zoom", 1.1, 0), ("shrink", 0.9, 0), ("shift", 1, 0), ("rotate", 1, 6)]
)
def test_ball_grows_with_the_zoom_and_keeps_its_size_when_turned_or_moved(name, factor, mm):
    before, after = (truth(sample)["boxes"][0].numpy() for sample in (scan(), CHANGES[name](scan())))
    # Turned, what is a ball of voxels has corners.
    np.testing.assert_allclose(
        after[3:] - after[:3], factor * (before[3:] - before[:3]), rtol=1e-5, atol=mm / SPACING.min()
    )


def test_shift_is_the_share_of_the_scan_that_was_asked_for():
    moved = truth(Moved(shift=0.1)(scan()))["boxes"][0] - truth(scan())["boxes"][0]
    np.testing.assert_allclose(moved.abs().numpy(), np.tile(0.1 * np.array(SHAPE), 2), rtol=1e-5)


def test_what_comes_into_view_is_air_and_the_grid_stays():
    before, after = scan(), Moved(zoom=0.9)(scan())
    assert after["image"][0, 0, 0, 0] == AIR and after["label"][0, 0, 0, 0] == 0
    assert after["image"].shape == before["image"].shape
    assert torch.equal(after["image"].affine, before["image"].affine)


def test_signs_depend_on_the_case_and_on_nothing_else():
    def boxes(case):
        return truth(Moved(shift=0.1)({**scan(), "case": case}))["boxes"].tolist()

    assert boxes("a") == boxes("a")
    assert len({str(boxes(case)) for case in "abcdefgh"}) > 3


def test_half_a_scan_keeps_the_box_of_what_is_left_in_the_same_place():
    whole = truth(scan())
    upper, lower = (HalfView(axis=2, upper=upper)(scan()) for upper in (True, False))
    assert upper["image"].shape[3] + lower["image"].shape[3] == SHAPE[2]
    np.testing.assert_allclose(upper["image"].affine[:3, 3], [-50, 20, 300 + SHAPE[2] // 2 * SPACING[2]])
    low = truth(dict(lower))
    # Organ 1 reaches over the cut, organ 2 is in the upper half alone: absent below, where nothing of it is left.
    assert low["labels"].tolist() == [1] and low["annotated"].tolist() == [True, True]
    want = whole["boxes"][0].clone()
    want[5] = SHAPE[2] // 2
    assert torch.equal(low["boxes"][0], want)
    high = truth(dict(upper))
    assert high["labels"].tolist() == [1, 2]
    moved = whole["boxes"][1] - torch.tensor([0, 0, SHAPE[2] // 2] * 2)
    torch.testing.assert_close(high["boxes"][1], moved)


def test_sliver_of_an_organ_counts_neither_as_there_nor_as_absent():
    sample = scan()
    sample["label"][..., : SHAPE[2] // 2 - 1][sample["label"][..., : SHAPE[2] // 2 - 1] == 1] = 0
    sample["outlines"] = outline_organs(sample["label"][0].numpy(), sample["label"].affine.numpy())
    lower = truth(HalfView(axis=2, upper=False)(sample))
    assert lower["labels"].tolist() in ([], [1])
    assert lower["annotated"].tolist() == [bool(len(lower["labels"])), True]


def test_noise_is_as_strong_as_stated_repeatable_and_not_below_air():
    clean, noisy, again = scan(), Noisy(50.0)(scan()), Noisy(50.0)(scan())
    difference = (noisy["image"] - clean["image"]).as_tensor()
    assert difference.std().item() == pytest.approx(50, rel=0.02)
    assert torch.equal(noisy["image"], again["image"])
    assert torch.equal(noisy["label"], clean["label"])
    air = scan()
    air["image"][:] = AIR
    assert Noisy(50.0)(air)["image"].min() == AIR
