"""Focused Decoder: an atlas of the training boxes, and queries that see their organ's region and nothing else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from organdetr_monai.boxes import normalise
from organdetr_monai.errors import InputError
from organdetr_monai.inference import DetectionInferer
from organdetr_monai.networks import FPNBackbone
from organdetr_monai.peers import FocusedDecoder, FocusedLoss, labelled_boxes
from organdetr_monai.peers.focused_decoder import QUERIES, cells_within
from tests.peers.scenes import BOXES, SHAPE, idle, learn, overlaps, scene

#: What training boxes of the scene's organs look like: moved by two voxels to each side.
TRAINING = torch.cat([BOXES, BOXES + 2, BOXES - 2])
LABELS = torch.tensor([1, 2]).repeat(3)


class Patches(torch.nn.Module):
    """A backbone that mixes nothing: the mean of 4×4×4 voxels, written to all channels."""

    def forward(self, image):
        return [F.avg_pool3d(image, 4).expand(-1, 24, -1, -1, -1)]


def network(backbone=None, *, layers: int = 2) -> FocusedDecoder:
    torch.manual_seed(0)
    backbone = backbone or FPNBackbone(1, (8, 12, 16), 24, (2,))
    net = FocusedDecoder(backbone, dim=24, num_classes=2, layers=layers, heads=3, hidden=32)
    net.set_atlas(normalise(TRAINING, SHAPE), LABELS)
    return net


def test_finds_the_organs_of_a_scene_where_they_are():
    net = network()
    with torch.no_grad():
        net.anchors += 0.03  # not where they are already
    learn(net, FocusedLoss(), steps=60)
    with torch.inference_mode():
        (prediction,) = DetectionInferer(SHAPE)(scene()[0], net)
    assert min(overlaps(prediction)) > 0.7 and (prediction["scores"] > 0.5).all()


def test_every_parameter_gets_a_gradient():
    net = network()
    image, target = scene()
    FocusedLoss()(net(image), [target])["loss"].backward()
    assert not idle(net)


def test_atlas_holds_the_training_boxes():
    net = network()
    low, high = TRAINING[LABELS == 1][:, :3].amin(0), TRAINING[LABELS == 1][:, 3:].amax(0)
    size = torch.tensor(SHAPE)
    expected = torch.cat([low / size - 0.05, high / size + 0.05]).clamp(0, 1)
    assert torch.allclose(net.regions[0], expected, atol=1e-6)
    centre, median = net.anchors[1, :, :3], normalise(BOXES[1], SHAPE)
    assert torch.allclose(net.anchors[1, :, 3:], median[3:].expand(QUERIES, 3), atol=1e-6)
    assert torch.allclose(centre.mean(0), median[:3], atol=1e-6) and len(centre.unique(dim=0)) == QUERIES
    boxes = net.train()(scene()[0])["boxes"]
    assert torch.allclose(boxes[0], net.anchors, atol=0.01), "the first boxes are the anchors"


def test_organ_without_training_boxes_may_be_anywhere():
    net = FocusedDecoder(Patches(), dim=24, num_classes=3, layers=1, heads=3)
    net.set_atlas(normalise(TRAINING, SHAPE), LABELS)
    assert net.regions[2].tolist() == [0, 0, 0, 1, 1, 1]


def test_cells_of_a_region_in_array_order():
    regions = torch.tensor([[0.5, 0, 0.25, 1, 0.3, 0.5], [0.49, 0.49, 0.49, 0.49, 0.49, 0.49]])
    inside = cells_within(regions, (4, 3, 8)).view(2, 4, 3, 8)
    assert inside[0].nonzero().amin(0).tolist() == [2, 0, 2] and inside[0].nonzero().amax(0).tolist() == [3, 0, 3]
    assert inside[0].sum() == 2 * 1 * 2
    assert inside[1].nonzero().tolist() == [[1, 1, 3]], "a cell at least"


@pytest.mark.parametrize("organ", [1, 2])
def test_query_sees_its_organs_region_only(organ):
    # One layer: its self-attention is among queries that have not seen anything yet.
    net = network(Patches(), layers=1).train()
    torch.nn.init.normal_(net.box_head[-1].weight, std=0.3)  # the first boxes hardly leave their anchors
    cells = cells_within(net.regions, (8, 4, 12)).view(2, 8, 4, 12)[organ - 1]
    inside = F.interpolate(cells[None, None].float(), scale_factor=4, mode="nearest").bool()
    image = torch.rand(1, 1, *SHAPE)
    with torch.no_grad():
        before = net(image)
        after = net(torch.where(inside, image, 1 - image))
        seen = net(torch.where(inside, 1 - image, image))
    for key in ("presence", "boxes"):
        mine = before[key][:, organ - 1]
        assert torch.allclose(mine, after[key][:, organ - 1], atol=1e-6), key
        assert not torch.allclose(mine, seen[key][:, organ - 1], atol=1e-6), key
        assert not torch.allclose(before[key][:, 2 - organ], after[key][:, 2 - organ], atol=1e-6), "another's region"


def test_boxes_stay_boxes_and_reach_every_training_box():
    net = network()
    torch.nn.init.normal_(net.box_head[-1].weight, std=100.0)
    for sign in (-1.0, 1.0):
        torch.nn.init.constant_(net.box_head[-1].bias, sign * 1e6)
        boxes = net.train()(scene()[0])["boxes"][0]
        assert (boxes[..., 3:] > 0).all()
        far = sign * (boxes - net.anchors)
        needed = torch.stack(
            [(normalise(TRAINING[LABELS == k], SHAPE) - normalise(BOXES[k - 1], SHAPE)).abs().amax(0) for k in (1, 2)]
        )
        assert (far[..., :3] >= needed[:, None, :3] - 1e-5).all() and (far[..., :3] >= 0.1 - 1e-5).all()


def output():
    """What the network gives in training, leaves of the graph."""
    out = network()(scene()[0])
    return {
        **{key: out[key].detach().requires_grad_() for key in ("presence", "boxes")},
        "aux": [],
        "anchors": out["anchors"],
    }


def test_unannotated_organ_gives_no_gradient():
    out, (_, target) = output(), scene(annotated=(1,))
    FocusedLoss()(out, [target])["loss"].backward()
    for key in ("presence", "boxes"):
        assert out[key].grad[:, 1].abs().sum() == 0 and out[key].grad[:, 0].abs().sum() > 0, key


def test_absent_organ_teaches_absence_and_moves_no_box():
    out, (_, target) = output(), scene(shown=(1,))
    FocusedLoss()(out, [target])["loss"].backward()
    assert (out["presence"].grad[:, 1] > 0).all() and out["boxes"].grad[:, 1].abs().sum() == 0


def test_the_query_whose_anchor_fits_best_is_responsible():
    out, (_, target) = output(), scene()
    out["presence"] = torch.zeros(1, 2, QUERIES, requires_grad=True)  # all alike
    FocusedLoss()(out, [target])["loss"].backward()
    for organ in range(2):
        moved = out["boxes"].grad[0, organ].abs().sum(-1).nonzero()[:, 0].tolist()
        nearest = (out["anchors"][organ] - target["boxes"][organ]).abs().sum(-1).argmin().item()
        assert moved == [nearest]
        assert out["presence"].grad[0, organ].argmin() == nearest, "it is taught to be surest"


def test_image_without_organs_is_finite():
    net, (image, target) = network(), scene(shown=())
    terms = FocusedLoss()(net(image), [target])
    assert terms["loss"].isfinite() and terms["l1"] == terms["giou"] == terms["l1_aux"] == 0


def test_loss_is_the_weighted_sum_of_its_terms():
    net, (image, target) = network(), scene()
    terms = FocusedLoss(weights={"l1": 3.0})(net(image), [target])
    want = sum(w * (terms[n] + terms[f"{n}_aux"]) for n, w in {"class": 2, "l1": 3, "giou": 2}.items())
    assert terms["loss"].item() == pytest.approx(want.item(), rel=1e-5)
    with pytest.raises(ValueError, match="segmentation"):
        FocusedLoss(weights={"segmentation": 1.0})


def test_labelled_boxes_are_those_of_the_samples():
    image = torch.zeros(1, *SHAPE)
    samples = [
        {"image": image, "boxes": BOXES, "labels": torch.tensor([1, 2])},
        {"image": image, "boxes": torch.zeros(0, 6), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    boxes, labels = labelled_boxes(samples)
    assert torch.allclose(boxes, normalise(BOXES, SHAPE)) and labels.tolist() == [1, 2]
    with pytest.raises(InputError, match="no training sample"):
        labelled_boxes(samples[1:])
