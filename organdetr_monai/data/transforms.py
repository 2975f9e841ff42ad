"""From a scan file to the working grid, without a look at any label: check, average, crop, resample.

Every step keeps ``image.affine`` exact: boxes come back by affines alone, and a mask follows in one step
(:mod:`organdetr_monai.data.match`). In a config these stand among MONAI's ``Orientationd``, ``ScaleIntensityRanged``
and ``SpatialPadd``. Orientation comes first: then a scan gives the same image in whatever order its voxels are stored.

Sizes are of arrays ``(1, X, Y, Z)``; affines map voxel centres to RAS+ mm.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SpatialCrop, SpatialResample

from organdetr_monai.errors import InputError
from organdetr_monai.geometry import spacing_of

Data = Mapping[Hashable, Any]


def source_of(volume: Any) -> str:
    """File that a volume was read from, for messages."""
    return str(getattr(volume, "meta", {}).get("filename_or_obj", "the volume"))


def plain(x: Any) -> torch.Tensor:
    """Tensor without MONAI's metadata, on the same memory."""
    return x.as_tensor() if isinstance(x, MetaTensor) else torch.as_tensor(x)


def in_memory_order(values: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """View of a tensor with its axes from the longest stride to the shortest, and which axis each one was.

    Scans lie in memory as their file stores them, mostly the other way round: on such a tensor many operations of torch
    first make a copy in its own order, which takes longer than the operation.
    """
    order = sorted(range(values.ndim), key=values.stride, reverse=True)
    return values.permute(order), order


def with_affine(values: torch.Tensor, affine: np.ndarray, like: MetaTensor) -> MetaTensor:
    """MetaTensor of new values on a new grid, with the metadata of the MetaTensor ``like``."""
    meta = {k: v for k, v in like.meta.items() if k != "affine"}
    return MetaTensor(values.contiguous(), affine=torch.as_tensor(affine, dtype=torch.float64), meta=meta)


def affine_of(volume: MetaTensor) -> np.ndarray:
    """Affine (4, 4), float64, of a MetaTensor."""
    if not isinstance(volume, MetaTensor):
        raise TypeError(
            "the volume has lost its affine; MONAI's PersistentDataset needs track_meta=True and weights_only=False"
        )
    return np.asarray(volume.affine, dtype=np.float64)


def check_spacing(spacing: float | Sequence[float]) -> np.ndarray:
    """Working spacing in mm as an array (3,); :class:`InputError` unless it is one positive number or three."""
    values = np.asarray(spacing, dtype=np.float64)
    if values.shape not in ((), (1,), (3,)) or not np.isfinite(values).all() or (values <= 0).any():
        raise InputError(f"The working spacing is {spacing!r}.", "Give mm: one positive number, or one for each axis.")
    return np.broadcast_to(values, 3).copy()


class CheckImaged(MapTransform):
    """Refuse what is no single 3D volume of finite numbers; float32 comes out.

    ``LoadScand`` refuses these itself; put this after any other reader, such as MONAI's ``LoadImaged``.

    Raises
    ------
    InputError
        Not of shape (1, X, Y, Z), or NaN or infinite voxels; names the file and the count.
    """

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Check each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            volume = d[key]
            if volume.ndim != 4 or volume.shape[0] != 1 or min(volume.shape[1:]) < 2:
                size = "×".join(map(str, volume.shape))
                raise InputError(
                    f"{source_of(volume)} is no 3D volume: its size with the channel in front is {size}.",
                    "Give one 3D CT.",
                )
            if volume.dtype.is_floating_point:
                values, _ = in_memory_order(plain(volume))
                # A NaN anywhere is the minimum and the maximum; no second volume is needed.
                if not torch.isfinite(torch.stack(torch.aminmax(values))).all():
                    bad = int((~torch.isfinite(values)).sum())
                    raise InputError(
                        f"{source_of(volume)} has {bad} voxels that are NaN or infinite.",
                        "Write HU there (air is -1000) or convert the scan again.",
                    )
            d[key] = volume.to(torch.float32)
        return d


class BlockAveraged(MapTransform):
    """Average blocks of voxels that fit several times into a working voxel.

    Cheap and free of aliasing: plain interpolation onto a grid of 5 mm would read only 8 of the 150 voxels of 0.7 mm in
    plane that a working voxel covers. Along each axis ``floor(spacing / spacing of the file)`` voxels are averaged. The
    last block may be partial; it is averaged over the voxels there are.

    Parameters
    ----------
    keys : images
    spacing : float or 3 floats
        Working spacing in mm, of all axes or of each.
    """

    def __init__(
        self, keys: KeysCollection, spacing: float | Sequence[float], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spacing = check_spacing(spacing)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Average each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._average(d[key])
        return d

    def _average(self, volume: Any) -> Any:
        affine = affine_of(volume)
        # Not below 1, and a spacing of 2.4999 for 2.5 counts as 2.5.
        factors = np.maximum(np.floor(self.spacing / spacing_of(affine) + 1e-3), 1).astype(int)
        if (factors == 1).all():
            return volume
        values, order = in_memory_order(plain(volume)[0])
        blocks = F.avg_pool3d(
            values[None].float(), tuple(factors[order].tolist()), ceil_mode=True, count_include_pad=False
        )
        blocks = blocks.permute(0, *np.argsort(order) + 1)  # (1, x, y, z)
        # Centre of the first block lies (f - 1) / 2 voxels from the centre of the first voxel.
        step = np.diag([*factors, 1.0])
        step[:3, 3] = (factors - 1) / 2
        return with_affine(blocks, affine @ step, volume)


class CropBodyd(MapTransform):
    """Crop to the patient, found in the image alone.

    A slice belongs to the body where at least ``min_area`` of it is denser than ``threshold``, so a few hot voxels in
    the air do not widen the crop. What lies between two such slices stays.

    Parameters
    ----------
    keys : images, each cropped by its own content
    threshold : float
        HU; fat is about -100, air -1000.
    min_area : float
        mm² of tissue in a slice along any of the three axes.
    margin : float
        mm kept around, as far as the scan goes.

    Raises
    ------
    InputError
        There is no body.
    """

    def __init__(
        self,
        keys: KeysCollection,
        threshold: float = -500.0,
        min_area: float = 100.0,
        margin: float = 10.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.threshold, self.min_area, self.margin = float(threshold), float(min_area), float(margin)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Crop each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            start, stop = self._extent(d[key])
            d[key] = SpatialCrop(roi_start=start, roi_end=stop)(d[key])
        return d

    def _extent(self, volume: Any) -> tuple[list[int], list[int]]:
        values = plain(volume)[0]
        spacing = spacing_of(affine_of(volume))
        body = values > self.threshold  # (X, Y, Z)
        start, stop = [], []
        for axis in range(3):
            others = [a for a in range(3) if a != axis]
            area = body.sum(dim=others).numpy() * spacing[others].prod()  # mm², one for each slice
            inside = np.flatnonzero(area >= self.min_area)
            if len(inside) == 0:
                low, high = float(values.min()), float(values.max())
                raise InputError(
                    f"{source_of(volume)} shows no body: its values lie in [{low:g}, {high:g}], no slice has "
                    f"{self.min_area:g} mm² above {self.threshold:g} HU.",
                    "Give a CT in Hounsfield units, or lower the threshold of CropBodyd.",
                )
            margin = int(np.ceil(self.margin / spacing[axis]))
            start.append(max(int(inside[0]) - margin, 0))
            stop.append(min(int(inside[-1]) + 1 + margin, len(area)))
        return start, stop


class WorkingSpacingd(MapTransform):
    """Resample onto the working grid, which covers the volume from edge to edge.

    MONAI's ``SpatialResample`` does the work. Unlike ``Spacingd`` the grid starts at the outer edge of the first voxel,
    not at its centre, and strings beside the image in the sample (MONAI Label adds ``image_path``) are left alone.

    Parameters
    ----------
    keys : images
    spacing : float or 3 floats
        mm, of all axes or of each.
    """

    def __init__(
        self, keys: KeysCollection, spacing: float | Sequence[float], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spacing = check_spacing(spacing)
        self.resample = SpatialResample(mode="bilinear", padding_mode="border", align_corners=False, dtype=np.float32)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Resample each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            volume = d[key]
            affine = affine_of(volume)
            zoom = self.spacing / spacing_of(affine)  # voxels of the file in a working voxel
            # An axis that ends within a thousandth of a voxel after a whole one does not get one more.
            shape = np.ceil(np.asarray(volume.shape[1:]) / zoom - 1e-3).astype(int)
            step = np.diag([*zoom, 1.0])
            step[:3, 3] = (zoom - 1) / 2
            target = torch.as_tensor(affine @ step)
            resampled = self.resample(volume, dst_affine=target, spatial_size=shape.tolist())
            d[key] = with_affine(plain(resampled), target.numpy(), volume)
        return d
