"""Optimal assignment of ``each`` queries to every organ: exact, and fast where there are many more queries than organs.

Tiling each organ's costs ``each`` times and solving one linear sum assignment is exact, but the solver then searches
among hundreds of identical rows. The problem really has one price for each organ: at the right prices every query
simply takes the organ (or none) that is cheapest after the price. So: find nearly right prices, hand over only the
queries that they leave in doubt, and prove the outcome. The proof decides, not the prices: where it fails, the tiled
problem is solved as it is.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

# Below this size of the tiled problem the solver alone is faster.
SMALL = 60_000
STEPS, COOL = 6, 0.01  # of the prices: Newton steps, and the last temperature in spreads of the cost
DOUBT = 3.0  # temperatures within which two choices of a query count as undecided


def balanced_assignment(cost: np.ndarray, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Give ``each`` queries to every organ at the least total cost; a query serves one organ or none.

    Parameters
    ----------
    cost : ndarray of shape (M, N)
        Cost of each query for each organ, finite.
    each : int
        Queries for each organ; ``M * each`` is at most N.

    Returns
    -------
    query, organ : ndarray of shape (M * each,), int64
        The pairs, in no particular order.
    """
    organs, queries = cost.shape
    if organs > 1 and organs * each * queries > SMALL:
        chosen = _by_prices(cost, each)
        if chosen is not None and _is_optimal(cost, chosen):
            query = np.flatnonzero(chosen)
            return query, chosen[query] - 1
    return _tiled(cost, np.full(organs, each))


def _tiled(cost: np.ndarray, demand: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve with organ ``j`` repeated ``demand[j]`` times. Organs are the rows: the solver adds one row at a time."""
    owner = np.repeat(np.arange(len(cost)), demand)
    row, query = linear_sum_assignment(cost[owner])
    return query.astype(np.int64), owner[row].astype(np.int64)


def _by_prices(cost: np.ndarray, each: int) -> np.ndarray | None:
    """Organ of each query plus one, 0 for none, shape (N,); None where the prices do not lead to an assignment."""
    organs, queries = cost.shape
    price, temperature = _prices(cost.astype(np.float32), each)
    after = np.zeros((organs + 1, queries))  # row 0: serving no organ costs nothing
    np.subtract(cost, price[:, None], out=after[1:])
    chosen = after.argmin(0)
    best, second = np.partition(after, 1, axis=0)[:2]
    doubtful = np.flatnonzero(second - best <= DOUBT * temperature)
    chosen[doubtful] = 0
    demand = each - np.bincount(chosen, minlength=organs + 1)[1:]
    if (demand < 0).any() or demand.sum() > len(doubtful):
        return None
    query, organ = _tiled(cost[:, doubtful], demand)
    chosen[doubtful[query]] = organ + 1
    return chosen


def _prices(cost: np.ndarray, each: int) -> tuple[np.ndarray, float]:
    """Prices (M,) near those at which every organ is the choice of ``each`` queries, and the temperature they hold to.

    Newton's method on the smoothed dual ``each * sum_j u_j - T * sum_i log(1 + sum_j exp((u_j - c_ji) / T))``, the
    entropic regularisation of the transport problem (Cuturi 2013, with "no organ" as one more, unlimited, place), while
    the temperature T falls. Its gradient is ``each`` minus the expected number of queries of each organ.
    """
    organs = len(cost)
    each_cheapest = min(each, cost.shape[1] - 1)
    price = np.partition(cost, each_cheapest, axis=1)[:, each_cheapest]
    temperature = 0.3 * float(cost.std(axis=1).mean()) + 1e-12
    fall = (COOL / 0.3) ** (1 / (STEPS - 1))
    for step in range(STEPS):
        share = (price[:, None] - cost) * np.float32(1 / temperature)
        top = np.maximum(share.max(0), 0)  # against overflow
        np.exp(share - top, out=share)
        share /= share.sum(0) + np.exp(-top)  # (M, N), probability that a query takes an organ
        expected = share.sum(1)
        hessian = -(share @ share.T)
        hessian[np.diag_indices(organs)] += expected * 1.001 + 1e-3  # damped, so that no organ can make it singular
        move = temperature * np.linalg.solve(hessian, each - expected)
        price = price + np.clip(move, -2 * temperature, 2 * temperature)
        if step < STEPS - 1:
            temperature *= fall
    return price, temperature


def _is_optimal(cost: np.ndarray, chosen: np.ndarray) -> bool:
    """Whether no exchange of queries among organs is cheaper: the residual graph has no negative cycle.

    Its nodes are the organs and "none"; the edge from a to b costs what the cheapest query of a would cost more at b
    (Klein 1967). Shortest paths come from repeated min-plus squaring.
    """
    organs, queries = cost.shape
    extra = np.zeros((organs + 1, queries))
    extra[1:] = cost
    extra -= extra[chosen, np.arange(queries)]
    counts = np.bincount(chosen, minlength=organs + 1)
    used = np.flatnonzero(counts)
    starts = (np.cumsum(counts) - counts)[used]
    path = np.full((organs + 1, organs + 1), np.inf)  # to, from
    path[:, used] = np.minimum.reduceat(extra[:, np.argsort(chosen, kind="stable")], starts, axis=1)
    for _ in range(int(organs).bit_length()):
        path = np.minimum(path, (path[:, :, None] + path[None]).min(1))
    return bool(path.diagonal().min() >= -1e-9 * max(float(np.abs(cost).max()), 1.0))
