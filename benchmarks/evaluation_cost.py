"""Handler of ``benchmarks/accuracy.py``: what an evaluation costs, beside what it finds."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from organdetr_monai.files import replacing


class EvaluationCost:
    """Writes a JSON with ``seconds`` and ``cpu_seconds`` of a case (median) and ``parameters`` of the network.

    The time is from the cached image on the working grid to boxes on the host, windows and their merging included;
    reading and resampling the scan, the same for all networks, is not.

    Parameters
    ----------
    path : path
        Of the JSON.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.times: list[tuple[float, float]] = []
        self.start = 0.0, 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator with batches of one case."""
        engine.add_event_handler(Events.ITERATION_STARTED, self.begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.end)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def begin(self, engine: Engine) -> None:
        """Start the clocks."""
        self.start = time.perf_counter(), time.process_time()

    def end(self, engine: Engine) -> None:
        """Stop the clocks."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append((time.perf_counter() - self.start[0], time.process_time() - self.start[1]))

    def write(self, engine: Any) -> None:
        """Write the file."""
        seconds, cpu = (statistics.median(column) for column in zip(*self.times, strict=True))
        parameters = sum(p.numel() for p in engine.network.parameters())
        with replacing(self.path) as draft:
            draft.write_text(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "parameters": parameters}) + "\n")
