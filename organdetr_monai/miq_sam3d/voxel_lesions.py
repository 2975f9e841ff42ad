"""Lesions as the voxels of the whole volume show them, next to what queries see in windows (numpy).

A mask of a query is smooth, and ends with its window; what voxels say is as sharp as the voxels and ends where the
lesion does. Where queries have told apart what is connected, they are right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from organdetr_monai.miq_sam3d.components import TOUCHING
from organdetr_monai.miq_sam3d.merging import Piece

__all__ = ["CLICKED", "CONNECTED", "clicked_lesion", "components"]

#: In the place of the window of a piece: what the whole volume shows of the prompt's kind, and at the click. The latter
#: has a number of its own, because both may be of one lesion, and what bears the same number stays apart.
CONNECTED, CLICKED = -1, -2


def clicked_lesion(
    lesion: np.ndarray,
    likely: np.ndarray,
    click: np.ndarray,
    pieces: Sequence[Piece],
    *,
    mask: float,
    flood: float,
    faint: float,
    reach: int,
) -> Piece | None:
    """The lesion at a click; the click's query is believed where voxels say nothing.

    Who clicks has seen something there. So the voxels need not be sure: what counts is how far around the click they
    say the same as there.

    Parameters
    ----------
    lesion, likely : ndarray of shape (X, Y, Z)
        Probability of a lesion of any kind, and of the prompt's kind. What is rather of another kind is another lesion,
        however close it lies.
    click : ndarray of shape (3,), int
    pieces : sequence of Piece
        What queries found in the click's window, first the clicked one if they found it.
    mask : float
        Where there is no such piece, the least probability next to the click.
    flood : float
        The lesion goes as far as voxels reach this share of the probability at the click, or `mask`, whichever is
        lower.
    faint : float
        Below this probability at the click the lesion is the query's alone.
    reach : int
        Voxels. Where neither a query nor the voxels that touch it see anything, the click may have missed a lesion by
        so much.

    Returns
    -------
    Piece or None
        None: there is nothing.
    """
    query = pieces[0] if pieces and pieces[0].clicked else None
    own = np.where(likely >= 0.5 * lesion, lesion, 0)
    seed = _highest(own, click, 1)
    if query and own[seed] < faint:
        return query
    if not query and own[seed] < mask:
        seed = _highest(own, click, reach)
        if own[seed] < mask:
            return None
    within = own >= min(mask, flood * float(own[seed]))
    for piece in pieces:
        if not piece.clicked and query:  # what a query has told apart from the clicked one's is another lesion
            within[piece.where] &= ~piece.mask
    within[seed] = True
    labels, _ = ndimage.label(within, structure=TOUCHING)
    (where,) = ndimage.find_objects((labels == labels[seed]).astype(np.int8))
    x, y, z = (int(side.start) for side in where)
    found = labels[where] == labels[seed]
    score = max(query.score if query else 0.0, float(own[where][found].mean()))
    return Piece((x, y, z), found, score, 0, CLICKED, clicked=True)


def _highest(values: np.ndarray, click: np.ndarray, reach: int) -> tuple[int, ...]:
    """Index of the highest value not farther from a click than `reach` along each axis."""
    near = tuple(slice(max(int(v) - reach, 0), int(v) + reach + 1) for v in click)
    place = np.unravel_index(int(values[near].argmax()), values[near].shape)
    return tuple(side.start + int(i) for side, i in zip(near, place, strict=True))


def components(
    likely: np.ndarray, pieces: Sequence[Piece], *, mask: float, alone: float, min_voxels: int
) -> list[Piece]:
    """Connected components of the prompt's kind.

    Parameters
    ----------
    likely : ndarray of shape (X, Y, Z)
        Probability of that kind.
    pieces : sequence of Piece
        What queries found: a component scores less than any of them that it meets, so that it adds to their masks what
        they lack, and nothing else.
    mask : float
        Least probability of a voxel.
    alone : float
        Least mean probability of a component that meets no piece.
    min_voxels : int
        Of a component.
    """
    labels, _ = ndimage.label(likely >= mask, structure=TOUCHING)
    seen = np.zeros(labels.shape, dtype=bool)
    for piece in pieces:
        seen[piece.where] |= piece.mask
    found = []
    for number, where in enumerate(ndimage.find_objects(labels), start=1):
        own = labels[where] == number
        score, met = float(likely[where][own].mean()), bool((seen[where] & own).any())
        if own.sum() >= min_voxels and (met or score >= alone):
            x, y, z = (int(side.start) for side in where)
            found.append(Piece((x, y, z), own, score * (1e-3 if met else 1.0), 0, CONNECTED, completes=met))
    return found
