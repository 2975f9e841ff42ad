"""The order of the cases in each epoch, on one or many processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from organdetr_monai import distributed


def seed_of(*numbers: int) -> int:
    """A seed, 32 bits, that depends on all of the numbers: neighbouring ones give unrelated seeds."""
    return int(np.random.SeedSequence([abs(int(n)) for n in numbers]).generate_state(1)[0])


class EpochSampler(Sampler[int]):
    """All cases in a new random order in each epoch, shared out among the processes.

    Batch ``k`` of ``n`` processes with ``b`` cases each holds the same cases as batch ``k`` of one process with ``n *
    b``. PyTorch's ``DistributedSampler`` repeats cases until the processes have equally many; here that happens only
    where the last batch has fewer cases than there are processes, since each of them needs one.

    Parameters
    ----------
    cases : int
        How many there are.
    batch_size : int
        Of one process.
    seed : int
    """

    def __init__(self, cases: int, *, batch_size: int = 1, seed: int = 0) -> None:
        self.cases, self.seed, self.epoch = cases, seed, 0
        self.rank, self.processes = distributed.rank(), distributed.world_size()
        last = cases % (batch_size * self.processes)
        self.repeated = max(self.processes - last, 0) if last else 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that comes next: an order of its own, whatever was drawn before."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(range(self.rank, self.cases + self.repeated, self.processes))

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.cases, generator=torch.Generator().manual_seed(seed_of(self.seed, self.epoch)))
        indices = [*order.tolist(), *(int(order[k % self.cases]) for k in range(self.repeated))]
        return iter(indices[self.rank :: self.processes])
