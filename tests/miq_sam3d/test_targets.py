"""What a click asks for."""

import numpy as np
import torch

from organdetr_monai.boxes import normalise
from organdetr_monai.mask_boxes import boxes_from_mask
from organdetr_monai.miq_sam3d.targets import boxes_of, wanted_instances
from organdetr_monai.miq_sam3d.training import collate, prepare_batch
from tests.miq_sam3d.toys import BALL, CUBE, SHAPE, draw, sample

THINGS = [(CUBE, (12, 25, 12), 3), (BALL, (10, 10, 10), 4), (BALL, (30, 20, 12), 5)]


def wanted(kind, clicked):
    _, ids = draw(THINGS)
    kinds = torch.tensor([k for k, _, _ in THINGS])
    return ids, wanted_instances(torch.from_numpy(ids)[None], [kinds], [kind], [clicked])


def test_only_the_clicked_kind_is_wanted():
    ids, targets = wanted(BALL, 3)
    assert targets.counts == [2] and targets.clicked == [1]
    assert np.array_equal(targets.labels[0].numpy(), np.where(ids > 1, ids - 1, 0))
    assert np.array_equal(targets.all_labels[0].numpy(), ids) and targets.all_boxes.shape == (1, 3, 6)
    assert targets.all_kinds.tolist() == [[CUBE, BALL, BALL]]


def test_click_on_background_wants_nothing():
    _, targets = wanted(0, 0)
    assert targets.counts == [0] and targets.clicked == [-1] and not targets.labels.any()


def test_remote_click_wants_the_kind_and_owns_none():
    _, targets = wanted(CUBE, 0)
    assert targets.counts == [1] and targets.clicked == [-1]


def test_boxes_are_those_of_the_mask():
    _, ids = draw(THINGS)
    truth = normalise(torch.from_numpy(boxes_from_mask(ids)[0]), SHAPE)
    assert torch.allclose(boxes_of(torch.from_numpy(ids), 3), truth, atol=1e-6)
    assert boxes_of(torch.zeros(4, 4, 4, dtype=torch.int64), 0).shape == (0, 6)


def test_every_voxel_has_the_kind_of_its_instance():
    ids, targets = wanted(BALL, 2)
    kinds = np.array([0, *(kind for kind, _, _ in THINGS)])
    assert np.array_equal(targets.voxel_kinds[0].numpy(), kinds[ids])


def test_shares_add_up_to_the_volume():
    ids, targets = wanted(BALL, 2)
    shares = targets.shares((20, 16, 12))
    assert np.allclose(shares[0].sum((1, 2, 3)) * 8, [(ids == 2).sum(), (ids == 3).sum()])


def test_batch_has_room_for_the_richest_image():
    rng = np.random.default_rng(0)
    samples = [sample(rng) for _ in range(4)]
    inputs, targets = prepare_batch(collate(samples))
    assert inputs.image.shape == inputs.exemplar.shape == (4, 1, *SHAPE) and inputs.remote.dtype == torch.bool
    windows = [(s["kinds"], s["kind"]) for s in samples]
    windows += [(s["exemplar_kinds"], s["kind"]) for s in samples if s["remote"]]  # answered in training, too
    assert len(windows) > 4
    assert targets.counts == [int((kinds == kind).sum()) if kind else 0 for kinds, kind in windows]
    assert targets.boxes.shape == (len(windows), max(targets.counts), 6)
    assert targets.valid.sum(1).tolist() == targets.counts
