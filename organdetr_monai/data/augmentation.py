"""Random views of a training case: one affine, one resampling, image and mask together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

from organdetr_monai.data.transforms import Data, affine_of, plain, with_affine
from organdetr_monai.errors import InputError
from organdetr_monai.geometry import spacing_of
from organdetr_monai.organs import mirror, resolve


class RandAffineWindowd(RandomizableTransform, MapTransform):
    """Cut a randomly rotated, zoomed and moved window out of a volume.

    Without augmentation the window lies in the middle, which is where ``SpatialPadd`` puts a volume that is smaller.
    Where the volume is larger the window lies anywhere inside it. It does not mirror: that is :class:`RandMirrord`'s.

    Parameters
    ----------
    keys : image and mask, on one grid
    window : (X, Y, Z)
        Size of the result in voxels.
    modes : sequence of str
        ``"bilinear"`` or ``"nearest"`` for each key.
    rotate : float
        Largest angle about each axis, degrees.
    zoom : (float, float)
        Range of the factor by which organs grow.
    translate : float
        Largest shift along each axis as a share of the window.
    prob : float
        Of each of the three.
    random_position : bool
        False: the window lies in the middle of a larger volume, too.

    Notes
    -----
    What lies outside the volume is 0: air after scaling, and background. The affine of the result still leads to the
    patient, so a zoomed sample has voxels of another size in mm.
    """

    def __init__(
        self,
        keys: KeysCollection,
        window: Sequence[int],
        modes: Sequence[str] = ("bilinear", "nearest"),
        rotate: float = 10.0,
        zoom: Sequence[float] = (0.9, 1.1),
        translate: float = 0.1,
        prob: float = 0.5,
        random_position: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        if len(modes) != len(self.keys) or not set(modes) <= {"bilinear", "nearest"}:
            raise ValueError(f"modes must be bilinear or nearest for each of {self.keys!r}, got {modes!r}")
        self.window = tuple(int(n) for n in window)
        self.modes = dict(zip(self.keys, modes, strict=True))
        self.rotate, self.zoom, self.translate = float(rotate), tuple(zoom), float(translate)
        self.prob_each, self.random_position = float(prob), bool(random_position)

    def randomize(self, data: Any = None) -> None:
        """Draw the parameters; always as many numbers, so that one sample's luck does not move the next one's."""
        super().randomize(None)
        rotates, zooms, moves = self.R.random(3) < self.prob_each
        angles, zoom, shift, place = self.R.random(3), self.R.random(), self.R.random(3), self.R.random(3)
        self.angles = np.deg2rad(self.rotate) * (2 * angles - 1) * rotates
        self.factor = self.zoom[0] + (self.zoom[1] - self.zoom[0]) * zoom if zooms else 1.0
        self.shift = self.translate * (2 * shift - 1) * moves  # shares of the window
        self.place = place if self.random_position else np.full(3, 0.5)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Resample all keys on one random grid."""
        d = dict(data)
        keys = list(self.key_iterator(d))
        self.randomize()
        if not keys:
            return d
        first = d[keys[0]]
        size, affine = tuple(first.shape[1:]), affine_of(first)
        if any(tuple(d[key].shape[1:]) != size for key in keys):
            raise ValueError(f"{keys} are not on one grid: {[tuple(d[key].shape) for key in keys]}")
        matrix = self.matrix(size, spacing_of(affine))
        grid = sampling_grid(matrix, size, self.window)
        for key in keys:
            sample = sample_bilinear if self.modes[key] == "bilinear" else sample_nearest
            d[key] = with_affine(sample(plain(d[key]), grid), affine @ matrix, d[key])
        return d

    def matrix(self, size: Sequence[int], spacing: np.ndarray) -> np.ndarray:
        """Affine (4, 4) from indices of the window to indices of the volume, for the parameters drawn last."""
        sizes, window = np.asarray(size, float), np.asarray(self.window, float)
        # A smaller volume: as many voxels before it as SpatialPadd gives, the odd one after it.
        # Whole voxels: a window that is neither turned nor zoomed nor moved keeps the voxels' own values.
        start = np.where(sizes > window, np.floor(self.place * (sizes - window)), -np.floor((window - sizes) / 2))
        centre = np.eye(4)
        centre[:3, 3] = -(window - 1) / 2
        # Rotation is of the patient, in mm: on voxels of unequal sides it would shear.
        turn = np.eye(4)
        turn[:3, :3] = np.diag(1 / spacing) @ rotation(self.angles) @ np.diag(spacing) / self.factor
        place = np.eye(4)
        place[:3, 3] = start + (window - 1) / 2 - self.shift * window
        return place @ turn @ centre


