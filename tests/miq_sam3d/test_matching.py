"""Who answers for which instance."""

from itertools import permutations

import numpy as np
import pytest
import torch

from organdetr_monai.matching import DenseQueryMatcher
from organdetr_monai.miq_sam3d.matching import InstanceMatcher
from organdetr_monai.miq_sam3d.targets import wanted_instances
from tests.miq_sam3d.toys import BALL, CUBE, draw


def pairs(cost, clicked, *, last=True, auxiliary=None):
    query, instance = InstanceMatcher(auxiliary=auxiliary).assign(np.asarray(cost, dtype=float), clicked, last=last)
    return sorted(zip(query.tolist(), instance.tolist(), strict=True))


def test_clicked_instance_is_the_first_querys_whatever_it_costs():
    cost = np.zeros((4, 3))
    cost[0] = 100.0
    assert (0, 2) in pairs(cost, 2)
    assert all(query != 0 for query, _ in pairs(cost, -1))


def test_others_are_matched_at_least_cost():
    cost = np.random.default_rng(0).random((6, 4))
    found = pairs(cost, 1)
    rest = [0, 2, 3]
    best = min(sum(cost[q, i] for q, i in zip(p, rest, strict=True)) for p in permutations(range(1, 6), 3))
    assert np.isclose(sum(cost[q, i] for q, i in found if q), best)
    assert sorted(i for _, i in found) == [0, 1, 2, 3]


def test_more_instances_than_queries_leaves_out_the_costliest():
    cost = np.array([[9.0, 9, 9, 9], [1, 5, 2, 3], [2, 6, 1, 3]])
    assert pairs(cost, 3) == [(0, 3), (1, 0), (2, 2)]
    assert pairs(cost[:1], 3) == [(0, 3)]


def test_no_instance_matches_nothing():
    assert pairs(np.zeros((4, 0)), -1) == []


def test_dense_matching_is_for_earlier_layers_alone():
    cost = np.random.default_rng(0).random((9, 2))
    dense = DenseQueryMatcher(0.3)
    assert len(pairs(cost, 0, auxiliary=dense)) == 2
    found = pairs(cost, 0, last=False, auxiliary=dense)
    assert [q for q, i in found if i == 0] == [0] and len(found) == 1 + 1 + int(np.ceil(0.3 * 8))


def test_cost_prefers_the_right_mask_and_box():
    things = [(BALL, (10, 10, 10), 4), (BALL, (30, 20, 12), 5), (CUBE, (12, 25, 12), 3)]
    _, ids = draw(things)
    kinds = torch.tensor([BALL, BALL, CUBE])
    targets = wanted_instances(torch.from_numpy(ids)[None], [kinds], [BALL], [2])
    assert targets.counts == [2] and targets.clicked == [1] and targets.labels.max() == 2
    shares = targets.shares((20, 16, 12))
    right = {"masks": 20 * shares - 10, "objectness": torch.zeros(1, 2), "boxes": targets.boxes}
    cost = InstanceMatcher().cost(right, shares, targets.boxes)[0]
    assert cost[0, 0] < cost[0, 1] - 1 and cost[1, 1] < cost[1, 0] - 1


def test_refuses_costs_it_does_not_know_and_diverged_networks():
    with pytest.raises(ValueError, match="'iou'"):
        InstanceMatcher(weights={"iou": 1.0})
    _, ids = draw([(BALL, (10, 10, 10), 4)])
    targets = wanted_instances(torch.from_numpy(ids)[None], [torch.tensor([BALL])], [BALL], [1])
    output = {"masks": torch.full((1, 3, 20, 16, 12), float("nan")), "objectness": torch.zeros(1, 3)}
    output["boxes"] = torch.rand(1, 3, 6)
    with pytest.raises(ValueError, match="diverged"):
        InstanceMatcher()([output], targets, targets.shares((20, 16, 12)))
