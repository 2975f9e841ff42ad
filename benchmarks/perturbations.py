"""Changes to a scan and its mask before anything else sees them, for ``benchmarks/robustness.py``.

All transforms take ``image`` (HU) and ``label`` (ids), both (1, X, Y, Z) on one grid in RAS order, and ``outlines``,
points in mm that span the organs (:class:`organdetr_monai.data.truth.OutlineOrgansd`). The three stay true to each
other: one affine moves them all. Each case has random numbers of its own, by its name: every model sees the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandGaussianNoise, SpatialCrop

from organdetr_monai.data.augmentation import rotation, sample_bilinear, sample_nearest, sampling_grid
from organdetr_monai.data.transforms import Data, affine_of, plain, with_affine
from organdetr_monai.data.truth import BoxesFromMaskd
from organdetr_monai.geometry import spacing_of, transform_boxes

AIR = -1024.0  # HU, of what comes into view from outside the scan


class _Perturbation(MapTransform):
    """Base: both keys, and random numbers by the name of the case."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(("image", "label"))
        self.seed = seed

    def random(self, data: Data) -> np.random.Generator:
        """Generator of this case."""
        return np.random.default_rng([self.seed, zlib.crc32(str(data["case"]).encode())])


class Moved(_Perturbation):
    """The patient grown, turned about the middle of the scan, or moved, in a scan that covers the same space as before.

    Parameters
    ----------
    zoom : float
        Factor by which the patient grows.
    rotate : float
        Degrees about each of the three axes; each sign is random.
    shift : float
        Along each of the three axes, as a share of the scan's extent there; each sign is random.
    seed : int
    """

    def __init__(self, *, zoom: float = 1.0, rotate: float = 0.0, shift: float = 0.0, seed: int = 0) -> None:
        super().__init__(seed)
        self.zoom, self.rotate, self.shift = zoom, rotate, shift

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Resample image and mask, and carry the outlines along."""
        d = dict(data)
        size, affine = tuple(d["image"].shape[1:]), affine_of(d["image"])
        turns, moves = self.random(d).choice([-1.0, 1.0], size=(2, 3))
        matrix = self.matrix(size, spacing_of(affine), self.rotate * turns, self.shift * moves)
        grid = sampling_grid(matrix, size, size)
        d["image"] = with_affine(sample_bilinear(plain(d["image"]) - AIR, grid) + AIR, affine, d["image"])
        d["label"] = with_affine(sample_nearest(plain(d["label"]), grid), affine, d["label"])
        forward = affine @ np.linalg.inv(matrix) @ np.linalg.inv(affine)  # of the patient, mm
        points = d["outlines"]["points"].numpy() @ forward[:3, :3].T + forward[:3, 3]
        volume = {organ: mm3 * self.zoom**3 for organ, mm3 in d["outlines"]["volume"].items()}
        d["outlines"] = {**d["outlines"], "points": torch.from_numpy(points), "volume": volume}
        return d

    def matrix(self, size: Sequence[int], spacing: np.ndarray, degrees: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Affine (4, 4) from indices of the new scan to those of the old one."""
        sizes = np.asarray(size, float)
        linear = np.diag(1 / spacing) @ rotation(np.deg2rad(degrees)) @ np.diag(spacing) / self.zoom
        middle = (sizes - 1) / 2
        matrix = np.eye(4)
        matrix[:3, :3] = linear
        matrix[:3, 3] = middle - linear @ (middle + shift * sizes)
        return matrix


class HalfView(_Perturbation):
    """One half of the scan along an axis; the rest was never scanned.

    Parameters
    ----------
    axis : int
        Of RAS: 0, 1, 2.
    upper : bool
        The half with the higher coordinates: right to left, back to front, feet to head, so with axis 2 the head's.
    """

    def __init__(self, axis: int = 2, upper: bool = True) -> None:
        super().__init__()
        self.axis, self.upper = axis, upper

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Crop image and mask; the outlines, in mm, stay."""
        d = dict(data)
        size = list(d["image"].shape[1:])
        start, stop = [0, 0, 0], list(size)
        middle = size[self.axis] // 2
        start[self.axis], stop[self.axis] = (middle, size[self.axis]) if self.upper else (0, middle)
        crop = SpatialCrop(roi_start=start, roi_end=stop)
        return {**d, "image": crop(d["image"]), "label": crop(d["label"])}


class Noisy(_Perturbation):
    """MONAI's Gaussian noise on the voxels of the file; nothing falls below air.

    Parameters
    ----------
    sigma : float
        HU.
    seed : int
    """

    def __init__(self, sigma: float, seed: int = 0) -> None:
        super().__init__(seed)
        self.noise = RandGaussianNoise(prob=1.0, std=sigma, sample_std=False)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Add it to the image."""
        d = dict(data)
        self.noise.set_random_state(int(self.random(d).integers(2**31)))
        image = d["image"]
        noisy = torch.as_tensor(plain(self.noise(image))).clamp(min=min(AIR, float(image.min())))
        return {**d, "image": with_affine(noisy, affine_of(image), image)}


class VisibleTruthd(BoxesFromMaskd):
    """Truth of a changed scan, on the grid of its working image.

    As in training: exact for an organ that lies wholly in the scan (the box of its outline under the same affine as
    the image), of what the mask shows for one that the scan cuts; of an organ less than a tenth of which is left nobody
    asks anything.
    """

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Set ``boxes``, ``labels``, ``annotated`` and ``spacing``; the mask goes."""
        d = super().__call__(data)
        mask, target = d.pop("label"), affine_of(d["image"])
        boxes = transform_boxes(d["boxes"].double().numpy(), affine_of(mask), target)
        d["boxes"] = torch.as_tensor(boxes, dtype=torch.float32)
        d["spacing"] = torch.as_tensor(spacing_of(target), dtype=torch.float32)
        return d
