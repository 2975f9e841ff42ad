"""Boxes from masks: exact, complete, and silent on what nobody annotated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from organdetr_monai.data.match import MatchImaged
from organdetr_monai.data.truth import (
    BoxesFromMaskd,
    MapLabelsd,
    OutlineOrgansd,
    TruthBoxesd,
    exact_boxes,
    outline_organs,
)
from organdetr_monai.errors import InputError


def volume(values, affine=None):
    return MetaTensor(torch.as_tensor(values)[None], affine=torch.as_tensor(np.eye(4) if affine is None else affine))


def blobs(shape=(30, 28, 26), organs=6, seed=0):
    """Mask of random balls, uint8."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    mask = np.zeros(shape, np.uint8)
    for organ in range(1, organs + 1):
        centre, radius = rng.uniform(4, np.array(shape) - 4), rng.uniform(2, 5)
        mask[((grid - centre) ** 2).sum(-1) < radius**2] = organ
    return mask


def brute_force(mask):
    boxes = {}
    for organ in np.unique(mask[mask > 0]):
        where = np.argwhere(mask == organ)
        boxes[int(organ)] = [*where.min(0), *where.max(0) + 1]
    return boxes


def item(mask, affine=None, *, annotated=None, organs=6):
    ids = list(range(1, organs + 1))
    return {"label": volume(mask, affine), "annotated": ids if annotated is None else annotated}


def test_values_become_ids_and_the_rest_background():
    mask = np.array([0, 7, 2, 200, 3, 1000, -1, 2], np.int16).reshape(2, 2, 2)
    data = {"label": volume(mask), "label_values": {1: 7, 2: 2, 3: 200}, "annotated": [1, 2]}
    label = MapLabelsd("label")(data)["label"]
    assert label.dtype == torch.uint8
    # 200 is an organ that this case does not annotate: nothing is known of it.
    assert label.flatten().tolist() == [0, 1, 2, 0, 0, 0, 0, 2]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_masks_of_any_type_are_read(dtype):
    data = {"label": volume(np.full((3, 3, 3), 4, dtype)), "label_values": {2: 4}, "annotated": [2]}
    assert (MapLabelsd("label")(data)["label"] == 2).all()


@pytest.mark.parametrize("bad", [0.5, np.nan])
def test_a_mask_of_fractions_is_refused(bad):
    data = {"label": volume(np.full((3, 3, 3), bad)), "label_values": {1: 1}, "annotated": [1]}
    with pytest.raises(InputError, match="no label"):
        MapLabelsd("label")(data)


def labelled(value):
    mask = volume(np.full((3, 3, 3), value, np.uint8))
    mask.meta["filename_or_obj"] = "seg.nii.gz"
    return {"label": mask, "label_values": {1: 1, 2: 8}, "annotated": [1]}


def test_an_empty_mask_is_refused():
    with pytest.raises(InputError, match=r"seg\.nii\.gz is empty"):
        MapLabelsd("label")(labelled(0))
    assert not MapLabelsd("label", allow_empty=True)(labelled(0))["label"].any()


def test_a_mask_of_other_organs_only_is_a_case_without_these(caplog):
    assert not MapLabelsd("label")(labelled(8))["label"].any()
    assert "seg.nii.gz shows none of the annotated organs; its values are 8" in caplog.text


def test_one_stray_voxel_does_not_stretch_the_box():
    mask = np.zeros((30, 20, 20), np.uint8)
    mask[2:12, 2:12, 2:12] = 1
    mask[28, 18, 18] = 1
    data = MapLabelsd("label")({**item(mask, organs=1), "label_values": {1: 1}})
    assert BoxesFromMaskd("label", num_organs=1)(data)["boxes"].tolist() == [[2, 2, 2, 12, 12, 12]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("outlined", [False, True])
def test_boxes_equal_brute_force(seed, outlined):
    mask = blobs(seed=seed)
    data = item(mask)
    if outlined:
        data = OutlineOrgansd("label")(data)
    sample = BoxesFromMaskd("label", num_organs=6)(data)
    expected = brute_force(mask)
    assert sample["labels"].tolist() == sorted(expected) and sample["labels"].dtype == torch.int64
    assert sample["boxes"].dtype == torch.float32
    np.testing.assert_allclose(sample["boxes"], [expected[k] for k in sorted(expected)], atol=1e-4)
    assert "outlines" not in sample


def test_no_organ_at_all_gives_no_boxes():
    sample = BoxesFromMaskd("label", num_organs=6)(OutlineOrgansd("label")(item(np.zeros((5, 5, 5), np.uint8))))
    assert sample["boxes"].shape == (0, 6) and sample["labels"].shape == (0,)
    assert sample["annotated"].all()  # looked for, and not there


def test_only_annotated_organs_are_spoken_of():
    data = {**item(blobs(), annotated=[2, 5]), "label_values": {k: k for k in range(1, 7)}}
    sample = BoxesFromMaskd("label", num_organs=6)(MapLabelsd("label")(data))
    assert sample["annotated"].tolist() == [False, True, False, False, True, False]
    assert sample["labels"].tolist() == [2, 5]
    assert set(np.unique(sample["label"])) == {0, 2, 5}


@pytest.mark.parametrize("seed", range(3))
def test_the_hull_gives_the_box_under_any_affine(seed):
    """Against all corners of all voxels of the organ."""
    rng = np.random.default_rng(seed)
    mask = blobs(seed=seed)
    affine = np.eye(4)
    affine[:3] = rng.normal(size=(3, 4)) + 2 * np.eye(3, 4)
    target = np.eye(4)
    target[:3] = rng.normal(size=(3, 4)) + 2 * np.eye(3, 4)
    organs, boxes = exact_boxes(outline_organs(mask, affine), target)
    corners = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing="ij"), -1).reshape(1, 8, 3)
    matrix = np.linalg.solve(target, affine)
    for organ, box in zip(organs, boxes, strict=True):
        points = (np.argwhere(mask == organ)[:, None] + corners).reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3] + 0.5
        np.testing.assert_allclose(box, [*points.min(0), *points.max(0)], atol=1e-6)


