"""Inference the way MONAI Label asks for it: the config's keys ``detector`` and ``postprocessing``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from torch import Tensor, nn

from organdetr_monai.detections import Detections, Model
from organdetr_monai.writers.slicer import markups

__all__ = ["LabelDetector", "PatientBoxesd", "editable_markups"]


class LabelDetector:
    """The inferer in the dress of a MONAI detector.

    Parameters
    ----------
    inferer : callable
        ``inferer(image, network)`` as :class:`organdetr_monai.inference.DetectionInferer`.

    Attributes
    ----------
    network : nn.Module or None
        MONAI Label sets it before a call.
    """

    def __init__(self, inferer: Callable[[Tensor, nn.Module], list[dict[str, Tensor]]]) -> None:
        self.inferer = inferer
        self.network: nn.Module | None = None

    def __call__(self, image: Tensor, use_inferer: bool = True) -> list[dict[str, Tensor]]:
        """Detect in each volume of a batch.

        Parameters
        ----------
        image : Tensor of shape (B, 1, X, Y, Z)
        use_inferer : bool
            MONAI Label says True; there is no other way here.

        Returns
        -------
        list of dict
            ``box`` (K, 6) corners in voxels of the image, ``label`` (K,) ids, ``score`` (K,).
        """
        if self.network is None:
            raise ValueError("LabelDetector has no network; set its attribute `network` before the call")
        names = {"boxes": "box", "labels": "label", "scores": "score"}
        return [{names[k]: v for k, v in found.items()} for found in self.inferer(image, self.network)]


class PatientBoxesd(Transform):
    """Boxes of the working grid to patient LPS mm, of the organs that are present.

    Parameters
    ----------
    organs : sequence of K str
    model : Model
    threshold : float or mapping from organ to float
        From this score up an organ is present.

    Notes
    -----
    Reads ``box``, ``label``, ``score`` of :class:`LabelDetector` and ``frame`` of
    :class:`organdetr_monai.data.frames.RecordFramed`. Sets

    ``box`` (P, 6) float64
        Centre and size along the patient's axes, LPS mm: what MONAI Label's markups hold. Around an oblique box it is
        the smallest such box.
    ``label`` (P,) int64, ``score`` (P,) float64
        Ids and scores of these boxes, in the order of the model's organs.
    ``detections`` : Detections
    ``result`` : dict
        For JSON: ``box``, ``label``, ``score``, ``organ`` (names) and ``detections``, all that
        ``detections.json`` says. MONAI Label's own task returns it to who asks with ``result_write_to_file`` false.
    """

    def __init__(self, organs: Sequence[str], *, model: Model, threshold: float | Mapping[str, float] = 0.5) -> None:
        self.organs, self.threshold, self.model = list(organs), threshold, model

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Carry the boxes of one scan home."""
        d = dict(data)
        detections = Detections.from_boxes(
            d["box"],
            d["score"],
            d["label"],
            organs=self.organs,
            model=self.model,
            threshold=self.threshold,
            **d["frame"],
        )
        found = [(entry, entry.box) for entry in detections.present if entry.box is not None]
        boxes = [np.concatenate([box.center, box.max - box.min]) for _, box in found]
        d["box"] = torch.from_numpy(np.array(boxes, dtype=np.float64).reshape(-1, 6))
        d["label"] = torch.tensor([entry.id for entry, _ in found], dtype=torch.int64)
        d["score"] = torch.tensor([entry.score for entry, _ in found], dtype=torch.float64)
        d["detections"] = detections
        d["result"] = {
            **{key: d[key].tolist() for key in ("box", "label", "score")},
            "organ": [entry.organ for entry, _ in found],
            "detections": detections.to_dict(),
        }
        return d


def editable_markups(detections: Detections) -> dict[str, Any]:
    """Markups of a draft that an annotator is to correct: ROIs with handles, the organ's name at the control point.

    MONAI Label's client in 3D Slicer renames the nodes, so it is the control point that keeps the name, there and back.
    """
    document = markups(detections)
    for roi in document["markups"]:
        roi["locked"] = False
        for point in roi["controlPoints"]:
            point["locked"] = False
        roi["display"] |= {
            "handlesInteractive": True,
            "pointLabelsVisibility": True,
            "propertiesLabelVisibility": False,
        }
    return document
