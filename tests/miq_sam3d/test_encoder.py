"""The dual encoder: a gate that starts as if it were not there, and maps for any size."""

import pytest
import torch
from monai.networks.nets import UNet

from organdetr_monai.miq_sam3d.encoder import ACTIVATION, DualEncoder, GatedAttention, PatchTransformer
from tests.miq_sam3d.toys import CHANNELS, SHAPE, small_miq


def test_gate_starts_as_none_bit_for_bit():
    gated, plain = small_miq().encoder.eval(), small_miq(gated=False).encoder.eval()
    plain.load_state_dict(gated.state_dict())
    image = torch.rand(2, 1, *SHAPE)
    with torch.no_grad():
        ours, theirs = gated(image), plain(image)
        assert torch.equal(ours.voxels, theirs.voxels) and torch.equal(ours.fine, theirs.fine)
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
    voxels, fine, pyramid = small_miq().encoder(torch.rand(1, 1, *shape))
    for m, stride, channels in zip((voxels, fine, *pyramid), (1, 2, 4, 8), (8, 8, 16, 32), strict=True):
        assert tuple(m.shape[1:]) == (channels, *(-(-n // stride) for n in shape))


def test_without_the_transformer_it_is_monais_unet():
    encoder = small_miq().encoder.eval()
    torch.nn.init.zeros_(encoder.join.weight)
    torch.nn.init.zeros_(encoder.join.bias)
    alike = {"channels": CHANNELS, "strides": (2, 2, 2), "num_res_units": 1, "norm": "INSTANCE", "act": ACTIVATION}
    unet = UNet(3, 1, CHANNELS[0], **alike).eval()
    ours = [encoder.down[0], encoder.down[1], encoder.down[2], encoder.down[3]]
    ours += [part for pair in zip(encoder.widen, encoder.mix, strict=True) for part in pair]
    weights = [w for part in ours for w in part.state_dict().values()]
    unet.load_state_dict(dict(zip(unet.state_dict(), weights, strict=True)))
    image = torch.rand(1, 1, *SHAPE)
    with torch.no_grad():
        assert torch.allclose(encoder(image).voxels, unet(image), atol=1e-5)


@pytest.mark.parametrize(("options", "said"), [({"patch": 16}, "stride"), ({"channels": (8, 16, 24)}, "four numbers")])
def test_refuses_branches_that_do_not_meet(options, said):
    transformer = PatchTransformer(1, 24, patch=options.pop("patch", 8), heads=3)
    with pytest.raises(ValueError, match=said):
        DualEncoder(transformer, **options)
