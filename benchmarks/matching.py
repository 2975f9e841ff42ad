"""Dense query matching: the assignment alone, exact, for N = 600 queries and M = 19 organs."""

from __future__ import annotations

import numpy as np
import torch
from measure import table, timed
from scipy.optimize import linear_sum_assignment

from organdetr_monai.matching import DenseQueryMatcher

QUERIES, ORGANS = 600, 19


def cost(kind: str, matcher: DenseQueryMatcher) -> np.ndarray:
    """Pair costs (N, M) of queries spread over the volume, gathered about the organs, or all about one organ."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.rand(ORGANS, 6, generator=generator) * 0.4 + 0.2
    if kind == "spread":
        boxes = torch.rand(QUERIES, 6, generator=generator) * 0.6 + 0.1
    else:
        near = truth.repeat(QUERIES // ORGANS + 1, 1)[:QUERIES] if kind == "gathered" else truth[:1]
        boxes = (near + torch.randn(QUERIES, 6, generator=generator) * 0.03).clamp(0.01, 0.99)
    logits = torch.randn(1, QUERIES, ORGANS + 1, generator=generator)
    targets = [{"labels": torch.arange(1, ORGANS + 1), "boxes": truth}]
    return matcher.cost({"logits": logits, "boxes": boxes[None]}, targets)[0].numpy()


def rows() -> str:
    """The table."""
    torch.set_num_threads(2)
    out = []
    for ratio in (0.2, 0.5):
        matcher = DenseQueryMatcher(ratio)
        each = matcher.positives(QUERIES, ORGANS)
        for kind in ("spread", "gathered", "one place"):
            pairs = cost(kind, matcher)
            tiled = np.repeat(pairs.T.astype(np.float64), each, axis=0)
            query, organ = matcher.assign(pairs)
            best = tiled[linear_sum_assignment(tiled)].sum()
            assert abs(pairs[query, organ].sum(dtype=np.float64) - best) < 1e-5 * abs(best)
            plain = timed(lambda: linear_sum_assignment(tiled), repeat=20)[0]  # noqa: B023 - called at once
            ours = timed(lambda: matcher.assign(pairs), repeat=50)[0]  # noqa: B023
            out.append([ratio, each, kind, plain * 1e3, ours * 1e3, plain / ours])
    header = ["lambda", "queries each", "queries are", "tiled, ms", "ours, ms", "times faster"]
    return table(f"Dense matching, N = {QUERIES}, M = {ORGANS}, one image and layer", header, out)


if __name__ == "__main__":
    print(rows())
