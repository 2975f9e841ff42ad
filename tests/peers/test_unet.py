"""The segmentation UNet: what its loss ignores, and boxes of a mask that are where the organ is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from organdetr_monai.peers import SegmentationInferer, SegmentationLoss, SegmentationUNet
from organdetr_monai.peers.unet import boxes_of_probability
from organdetr_monai.segmentation_loss import multiscale_segmentation_loss
from tests.peers.scenes import SHAPE, idle, learn, overlaps, scene


def network(organs: int = 2) -> SegmentationUNet:
    torch.manual_seed(0)
    norm = ("instance", {"affine": True})
    return SegmentationUNet(3, 1, organs + 1, (6, 12, 24), (2, 2), norm=norm, bias=False)


def test_finds_the_organs_of_a_scene_where_they_are():
    unet = network()
    learn(unet, SegmentationLoss(), steps=40, lr=1e-2)
    with torch.inference_mode():
        (prediction,) = SegmentationInferer(SHAPE)(scene()[0], unet)
    assert min(overlaps(prediction)) > 0.8 and (prediction["scores"] > 0.5).all()


def test_every_parameter_gets_a_gradient():
    unet = network()
    image, target = scene()
    SegmentationLoss()(unet(image), [target])["loss"].backward()
    assert not idle(unet)


def test_takes_volumes_that_its_strides_do_not_divide():
    assert network()(torch.rand(2, 1, 13, 16, 7)).shape == (2, 3, 13, 16, 7)


@pytest.mark.parametrize("annotated", [(1, 2), (1,), ()])
def test_loss_is_the_detectors_segmentation_term_at_one_scale(annotated):
    targets = [scene(annotated=annotated)[1], scene(shown=(2,))[1]]
    logits = torch.randn(2, 3, *SHAPE, requires_grad=True)
    mine = SegmentationLoss()(logits, targets)["loss"]
    mask, flags = (torch.stack([t[key] for t in targets]) for key in ("mask", "annotated"))
    theirs = multiscale_segmentation_loss([logits], mask, flags)
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
    (gradient,), (expected,) = torch.autograd.grad(mine, logits), torch.autograd.grad(theirs, logits)
    assert torch.allclose(gradient, expected, atol=1e-7)


def test_calling_an_unannotated_organ_background_or_itself_is_the_same():
    _, target = scene(annotated=(1,))
    background, organ = torch.zeros(1, 3, *SHAPE), torch.zeros(1, 3, *SHAPE)
    background[:, 0], organ[:, 2] = 3.0, 3.0
    first, second = (SegmentationLoss()(x, [target])["loss"] for x in (background, organ))
    assert first.item() == pytest.approx(second.item(), rel=1e-6)
    _, target = scene()
    first, second = (SegmentationLoss()(x, [target])["loss"] for x in (background, organ))
    assert abs(first - second) > 0.1, "annotated, it matters"


def test_boxes_are_of_large_components_and_absent_organs_have_none():
    probability = np.zeros((4, 12, 10, 8), np.float32)
    probability[0] = 0.4
    probability[1, 2:6, 3:5, 1:7] = 0.9  # 48 voxels
    probability[1, 10:12, 8:10, 0:8] = 1.0  # 32 voxels, surer
    probability[3, 7, 7, 7] = 0.8
    boxes, scores, labels = boxes_of_probability(probability, min_share=0.7)
    assert labels.tolist() == [1, 3]
    assert boxes.tolist() == [[2, 3, 1, 6, 5, 7], [7, 7, 7, 8, 8, 8]]
    assert scores == pytest.approx([0.9, 0.8], rel=1e-5)
    boxes, scores, _ = boxes_of_probability(probability, min_share=0.6)
    assert boxes[0].tolist() == [2, 3, 0, 12, 10, 8] and scores[0] == pytest.approx((48 * 0.9 + 32) / 80, rel=1e-5)


class Thresholds(torch.nn.Module):
    """Calls bright voxels organ 1: a segmentation that is right everywhere."""

    def forward(self, image):
        return torch.cat([torch.full_like(image, 0.5), image], 1) * 20


@pytest.mark.parametrize("shape", [(20, 24, 70), (10, 12, 9)])
def test_volumes_longer_and_shorter_than_the_window_give_exact_boxes(shape):
    volume = torch.zeros(2, 1, *shape)
    volume[0, :, 2:9, 3:10, 4:8] = 1.0
    volume[1, :, 1:3, 5:12, 0 : shape[2]] = 1.0
    first, second = SegmentationInferer((16, 16, 16))(volume, Thresholds())
    assert first["boxes"].tolist() == [[2, 3, 4, 9, 10, 8]]
    assert second["boxes"].tolist() == [[1, 5, 0, 3, 12, shape[2]]]
    assert second["labels"].tolist() == [1] and second["scores"].item() > 0.9


def test_a_volume_without_organs_has_no_box():
    (prediction,) = SegmentationInferer((16, 16, 16))(torch.zeros(1, 1, 16, 16, 16), Thresholds())
    assert prediction["boxes"].shape == (0, 6) and len(prediction["scores"]) == len(prediction["labels"]) == 0


@pytest.mark.parametrize(("option", "value"), [("overlap", 1.0), ("min_share", 0.0)])
def test_options_are_checked(option, value):
    with pytest.raises(ValueError, match=option):
        SegmentationInferer((8, 8, 8), **{option: value})