@pytest.mark.parametrize("where", [np.s_[4, 5, 6], np.s_[4, 5, 2:9], np.s_[4, 1:5, 2:9], np.s_[1:3, 2:4, 5:7]])
def test_points_lines_and_sheets_have_an_outline(where):
    mask = np.zeros((10, 10, 10), np.uint8)
    mask[where] = 1
    organs, boxes = exact_boxes(outline_organs(mask, np.eye(4)), np.eye(4))
    np.testing.assert_allclose(boxes, [brute_force(mask)[1]], atol=1e-9)
    assert organs.tolist() == [1]


def test_outlines_know_better_than_the_coarse_mask():
    mask = np.zeros((40, 40, 40), np.uint8)
    mask[3:18, 9:10, 1:37] = 1
    grid = np.diag([4.0, 4, 4, 1])
    grid[:3, 3] = 1.5
    data = OutlineOrgansd("label")(item(mask, organs=1))
    data = MatchImaged("label")({**data, "image": volume(np.zeros((10, 10, 10), np.float32), grid)})
    sample = BoxesFromMaskd("label", num_organs=1)(data)
    np.testing.assert_allclose(sample["boxes"], [[0.75, 2.25, 0.25, 4.5, 2.5, 9.25]], atol=1e-6)


def cut_sample(stop, **options):
    """Organ 1 fills 20 slices, the window ends after ``stop`` of them; organ 2 is whole."""
    mask = np.zeros((30, 10, 10), np.uint8)
    mask[10:30, 2:8, 2:8] = 1
    mask[2:5, 2:5, 2:5] = 2
    data = OutlineOrgansd("label")(item(mask, organs=2))
    data["label"] = volume(mask[: 10 + stop])
    return BoxesFromMaskd("label", num_organs=2, **options)(data)


def test_an_organ_cut_by_the_window_keeps_its_visible_part():
    sample = cut_sample(5)
    assert sample["boxes"].tolist() == [[10, 2, 2, 15, 8, 8], [2, 2, 2, 5, 5, 5]]
    assert sample["annotated"].all()


def test_a_sliver_is_neither_there_nor_absent():
    sample = cut_sample(1)
    assert sample["labels"].tolist() == [2]
    assert sample["annotated"].tolist() == [False, True]
    assert 1 not in sample["label"]  # nor background where it is told apart: see losses
    assert cut_sample(1, min_visible=0.0)["labels"].tolist() == [1, 2]


def test_an_organ_outside_the_window_is_absent():
    sample = cut_sample(0)
    assert sample["labels"].tolist() == [2] and sample["annotated"].tolist() == [True, True]


def test_cached_samples_are_not_changed():
    data = OutlineOrgansd("label")({**item(blobs()), "label_values": {1: 1}})
    before = {k: v for k, v in data.items()}
    BoxesFromMaskd("label", num_organs=6)(data)
    assert data == before and data["annotated"] == [1, 2, 3, 4, 5, 6]


def test_truth_is_of_the_files_resolution():
    mask = blobs()
    affine = np.diag([1.5, 1.5, 3.0, 1.0])
    grid = np.diag([-5.0, 5, 5, 1])
    grid[:3, 3] = [40, 2, 2]
    image = volume(np.zeros((9, 9, 16), np.float32), grid)
    sample = TruthBoxesd("label", num_organs=6)({**item(mask, affine, annotated=[1, 2, 3, 4, 6]), "image": image})
    expected = brute_force(mask)
    for box, organ in zip(sample["boxes"].numpy(), sample["labels"].tolist(), strict=True):
        low, high = np.array(expected[organ]).reshape(2, 3) - 0.5
        ends = np.array([low, high]) * [1.5, 1.5, 3.0]  # mm
        ends = (ends - grid[:3, 3]) / np.diag(grid)[:3] + 0.5
        np.testing.assert_allclose(box, [*ends.min(0), *ends.max(0)], atol=1e-5)
    assert "label" not in sample and not sample["annotated"][4]
    assert sample["spacing"].tolist() == [5, 5, 5]


def test_truncated_organs_can_be_left_out_of_the_truth():
    data = {**item(blobs()), "truncated": [2], "image": volume(np.zeros((9, 9, 16), np.float32))}
    every = TruthBoxesd("label", num_organs=6)(dict(data))
    whole = TruthBoxesd("label", num_organs=6, ignore_truncated=True)(dict(data))
    assert 2 in every["labels"].tolist() and every["annotated"].all()
    assert whole["annotated"].tolist() == [True, False, True, True, True, True]
    kept = every["labels"] != 2
    torch.testing.assert_close(whole["labels"], every["labels"][kept])
    torch.testing.assert_close(whole["boxes"], every["boxes"][kept])
