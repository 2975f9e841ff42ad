"""Hybrid matching: a branch apart, matched one-to-many, gone at inference."""

import pytest
import torch

from organdetr_monai.losses import DetectionLoss
from organdetr_monai.matching import HungarianMatcher, RepeatedMatcher
from organdetr_monai.networks import HybridQueries
from tests.waits import without_waits

SHAPE = (32, 32, 32)


@pytest.fixture
def network(small_network):
    torch.manual_seed(0)
    return small_network(extra_queries=HybridQueries(24, num_queries=30))


def loss(**options) -> DetectionLoss:
    return DetectionLoss(HungarianMatcher(), extra_matcher=RepeatedMatcher(6), **options)


def image(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 1, *SHAPE, generator=torch.Generator().manual_seed(3))


def test_branches_do_not_see_each_other(network):
    before = network(image())
    with torch.no_grad():
        network.extra_queries.content += 1.0
    after = network(image())
    assert torch.equal(before["logits"], after["logits"]) and torch.equal(before["boxes"], after["boxes"])
    assert not torch.allclose(before["extra"]["logits"], after["extra"]["logits"], atol=1e-3)
    with torch.no_grad():
        network.content += 1.0
    again = network(image())
    assert torch.equal(after["extra"]["logits"], again["extra"]["logits"])
    assert not torch.allclose(after["logits"], again["logits"], atol=1e-3)


def test_shapes_and_layers(network):
    extra = network(image())["extra"]
    assert extra["logits"].shape == (2, 30, 5) and extra["boxes"].shape == (2, 30, 6) and len(extra["aux"]) == 1


def test_every_parameter_gets_a_gradient_and_both_branches_their_terms(network, make_targets):
    targets = make_targets([3, 1], shape=SHAPE)
    output = network(image())
    terms = loss()(output, targets)
    terms["loss"].backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    alone = DetectionLoss(HungarianMatcher())({k: v for k, v in output.items() if k != "extra"}, targets)
    for name in ("class", "l1", "giou"):
        assert terms[name] == alone[name], "the one-to-one branch is what it is without the other"
    many = DetectionLoss(RepeatedMatcher(6))(output["extra"], targets)
    want = alone["loss"] + many["loss"]
    assert terms["loss"].item() == pytest.approx(want.item(), rel=1e-5)


def test_one_transfer_for_both_branches(network, make_targets):
    with without_waits(transfers=1):
        loss()(network(image()), make_targets([3, 1], shape=SHAPE))["loss"].backward()


def test_queries_start_where_the_others_do(network):
    boxes = torch.tensor([[0.2, 0.5, 0.7, 0.1, 0.2, 0.3], [0.6, 0.4, 0.3, 0.3, 0.1, 0.2]])
    network.set_reference_boxes(boxes)
    assert torch.allclose(network.extra_queries.reference.sigmoid()[2:4], boxes, atol=1e-4)
    assert torch.allclose(network.reference.sigmoid()[:2], boxes, atol=1e-4)


def test_nothing_is_left_at_inference(network):
    network.eval().extra_queries.forward = None  # calling it would raise
    assert set(network(image())) == {"logits", "boxes"}


def test_somebody_must_match_them(network, make_targets):
    with pytest.raises(ValueError, match="extra_matcher"):
        DetectionLoss(HungarianMatcher())(network(image()), make_targets([3, 1], shape=SHAPE))
