"""What the voxels of a whole volume say, next to what queries say of windows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from organdetr_monai.miq_sam3d.inference import ClickInferer
from organdetr_monai.miq_sam3d.merging import Piece
from organdetr_monai.miq_sam3d.voxel_lesions import CONNECTED
from organdetr_monai.miq_sam3d.windows import Encodings
from tests.miq_sam3d.oracle import TISSUE, Oracle, Seen

WINDOW = (16, 16, 16)
A, B, C = ((6, 6, 6), (12, 12, 12)), ((20, 6, 6), (26, 12, 12)), ((6, 20, 30), (12, 26, 36))


class Sure(NamedTuple):
    token: Tensor
    kinds: Tensor


class Voxels(Oracle):
    """Whose voxels say lesion where it is brighter than tissue, with the probability ``sure``; its queries see less.

    Of each lesion they see the half at low x; if they are ``blind``, nothing at all but in the click's own window.
    """

    def __init__(self, *, sure: float = 0.9, blind: bool = False) -> None:
        super().__init__()
        self.sure, self.blind = sure, blind

    def prompt(self, encoding: Seen, click: Tensor, *, voxels: Tensor | None = None) -> Sure:
        return Sure(super().prompt(encoding, click).token, torch.ones(1, 1))

    def voxels(self, encoding: Seen) -> Tensor:
        p = self.sure * (encoding.image[:, 0] > TISSUE + 0.1).float()
        return torch.stack([1 - p, p], 1)

    def retrieve(self, encoding, prompt, click=None, *, local=None):
        output = super().retrieve(encoding, prompt, click, local=local)
        for mask in output["masks"][0]:
            places = (mask > 0).nonzero()
            if len(places):
                mask[int(places[:, 0].min()) + 3 :] = -20.0
        if self.blind and click is None:
            output["objectness"].fill_(-20.0)
        return output


def image_of(*lesions, value: float = 0.8) -> torch.Tensor:
    image = torch.full((1, 40, 40, 40), TISSUE)
    for (x, y, z), (p, q, r) in lesions:
        image[0, x:p, y:q, z:r] = value
    return image


def answer(network, image, click=(7, 8, 8), **options):
    return ClickInferer(WINDOW, **options).answer(image, np.array([click]), network)


def box(mask) -> tuple:
    places = np.argwhere(mask)
    return tuple(places.min(0).tolist()), tuple((places.max(0) + 1).tolist())


def test_half_a_lesion_becomes_a_whole_one():
    found = answer(Voxels(), image_of(A, B, C))
    assert len(found.scores) == 3 and {box(found.labels == k) for k in (1, 2, 3)} == {A, B, C}
    assert box(found.labels == 1) == A and all(score > 0.9 for score in found.scores), "scores are the queries'"


def test_what_no_query_finds_is_found_if_the_voxels_are_sure():
    image = image_of(A, C)
    assert {box(answer(Voxels(blind=True), image).labels == k) for k in (1, 2)} == {A, C}
    assert answer(Voxels(blind=True, sure=0.55), image).labels.max() == 1
    assert answer(Voxels(blind=True, sure=0.55), image, alone=0.5).labels.max() == 2
    speck = image_of(A, ((30, 30, 30), (31, 32, 32)))
    assert answer(Voxels(blind=True), speck).labels.max() == 1
    assert answer(Voxels(blind=True), speck, min_voxels=4).labels.max() == 2


def test_a_faint_border_belongs_to_a_lesion_that_is_sure():
    class Bordered(Voxels):
        """Whose voxels are the less sure the darker they are."""

        def voxels(self, encoding):
            p = encoding.image[:, 0] * (encoding.image[:, 0] > TISSUE + 0.1)
            return torch.stack([1 - p, p], 1)

    image = image_of(C, value=1.0)
    image[0, 5:13, 19:27, 29:37] = image[0, 5:13, 19:27, 29:37].clamp(min=0.45)
    image += image_of(A, value=1.0) - TISSUE
    around = ((5, 19, 29), (13, 27, 37))
    labels = answer(Bordered(blind=True), image).labels
    assert labels.max() == 2 and box(labels == 2) == around
    assert box(answer(Bordered(blind=True), image, outline=0.5).labels == 2) == C
    assert answer(Bordered(blind=True), image, alone=0.8).labels.max() == 1, "the border is part of the mean"


def test_a_faint_lesion_is_found_where_it_is_clicked():
    image = image_of(A)
    assert box(answer(Voxels(sure=0.1), image).labels == 1) == A
    # Its query would have an answer; where the voxels say nothing at all, it has no say.
    assert answer(Voxels(sure=0.01), image).labels.max() == 0


class Silent(Voxels):
    """Whose queries see nothing."""

    def retrieve(self, encoding, prompt, click=None, *, local=None):
        output = super().retrieve(encoding, prompt, click, local=local)
        output["objectness"].fill_(-20.0)
        return output


def test_a_click_on_what_neither_voxels_nor_queries_see_finds_nothing():
    assert answer(Silent(sure=0.01), image_of(A)).labels.max() == 0
    assert answer(Voxels(), image_of(A), click=(30, 30, 30)).labels.max() == 0
    assert box(answer(Silent(sure=0.1), image_of(A)).labels == 1) == A, "the voxels alone are enough"


class Graded(Silent):
    """Whose voxels say by how much they are brighter than tissue."""

    def voxels(self, encoding: Seen) -> Tensor:
        p = (encoding.image[:, 0] - TISSUE).clamp(0, 1)
        return torch.stack([1 - p, p], 1)


def test_a_click_on_a_lesion_is_not_one_on_its_surer_neighbour():
    near = ((13, 6, 6), (19, 12, 12))
    image = image_of(A, value=TISSUE + 0.5)
    image[0, 13:19, 6:12, 6:12] = TISSUE + 0.74  # a voxel away
    labels = answer(Graded(), image, click=(11, 8, 8)).labels
    assert box(labels == 1) == A and box(labels == 2) == near
    assert box(answer(Graded(), image, click=(13, 8, 8)).labels == 1) == near


def test_the_clicked_lesion_goes_as_far_as_voxels_say_much_the_same():
    image = image_of(((3, 3, 3), (16, 16, 16)), value=TISSUE + 0.06)
    image[0, 6:12, 6:12, 6:12] = TISSUE + 0.15
    assert box(answer(Graded(), image).labels == 1) == ((3, 3, 3), (16, 16, 16))
    assert box(answer(Graded(), image, flood=0.5).labels == 1) == A
    image = torch.full((1, 40, 40, 40), TISSUE + 0.02)
    assert answer(Graded(), image).labels.max() == 0
    image[0, 7, 8, 8] = TISSUE + 0.05
    assert (answer(Graded(), image).labels > 0).sum() == 1, "a trace of a lesion is not all the tissue around it"


def test_a_click_may_miss_a_lesion_by_a_little():
    image = image_of(A)
    for click in ((4, 8, 8), (8, 8, 13)):  # two voxels beside it
        labels = answer(Silent(), image, click=click).labels
        assert labels[click] == 1, "whoever clicks is right"
        labels[click] = 0
        assert box(labels == 1) == A
        assert answer(Silent(), image, click=click, reach=1).labels.max() == 0
    assert answer(Silent(), image, click=(3, 8, 8)).labels.max() == 0


class OfTwoKinds(Voxels):
    """Whose voxels tell two kinds apart, brighter and darker than 0.7, and whose queries see nothing."""

    def prompt(self, encoding: Seen, click: Tensor, *, voxels: Tensor | None = None) -> Sure:
        token = Oracle.prompt(self, encoding, click).token
        bright = float(token > 0.7)
        return Sure(token, torch.tensor([[bright, 1 - bright]]))

    def voxels(self, encoding: Seen) -> Tensor:
        lesion, bright = encoding.image[:, 0] > TISSUE + 0.1, encoding.image[:, 0] > 0.7
        p = self.sure * torch.stack([lesion & bright, lesion & ~bright], 1).float()
        return torch.cat([1 - p.sum(1, keepdim=True), p], 1)

    def retrieve(self, encoding, prompt, click=None, *, local=None):
        output = super().retrieve(encoding, prompt, click, local=local)
        output["objectness"].fill_(-20.0)
        return output


def test_a_lesion_ends_where_another_kind_begins():
    beside, image = ((12, 6, 6), (18, 12, 12)), image_of(A)
    image[0, 12:18, 6:12, 6:12] = 0.6
    assert box(answer(OfTwoKinds(), image).labels == 1) == A
    assert box(answer(OfTwoKinds(), image, click=(14, 8, 8)).labels == 1) == beside
    assert answer(OfTwoKinds(), image).labels.max() == 1


@pytest.mark.parametrize(("kinds", "found"), [((0.9, 0.1), 1), ((0.52, 0.48), 2), ((0.48, 0.52), 2), ((0.1, 0.9), 1)])
def test_where_two_kinds_are_as_likely_both_are_asked_for(kinds, found):
    class Unsure(OfTwoKinds):
        def prompt(self, encoding: Seen, click: Tensor, *, voxels: Tensor | None = None) -> Sure:
            return Sure(super().prompt(encoding, click).token, torch.tensor([kinds]))

    image = image_of(A)
    image[:, 6:12, 20:26, 30:36] = 0.6
    clicked = (7, 8, 8) if kinds[0] > 0.2 else (7, 22, 32)
    labels = answer(Unsure(), image, click=clicked).labels
    assert labels[clicked] == 1 and labels.max() == found


def test_where_there_is_no_tissue_there_is_no_lesion():
    image = image_of(A)
    image[:, 18:] = 0.0
    assert answer(Voxels(), image, click=(38, 38, 38)).labels.max() == 0
    assert box(answer(Voxels(), image).labels == 1) == A


def test_what_completes_other_pieces_is_no_lesion_by_itself():
    ones = np.ones((4, 4, 4), dtype=bool)
    lesion = Piece((2, 2, 2), ones, 0.9, 0, 0, clicked=True)
    more = Piece((4, 2, 2), ones, 1e-3, 0, CONNECTED, completes=True)  # shares a half of itself
    beside = Piece((5, 5, 5), np.ones((6, 6, 6), dtype=bool), 1e-3, 0, CONNECTED, completes=True)  # a corner alone
    found = ClickInferer(WINDOW).combine([[lesion, more]], np.array([[3, 3, 3]]), (16, 16, 16))
    assert box(found.labels == 1) == ((2, 2, 2), (8, 6, 6)) and found.scores == (0.9,)
    found = ClickInferer(WINDOW).combine([[lesion, beside]], np.array([[3, 3, 3]]), (16, 16, 16))
    assert box(found.labels > 0) == ((2, 2, 2), (6, 6, 6)) and found.labels.max() == 1


def test_windows_without_anything_alike_are_not_decoded():
    network, image = Voxels(), image_of(A)
    assert answer(network, image).labels.max() == 1
    windows = [start for start in Encodings(network, image, WINDOW, overlap=0.375).starts if (start < 12).all()]
    assert network.encoded > network.retrieved == 1 + len(windows), "the click's own, and as many as show the lesion"
    blank = Voxels()
    answer(blank, image, alike=0.95)
    assert blank.retrieved == 1


def test_what_queries_tell_apart_stays_apart():
    touching = ((12, 6, 6), (18, 12, 12))
    image = image_of(A)
    image[0, 12:18, 6:12, 6:12] = 0.6  # the oracle's queries see another blob, the voxels see one lesion

    class Both(Voxels):
        def retrieve(self, encoding, prompt, click=None, *, local=None):
            output = super().retrieve(encoding, prompt, click, local=local)
            other = super().retrieve(encoding, prompt._replace(token=torch.tensor([[0.6]])), None)
            for key in ("masks", "objectness"):
                output[key][0, 6] = other[key][0, 0]
            return output

    found = answer(Both(), image)
    own, other = (found.labels[7, 8, 8], found.labels[13, 8, 8])
    assert own == 1 and other == 2 and found.labels.max() == 2
    assert (found.labels[image[0].numpy() > TISSUE + 0.1] > 0).all(), "no voxel of either is lost"
    assert box(found.labels == other)[0] == touching[0]


@pytest.mark.parametrize("shape", [(40, 40, 40), (12, 40, 17)])
def test_voxels_of_the_volume_are_those_of_its_windows(shape):
    image = torch.rand(1, *shape)
    network = Voxels(sure=1.0)
    said = Encodings(network, image, WINDOW, overlap=0.375).voxels()
    wanted = (image[0] > TISSUE + 0.1).float()
    assert said.shape == (2, *shape) and torch.allclose(said[1], wanted, atol=1e-5)
    image[:, :, :16] = 0.0
    empty = Encodings(network, image, WINDOW, overlap=0.375).voxels()
    assert not empty[1, :, :16].any() and torch.allclose(empty[1, :, 16:], wanted[:, 16:], atol=1e-5)


def test_windows_that_disagree_meet_halfway():
    class Disagree(Voxels):
        def voxels(self, encoding):
            return torch.full((1, 2, *WINDOW), float(encoding.image[0, 0, 0, 0, 0] > 0.5))

    image = torch.full((1, 26, 16, 16), 0.4)
    image[0, 10] = 0.9  # where the second window begins
    said = Encodings(Disagree(), image, WINDOW, overlap=0.375).voxels()[1, :, 8, 8]
    assert said[0] == 0 and said[-1] == 1 and (said[10:16].diff() > 0).all()


def test_a_network_may_say_nothing_of_voxels():
    assert Encodings(Oracle(), torch.rand(1, 20, 20, 20), WINDOW, overlap=0.375).voxels() is None


@pytest.mark.parametrize("shape", [(40, 40, 40), (12, 40, 17)])
def test_a_click_is_known_by_what_all_windows_say_around_it(shape):
    heard = []

    class Heard(Voxels):
        def prompt(self, encoding: Seen, click: Tensor, *, voxels: Tensor | None = None) -> Sure:
            heard.append((voxels, click))
            return super().prompt(encoding, click, voxels=voxels)

        def voxels(self, encoding: Seen) -> Tensor:  # windows that disagree
            p = encoding.image[:, 0].mean() * torch.ones(1, *WINDOW)
            return torch.stack([1 - p, p], 1)

    image, click = torch.rand(1, *shape), (7, 20, 11)
    image[:, 6:9, 19:22, 10:13] = 0.8
    network = Heard()
    answer(network, image, click=click)
    ((voxels, place),) = heard
    assert voxels.shape == (1, 2, *WINDOW), "a window, however small the image"
    inside = tuple((place[0] * torch.tensor(WINDOW)).long().tolist())
    blend = Encodings(network, image, WINDOW, overlap=0.375).voxels()
    assert torch.equal(voxels[(0, slice(None), *inside)], blend[(slice(None), *click)])
