"""The plainest rival: a UNet segments, boxes are taken from its mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import Inferer, SlidingWindowInferer
from monai.networks.nets import UNet
from scipy import ndimage
from torch import Tensor, nn

from organdetr_monai.matching import Targets
from organdetr_monai.peers.shared import Average, counts_of_batch
from organdetr_monai.precision import amp_precision


class SegmentationUNet(UNet):
    """MONAI's ``UNet`` for volumes of any size: they are padded at their far ends to what its strides divide."""

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, in_channels, X, Y, Z) to logits (B, out_channels, X, Y, Z)."""
        size, multiple = x.shape[2:], int(np.prod(self.strides))
        missing = [-n % multiple for n in size]
        if any(missing):
            x = F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))
        return super().forward(x)[..., : size[0], : size[1], : size[2]]


class SegmentationLoss(nn.Module):
    """Cross-entropy and soft Dice of the full-resolution mask, blind to organs that a case does not annotate.

    What :func:`organdetr_monai.segmentation_loss.multiscale_segmentation_loss` says of one map of the mask's own size,
    sooner: a voxel has one class there, so shares of classes need not be multiplied out.

    Parameters
    ----------
    average : callable, optional
        For a batch that several processes share, as :class:`organdetr_monai.losses.DetectionLoss` has it.
    """

    def __init__(self, *, average: Average | None = None) -> None:
        super().__init__()
        self.average = average

    def forward(self, logits: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Cost of a batch.

        Parameters
        ----------
        logits : Tensor of shape (B, K + 1, X, Y, Z)
        targets : sequence of dict
            For each image ``mask`` (X, Y, Z) ids, ``annotated`` (K,) bool and, where the mask speaks of other organs,
            ``segmented`` (K,) bool.

        Returns
        -------
        dict
            ``loss``, scalar, and the same as ``segmentation`` without its gradient.
        """
        mask = torch.stack([t["mask"] for t in targets]).long().flatten(1)  # (B, V)
        segmented = torch.stack([t.get("segmented", t["annotated"]) for t in targets])
        log_p = merge_unannotated(logits.float().flatten(2), segmented).log_softmax(1)  # (B, K + 1, V)
        right = log_p.gather(1, mask[:, None])[:, 0]
        p = log_p.exp()
        zeros = torch.zeros(p.shape[:2], device=p.device)
        voxels = zeros.scatter_add(1, mask, torch.ones_like(right))  # (B, K + 1)
        overlap = zeros.scatter_add(1, mask, right.exp())
        dice = 1 - 2 * overlap / (p.square().sum(2) + voxels).clamp(min=1e-6)
        shown = segmented & (voxels[:, 1:] > 0)
        counts = [float(len(mask)), float(shown.sum())]
        images, organs = counts_of_batch(counts, self.average, logits.device)
        loss = -right.mean(1).sum() / images + (dice[:, 1:] * shown).sum() / organs
        return {"loss": loss, "segmentation": loss.detach()}


def merge_unannotated(logits: Tensor, annotated: Tensor) -> Tensor:
    """Count classes that an image does not annotate as background, which they look like in its mask.

    Parameters
    ----------
    logits : Tensor of shape (B, K + 1, V)
    annotated : Tensor of shape (B, K), bool

    Returns
    -------
    Tensor of shape (B, K + 1, V)
        The logit of background is that of all that count as such; the others of them have minus infinity.
    """
    if annotated.all():
        return logits
    unknown = ~annotated[:, :, None]
    others = logits[:, 1:].masked_fill(~unknown, float("-inf"))
    background = torch.cat([logits[:, :1], others], dim=1).logsumexp(1, keepdim=True)
    return torch.cat([background, logits[:, 1:].masked_fill(unknown, float("-inf"))], dim=1)


