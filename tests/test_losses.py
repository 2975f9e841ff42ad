"""The loss: its least value, its blindness to what is not annotated, its independence of the matching ratio."""

import pytest
import torch

from organdetr_monai.distinct import DistinctMatcher
from organdetr_monai.losses import DetectionLoss, mask_unannotated
from organdetr_monai.matching import DenseQueryMatcher, HungarianMatcher, RepeatedMatcher
from organdetr_monai.networks import DenoisingQueries, HybridQueries, Proposals, ROIRefiner
from organdetr_monai.segmentation_loss import class_shares, multiscale_segmentation_loss


def perfect(targets, queries=20, num_classes=4):
    """Output that says exactly what the targets say, once for each organ."""
    logits = torch.full((len(targets), queries, num_classes + 1), -20.0)
    logits[..., 0] = 20.0
    boxes = torch.full((len(targets), queries, 6), 0.5)
    for b, t in enumerate(targets):
        for q, (box, label) in enumerate(zip(t["boxes"], t["labels"], strict=True)):
            logits[b, q] = -20.0
            logits[b, q, label] = 20.0
            boxes[b, q] = box
    return {"logits": logits, "boxes": boxes}


def test_perfect_prediction_costs_nothing(make_targets):
    targets = make_targets([3, 1])
    terms = DetectionLoss(HungarianMatcher())(perfect(targets), targets)
    assert terms["loss"].item() == pytest.approx(0, abs=1e-4)


def test_loss_is_the_weighted_sum_of_its_terms(small_network, make_targets):
    loss = DetectionLoss(DenseQueryMatcher(), weights={"segmentation": 3.0})
    terms = loss(small_network()(torch.rand(2, 1, 32, 32, 32)), make_targets([3, 1], shape=(32, 32, 32)))
    want = 2 * terms["class"] + 5 * terms["l1"] + 2 * terms["giou"] + 3 * terms["segmentation"]
    want += 2 * terms["class_aux"] + 5 * terms["l1_aux"] + 2 * terms["giou_aux"]  # one earlier layer
    assert terms["loss"].item() == pytest.approx(want.item(), rel=1e-5)


def test_box_terms_do_not_grow_with_the_matching_ratio(make_targets):
    targets = make_targets([3])
    same = {"logits": torch.zeros(1, 20, 5), "boxes": torch.full((1, 20, 6), 0.5)}
    few = DetectionLoss(HungarianMatcher())(same, targets)
    many = DetectionLoss(DenseQueryMatcher(0.5))(same, targets)
    assert few["l1"].item() == pytest.approx(many["l1"].item(), rel=1e-5)
    assert few["giou"].item() == pytest.approx(many["giou"].item(), rel=1e-5)


def test_no_organs_is_finite_and_still_teaches_the_class(make_targets):
    out = {"logits": torch.zeros(1, 20, 5, requires_grad=True), "boxes": torch.rand(1, 20, 6, requires_grad=True)}
    terms = DetectionLoss(DenseQueryMatcher())(out, make_targets([0]))
    terms["loss"].backward()
    assert terms["loss"].isfinite() and out["logits"].grad.abs().sum() > 0
    assert terms["l1"] == 0 and terms["giou"] == 0


def test_unannotated_organ_counts_for_nothing(make_targets):
    targets = make_targets([2])
    targets[0]["annotated"][3] = False  # organ 4 is not annotated
    targets[0]["mask"][targets[0]["mask"] == 4] = 0
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(1, 20, 5, generator=g)
    boxes = torch.rand(1, 20, 6, generator=g) * 0.4 + 0.3
    seg = torch.randn(1, 5, 8, 8, 8, generator=g)

    def loss_and_gradient(shift):
        x, s = logits.clone(), seg.clone()
        x[..., 4] += shift
        x.requires_grad_()
        s.requires_grad_()
        terms = DetectionLoss(DenseQueryMatcher())({"logits": x, "boxes": boxes, "segmentation": [s]}, targets)
        terms["loss"].backward()
        return terms, x.grad, s.grad

    sure, gradient, _ = loss_and_gradient(30.0)
    unsure, _, _ = loss_and_gradient(-30.0)
    assert sure["loss"].item() == pytest.approx(unsure["loss"].item(), rel=1e-6)
    assert gradient[..., 4].abs().max() == 0 and gradient[..., :4].abs().max() > 0


def test_segmentation_of_an_unannotated_organ_over_background_is_free():
    mask = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    annotated = torch.tensor([[True, False]])
    background, organ = torch.zeros(1, 3, 8, 8, 8), torch.zeros(1, 3, 8, 8, 8)
    background[:, 0], organ[:, 2] = 20.0, 20.0
    free = multiscale_segmentation_loss([organ], mask, annotated)
    assert free.item() == pytest.approx(multiscale_segmentation_loss([background], mask, annotated).item(), abs=1e-5)
    assert multiscale_segmentation_loss([organ], mask, torch.tensor([[True, True]])) > 1


