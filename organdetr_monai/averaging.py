"""Average of the weights over the steps: what is validated and shipped."""

from __future__ import annotations

from copy import deepcopy

import torch
from ignite.engine import Engine, Events
from torch import nn


class WeightAverage:
    """Handler: exponential moving average of a network's weights.

    After step ``i`` the average moves by ``1 - min(decay, i / (i + 10))`` towards the network: quickly at first, so
    that the start is soon forgotten. The step is the trainer's, so a resumed run goes on as if nothing had happened;
    ignite's ``EMAHandler`` counts its warm-up from the start of the process.

    Parameters
    ----------
    network : nn.Module
        Wrapped in ``DistributedDataParallel`` or not.
    decay : float
        In [0, 1): the average spans about ``1 / (1 - decay)`` steps; 0 is the network as it stands, no average.
    """

    def __init__(self, network: nn.Module, decay: float = 0.998) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.network = getattr(network, "module", network)
        #: The network with the averaged weights.
        self.average = deepcopy(self.network).eval().requires_grad_(False)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Move the average after a step; buffers are copied."""
        step = engine.state.iteration
        share = 1 - min(self.decay, step / (step + 10))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), share)
        for mine, theirs in zip(self.average.buffers(), self.network.buffers(), strict=True):
            mine.copy_(theirs)
