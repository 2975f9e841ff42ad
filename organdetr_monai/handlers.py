"""Ignite handlers: what is shown and written while an engine runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar

from organdetr_monai.errors import InputError

logger = logging.getLogger(__name__)


def scalars(output: Mapping[str, Any]) -> dict[str, float]:
    """Scalar tensors of an engine's output as numbers, in one transfer from the device."""
    names = [k for k, v in output.items() if torch.is_tensor(v) and v.numel() == 1]
    return dict(zip(names, torch.stack([output[k].float().reshape(()) for k in names]).tolist(), strict=True))


class LossBar(ProgressBar):
    """Progress bar over the steps of an epoch, with every loss term."""

    def __init__(self, **options: Any) -> None:
        super().__init__(persist=True, desc="epoch", **options)

    def attach(self, engine: Engine) -> None:  # type: ignore[override]
        """Attach to a trainer; MONAI attaches handlers without further arguments."""
        super().attach(engine, output_transform=scalars)


class MetricReport:
    """Prints the metric table when an evaluation is done and saves it.

    Parameters
    ----------
    metric : OrganDetectionMetric
        Attached to the same engine.
    output_dir : path
        Gets ``metrics.json`` and ``metrics.csv``.
    """

    def __init__(self, metric: Any, output_dir: str | Path) -> None:
        self.metric, self.output_dir = metric, Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Print and save."""
        from organdetr_monai.metrics import format_table, save

        print(format_table(self.metric.result))
        for suffix in ("json", "csv"):
            save(self.metric.result, self.output_dir / f"metrics.{suffix}")
        print(f"saved in {self.output_dir}")
