"""Training samples keep what they promise: click, lesion, kind and window agree, whatever was drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from organdetr_monai.data.augmentation import RandIntensityd
from organdetr_monai.errors import InputError
from organdetr_monai.miq_sam3d.prompts import RandPromptd, relabel
from tests.miq_sam3d.cases import case, instances

WINDOW = (16, 16, 16)
KINDS = {1: 1, 2: 1, 3: 2, 4: 2}


def samples(count, transform=None, data=None, seed=0):
    transform = transform or RandPromptd(WINDOW)
    transform.set_random_state(seed)
    return [transform(data or case()) for _ in range(count)]


def clicked_voxel(sample) -> tuple[int, ...]:
    index = sample["click"].numpy() * WINDOW - 0.5
    np.testing.assert_allclose(index, np.rint(index), atol=1e-4)
    return tuple(np.rint(index).astype(int))


def test_contract():
    for sample in samples(60):
        assert set(sample) == {
            *("image", "instances", "kinds", "clicked"),
            *("exemplar", "exemplar_instances", "exemplar_kinds", "exemplar_clicked"),
            *("click", "asked", "kind", "remote", "case"),
        }
        ids, their_ids = sample["instances"], sample["exemplar_instances"]
        assert sample["image"].shape == sample["exemplar"].shape == ids.shape == (1, *WINDOW)
        assert (sample["image"].dtype, ids.dtype, sample["click"].dtype) == (torch.float32, torch.int64, torch.float32)
        assert sorted(set(ids.unique().tolist()) - {0}) == list(range(1, len(sample["kinds"]) + 1))
        assert ((sample["click"] > 0) & (sample["click"] < 1)).all() and sample["case"] == "a"
        assert their_ids[(0, *clicked_voxel(sample))] == sample["exemplar_clicked"]
        if sample["kind"]:
            assert sample["exemplar_kinds"][sample["exemplar_clicked"] - 1] == sample["kind"]
        assert sample["clicked"] == (0 if sample["remote"] else sample["exemplar_clicked"])
        if not sample["remote"]:
            assert sample["image"] is sample["exemplar"] and ids is their_ids


def test_what_was_clicked_is_what_the_exemplar_shows():
    """The intensity of the test's image names the lesion, so it tells the truth about the click without the labels."""
    still = RandPromptd(WINDOW, rotate=0, zoom=(1, 1), background=0.2)
    seen = set()
    for sample in samples(80, still):
        value = float(sample["exemplar"][(0, *clicked_voxel(sample))])
        lesion = round((value - 0.3) / 0.1)
        assert KINDS.get(lesion, 0) == sample["kind"]
        seen.add(lesion)
    assert seen == {0, 1, 2, 3, 4}


def test_without_rotation_and_zoom_image_and_instances_are_the_volumes_own():
    for sample in samples(30, RandPromptd(WINDOW, rotate=0, zoom=(1, 1), mirror=0.5)):
        image, ids = sample["image"].as_tensor()[0].numpy(), sample["instances"][0].numpy()
        lesions = np.rint((image - 0.3) / 0.1)  # ids of the case where there is one
        assert ((lesions > 0) == (ids > 0)).all()
        affine = np.asarray(sample["image"].affine)
        # the affine still leads to the patient: its index in the volume holds the same lesion
        for voxel in np.argwhere(ids)[::7]:
            x, y, z = np.rint((affine @ [*voxel, 1])[:3] / 2).astype(int)
            assert instances()[0][x, y, z] == lesions[tuple(voxel)]


