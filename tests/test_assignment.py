"""Balanced assignment against the tiled linear sum assignment, which is exact by construction."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from organdetr_monai import assignment
from organdetr_monai.assignment import balanced_assignment


def optimum(cost: np.ndarray, each: int) -> float:
    tiled = np.repeat(cost, each, axis=0)
    return tiled[linear_sum_assignment(tiled)].sum()


def costs(kind: str, organs: int, queries: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    if kind == "uniform":
        return rng.random((organs, queries))
    if kind == "clusters":  # queries that have specialised, a few around each organ
        where, truth = rng.random((queries, 3)), rng.random((organs, 3))
        where[: queries // 2] = truth[np.arange(queries // 2) % organs] + rng.normal(0, 0.02, (queries // 2, 3))
        return np.abs(truth[:, None] - where).sum(-1)
    if kind == "one place":  # all queries want the same organ
        return np.linspace(0, 5, organs)[:, None] + rng.normal(0, 1e-3, (organs, queries))
    if kind == "ties":
        return rng.integers(0, 3, (organs, queries)).astype(float)
    return np.full((organs, queries), -2.5)  # "equal"


@pytest.mark.parametrize("kind", ["uniform", "clusters", "one place", "ties", "equal"])
@pytest.mark.parametrize(
    ("organs", "queries", "each"), [(19, 600, 8), (19, 600, 17), (2, 600, 60), (24, 200, 8), (3, 300, 100)]
)
def test_total_is_that_of_the_tiled_problem(monkeypatch, kind, organs, queries, each):
    monkeypatch.setattr(assignment, "SMALL", 0)
    cost = costs(kind, organs, queries)
    query, organ = balanced_assignment(cost, each)
    assert len(set(query.tolist())) == organs * each, "a query serves two organs"
    assert np.bincount(organ, minlength=organs).tolist() == [each] * organs
    assert cost[organ, query].sum() == pytest.approx(optimum(cost, each), abs=1e-9)


def test_prices_alone_solve_what_training_brings(monkeypatch):
    """The proof fails only where prices mislead: on costs as a network gives them the fallback must not be needed."""
    proof, verdicts = assignment._is_optimal, []
    monkeypatch.setattr(assignment, "_is_optimal", lambda cost, chosen: verdicts.append(proof(cost, chosen)) or True)
    for kind in ("uniform", "clusters"):
        balanced_assignment(costs(kind, 19, 600), 17)
    assert verdicts == [True, True]


def test_proof_refuses_what_an_exchange_betters():
    cost = costs("uniform", 5, 40)
    query, organ = balanced_assignment(cost, 3)
    chosen = np.zeros(40, dtype=np.int64)
    chosen[query] = organ + 1
    assert assignment._is_optimal(cost, chosen)
    first, second = query[organ == 0][0], query[organ == 1][0]
    chosen[[first, second]] = chosen[[second, first]]
    assert not assignment._is_optimal(cost, chosen)
    chosen[[first, second]] = chosen[[second, first]]
    unused = np.flatnonzero(chosen == 0)[cost[0, chosen == 0].argmax()]
    chosen[[first, unused]] = chosen[[unused, first]]
    assert not assignment._is_optimal(cost, chosen)
