"""The detector as a whole: the traps of its lineage, each a property."""

import pytest
import torch

from organdetr_monai.boxes import centre_to_corners
from organdetr_monai.losses import DetectionLoss
from organdetr_monai.matching import DenseQueryMatcher
from organdetr_monai.networks import DeformableDecoder, FPNBackbone, OrganDETR


def test_shapes_and_ranges(small_network):
    out = small_network().eval()(torch.rand(2, 1, 32, 24, 40))
    assert out["logits"].shape == (2, 20, 5) and out["boxes"].shape == (2, 20, 6)
    assert ((out["boxes"] > 0) & (out["boxes"] < 1)).all()
    assert set(out) == {"logits", "boxes"}, "segmentation and auxiliary outputs exist in training only"


def test_training_adds_auxiliary_layers_and_segmentation(small_network):
    out = small_network()(torch.rand(1, 1, 32, 24, 40))
    assert len(out["aux"]) == 1
    assert [tuple(s.shape) for s in out["segmentation"]] == [(1, 5, 16, 12, 20), (1, 5, 8, 6, 10), (1, 5, 4, 3, 5)]


def test_segmentation_costs_nothing_at_inference(small_network):
    network = small_network().eval()
    network.segmentation.forward = None  # calling it would raise
    network(torch.rand(1, 1, 32, 32, 32))


@pytest.mark.parametrize("encoder", ["msa", "none"])
def test_every_parameter_gets_a_gradient(small_network, make_targets, encoder):
    network = small_network(**({} if encoder == "msa" else {"encoder": None}))
    output = network(torch.rand(2, 1, 32, 32, 32))
    DetectionLoss(DenseQueryMatcher())(output, make_targets([3, 1], shape=(32, 32, 32)))["loss"].backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


@pytest.mark.parametrize("shape", [(32, 32, 32), (36, 28, 44)])
def test_batch_of_two_equals_two_batches_of_one(small_network, shape):
    network = small_network().eval()
    images = torch.rand(2, 1, *shape)
    with torch.inference_mode():
        both = network(images)
        for i in range(2):
            alone = network(images[i : i + 1])
            assert torch.allclose(both["logits"][i : i + 1], alone["logits"], atol=1e-5)
            assert torch.allclose(both["boxes"][i : i + 1], alone["boxes"], atol=1e-6)


def test_checkpoint_of_one_window_size_runs_at_another(small_network):
    network = small_network()
    network(torch.rand(1, 1, 32, 32, 32))
    other = small_network()
    other.load_state_dict(network.state_dict())
    assert other.eval()(torch.rand(1, 1, 48, 32, 64))["boxes"].isfinite().all()


def test_box_at_the_corner_that_attention_can_see():
    """Trap: reference points in (z, y, x) order. Only a corner of an asymmetric volume holds a signal, and the queries
    that sample most of it must be those whose boxes lie there."""
    decoder = DeformableDecoder(24, 2, layers=1, heads=6, levels=1, points=2, hidden=32)
    network = OrganDETR(FPNBackbone(1, (24,), 24, (1,)), None, decoder, num_queries=64)
    shape = (24, 8, 12)
    place = (20, 2, 9)  # far in x, near in y, far in z
    fmap = torch.zeros(1, 24, *shape)
    fmap[0, :, place[0] - 2 : place[0] + 3, place[1] - 1 : place[1] + 2, place[2] - 1 : place[2] + 2] = 1.0
    layer = decoder.layers[0].cross_attention
    with torch.no_grad():  # what is sampled passes through unchanged, and nothing else does
        layer.value.weight.copy_(torch.eye(24))
        layer.value.bias.zero_()
        layer.out.weight.copy_(torch.eye(24))
        layer.out.bias.zero_()
        decoder.level_embedding.zero_()
    memory = fmap.flatten(2).transpose(1, 2)
    box = network.reference.sigmoid()[None]
    with torch.no_grad():
        seen = layer(torch.zeros(1, 64, 24), box, memory, [shape])[0].mean(-1)  # (N,)
    best = box[0, seen.topk(3).indices]
    inside = centre_to_corners(best)
    where = (torch.tensor(place) + 0.5) / torch.tensor(shape)
    assert seen.max() > 0
    assert ((inside[:, :3] - 0.1 < where) & (where < inside[:, 3:] + 0.1)).all()


