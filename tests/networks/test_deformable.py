"""Deformable attention: fast and plain sampling agree, and axes are what they say."""

import pytest
import torch

from organdetr_monai.networks.deformable import DeformableAttention, sample_bag, sample_grid, unit_directions

SHAPES = [(6, 4, 8), (3, 2, 4), (2, 1, 2)]


def arguments(batch=2, queries=5, heads=3, channels=4, points=2, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    length = sum(x * y * z for x, y, z in SHAPES)
    value = torch.randn(batch, length, heads, channels, generator=g, dtype=dtype)
    where = torch.rand(batch, queries, heads, len(SHAPES), points, 3, generator=g, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, len(SHAPES), points, generator=g, dtype=dtype)
    return value, where, weights


def test_bag_equals_grid_forward_and_backward():
    results = []
    for sample in (sample_grid, sample_bag):
        inputs = [t.requires_grad_() for t in arguments()]
        out = sample(inputs[0], SHAPES, inputs[1], inputs[2])
        out.square().sum().backward()
        results.append((out.detach(), *(t.grad for t in inputs)))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-4), (a - b).abs().max()


@pytest.mark.parametrize("sample", [sample_grid, sample_bag])
def test_sample_at_a_voxel_centre_is_that_voxel(sample):
    shape = (4, 3, 5)
    value = torch.arange(60.0).view(1, 60, 1, 1)
    index = torch.tensor([[0, 0, 0], [3, 2, 4], [1, 2, 3]])
    where = ((index + 0.5) / torch.tensor(shape)).view(1, 3, 1, 1, 1, 3)
    out = sample(value, [shape], where, torch.ones(1, 3, 1, 1, 1))
    want = index[:, 0] * 15 + index[:, 1] * 5 + index[:, 2]
    assert torch.allclose(out.flatten(), want.float(), atol=1e-4)


@pytest.mark.parametrize("sample", [sample_grid, sample_bag])
def test_outside_is_zero_even_far_away(sample):
    value = torch.ones(1, 60, 1, 2)
    where = torch.tensor([[5.0, 0.5, 0.5], [0.5, -1e6, 0.5], [0.5, 0.5, 1e8]]).view(1, 3, 1, 1, 1, 3)
    out = sample(value, [(4, 3, 5)], where, torch.ones(1, 3, 1, 1, 1))
    assert out.abs().max() == 0


def test_six_heads_look_at_the_six_faces():
    attention = DeformableAttention(24, heads=6, levels=1, points=4)
    seen = []
    attention.sample = lambda value, shapes, points, weights: seen.append(points) or torch.zeros(*points.shape[:2], 24)
    box = torch.tensor([0.5, 0.4, 0.6, 0.2, 0.4, 0.1]).view(1, 1, 6)
    attention(torch.zeros(1, 1, 24), box, torch.zeros(1, 8, 24), [(2, 2, 2)])
    outermost = seen[0][0, 0, :, 0, -1]  # (heads, 3)
    centre, half = box[0, 0, :3], box[0, 0, 3:] / 2
    assert torch.allclose(outermost, centre + unit_directions(6) * half, atol=1e-6)
    assert {tuple(d.tolist()) for d in unit_directions(6)} == {
        (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1),
    }  # fmt: skip


@pytest.mark.parametrize("heads", [1, 3, 8, 12])
def test_directions_are_distinct_for_any_number_of_heads(heads):
    directions = unit_directions(heads)
    assert directions.shape == (heads, 3)
    assert torch.allclose(directions.abs().amax(-1), torch.ones(heads))
    assert len({tuple(d.tolist()) for d in directions}) == heads
