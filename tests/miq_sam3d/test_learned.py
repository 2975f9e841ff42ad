"""What the network learns in a minute or two: bright balls and dark cubes, one click, all of its kind."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from organdetr_monai.miq_sam3d.instances import Instances, disjoint
from organdetr_monai.miq_sam3d.losses import MIQLoss
from organdetr_monai.miq_sam3d.matching import InstanceMatcher
from organdetr_monai.miq_sam3d.training import collate, prepare_batch
from tests.miq_sam3d.toys import BALL, CUBE, SHAPE, draw, normalised, sample, scatter, small_miq

STEPS, BATCH, RATE = 400, 4, 5e-3
VOLUMES = 16


@pytest.fixture(scope="module")
def network():
    """Trained, seeded; a minute or two of one core. On one thread: sums in another order lead elsewhere in the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network, loss, rng = small_miq(), MIQLoss(InstanceMatcher()), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        inputs, targets = prepare_batch(collate([sample(rng) for _ in range(BATCH)]))
        optimizer.zero_grad()
        loss(network(*inputs), targets)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    torch.set_num_threads(threads)
    return network.eval()


@pytest.fixture(scope="module")
def volumes():
    """Unseen volumes with at least two balls and a cube: things, image and ids of each."""
    rng, found = np.random.default_rng(1), []
    while len(found) < VOLUMES:
        things = scatter(rng)
        kinds = [kind for kind, _, _ in things]
        if kinds.count(BALL) >= 2 and CUBE in kinds:
            found.append((things, *draw(things, seed=1000 + len(found))))
    return found


@torch.no_grad()
def click(network, image: np.ndarray, voxel, exemplar: np.ndarray | None = None) -> Instances:
    """Answer to one click, in ``exemplar`` where given."""
    window, place = torch.from_numpy(image)[None, None], normalised(voxel)[None]
    far = exemplar is not None
    other = torch.from_numpy(exemplar)[None, None] if far else window
    return disjoint(network(window, place, other, torch.tensor([far])), SHAPE, local=[not far])[0]


def of_kind(things, kind: int) -> list[int]:
    return [k + 1 for k, (own, _, _) in enumerate(things) if own == kind]


def at(labels: torch.Tensor, things, number: int) -> int:
    """Id at the centre of thing ``number``."""
    return int(labels[tuple(round(float(c)) for c in things[number - 1][1])])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / max(float(a.sum() + b.sum()), 1)


@pytest.mark.parametrize("kind", [BALL, CUBE])
def test_a_click_finds_all_of_its_kind_and_nothing_else(network, volumes, kind):
    overlap, found, wrong = [], [], []
    for things, image, ids in volumes:
        number = of_kind(things, kind)[0]
        labels = click(network, image, things[number - 1][1]).labels
        overlap.append(dice(labels.numpy() > 0, np.isin(ids, of_kind(things, kind))))
        found += [at(labels, things, k) > 0 for k in of_kind(things, kind)]
        wrong += [at(labels, things, k) > 0 for k in of_kind(things, BALL + CUBE - kind)]
    assert np.mean(overlap) > 0.75 and np.mean(found) > 0.9 and np.mean(wrong) < 0.05


def test_whichever_ball_is_clicked_and_where_the_answer_is_the_same(network, volumes):
    agreement, rng = [], np.random.default_rng(2)
    for things, image, ids in volumes:
        unions = []
        for number in of_kind(things, BALL):
            anywhere = rng.permutation(np.argwhere(ids == number))[0]
            unions += [click(network, image, v).labels.numpy() > 0 for v in (things[number - 1][1], anywhere)]
        agreement += [dice(a, b) for a, b in combinations(unions, 2)]
    assert np.mean(agreement) > 0.9


def test_the_clicked_ball_is_query_0_and_id_1(network, volumes):
    right = []
    for things, image, _ in volumes:
        for number in of_kind(things, BALL):
            answer = click(network, image, things[number - 1][1])
            right.append(answer.queries[:1].tolist() == [0] and at(answer.labels, things, number) == 1)
    assert np.mean(right) > 0.9


def test_balls_that_touch_have_ids_of_their_own(network):
    apart = []
    for seed, way in enumerate([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, -1, 1), (-1, 0, -1)] * 2):
        step = np.asarray(way) / np.linalg.norm(way)
        radius = 4 + 0.1 * seed
        things = [(BALL, np.array([19.5, 15.5, 11.5]) + side * radius * step, radius) for side in (-1, 1)]
        image, _ = draw(things, seed=seed)
        labels = click(network, image, things[0][1]).labels
        apart.append(0 < at(labels, things, 1) != at(labels, things, 2) > 0)
    assert np.mean(apart) > 0.75


def test_a_click_on_grey_finds_nothing(network, volumes):
    rng = np.random.default_rng(3)
    quiet = []
    for _, image, ids in volumes:
        voxel = rng.permutation(np.argwhere(ids == 0))[0]
        quiet.append(len(click(network, image, voxel).scores) == 0)
    assert np.mean(quiet) > 0.7


def test_an_exemplar_in_another_volume_finds_its_kind_here(network, volumes):
    overlap, wrong = [], []
    for (things, image, ids), (others, exemplar, _) in zip(volumes, volumes[1:] + volumes[:1], strict=True):
        for kind in (BALL, CUBE):
            labels = click(network, image, others[of_kind(others, kind)[0] - 1][1], exemplar).labels
            overlap.append(dice(labels.numpy() > 0, np.isin(ids, of_kind(things, kind))))
            wrong += [at(labels, things, k) > 0 for k in of_kind(things, BALL + CUBE - kind)]
    assert np.mean(overlap) > 0.7 and np.mean(wrong) < 0.1


def test_an_exemplar_of_what_is_not_there_finds_nothing(network):
    cubes, exemplar = draw([(CUBE, (20, 16, 12), 3.5)], seed=5), draw([(BALL, (20, 16, 12), 4.0)], seed=6)
    assert len(click(network, cubes[0], (20, 16, 12), exemplar[0]).scores) == 0
    assert len(click(network, exemplar[0], (20, 16, 12), cubes[0]).scores) == 0


def test_boxes_are_in_array_order(network, volumes):
    error = []
    for things, image, _ in volumes:
        number = of_kind(things, BALL)[0]
        answer = click(network, image, things[number - 1][1])
        if len(answer.scores):
            _, centre, radius = things[number - 1]
            truth = np.concatenate([(np.asarray(centre) + 0.5), np.full(3, 2 * radius)])
            error.append(np.abs(answer.boxes[0].numpy() * np.tile(SHAPE, 2) - truth))
    assert len(error) > VOLUMES / 2 and np.mean(error, axis=0).max() < 2.5
