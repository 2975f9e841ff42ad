"""The network's parts; configs name them as ``organdetr_monai.networks.<Name>``."""

from organdetr_monai.networks.backbone import FPNBackbone
from organdetr_monai.networks.decoder import DeformableDecoder
from organdetr_monai.networks.deformable import DeformableAttention
from organdetr_monai.networks.msa import MSAEncoder
from organdetr_monai.networks.organ_detr import OrganDETR
from organdetr_monai.networks.segmentation import SegmentationHeads

__all__ = ["DeformableAttention", "DeformableDecoder", "FPNBackbone", "MSAEncoder", "OrganDETR", "SegmentationHeads"]
