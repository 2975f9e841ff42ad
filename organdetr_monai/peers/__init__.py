"""Rivals of Organ-DETR on the same bundle; configs name them as ``organdetr_monai.peers.<Name>``.

Each is a network, a loss and, where the boxes do not come from queries, an inferer. Data, trainer, evaluator and
metrics are those of the detector.
"""

from organdetr_monai.peers.focused_decoder import FocusedDecoder, FocusedLoss, labelled_boxes
from organdetr_monai.peers.retinanet import OrganRetinaNet, RetinaNetLoss
from organdetr_monai.peers.unet import SegmentationInferer, SegmentationLoss, SegmentationUNet

__all__ = [
    "FocusedDecoder",
    "FocusedLoss",
    "OrganRetinaNet",
    "RetinaNetLoss",
    "SegmentationInferer",
    "SegmentationLoss",
    "SegmentationUNet",
    "labelled_boxes",
]
