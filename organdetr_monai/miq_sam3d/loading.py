"""From files to a case in memory: the scan and its lesions on the working grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Orientationd, ScaleIntensityRanged

from organdetr_monai.data.match import MatchImaged
from organdetr_monai.data.readers import LoadScand
from organdetr_monai.data.transforms import (
    BlockAveraged,
    CheckImaged,
    WorkingSpacingd,
    affine_of,
    plain,
    source_of,
    with_affine,
)
from organdetr_monai.errors import InputError
from organdetr_monai.miq_sam3d.components import MIN_VOLUME, check_min_volume, label_components

SPACING = 2.0
"""mm of the working grid, by default."""
HU_WINDOW = (-160.0, 240.0)
"""HU that become 0 and 1, by default: soft tissue."""


class LoadInstancesd(MapTransform):
    """Load the lesions of a case, as :func:`organdetr_monai.miq_sam3d.datalist.load_lesions` describes it.

    The key's path becomes a MetaTensor (1, X, Y, Z), int32, ids 1..M on the grid of the file, and ``kinds`` an int64
    tensor (M,), the kind of instance ``i + 1``. With ``values`` in the sample the file is a semantic mask, and its
    connected components are the instances.

    Parameters
    ----------
    keys : paths of masks
    min_volume : float
        mm³; a component of a semantic mask that is smaller becomes background. Instances that somebody told apart are
        all kept.

    Raises
    ------
    InputError
        A mask of other than whole numbers, or whose ids are not those of ``kinds``.
    """

    def __init__(self, keys: KeysCollection = "instances", min_volume: float = MIN_VOLUME) -> None:
        super().__init__(keys)
        self.min_volume = check_min_volume(min_volume)
        self.load = LoadScand(keys, ensure_channel_first=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load each key."""
        d = self.load(data)
        for key in self.key_iterator(d):
            mask = d[key]
            values = _whole_numbers(plain(mask)[0].numpy(), source_of(mask))
            if "values" in d:
                voxel_volume = float(abs(np.linalg.det(affine_of(mask)[:3, :3])))
                ids, kinds = label_components(
                    values, d["values"], voxel_volume=voxel_volume, min_volume=self.min_volume
                )
            else:
                ids, kinds = values, np.asarray(d["kinds"], dtype=np.int64)
                _check_ids(ids, kinds, source_of(mask))
            d[key] = with_affine(torch.from_numpy(np.ascontiguousarray(ids))[None], affine_of(mask), mask)
            d["kinds"] = torch.from_numpy(kinds)
        return d


def _whole_numbers(values: np.ndarray, source: str) -> np.ndarray:
    whole = np.rint(values)
    odd = ~(np.abs(values - whole) <= 1e-3)
    if odd.any():
        raise InputError(f"{source} holds {values[odd][0]:g}, which is no id.", "Store integers.")
    return whole.astype(np.int32)


def _check_ids(ids: np.ndarray, kinds: np.ndarray, source: str) -> None:
    found = np.unique(ids)
    found = found[found != 0]
    if not np.array_equal(found, np.arange(1, len(kinds) + 1)):
        shown = ", ".join(map(str, found[:10])) or "none"
        raise InputError(
            f"{source} holds the ids {shown}; the datalist names the kinds of {len(kinds)} instances.",
            "Number the instances from 1 without gaps, and give the kind of each.",
        )


def case_transforms(
    *, spacing: float | Sequence[float] = SPACING, hu_window: Sequence[float] = HU_WINDOW, truth: bool = True
) -> list[Any]:
    """Transforms, none of them random, from a case of the datalist to the working grid.

    Parameters
    ----------
    spacing : float or 3 floats
        mm of the working grid.
    hu_window : (float, float)
        HU that become 0 and 1; beyond them is clipped.
    truth : bool
        False: ``image`` alone, for scans without instances.

    Returns
    -------
    list of transforms
        They give ``image`` (1, X, Y, Z) in [0, 1], RAS; with `truth` also ``instances`` (1, X, Y, Z) ids and ``kinds``
        (M,). No lesion is lost by resampling, however small.
    """
    image = [
        LoadScand("image", ensure_channel_first=True),
        CheckImaged("image"),
        Orientationd("image", axcodes="RAS", labels=None),
        BlockAveraged("image", spacing=spacing),
        WorkingSpacingd("image", spacing=spacing),
        ScaleIntensityRanged("image", a_min=hu_window[0], a_max=hu_window[1], b_min=0.0, b_max=1.0, clip=True),
    ]
    return [LoadInstancesd("instances"), *image, MatchImaged("instances")] if truth else image
