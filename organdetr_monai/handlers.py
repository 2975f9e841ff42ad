"""Ignite handlers: what is shown and written while an engine runs."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from torch import Tensor

from organdetr_monai.errors import InputError

if TYPE_CHECKING:
    from organdetr_monai.budget import TrainingBudget
    from organdetr_monai.detections import Model

logger = logging.getLogger(__name__)


def scalar_tensors(output: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Scalar tensors of a trainer's output, a dict or a list that starts with one, on their device; float32."""
    terms = output if isinstance(output, Mapping) else output[0]
    return {k: v.float().reshape(()) for k, v in terms.items() if torch.is_tensor(v) and v.numel() == 1}


def scalars(output: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """As :func:`scalar_tensors`, as numbers, in one transfer from the device."""
    tensors = scalar_tensors(output)
    return dict(zip(tensors, torch.stack([*tensors.values()]).tolist(), strict=True))


class LossBar(ProgressBar):
    """Progress bar over the steps of an epoch, with every loss term.

    It moves twice a second on a terminal, every ten seconds in a log file, and at the end of each epoch: reading the
    terms makes the host wait for a GPU, which should not happen at every step.

    Parameters
    ----------
    budget : TrainingBudget, optional
        Its used share is shown, too: where a run ends by it, the number of epochs says nothing.
    options : optional
        Of ignite's ``ProgressBar``.
    """

    def __init__(self, *, budget: TrainingBudget | None = None, **options: Any) -> None:
        super().__init__(persist=True, desc="epoch", **options)
        self.budget = budget
        self.every = 0.5 if sys.stderr.isatty() else 10.0
        self.shown = float("-inf")

    def attach(self, engine: Engine) -> None:  # type: ignore[override]  # fewer: how each term is shown is fixed here
        """Attach to a trainer; MONAI attaches handlers without further arguments."""
        due = Events.ITERATION_COMPLETED(event_filter=self._due)
        super().attach(engine, output_transform=self._shown, event_name=due)

    def _shown(self, output: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, float]:
        return scalars(output) | ({} if self.budget is None else {"budget": self.budget.share})

    def _due(self, engine: Engine, iteration: int) -> bool:
        now, last = time.monotonic(), iteration % (engine.state.epoch_length or 1) == 0
        if not last and now - self.shown < self.every:
            return False
        self.shown = now
        return True


class MetricReport:
    """Prints the metric table when an evaluation is done and saves it.

    Parameters
    ----------
    metric : OrganDetectionMetric
        Attached to the same engine.
    output_dir : path
        Gets ``metrics.json`` and ``metrics.csv``.
    thresholds_path : path, optional
        Gets the score from which up each organ is to be reported, fitted on the cases of this evaluation: give it for
        validation cases only.
    """

    def __init__(self, metric: Any, output_dir: str | Path, *, thresholds_path: str | Path | None = None) -> None:
        self.metric, self.output_dir, self.thresholds_path = metric, Path(output_dir), thresholds_path

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Print and save."""
        from organdetr_monai.calibration import fit_thresholds, save_thresholds
        from organdetr_monai.metric_report import format_table, save

        print(format_table(self.metric.result))
        print("cropping: to the body, found in the image alone; no label was used")
        for suffix in ("json", "csv"):
            save(self.metric.result, self.output_dir / f"metrics.{suffix}")
        print(f"saved in {self.output_dir}")
        if self.thresholds_path is not None:
            save_thresholds(fit_thresholds(self.metric.cases, self.metric.organs), self.thresholds_path)
            print(f"score thresholds fitted on these cases: {self.thresholds_path}")


class DetectionsSaver:
    """Takes predictions back to the original scans and writes ``OUTPUT/<case>/detections.json``, each as it is ready.

    Parameters
    ----------
    output_dir : path
    organs : sequence of str
        Of the model; ``organs[k]`` has id ``k + 1``.
    model : Model
        What the files say made them.
    threshold : float or mapping from organ to float
        From this score up an organ is present.
    """

    def __init__(
        self,
        output_dir: str | Path,
        organs: Sequence[str],
        *,
        model: Model,
        threshold: float | Mapping[str, float] = 0.5,
    ) -> None:
        self.output_dir, self.organs, self.threshold = Path(output_dir), list(organs), threshold
        self.model = model
        self.failed: list[str] = []
        self.done = 0

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator whose output has ``pred``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.report)

    def save(self, engine: Engine) -> None:
        """Write the results of a batch."""
        from organdetr_monai.detections import Detections

        # ignite's annotations say int
        batch = cast(Mapping[str, Any], engine.state.batch)
        output = cast(Mapping[str, Any], engine.state.output)
        if "error" in batch:
            self.failed += batch["case"]
            return
        for case, frame, prediction in zip(batch["case"], batch["frame"], output["pred"], strict=True):
            detections = Detections.from_boxes(
                prediction["boxes"],
                prediction["scores"],
                prediction["labels"],
                organs=self.organs,
                model=self.model,
                threshold=self.threshold,
                **frame,
            )
            path = self.output_dir / str(case).replace("/", "_") / "detections.json"
            detections.save(path)
            self.done += 1
            found = ", ".join(f"{organ.organ} {organ.score:.2f}" for organ in detections.present)
            logger.info("%s: %s -> %s", case, found or "no organ", path)

    def report(self, engine: Engine) -> None:
        """Say at the end which cases failed; their errors were logged when they occurred."""
        if self.failed:
            raise InputError(
                f"{len(self.failed)} of {len(self.failed) + self.done} cases failed: {', '.join(self.failed)}.",
                f"See the lines above; the others' results are in {self.output_dir}.",
            )
