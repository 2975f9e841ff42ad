"""Shapes on a grid: where their parts end does not depend on rounding."""

from __future__ import annotations

import numpy as np
import pytest

from organdetr_monai.data.phantom_shapes import Canvas, tube


@pytest.mark.parametrize("seed", [2, 43, 60, 67])
def test_parts_that_end_between_two_voxels_stay_inside_the_whole(seed):
    """Ends at multiples of a voxel, where rounding decides to which voxel they belong."""
    rng = np.random.default_rng(seed)
    rng.uniform(size=3)
    points, radii = np.round(rng.uniform(-15, 15, (3, 3)) * 4) / 4, rng.choice([3.0, 4.5, 6.0], 3)
    index = np.stack(np.meshgrid(*[np.arange(24, dtype=np.float32)] * 3, indexing="ij"))
    canvas = Canvas(index * 1.5 - 18, np.column_stack([np.eye(3) / 1.5, [12, 12, 12]]), slack=0.0, blur=1.5)
    shape = tube(points, radii, pieces=6)
    box, away = canvas.distance(shape)
    position = canvas.position[(slice(None), *box)]
    exact = np.min([part.distance(position) for part in shape], axis=0)
    inside = exact < 0
    assert inside.any() and np.array_equal(inside, away < 0)
    np.testing.assert_allclose(away[inside], exact[inside], atol=1e-5)
