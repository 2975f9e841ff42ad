"""All benchmarks: ``python benchmarks/run.py [NAME ...]``, by default all; prints Markdown tables.

``python benchmarks/growth.py PICTURE`` also draws the growth.
"""

from __future__ import annotations

import subprocess
import sys
import time

import torch
from measure import ROOT, machine

from organdetr_monai.networks import compiled

NAMES = "network parts attention deformable matching metrics data detect growth exports gpu".split()


def main(names: list[str]) -> int:
    """Run each in a process of its own, so that none warms or fills what the next measures."""
    unknown = set(names) - set(NAMES)
    if unknown:
        print(f"no benchmark is called {sorted(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    torch.set_num_threads(2)
    way = "C" if compiled.library() is not None else "embedding_bag"  # compiled now, not in the middle of a measurement
    print(f"{machine()}; deformable sampling by {way}", flush=True)
    failed = []
    for name in names or NAMES:
        start = time.perf_counter()
        command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        print(done.stdout, end="", flush=True)
        if done.returncode:
            failed.append(name)
            print(f"\n{name} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
        print(f"\n({name}: {time.perf_counter() - start:.0f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
