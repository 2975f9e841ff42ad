"""The network's parts; configs name them as ``organdetr_monai.networks.<Name>``."""

from organdetr_monai.networks.backbone import FPNBackbone
from organdetr_monai.networks.decoder import DeformableDecoder
from organdetr_monai.networks.deformable import DeformableAttention
from organdetr_monai.networks.deformable_encoder import DeformableEncoder
from organdetr_monai.networks.denoising import DenoisingQueries
from organdetr_monai.networks.hybrid import HybridQueries
from organdetr_monai.networks.msa import MSAEncoder
from organdetr_monai.networks.organ_detr import OrganDETR
from organdetr_monai.networks.resnet import ResNetBackbone
from organdetr_monai.networks.roi_refiner import ROIRefiner
from organdetr_monai.networks.segmentation import SegmentationHeads
from organdetr_monai.networks.swin import SwinBackbone, SwinUNETRBackbone
from organdetr_monai.networks.two_stage import Proposals

__all__ = [
    "DeformableAttention",
    "DeformableDecoder",
    "DeformableEncoder",
    "DenoisingQueries",
    "FPNBackbone",
    "HybridQueries",
    "MSAEncoder",
    "OrganDETR",
    "Proposals",
    "ROIRefiner",
    "ResNetBackbone",
    "SegmentationHeads",
    "SwinBackbone",
    "SwinUNETRBackbone",
]
