"""Bright balls and dark cubes in grey: volumes whose answers are known, and a network small enough to learn them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from organdetr_monai.miq_sam3d.decoder import CompetitiveDecoder
from organdetr_monai.miq_sam3d.encoder import DualEncoder, PatchTransformer
from organdetr_monai.miq_sam3d.network import MIQSAM3D
from organdetr_monai.miq_sam3d.queries import BoxVotes, PromptEncoder, QueryGenerator, VoxelKinds

SHAPE = (40, 32, 24)  # no two axes alike
BALL, CUBE = 1, 2
GREY = {0: 0.45, BALL: 0.8, CUBE: 0.15}
CHANNELS = (8, 16, 24, 32)
KINDS = 2


def small_miq(*, gated: bool = True, competition: str = "self", num_queries: int = 8) -> MIQSAM3D:
    """A network that takes milliseconds, seeded."""
    torch.manual_seed(0)
    dim, read = 24, (CHANNELS[0], CHANNELS[1], CHANNELS[3])
    return MIQSAM3D(
        DualEncoder(PatchTransformer(1, dim, patch=8, layers=2, heads=3, hidden=32), channels=CHANNELS, gated=gated),
        VoxelKinds(CHANNELS[0], num_kinds=KINDS),
        BoxVotes(read, 16),
        PromptEncoder(num_kinds=KINDS, dim=dim),
        QueryGenerator(read, dim=dim),
        CompetitiveDecoder(dim, CHANNELS[0], layers=2, heads=6, points=2, hidden=48, competition=competition),
        num_queries=num_queries,
    )


def draw(
    things: Sequence[tuple[int, Sequence[float], float]], *, seed: int = 0, shape: Sequence[int] = SHAPE
) -> tuple[np.ndarray, np.ndarray]:
    """Paint things, each ``(kind, centre, radius)`` in voxels; a cube's radius is half its edge.

    Returns the image (X, Y, Z) float32, and the instances (X, Y, Z), ids in the order given.
    """
    noise = np.random.default_rng(seed).normal(0, 0.04, shape)
    image, ids = np.full(shape, GREY[0]), np.zeros(shape, dtype=np.int64)
    for number, (kind, centre, radius) in enumerate(things, start=1):
        x, y, z = (np.abs(axis - c) for axis, c in zip(np.ogrid[tuple(map(slice, shape))], centre, strict=True))
        inside = x**2 + y**2 + z**2 <= radius**2 if kind == BALL else (x <= radius) & (y <= radius) & (z <= radius)
        image[inside], ids[inside] = GREY[kind], number
    return np.clip(image + noise, 0, 1).astype(np.float32), ids


def scatter(rng: np.random.Generator, *, most: int = 3, shape: Sequence[int] = SHAPE) -> list[tuple]:
    """Up to ``most`` balls, and one more that touches another every other time, and cubes; nothing overlaps."""
    things: list[tuple] = []

    def free(centre: np.ndarray, radius: float) -> bool:
        return all(np.abs(centre - c).max() > radius + r + 2 for _, c, r in things)

    def place(kind: int) -> None:
        for _ in range(30):
            radius = rng.uniform(3, 5) * (0.8 if kind == CUBE else 1)
            centre = rng.uniform(radius, np.asarray(shape) - 1 - radius)
            if free(centre, radius):
                things.append((kind, centre, radius))
                return

    balls, cubes = (int(rng.integers(0, most + 1)) for _ in range(2))
    for _ in range(balls):
        place(BALL)
    if things and rng.random() < 0.5:
        _, centre, radius = things[0]
        for _ in range(30):
            other = rng.uniform(3, 5)
            way = rng.normal(size=3)
            beside = centre + way / np.linalg.norm(way) * (radius + other)
            inside = (beside - other >= 0).all() and (beside + other <= np.asarray(shape) - 1).all()
            if inside and all(np.abs(beside - c).max() > other + r + 2 for _, c, r in things[1:]):
                things.append((BALL, beside, other))
                break
    for _ in range(cubes):
        place(CUBE)
    return things


def sample(rng: np.random.Generator, *, remote: float = 0.3, background: float = 0.1) -> dict[str, Any]:
    """A training sample as the data transforms give it."""
    things = scatter(rng)
    seed = int(rng.integers(1 << 30))
    image, ids = draw(things, seed=seed)
    exemplar, their_ids, their_things = image, ids, things
    far = bool(rng.random() < remote)
    if far:
        their_things = scatter(rng)
        exemplar, their_ids = draw(their_things, seed=seed + 1)
    chosen = 0 if rng.random() < background or not their_things else int(rng.integers(1, len(their_things) + 1))
    places = np.argwhere(their_ids == chosen)
    index = places[rng.integers(len(places))]
    return {
        "image": torch.from_numpy(image)[None],
        "instances": torch.from_numpy(ids)[None],
        "kinds": torch.tensor([kind for kind, _, _ in things], dtype=torch.int64),
        "click": normalised(index),
        "clicked": 0 if far else chosen,
        "exemplar_instances": torch.from_numpy(their_ids)[None],
        "exemplar_kinds": torch.tensor([kind for kind, _, _ in their_things], dtype=torch.int64),
        "exemplar_clicked": chosen,
        "kind": their_things[chosen - 1][0] if chosen else 0,
        "exemplar": torch.from_numpy(exemplar)[None],
        "remote": far,
        "asked": True,
        "case": f"toy-{seed}",
    }


def normalised(index: Sequence[float], shape: Sequence[int] = SHAPE) -> torch.Tensor:
    """Voxel index to what the network takes for a click, (3,)."""
    return torch.as_tensor((np.asarray(index, dtype=np.float64) + 0.5) / np.asarray(shape), dtype=torch.float32)
