"""The dual encoder: a gate that starts as if it were not there, and maps for any size."""

import pytest
import torch

from organdetr_monai.miq_sam3d.encoder import DualEncoder, GatedAttention, PatchTransformer
from organdetr_monai.networks import FPNBackbone
from tests.miq_sam3d.toys import CHANNELS, SHAPE, small_miq


def test_gate_starts_as_none_bit_for_bit():
    gated, plain = small_miq().encoder.eval(), small_miq(gated=False).encoder.eval()
    plain.load_state_dict(gated.state_dict())
    image = torch.rand(2, 1, *SHAPE)
    with torch.no_grad():
        ours, theirs = gated(image), plain(image)
        assert torch.equal(ours.fine, theirs.fine)
        assert all(torch.equal(a, b) for a, b in zip(ours.pyramid, theirs.pyramid, strict=True))
        for block in gated.transformer.blocks:
            block.attention.gamma.fill_(1.0)
        assert not torch.equal(gated(image).fine, theirs.fine), "the gate is not wired up"


def test_gate_learns_from_its_neutral_start():
    encoder = small_miq().encoder
    encoder(torch.rand(1, 1, *SHAPE)).fine.square().sum().backward()
    for block in encoder.transformer.blocks:
        assert block.attention.gamma.grad.abs().min() > 0 and block.attention.beta.grad.abs().min() > 0


def test_salient_places_are_looked_at():
    attention = GatedAttention(12, 2).eval()
    tokens = torch.rand(1, 5, 12)
    with torch.no_grad():
        for layer in (attention.query, attention.key):
            layer.weight.zero_()  # no preference but the gate's
        attention.query.bias.zero_()
        attention.gamma.fill_(20.0)
        saliency = torch.tensor([[0.1, 0.1, 0.9, 0.1, 0.1]])
        alone = attention.out(attention.value(tokens[:, 2]))
        assert torch.allclose(attention.gated(tokens, saliency), alone[:, None].expand(-1, 5, -1), atol=1e-5)
        attention.gamma.zero_()
        attention.beta.fill_(1.0)
        mean = attention.out((attention.value(tokens) * (1 + saliency[..., None])).mean(1))
        assert torch.allclose(attention.gated(tokens, saliency), mean[:, None].expand(-1, 5, -1), atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 32, 24), (33, 20, 47)])
def test_maps_of_any_size(shape):
    fine, pyramid = small_miq().encoder(torch.rand(1, 1, *shape))
    assert tuple(fine.shape[2:]) == tuple(-(-n // 2) for n in shape)
    assert [tuple(m.shape[2:]) for m in pyramid] == [tuple(-(-n // s) for n in shape) for s in (4, 8, 16)]


def test_takes_the_weights_of_an_organ_detector():
    trained = FPNBackbone(1, CHANNELS, 24, (2, 3, 4))
    assert small_miq().encoder.backbone.load_state_dict(trained.state_dict())


@pytest.mark.parametrize(("levels", "patch", "said"), [((2, 3), 16, "strides"), ((1, 2, 3), 8, "level 2")])
def test_refuses_branches_that_do_not_meet(levels, patch, said):
    backbone = FPNBackbone(1, CHANNELS, 24, levels)
    with pytest.raises(ValueError, match=said):
        DualEncoder(backbone, PatchTransformer(1, 24, patch=patch, heads=3), channels=CHANNELS, dim=24)
