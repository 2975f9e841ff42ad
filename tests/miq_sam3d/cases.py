"""Small volumes with lesions, shared by the tests of the data side."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor

SHAPE = (30, 26, 22)


def ball(centre, radius, shape=SHAPE) -> np.ndarray:
    """A ball as a mask."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.square(index - np.asarray(centre)).sum(-1) <= radius**2


def instances() -> tuple[np.ndarray, np.ndarray]:
    """Four lesions and their kinds: two of kind 1, one of them of a single voxel, and two of kind 2 that touch."""
    ids = np.zeros(SHAPE, np.int32)
    ids[ball((8, 8, 8), 4)] = 1
    ids[25, 4, 18] = 2
    ids[ball((20, 18, 12), 3)] = 3
    ids[ball((20, 18, 17), 3) & (ids == 0)] = 4
    return ids, np.array([1, 1, 2, 2])


def case(spacing=(2.0, 2.0, 2.0)) -> dict:
    """A case on the working grid; the intensity of a voxel tells its lesion, 0.3 is tissue."""
    ids, kinds = instances()
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.from_numpy(0.3 + 0.1 * ids)[None].float(), affine=affine)
    return {
        "image": image,
        "instances": MetaTensor(torch.from_numpy(ids)[None], affine=affine),
        "kinds": torch.from_numpy(kinds),
        "case": "a",
    }
