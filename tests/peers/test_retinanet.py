"""RetinaNet: anchors that lie where they say, codes that come back as boxes, organs that are not annotated."""

from __future__ import annotations

import pytest
import torch
from monai.apps.detection.utils.box_selector import BoxSelector

from organdetr_monai.boxes import centre_to_corners, denormalise, iou_giou, normalise
from organdetr_monai.inference import DetectionInferer, best_queries
from organdetr_monai.networks import FPNBackbone, SegmentationHeads
from organdetr_monai.peers import OrganRetinaNet, RetinaNetLoss
from organdetr_monai.peers.retinanet import grid_anchors, typical_sizes
from tests.peers.scenes import BOXES, SHAPE, idle, learn, overlaps, scene


def network(*, segmentation: bool = False, organs: int = 2) -> OrganRetinaNet:
    torch.manual_seed(0)
    heads = SegmentationHeads(16, organs, levels=2) if segmentation else None
    net = OrganRetinaNet(FPNBackbone(1, (8, 12, 16), 16, (2, 3)), heads, dim=16, num_classes=organs, num_anchors=2)
    net.set_anchor_shapes(normalise(BOXES, SHAPE), SHAPE)
    return net


@pytest.mark.parametrize("segmentation", [False, True])
def test_finds_the_organs_of_a_scene_where_they_are(segmentation):
    net = network(segmentation=segmentation)
    learn(net, RetinaNetLoss(), steps=60)
    with torch.inference_mode():
        (prediction,) = DetectionInferer(SHAPE)(scene()[0], net)
    assert min(overlaps(prediction)) > 0.6


@pytest.mark.parametrize("segmentation", [False, True])
def test_every_parameter_gets_a_gradient(segmentation):
    net = network(segmentation=segmentation)
    image, target = scene()
    RetinaNetLoss()(net(image), [target])["loss"].backward()
    assert not idle(net)


def test_anchors_lie_over_the_cells_of_their_map():
    shapes = torch.tensor([[2.0, 4, 6], [8, 8, 8]])
    anchors = grid_anchors((2, 3, 4), 8, shapes).view(2, 3, 4, 2, 6)
    assert anchors[0, 0, 0, 0].tolist() == [3, 2, 1, 5, 6, 7]
    assert anchors[1, 2, 3, 1].tolist() == [8, 16, 24, 16, 24, 32], "the last cell itself"


def test_rows_follow_the_anchors():
    # One logit stands out, of organ 2 at anchor 1 of a cell of the coarser map: its anchor must be the answer.
    net = network().eval()
    cells = [(8, 4, 12), (4, 2, 6)]
    scores = [torch.full((1, 2 * 2, *c), -4.0) for c in cells]
    scores[1][0, 1 * 2 + 1, 3, 1, 2] = 5.0
    net.classification_head.forward = lambda maps: scores
    net.regression_head.forward = lambda maps: [torch.zeros(1, 2 * 6, *c) for c in cells]
    out = net(scene()[0])
    score, box = best_queries(out, SHAPE)
    centre, size = torch.tensor([28.0, 12, 20]), net.anchor_shapes[1]
    limit = torch.tensor([*SHAPE, *SHAPE], dtype=torch.float32)
    expected = torch.cat([centre - size / 2, centre + size / 2]).clamp(min=0).minimum(limit)
    assert score[0, 1].item() == pytest.approx(torch.tensor(5.0).sigmoid().item())
    assert torch.allclose(box[0, 1], expected, atol=1e-4)


def test_codes_come_back_as_the_boxes_of_our_convention():
    net = network()
    truth = denormalise(normalise(BOXES, SHAPE), SHAPE)
    anchors = truth + torch.tensor([2.0, -1, 3, -1, 2, 1])
    codes = net.coder.encode_single(truth, anchors)
    assert torch.allclose(net.coder.decode_single(codes, anchors), BOXES, atol=1e-4)


