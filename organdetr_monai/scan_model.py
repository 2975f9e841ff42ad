"""What every model for scans shares: a network on its device, and scans read and prepared as its bundle does."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from monai.utils import MetaKeys, SpaceKeys
from numpy.typing import ArrayLike

from organdetr_monai.data.readers import LoadScand
from organdetr_monai.data.scans import Scan
from organdetr_monai.errors import InputError
from organdetr_monai.geometry import check_affine
from organdetr_monai.loading import mended

__all__ = ["ScanLike", "ScanModel"]

ScanLike: TypeAlias = "str | os.PathLike | Scan | tuple[ArrayLike, ArrayLike] | MetaTensor"


class ScanModel:
    """A network and the way of a scan to it.

    Parameters
    ----------
    network : torch.nn.Module
        Set to evaluation.
    preprocessing : monai.transforms.Compose
        Starts with ``LoadScand`` and records the ``frame``; key ``image``.
    device : torch.device or str
    """

    def __init__(self, network: torch.nn.Module, preprocessing: Compose, *, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        # Apart, so that arrays go the same way as files from here on, and callers get the scan as it was read.
        self._load, self._prepare = split_loading(preprocessing)

    def read(self, scan: ScanLike) -> MetaTensor:
        """Read a scan as the bundle does, without any other preprocessing.

        Parameters
        ----------
        scan : path, Scan, (array, affine), or what this has given before
            A NIfTI, NRRD, MHA or MHD file, a folder of one DICOM series, one of `data.scans.find_scans`, or an array
            (X, Y, Z) in HU with the affine (4, 4) from indices of voxel centres to RAS mm.

        Returns
        -------
        MetaTensor of shape (1, X, Y, Z), float32, HU
            Ready for a call.

        Raises
        ------
        InputError
            Whatever makes the scan unusable.
        """
        if isinstance(scan, MetaTensor):
            return scan
        if isinstance(scan, tuple):
            return as_volume(*scan)
        return mended(self._load, {"image": scan})["image"]

    def prepare(self, volume: MetaTensor) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """What `read` gave, as the network wants it: (1, x, y, z) on the device, and the frame that leads back."""
        sample = mended(self._prepare, {"image": volume})
        frame = sample["frame"]
        if "filename_or_obj" not in volume.meta:
            frame = {**frame, "image": None}  # came as an array
        return sample["image"].as_tensor().to(self.device), frame


def split_loading(preprocessing: Compose) -> tuple[Callable, Compose]:
    first, *rest = preprocessing.transforms
    if not isinstance(first, LoadScand):
        raise InputError(f"The preprocessing starts with {type(first).__name__}.", "Let it start with LoadScand.")
    return first, Compose(rest)


def as_volume(array: ArrayLike, affine: ArrayLike) -> MetaTensor:
    values, affine = np.asarray(array), check_affine(affine)
    if values.ndim != 3 or values.dtype.kind not in "iuf":
        raise InputError(f"The array has shape {values.shape} and type {values.dtype}.", "Give (X, Y, Z) in HU.")
    values = np.ascontiguousarray(values, dtype=np.float32)  # torch takes no negative strides
    meta = {
        MetaKeys.ORIGINAL_AFFINE: affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.array(values.shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
    }
    return MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(affine), meta=meta)
