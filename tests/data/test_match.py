"""Masks on the image's grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from organdetr_monai.data.match import MatchImaged, sample_nearest


def volume(values, affine=None):
    return MetaTensor(torch.as_tensor(values)[None], affine=torch.as_tensor(np.eye(4) if affine is None else affine))


def test_mask_on_the_images_grid_is_the_nearest_voxel():
    rng = np.random.default_rng(1)
    mask = rng.integers(0, 4, (12, 11, 10)).astype(np.uint8)
    matrix = np.array([[0, 1.3, 0, -1.2], [-0.8, 0, 0.1, 9.3], [0, 0.2, 0.9, 0.4], [0, 0, 0, 1.0]])
    sampled = sample_nearest(mask, matrix, (9, 8, 7))
    index = np.stack(np.meshgrid(*map(np.arange, (9, 8, 7)), indexing="ij"), -1)
    where = np.floor(index @ matrix[:3, :3].T + matrix[:3, 3] + 0.5 + 1e-6).astype(int)
    inside = ((where >= 0) & (where < mask.shape)).all(-1)
    expected = np.where(inside, mask[tuple(np.clip(where, 0, np.array(mask.shape) - 1).transpose(3, 0, 1, 2))], 0)
    np.testing.assert_array_equal(sampled, expected)
    assert (~inside).any() and sampled.dtype == mask.dtype


@pytest.mark.parametrize("at", [(3, 3, 3), (0, 7, 1), (4, 4, 4)])
def test_an_organ_of_one_voxel_survives_the_coarse_grid(at):
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[6:, 6:, 6:] = 1
    mask[at] = 2
    image = volume(
        np.zeros((3, 3, 3), np.float32), np.array([[4, 0, 0, 1.5], [0, 4, 0, 1.5], [0, 0, 4, 1.5], [0, 0, 0, 1]])
    )
    matched = MatchImaged("label")({"image": image, "label": volume(mask)})["label"]
    assert matched.shape == image.shape and matched.dtype == torch.uint8
    np.testing.assert_array_equal(np.argwhere(matched[0].numpy() == 2), [[n // 4 for n in at]])
    assert torch.equal(matched.affine, image.affine)
