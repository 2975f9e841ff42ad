"""The promptable network as a whole, untrained: what must hold for any weights."""

import numpy as np
import pytest
import torch

from organdetr_monai.miq_sam3d.decoder import CompetitiveDecoder
from organdetr_monai.miq_sam3d.losses import MIQLoss
from organdetr_monai.miq_sam3d.matching import InstanceMatcher
from organdetr_monai.miq_sam3d.queries import Prompt
from organdetr_monai.miq_sam3d.training import collate, prepare_batch
from tests.miq_sam3d.toys import SHAPE, sample, small_miq

ANSWER = {"masks", "objectness", "quality", "boxes"}


def batch(count: int = 2, seed: int = 0, **options):
    rng = np.random.default_rng(seed)
    return prepare_batch(collate([sample(rng, **options) for _ in range(count)]))


def same(a: dict, b: dict, rows: slice) -> bool:
    return all(torch.allclose(a[key][rows], b[key], atol=2e-5) for key in ANSWER)


def test_shapes():
    network = small_miq()
    inputs, _ = batch()
    answer = network.eval()(*inputs)
    assert set(answer) == ANSWER
    assert answer["masks"].shape == (2, 8, 20, 16, 12) and answer["boxes"].shape == (2, 8, 6)
    assert answer["objectness"].shape == answer["quality"].shape == (2, 8)
    assert ((answer["boxes"] > 0) & (answer["boxes"] < 1)).all()
    answer = network.train()(*inputs)
    assert len(answer["aux"]) == 1 and set(answer["aux"][0]) == ANSWER
    assert answer["similarity"].shape == (2, 10, 8, 6) and answer["presence"].shape == (2, 20, 16, 12)
    assert answer["votes"].shape == (2, 6, 10, 8, 6)


@pytest.mark.parametrize("competition", ["self", "slot"])
def test_batch_of_two_equals_two_batches_of_one(competition):
    network = small_miq(competition=competition).eval()
    inputs, _ = batch(remote=0.0)
    inputs = inputs._replace(exemplar=inputs.exemplar.flip(0), remote=torch.tensor([False, True]))
    with torch.no_grad():
        both = network(*inputs)
        for k in range(2):
            rows = slice(k, k + 1)
            assert same(both, network(*(part[rows] for part in inputs)), rows)


@pytest.mark.parametrize("competition", ["self", "slot"])
def test_every_parameter_gets_a_gradient(competition):
    network = small_miq(competition=competition)
    with torch.no_grad():
        for block in network.encoder.transformer.blocks:  # at the neutral start the saliency itself gets none
            block.attention.gamma.fill_(0.1)
    inputs, targets = batch(4)
    assert inputs.remote.any() and not inputs.remote.all()
    MIQLoss(InstanceMatcher())(network(*inputs), targets)["loss"].backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


def test_exemplar_counts_only_where_the_click_is_remote():
    network = small_miq().eval()
    inputs, _ = batch(remote=0.0)
    other = torch.rand_like(inputs.exemplar)
    with torch.no_grad():
        for remote, changed in ((False, False), (True, True)):
            flags = torch.full((2,), remote)
            ours = network(inputs.image, inputs.click, inputs.exemplar, flags)
            theirs = network(inputs.image, inputs.click, other, flags)
            assert (not torch.allclose(ours["masks"], theirs["masks"])) == changed


def test_remote_prompt_is_that_of_its_own_window():
    """What a window answers to a click elsewhere depends on the prompt alone: it can be kept."""
    network = small_miq().eval()
    inputs, _ = batch(remote=0.0)
    exemplar = inputs.image.flip(0)
    with torch.no_grad():
        whole = network(inputs.image, inputs.click, exemplar, torch.tensor([True, True]))
        prompt = network.prompt(network.encode(exemplar), inputs.click)
        assert same(network.retrieve(network.encode(inputs.image), prompt), whole, slice(None))


def test_axes_of_a_box_are_those_of_the_array():
    """Everything at a place moves with the place, axis by axis: masks and boxes agree on where the click is."""
    network = small_miq().eval()
    image = torch.full((1, 1, *SHAPE), 0.5)
    for index in ((32, 8, 4), (8, 26, 4), (8, 8, 19)):
        click = (torch.tensor([index]) + 0.5) / torch.tensor(SHAPE)
        with torch.no_grad():
            answer = network(image, click)
        assert (answer["boxes"][0, 0, :3] - click[0]).abs().max() < 0.1
        mask = answer["masks"][0, 0]
        peak = torch.tensor(np.unravel_index(int(mask.argmax()), mask.shape))
        assert ((peak + 0.5) / torch.tensor(mask.shape) - click[0]).abs().max() < 0.2


def test_more_queries_after_training_are_the_same_and_more():
    network = small_miq(num_queries=4).eval()
    encoding = network.encode(torch.rand(1, 1, *SHAPE))
    prompt = Prompt(torch.rand(1, 24), torch.rand(1, 12))
    generated = []
    for count in (4, 12):
        generated.append(
            network.generator(encoding.maps, encoding.keys, encoding.votes, prompt, None, None, count).content
        )
        network.num_queries = count
        assert network.retrieve(encoding, prompt)["masks"].shape[1] == count
    assert torch.allclose(generated[0], generated[1][:, :4])


def test_bfloat16_gives_float32_answers():
    network = small_miq()
    inputs, targets = batch()
    with torch.autocast("cpu", torch.bfloat16):
        answer = network(*inputs)
    assert all(answer[key].dtype == torch.float32 for key in (*ANSWER, "similarity", "votes"))
    assert torch.isfinite(MIQLoss(InstanceMatcher())(answer, targets)["loss"])


def test_refuses_an_unknown_competition():
    with pytest.raises(ValueError, match="'self', 'slot'.*'chess'"):
        CompetitiveDecoder(24, 8, competition="chess")


def test_likeness_is_the_highest_similarity():
    net = small_miq().train()
    image, click = torch.rand(2, 1, 32, 32, 32), torch.rand(2, 3)
    encoding = net.encode(image)
    prompt = net.prompt(encoding, click)
    similarity = net.retrieve(encoding, prompt, click)["similarity"]
    assert torch.allclose(net.likeness(encoding, prompt), similarity.flatten(1).amax(1))
