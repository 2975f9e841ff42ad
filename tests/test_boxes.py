"""Box arithmetic against MONAI's, and its own inverses."""

import pytest
import torch
from monai.data.box_utils import box_giou, box_iou

from organdetr_monai.boxes import (
    centre_to_corners,
    corners_to_centre,
    denormalise,
    inverse_sigmoid,
    iou_giou,
    normalise,
    volume,
)


def random_corners(n: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    start = torch.rand(n, 3, generator=g) * 50
    return torch.cat([start, start + torch.rand(n, 3, generator=g) * 30 + 0.5], 1)


def test_modes_and_normalisation_are_inverse():
    boxes = random_corners(50, 0)
    assert torch.allclose(centre_to_corners(corners_to_centre(boxes)), boxes, atol=1e-5)
    # An asymmetric window: an axis taken for another would show.
    assert torch.allclose(denormalise(normalise(boxes, (96, 64, 32)), (96, 64, 32)), boxes, atol=1e-4)
    assert normalise(torch.tensor([[0.0, 0, 0, 96, 64, 32]]), (96, 64, 32)).tolist() == [[0.5, 0.5, 0.5, 1, 1, 1]]


def test_iou_and_giou_agree_with_monai():
    a, b = random_corners(40, 1), random_corners(30, 2)
    iou, giou = iou_giou(a[:, None], b[None])
    assert torch.allclose(iou, box_iou(a, b), atol=1e-5)
    assert torch.allclose(giou, box_giou(a, b), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 100.0])
def test_identical_boxes_have_giou_one_at_any_scale(scale):
    boxes = random_corners(5, 3) * scale
    assert torch.allclose(iou_giou(boxes, boxes)[1], torch.ones(5), atol=1e-3)


def test_boxes_far_apart_have_negative_giou_and_zero_iou():
    a, b = torch.tensor([0.0, 0, 0, 1, 1, 1]), torch.tensor([9.0, 9, 9, 10, 10, 10])
    iou, giou = iou_giou(a, b)
    assert iou == 0 and torch.isclose(giou, torch.tensor(-(1000 - 2) / 1000), atol=1e-4)


def test_half_precision_is_computed_in_float32():
    # 300^3 voxels exceed the largest float16 by far.
    box = torch.tensor([[0, 0, 0, 300, 300, 300]], dtype=torch.float16)
    assert volume(box).item() == 300**3
    assert iou_giou(box, box)[0].item() == pytest.approx(1)


def test_inverted_box_has_no_volume():
    assert volume(torch.tensor([5.0, 5, 5, 1, 9, 9])) == 0


def test_inverse_sigmoid_stays_finite_at_the_ends():
    x = torch.tensor([0.0, 0.3, 1.0])
    assert inverse_sigmoid(x).isfinite().all()
    assert torch.allclose(inverse_sigmoid(x).sigmoid(), x, atol=2e-4)
