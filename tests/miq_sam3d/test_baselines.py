"""Both baselines learn what they are for, and answer on the grid of the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from organdetr_monai.miq_sam3d.baselines import SemanticBaseline, SingleObjectBaseline, click_channel
from organdetr_monai.miq_sam3d.prompts import RandPromptd
from organdetr_monai.miq_sam3d.training import collate
from tests.miq_sam3d.cases import case

WINDOW = (16, 16, 16)
CHANNELS = (8, 16)


def batches(background=0.0):
    draw = RandPromptd(WINDOW, remote=0.0, background=background, rotate=0, zoom=(1, 1))
    draw.set_random_state(0)
    data = case()
    while True:
        yield collate([draw(data) for _ in range(4)])


def train(model, steps, **options):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for batch, _ in zip(batches(**options), range(steps), strict=False):
        loss = model.loss(model(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_click_channel():
    mark = click_channel(torch.tensor([3.0, 7.0, 15.0]), WINDOW)
    assert mark.shape == (1, *WINDOW) and float(mark.max()) == 1.0
    assert tuple(np.unravel_index(int(mark.argmax()), mark.shape)) == (0, 3, 7, 15)


def test_segmentation_learns_the_kinds():
    model = SemanticBaseline(2, WINDOW, channels=CHANNELS)
    losses = train(model, 40)
    assert losses[-1] < 0.6 * losses[0]
    data = case()
    answer = model.open(data["image"].as_tensor(), (2.0, 2.0, 2.0))
    truth, kinds = data["instances"].as_tensor()[0].numpy(), np.array([0, *data["kinds"].tolist()])
    for kind in (1, 2):
        found = answer(np.array([8, 8, 8]), kind)
        assert found.shape == truth.shape and found.max() >= 1
        overlap = ((found > 0) & (kinds[truth] == kind)).sum() / (kinds[truth] == kind).sum()
        assert overlap > 0.5
    assert answer(np.array([0, 0, 0]), 1) is answer(np.array([8, 8, 8]), 1)  # the click changes nothing


def test_segmentation_reads_the_kind_at_the_click_if_it_is_not_told():
    model = SemanticBaseline(2, WINDOW, channels=CHANNELS)
    train(model, 40)
    image = case()["image"].as_tensor()
    told = model.open(image, (2.0, 2.0, 2.0))
    of_kind = [told(np.zeros(3), kind) for kind in (1, 2)]
    model.told = False
    answer = model.open(image, (2.0, 2.0, 2.0))
    everything = (of_kind[0] > 0) | (of_kind[1] > 0)
    near = ndimage.maximum_filter(everything, 5)
    for found in of_kind:
        alone = (found > 0) & ~ndimage.maximum_filter(everything & (found == 0), 5)
        inside = np.argwhere(alone)[0]
        for said in (0, 1, 2):  # whatever kind is said to be meant
            assert np.array_equal(answer(inside, said), found)
    beside, away = np.argwhere(near & ~everything)[0], np.argwhere(~near)[0]
    assert answer(beside, 1).any() and not answer(away, 1).any()


def test_one_click_gives_one_mask_around_it():
    model = SingleObjectBaseline(WINDOW, channels=CHANNELS)
    losses = train(model, 80)
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    data = case()
    truth = data["instances"].as_tensor()[0].numpy()
    answer = model.open(data["image"].as_tensor(), (2.0, 2.0, 2.0))
    found = answer(np.array([8, 8, 8]), 1)
    assert found.shape == truth.shape and set(np.unique(found)) == {0, 1}
    assert ((found == 1) & (truth == 1)).sum() > 0.5 * (truth == 1).sum()


@pytest.mark.parametrize("click", [(0, 0, 0), (29, 25, 21), (15, 13, 11)])
def test_windows_at_the_ends_of_the_volume(click):
    model = SingleObjectBaseline((16, 16, 32), channels=CHANNELS)  # larger than the volume along the last axis
    image = case()["image"].as_tensor()
    found = model.open(image, (2.0, 2.0, 2.0))(np.array(click), 1)
    assert found.shape == image.shape[1:]


def test_a_click_on_background_asks_for_nothing():
    model = SingleObjectBaseline(WINDOW, channels=CHANNELS)
    batch = next(batches(background=1.0))
    assert not batch["clicked"].any()
    empty = torch.full_like(model(batch), -20.0)
    assert float(model.loss(empty, batch)) < float(model.loss(-empty, batch))