class SegmentationInferer(Inferer):
    """Segment volumes of any size and box what is found.

    Probabilities of overlapping windows are averaged with Gaussian weights (MONAI's ``SlidingWindowInferer``). The
    most probable class of each voxel makes the mask. Of each organ the largest component counts, so that nothing stray
    stretches its box, and those of like size, which are pieces of a thin organ. The score is their mean probability. An
    organ without a voxel has no box.

    Parameters
    ----------
    window : (X, Y, Z)
        Voxels that the network sees at once.
    overlap : float
        Share of a window that the next one covers again, in [0, 1).
    window_batch : int
        Windows that pass the network together.
    min_share : float
        A component counts that has at least this share of the largest one's voxels, in (0, 1]; 1 is the largest alone.
    amp_dtype : str, optional
        ``"bfloat16"`` or ``"float16"``: the network runs under autocast; probabilities are float32 all the same.
    """

    def __init__(
        self,
        window: Sequence[int],
        *,
        overlap: float = 0.5,
        window_batch: int = 1,
        min_share: float = 0.5,
        amp_dtype: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must lie in [0, 1), got {overlap}")
        if not 0 < min_share <= 1:
            raise ValueError(f"min_share must lie in (0, 1], got {min_share}")
        self.min_share, self.amp_dtype = min_share, amp_precision(amp_dtype)
        self.slide = SlidingWindowInferer(
            tuple(int(n) for n in window), window_batch, overlap, mode="gaussian", cache_roi_weight_map=True
        )

    @torch.no_grad()
    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> list[dict[str, Tensor]]:
        """Segment each volume of a batch.

        Parameters
        ----------
        inputs : Tensor of shape (B, 1, X, Y, Z)
        network : callable
            Gives logits (B, K + 1, x, y, z) of a window.

        Returns
        -------
        list of dict
            For each volume ``boxes`` (P, 6) corners in its voxels, ``scores`` (P,), ``labels`` (P,) ids, P <= K, on the
            host.
        """
        volume = torch.as_tensor(inputs)
        volume = volume.as_tensor() if hasattr(volume, "as_tensor") else volume

        def probabilities(window: Tensor) -> Tensor:
            with torch.autocast(window.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
                logits = network(window, *args, **kwargs)
            return logits.float().softmax(1)

        found = []
        for image in volume:
            probability = self.slide(image[None], probabilities)[0]
            boxes, scores, labels = boxes_of_probability(probability.cpu().numpy(), min_share=self.min_share)
            found.append(
                {
                    "boxes": torch.from_numpy(boxes).float(),
                    "scores": torch.from_numpy(scores).float(),
                    "labels": torch.from_numpy(labels),
                }
            )
        return found


def boxes_of_probability(
    probability: np.ndarray, *, min_share: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes of the organs in the most probable mask.

    Parameters
    ----------
    probability : ndarray of shape (K + 1, X, Y, Z)
        Channel 0 is background.
    min_share : float
        Components (voxels that touch by a face, edge or corner) count that have at least this share of the largest
        one's voxels.

    Returns
    -------
    boxes : ndarray of shape (P, 6)
        Corners ``[start, stop)`` in voxels.
    scores : ndarray of shape (P,)
        Mean probability of the organ over what counts of it.
    labels : ndarray of shape (P,), int64
        Ids of the organs found, ascending.
    """
    mask = probability.argmax(0)
    boxes, scores, labels = [], [], []
    for organ, where in enumerate(ndimage.find_objects(mask), start=1):
        if where is None:
            continue
        components, _ = ndimage.label(mask[where] == organ, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        kept = (sizes >= min_share * sizes.max())[components]
        (inner,) = ndimage.find_objects(kept.view(np.uint8))
        start = np.array([outer.start for outer in where])
        edges = [[s.start for s in inner], [s.stop for s in inner]]
        boxes.append((start + np.array(edges)).ravel())
        scores.append(probability[organ][where][kept].mean())
        labels.append(organ)
    return np.array(boxes, float).reshape(-1, 6), np.array(scores, float), np.array(labels, np.int64)
