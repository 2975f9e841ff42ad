"""What the second look at an organ costs: its mask in the cube, and where its walls are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from organdetr_monai.networks.roi_refiner import expected_walls

__all__ = ["RefinerLoss", "refiner_terms"]


def refiner_terms(refined: Mapping[str, Tensor], *, share: float | Tensor = 1.0) -> dict[str, Tensor]:
    """What the second look costs.

    Parameters
    ----------
    refined : mapping
        As :meth:`organdetr_monai.networks.ROIRefiner.forward` gives it.
    share : float or scalar Tensor
        Images at hand by the mean over the processes that share a batch: the mean over the processes of the terms, and
        of their gradients, is then that of the whole batch also where one has fewer images.

    Returns
    -------
    dict
        ``walls``: 0.4 of the distance of the walls from where they are, in voxels and at most 8, and 0.3 of the
        cross-entropy of their places, each true one a Gaussian of one cell; ``roi_mask``: cross-entropy, twice, and
        soft Dice of the masks. Means over all R, those included that say nothing.
    """
    walls, wanted = refined["walls"].float(), refined["wanted"]
    n = walls.shape[-1]
    there = refined["there"][:, None, None] * ((wanted > 0) & (wanted < 1))
    away = (expected_walls(walls)[0] - wanted).abs() * n * refined["cells"][..., None]
    cells = (torch.arange(n, device=walls.device, dtype=torch.float32) + 0.5) / n
    target = torch.softmax(-(((cells - wanted[..., None]) * n) ** 2) / 2, dim=-1)
    entropy = -(target * walls.log_softmax(-1)).sum(-1)
    mask, shown = refined["mask"].float(), refined["shown"].float()
    known = refined["masked"] * refined["there"]
    cross = F.binary_cross_entropy_with_logits(mask, shown, reduction="none").mean((1, 2, 3))
    p = mask.sigmoid()
    dice = 1 - (2 * (p * shown).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + shown.sum((1, 2, 3)) + 1)
    return {
        "walls": ((0.4 * away.clamp(max=8) + 0.3 * entropy) * there).mean() * share,
        "roi_mask": ((2 * cross + dice) * known).mean() * share,
    }


class RefinerLoss(nn.Module):
    """Cost of a refiner that is trained alone: the sum of :func:`refiner_terms`.

    Parameters
    ----------
    average : callable, optional
        As :class:`organdetr_monai.losses.DetectionLoss` takes it.
    """

    def __init__(self, *, average: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.average = average

    def forward(self, output: Mapping[str, Tensor], targets: Sequence) -> dict[str, Tensor]:
        """Cost of what :class:`organdetr_monai.networks.ROIRefiner` says of a batch: ``loss`` and the two terms."""
        share: float | Tensor = 1.0
        if self.average is not None:
            own = torch.full((), float(len(targets)), device=output["walls"].device)
            share = own / self.average(own)
        terms = refiner_terms(output, share=share)
        return {"loss": terms["walls"] + terms["roi_mask"], **{name: term.detach() for name, term in terms.items()}}
