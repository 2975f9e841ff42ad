"""What the peers share: an answer in the detector's form, and what their losses are divided by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Mean over the processes that share a batch, such as :func:`organdetr_monai.distributed.mean`.
Average = Callable[[Tensor], Tensor]


def organ_queries(presence: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """One box for each organ, in the form in which :class:`organdetr_monai.networks.OrganDETR` gives its queries.

    Query ``k`` speaks of organ ``k + 1`` alone, so its softmax is over two classes: a sigmoid. What reads the
    detector's output, such as :class:`organdetr_monai.inference.DetectionInferer`, so reads a peer's.

    Parameters
    ----------
    presence : Tensor of shape (B, K)
        Logit of the best box of each organ.
    boxes : Tensor of shape (B, K, 6)
        Normalised centre boxes.

    Returns
    -------
    dict
        ``logits`` (B, K, K + 1), float32, and ``boxes`` (B, K, 6).
    """
    batch, organs = presence.shape
    logits = torch.full((batch, organs, organs + 1), float("-inf"), device=presence.device)
    logits[..., 0] = 0.0
    # Below -80 a probability is 0 in float32, and an organ's query would no longer be its best one.
    logits.diagonal(offset=1, dim1=1, dim2=2).copy_(presence.float().clamp(min=-80.0))
    return {"logits": logits, "boxes": boxes}


def counts_of_batch(counts: Sequence[float], average: Average | None, device: torch.device) -> list[Tensor]:
    """Numbers of a batch as scalars, at least a little above 0; with `average`, their means over the processes."""
    own = torch.tensor(counts, dtype=torch.float32).to(device, non_blocking=True)
    return list((own if average is None else average(own)).clamp(min=1e-6).unbind())