def test_an_image_known_by_boxes_only_has_no_part_in_the_segmentation(make_targets):
    g = torch.Generator().manual_seed(3)
    output = {"logits": torch.randn(2, 20, 5, generator=g), "boxes": torch.rand(2, 20, 6, generator=g) * 0.4 + 0.3}
    segmentation = torch.randn(2, 5, 8, 8, 8, generator=g).requires_grad_()
    targets = make_targets([2, 3])
    whole = DetectionLoss(DenseQueryMatcher())({**output, "segmentation": [segmentation]}, targets)
    targets[1]["mask"] = torch.zeros_like(targets[1]["mask"])
    targets[0]["segmented"], targets[1]["segmented"] = targets[0]["annotated"], torch.zeros(4, dtype=torch.bool)
    terms = DetectionLoss(DenseQueryMatcher())({**output, "segmentation": [segmentation]}, targets)
    terms["loss"].backward()
    assert segmentation.grad[0].abs().max() > 0 and segmentation.grad[1].abs().max() < 1e-9
    for name in ("class", "l1", "giou"):
        assert terms[name] == whole[name]


def test_segmentation_loss_of_the_truth_is_zero_and_of_a_shift_is_not():
    mask = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    mask[:, 2:6, 2:6, 2:6] = 1
    logits = torch.where(torch.nn.functional.one_hot(mask.long(), 2).movedim(-1, 1) > 0, 20.0, -20.0)
    annotated = torch.ones(1, 1, dtype=torch.bool)
    assert multiscale_segmentation_loss([logits], mask, annotated).item() == pytest.approx(0, abs=1e-4)
    assert multiscale_segmentation_loss([logits.roll(1, 2)], mask, annotated) > 0.2


@pytest.mark.parametrize("shape", [(16, 16, 16), (9, 7, 12)])
def test_class_shares_are_block_means(shape):
    g = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 4, (2, *shape), generator=g, dtype=torch.uint8)
    coarse = tuple(-(-n // 4) for n in shape)
    shares = class_shares(mask, coarse, 4)
    assert torch.allclose(shares.sum(1), torch.ones(2, *coarse))
    block = mask[1, 4:8, 0:4, 8:12]
    assert torch.allclose(shares[1, :, 1, 0, 2], torch.bincount(block.flatten().long(), minlength=4) / block.numel())


def test_thin_organ_survives_in_the_coarse_target():
    mask = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    mask[:, 7, :, 5] = 1
    assert class_shares(mask, (2, 2, 2), 2)[0, 1].sum() > 0


def test_mask_unannotated_keeps_no_organ():
    masked = mask_unannotated(torch.zeros(1, 2, 3), torch.tensor([[False, False]]))
    assert masked.softmax(-1)[..., 0].tolist() == [[1.0, 1.0]]


OPTIONS = {
    "dense": ({}, {}),
    "distinct": ({}, {"matcher": DistinctMatcher(0.3)}),
    "two_stage": ({"proposals": lambda: Proposals(24, 4)}, {}),
    "hybrid": ({"extra_queries": lambda: HybridQueries(24, num_queries=30)}, {"extra_matcher": RepeatedMatcher()}),
    "refiner": ({"refiner": lambda: ROIRefiner(4, size=16, channels=(4, 8, 12, 16))}, {}),
    # Without noise, which each process draws for itself.
    "denoising": ({"extra_queries": lambda: DenoisingQueries(24, 4, box_noise=0.0, label_noise=0.0)}, {}),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("counts", [[3, 1, 2], [4, 0, 0], [0, 0, 0]])
def test_parts_of_a_batch_on_several_processes_average_to_the_whole(small_network, make_targets, counts, option):
    parts_of_network, parts_of_loss = OPTIONS[option]
    network = small_network(**{name: make() for name, make in parts_of_network.items()})
    criterion = {"matcher": DenseQueryMatcher(), **parts_of_loss}
    targets = make_targets(counts, shape=(32, 32, 32))
    for seed, target in enumerate(targets):
        target["seed"] = seed
    for target in targets[len(counts) - 1 :]:  # of another number of organs in its mask, too
        target["mask"][target["mask"] > 1] = 0
    image = torch.rand(3, 1, 32, 32, 32)
    parts = [slice(0, 2), slice(2, 3)]

    def loss_and_gradient(part, average=None):
        network.zero_grad()
        terms = DetectionLoss(**criterion, average=average)(network(image[part], targets[part]), targets[part])
        terms["loss"].backward()
        assert all(p.grad is not None for p in network.parameters()), "DistributedDataParallel would wait for it"
        gradient = torch.cat([p.grad.flatten() for p in network.parameters()])
        return torch.stack([v.detach() for v in terms.values()]), gradient

    sent = []  # by each process, what the other one adds
    for part in parts:
        loss_and_gradient(part, lambda own: sent.append(own) or own)
    mean = torch.stack(sent).mean(0)
    first, second = (loss_and_gradient(part, lambda own: mean) for part in parts)
    terms, gradient = loss_and_gradient(slice(None))
    assert torch.allclose((first[0] + second[0]) / 2, terms, rtol=1e-5, atol=1e-6)
    assert ((first[1] + second[1]) / 2 - gradient).norm() < 1e-4 * gradient.norm()
    apart = [loss_and_gradient(part) for part in parts]
    assert not torch.allclose((apart[0][0] + apart[1][0]) / 2, terms, rtol=1e-3)


def test_unknown_term_is_refused():
    with pytest.raises(ValueError, match="focal"):
        DetectionLoss(HungarianMatcher(), weights={"focal": 1.0})
