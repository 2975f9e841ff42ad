"""The matchers: how many positives, and that their cost is the least."""

import itertools
import math

import numpy as np
import pytest
import torch

from organdetr_monai.matching import DenseQueryMatcher, HungarianMatcher, RepeatedMatcher, match_together
from tests.waits import without_waits


def outputs(batch: int, queries: int, num_classes: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "logits": torch.randn(batch, queries, num_classes + 1, generator=g),
        "boxes": torch.rand(batch, queries, 6, generator=g) * 0.5 + 0.2,
    }


@pytest.mark.parametrize(
    ("queries", "organs", "ratio"),
    [
        (100, 5, 0.2),
        (200, 16, 0.2),
        (600, 19, 0.2),
        (600, 19, 0.5),
        (400, 1, 0.2),
        (10, 4, 0.8),
        (100, 3, 0.3),
        (7, 7, 0.5),
    ],
)
def test_positives_follow_the_formula_and_never_exceed_the_queries(queries, organs, ratio):
    rho = queries / organs
    want = min(1 + math.ceil(round(ratio * rho, 9)), queries // organs)
    targets = [{"boxes": torch.rand(organs, 6) * 0.3 + 0.3, "labels": torch.ones(organs, dtype=torch.int64)}]
    (match,) = DenseQueryMatcher(ratio)([outputs(1, queries)], targets)
    assert len(match.query) == organs * want <= queries
    assert len(set(match.query.tolist())) == len(match.query), "a query serves one organ"
    assert np.bincount(match.organ.numpy(), minlength=organs).tolist() == [want] * organs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("queries", "organs", "ratio"), [(5, 2, 0.2), (6, 2, 0.4), (6, 1, 0.5), (5, 5, 0.2)])
def test_dense_assignment_is_optimal_against_brute_force(seed, queries, organs, ratio):
    cost = np.random.default_rng(seed).normal(size=(queries, organs))
    matcher = DenseQueryMatcher(ratio)
    query, organ = matcher.assign(cost)
    columns = np.repeat(np.arange(organs), matcher.positives(queries, organs))
    best = min(cost[list(p), columns].sum() for p in itertools.permutations(range(queries), len(columns)))
    assert cost[query, organ].sum() == pytest.approx(best)


def test_hungarian_gives_each_organ_one_query(make_targets):
    (match,) = HungarianMatcher()([outputs(2, 10)], make_targets([3, 2]))
    assert match.image.tolist() == [0, 0, 0, 1, 1]
    assert sorted(match.organ[:3].tolist()) == [0, 1, 2]


@pytest.mark.parametrize(("queries", "organs", "each"), [(300, 12, 6), (40, 12, 3), (12, 12, 1), (7, 1, 6)])
def test_repeated_matching_gives_each_organ_its_number_of_queries(queries, organs, each):
    targets = [{"boxes": torch.rand(organs, 6) * 0.3 + 0.3, "labels": torch.ones(organs, dtype=torch.int64)}]
    (match,) = RepeatedMatcher(6)([outputs(1, queries)], targets)
    assert np.bincount(match.organ.numpy(), minlength=organs).tolist() == [each] * organs
    assert len(set(match.query.tolist())) == len(match.query), "a query serves one organ"


@pytest.mark.parametrize("seed", range(3))
def test_repeated_matching_is_that_of_the_organs_repeated(seed, make_targets):
    out, (target,) = outputs(1, 9, seed=seed), make_targets([2])
    repeated = {**target, "boxes": target["boxes"].repeat(3, 1), "labels": target["labels"].repeat(3)}
    (ours,), (theirs,) = RepeatedMatcher(3)([out], [target]), HungarianMatcher()([out], [repeated])
    pairs = [sorted(zip(m.query.tolist(), (m.organ % 2).tolist(), strict=True)) for m in (ours, theirs)]
    assert pairs[0] == pairs[1]


def test_sets_of_queries_matched_together_match_as_each_alone(make_targets):
    targets, few, many = make_targets([3, 1]), outputs(2, 10), outputs(2, 25, seed=1)
    one, six = HungarianMatcher(), RepeatedMatcher(6)
    with without_waits(transfers=1):
        together = match_together([(one, few), (six, many), (one, many)], targets)
    alone = [one([few], targets)[0], six([many], targets)[0], one([many], targets)[0]]
    for ours, theirs in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))


def test_gradient_pressure_is_that_of_the_paper():
    # Positives grow by 1 + ceil(lambda rho), negatives shrink by 1 - ceil(lambda rho) / (rho - 1).
    queries, organs, ratio = 100, 5, 0.2
    rho, eta = queries / organs, math.ceil(ratio * queries / organs)
    targets = [{"boxes": torch.rand(organs, 6) * 0.3 + 0.3, "labels": torch.arange(1, 5).repeat(2)[:organs]}]
    one, dense = (
        len(m([outputs(1, queries)], targets)[0].query) for m in (HungarianMatcher(), DenseQueryMatcher(ratio))
    )
    assert dense / one == 1 + eta
    assert (queries - dense) / (queries - one) == pytest.approx(1 - eta / (rho - 1))


def test_image_without_organs_has_no_positives(make_targets):
    (match,) = DenseQueryMatcher()([outputs(2, 10)], make_targets([0, 2]))
    assert set(match.image.tolist()) == {1}
    (match,) = DenseQueryMatcher()([outputs(2, 10)], make_targets([0, 0]))
    assert len(match.query) == 0


def test_batch_matches_as_its_images_do(make_targets):
    out, targets = outputs(2, 20), make_targets([3, 1])
    (both,) = DenseQueryMatcher()([out], targets)
    for i in range(2):
        (alone,) = DenseQueryMatcher()([{k: v[i : i + 1] for k, v in out.items()}], targets[i : i + 1])
        mine = both.image == i
        assert torch.equal(both.query[mine], alone.query) and torch.equal(both.organ[mine], alone.organ)


def test_query_on_the_organ_is_chosen(make_targets):
    targets = make_targets([2])
    out = outputs(1, 10)
    out["boxes"][0, 7] = targets[0]["boxes"][1]
    out["logits"][0, 7] = torch.tensor([0.0, 0, 9, 0, 0])
    (match,) = HungarianMatcher()([out], targets)
    assert match.query[match.organ == 1].item() == 7


def test_clear_errors(make_targets):
    with pytest.raises(ValueError, match="5 organs.*4.*num_queries"):
        HungarianMatcher().positives(4, 5)
    with pytest.raises(ValueError, match="0.95"):
        DenseQueryMatcher(0.95)
    with pytest.raises(ValueError, match="repeats.*0"):
        RepeatedMatcher(0)
    out = outputs(1, 10)
    out["boxes"][0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="diverged"):
        HungarianMatcher()([out], make_targets([2]))
