"""Where the time of a forward pass goes, and at what rate each part computes, against a plain matrix product."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch
from build import network
from measure import matrix_rate, table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parts(net: nn.Module) -> dict[str, nn.Module]:
    """Parts that are timed; none lies in another."""
    named = {f"backbone stage {i + 1}": stage for i, stage in enumerate(net.backbone.stages)}
    named |= {f"MSA at stride {2 ** net.backbone.levels[i]}": level for i, level in enumerate(net.encoder.levels)}
    named["decoder"] = net.decoder
    return named if net.refiner is None else named | {"second look": net.refiner}


class SecondLook(nn.Module):
    """A refiner's `refine` as the forward pass of a module, which hooks can time and counters count."""

    def __init__(self, refiner: nn.Module) -> None:
        super().__init__()
        self.refiner = refiner

    def forward(self, *args: Any) -> dict[str, torch.Tensor]:
        return self.refiner.refine(*args)

    refine = nn.Module.__call__


def profile(size: str, shape: tuple[int, int, int], repeat: int = 5) -> list[list[object]]:
    """Rows (part, ms, share of time, GFLOP, GFLOP/s); what lies between the parts is "rest"."""
    net = network(size)
    if net.refiner is not None:
        net.refiner = SecondLook(net.refiner)
    net.eval()
    image = torch.rand(1, 1, *shape)
    spent: dict[str, float] = defaultdict(float)
    started: dict[str, float] = {}
    for name, module in parts(net).items():
        module.register_forward_pre_hook(lambda m, i, name=name: started.__setitem__(name, time.perf_counter()))
        module.register_forward_hook(
            lambda m, i, o, name=name: spent.__setitem__(name, spent[name] + time.perf_counter() - started[name])
        )
    with torch.inference_mode():
        net(image)
        spent.clear()
        begin = time.perf_counter()
        for _ in range(repeat):
            net(image)
        total = time.perf_counter() - begin
    times, counter = dict(spent), FlopCounterMode(display=False)
    with counter:
        net(image)
    names = {id(module): path for path, module in net.named_modules()}
    flops = {n: sum(counter.get_flop_counts()[f"OrganDETR.{names[id(m)]}"].values()) for n, m in parts(net).items()}
    everything = counter.get_total_flops()
    times["rest"], flops["rest"] = total - sum(times.values()), everything - sum(flops.values())
    rows = [[n, t / repeat * 1e3, t / total, flops[n] / 1e9, flops[n] * repeat / t / 1e9] for n, t in times.items()]
    return [*rows, ["all", total / repeat * 1e3, 1.0, everything / 1e9, everything * repeat / total / 1e9]]


def rows() -> str:
    """The tables."""
    torch.set_num_threads(2)
    rate = matrix_rate()
    out = ""
    for size, shape in (("paper", (96, 96, 96)), ("paper", (224, 224, 96)), ("default", (96, 64, 96))):
        found = [[*row, row[-1] / rate] for row in profile(size, shape)]
        title = f"Forward by part, {size} size, {'x'.join(map(str, shape))}; matrix product {rate:.0f} GFLOP/s"
        out += table(title, ["part", "ms", "share", "GFLOP", "GFLOP/s", "of matrix product"], found)
    return out


if __name__ == "__main__":
    print(rows())