class RandMirrord(RandomizableTransform, MapTransform):
    """Mirror a training case from left to right, and exchange the organs of the two sides.

    The affine is mirrored with the array, so that every voxel stays where it is in the patient; what the network sees
    is a mirrored patient, whose left kidney lies where the right one was. That is a patient like any other where the
    body is symmetric, as head and neck are, and not where the liver has a side.

    Parameters
    ----------
    keys : image and mask of ids, on one grid
    organs : sequence of K str
        Organ ``organs[k]`` has id ``k + 1``.
    prob : float
        Share of mirrored cases.
    mask : str
        Which of the keys holds ids.

    Raises
    ------
    InputError
        An organ whose counterpart is not among them, unless ``prob`` is 0.

    Notes
    -----
    Exchanges ids in the mask, in ``annotated``, and in ``outlines`` where there are any.
    """

    def __init__(
        self,
        keys: KeysCollection,
        organs: Sequence[str],
        prob: float = 0.5,
        mask: str = "label",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.mask, self.table = mask, _other_sides(organs) if prob > 0 else []

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Mirror all keys alike, or none."""
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        table = torch.tensor(self.table)
        for key in self.key_iterator(d):
            values, affine = plain(d[key]), affine_of(d[key])
            axis = int(np.abs(affine[0, :3]).argmax())  # along the patient's left and right
            flip = np.eye(4)
            flip[axis, axis], flip[axis, 3] = -1, values.shape[axis + 1] - 1
            if key == self.mask:
                values = table.to(values.dtype)[values.long()]
            d[key] = with_affine(values.flip(axis + 1), affine @ flip, d[key])
        if "annotated" in d:
            d["annotated"] = sorted(self.table[organ] for organ in d["annotated"])
        if "outlines" in d:
            points, organ, volume = (d["outlines"][part] for part in ("points", "organ", "volume"))
            organ, order = table[organ].sort(stable=True)
            volume = {self.table[k]: v for k, v in volume.items()}
            d["outlines"] = {"points": points[order], "organ": organ, "volume": volume}
        return d


def _other_sides(organs: Sequence[str]) -> list[int]:
    """For each id 0..K that of its organ's mirror image."""
    names = [resolve(organ) for organ in organs]
    lacking = [organ for organ in names if mirror(organ) not in names]
    if lacking:
        raise InputError(
            f"{', '.join(lacking)} cannot be mirrored: the other side is not among the organs.",
            "Name both sides, or set mirror_prob to 0.",
        )
    return [0, *(names.index(mirror(organ)) + 1 for organ in names)]


def rotation(angles: Sequence[float]) -> np.ndarray:
    """Rotation (3, 3) about the first, then the second, then the third axis, by radians."""
    total = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        total = turn @ total
    return total


def sampling_grid(matrix: np.ndarray, size: Sequence[int], window: Sequence[int]) -> torch.Tensor:
    """Grid for ``grid_sample`` with ``align_corners=False``.

    Parameters
    ----------
    matrix : ndarray of shape (4, 4)
        From indices of the window to indices of the volume.
    size, window : (X, Y, Z)
        Voxels of the volume and of the window.

    Returns
    -------
    Tensor of shape (1, *window, 3), float32
        Last axis in the order (z, y, x), in [-1, 1] from edge to edge of the volume.
    """
    grid = torch.empty((1, *window, 3))
    for row in range(3):
        scale = 2.0 / size[row]
        # Index i lies at (2 i + 1) / n - 1. Sums of one-dimensional parts: a third of the time of affine_grid.
        parts = [
            torch.as_tensor(scale * matrix[row, k] * np.arange(n), dtype=torch.float32) for k, n in enumerate(window)
        ]
        parts[0] = parts[0] + (scale * matrix[row, 3] + 1.0 / size[row] - 1.0)
        torch.add(parts[0][:, None, None] + parts[1][None, :, None], parts[2][None, None, :], out=grid[0, ..., 2 - row])
    return grid


def sample_bilinear(values: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Values (C, X, Y, Z) float at a grid as :func:`sampling_grid` gives it: (C, *window); 0 outside."""
    return F.grid_sample(values[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def sample_nearest(values: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """As :func:`sample_bilinear`, the nearest voxel's value, of any type; half the time of ``grid_sample``."""
    size = values.shape[1:]
    padded = F.pad(values, (1,) * 6)  # outside is the padding
    flat = torch.zeros(grid.shape[1:4], dtype=torch.int32)
    for row, n in enumerate(size):
        index = (grid[0, ..., 2 - row] + 1).mul_(n / 2).add_(1).floor_()  # counted in the padded volume
        flat.mul_(n + 2).add_(index.clamp_(0, n + 1).to(torch.int32))
    channels = padded.flatten(1).index_select(1, flat.flatten())
    return channels.reshape(values.shape[0], *flat.shape)


class RandIntensityd(RandomizableTransform, MapTransform):
    """Scale and shift intensities that lie in [0, 1], each at random, and clip to [0, 1].

    MONAI's ``RandScaleIntensityd`` and ``RandShiftIntensityd`` do not clip, and the network expects [0, 1].

    Parameters
    ----------
    keys : images
    scale, shift : float
        Largest relative change, largest offset.
    prob : float
        Of each of the two.
    """

    def __init__(
        self,
        keys: KeysCollection,
        scale: float = 0.1,
        shift: float = 0.1,
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.scale, self.shift, self.prob_each = float(scale), float(shift), float(prob)

    def randomize(self, data: Any = None) -> None:
        """Draw factor and offset."""
        super().randomize(None)
        scales, shifts = self.R.random(2) < self.prob_each
        factor, offset = 2 * self.R.random(2) - 1
        self.factor, self.offset = 1 + self.scale * factor * scales, self.shift * offset * shifts

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Change all keys alike."""
        d = dict(data)
        self.randomize()
        for key in self.key_iterator(d):
            if self.factor != 1 or self.offset != 0:
                values = (plain(d[key]) * self.factor + self.offset).clamp_(0, 1)
                d[key] = with_affine(values, affine_of(d[key]), d[key])
        return d


class RandSeedd(RandomizableTransform):
    """Put a random number into ``seed`` of each sample, for what is drawn later: by the network, on its device.

    Such draws then belong to the sample, like all its augmentation, and not to the process that happens to have it.
    """

    def __init__(self) -> None:
        super().__init__(1.0)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Add ``seed``, an int of 32 bits."""
        return {**data, "seed": int(self.R.randint(2**32, dtype="int64"))}
