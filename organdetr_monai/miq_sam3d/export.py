"""The click network as other programs run it: one tensor in, one tensor out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from organdetr_monai.export import Scriptable, sample_gather
from organdetr_monai.miq_sam3d.network import MIQSAM3D
from organdetr_monai.networks.deformable import DeformableAttention

__all__ = ["ExportClickNetwork"]


class ExportClickNetwork(nn.Module):
    """A trained network with a single input and output tensor, for ``verify_net_in_out`` and ``ckpt_export``.

    In goes one window with one click: (B, 2, X, Y, Z), the image in [0, 1] and a channel that is above 0 at the click
    alone. Out come (B, K, ⌈X/2⌉, ⌈Y/2⌉, ⌈Z/2⌉), float32: of each query its mask's probability times its score,
    objectness times quality. Query 0 is the clicked instance's. Other windows, and what makes instances of queries, are
    in :class:`organdetr_monai.miq_sam3d.inference.ClickInferer`.

    Parameters
    ----------
    network : MIQSAM3D
        Is copied.
    example : (X, Y, Z)
        Size of the windows; a trace is recorded with it.
    """

    def __init__(self, network: MIQSAM3D, *, example: Sequence[int] = (64, 64, 64)) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.example = tuple(example)
        for module in self.network.modules():
            if isinstance(module, DeformableAttention):
                module.sample = sample_gather
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Window and click (B, 2, X, Y, Z) to (B, K, ⌈X/2⌉, ⌈Y/2⌉, ⌈Z/2⌉)."""
        marks = image[:, 1].clamp(0, 1)
        share = marks / marks.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
        place = []
        for axis in (1, 2, 3):
            size = image.shape[axis + 1]
            centers = (torch.arange(size, device=image.device, dtype=image.dtype) + 0.5) / size
            place.append((share.sum(dim=[a for a in (1, 2, 3) if a != axis]) * centers).sum(dim=1))
        output = self.network(image[:, :1], torch.stack(place, dim=1))
        score = output["objectness"].sigmoid() * output["quality"].sigmoid()
        return output["masks"].sigmoid() * score[:, :, None, None, None]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take the weights of a checkpoint of the network itself: so ``ckpt_export`` fills this wrapper."""
        return self.network.load_state_dict(state_dict, strict=strict, assign=assign)

    def example_image(self) -> Tensor:
        """Two windows with a click in the middle, to record with, where the weights are."""
        image = torch.rand(2, 2, *self.example, device=next(self.parameters()).device)
        image[:, 1] = 0
        x, y, z = (n // 2 for n in self.example)
        image[:, 1, x, y, z] = 1
        return image

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` takes in place of this module: a trace of it."""
        with torch.no_grad():
            return Scriptable(torch.jit.trace(self, self.example_image(), check_trace=False))
