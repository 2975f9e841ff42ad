"""The glue between MONAI's trainer and the detector: collate, prepare_batch, the training step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn

from organdetr_monai import distributed
from organdetr_monai.boxes import normalise
from organdetr_monai.errors import InputError
from organdetr_monai.precision import amp_precision
from organdetr_monai.sampling import seed_of

Sample = Mapping[str, Any]


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Batch of samples: images stacked, everything else as lists, because organs differ in number from case to case."""
    batch: dict[str, Any] = {key: [s[key] for s in samples] for key in samples[0]}
    if "image" in batch:  # a case that could not be read has none
        batch["image"] = torch.stack([_plain(image) for image in batch["image"]])
    return batch


def prepare_batch(
    batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Inputs and targets of a training batch on the device.

    Returns
    -------
    image : Tensor of shape (B, 1, X, Y, Z)
    targets : list of dict
        For each image ``boxes`` (M, 6) normalised centre boxes, ``labels`` (M,), ``annotated`` (K,) and ``mask`` (X,
        Y, Z). Where the samples say whether they have a mask, ``has_mask``, those without ``segmented`` no organ. Where
        samples have one, ``seed``, an int, for what the network draws itself.
    """
    image = _plain(batch["image"]).to(device, non_blocking=non_blocking)
    window = tuple(image.shape[2:])
    targets = [
        {
            "boxes": normalise(_plain(boxes), window).to(device, non_blocking=non_blocking),
            "labels": _plain(labels).to(device, non_blocking=non_blocking),
            "annotated": _plain(annotated).to(device, non_blocking=non_blocking),
            "mask": _plain(mask)[0].to(device, non_blocking=non_blocking),
        }
        for boxes, labels, annotated, mask in zip(
            batch["boxes"], batch["labels"], batch["annotated"], batch["label"], strict=True
        )
    ]
    for target, has_mask in zip(targets, batch.get("has_mask", ()), strict=False):
        target["segmented"] = target["annotated"] & has_mask
    for target, seed in zip(targets, batch.get("seed", ()), strict=False):
        target["seed"] = seed
    return image, targets


def prepare_eval_batch(
    batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Inputs on the device and truths as they are, boxes in voxels: what the metrics read."""
    keys = [k for k in ("boxes", "labels", "annotated", "spacing", "case") if k in batch]
    truths = [dict(zip(keys, row, strict=True)) for row in zip(*(batch[k] for k in keys), strict=True)]
    return _plain(batch["image"]).to(device, non_blocking=non_blocking), truths


def _plain(x: Any) -> Tensor:
    return x.as_tensor() if hasattr(x, "as_tensor") else torch.as_tensor(x)


class TrainingStep:
    """One optimiser step of a MONAI ``SupervisedTrainer``, given as its ``iteration_update``.

    Unlike the trainer's own step it takes a loss of several terms, each of which ends up in ``engine.state.output``,
    and clips the gradient after it was unscaled.

    Parameters
    ----------
    clip_norm : float or None
        Largest norm of the whole gradient.
    amp_dtype : str, optional
        ``"bfloat16"`` or ``"float16"``: the network runs under autocast; the loss stays in float32. ``"float32"`` is
        None, for the command line, which cannot say None.
    average : callable, optional
        Takes the terms, a tensor, to their mean over the processes that share a batch, such as
        :func:`organdetr_monai.distributed.mean`: what is reported is then of the whole batch.
    """

    def __init__(
        self,
        *,
        clip_norm: float | None = 0.1,
        amp_dtype: str | None = None,
        average: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.clip_norm, self.average = clip_norm, average
        self.amp_dtype = amp_precision(amp_dtype)

    def __call__(self, engine: Any, batch: Mapping[str, Any]) -> list[dict[str, Tensor]]:
        """Forward, backward, clip, step.

        Returns
        -------
        list of one dict
            ``loss`` and its terms as detached scalars. In a list because MONAI's handlers, such as MLflow's, expect
            decollated output.
        """
        inputs, targets = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        network, optimizer = engine.network, engine.optimizer
        network.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(inputs.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            wanted = {"targets": targets} if getattr(_inner(network), "needs_targets", False) else {}
            prediction = engine.inferer(inputs, network, **wanted)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        terms = engine.loss_function(prediction, targets)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        scaler = self._scaler(engine, inputs.device)
        scaler.scale(terms["loss"]).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        scaler.unscale_(optimizer)
        if self.clip_norm is not None:
            terms["grad_norm"] = nn.utils.clip_grad_norm_(network.parameters(), self.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        terms = {Keys.LOSS: terms.pop("loss").detach(), **terms}
        if self.average is not None:
            means = self.average(torch.stack([term.float() for term in terms.values()]))
            terms = dict(zip(terms, means.unbind(), strict=True))
        return [terms]

    def _scaler(self, engine: Any, device: torch.device) -> torch.amp.GradScaler:
        if engine.scaler is None:
            # Only float16 needs scaling; a disabled scaler passes everything through.
            engine.scaler = torch.amp.GradScaler(device.type, enabled=self.amp_dtype == torch.float16)
        return engine.scaler


def _inner(network: nn.Module) -> nn.Module:
    """The network inside a ``DistributedDataParallel``, or itself."""
    return getattr(network, "module", network)


def fast_precision(device: torch.device | str) -> str | None:
    """``"bfloat16"`` where the hardware is faster in it than in float32, else None: ``amp_dtype`` of `TrainingStep`.

    That is a GPU with bfloat16, or a CPU with AVX512-BF16; other CPUs emulate it, slowly.
    """
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    # No public function of torch tells; where this one is missing, float32 is the safe answer.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bfloat16" if torch.device(device).type == "cpu" and supported() else None


def refiner_of(network: nn.Module) -> nn.Module:
    """The network's second look at each organ, to be trained alone.

    Raises
    ------
    InputError
        It has none.
    """
    refiner = getattr(network, "refiner", None)
    if refiner is None:
        raise InputError("The network has no refiner to train.", "Give refiner/add.json after what takes it away.")
    return refiner


#: Parts of the names of tables that are looked up: positions, levels, labels.
NO_DECAY = ("embedding", "position_bias_table")


def parameter_groups(
    network: nn.Module, *, lr: float = 2e-4, weight_decay: float = 1e-4, slow: float = 0.1
) -> list[dict[str, Any]]:
    """Groups for AdamW: norms, biases, embeddings and queries without decay; sampling offsets and reference boxes at
    ``slow * lr``.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, p in network.named_parameters():
        if p.requires_grad:
            leaf = name.rpartition(".")[2]
            is_slow = ".offsets." in name or leaf == "reference"
            decays = p.ndim > 1 and leaf not in ("content", "reference") and not any(w in name for w in NO_DECAY)
            groups.setdefault((is_slow, decays), []).append(p)
    return [
        {"params": params, "lr": lr * (slow if is_slow else 1), "weight_decay": weight_decay if decays else 0.0}
        for (is_slow, decays), params in groups.items()
    ]


def reference_boxes(samples: Iterable[Sample]) -> Tensor:
    """Boxes of training samples in random order, (M, 6) normalised centre boxes: where the queries start.

    Parameters
    ----------
    samples : iterable of samples
        With ``image`` and ``boxes`` as the training transforms give them, augmented.

    Raises
    ------
    InputError
        No sample has a box.
    """
    boxes = [normalise(_plain(s["boxes"]), tuple(s["image"].shape[1:])) for s in samples if len(s["boxes"])]
    if not boxes:
        raise InputError("no training sample has a box.", "Check the datalist's label map and the masks.")
    every = torch.cat(boxes)
    return every[torch.randperm(len(every))]


class ReseedEpochs:
    """Handler: every epoch starts from a seed of its own, so that a resumed run does what an uninterrupted one does.

    Parameters
    ----------
    seed : int
        Of the global generators. Processes of a distributed run get different ones, for dropout and the like.
    parts : sequence
        What has an order or samples for each epoch and is told its number by ``set_epoch``: dataset, sampler.
    """

    def __init__(self, seed: int, parts: Sequence[Any] = ()) -> None:
        self.seed, self.parts = seed, list(parts)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed Python, NumPy and PyTorch for the epoch that starts, and tell the parts."""
        seed = seed_of(self.seed, engine.state.epoch, distributed.rank())
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - third-party transforms draw from the global generator
        torch.manual_seed(seed)
        for part in self.parts:
            part.set_epoch(engine.state.epoch)
