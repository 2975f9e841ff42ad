"""Distinct queries: of two that say the same, one takes part; and suppression is the textbook's."""

import pytest
import torch
from monai.data.box_utils import non_max_suppression

from organdetr_monai.boxes import centre_to_corners
from organdetr_monai.distinct import DistinctMatcher, duplicates
from organdetr_monai.losses import DetectionLoss
from organdetr_monai.matching import HungarianMatcher
from tests.waits import without_waits


def outputs(batch: int = 2, queries: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    boxes = torch.cat([torch.rand(batch, queries, 3, generator=g), torch.full((batch, queries, 3), 0.05)], dim=-1)
    return {"logits": torch.randn(batch, queries, 5, generator=g), "boxes": boxes}


@pytest.mark.parametrize("iou", [0.2, 0.5, 0.8])
def test_suppression_is_the_greedy_one(iou):
    g = torch.Generator().manual_seed(1)
    boxes = centre_to_corners(torch.rand(3, 2, 40, 6, generator=g) * 0.2 + 0.4)  # crowded: chains of overlaps
    scores = torch.rand(3, 2, 40, generator=g)
    dropped = duplicates(boxes, scores, iou)
    assert 0 < dropped.sum() < dropped.numel()
    for i in range(3):
        for j in range(2):
            kept = non_max_suppression(boxes[i, j], scores[i, j], iou)
            assert sorted(kept.tolist()) == (~dropped[i, j]).nonzero().flatten().tolist()


def test_of_two_identical_queries_one_takes_part(make_targets):
    targets, output = make_targets([2]), outputs(1)
    output["boxes"][0, 7] = output["boxes"][0, 3] = targets[0]["boxes"][0]
    output["logits"][0, 7] = output["logits"][0, 3] = torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0])
    (match,) = DistinctMatcher()([output], targets)
    assert match.query[match.organ == 0].item() == 3
    assert match.ignored.nonzero().tolist() == [[0, 7]]
    output["logits"].requires_grad_()
    output["boxes"].requires_grad_()
    DetectionLoss(DistinctMatcher())(output, targets)["loss"].backward()
    assert output["logits"].grad[0, 7].abs().max() == 0 and output["boxes"].grad[0, 7].abs().max() == 0
    assert (output["logits"].grad[0].abs().amax(-1) > 0).sum() == 11, "all others learn"


def test_without_duplicates_it_is_one_to_one_matching(make_targets):
    targets, output = make_targets([3, 1]), outputs()
    (ours,), (theirs,) = DistinctMatcher()([output], targets), HungarianMatcher()([output], targets)
    assert torch.equal(ours.query, theirs.query) and not ours.ignored.any()
    ours, theirs = (DetectionLoss(m)(output, targets) for m in (DistinctMatcher(), HungarianMatcher()))
    assert ours["loss"].item() == pytest.approx(theirs["loss"].item(), rel=1e-6)


def test_class_term_is_the_mean_over_those_that_take_part(make_targets):
    targets, output = make_targets([2]), outputs(1)
    fewer = {name: value.clone() for name, value in output.items()}
    output = {name: torch.cat([value, value[:, :5]], dim=1) for name, value in output.items()}  # five said twice
    ours, theirs = DetectionLoss(DistinctMatcher())(output, targets), DetectionLoss(HungarianMatcher())(fewer, targets)
    for name in ("class", "l1", "giou"):
        assert ours[name].item() == pytest.approx(theirs[name].item(), rel=1e-5)


def test_duplicates_help_out_where_the_distinct_ones_are_too_few(make_targets):
    targets, output = make_targets([3]), outputs(1)
    output["boxes"][:] = torch.tensor([0.5, 0.5, 0.5, 0.2, 0.2, 0.2])
    (match,) = DistinctMatcher()([output], targets)
    assert len(set(match.query.tolist())) == 3
    assert (~match.ignored).sum() == 3 and not match.ignored[0, match.query].any()


def test_layers_and_images_have_duplicates_of_their_own(make_targets):
    targets, a, b = make_targets([2, 0]), outputs(), outputs(seed=1)
    a["boxes"][1, 4] = a["boxes"][1, 5]
    b["boxes"][0, 0] = b["boxes"][0, 9]
    first, second = DistinctMatcher()([a, b], targets)
    assert first.ignored[0].sum() == 0 and first.ignored[1].sum() == 1
    assert second.ignored[0].sum() == 1 and second.ignored[1].sum() == 0
    (match,) = DistinctMatcher()([a], make_targets([0, 0]))
    assert len(match.query) == 0 and match.ignored[1].sum() == 1


def test_every_parameter_gets_a_gradient_and_the_device_is_waited_for_once(small_network, make_targets):
    network, targets = small_network(), make_targets([3, 1], shape=(32, 32, 32))
    with without_waits(transfers=1):
        DetectionLoss(DistinctMatcher(0.3))(network(torch.rand(2, 1, 32, 32, 32)), targets)["loss"].backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_overlap_is_checked():
    with pytest.raises(ValueError, match="1.2"):
        DistinctMatcher(1.2)
