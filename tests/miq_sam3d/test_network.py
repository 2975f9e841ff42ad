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

ANSWER = {"masks", "objectness", "quality", "boxes", "kinds"}


def batch(count: int = 2, seed: int = 0, **options):
    rng = np.random.default_rng(seed)
    return prepare_batch(collate([sample(rng, **options) for _ in range(count)]))


def same(a: dict, b: dict, rows: slice) -> bool:
    return all(torch.allclose(a[key][rows], b[key], atol=2e-5) for key in ANSWER)


def test_shapes():
    network = small_miq()
    inputs, targets = batch(remote=1.0)
    answer = network.eval()(*inputs)
    assert set(answer) == {*ANSWER, "detail"}
    assert answer["masks"].shape == (2, 8, 20, 16, 12) and answer["detail"].shape == (2, *SHAPE)
    assert answer["boxes"].shape == (2, 8, 6)
    assert answer["objectness"].shape == answer["quality"].shape == (2, 8) and answer["kinds"].shape == (2, 8, 2)
    assert ((answer["boxes"] > 0) & (answer["boxes"] < 1)).all()
    answer = network.train()(*inputs)  # of the exemplars, too
    assert len(answer["aux"]) == 1 and set(answer["aux"][0]) == ANSWER
    assert answer["masks"].shape == (4, 8, 20, 16, 12) and len(targets.labels) == 4
    assert answer["voxels"].shape == (4, 3, *SHAPE)
    assert answer["votes"].shape == (4, 6, 20, 16, 12) and answer["middles"].shape == (4, 20, 16, 12)


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


def test_in_training_an_exemplar_is_answered_like_an_image_of_its_own():
    network = small_miq().train()
    inputs, _ = batch(remote=0.0)
    exemplar, remote = inputs.image.flip(0), torch.tensor([True, False])
    with torch.no_grad():
        answer = network(inputs.image, inputs.click, exemplar, remote)
        assert answer["masks"].shape[0] == 3
        alone = network(exemplar[:1], inputs.click[:1])
    assert same(answer, alone, slice(2, 3))


def test_where_nothing_is_asked_the_voxels_learn_alone():
    network = small_miq().train()
    inputs, targets = batch(remote=1.0)
    asked, unasked = network(*inputs), network(*inputs._replace(click=None))
    assert set(unasked) == {"voxels", "votes", "middles"}
    assert all(torch.equal(asked[key], unasked[key]) for key in unasked)
    terms = MIQLoss(InstanceMatcher())(unasked, targets)
    assert set(terms) == {"loss", "kinds", "votes", "middles"} and terms["loss"].requires_grad


def test_what_clicks_ask_for_does_not_reach_the_encoder():
    network = small_miq()
    inputs, targets = batch(4)
    weights = {name: 0.0 for name in ("kinds", "votes", "middles")}
    MIQLoss(InstanceMatcher(), weights=weights)(network(*inputs), targets)["loss"].backward()
    assert all(p.grad is None or not p.grad.any() for p in network.encoder.parameters())
    assert network.decoder.heads.mask[0].weight.grad.abs().sum() > 0


def test_what_is_clicked_is_as_sharp_as_the_voxels():
    """A lesion of one voxel that the voxels are sure of is a mask of one voxel, not of the cell around it."""
    network = small_miq().eval()
    kinds = torch.zeros(1, 3, *SHAPE)
    kinds[:, 0] = 9.0
    kinds[0, :, 20, 16, 12] = torch.tensor([0.0, 9.0, 0.0])
    encoding = network.encode(torch.rand(1, 1, *SHAPE))._replace(kinds=kinds)
    click = (torch.tensor([[20, 16, 12]]) + 0.5) / torch.tensor(SHAPE)
    with torch.no_grad():
        answer = network.retrieve(encoding, network.prompt(encoding, click), click)
    smooth = torch.nn.functional.interpolate(answer["masks"], size=SHAPE, mode="trilinear")
    near = (smooth[0, 0] + answer["detail"][0])[18:23, 14:19, 10:15].flatten()
    assert int(near.argmax()) == 62 and near[62] > near[near.argsort(descending=True)[1]] + 3


def test_more_queries_after_training_are_the_same_and_more():
    network = small_miq(num_queries=4).eval()
    encoding = network.encode(torch.rand(1, 1, *SHAPE))
    prompt = Prompt(torch.rand(1, 24), torch.tensor([[0.7, 0.3]]))
    maps = [encoding.maps.fine, *encoding.maps.pyramid]
    for count in (4, 12):
        network.num_queries = count
        assert network.retrieve(encoding, prompt)["masks"].shape[1] == count
    heat = torch.rand(1, 20, 16, 12)
    few, more = (network.generator(maps, heat, encoding.votes, prompt, None, None, n).content for n in (4, 12))
    assert torch.allclose(few, more[:, :4])


def test_bfloat16_gives_float32_answers():
    network = small_miq()
    inputs, targets = batch()
    with torch.autocast("cpu", torch.bfloat16):
        answer = network(*inputs)
    assert all(answer[key].dtype == torch.float32 for key in (*ANSWER, "voxels", "votes", "middles"))
    assert torch.isfinite(MIQLoss(InstanceMatcher())(answer, targets)["loss"])


def test_refuses_an_unknown_competition():
    with pytest.raises(ValueError, match="'self', 'slot'.*'chess'"):
        CompetitiveDecoder(24, 8, competition="chess")
