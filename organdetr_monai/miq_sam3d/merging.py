"""One lesion seen through several windows, and by several clicks, becomes one instance again (numpy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Piece", "group", "paint"]


@dataclass(frozen=True, eq=False)
class Piece:
    """What one query made of one window, or the voxels of the volume.

    Attributes
    ----------
    start : tuple of 3 int
        First voxel of `mask` in the volume.
    mask : ndarray of bool
        As large as the piece.
    score : float
    prompt : int
        Which click's prompt found it.
    window : int
        In which window; below 0: see `organdetr_monai.miq_sam3d.voxel_lesions`.
    clicked : bool
        Whether it is what that click lies on.
    completes : bool
        Whether it only adds to other pieces of a lesion, and is none by itself.
    """

    start: tuple[int, int, int]
    mask: np.ndarray
    score: float
    prompt: int
    window: int
    clicked: bool = False
    completes: bool = False

    @property
    def where(self) -> tuple[slice, slice, slice]:
        """Its place in the volume."""
        x, y, z = (slice(a, a + n) for a, n in zip(self.start, self.mask.shape, strict=True))
        return x, y, z


def group(pieces: Sequence[Piece], *, share: float) -> list[list[int]]:
    """Which pieces are of one lesion.

    Two are if they share more than `share` of the smaller one, directly or by way of others; those that share most
    find each other first. What one window has told apart by one prompt stays apart, so that a piece in which two
    lesions run into each other does not make one of them.

    Parameters
    ----------
    pieces : sequence of Piece
    share : float

    Returns
    -------
    list of list of int
        Indices of pieces, every piece in one group; groups in the order of their first pieces.
    """
    if not pieces:
        return []
    sizes = [int(piece.mask.sum()) for piece in pieces]
    low = np.array([piece.start for piece in pieces])
    high = low + [piece.mask.shape for piece in pieces]
    pairs = []
    for i in range(len(pieces)):
        near = (np.maximum(low[i], low[i + 1 :]) < np.minimum(high[i], high[i + 1 :])).all(axis=1)
        for j in (i + 1 + np.flatnonzero(near)).tolist():
            common = _common(pieces[i], pieces[j]) / min(sizes[i], sizes[j])
            if common > share:
                pairs.append((common, i, j))
    members = {i: [i] for i in range(len(pieces))}
    views = {i: {(piece.prompt, piece.window)} for i, piece in enumerate(pieces)}
    owner = list(range(len(pieces)))
    for _, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        a, b = sorted((owner[i], owner[j]))
        if a == b or not views[a].isdisjoint(views[b]):
            continue
        for k in members[b]:
            owner[k] = a
        members[a] += members.pop(b)
        views[a] |= views.pop(b)
    return [sorted(members[i]) for i in sorted(members)]


def _common(a: Piece, b: Piece) -> int:
    """Voxels of both."""
    low = np.maximum(a.start, b.start)
    high = np.minimum(np.add(a.start, a.mask.shape), np.add(b.start, b.mask.shape))
    cuts = [
        tuple(slice(int(p), int(q)) for p, q in zip(low - piece.start, high - piece.start, strict=True))
        for piece in (a, b)
    ]
    return int((a.mask[cuts[0]] & b.mask[cuts[1]]).sum())


def paint(groups: Sequence[Sequence[Piece]], shape: Sequence[int]) -> np.ndarray:
    """Label map of groups of pieces, (X, Y, Z) int32: group ``g`` has id ``g + 1``.

    A voxel that several groups claim goes to the piece of the highest score, of equal ones to the first.
    """
    labels = np.zeros(tuple(shape), dtype=np.int32)
    best = np.zeros(tuple(shape), dtype=np.float32)
    for number, members in enumerate(groups, start=1):
        for piece in members:
            won = piece.mask & (piece.score > best[piece.where])
            labels[piece.where][won] = number
            best[piece.where][won] = piece.score
    return labels
