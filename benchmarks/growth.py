"""Cost against the size of the volume, the number of queries and of organs; with a file name it also draws them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from build import network, targets, training_step
from measure import table, timed

SERIES = {
    "volume, million voxels": [(x, y, 96, 100, 12) for x, y in ((48, 64), (96, 64), (96, 128), (160, 160), (224, 224))],
    "queries N": [(96, 64, 96, n, 12) for n in (50, 100, 200, 400, 600)],
    "organs M": [(96, 64, 96, 600, m) for m in (6, 12, 24, 48, 96)],
}


def cost(x: int, y: int, z: int, queries: int, organs: int) -> tuple[float, float]:
    """CPU-seconds of inference and of a training step, default network."""
    net = network("default", queries=queries, organs=organs)
    image = torch.rand(1, 1, x, y, z)
    step = timed(training_step(net, image, targets((x, y, z), organs=organs)), repeat=3)[1]
    net.eval()
    with torch.inference_mode():
        return timed(lambda: net(image), repeat=5)[1], step


def rows(picture: Path | None = None) -> str:
    """The table; and the picture, if it is to be."""
    from matplotlib.figure import Figure

    torch.set_num_threads(2)
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    out = []
    for axes, (name, settings) in zip(figure.subplots(1, 3), SERIES.items(), strict=True):
        at = [s[0] * s[1] * s[2] / 1e6 if "volume" in name else s[3] if "N" in name else s[4] for s in settings]
        costs = np.array([cost(*s) for s in settings])  # (points, 2)
        for column, label in enumerate(("inference", "training step")):
            slope, start = np.polyfit(at, costs[:, column], 1)
            residual = costs[:, column] - (slope * np.array(at) + start)
            fit = 1 - residual.var() / costs[:, column].var()
            times, grown = at[-1] / at[0], float(costs[-1, column] / costs[0, column])
            first, last = costs[[0, -1], column].tolist()
            out.append([name, label, f"{at[0]:.3g} to {at[-1]:.3g}", times, first, last, grown, float(fit)])
            axes.plot(at, costs[:, column], "o-", label=label)
        axes.set(xlabel=name, ylabel="CPU-seconds", ylim=(0, None), xlim=(0, None))
        axes.legend()
    if picture is not None:
        figure.savefig(picture, dpi=110)
    header = ["against", "", "from, to", "times", "CPU-s, first", "CPU-s, last", "times", "R² of a line"]
    return table("Growth, default network, float32, batch 1", header, out)


if __name__ == "__main__":
    print(rows(*map(Path, sys.argv[1:2])))
