"""Deformable encoder: every voxel looks around its own place, on all levels."""

import pytest
import torch

from organdetr_monai.losses import DetectionLoss
from organdetr_monai.matching import DenseQueryMatcher
from organdetr_monai.networks import DeformableEncoder
from organdetr_monai.networks.deformable_encoder import voxel_boxes

SHAPES = [(8, 12, 10), (4, 6, 5), (2, 3, 3)]


def encoder(**options):
    return DeformableEncoder(24, **{"heads": 6, "points": 2, "hidden": 32, **options})


def make_maps(batch=1, shapes=SHAPES):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 24, *shape, generator=g) for shape in shapes]


def test_boxes_lie_around_the_voxels():
    boxes = voxel_boxes((4, 2, 5), 1.5).view(4, 2, 5, 6)
    assert torch.allclose(boxes[3, 0, 2], torch.tensor([3.5 / 4, 0.5 / 2, 2.5 / 5, 3 / 4, 3 / 2, 3 / 5]))


def test_a_voxel_is_seen_at_the_start_from_as_many_voxels_away_as_there_are_points():
    network = encoder(levels=1, points=3).eval()
    (fmap,) = make_maps(shapes=[(9, 8, 10)])
    place = (5, 2, 7)
    changed = fmap.clone()
    changed[(0, slice(None), *place)] += torch.randn(24)  # not a constant: the norm would take it away
    with torch.no_grad():
        moved = (network([changed])[0] - network([fmap])[0]).abs().amax(1)[0] > 1e-5
    expected = torch.zeros(9, 8, 10, dtype=torch.bool)
    for axis in range(3):
        for step in range(-3, 4):
            there = list(place)
            there[axis] += step
            if 0 <= there[axis] < expected.shape[axis]:
                expected[tuple(there)] = True
    assert torch.equal(moved, expected)


def test_coarse_voxels_are_seen_from_the_fine_ones_over_them():
    network = encoder().eval()
    maps = make_maps()
    changed = [maps[0], maps[1].clone(), maps[2]]
    changed[1][0, :, 3, 1, 4] += torch.randn(24)
    with torch.no_grad():
        moved = ((network(changed)[0] - network(maps)[0]).abs().amax(1)[0] > 1e-5).nonzero()
    # Trilinear sampling, and points up to 2 fine voxels away: within 3.5 fine voxels of the coarse voxel's centre.
    centre = 2 * torch.tensor([3, 1, 4]) + 0.5
    assert len(moved) > 8 and ((moved - centre).abs() <= 3.5).all()


@pytest.mark.parametrize("layers", [1, 2])
def test_batch_of_two_equals_two_batches_of_one(layers):
    network, maps = encoder(layers=layers).eval(), make_maps(2)
    with torch.no_grad():
        both = network(maps)
        assert [m.shape for m in both] == [m.shape for m in maps]
        for i in range(2):
            for whole, alone in zip(both, network([m[i : i + 1] for m in maps]), strict=True):
                assert torch.allclose(whole[i : i + 1], alone, atol=1e-5)


def test_sizes_may_be_odd_and_weights_serve_any():
    maps = make_maps(shapes=[(5, 1, 3), (3, 1, 2), (2, 1, 1)])
    out = encoder().eval()(maps)
    assert [m.shape for m in out] == [m.shape for m in maps] and all(m.isfinite().all() for m in out)


def test_every_parameter_gets_a_gradient(small_network, make_targets):
    network = small_network(encoder=encoder(layers=2))
    with torch.no_grad():  # at the very start offsets and weights are the same everywhere, whatever the query is
        for p in network.encoder.parameters():
            p += 0.02 * torch.randn_like(p)
    output = network(torch.rand(2, 1, 32, 32, 32))
    DetectionLoss(DenseQueryMatcher())(output, make_targets([3, 1], shape=(32, 32, 32)))["loss"].backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_checkpointing_gives_the_same_gradients():
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = encoder(layers=2, dropout=0.2, checkpointing=checkpointing).train()
        sum(m[:, ::3].sum() for m in network(make_maps(2))).backward()
        results.append([p.grad for p in network.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*results, strict=True))


def test_bfloat16_is_near_float32():
    network, maps = encoder().train(), make_maps()
    exact = network(maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = network(maps)
    for a, b in zip(exact, rounded, strict=True):
        assert 1e-4 * a.norm() < (a - b).norm() < 0.03 * a.norm(), "or it did not run in bfloat16"
