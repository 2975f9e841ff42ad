"""How good the network is: on windows while it trains, on whole scans when it is evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric

from organdetr_monai.data.transforms import affine_of, plain
from organdetr_monai.errors import InputError
from organdetr_monai.files import replacing
from organdetr_monai.geometry import spacing_of
from organdetr_monai.miq_sam3d.instances import disjoint
from organdetr_monai.miq_sam3d.metrics import aggregate, evaluate_instances
from organdetr_monai.miq_sam3d.prompts import TISSUE
from organdetr_monai.miq_sam3d.robustness import ask_about, summarise
from organdetr_monai.miq_sam3d.targets import Targets


class LesionMetric(Metric):
    """Figures of many answers as the key metric of a MONAI ``SupervisedEvaluator``.

    All scalar figures enter ``engine.state.metrics`` under their own names; ``result`` keeps the whole result of the
    last epoch. One process alone: answers are not gathered.

    Parameters
    ----------
    judge : callable
        From ``engine.state.output`` to a list with the figures of each answer or case.
    summarise : callable
        From all of these to a mapping.
    key : str
        The figure that the metric returns.
    """

    def __init__(self, judge: Callable[[Any], list], summarise: Callable[[list], Mapping], *, key: str = "pq") -> None:
        self.key, self.summarise = key, summarise
        self.result: dict[str, Any] = {}
        self.figures: list[Any] = []
        super().__init__(judge, skip_unrolling=True)

    def reset(self) -> None:
        """Start of an epoch: forget all figures."""
        self.figures = []

    def update(self, output: list) -> None:
        """Add those of a batch."""
        self.figures += output

    def compute(self) -> float:
        """The key figure; the rest is in ``result``."""
        if not self.figures:
            raise NotComputableError("LesionMetric saw no answer: is the validation set empty?")
        self.result = dict(self.summarise(self.figures))
        if self.key not in self.result:
            raise InputError(f"The key metric is {self.key!r}.", f"Choose among {sorted(self.result)}.")
        if np.isnan(self.result[self.key]):
            # A NaN is never better than the best so far: no checkpoint would ever be kept, and nobody told.
            raise InputError("No validation case has a lesion.", "Check the datalist and its splits.")
        return self.result[self.key]

    def completed(self, engine: Engine, name: str) -> None:
        """End of an epoch: the key figure under ``name``, all scalars under their own names."""
        value = self.compute()
        engine.state.metrics.update({**_scalars(self.result), name: value})


def _scalars(result: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested mapping, names joined by an underscore."""
    flat: dict[str, float] = {}
    for name, value in result.items():
        if isinstance(value, Mapping):
            flat |= _scalars(value, f"{prefix}{name}_")
        else:
            flat[prefix + name] = float(value)
    return flat


class WindowMetric(LesionMetric):
    """Of answers in single windows: the network as it is trained, without what joins windows.

    Parameters
    ----------
    spacing : float or sequence of 3 floats
        mm per voxel of the windows.
    key : str
        A figure of :func:`organdetr_monai.miq_sam3d.metrics.aggregate`.
    """

    def __init__(self, spacing: float | Sequence[float], *, key: str = "pq") -> None:
        self.spacing = np.broadcast_to(np.asarray(spacing, dtype=float), 3).tolist()
        super().__init__(self.judge, aggregate, key=key)

    def judge(self, output: Mapping[str, Any]) -> list[dict[str, float]]:
        """Figures of each window of a batch, ``pred`` the network's answer, ``label`` the targets."""
        targets: Targets = output["label"]
        found = disjoint(output["pred"], targets.labels.shape[1:], local=[c >= 0 for c in targets.clicked])
        return [
            evaluate_instances(ours.labels.cpu().numpy(), truth.cpu().numpy(), self.spacing)
            for ours, truth in zip(found, targets.labels, strict=True)
        ]


class CaseMetric(LesionMetric):
    """Of whole scans, every lesion clicked in its centre, at random and at its edge: see :class:`AnswerCase`."""

    def __init__(self, *, key: str = "pq") -> None:
        super().__init__(lambda output: output, summarise, key=key)


class AnswerCase:
    """Click on everything in a case: the ``iteration_update`` of an evaluator whose inferer is a ``ClickInferer``.

    Parameters
    ----------
    background : int
        Clicks on background, to which the answer should be nothing.
    seed : int
        Of the clicks.
    """

    def __init__(self, *, background: int = 3, seed: int = 0) -> None:
        self.background, self.seed = background, seed

    def __call__(self, engine: Any, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Figures of each case of a batch, as `organdetr_monai.miq_sam3d.robustness.ask_about` gives them."""
        engine.network.eval()
        found = []
        for image, instances, kinds, case in zip(
            batch["image"], batch["instances"], batch["kinds"], batch["case"], strict=True
        ):
            volume = torch.as_tensor(np.asarray(image), device=engine.state.device)
            encodings = engine.inferer.encodings(volume, engine.network)

            def answer(voxel: np.ndarray, kind: int, volume: Any = volume, encodings: Any = encodings) -> np.ndarray:
                clicks = np.asarray(voxel)[None]
                return engine.inferer.answer(volume, clicks, engine.network, encodings=encodings).labels

            figures = ask_about(
                answer,
                plain(instances)[0].numpy(),
                np.asarray(kinds).tolist(),
                spacing_of(affine_of(instances)).tolist(),
                tissue=np.asarray(image)[0] > TISSUE,
                background=self.background,
                seed=self.seed,
            )
            found.append({"case": case, **figures})
        return found


class LesionReport:
    """Prints the figures when an evaluation is done and saves them as ``metrics.json``.

    Parameters
    ----------
    metric : LesionMetric
        Attached to the same engine.
    output_dir : path
    """

    def __init__(self, metric: LesionMetric, output_dir: str | Path) -> None:
        self.metric, self.output_dir = metric, Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Print and save."""
        figures = _scalars(self.metric.result)
        width = max(map(len, figures))
        for name, value in figures.items():
            print(f"{name.ljust(width)}  {value:.3f}")
        path = self.output_dir / "metrics.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            summary = {k: None if np.isnan(v) else v for k, v in figures.items()}
            draft.write_text(json.dumps({"summary": summary, "cases": _plain(self.metric.figures)}, indent=1) + "\n")
        print(f"saved in {path}")


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, no numpy."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else cast(Any, value)
