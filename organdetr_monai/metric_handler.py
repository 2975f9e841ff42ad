"""The metrics as the key metric of a MONAI or Ignite engine, on one or many processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric

from organdetr_monai import distributed
from organdetr_monai.average_precision import summarise
from organdetr_monai.errors import InputError
from organdetr_monai.metrics import Case, DetectionMetrics


class OrganDetectionMetric(Metric):
    """:class:`DetectionMetrics` as the key metric of a MONAI ``SupervisedEvaluator`` or any Ignite engine.

    All scalar figures enter ``engine.state.metrics`` under their own names; ``result`` keeps the whole result of the
    last epoch, ``cases`` what it was computed from. In distributed runs every process gets the result of all cases,
    each counted once; they need names then.

    Parameters
    ----------
    organs : sequence of str
        Names; ``organs[k]`` has id ``k + 1``.
    key : str
        The figure that the metric returns.
    spacing : sequence of 3 float, optional
        Millimetres per voxel of the working image, for truths without ``spacing``.
    output_transform : callable
        Gives ``(predictions, truths)`` of a batch, two lists with one mapping for each image as
        :meth:`DetectionMetrics.update` takes them, from ``engine.state.output``. An output with keys ``pred`` and
        ``label`` (a MONAI engine with ``decollate=False``) needs none.
    **options
        Of :class:`DetectionMetrics`.
    """

    required_output_keys = ("pred", "label")

    def __init__(
        self,
        organs: Sequence[str],
        *,
        key: str = "mAP_coco",
        spacing: Sequence[float] | None = None,
        output_transform: Callable = lambda output: output,
        **options: Any,
    ) -> None:
        self.organs, self.key, self.spacing = list(organs), key, spacing
        self.result: dict[str, Any] = {}
        self.cases: list[Case] = []
        self._new = partial(DetectionMetrics, organs, **options)
        self._local = self._new()
        self._names = [*summarise([], self._local.thresholds, self._local.reported)]
        if key not in self._names:
            raise InputError(f"The key metric is {key!r}.", f"Choose among {self._names}.")
        super().__init__(output_transform, skip_unrolling=True)  # unrolling takes lists for stacks of tensors

    def attach(self, engine: Engine, name: str, *args: Any, **kwargs: Any) -> None:
        """Attach under ``name``, which must not be that of another figure."""
        if name in self._names and name != self.key:
            raise InputError(f"The metric {self.key!r} is attached as {name!r}.", f"Attach it as {self.key!r}.")
        super().attach(engine, name, *args, **kwargs)

    def reset(self) -> None:
        """Start of an epoch: forget all cases."""
        self._local.reset()

    def update(self, output: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]) -> None:
        """Add the images of a batch."""
        for prediction, truth in zip(*output, strict=True):
            self._local.update(prediction, truth, spacing=self.spacing)

    def compute(self) -> float:
        """The key figure over the cases of all processes; the rest is in ``result``."""
        metrics = self._new()
        metrics.add(_gather(self._local.cases))
        if not metrics.cases:
            raise NotComputableError("OrganDetectionMetric saw no case: is the validation set empty?")
        self.cases, self.result = metrics.cases, metrics.compute()
        if not self.result["num_truth"]:
            # A NaN is never better than the best so far: no checkpoint would ever be kept, and nobody told.
            raise InputError("No validation case has an organ.", "Check the datalist, its labels and 'annotated'.")
        return self.result[self.key]

    def completed(self, engine: Engine, name: str) -> None:
        """End of an epoch: the key figure under ``name``, all scalars under their own names."""
        value = self.compute()
        scalars = {k: v for k, v in self.result.items() if isinstance(v, int | float)}
        engine.state.metrics.update({**scalars, name: value})


def _gather(cases: list[Case]) -> list[Case]:
    """Cases of all processes, those given where there is one: in the order that one process would have them in, if
    they were dealt out by :func:`organdetr_monai.distributed.share`, so that not even a rounding differs.
    """
    if distributed.world_size() == 1:
        return cases
    rounds = zip_longest(*distributed.gather(cases))
    together = [case for dealt in rounds for case in dealt if case is not None]
    if any(case.name is None for case in together):
        # Checked after the exchange, by all processes alike: one that left earlier would keep the others waiting.
        raise InputError(
            "A case without a name cannot be counted once in a distributed run.",
            "Put its name in the truth, as 'case'.",
        )
    return together
