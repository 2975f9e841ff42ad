"""Between the working grid and the original array, voxel by voxel, and the same in both directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from organdetr_monai.geometry import check_affine, spacing_of

__all__ = ["GridMap"]

_PARALLEL = 1e-5  # cosine; preprocessing flips and permutes axes, and rounds


class GridMap:
    """Which working voxel each voxel of the original array lies in.

    Preprocessing flips and permutes axes, crops and resamples, but does not turn: each axis of one grid runs along one
    of the other, whatever the scan's own orientation. So three lists of indices say it all. Labels come back and clicks
    go in by the same lists: a click's voxel gets the label of its working voxel, exactly.

    Parameters
    ----------
    working_affine : ndarray of shape (4, 4)
    working_shape : (x, y, z)
    affine : ndarray of shape (4, 4)
        Of the original array.
    shape : (X, Y, Z)

    Raises
    ------
    ValueError
        Preprocessing that turns the image.
    """

    def __init__(
        self, working_affine: np.ndarray, working_shape: Sequence[int], affine: np.ndarray, shape: Sequence[int]
    ) -> None:
        working, original = check_affine(working_affine), check_affine(affine)
        step = np.linalg.solve(working[:3, :3], original[:3, :3])  # working voxels for one original voxel
        cosines = np.abs(step) * spacing_of(working)[:, None] / spacing_of(original)
        if np.abs(cosines - np.rint(cosines)).max() > _PARALLEL or not (np.rint(cosines).sum(axis=0) == 1).all():
            raise ValueError("the working grid is turned against the scan; preprocess without rotation")
        first = np.linalg.solve(working[:3, :3], original[:3, 3] - working[:3, 3])  # where original voxel 0 lies
        #: Of each axis of the original array, the axis of the working grid that runs along it.
        self.axes = np.abs(cosines).argmax(axis=0)
        #: Of each axis of the original array, the working index of each of its voxels; -1 beside the working volume.
        self.indices = []
        for axis, along in enumerate(self.axes):
            at = np.floor(first[along] + step[along, axis] * np.arange(shape[axis]) + 0.5).astype(np.int64)
            self.indices.append(np.where((at >= 0) & (at < working_shape[along]), at, -1))

    def to_working(self, voxels: np.ndarray) -> np.ndarray:
        """Working voxels (n, 3) of original voxels (n, 3); -1 on an axis on which it lies beside the working volume."""
        working = np.empty((len(voxels), 3), dtype=np.int64)
        for axis, along in enumerate(self.axes):
            working[:, along] = self.indices[axis][np.asarray(voxels)[:, axis]]
        return working

    def to_original(self, labels: np.ndarray) -> np.ndarray:
        """Labels (x, y, z) of the working grid on the original array (X, Y, Z): of each voxel that it lies in."""
        turned = labels.transpose(self.axes)  # axes in the original's order
        outside = [index < 0 for index in self.indices]
        moved = turned[np.ix_(*(np.maximum(index, 0) for index in self.indices))]
        for axis, beside in enumerate(outside):
            moved[(slice(None),) * axis + (beside,)] = 0
        return moved