def test_shares():
    drawn = samples(400, RandPromptd(WINDOW, remote=0.5, background=0.1))
    assert np.mean([s["remote"] for s in drawn]) == pytest.approx(0.5, abs=0.1)
    assert np.mean([s["kind"] == 0 for s in drawn]) == pytest.approx(0.1, abs=0.06)
    shown = [int((s["instances"] == s["clicked"]).sum()) for s in drawn if s["clicked"]]
    assert np.mean([size == 1 for size in shown]) == pytest.approx(
        0.25, abs=0.12
    )  # one lesion in four, whatever its size
    assert all(s["asked"] for s in drawn)
    some = samples(200, RandPromptd(WINDOW, asked=0.3))
    assert np.mean([s["asked"] for s in some]) == pytest.approx(0.3, abs=0.1)
    assert not any(s["remote"] for s in samples(30, RandPromptd(WINDOW, remote=0)))
    assert all(s["kind"] for s in samples(30, RandPromptd(WINDOW, background=0)))
    absent = [not (s["kinds"] == s["kind"]).any() for s in drawn if s["remote"] and s["kind"]]
    assert 0.02 < np.mean(absent) < 0.6  # some remote prompts ask for what is not there


def test_a_lesion_of_one_voxel_is_never_lost():
    sizes = []
    for sample in samples(120, RandPromptd(WINDOW, remote=0, background=0)):
        sizes.append(min(int((sample["instances"] == k + 1).sum()) for k in range(len(sample["kinds"]))))
    assert min(sizes) == 1


def test_same_seed_same_samples():
    for first, again in zip(samples(10), samples(10), strict=True):
        for key in ("image", "exemplar", "instances", "click", "kinds"):
            assert torch.equal(torch.as_tensor(first[key]), torch.as_tensor(again[key]))
        assert [first[k] for k in ("clicked", "kind", "remote")] == [again[k] for k in ("clicked", "kind", "remote")]
    assert not torch.equal(samples(1)[0]["image"], samples(1, seed=1)[0]["image"])


def test_a_scan_without_lesions_asks_for_nothing():
    data = case()
    data["instances"], data["kinds"] = torch.zeros_like(data["instances"]), torch.zeros(0, dtype=torch.int64)
    for sample in samples(20, data=data):
        assert sample["kind"] == 0 and sample["clicked"] == 0 and len(sample["kinds"]) == 0


def test_a_window_larger_than_the_volume_is_padded_with_zeros():
    transform = RandPromptd((40, 16, 32), rotate=0, zoom=(1, 1), mirror=0)
    for sample in samples(20, transform):
        outside = sample["image"] < 0.01  # tissue is 0.3
        assert outside.any() and not (outside & (sample["instances"] > 0)).any()
        assert int((~outside).sum()) == 30 * 16 * 22


def test_mirrored_windows_are_mirrored_from_left_to_right_alone():
    for share, sign in ((0.0, 1), (1.0, -1)):
        for sample in samples(10, RandPromptd(WINDOW, rotate=0, zoom=(1, 1), mirror=share)):
            turn = np.asarray(sample["image"].affine)[:3, :3]
            np.testing.assert_allclose(turn, np.diag([2.0 * sign, 2, 2]), atol=1e-9)


def test_validation_twin_is_the_same_every_time():
    twin = dict(remote=0.0, background=0.0, places={"centre": 1.0}, rotate=0.0, zoom=(1.0, 1.0), mirror=0.0)
    first, again = (samples(1, RandPromptd(WINDOW, **twin), seed=5)[0] for _ in range(2))
    assert torch.equal(first["image"], again["image"]) and first["clicked"] == again["clicked"]


def test_intensity_changes_image_and_exemplar_alike():
    change = RandIntensityd(["image", "exemplar"], prob=1.0)
    change.set_random_state(0)
    sample = samples(1, RandPromptd(WINDOW, remote=0))[0]
    changed = change(sample)
    assert torch.equal(changed["image"], changed["exemplar"]) and not torch.equal(changed["image"], sample["image"])


def test_relabel():
    ids, shown = relabel(torch.tensor([[[[0, 7], [3, 7]]]]))
    assert ids.tolist() == [[[[0, 2], [1, 2]]]] and shown.tolist() == [3, 7]
    full, shown = relabel(torch.full((1, 2, 2, 2), 5))
    assert (full == 1).all() and shown.tolist() == [5]


@pytest.mark.parametrize(
    "options", [{"remote": 1.5}, {"background": -0.1}, {"mirror": 2}, {"asked": 3}, {"places": {"top": 1}}]
)
def test_wrong_options(options):
    with pytest.raises(InputError):
        RandPromptd(WINDOW, **options)
