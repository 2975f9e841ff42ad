"""The moving average of the weights."""

from types import SimpleNamespace

import pytest
import torch

from organdetr_monai.averaging import WeightAverage


def engine(step: int) -> SimpleNamespace:
    return SimpleNamespace(state=SimpleNamespace(iteration=step))


def test_average_of_constant_weights_is_those_weights():
    network = torch.nn.Linear(2, 2)
    average = WeightAverage(network, decay=0.9)
    torch.nn.init.ones_(network.weight)
    for step in range(1, 200):
        average(engine(step))
    assert torch.allclose(average.average.weight, network.weight, atol=1e-6)


def test_it_moves_by_the_share_of_the_step_whatever_came_before():
    network = torch.nn.Linear(1, 1, bias=False)
    for step, share in ((1, 10 / 11), (10, 0.5), (10_000, 0.1)):
        average = WeightAverage(network, decay=0.9)  # as after a resumption: this object has seen no step
        torch.nn.init.zeros_(average.average.weight)
        torch.nn.init.ones_(network.weight)
        average(engine(step))
        assert average.average.weight.item() == pytest.approx(share, rel=1e-4)


def test_average_learns_nothing_and_the_network_is_left_alone():
    network = torch.nn.Linear(2, 2)
    before = network.weight.clone()
    average = WeightAverage(network)
    average(engine(3))
    assert torch.equal(network.weight, before) and network.weight.requires_grad
    assert not any(p.requires_grad for p in average.average.parameters())


def test_without_decay_it_is_the_network_as_it_stands():
    network = torch.nn.Linear(3, 3)
    average = WeightAverage(network, decay=0.0)
    for step in (1, 2, 500):
        torch.nn.init.normal_(network.weight)
        average(engine(step))
        assert torch.equal(average.average.weight, network.weight)


@pytest.mark.parametrize("decay", [1.5, 1.0, -0.1])
def test_decay_is_checked(decay):
    with pytest.raises(ValueError, match=str(decay)):
        WeightAverage(torch.nn.Linear(1, 1), decay=decay)
