"""The glue between MONAI's engines and the promptable network: batches, prompts and what they ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from organdetr_monai.miq_sam3d.targets import Targets, wanted_instances


class Prompted(NamedTuple):
    """Images with a click for each: the arguments of :class:`organdetr_monai.miq_sam3d.network.MIQSAM3D`."""

    #: (B, 1, X, Y, Z) in [0, 1].
    image: Tensor
    #: (B, 3) normalised to [0, 1] of the volume that the click lies in; None where nothing is asked.
    click: Tensor | None
    #: (B, 1, X, Y, Z): where ``remote``, the volume that the click lies in.
    exemplar: Tensor
    #: (B,) bool.
    remote: Tensor

    @property
    def device(self) -> torch.device:
        """Of the images."""
        return self.image.device


class PromptInferer(Inferer):
    """Hands a :class:`Prompted` batch to the network, argument by argument."""

    def __call__(self, inputs: Prompted, network: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # more than a tensor
        """The network's answer."""
        return network(*inputs)


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Batch of samples: what has the same shape in all is stacked, the rest are lists."""
    batch: dict[str, Any] = {key: [s[key] for s in samples] for key in samples[0]}
    for key in {"image", "exemplar", "instances", "exemplar_instances", "click"} & batch.keys():
        batch[key] = torch.stack([_plain(x) for x in batch[key]])
    for key in {"clicked", "exemplar_clicked", "kind", "remote", "asked"} & batch.keys():
        batch[key] = torch.tensor(batch[key])
    return batch


def prepare_batch(
    batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Prompted, Targets]:
    """Inputs and targets of a batch of :func:`collate`, on the device.

    A batch is asked if any of its samples is. The targets are of the images, then of the exemplars of remote clicks, as
    the network answers them in training.
    """
    inputs = Prompted(
        *(batch[key].to(device, non_blocking=non_blocking) for key in ("image", "click", "exemplar", "remote"))
    )
    if not batch["asked"].any():
        inputs = inputs._replace(click=None)
    away = batch["remote"].nonzero()[:, 0]
    rows = away.tolist()
    instances = torch.cat([batch["instances"], batch["exemplar_instances"][away]])[:, 0]
    targets = wanted_instances(
        instances.to(device, non_blocking=non_blocking),
        [_plain(k) for k in [*batch["kinds"], *(batch["exemplar_kinds"][row] for row in rows)]],
        torch.cat([batch["kind"], batch["kind"][away]]).tolist(),
        torch.cat([batch["clicked"], batch["exemplar_clicked"][away]]).tolist(),
    )
    return inputs, targets


def _plain(x: Any) -> Tensor:
    return x.as_tensor() if hasattr(x, "as_tensor") else torch.as_tensor(x)
