"""Options that change what a step costs must not change what it computes."""

import pytest
import torch
from torch import nn

from organdetr_monai.inference import DetectionInferer
from organdetr_monai.losses import DetectionLoss
from organdetr_monai.matching import DenseQueryMatcher
from organdetr_monai.networks.pointwise import PointwiseConv3d

SHAPE = (32, 32, 32)


def step(network, make_targets):
    """Gradients of one step, and the bytes that autograd kept for it."""
    kept = {}
    image = torch.rand(2, 1, *SHAPE, generator=torch.Generator().manual_seed(3))

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(image)
        loss = DetectionLoss(DenseQueryMatcher())(output, make_targets([3, 1], shape=SHAPE))["loss"]
    loss.backward()
    return {name: p.grad for name, p in network.named_parameters()}, sum(kept.values())


def test_checkpointing_gives_the_same_gradients_from_less_memory(small_network, make_targets):
    plain, again = small_network(), small_network()
    again.load_state_dict(plain.state_dict())
    again.backbone.checkpointing = again.encoder.checkpointing = True
    gradients, kept = step(plain, make_targets)
    same, less = step(again, make_targets)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, same[name], rtol=1e-4, atol=1e-5), name
    assert less < 0.7 * kept, (less, kept)


def test_bfloat16_detects_what_float32_does(small_network):
    network = small_network().eval()
    volume = torch.rand(1, 1, 40, 32, 32)
    with torch.inference_mode():
        exact = DetectionInferer(SHAPE)(volume, network)[0]
        rounded = DetectionInferer(SHAPE, amp_dtype="bfloat16")(volume, network)[0]
    assert rounded["boxes"].dtype == rounded["scores"].dtype == torch.float32
    assert not torch.equal(exact["scores"], rounded["scores"]), "the network did not run in bfloat16"
    assert (exact["scores"] - rounded["scores"]).abs().max() < 0.02
    with pytest.raises(ValueError, match=r"amp_dtype.*half"):
        DetectionInferer(SHAPE, amp_dtype="half")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 autocast is for GPUs; none here")
def test_float16_detects_what_float32_does(small_network):
    network = small_network().eval().cuda()
    volume = torch.rand(1, 1, 40, 32, 32, device="cuda")
    with torch.inference_mode():
        exact = DetectionInferer(SHAPE)(volume, network)[0]
        rounded = DetectionInferer(SHAPE, amp_dtype="float16")(volume, network)[0]
    assert (exact["scores"] - rounded["scores"]).abs().max() < 0.02


@pytest.mark.parametrize("batch", [1, 2])
def test_pointwise_convolution_is_a_convolution(batch):
    torch.manual_seed(0)
    own, plain = PointwiseConv3d(5, 7), nn.Conv3d(5, 7, 1)
    plain.load_state_dict(own.state_dict())
    results = []
    for layer in (own, plain):
        x = torch.rand(batch, 5, 3, 4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad, layer.weight.grad, layer.bias.grad))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
