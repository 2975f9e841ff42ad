"""Lesions as the voxels of the whole volume show them, next to what queries see in windows (numpy).

They say whether there is a lesion at a click. A mask of a query is smooth, and ends with its window; what voxels say is
as sharp as the voxels and ends where the lesion does. Where queries have told apart what is connected, they are right.
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
    outline: float,
    flood: float,
    faint: float,
    reach: int,
) -> Piece | None:
    """The lesion at a click.

    Who clicks has seen something there. So the voxels need not be sure: what counts is how far around the click they
    say the same as there. Whether there is anything they tell better than the click's query does, which is trained to
    have an answer.

    Parameters
    ----------
    lesion, likely : ndarray of shape (X, Y, Z)
        Probability of a lesion of any kind, and of the prompt's kinds, each weighted by how likely it is against the
        likeliest. What is rather of another kind is another lesion, however close it lies.
    click : ndarray of shape (3,), int
    pieces : sequence of Piece
        What queries found in the click's window, first the clicked one if they found it.
    outline : float
        Probability up to which a lesion goes.
    flood : float
        Where voxels are not sure, it goes up to this share of the highest probability around the click instead, and
        never below `faint`.
    faint : float
        If no voxel around the click reaches this probability there is nothing.
    reach : int
        How far around is, in voxels along each axis; what touches the click goes before what is farther away.

    Returns
    -------
    Piece or None
        None: there is nothing.
    """
    own = np.where(likely >= 0.5 * lesion, lesion, 0)
    query = pieces[0] if pieces and pieces[0].clicked else None
    for piece in pieces:
        if query and not piece.clicked:  # what a query has told apart from the clicked one's is another lesion
            own[piece.where] = np.where(piece.mask, 0, own[piece.where])
    seed = _highest(own, click, min(reach, 1))  # farther away it may be a neighbour, and a surer one
    if own[seed] < faint:
        seed = _highest(own, click, reach)
    if own[seed] < faint:
        return None
    within = own >= max(faint, min(outline, flood * float(own[seed])))
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
    likely: np.ndarray, pieces: Sequence[Piece], *, outline: float, alone: float, min_voxels: int
) -> list[Piece]:
    """Connected components of the prompt's kind.

    Parameters
    ----------
    likely : ndarray of shape (X, Y, Z)
        Probability of that kind.
    pieces : sequence of Piece
        What queries found: a component scores less than any of them that it meets, so that it adds to their masks what
        they lack, and nothing else.
    outline : float
        Least probability of a voxel.
    alone : float
        Least mean probability of a component that meets no piece.
    min_voxels : int
        Of a component.
    """
    labels, _ = ndimage.label(likely >= outline, structure=TOUCHING)
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
