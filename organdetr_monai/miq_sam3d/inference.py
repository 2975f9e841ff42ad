"""Volume and clicks in, every lesion of the clicked kinds out: a pure function, whose only memory is a cache.

A click is looked at in the window in which it lies most central, and of what all windows say of the voxels around it
the network makes a prompt, the exemplar. With this it looks through all windows that hold tissue, and closer where
something in them is alike: queries find lesions there. The voxels of the whole volume say whether there is a lesion at
the click and how far it goes; they complete the queries' masks, and add what no query has found. The windows are the
same for every click, so that their encodings can be kept: a second click runs prompt and decoder alone.

Several clicks are answered one by one and merged (:func:`organdetr_monai.miq_sam3d.merging.group`), not averaged into
one prompt: clicks of one kind find the same lesions, and of different kinds each its own.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor

from organdetr_monai.errors import InputError
from organdetr_monai.miq_sam3d.instances import disjoint
from organdetr_monai.miq_sam3d.merging import Piece, group, paint
from organdetr_monai.miq_sam3d.voxel_lesions import CLICKED, clicked_lesion, components
from organdetr_monai.miq_sam3d.windows import Encodings

__all__ = ["ClickInferer", "Found"]


@dataclass(frozen=True, eq=False)
class Found:
    """Lesions of one volume.

    Attributes
    ----------
    labels : ndarray of shape (X, Y, Z), int32
        Ids on the grid of the volume, 0 where there is none: first the lesion of the first click, then those of the
        others, then the rest by score.
    scores : tuple of float
        Of lesion ``i + 1``, in [0, 1].
    kinds : tuple of int
        Of lesion ``i + 1``, from 1 up in the order of the clicks. Clicks are of one kind if what one of them finds
        holds the lesion of the other.
    """

    labels: np.ndarray
    scores: tuple[float, ...]
    kinds: tuple[int, ...]


class ClickInferer(Inferer):
    """Answer clicks in volumes of any size with a network of a fixed window.

    Parameters
    ----------
    window : (x, y, z)
        Voxels that the network sees at once.
    overlap : float
        Share of a window that the next one covers again; more than `merge`, or a lesion longer than a window would
        fall apart.
    score : float
        Least objectness of a lesion.
    clicked_score : float
        Least objectness of the one that is clicked: who clicks has seen something there. Where the network speaks of
        voxels, they decide; the query then tells the lesion from its neighbours.
    mask : float
        From this probability up a voxel belongs to a query's mask.
    keep : float
        A query must keep this share of its mask in competition with the others, else it is dropped.
    merge : float
        Two pieces from different windows are one lesion if they share more than this of the smaller one.
    alike : float
        Windows in which no voxel of the volume reaches this probability of the prompt's kind are passed over. Here as
        below it is the sum over kinds, each weighted by how likely the prompt is of it against the likeliest.
    alone : float
        Least mean probability of a connected component of the prompt's kind that no query has found.
    outline : float
        Voxels of that probability are in a component. Lower than `mask`: a small lesion is nowhere sure, and one whose
        mean is `alone` with its faint border in it is sure in its middle.
    min_voxels : int
        Voxels of the least such component. What is seen of a small lesion is smaller than the lesion.
    flood : float
        The clicked lesion goes as far as voxels reach this share of the probability, of a lesion of any kind, that they
        have around the click, or `outline`, whichever is lower.
    faint : float
        If no voxel around the click that is rather of the prompt's kind reaches this probability of a lesion there is
        nothing to find.
    reach : int
        Voxels along each axis by which a click may miss a lesion.
    min_tissue : float
        Windows with a smaller share of voxels above 0 are passed over.
    cache_bytes : int
        Bytes of encodings that are kept of one volume; what does not fit is computed again at each click.
    keep_last : bool
        Keep them for the next call, in case it asks for the same volume, as a server's users do. Leave it off where
        weights change between calls, as in training.
    """

    def __init__(
        self,
        window: Sequence[int],
        *,
        overlap: float = 0.375,
        score: float = 0.8,
        clicked_score: float = 0.2,
        mask: float = 0.5,
        keep: float = 0.5,
        merge: float = 0.3,
        alike: float = 0.3,
        alone: float = 0.6,
        outline: float = 0.25,
        min_voxels: int = 5,
        flood: float = 0.3,
        faint: float = 0.04,
        reach: int = 2,
        min_tissue: float = 0.02,
        cache_bytes: int = 2 * 1024**3,
        keep_last: bool = False,
    ) -> None:
        super().__init__()
        if not merge < overlap < 1:
            raise ValueError(f"overlap must lie between merge ({merge}) and 1, got {overlap}")
        self.window = tuple(int(n) for n in window)
        self.overlap, self.merge, self.min_tissue = overlap, merge, min_tissue
        self.alike = alike
        self._clicked_lesion = partial(clicked_lesion, outline=outline, flood=flood, faint=faint, reach=reach)
        self._components = partial(components, outline=outline, alone=alone, min_voxels=min_voxels)
        self.competition = {"score": score, "clicked_score": clicked_score, "mask": mask, "keep": keep}
        self.cache_bytes, self.keep_last = cache_bytes, keep_last
        self._last: tuple[Any, bytes, Encodings] | None = None

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> list[Found]:
        """Answer the clicks of each volume of a batch.

        Parameters
        ----------
        inputs : Tensor of shape (B, 2, X, Y, Z)
            Image in [0, 1], and clicks as :class:`organdetr_monai.miq_sam3d.points.EncodeClicksd` writes them.
        network : module
            With ``encode``, ``prompt``, ``voxels`` and ``retrieve`` as
            :class:`organdetr_monai.miq_sam3d.network.MIQSAM3D`.

        Raises
        ------
        InputError
            A volume without a click, or one that is said to lie and not to lie on a lesion.
        """
        volumes = inputs.as_tensor() if hasattr(inputs, "as_tensor") else torch.as_tensor(inputs)
        found = []
        for volume in volumes:
            marks = volume[1].cpu().numpy() if len(volume) > 1 else np.zeros(0)
            if not (marks > 0).any():
                raise InputError("There is no click.", "Give at least one: `points` and `space`, or `foreground`.")
            clicks, rejected = (np.argwhere(sign * marks > 0) for sign in (1, -1))
            clicks = clicks[np.argsort(marks[tuple(clicks.T)])]
            encodings = self._cached(volume[:1], network)
            found.append(self.combine([self.look(encodings, click) for click in clicks], clicks, volume.shape[1:]))
            found[-1] = without(found[-1], rejected, clicks)
        return found

    def encodings(self, image: Tensor, network: Any) -> Encodings:
        """What calls of `look` on one image (1, X, Y, Z) share."""
        return Encodings(
            network, image, self.window, overlap=self.overlap, min_tissue=self.min_tissue, limit=self.cache_bytes
        )

    def answer(self, image: Tensor, clicks: np.ndarray, network: Any, *, encodings: Encodings | None = None) -> Found:
        """Answer clicks (n, 3), int voxels of one image (1, X, Y, Z); `encodings` are kept by the caller, if at all."""
        encodings = encodings if encodings is not None else self.encodings(image, network)
        return self.combine([self.look(encodings, click) for click in clicks], clicks, image.shape[1:])

    @torch.inference_mode()
    def look(self, encodings: Encodings, click: np.ndarray) -> list[Piece]:
        """Pieces of all lesions like the one at a click, the clicked one's first; empty if there is none.

        Parameters
        ----------
        encodings : Encodings
        click : ndarray of shape (3,), int
            Voxel of the image.
        """
        if not encodings.occupied:
            return []  # no tissue, no lesion
        prompt, pieces = self._at(encodings, click)
        said = encodings.voxels()
        own = next((piece for piece in pieces if piece.clicked), None)
        likely = None
        if said is not None:
            of_kinds = said[1:]  # not 1 - said[0]: where there is no tissue nothing is said
            # Relative to the likeliest kind: where two are as good, a lesion of either is as sure as it is a lesion.
            share = prompt.kinds[0].cpu() / prompt.kinds[0].max().cpu()
            likely = (of_kinds * share[:, None, None, None]).sum(0).numpy()
            own = self._clicked_lesion(of_kinds.sum(0).numpy(), likely, click, pieces)
        if own is None:
            return []
        # The click's window is looked at once more, as are all: what else is found must not depend on where it is.
        pieces = [replace(own, window=CLICKED)]
        for k in encodings.occupied:
            if likely is None or likely[encodings.where(k)].max() >= self.alike:
                pieces += self._pieces(encodings.network.retrieve(encodings[k], prompt), encodings, k)
        if likely is None:
            return pieces
        return pieces + self._components(likely, pieces)

    def _at(self, encodings: Encodings, click: np.ndarray) -> tuple[Any, list[Piece]]:
        """The prompt of a click (3,), and what the window around it holds of its kind, the clicked one first."""
        home, network = encodings.around(click), encodings.network
        inside = click - encodings.starts[home]
        place = torch.as_tensor((inside + 0.5) / self.window, dtype=torch.float32, device=encodings.image.device)[None]
        encoding = encodings[home]
        # At a lesion's edge, or a window's, one window is a poor witness of what lies there.
        prompt = network.prompt(encoding, place, voxels=encodings.voxels_in(home))
        output = network.retrieve(encoding, prompt, place)
        return prompt, self._pieces(output, encodings, home, click=inside)

    def _pieces(
        self, output: dict[str, Tensor], encodings: Encodings, k: int, *, click: np.ndarray | None = None
    ) -> list[Piece]:
        """Instances of window `k`; with a click (3,), a voxel of the window, its own first."""
        queries = output["objectness"].shape[1]
        if (output["objectness"].sigmoid() >= self.competition["score"]).all():
            warnings.warn(
                f"a window holds {queries} lesions of a kind, as many as the network has queries, and maybe more: "
                "raise num_queries",
                stacklevel=2,
            )
        (found,) = disjoint(output, self.window, local=[click is not None], **self.competition)
        labels = found.labels.cpu().numpy()
        start = encodings.starts[k]
        stop = np.minimum(np.subtract(encodings.shape, start), self.window)  # not into the padding
        labels = labels[: stop[0], : stop[1], : stop[2]]
        chosen = [int(query) for query in found.queries]
        own = 0
        if click is not None:
            # Query 0 is the click's by training; where it lost to another, what lies under the click is meant.
            own = chosen.index(0) + 1 if 0 in chosen else int(labels[tuple(click)])
        pieces = []
        for number, score in enumerate(found.scores, start=1):
            mask = labels == number
            if not mask.any():
                continue
            cut = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))[[0, -1]] for axis in range(3)]
            x, y, z = (slice(int(first), int(last) + 1) for first, last in cut)
            corner = (int(start[0]) + x.start, int(start[1]) + y.start, int(start[2]) + z.start)
            pieces.append(Piece(corner, mask[x, y, z].copy(), float(score), 0, k, clicked=number == own))
        return sorted(pieces, key=lambda piece: not piece.clicked)

    def combine(self, looks: Sequence[Sequence[Piece]], clicks: np.ndarray, shape: Sequence[int]) -> Found:
        """Lesions of all clicks.

        Parameters
        ----------
        looks : sequence of n lists of Piece
            What `look` gave for each click.
        clicks : ndarray of shape (n, 3)
        shape : (X, Y, Z)
            Of the image.
        """
        pieces = [replace(piece, prompt=p) for p, look in enumerate(looks) for piece in look]
        groups = [[pieces[i] for i in members] for members in group(pieces, share=self.merge)]
        groups = [members for members in groups if not all(piece.completes for piece in members)]
        kind_of = _kinds(groups, len(looks))

        def rank(members: Sequence[Piece]) -> tuple[int, float]:
            own = [piece.prompt for piece in members if piece.clicked]
            return (min(own) if own else len(looks), -max(piece.score for piece in members))

        groups.sort(key=rank)
        labels = paint(groups, shape)
        for number, members in reversed(list(enumerate(groups, start=1))):
            for piece in members:
                if piece.clicked:  # whoever clicked says that this voxel belongs to it
                    labels[tuple(clicks[piece.prompt])] = number
        best = [max(members, key=lambda piece: piece.score) for members in groups]
        return _numbered(labels, [piece.score for piece in best], [kind_of[piece.prompt] for piece in best])

    def _cached(self, image: Tensor, network: Any) -> Encodings:
        """Encodings of the last call if this is the same image and network."""
        if not self.keep_last:
            return self.encodings(image, network)
        digest = hashlib.blake2b(np.ascontiguousarray(image.cpu().numpy()).data).digest()
        if self._last is None or self._last[0] is not network or self._last[1] != digest:
            self._last = None  # frees the old ones first
            self._last = (network, digest, self.encodings(image, network))
        return self._last[2]


def without(found: Found, rejected: np.ndarray, clicks: np.ndarray) -> Found:
    """Lesions but those in which a click says "not this one".

    Parameters
    ----------
    found : Found
    rejected, clicks : ndarray of shape (m, 3) and (n, 3)
        Voxels of the volume.

    Raises
    ------
    InputError
        Clicks that say both of one lesion: a click chooses lesions, it does not correct a mask.
    """
    gone = {int(found.labels[tuple(voxel)]) for voxel in rejected if (voxel >= 0).all()} - {0}
    if gone & {int(found.labels[tuple(voxel)]) for voxel in clicks}:
        raise InputError(
            "A background click lies in a lesion that was clicked.",
            "Such clicks take whole lesions out of the answer; correct masks with an editor.",
        )
    labels = np.where(np.isin(found.labels, list(gone)), 0, found.labels)
    return _numbered(labels, found.scores, found.kinds)


def _numbered(labels: np.ndarray, scores: Sequence[float], kinds: Sequence[int]) -> Found:
    """Without the ids that have no voxel, numbered from 1 without gaps."""
    kept = [number for number in np.unique(labels).tolist() if number]
    table = np.zeros(len(scores) + 1, dtype=np.int32)
    table[kept] = np.arange(1, len(kept) + 1)
    return Found(table[labels], tuple(scores[k - 1] for k in kept), tuple(kinds[k - 1] for k in kept))


def _kinds(groups: Sequence[Sequence[Piece]], count: int) -> list[int]:
    """Kind of each click."""
    kind = list(range(count))
    for members in groups:
        own = {kind[piece.prompt] for piece in members if piece.clicked}
        if own:
            same = own | {kind[piece.prompt] for piece in members}
            kind = [min(same) if k in same else k for k in kind]
    order = sorted(set(kind))
    return [order.index(k) + 1 for k in kind]
