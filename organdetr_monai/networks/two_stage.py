"""Two-stage query selection: the image says where the queries start.

Every token of the encoder's maps is scored, and the boxes of the best ones are the queries' reference boxes (two-stage
Deformable DETR, Zhu et al. 2021). What the queries ask for stays learned (mixed query selection; DINO, Zhang et al.
2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from organdetr_monai.boxes import inverse_sigmoid
from organdetr_monai.networks.attention import MLP
from organdetr_monai.networks.msa import symbolic


class Proposals(nn.Module):
    """A class and a box for each token, and the best of them by the probability of their likeliest organ.

    A token's box starts at the token's place, with a learned size for each level, and is moved by a box head in logit
    space. The box head runs on the chosen tokens alone.

    Parameters
    ----------
    dim : int
        Width of the maps.
    num_classes : int
        K.
    levels : int
        Number of maps.
    """

    def __init__(self, dim: int, num_classes: int, *, levels: int = 3) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.class_head, self.box_head = nn.Linear(dim, num_classes + 1), MLP(dim, dim, 6)
        weight, bias = self.box_head[-1].parameters()
        nn.init.normal_(weight, std=1e-3)
        nn.init.zeros_(bias)
        sizes = (0.1 * 2.0 ** torch.arange(levels)).clamp(max=0.8)
        self.reference = nn.Parameter(inverse_sigmoid(sizes[:, None].expand(-1, 3)))  # (levels, 3), sizes as logits

    @torch.no_grad()
    def set_reference_boxes(self, boxes: Tensor) -> None:
        """Sizes to start from, by ``boxes`` (M, 6), normalised centre boxes: small on the fine levels, large on the
        coarse ones, at evenly spaced quantiles.
        """
        levels = len(self.reference)
        share = (torch.arange(levels, device=boxes.device) + 0.5) / levels
        self.reference.copy_(inverse_sigmoid(torch.quantile(boxes[:, 3:].float(), share, dim=0)))

    def forward(self, maps: Sequence[Tensor], number: int) -> dict[str, Tensor]:
        """Propose.

        Parameters
        ----------
        maps : sequence of Tensor of shape (B, dim, X, Y, Z)
            Finest first, ``levels`` of them.
        number : int
            N, at most the number of tokens.

        Returns
        -------
        dict
            ``logits`` (B, N, K + 1) and ``boxes`` (B, N, 6), normalised centre boxes, best first: what the decoder
            gives for each of its layers.
        """
        tokens = self.embed(torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1))  # (B, S, dim)
        if not symbolic(tokens) and tokens.shape[1] < number:
            raise ValueError(f"{tokens.shape[1]} tokens cannot propose {number} boxes: lower num_queries")
        logits = self.class_head(tokens).float()
        best = logits.softmax(-1)[..., 1:].amax(-1).topk(number, dim=1).indices[..., None]  # (B, N, 1)
        chosen = tokens.gather(1, best.expand(-1, -1, tokens.shape[-1]))
        starts = torch.cat([_starts(m, size) for m, size in zip(maps, self.reference, strict=True)])  # (S, 6)
        moved = starts[best[..., 0]] + self.box_head(chosen).float()
        return {"logits": logits.gather(1, best.expand(-1, -1, logits.shape[-1])), "boxes": moved.sigmoid()}


def _starts(fmap: Tensor, size: Tensor) -> Tensor:
    """Boxes at the voxels of a map (B, dim, X, Y, Z), of one size (3,) as logits: (X * Y * Z, 6), as logits."""
    axes = [(torch.arange(n, device=fmap.device, dtype=torch.float32) + 0.5) / n for n in fmap.shape[2:]]
    centre = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)  # (X * Y * Z, 3)
    return torch.cat([inverse_sigmoid(centre), size.float().expand_as(centre)], dim=-1)
