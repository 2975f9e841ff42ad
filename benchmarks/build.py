"""Networks and targets of the benchmarks, built from the bundle's own configs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from measure import ROOT
from monai.bundle import ConfigParser
from torch import nn

from organdetr_monai.losses import DetectionLoss
from organdetr_monai.matching import DenseQueryMatcher


def network(size: str, *, queries: int = 100, organs: int = 5, **overrides: object) -> nn.Module:
    """The network of ``train.json`` (``"default"``) or with ``configs/size/<size>.json`` over it."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/train.json"))
    if size != "default":
        parser.update(ConfigParser.load_config_file(str(ROOT / f"configs/size/{size}.json")))
    parser["organs"] = [f"organ {i}" for i in range(organs)]
    parser["num_queries"] = queries
    for key, value in overrides.items():
        parser[key.replace("__", "#")] = value
    torch.manual_seed(0)
    return parser.get_parsed_content("network_def")


def targets(shape: Sequence[int], *, organs: int = 5, batch: int = 1, device: str = "cpu") -> list[dict]:
    """Made-up truth of a batch, as :func:`organdetr_monai.training.prepare_batch` gives it."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.cat(
        [
            torch.rand(organs, 3, generator=generator) * 0.5 + 0.25,
            torch.rand(organs, 3, generator=generator) * 0.3 + 0.1,
        ],
        dim=1,
    )
    mask = torch.randint(0, organs + 1, tuple(shape), generator=generator, dtype=torch.uint8)
    one = {
        "boxes": boxes,
        "labels": torch.arange(1, organs + 1),
        "annotated": torch.ones(organs, dtype=torch.bool),
        "mask": mask,
    }
    return [{k: v.to(device) for k, v in one.items()} for _ in range(batch)]


def training_step(net: nn.Module, image: torch.Tensor, truth: list[dict], amp_dtype: torch.dtype | None = None):
    """A function that does one step of training: forward, dense matching, loss, backward, AdamW."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    loss = DetectionLoss(DenseQueryMatcher(0.2))
    net.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(image.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            output = net(image)
        loss(output, truth)["loss"].backward()
        optimizer.step()

    return step
