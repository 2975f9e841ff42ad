"""What MIQ-SAM3D is compared with, trained on the same samples for the same time.

- :class:`SemanticBaseline`: a U-Net tells the kinds of lesions apart, connected components are the instances. It is
  told which kind is asked for, and needs no click; or, as a user would have it, it reads the kind at the click.
- :class:`SingleObjectBaseline`: one click, one mask. The same U-Net sees the click as a second channel and segments the
  lesion that was clicked, alone: the paradigm of promptable segmentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import Tensor, nn

from organdetr_monai.miq_sam3d.components import MIN_VOLUME, label_components
from organdetr_monai.miq_sam3d.robustness import Answer

CLICK_VOXELS = 2.0  # standard deviation of the Gaussian that marks a click
REACH = 2  # voxels along each axis by which a click may miss a lesion, as for MIQ-SAM3D


def small_unet(in_channels: int, out_channels: int, channels: Sequence[int] = (16, 32, 64, 128)) -> nn.Module:
    """MONAI's U-Net; each stage after the first halves the resolution.

    The U-Net gives ``channels[0]`` features and a convolution of its own the logits: MONAI's normalises all that its
    last stage gives, and one normalised channel cannot say that most of a window is background.
    """
    features = UNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=channels[0],
        channels=channels,
        strides=(2,) * (len(channels) - 1),
        num_res_units=1,
        norm="INSTANCE",
    )
    head = nn.Conv3d(channels[0], out_channels, kernel_size=1)
    # As MIQ-SAM3D's encoder: on CPUs a step takes less time so.
    whole = nn.Sequential(features, head)
    return whole.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing in torch's stubs


class SemanticBaseline(nn.Module):
    """Segmentation into kinds, then connected components: those of the kind that is meant.

    Parameters
    ----------
    kinds : int
        How many there are.
    window : (X, Y, Z)
        Voxels that the network sees at once.
    channels : sequence of int
        Of the stages of `small_unet`.
    told : bool
        Whether it is told the kind, which no user's click does; the click itself then changes nothing. Else the kind is
        that of most lesion voxels up to `REACH` around the click, and without any of those there is no answer.
    """

    def __init__(
        self,
        kinds: int,
        window: Sequence[int] = (64, 64, 64),
        *,
        channels: Sequence[int] = (16, 32, 64, 128),
        told: bool = True,
    ) -> None:
        super().__init__()
        self.told = told
        self.network, self.window, self.kinds = small_unet(1, kinds + 1, channels), tuple(window), kinds
        self.cost = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits (B, kinds + 1, X, Y, Z) for a batch of `organdetr_monai.miq_sam3d.training.collate`."""
        return self.network(batch["image"])

    def loss(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Dice and cross entropy of the kinds."""
        tables = [torch.cat([torch.zeros(1, dtype=torch.int64), kinds]) for kinds in batch["kinds"]]
        truth = torch.stack([table[ids] for table, ids in zip(tables, batch["instances"], strict=True)])  # (B, 1, ...)
        return self.cost(logits.float(), truth)

    @torch.inference_mode()
    def open(self, image: Tensor, spacing: Sequence[float]) -> Answer:
        """Segment an image (1, X, Y, Z) once; every answer is the components of the kind asked for.

        Parameters
        ----------
        image : Tensor of shape (1, X, Y, Z)
        spacing : sequence of 3 floats
            mm per voxel; components below `MIN_VOLUME` are dropped, as from the truth.
        """
        self.eval()
        logits = sliding_window_inference(image[None], self.window, 4, self.network, overlap=0.5)
        mask = logits[0].argmax(0).numpy()  # (X, Y, Z)
        volume = float(np.prod(spacing))
        found = {
            kind: label_components(mask, {kind: kind}, voxel_volume=volume, min_volume=MIN_VOLUME)[0]
            for kind in range(1, self.kinds + 1)
        }
        found[0] = np.zeros_like(found[1])

        def answer(click: np.ndarray, kind: int) -> np.ndarray:
            if self.told:
                return found[kind]
            near = mask[tuple(slice(max(int(v) - REACH, 0), int(v) + REACH + 1) for v in click)]
            count = np.bincount(near.reshape(-1), minlength=self.kinds + 1)[1:]
            return found[int(count.argmax()) + 1 if count.any() else 0]

        return answer


class SingleObjectBaseline(nn.Module):
    """One click, one mask, in a window around the click.

    Parameters
    ----------
    window : (X, Y, Z)
        Voxels; what goes on beyond the window is not found.
    channels : sequence of int
        Of the stages of `small_unet`.
    """

    def __init__(self, window: Sequence[int] = (64, 64, 64), *, channels: Sequence[int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        self.network, self.window = small_unet(2, 1, channels), tuple(window)
        self.cost = DiceCELoss(sigmoid=True, batch=True)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits (B, 1, X, Y, Z) for a batch of `organdetr_monai.miq_sam3d.training.collate` without remote clicks."""
        size = torch.tensor(self.window)
        marks = torch.stack([click_channel(click * size - 0.5, self.window) for click in batch["click"]])
        return self.network(torch.cat([batch["image"], marks], dim=1))

    def loss(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Dice and cross entropy of the clicked lesion, nothing for a click on background."""
        wanted = batch["clicked"].view(-1, 1, 1, 1, 1)
        truth = ((batch["instances"] == wanted) & (wanted > 0)).float()  # (B, 1, X, Y, Z)
        return self.cost(logits.float(), truth)

    def open(self, image: Tensor, spacing: Sequence[float]) -> Answer:
        """Answers about an image (1, X, Y, Z), each from the window around its click."""
        self.eval()
        return lambda click, kind: self._answer(image, click)

    @torch.inference_mode()
    def _answer(self, image: Tensor, click: np.ndarray) -> np.ndarray:
        """Ids (X, Y, Z): 1 where the clicked lesion is."""
        shape, window = np.array(image.shape[1:]), np.array(self.window)
        start = np.clip(click - window // 2, 0, np.maximum(shape - window, 0))
        x, y, z = (slice(int(a), int(a + n)) for a, n in zip(start, window, strict=True))
        view = torch.zeros(1, *self.window)
        inside = image[:, x, y, z]
        view[:, : inside.shape[1], : inside.shape[2], : inside.shape[3]] = inside
        mark = click_channel(torch.as_tensor(click - start, dtype=torch.float32), self.window)
        mask = self.network(torch.cat([view, mark])[None])[0, 0] > 0
        found = torch.zeros(image.shape[1:], dtype=torch.int32)
        found[x, y, z] = mask[: inside.shape[1], : inside.shape[2], : inside.shape[3]].int()
        return found.numpy()


def click_channel(voxel: Tensor, window: Sequence[int]) -> Tensor:
    """A Gaussian of height 1 about a voxel (3,) of a window: (1, X, Y, Z)."""
    x, y, z = (
        torch.exp(-0.5 * ((torch.arange(n) - at) / CLICK_VOXELS) ** 2) for n, at in zip(window, voxel, strict=True)
    )
    return (x[:, None, None] * y[None, :, None] * z[None, None, :])[None]
