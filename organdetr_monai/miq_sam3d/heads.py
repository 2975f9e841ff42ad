"""What a query says of its instance: whether it is one, its box, its mask, and how good the mask is."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from organdetr_monai.miq_sam3d.queries import EPS, squared_distance
from organdetr_monai.networks.attention import MLP


class Evidence(NamedTuple):
    """What the voxels say, in the cells of the fine map."""

    #: (B, X, Y, Z), the logit of belonging to a lesion, of whatever kind.
    lesion: Tensor
    #: (B, C, X, Y, Z), the probability of belonging to one of each kind.
    kinds: Tensor
    #: (B, C), how much the prompt is of each kind.
    wanted: Tensor


class InstanceHeads(nn.Module):
    """Mask, objectness, quality and box of every query.

    The logit of a mask at a place is the sum of three: the voxels' own logit of belonging to a lesion; the product of
    the query's mask embedding with the fine map; and a falloff with the distance from the query's box, without which
    two lesions that look the same could not be told apart. The falloff is ``sharpness * log(2 / (1 + r^2))``, r the
    distance from the centre in half sizes of the box: positive within the ellipsoid that fits the box, negative beyond,
    and with gentle gradients however far away.

    The objectness is the query's own opinion plus the evidence, the logit of how much its mask holds of the prompt's
    kind: one voxel may be taken for another kind, a lesion as a whole less often.

    Parameters
    ----------
    dim, fine_channels : int
        Widths of the queries and of the fine map.
    prior : float
        Objectness at the start: few queries have an instance.
    """

    def __init__(self, dim: int = 96, fine_channels: int = 16, *, prior: float = 0.1) -> None:
        super().__init__()
        self.fine_channels = fine_channels
        self.objectness, self.quality = nn.Linear(dim, 1), nn.Linear(dim, 1)
        self.trust, self.share = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))
        nn.init.constant_(self.objectness.bias, math.log(prior / (1 - prior)))
        self.mask = MLP(dim, dim, fine_channels + 2)
        self.box = MLP(dim, dim, 6)
        weight, bias = self.box[-1].parameters()  # hardly a step at the start: the first boxes are the reference boxes
        nn.init.normal_(weight, std=1e-3)
        nn.init.zeros_(bias)

    def forward(self, query: Tensor, boxes: Tensor, fine: Tensor, evidence: Evidence) -> dict[str, Tensor]:
        """Read the queries.

        Parameters
        ----------
        query : Tensor of shape (B, K, dim)
        boxes : Tensor of shape (B, K, 6)
            Their boxes, normalised centre boxes, passed on.
        fine : Tensor of shape (B, fine_channels, X, Y, Z)
        evidence : Evidence
            In the same cells.

        Returns
        -------
        dict
            ``masks`` (B, K, X, Y, Z), ``objectness`` (B, K), ``quality`` (B, K), logits; ``boxes`` (B, K, 6);
            ``kinds`` (B, K, C), the mean probability of each kind over a mask. float32.
        """
        embedding, offset, sharpness = self.mask(query).split([self.fine_channels, 1, 1], -1)
        texture = (embedding @ fine.flatten(2)).float() / self.fine_channels**0.5  # (B, K, cells)
        texture = (texture + offset.float()).unflatten(2, fine.shape[2:])
        # The mask follows the box and does not pull at it: the box has a loss of its own.
        centre, size = boxes.detach().float().chunk(2, -1)
        distance = squared_distance(fine.shape[2:], centre, (size / 2).clamp(min=1e-3))
        steep = 1 + F.softplus(sharpness.float())[..., None, None]  # (B, K, 1, 1, 1)
        masks = texture + steep * (math.log(2) - torch.log1p(distance)) + self.share * evidence.lesion[:, None]
        held = masks.detach().flatten(2).sigmoid()
        kinds = held @ evidence.kinds.flatten(2).transpose(1, 2) / (held.sum(-1, keepdim=True) + EPS)  # (B, K, C)
        alike = (kinds @ evidence.wanted[:, :, None])[..., 0]  # (B, K)
        return {
            "masks": masks,
            "objectness": self.objectness(query)[..., 0].float() + self.trust * alike.clamp(0.001, 0.999).logit(),
            "quality": self.quality(query)[..., 0].float(),
            "boxes": boxes.float(),
            "kinds": kinds,
        }
