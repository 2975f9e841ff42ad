"""The click bundle in a MONAI Label server: the config's key ``postprocessing``.

MONAI Label calls a bundle's inferer with the image and the network, and nothing else. Clicks come as ``foreground`` and
``background`` in the request, and reach it in a channel of the image that preprocessing adds
(:class:`organdetr_monai.miq_sam3d.points.EncodeClicksd`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform

from organdetr_monai.detections import Model
from organdetr_monai.miq_sam3d.answer import Answer

__all__ = ["PatientLesionsd"]


class PatientLesionsd(Transform):
    """Lesions of the working grid to a label map on the grid of the scan, and to JSON.

    Parameters
    ----------
    model : Model

    Notes
    -----
    Reads ``pred``, a :class:`organdetr_monai.miq_sam3d.inference.Found`, and ``frame`` and ``clicks`` of the
    preprocessing. Sets

    ``pred`` (1, X, Y, Z)
        On the original array: 1 where there is any lesion, as an annotator's segment takes it; or, if the request says
        ``instances``, the lesions' ids.
    ``answer`` : Answer
    ``result`` : dict
        For JSON: ``answer``, all that ``lesions.json`` says.
    """

    def __init__(self, *, model: Model) -> None:
        self.model = model

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Carry the lesions of one scan home."""
        d = dict(data)
        answer = Answer.from_found(d["pred"], d["clicks"], model=self.model, **d["frame"])
        labels = answer.labels.astype(np.int16) if d.get("instances") else (answer.labels > 0).astype(np.uint8)
        d["pred"] = torch.from_numpy(labels)[None]
        d["answer"], d["result"] = answer, {"answer": answer.to_dict()}
        return d
