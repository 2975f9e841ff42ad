"""3D deformable attention's sampling, forward and backward: our ways against a straightforward ``grid_sample``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from measure import table, timed
from torch import Tensor

from organdetr_monai.networks import compiled
from organdetr_monai.networks.compiled import sample_compiled
from organdetr_monai.networks.sampling import sample_bag

SIZES = {  # queries, levels, heads, channels of a head
    "decoder, paper size, 96x96x96": (100, [(24, 24, 24), (12, 12, 12), (6, 6, 6)], 6, 64),
    "decoder, paper size, 224x224x96": (100, [(56, 56, 24), (28, 28, 12), (14, 14, 6)], 6, 64),
    "decoder, 600 queries, 160x160x96": (600, [(40, 40, 24), (20, 20, 12), (10, 10, 6)], 6, 64),
    "decoder, default size, 96x64x96": (100, [(24, 16, 24), (12, 8, 12), (6, 4, 6)], 6, 16),
    "every voxel a query, 96x96x96": (15768, [(24, 24, 24), (12, 12, 12), (6, 6, 6)], 6, 64),
}


def straightforward(value: Tensor, shapes: list, points: Tensor, weights: Tensor) -> Tensor:
    """The textbook's steps one after another: sample each level, stack, weigh, sum."""
    batch, _, heads, channels = value.shape
    queries = points.shape[1]
    sampled, start = [], 0
    for level, shape in enumerate(shapes):
        stop = start + shape[0] * shape[1] * shape[2]
        volume = value[:, start:stop].flatten(2).transpose(1, 2).reshape(batch * heads, channels, *shape)
        grid = (2 * points[:, :, :, level] - 1).flip(-1).transpose(1, 2).flatten(0, 1)  # (B * heads, Q, P, 3)
        sampled.append(F.grid_sample(volume, grid[:, None], align_corners=False)[:, :, 0])  # (B * heads, C, Q, P)
        start = stop
    share = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    return (torch.stack(sampled, dim=-2).flatten(-2) * share).sum(-1).view(batch, -1, queries).transpose(1, 2)


def rows() -> str:
    """The table."""
    torch.set_num_threads(2)
    ways = {"embedding_bag": sample_bag}
    if compiled.library() is not None:
        ways["C"] = sample_compiled
    out = []
    for name, (queries, shapes, heads, channels) in SIZES.items():
        torch.manual_seed(0)
        length = sum(x * y * z for x, y, z in shapes)
        value = torch.randn(1, length, heads, channels, requires_grad=True)
        points = torch.rand(1, queries, heads, 3, 4, 3).requires_grad_()
        weights = torch.rand(1, queries, heads, 3, 4).requires_grad_()
        grad = torch.randn(1, queries, heads * channels)
        inputs = (value, points, weights)

        def both(way, inputs=inputs, shapes=shapes, grad=grad):
            out = way(inputs[0], shapes, inputs[1], inputs[2])
            return torch.autograd.grad(out, inputs, grad)

        def once_read_once_written(inputs=inputs, grad=grad):
            # Forward reads the inputs and writes the output; backward reads both and writes a gradient of each input.
            return [t.detach().clone() for t in (*inputs, grad)], [torch.zeros_like(t) for t in inputs]

        reference, got = both(straightforward), {way: both(f) for way, f in ways.items()}
        for way, grads in got.items():
            worst = max(((a - b).norm() / b.norm()).item() for a, b in zip(grads, reference, strict=True))
            assert worst < 1e-4, f"{way} differs by {worst} at {name}"
        base, memory = timed(lambda: both(straightforward))[0], timed(once_read_once_written)[0]
        for way, function in ways.items():
            wall = timed(lambda: both(function))[0]  # noqa: B023 - called at once
            out.append([name, way, base * 1e3, wall * 1e3, base / wall, wall / memory])
    header = ["", "way", "grid_sample, ms", "ours, ms", "times faster", "times one read and write"]
    return table("Deformable sampling, forward and backward, float32, batch 1", header, out)


if __name__ == "__main__":
    print(rows())
