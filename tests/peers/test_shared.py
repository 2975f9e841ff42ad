"""What the peers share: their answer reads like the detector's."""

from __future__ import annotations

import torch

from organdetr_monai.inference import best_queries
from organdetr_monai.peers.shared import counts_of_batch, organ_queries


def test_each_organ_keeps_its_own_box_and_its_sigmoid():
    presence = torch.tensor([[-2.0, 5.0, -500.0]])
    boxes = torch.rand(1, 3, 6) * 0.2 + 0.3
    scores, found = best_queries(organ_queries(presence, boxes), (1, 1, 1))
    assert torch.allclose(scores[:, :2], presence[:, :2].sigmoid())
    centre = (found[..., :3] + found[..., 3:]) / 2
    assert torch.allclose(centre, boxes[..., :3], atol=1e-6), "also where the probability is next to nothing"


def test_counts_are_shared_between_processes_and_never_zero():
    alone = counts_of_batch([4.0, 0.0], None, torch.device("cpu"))
    assert alone[0] == 4 and 0 < alone[1] < 1e-3
    together = counts_of_batch([4.0, 0.0], lambda own: (own + torch.tensor([2.0, 6.0])) / 2, torch.device("cpu"))
    assert [c.item() for c in together] == [3.0, 3.0]
