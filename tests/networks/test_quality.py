"""Box quality: probabilities that stay probabilities, and scores that follow the boxes."""

import torch
import torch.nn.functional as F

from organdetr_monai.losses import DetectionLoss
from organdetr_monai.matching import DenseQueryMatcher, HungarianMatcher
from organdetr_monai.networks import DeformableDecoder
from organdetr_monai.networks.quality import rated


def test_an_organs_probability_is_multiplied_by_the_expected_iou():
    generator = torch.Generator().manual_seed(0)
    logits, quality = torch.randn(2, 7, 5, generator=generator) * 4, torch.randn(2, 7, generator=generator) * 4
    p, q = logits.softmax(-1), quality.sigmoid()
    new = rated(logits, quality).softmax(-1)
    torch.testing.assert_close(new[..., 1:], p[..., 1:] * q[..., None])
    torch.testing.assert_close(new[..., 0], 1 - (p[..., 1:] * q[..., None]).sum(-1))


def test_extreme_estimates_stay_finite():
    logits = torch.tensor([[80.0, -80.0], [-80.0, 80.0]])
    for quality in (-200.0, 200.0):
        assert rated(logits, torch.full((2,), quality)).isfinite().all()


def decoder(**options):
    torch.manual_seed(0)
    return DeformableDecoder(
        24, num_classes=3, layers=2, heads=6, levels=2, points=2, hidden=24, quality=True, **options
    )


def decode(network):
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 24, n, n, n, generator=generator) for n in (6, 3)]
    return network(maps, torch.randn(5, 24, generator=generator), torch.randn(5, 6, generator=generator))


def test_the_estimate_is_apart_in_training_and_in_the_logits_at_inference():
    network = decoder()
    trained, used = decode(network.train()), decode(network.eval())
    for a, b in zip(trained, used, strict=True):
        assert a["quality"].shape == (2, 5) and set(b) == {"logits", "boxes"}
        torch.testing.assert_close(b["logits"], rated(a["logits"], a["quality"]))
        torch.testing.assert_close(a["boxes"], b["boxes"])


def test_one_estimate_for_each_layer_that_the_loss_sees():
    assert len(decoder().quality_heads) == 2 and len(decoder(auxiliary=False).quality_heads) == 1
    assert [set(o) for o in decode(decoder(auxiliary=False).train())] == [{"logits", "boxes", "quality"}]


def test_the_estimate_is_taught_the_iou_of_matched_queries_alone():
    truth = torch.tensor([[0.5, 0.5, 0.5, 0.4, 0.4, 0.4]])
    half = torch.tensor([0.5, 0.5, 0.6, 0.4, 0.4, 0.4])  # three quarters of it overlap: IoU 0.3 / 0.5
    far = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    quality = torch.tensor([[0.7, -3.0]], requires_grad=True)
    output = {"logits": torch.zeros(1, 2, 2), "boxes": torch.stack([half, far])[None], "quality": quality}
    targets = [{"boxes": truth, "labels": torch.tensor([1]), "annotated": torch.tensor([True])}]
    terms = DetectionLoss(HungarianMatcher(), weights={"class": 0, "l1": 0, "giou": 0})(output, targets)
    expected = F.binary_cross_entropy_with_logits(torch.tensor(0.7), torch.tensor(0.6))
    torch.testing.assert_close(terms["quality"], expected)
    terms["loss"].backward()
    torch.testing.assert_close(quality.grad[0, 0], torch.sigmoid(torch.tensor(0.7)) - 0.6)
    assert quality.grad[0, 1] == 0


def test_boxes_are_not_moved_to_please_the_estimate():
    boxes = torch.full((1, 4, 6), 0.3, requires_grad=True)
    output = {"logits": torch.zeros(1, 4, 2), "boxes": boxes, "quality": torch.zeros(1, 4, requires_grad=True)}
    truth = torch.tensor([[0.4, 0.4, 0.4, 0.4, 0.4, 0.4]])
    targets = [{"boxes": truth, "labels": torch.tensor([1]), "annotated": torch.tensor([True])}]
    loss = DetectionLoss(DenseQueryMatcher(0.2), weights={"class": 0, "l1": 0, "giou": 0})
    loss(output, targets)["loss"].backward()
    assert not boxes.grad.any() and output["quality"].grad.any()
