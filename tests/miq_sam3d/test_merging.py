"""Pieces of lesions from several windows: which belong together, and who gets a voxel."""

from __future__ import annotations

import numpy as np
import pytest

from organdetr_monai.miq_sam3d.inference import ClickInferer
from organdetr_monai.miq_sam3d.merging import Piece, group, paint


def piece(start, stop, *, window=0, score=0.5, prompt=0) -> Piece:
    """A box."""
    size = tuple(b - a for a, b in zip(start, stop, strict=True))
    return Piece(tuple(start), np.ones(size, dtype=bool), score, prompt, window)


def test_pieces_that_share_enough_of_the_smaller_are_one():
    a, b = piece((0, 0, 0), (10, 4, 4)), piece((6, 0, 0), (12, 4, 4), window=1)  # share 4 of 6
    assert group([a, b], share=0.3) == [[0, 1]]
    assert group([a, b], share=0.7) == [[0], [1]]
    assert group([a, piece((9, 0, 0), (19, 4, 4), window=1)], share=0.3) == [[0], [1]]  # 1 of 10


def test_a_chain_of_windows_joins_a_long_lesion():
    chain = [piece((8 * k, 0, 0), (8 * k + 16, 4, 4), window=k) for k in range(5)]
    assert group(chain[::-1], share=0.3) == [[0, 1, 2, 3, 4]]


def test_what_one_window_tells_apart_stays_apart():
    """Window 1 saw two touching lesions as one; window 0 knows better."""
    left, right = piece((0, 0, 0), (8, 4, 4)), piece((8, 0, 0), (16, 4, 4))
    both = piece((0, 0, 0), (14, 4, 4), window=1, score=0.3)
    groups = group([left, right, both], share=0.3)
    assert groups == [[0, 2], [1]]
    labels = paint([[[left, right, both][i] for i in members] for members in groups], (16, 4, 4))
    assert (labels[:8] == 1).all() and (labels[8:] == 2).all()


def test_two_clicks_may_find_the_same_in_one_window():
    a, b = piece((0, 0, 0), (8, 4, 4)), piece((0, 0, 0), (8, 4, 4), prompt=1)
    assert group([a, b], share=0.3) == [[0, 1]]


def test_order_of_pieces_makes_no_difference():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 20, (30, 3))
    pieces = [piece(c, c + rng.integers(2, 9, 3), window=k % 7, score=0.1 + k / 40) for k, c in enumerate(corners)]
    wanted = {frozenset(members) for members in group(pieces, share=0.3)}
    order = rng.permutation(len(pieces))
    shuffled = group([pieces[i] for i in order], share=0.3)
    assert {frozenset(int(order[i]) for i in members) for members in shuffled} == wanted
    assert sum(map(len, wanted)) == 30


def test_highest_score_wins_a_voxel_the_first_of_equals():
    low, high = piece((0, 0, 0), (4, 2, 2), score=0.4), piece((2, 0, 0), (6, 2, 2), score=0.6)
    assert paint([[low], [high]], (8, 2, 2))[:, 0, 0].tolist() == [1, 1, 2, 2, 2, 2, 0, 0]
    assert paint([[high], [piece((2, 0, 0), (6, 2, 2), score=0.6)]], (8, 2, 2)).max() == 1
    assert group([], share=0.3) == [] and not paint([], (2, 2, 2)).any()


@pytest.mark.parametrize("overlap", [0.3, 1.0])
def test_windows_must_overlap_enough_to_join_what_they_cut(overlap):
    with pytest.raises(ValueError, match="overlap"):
        ClickInferer((16, 16, 16), overlap=overlap)
