"""The order of the cases: nothing is lost, and processes share what one process would take."""

from itertools import zip_longest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organdetr_monai import distributed
from organdetr_monai.sampling import EpochSampler, seed_of


def order(cases, *, batch_size=1, rank=0, processes=1, epoch=1):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "rank", lambda: rank)
        patch.setattr(distributed, "world_size", lambda: processes)
        sampler = EpochSampler(cases, batch_size=batch_size, seed=3)
    sampler.set_epoch(epoch)
    indices = list(sampler)
    assert len(indices) == len(sampler)
    return indices


def batches(indices, size):
    return [indices[k : k + size] for k in range(0, len(indices), size)]


@given(cases=st.integers(1, 60), batch_size=st.integers(1, 5), processes=st.integers(1, 5))
def test_processes_share_the_batches_of_one(cases, batch_size, processes):
    shares = [order(cases, batch_size=batch_size, rank=k, processes=processes) for k in range(processes)]
    steps = [batches(share, batch_size) for share in shares]
    assert len({len(s) for s in steps}) == 1, "a process with fewer steps would keep the others waiting"
    whole = batches(order(cases), batch_size * processes)
    for parts, want in zip_longest(zip(*steps, strict=True), whole):
        seen = [case for part in parts for case in part]
        assert set(want) <= set(seen)
        if len(want) >= processes:
            assert sorted(seen) == sorted(want)
        else:
            assert len(seen) == processes and want is whole[-1]


def test_each_epoch_has_an_order_of_its_own_that_nothing_else_moves():
    first, second = order(50, epoch=1), order(50, epoch=2)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second and first != list(range(50))
    assert order(50, epoch=1) == first


def test_seeds_differ_in_every_number_and_its_place():
    assert len({seed_of(0, epoch, case) for epoch in range(20) for case in range(50)}) == 1000
    assert seed_of(1, 2, 3) != seed_of(3, 2, 1)
