"""Two-stage query selection: the references come from the image, and the proposals learn."""

import pytest
import torch

from organdetr_monai.losses import DetectionLoss
from organdetr_monai.matching import DenseQueryMatcher
from organdetr_monai.networks import HybridQueries, Proposals
from tests.waits import without_waits

SHAPE = (32, 32, 32)


@pytest.fixture
def network(small_network):
    torch.manual_seed(0)
    return small_network(proposals=Proposals(24, 4))


def image(batch: int = 2, seed: int = 3) -> torch.Tensor:
    return torch.rand(batch, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))


def references(network, volume: torch.Tensor) -> torch.Tensor:
    """Logits of the boxes that the decoder starts from."""
    seen = []
    hook = network.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    with torch.no_grad():
        network(volume)
    hook.remove()
    return seen[0]


def test_references_come_from_the_image_and_the_content_does_not(network):
    a, b = references(network, image(1)), references(network, image(1, seed=4))
    assert a.shape == (1, 20, 6) and not torch.allclose(a, b, atol=1e-2)
    assert network.reference is None and "content" in network.state_dict()


def test_boxes_start_at_the_tokens_that_score_best():
    """A bright voxel of an asymmetric map is the best token, and its box is there with the size of its level."""
    proposals = Proposals(6, 1, levels=2)
    maps = [torch.zeros(1, 6, 8, 4, 6), torch.zeros(1, 6, 4, 2, 3)]
    maps[0][0, :3, 6, 0, 4], maps[1][0, :3, 0, 1, 2] = 1.0, 0.5
    with torch.no_grad():  # the layer norm makes both tokens alike; every other token is constant
        proposals.embed[0].weight.copy_(torch.eye(6))
        proposals.embed[0].bias.zero_()
        proposals.class_head.weight.copy_(torch.tensor([[0.0] * 6, [1.0] * 3 + [-1.0] * 3]))
        proposals.class_head.bias.zero_()
        proposals.set_reference_boxes(torch.tensor([[0.5, 0.5, 0.5, 0.1, 0.2, 0.3]] * 3))
        found = proposals(maps, 2)
    size = torch.tensor([0.1, 0.2, 0.3])
    fine = (torch.tensor([6.0, 0.0, 4.0]) + 0.5) / torch.tensor([8.0, 4.0, 6.0])
    coarse = (torch.tensor([0.0, 1.0, 2.0]) + 0.5) / torch.tensor([4.0, 2.0, 3.0])
    want = torch.stack([torch.cat([fine, size]), torch.cat([coarse, size])])
    assert torch.allclose(found["boxes"][0], want, atol=0.02)


def test_small_boxes_start_on_the_fine_levels():
    proposals = Proposals(6, 1, levels=3)
    sizes = torch.linspace(0.1, 0.4, 31)[torch.randperm(31)]
    proposals.set_reference_boxes(torch.cat([torch.full((31, 3), 0.5), sizes[:, None].expand(-1, 3)], dim=1))
    assert torch.allclose(proposals.reference.sigmoid(), torch.tensor([[0.15], [0.25], [0.35]]).expand(3, 3), atol=1e-3)
    proposals.set_reference_boxes(torch.full((1, 6), 0.3))
    assert torch.allclose(proposals.reference.sigmoid(), torch.full((3, 3), 0.3), atol=1e-3)


def test_proposals_are_in_the_loss_and_every_parameter_gets_a_gradient(network, make_targets):
    output = network(image())
    assert len(output["aux"]) == 2 and output["aux"][0]["logits"].shape == (2, 20, 5)
    terms = DetectionLoss(DenseQueryMatcher())(output, make_targets([3, 1], shape=SHAPE))
    terms["loss"].backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_decoder_teaches_the_proposals_nothing(network):
    output = network(image())
    (output["logits"].sum() + output["boxes"].sum()).backward()
    assert all(p.grad is None for p in network.proposals.parameters()), "references are handed on without gradient"


def test_a_step_towards_the_loss_brings_the_proposals_nearer(network, make_targets):
    targets, loss = make_targets([3, 1], shape=SHAPE), DetectionLoss(DenseQueryMatcher())
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    before = None
    for _ in range(15):
        optimizer.zero_grad()
        output = network(image())
        terms = loss({"logits": output["aux"][0]["logits"], "boxes": output["aux"][0]["boxes"]}, targets)
        before = before or terms["loss"].item()
        terms["loss"].backward()
        optimizer.step()
    assert terms["loss"].item() < 0.8 * before


def test_batch_of_two_equals_two_batches_of_one(network):
    network.eval()
    with torch.inference_mode():
        both = network(image())
        for i in range(2):
            alone = network(image()[i : i + 1])
            assert torch.allclose(both["boxes"][i : i + 1], alone["boxes"], atol=1e-5)
    assert set(both) == {"logits", "boxes"}


def test_it_goes_with_other_options(small_network, make_targets):
    network = small_network(proposals=Proposals(24, 4), extra_queries=HybridQueries(24, num_queries=30))
    output = network(image())
    assert output["extra"]["boxes"].shape == (2, 30, 6) and output["boxes"].shape == (2, 20, 6)


def test_a_step_waits_for_the_device_once(network, make_targets):
    with without_waits(transfers=1):
        output = network(image())
        DetectionLoss(DenseQueryMatcher())(output, make_targets([3, 1], shape=SHAPE))["loss"].backward()


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match="8 tokens.*9 boxes.*num_queries"):
        Proposals(6, 1, levels=1)([torch.zeros(1, 6, 2, 2, 2)], 9)
