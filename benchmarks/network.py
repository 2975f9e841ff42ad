"""Inference and training step: CPU-seconds in yardsticks, and peak memory, each in a process of its own.

``python benchmarks/network.py`` prints the table; ``--one MODE SIZE SHAPE [OPTION]`` measures one row.
"""

from __future__ import annotations

import json
import sys

import torch
from build import network, targets, training_step
from measure import in_own_process, peak_gib, table, timed, yardstick

# A public implementation of this lineage on two cores, float32, batch 1 (107.7 M parameters), in yardsticks and GiB.
PUBLIC = {
    ("inference", "96x96x96"): (9.2, 2.2),
    ("inference", "160x160x96"): (34.7, 3.9),
    ("inference", "224x224x96"): (70.0, 6.9),
    ("step", "96x96x96"): (24.0, 10.8),
    ("step", "160x160x96"): (105.0, 16.4),
}
DEFAULT = [("inference", "default", "96x64x96"), ("step", "default", "96x64x96")]
OPTIONS = ["float32", "bfloat16", "checkpointing"]


def measure(mode: str, size: str, shape: str, option: str = "float32") -> dict:
    """One row: wall and CPU-seconds (median), peak GiB, millions of parameters."""
    torch.set_num_threads(2)
    extents = tuple(int(n) for n in shape.split("x"))
    again = {"network_def__backbone__checkpointing": True, "network_def__encoder__checkpointing": True}
    net = network(size, **(again if option == "checkpointing" else {}))
    image = torch.rand(1, 1, *extents, generator=torch.Generator().manual_seed(1))
    dtype = torch.bfloat16 if option == "bfloat16" else None
    if mode == "inference":
        net.eval()

        @torch.inference_mode()
        def work() -> None:
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                net(image)
    else:
        work = training_step(net, image, targets(extents), dtype)
    wall, cpu = timed(work, repeat=3)
    parameters = sum(p.numel() for p in net.parameters()) / 1e6
    return {"wall": wall, "cpu": cpu, "gib": peak_gib(), "parameters": parameters}


def rows() -> str:
    """The tables."""
    unit = in_own_process("network.py", "--yardstick")["cpu"]
    out, parameters = [], 0.0
    for (mode, shape), (public, memory) in PUBLIC.items():
        got = in_own_process("network.py", "--one", mode, "paper", shape)
        parameters = got["parameters"]
        share, part = got["cpu"] / unit / public, got["gib"] / memory
        out.append([mode, shape, got["cpu"], got["cpu"] / unit, public, share, got["gib"], memory, part])
    header = ["", "volume", "CPU-s", "yardsticks", "public", "ratio", "GiB", "public", "ratio"]
    text = table(
        f"Paper size ({parameters:.1f} M parameters), float32, batch 1; yardstick {unit:.2f} CPU-s", header, out
    )
    out = []
    for mode, size, shape in [*DEFAULT, ("step", "paper", "96x96x96")]:
        base = None
        for option in OPTIONS:
            if option == "checkpointing" and mode == "inference":
                continue
            got = in_own_process("network.py", "--one", mode, size, shape, option)
            base = base or got
            out.append([mode, size, shape, option, got["wall"] * 1e3, got["wall"] / base["wall"], got["gib"]])
    return text + table("Options", ["", "size", "volume", "option", "ms", "ratio", "GiB"], out)


if __name__ == "__main__":
    if "--yardstick" in sys.argv:
        torch.set_num_threads(2)
        print(json.dumps({"cpu": yardstick()}))
    elif "--one" in sys.argv:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        print(rows())
