"""Ignite handlers of the click bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ignite.engine import Engine, Events

from organdetr_monai.detections import Model
from organdetr_monai.errors import InputError
from organdetr_monai.miq_sam3d.answer import Answer

__all__ = ["LesionsSaver"]

logger = logging.getLogger(__name__)


class LesionsSaver:
    """Takes answers back to the original scans and writes ``OUTPUT/<case>/lesions.{nii.gz,json}``, each when ready.

    Parameters
    ----------
    output_dir : path
    model : Model
        What the files say made them.
    """

    def __init__(self, output_dir: str | Path, *, model: Model) -> None:
        self.output_dir, self.model = Path(output_dir), model
        self.failed: list[str] = []
        self.done = 0

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator whose output has ``pred``, a :class:`Found` for each case."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.report)

    def save(self, engine: Engine) -> None:
        """Write the answers of a batch."""
        from organdetr_monai.writers.lesions import write_labels

        # ignite's annotations say int
        batch = cast(Mapping[str, Any], engine.state.batch)
        output = cast(Mapping[str, Any], engine.state.output)
        if "error" in batch:
            self.failed += batch["case"]
            return
        for case, clicks, frame, found in zip(
            batch["case"], batch["clicks"], batch["frame"], output["pred"], strict=True
        ):
            answer = Answer.from_found(found, clicks, model=self.model, **frame)
            folder = self.output_dir / str(case).replace("/", "_")
            write_labels(answer, folder / "lesions.nii.gz")
            answer.save(folder / "lesions.json")
            self.done += 1
            logger.info("%s: %d lesions -> %s", case, len(answer.lesions), folder)

    def report(self, engine: Engine) -> None:
        """Say at the end which cases failed; their errors were logged when they occurred."""
        if self.failed:
            raise InputError(
                f"{len(self.failed)} of {len(self.failed) + self.done} cases failed: {', '.join(self.failed)}.",
                f"See the lines above; the others' answers are in {self.output_dir}.",
            )
