"""What all benchmarks share: clocks, peak memory, the yardstick, tables."""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]


def timed(work: Callable[[], object], *, repeat: int = 5, warm: int = 1) -> tuple[float, float]:
    """Median wall seconds and median CPU-seconds of ``work``, after ``warm`` runs that do not count."""
    for _ in range(warm):
        work()
    wall, cpu = [], []
    for _ in range(repeat):
        started = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - started[0])
        cpu.append(time.process_time() - started[1])
    return statistics.median(wall), statistics.median(cpu)


def peak_gib() -> float:
    """Most memory that this process ever held, GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def yardstick() -> float:
    """CPU-seconds of a fixed piece of work, to compare machines: a 3×3×3 convolution of 32 channels on 96³, a product
    (27648 x 384) @ (384 x 1536) and a trilinear sampling of (6, 64, 24³) at 27648 x 4 points, float32.
    """
    generator = torch.Generator().manual_seed(0)
    image, kernel = (torch.randn(s, generator=generator) for s in ((1, 32, 96, 96, 96), (32, 32, 3, 3, 3)))
    left, right = (torch.randn(s, generator=generator) for s in ((27648, 384), (384, 1536)))
    volume = torch.randn(6, 64, 24, 24, 24, generator=generator)
    where = torch.rand(6, 27648, 4, 1, 3, generator=generator) * 2 - 1

    @torch.inference_mode()
    def work() -> None:
        F.conv3d(image, kernel, padding=1)
        left @ right
        F.grid_sample(volume, where, align_corners=False)

    return timed(work)[1]


def matrix_rate(size: int = 2048) -> float:
    """GFLOP/s of a float32 matrix product, wall time: what the machine can do at best."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / timed(lambda: a @ b)[0] / 1e9


def machine() -> str:
    """Processor, threads and versions in one line."""
    name = platform.processor()
    if Path("/proc/cpuinfo").exists():
        models = [s.split(":")[1].strip() for s in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in s]
        name = models[0] if models else name
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table under a title; floats get three significant digits."""
    cells = [[f"{c:.3g}" if isinstance(c, float) else str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return f"\n### {title}\n\n" + "\n".join(lines)


def in_own_process(script: str, *arguments: str) -> dict:
    """Run ``benchmarks/<script>`` with arguments in a process of its own; its last line is JSON."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
