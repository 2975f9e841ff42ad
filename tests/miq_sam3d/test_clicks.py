"""Clicks lie in their lesion, at the place and in the shares that are said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from organdetr_monai.errors import InputError
from organdetr_monai.miq_sam3d.clicks import PLACES, check_places, click_in, click_outside, draw_place
from tests.miq_sam3d.cases import SHAPE, ball

BALL = ball((10, 12, 11), 6)


@pytest.mark.parametrize("place", [*PLACES, "centre"])
@pytest.mark.parametrize("mask", [BALL, ball((0, 0, 0), 5), ball((5, 5, 5), 0), np.ones((3, 4, 5), bool)])
def test_a_click_lies_in_its_lesion(mask, place):
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert mask[tuple(click_in(mask, place, rng))]


def test_places_are_what_they_say():
    rng, depth = np.random.default_rng(1), ndimage.distance_transform_edt(BALL)
    drawn = {place: [tuple(click_in(BALL, place, rng)) for _ in range(300)] for place in PLACES}
    assert min(depth[c] for c in drawn["interior"]) >= depth.max() / 2
    outermost = BALL & ~ndimage.binary_erosion(BALL)
    assert all(outermost[c] for c in drawn["boundary"])
    share = np.mean([outermost[c] for c in drawn["uniform"]])
    assert share == pytest.approx(outermost.sum() / BALL.sum(), abs=0.09)  # three standard deviations
    assert click_in(BALL, "centre", rng).tolist() == [10, 12, 11]
    corner = ball((0, 0, 0), 5)  # goes on beyond the end of the array: that is no boundary
    assert click_in(corner, "centre", rng).tolist() == [0, 0, 0]


def test_same_numbers_same_click():
    for place in PLACES:
        first, again = (click_in(BALL, place, np.random.default_rng(3)) for _ in range(2))
        assert first.tolist() == again.tolist()
    streams = np.random.default_rng(4), np.random.RandomState(4)
    assert all(BALL[tuple(click_in(BALL, "uniform", stream))] for stream in streams)


def test_shares_of_the_places():
    rng = np.random.default_rng(0)
    drawn = [draw_place(PLACES, rng) for _ in range(4000)]
    for place, share in {"interior": 0.5, "uniform": 0.3, "boundary": 0.2}.items():
        assert drawn.count(place) / 4000 == pytest.approx(share, abs=0.03)  # four standard deviations
    assert {draw_place({"interior": 0, "uniform": 2, "boundary": 0}, rng) for _ in range(100)} == {"uniform"}


def test_background_is_clicked_clear_of_lesions():
    rng, tissue = np.random.default_rng(0), np.zeros(SHAPE, bool)
    tissue[:20] = True
    away = ndimage.distance_transform_cdt(~BALL, metric="chessboard")
    for _ in range(100):
        click = tuple(click_outside(BALL, tissue, rng))
        assert tissue[click] and away[click] > 2
    assert click_outside(np.ones((3, 3, 3), bool), np.ones((3, 3, 3), bool), rng) is None
    nearly = np.ones((3, 3, 3), bool)
    nearly[1, 1, 1] = False
    assert click_outside(nearly, nearly, rng).tolist() == [1, 1, 1]


@pytest.mark.parametrize("places", [{}, {"middle": 1}, {"uniform": -1}, {"uniform": 0}])
def test_wrong_places(places):
    with pytest.raises(InputError, match="clicks"):
        check_places(places)


def test_wrong_clicks():
    with pytest.raises(InputError, match="empty"):
        click_in(np.zeros((3, 3, 3), bool), "uniform", np.random.default_rng(0))
    with pytest.raises(InputError, match="'middle'"):
        click_in(BALL, "middle", np.random.default_rng(0))
