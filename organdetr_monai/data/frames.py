"""What inference needs beside the image: the frames, to take boxes home, and patience with bad cases."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.data import Dataset
from monai.transforms import MapTransform

from organdetr_monai.data.transforms import affine_of, source_of
from organdetr_monai.errors import input_error

logger = logging.getLogger(__name__)


class RecordFramed(MapTransform):
    """Write down where an image came from, after the last step of preprocessing.

    Sets ``frame``, a dict: ``working_affine`` of the image as it is now, ``affine`` and ``shape`` of the original
    array (4×4 affines of voxel centres to RAS+ mm), ``image`` (path) and ``series_uid`` (None unless DICOM). Collating
    a batch keeps it.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Record each key's frame; with several keys the last one's."""
        d = dict(data)
        for key in self.key_iterator(d):
            meta = d[key].meta
            d["frame"] = {
                "working_affine": affine_of(d[key]),
                "affine": np.asarray(meta["original_affine"], dtype=np.float64),
                "shape": tuple(int(n) for n in meta["spatial_shape"][:3]),
                "image": source_of(d[key]),
                "series_uid": meta.get("series_uid"),
            }
        return d


class TolerantDataset(Dataset):
    """Dataset in which a case that cannot be used becomes ``{"case", "error"}``: the others still get their result.

    Only what the user can mend (:class:`organdetr_monai.errors.InputError`) is tolerated; a defect of the program is
    raised.
    """

    def _transform(self, index: int) -> dict[str, Any]:
        item = self.data[index]
        try:
            return super()._transform(index)
        except Exception as error:
            found = input_error(error)
            if found is None:
                raise
            logger.error("%s: %s", item["case"], found)
            return {"case": item["case"], "error": str(found)}