def test_a_shift_along_an_axis_moves_that_axis_of_the_box(small_network):
    """Boxes come in array order: gradients of cx, cy, cz with respect to the reference lie on their own axis."""
    network = small_network().eval()
    image = torch.rand(1, 1, 32, 24, 40)
    base = network(image)["boxes"]
    for axis in range(3):
        with torch.no_grad():
            network.reference[:, axis] += 1.0
            moved = network(image)["boxes"]
            network.reference[:, axis] -= 1.0
        change = (moved - base)[..., :3].mean((0, 1))
        assert change.argmax() == axis and change[axis] > 0.05


def test_reference_boxes_are_where_the_queries_start(small_network):
    boxes = torch.tensor([[0.2, 0.5, 0.7, 0.1, 0.2, 0.3], [0.6, 0.4, 0.3, 0.3, 0.1, 0.2]])
    network = small_network()
    network.set_reference_boxes(boxes)
    assert torch.allclose(network.reference.sigmoid()[2:4], boxes, atol=1e-4)
    out = network.eval()(torch.rand(1, 1, 32, 32, 32))["boxes"][0, :2]
    assert torch.allclose(out, boxes, atol=0.05), "the heads start with hardly a step"


def test_default_start_shifts_no_coordinate_of_the_centre(small_network):
    # Trap: a bias of -2 on [2:] shifts cz in 3D.
    centre = small_network().reference.sigmoid()[:, :3].mean(0)
    assert (centre - 0.5).abs().max() < 0.1


def test_refinement_can_be_off(small_network):
    decoder = DeformableDecoder(24, 4, layers=2, heads=6, points=2, hidden=32, refine=False)
    assert small_network(decoder=decoder)(torch.rand(1, 1, 32, 32, 32))["boxes"].isfinite().all()


@pytest.mark.parametrize("refine", [True, False])
def test_auxiliary_losses_can_be_off(small_network, make_targets, refine):
    decoder = DeformableDecoder(24, 4, layers=3, heads=6, points=2, hidden=32, refine=refine, auxiliary=False)
    network = small_network(decoder=decoder)
    output = network(torch.rand(2, 1, 32, 32, 32))
    assert output["aux"] == [] and len(decoder.class_heads) == 1 and len(decoder.box_heads) == (3 if refine else 1)
    terms = DetectionLoss(DenseQueryMatcher())(output, make_targets([3, 1], shape=(32, 32, 32)))
    assert not any(name.endswith("_aux") for name in terms)
    terms["loss"].backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_refinement_without_auxiliary_losses_gives_the_boxes_of_the_same_heads(small_network):
    options = {"layers": 3, "heads": 6, "points": 2, "hidden": 32}
    network = small_network(decoder=DeformableDecoder(24, 4, **options)).eval()
    other = small_network(decoder=DeformableDecoder(24, 4, **options, auxiliary=False)).eval()
    state = network.state_dict()
    last = {f"decoder.class_heads.0.{key}": state[f"decoder.class_heads.2.{key}"] for key in ("weight", "bias")}
    other.load_state_dict({key: {**state, **last}[key] for key in other.state_dict()})
    image = torch.rand(1, 1, 32, 32, 32)
    ours, theirs = network(image), other(image)
    assert torch.equal(ours["boxes"], theirs["boxes"]) and torch.equal(ours["logits"], theirs["logits"])


@pytest.mark.parametrize("levels", [(3, 2), (1, 3), (0, 1), (3, 5)])
def test_backbone_refuses_levels_it_has_not(levels):
    with pytest.raises(ValueError, match="levels"):
        FPNBackbone(1, (8, 8, 8, 8), 24, levels)


def test_widths_do_not_depend_on_the_image():
    backbone = FPNBackbone(1, (4, 8, 8, 8), 12, (2, 3, 4))
    for shape in ((64, 32, 32), (33, 47, 50)):
        assert [tuple(m.shape[2:]) for m in backbone(torch.rand(1, 1, *shape))] == [
            tuple(-(-n // 2**k) for n in shape) for k in (2, 3, 4)
        ]