def test_best_boxes_are_those_that_monais_selector_puts_first():
    net = network().eval()
    torch.nn.init.normal_(net.classification_head.cls_logits.weight, std=0.5)
    torch.nn.init.normal_(net.regression_head.bbox_reg.weight, std=0.02)
    image = scene()[0]
    with torch.no_grad():
        score, box = best_queries(net(image), SHAPE)
        raw = net.train()(image)
    corners = net.coder.decode_single(raw["codes"][0], raw["anchors"])
    selector = BoxSelector(score_thresh=0.0, topk_candidates_per_level=10**6, nms_thresh=0.5, detections_per_img=10**6)
    boxes, scores, labels = selector.select_boxes_per_image([corners], [raw["scores"][0]], list(SHAPE))
    for organ in range(2):
        first = (labels == organ).nonzero()[0, 0]
        assert score[0, organ].item() == pytest.approx(scores[first].item(), rel=1e-5)
        assert torch.allclose(box[0, organ], boxes[first], atol=1e-3)


def test_output_is_one_query_for_each_organ_and_heads_work_in_training_only():
    net = network(segmentation=True).eval()
    net.segmentation.forward = None  # calling it would raise
    out = net(torch.rand(2, 1, *SHAPE))
    assert out["logits"].shape == (2, 2, 3) and out["boxes"].shape == (2, 2, 6) and set(out) == {"logits", "boxes"}
    assert ((out["boxes"] >= 0) & (out["boxes"] <= 1)).all()


def test_anchor_shapes_stand_for_the_training_boxes():
    small, long = torch.tensor([4.0, 4, 6]), torch.tensor([10.0, 8, 60])
    sizes = torch.cat([small * (1 + 0.1 * torch.rand(40, 3)), long * (1 + 0.1 * torch.rand(20, 3))])
    found = typical_sizes(sizes, 2)
    assert (found / torch.stack([small, long])).log().abs().max() < 0.1
    assert typical_sizes(sizes[:1], 3).shape == (3, 3), "fewer boxes than anchors"


def output(**changes):
    """What the network gives in training, leaves of the graph."""
    raw = network()(scene()[0])
    raw.update({key: raw[key].detach().requires_grad_() for key in ("scores", "codes")})
    return {**raw, **changes}


def test_unannotated_organ_gives_no_gradient():
    out, (_, target) = output(), scene(annotated=(1,))
    RetinaNetLoss()(out, [target])["loss"].backward()
    assert out["scores"].grad[..., 1].abs().sum() == 0 and out["scores"].grad[..., 0].abs().sum() > 0
    far = iou_giou(out["anchors"], BOXES[0])[0] == 0
    assert out["codes"].grad[0, far].abs().sum() == 0


def test_unannotated_organ_does_not_choose_the_negatives():
    scores = output()["scores"].detach()
    scores[..., 1] = torch.linspace(-9, 9, scores.shape[1])
    losses = []
    for values in (scores, scores * torch.tensor([1.0, -1.0])):
        torch.manual_seed(1)
        losses.append(RetinaNetLoss()(output(scores=values), [scene(annotated=(1,))[1]])["loss"].item())
    assert losses[0] == losses[1]


def test_image_without_organs_teaches_their_absence():
    out, (_, target) = output(), scene(shown=())
    terms = RetinaNetLoss()(out, [target])
    terms["loss"].backward()
    assert terms["loss"].isfinite() and terms["giou"] == 0
    assert out["scores"].grad.abs().sum() > 0 and (out["scores"].grad >= 0).all()


def test_loss_is_the_weighted_sum_of_its_terms():
    net, (image, target) = network(segmentation=True), scene()
    terms = RetinaNetLoss(weights={"giou": 3.0, "segmentation": 0.5})(net(image), [target])
    want = terms["class"] + 3 * terms["giou"] + 0.5 * terms["segmentation"]
    assert terms["loss"].item() == pytest.approx(want.item(), rel=1e-5)
    with pytest.raises(ValueError, match="l1"):
        RetinaNetLoss(weights={"l1": 1.0})


def test_perfect_boxes_cost_nothing():
    out, (_, target) = output(), scene()
    truth = centre_to_corners(target["boxes"]) * torch.tensor([*SHAPE, *SHAPE])
    loss = RetinaNetLoss()
    matches = loss._match(truth, out["anchors"], out["places"])
    codes = loss.coder.encode_single(truth[matches.clamp(min=0)], out["anchors"])
    assert (matches >= 0).any()
    assert loss({**out, "codes": codes[None]}, [target])["giou"].item() == pytest.approx(0, abs=1e-5)
