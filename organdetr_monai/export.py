"""The network as other programs run it: one tensor in, one tensor out, with nothing of this package inside."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from organdetr_monai.errors import InputError
from organdetr_monai.networks.deformable import DeformableAttention
from organdetr_monai.networks.organ_detr import OrganDETR
from organdetr_monai.networks.swin import SwinBlocks

__all__ = ["ExportNetwork", "Scriptable", "join_output", "sample_gather", "split_output"]


def join_output(output: Mapping[str, Tensor]) -> Tensor:
    """``logits`` (B, N, K + 1) and ``boxes`` (B, N, 6) as one tensor (B, K + 1 + 6, N)."""
    return torch.cat([output["logits"], output["boxes"]], dim=-1).transpose(1, 2)


def split_output(pred: Tensor) -> dict[str, Tensor]:
    """Inverse of :func:`join_output`: what :class:`organdetr_monai.networks.OrganDETR` gives.

    Parameters
    ----------
    pred : Tensor of shape (B, K + 1 + 6, N)

    Returns
    -------
    dict
        ``logits`` (B, N, K + 1), index 0 is "no organ"; ``boxes`` (B, N, 6), (cx, cy, cz, w, h, d) in [0, 1] of the
        volume.
    """
    logits, boxes = pred.transpose(1, 2).split([pred.shape[1] - 6, 6], dim=-1)
    return {"logits": logits, "boxes": boxes}


class ExportNetwork(nn.Module):
    """A trained detector with a single output tensor, for ``verify_net_in_out``, ``ckpt_export`` and ONNX.

    The output has shape (B, K + 1 + 6, N), float32, for K organs and N queries, of which a refiner leaves K, channels
    first as MONAI has it:

    ========================  ==============================================================================
    channel                   what
    ========================  ==============================================================================
    0                         logit of "no organ"
    1 .. K                    logit of organ ``organs[k - 1]``; softmax over channels 0 .. K gives scores
    K + 1 .. K + 3            centre of the box, (x, y, z) in array order, in [0, 1] of the volume
    K + 4 .. K + 6            size of the box, likewise
    ========================  ==============================================================================

    In ``metadata.json`` this is ``num_channels`` K + 7 and ``spatial_shape`` [N]. :func:`split_output` takes it apart.

    The network is copied: without its segmentation heads and extra queries, which work in training only, and with a
    sampling that every exporter and runtime takes. ``torch.jit.script`` gets a trace of it, because scripting wants
    Python that is poorer than the network's; the trace takes volumes of any size all the same, for nothing in it
    depends on a size.

    Parameters
    ----------
    network : OrganDETR
    example : (X, Y, Z)
        Size of the volume with which a trace is recorded; any that the network takes.

    Raises
    ------
    InputError
        The backbone is a Swin transformer.
    """

    def __init__(self, network: OrganDETR, *, example: Sequence[int] = (64, 48, 80)) -> None:
        super().__init__()
        if any(isinstance(module, SwinBlocks) for module in network.modules()):
            raise InputError(
                "A Swin transformer cannot be exported: how its windows lie depends on the size of the volume.",
                "Detect with the checkpoint, or train a backbone of convolutions, such as the default.",
            )
        self.network = copy.deepcopy(network)
        self.network.segmentation = self.network.extra_queries = None
        self.example = tuple(example)
        for module in self.network.modules():
            if isinstance(module, DeformableAttention):
                module.sample = sample_gather
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Volume (B, 1, X, Y, Z), intensities in [0, 1], to (B, K + 1 + 6, N)."""
        return join_output(self.network(image))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take the weights of a checkpoint of the network itself: so ``ckpt_export`` fills this wrapper."""
        left = ("segmentation.", "extra_queries.")
        kept = {key: value for key, value in state_dict.items() if not key.startswith(left)}
        return self.network.load_state_dict(kept, strict=strict, assign=assign)

    def example_image(self) -> Tensor:
        """A volume (2, 1, X, Y, Z) to record with, where the weights are. Two images: one could pass for no batch."""
        return torch.rand(2, 1, *self.example, device=next(self.parameters()).device)

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` takes in place of this module."""
        with torch.no_grad():
            # Checked by comparing with eager on other sizes (tests), which is more than running the same image again.
            return Scriptable(torch.jit.trace(self, self.example_image(), check_trace=False))


class Scriptable(nn.Module):
    """A trace in a module that can be scripted."""

    def __init__(self, trace: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.trace = trace

    def forward(self, image: Tensor) -> Tensor:
        return self.trace(image)


def sample_gather(value: Tensor, shapes: Sequence[Sequence[int]], points: Tensor, weights: Tensor) -> Tensor:
    """:func:`organdetr_monai.networks.sampling.sample` with nothing but arithmetic and a look-up of rows.

    Volumetric ``grid_sample`` would be shorter, but TensorRT and others refuse it in five dimensions; and
    ``embedding_bag`` becomes a loop in ONNX.
    """
    batch, length, heads, channels = value.shape
    one = torch.ones((), dtype=torch.int64, device=value.device)  # times a size: a tensor, also where sizes are symbols
    size = torch.stack([torch.stack([one * n for n in shape]) for shape in shapes])  # (levels, 3)
    count = size.prod(-1)
    start = count.cumsum(0) - count
    at = points.float() * size[:, None] - 0.5  # in voxel indices
    low = at.floor()
    ends = torch.stack([low, low + 1], -1)  # (B, Q, heads, levels, P, 3, 2)
    # Clamped in float: a point far away must not overflow the index.
    near = ends.clamp(min=0).minimum((size - 1)[:, None, :, None].float())
    share = torch.stack([1 - (at - low), at - low], -1) * (near == ends)
    x, y, z = near.long().unbind(-2)
    ny, nz = size[:, 1].view(-1, 1, 1, 1, 1), size[:, 2].view(-1, 1, 1, 1, 1)
    row = (x[..., :, None, None] * ny + y[..., None, :, None]) * nz + z[..., None, None, :] + start.view(-1, 1, 1, 1, 1)
    image = torch.arange(batch, device=value.device).view(-1, 1, 1, 1) * length
    head = torch.arange(heads, device=value.device).view(-1, 1)
    row = (row.flatten(3) + image) * heads + head  # (B, Q, heads, levels * P * 8), of value as (B * S * heads, C)
    x, y, z = share.unbind(-2)
    share = x[..., :, None, None] * y[..., None, :, None] * z[..., None, None, :] * weights[..., None, None, None]
    found = F.embedding(row, value.reshape(-1, channels))  # (B, Q, heads, levels * P * 8, C)
    return (share.flatten(3).to(value.dtype)[..., None, :] @ found).flatten(2)
