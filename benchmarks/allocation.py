"""What it saves that freed memory is kept: CPU-seconds of a training step with and without, in processes of their own.

``python benchmarks/allocation.py [--threads N]``: the default detector, and a U-Net as MIQ-SAM3D has it.
"""

from __future__ import annotations

import argparse
import json

import torch
from build import network, targets, training_step
from measure import in_own_process, machine, table, timed

from organdetr_monai.allocation import keep_freed_memory
from organdetr_monai.miq_sam3d.baselines import small_unet

NETWORKS = {"detector, 96x64x96": (96, 64, 96), "U-Net, 2x64x64x64": (64, 64, 64)}


def step(name: str) -> float:
    """CPU-seconds of a forward and backward pass."""
    shape = NETWORKS[name]
    if name.startswith("detector"):
        return timed(training_step(network("default"), torch.rand(1, 1, *shape), targets(shape)))[1]
    net, image = small_unet(1, 3, (16, 32, 64, 128)), torch.rand(2, 1, *shape)
    return timed(lambda: net(image).square().mean().backward())[1]


def main() -> None:
    """Print the table, or as a child the figure of one cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        name, how = options.child
        if how == "kept":
            keep_freed_memory()
        print(json.dumps(step(name)))
        return
    rows = []
    for name in NETWORKS:
        before, after = (
            in_own_process("allocation.py", "--threads", str(options.threads), "--child", name, how)
            for how in ("as it is", "kept")
        )
        rows.append([name, before, after, after / before])
    print(machine())
    print(table("CPU-seconds of a training step", ["network", "as it is", "memory kept", "ratio"], rows))


if __name__ == "__main__":
    main()
