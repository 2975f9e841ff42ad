"""Which query answers for which instance: the clicked one is the first query's, the others go where they cost least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from organdetr_monai.assignment import balanced_assignment
from organdetr_monai.boxes import centre_to_corners, iou_giou
from organdetr_monai.matching import HungarianMatcher, Matches
from organdetr_monai.miq_sam3d.targets import Targets

COSTS = {"objectness": 2.0, "cross_entropy": 2.0, "dice": 5.0, "l1": 5.0, "giou": 2.0}


class InstanceMatcher(nn.Module):
    """Optimal assignment of queries to the wanted instances, of masks and boxes.

    Where the click lies in the image, the clicked instance is query 0's and no other's. Of more instances than queries
    those are left out that cost most.

    Parameters
    ----------
    weights : mapping, optional
        Of the costs ``objectness`` (minus its probability), ``cross_entropy`` (over the instance's own cells),
        ``dice``, ``l1`` and ``giou`` (of boxes); others keep their defaults.
    auxiliary : HungarianMatcher, optional
        Says how many queries an instance gets in the earlier layers, e.g.
        :class:`organdetr_monai.matching.DenseQueryMatcher`; one by default. In the last layer it is always one: that is
        what makes the queries compete.
    """

    def __init__(
        self, *, weights: Mapping[str, float] | None = None, auxiliary: HungarianMatcher | None = None
    ) -> None:
        super().__init__()
        unknown = set(weights or {}) - set(COSTS)
        if unknown:
            raise ValueError(f"unknown costs {sorted(unknown)}; the costs are {sorted(COSTS)}")
        self.weights, self.auxiliary = {**COSTS, **(weights or {})}, auxiliary

    @torch.no_grad()
    def cost(self, output: Mapping[str, Tensor], shares: Tensor, boxes: Tensor) -> Tensor:
        """Pair costs (B, K, M).

        Parameters
        ----------
        output : mapping
            ``masks`` (B, K, X, Y, Z), ``objectness`` (B, K), ``boxes`` (B, K, 6).
        shares : Tensor of shape (B, M, X, Y, Z)
        boxes : Tensor of shape (B, M, 6)
        """
        logits, truth = output["masks"].float().flatten(2), shares.flatten(2).transpose(1, 2)  # (B, cells, M)
        p = logits.sigmoid()
        total = truth.sum(1, keepdim=True)  # (B, 1, M)
        squares = p.square().sum(-1, keepdim=True) + truth.square().sum(1, keepdim=True)
        giou = iou_giou(centre_to_corners(output["boxes"].float())[:, :, None], centre_to_corners(boxes)[:, None])[1]
        costs = {
            "objectness": -output["objectness"].float().sigmoid()[..., None],
            "cross_entropy": F.softplus(-logits) @ truth / total.clamp(min=1e-6),
            "dice": 1 - (2 * p @ truth + 1) / (squares + 1),
            "l1": torch.cdist(output["boxes"].float(), boxes, p=1),
            "giou": -giou,
        }
        return sum((self.weights[name] * cost for name, cost in costs.items()), start=torch.zeros_like(giou))

    def forward(self, layers: Sequence[Mapping[str, Tensor]], targets: Targets, shares: Tensor) -> list[Matches]:
        """Match the queries of every decoder layer.

        Parameters
        ----------
        layers : sequence of mapping
            The last layer first, as the network gives them.
        targets : Targets
        shares : Tensor of shape (B, M, X, Y, Z)
            Of the instances in the cells of the masks.

        Returns
        -------
        list of Matches
            One for each layer: image, query and instance of every pair.

        Raises
        ------
        ValueError
            A cost that is not finite: the network has diverged.
        """
        device = targets.labels.device
        if not any(targets.counts):
            none = torch.zeros(0, dtype=torch.int64, device=device)
            return [Matches(none, none, none) for _ in layers]
        costs = torch.stack([self.cost(o, shares, targets.boxes) for o in layers]).cpu().numpy()  # (layers, B, K, M)
        if not np.isfinite(costs).all():
            raise ValueError("matching cost is not finite: the network's output has diverged; lower the learning rate")
        found = []
        for number, layer in enumerate(costs):
            rows = [np.zeros((3, 0), dtype=np.int64)]
            for image, (cost, count, clicked) in enumerate(zip(layer, targets.counts, targets.clicked, strict=True)):
                query, instance = self.assign(cost[:, :count], clicked, last=number == 0)
                rows.append(np.stack([np.full_like(query, image), query, instance]))
            found.append(np.concatenate(rows, axis=1))
        flat = torch.from_numpy(np.concatenate(found, axis=1)).to(device, non_blocking=True)
        return [Matches(*part) for part in flat.split([f.shape[1] for f in found], dim=1)]

    def assign(self, cost: np.ndarray, clicked: int, *, last: bool) -> tuple[np.ndarray, np.ndarray]:
        """Cost (K, M) of one image, and its clicked instance or -1, to matched query and instance, int64 arrays."""
        queries, instances = np.arange(cost.shape[0]), np.arange(cost.shape[1])
        fixed = np.zeros((2, 0), dtype=np.int64)
        if clicked >= 0:
            fixed = np.array([[0], [clicked]])
            queries, instances = queries[1:], instances[instances != clicked]
        if not len(queries) or not len(instances):
            return fixed[0], fixed[1]
        rest = np.ascontiguousarray(cost[np.ix_(queries, instances)].T, dtype=np.float64)  # (instances, queries)
        if len(instances) > len(queries):
            instance, query = balanced_assignment(np.ascontiguousarray(rest.T), 1)
        else:
            each = 1 if last or self.auxiliary is None else self.auxiliary.positives(len(queries), len(instances))
            query, instance = balanced_assignment(rest, each)
        return np.concatenate([fixed[0], queries[query]]), np.concatenate([fixed[1], instances[instance]])
