"""Shared by all tests: small networks and targets, seeded."""

from __future__ import annotations

import pytest
import torch

from organdetr_monai.networks import DeformableDecoder, FPNBackbone, MSAEncoder, OrganDETR, SegmentationHeads


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def small_network():
    """Factory of a network that takes milliseconds; 4 organs, 20 queries, levels of stride 2, 4 and 8."""

    def build(**parts) -> OrganDETR:
        torch.manual_seed(0)
        options = {
            "backbone": FPNBackbone(1, (6, 8, 12, 16), 24, (1, 2, 3)),
            "encoder": MSAEncoder(24, (4, 4, 4), heads=3, hidden=32),
            "decoder": DeformableDecoder(24, 4, layers=2, heads=6, points=2, hidden=32),
            "segmentation": SegmentationHeads(24, 4),
            "num_queries": 20,
        }
        return OrganDETR(**{**options, **parts})

    return build


@pytest.fixture
def make_targets():
    """Factory of targets for a batch: ``make_targets([3, 0])`` gives an image with three organs and one with none."""

    def build(counts, *, num_classes=4, shape=(16, 16, 16)):
        g = torch.Generator().manual_seed(1)
        targets = []
        for count in counts:
            centre = torch.rand(count, 3, generator=g) * 0.6 + 0.2
            size = torch.rand(count, 3, generator=g) * 0.2 + 0.1
            targets.append(
                {
                    "boxes": torch.cat([centre, size], 1),
                    "labels": torch.arange(1, count + 1),
                    "annotated": torch.ones(num_classes, dtype=torch.bool),
                    "mask": torch.randint(0, num_classes + 1, shape, generator=g, dtype=torch.uint8),
                }
            )
        return targets

    return build
