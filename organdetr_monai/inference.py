"""Volume in, one box for each organ out: overlapping windows, the best query of each organ, pieces joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.utils import dense_patch_slices
from monai.inferers import Inferer
from torch import Tensor

from organdetr_monai.boxes import denormalise
from organdetr_monai.precision import amp_precision


def best_queries(output: dict[str, Tensor], window: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Best query of each organ, over all queries: an organ is found even where no query calls it its first choice.

    Parameters
    ----------
    output : dict
        ``logits`` (B, N, K + 1) and ``boxes`` (B, N, 6), normalised centre boxes.
    window : (X, Y, Z)

    Returns
    -------
    scores : Tensor of shape (B, K)
        Softmax probability of the organ.
    boxes : Tensor of shape (B, K, 6)
        Corners in voxels of the window.
    """
    scores, query = output["logits"].float().softmax(-1)[..., 1:].max(dim=1)  # (B, K)
    boxes = denormalise(output["boxes"], tuple(window))
    return scores, boxes.gather(1, query[..., None].expand(-1, -1, 6))


def merge_windows(
    scores: np.ndarray,
    boxes: np.ndarray,
    starts: np.ndarray,
    window: Sequence[int],
    shape: Sequence[int],
    *,
    margin: float = 1.5,
    piece_score: float = 0.5,
) -> tuple[float, np.ndarray]:
    """One box of one organ from its candidates in overlapping windows.

    A box that reaches a face of its window inside the volume is a piece: the window, not the organ, ends there. A whole
    organ is preferred to a piece. Where only pieces are to be had (an organ longer than the window), the best is
    extended over each cut face by the candidates that go on there.

    Parameters
    ----------
    scores : ndarray of shape (W,)
    boxes : ndarray of shape (W, 6)
        Corners in voxels of the volume.
    starts : ndarray of shape (W, 3)
        First voxel of each window.
    window, shape : (X, Y, Z)
        Size of the windows and of the volume.
    margin : float
        Voxels within which a box reaches a face.
    piece_score : float
        A candidate goes on with the best one if it scores at least this share of the best score.

    Returns
    -------
    score : float
    box : ndarray of shape (6,)
        Corners in voxels, clipped to the volume.
    """
    start, stop, size = starts.astype(float), starts + np.asarray(window, float), np.asarray(shape, float)
    cut_low = (boxes[:, :3] <= start + margin) & (start > 0)
    cut_high = (boxes[:, 3:] >= stop - margin) & (stop < size)
    cut = np.concatenate([cut_low, cut_high], axis=1)  # (W, 6)
    # Scores lie in [0, 1]: halving a piece lets a whole organ win unless the network doubts it.
    best = int(np.argmax(scores * np.where(cut.any(axis=1), 0.5, 1.0)))
    box, open_faces = boxes[best].copy(), cut[best].copy()
    candidates = scores >= piece_score * scores[best]
    used = np.zeros(len(scores), dtype=bool)
    used[best] = True
    while open_faces.any():
        overlaps = (np.minimum(boxes[:, 3:], box[3:]) > np.maximum(boxes[:, :3], box[:3])).all(axis=1)
        beyond = np.concatenate([boxes[:, :3] < box[:3], boxes[:, 3:] > box[3:]], axis=1) & open_faces
        usable = candidates & ~used & overlaps & beyond.any(axis=1)
        if not usable.any():
            break
        piece = int(np.argmax(np.where(usable, scores, -1.0)))
        used[piece] = True
        wider = np.concatenate([np.minimum(box[:3], boxes[piece, :3]), np.maximum(box[3:], boxes[piece, 3:])])
        box = np.where(open_faces, wider, box)
        # A face that the piece moved is open if the piece is cut there too.
        open_faces = np.where(beyond[piece], cut[piece], open_faces)
    limit = np.concatenate([size, size])
    return float(scores[best]), np.clip(box, 0, limit)


class DetectionInferer(Inferer):
    """Detect in volumes of any size with a network of a fixed window.

    Parameters
    ----------
    window : (X, Y, Z)
        Voxels that the network sees at once; smaller volumes are padded at their far ends.
    overlap : float
        Share of a window that the next one covers again, in [0, 1).
    window_batch : int
        Windows that pass the network together.
    amp_dtype : str, optional
        ``"bfloat16"`` or ``"float16"``: the network runs under autocast; scores and boxes are float32 all the same.
    """

    def __init__(
        self, window: Sequence[int], *, overlap: float = 0.5, window_batch: int = 1, amp_dtype: str | None = None
    ) -> None:
        super().__init__()
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must lie in [0, 1), got {overlap}")
        self.window = tuple(int(n) for n in window)
        self.overlap, self.window_batch, self.amp_dtype = overlap, window_batch, amp_precision(amp_dtype)

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> list[dict[str, Tensor]]:
        """Detect in each volume of a batch.

        Parameters
        ----------
        inputs : Tensor of shape (B, 1, X, Y, Z)
        network : callable
            Gives ``logits`` and ``boxes`` as :class:`organdetr_monai.networks.OrganDETR`.

        Returns
        -------
        list of dict
            For each volume ``boxes`` (K, 6) corners in its voxels, ``scores`` (K,), ``labels`` (K,) = 1..K, on the
            host: the best box of every organ, whatever its score.
        """
        volume = torch.as_tensor(inputs)
        volume = volume.as_tensor() if hasattr(volume, "as_tensor") else volume
        shape = tuple(volume.shape[2:])
        missing = [max(w - s, 0) for w, s in zip(self.window, shape, strict=True)]
        if any(missing):
            volume = F.pad(volume, (0, missing[2], 0, missing[1], 0, missing[0]))
        step = [max(int(w * (1 - self.overlap)), 1) for w in self.window]
        slices = dense_patch_slices(volume.shape[2:], self.window, step, return_slice=True)
        per_image = []
        for image in volume:
            scores, boxes = [], []
            for first in range(0, len(slices), self.window_batch):
                batch = torch.stack([image[(slice(None), *s)] for s in slices[first : first + self.window_batch]])
                with torch.autocast(batch.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
                    output = network(batch, *args, **kwargs)
                s, b = best_queries(output, self.window)
                scores.append(s)
                boxes.append(b)
            per_image.append((torch.cat(scores), torch.cat(boxes)))
        starts = np.array([[s.start for s in where] for where in slices])  # (W, 3)
        return [self._merge(s.cpu().numpy(), b.cpu().numpy(), starts, shape) for s, b in per_image]

    def _merge(self, scores: np.ndarray, boxes: np.ndarray, starts: np.ndarray, shape: Sequence[int]) -> dict:
        boxes = boxes + np.concatenate([starts, starts], axis=1)[:, None]  # (W, K, 6), voxels of the volume
        # Not shape of the padded volume: what lies in the padding is outside.
        merged = [merge_windows(scores[:, k], boxes[:, k], starts, self.window, shape) for k in range(scores.shape[1])]
        return {
            "boxes": torch.from_numpy(np.stack([box for _, box in merged])).float(),
            "scores": torch.tensor([score for score, _ in merged]),
            "labels": torch.arange(1, scores.shape[1] + 1),
        }


def detection_step(engine: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """``iteration_update`` of a MONAI evaluator that detects: ``pred``, a prediction for each image.

    A case that could not be read (:class:`organdetr_monai.data.frames.TolerantDataset`) has none.
    """
    if "error" in batch:
        return {"pred": []}
    image = batch["image"].to(engine.state.device, non_blocking=engine.non_blocking)
    with engine.mode(engine.network):
        return {"pred": engine.inferer(image, engine.network)}
