"""Queries: where they start, and those that exist in training only, beside the ones that are matched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from organdetr_monai.boxes import inverse_sigmoid
from organdetr_monai.matching import Matches

if TYPE_CHECKING:
    from organdetr_monai.networks.decoder import DeformableDecoder


class ExtraQueries(NamedTuple):
    """E queries that pass the decoder in training beside the N that are matched, and that these never see."""

    #: (B or 1, E, dim)
    content: Tensor
    #: (B or 1, E, 6), normalised centre boxes as logits.
    reference: Tensor
    #: (B or 1, E, E) bool: which of them (row) sees which (column).
    visible: Tensor
    #: Whether all of them see the N queries.
    see_matched: bool
    #: Whom they stand for, where that is known; else the loss matches them.
    matches: Matches | None = None


def decode_together(
    decoder: DeformableDecoder, maps: Sequence[Tensor], content: Tensor, reference: Tensor, extra: ExtraQueries
) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """Decode N queries and E extra ones in one pass.

    Parameters
    ----------
    decoder, maps, content, reference
        As :meth:`organdetr_monai.networks.DeformableDecoder.forward` takes them.
    extra : ExtraQueries

    Returns
    -------
    layers : list of dict
        For the N queries what the decoder gives for them alone.
    others : dict
        ``logits`` (B, E, K + 1) and ``boxes`` (B, E, 6) of the last layer, ``aux``, a list of the same for the earlier
        ones, and ``matches`` where they are known.
    """
    n, batch = len(content), maps[0].shape[0]
    both = [
        torch.cat([own.expand(batch, -1, -1), more.expand(batch, -1, -1)], dim=1)
        for own, more in ((content, extra.content), (reference, extra.reference))
    ]
    mask = F.pad(extra.visible, (n, 0, n, 0))  # (B or 1, N + E, N + E)
    mask[:, :n, :n] = True
    mask[:, n:, :n] = extra.see_matched
    layers = decoder(maps, both[0], both[1], mask[:, None])
    *aux, last = ({key: value[:, n:] for key, value in layer.items()} for layer in layers)
    others: dict[str, Any] = {**last, "aux": aux}
    if extra.matches is not None:
        others["matches"] = extra.matches
    return [{key: value[:, :n] for key, value in layer.items()} for layer in layers], others


def spread_boxes(n: int, *, seed: int = 0) -> Tensor:
    """``n`` boxes (n, 6) of a fifth of the volume, their centres spread evenly by a Sobol sequence (seeded)."""
    centres = torch.quasirandom.SobolEngine(3, scramble=True, seed=seed).draw(n) * 0.8 + 0.1
    return torch.cat([centres, torch.full((n, 3), 0.2)], dim=1)


@torch.no_grad()
def start_from(reference: nn.Parameter, boxes: Tensor) -> None:
    """Set learned reference boxes (N, 6) to the normalised centre boxes (M, 6): number ``i`` to box ``i % M``."""
    index = torch.arange(len(reference)) % len(boxes)
    reference.copy_(inverse_sigmoid(boxes)[index])
