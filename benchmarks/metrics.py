"""Evaluation of 50 cases x 19 organs, all thresholds; memory with ten times as many."""

from __future__ import annotations

import tracemalloc

import numpy as np
from measure import table, timed

from organdetr_monai.metrics import DetectionMetrics

CASES, ORGANS = 50, 19


def evaluate(thresholds: tuple[float, ...], boxes_each: int) -> dict:
    """Fill and compute; boxes about the truth, seeded."""
    rng = np.random.default_rng(0)
    metrics = DetectionMetrics(
        [f"organ {k}" for k in range(ORGANS)], iou_thresholds=thresholds, max_detections=boxes_each
    )
    labels = np.arange(1, ORGANS + 1)
    for case in range(CASES):
        start = rng.uniform(0, 100, (ORGANS, 3))
        truth = np.concatenate([start, start + rng.uniform(10, 60, start.shape)], axis=1)
        found = np.repeat(truth, boxes_each, axis=0) + rng.normal(0, 3, (ORGANS * boxes_each, 6))
        prediction = {"boxes": found, "scores": rng.random(len(found)), "labels": np.repeat(labels, boxes_each)}
        metrics.update(prediction, {"boxes": truth, "labels": labels}, spacing=(1, 1, 1), case=str(case))
    return metrics.compute()


def rows() -> str:
    """The table."""
    out = []
    for boxes_each in (1, 100):
        for count in (2, 200):
            thresholds = tuple(np.linspace(0.05, 0.95, count))

            def work(thresholds=thresholds, boxes_each=boxes_each) -> dict:
                return evaluate(thresholds, boxes_each)

            wall = timed(work)[0]
            tracemalloc.start()
            work()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            out.append([boxes_each, 18 + count, wall * 1e3, peak / 2**20])
    header = ["boxes for each organ", "thresholds (at most)", "ms", "peak MiB"]
    return table(f"Metrics of {CASES} cases x {ORGANS} organs, filling included", header, out)


if __name__ == "__main__":
    print(rows())
