"""Denoising queries: no leak, noise within its bounds, and targets that are the truth and nothing else."""

import pytest
import torch

from organdetr_monai.losses import DetectionLoss
from organdetr_monai.matching import DenseQueryMatcher, HungarianMatcher
from organdetr_monai.networks import DenoisingQueries
from tests.waits import without_waits

SHAPE = (32, 32, 32)


def queries(**options) -> DenoisingQueries:
    torch.manual_seed(0)
    return DenoisingQueries(24, 4, **{"groups": 3, **options})


@pytest.fixture
def network(small_network):
    def build(**options):
        return small_network(extra_queries=queries(**options))

    return build


def image(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 1, *SHAPE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("contrastive", [False, True])
def test_matched_queries_never_notice(network, make_targets, contrastive):
    network, targets = network(contrastive=contrastive), make_targets([3, 1], shape=SHAPE)
    a, b = network(image(), targets), network(image(), make_targets([2, 3], shape=SHAPE))  # other noise, other truth
    assert not torch.allclose(a["extra"]["logits"][:, :2], b["extra"]["logits"][:, :2], atol=1e-3)
    for ours, theirs in zip((a, *a["aux"]), (b, *b["aux"]), strict=True):
        assert torch.equal(ours["logits"], theirs["logits"]) and torch.equal(ours["boxes"], theirs["boxes"])
    network.extra_queries = None
    alone = network(image())
    assert torch.allclose(a["logits"], alone["logits"], atol=1e-5)
    assert torch.allclose(a["boxes"], alone["boxes"], atol=1e-6)


@pytest.mark.parametrize("contrastive", [False, True])
def test_groups_do_not_see_each_other_and_places_without_organ_are_seen_by_nobody(network, make_targets, contrastive):
    network, targets = network(contrastive=contrastive), make_targets([3, 1], shape=SHAPE)
    extra = network.extra_queries(targets)
    size = extra.content.shape[1] // 3
    results = []
    for changed in (None, slice(size, 2 * size), "padding"):
        content = extra.content.detach().clone()
        if changed == "padding":
            content[extra.matches.ignored] += 1.0
        elif changed is not None:
            content[:, changed] += 1.0
        network.extra_queries.forward = lambda _, content=content: extra._replace(content=content)
        results.append(network(image())["extra"]["logits"])
    plain, other_group, padding = results
    assert torch.equal(plain[:, :size], other_group[:, :size])
    assert torch.equal(plain[:, 2 * size :], other_group[:, 2 * size :])
    assert (plain - other_group)[0, size : 2 * size].abs().min() > 1e-4
    real = ~extra.matches.ignored
    assert torch.equal(plain[real], padding[real]) and not torch.equal(plain, padding)


def test_they_see_the_matched_queries_as_in_the_paper(network, make_targets):
    network, targets = network(), make_targets([3], shape=SHAPE)
    fixed = network.extra_queries(targets)
    network.extra_queries.forward = lambda _: fixed
    before = network(image(1))["extra"]["boxes"]
    with torch.no_grad():
        network.content += 1.0
    assert not torch.allclose(before, network(image(1))["extra"]["boxes"], atol=1e-5)


def noise(extra, module, targets) -> torch.Tensor:
    """Noise of each organ's queries in the units of ``box_noise``, (B, groups, kinds, M, 6)."""
    boxes = torch.stack([t["boxes"] for t in targets])  # (B, M, 6)
    noisy = extra.reference.sigmoid().view(len(targets), module.groups, module.kinds, -1, 6)
    truth = boxes[:, None, None]
    centre = (noisy - truth)[..., :3] / (truth[..., 3:] / 2)
    return torch.cat([centre, noisy[..., 3:] / truth[..., 3:] - 1], dim=-1) / module.box_noise


@pytest.mark.parametrize("box_noise", [0.2, 0.4])
def test_box_noise_fills_its_bounds_and_negatives_lie_beyond_the_positives(make_targets, box_noise):
    module, targets = queries(groups=200, box_noise=box_noise, contrastive=True), make_targets([4, 4])
    positive, negative = noise(module(targets), module, targets).abs().unbind(2)
    tolerance = 2e-3  # of the logits' clamp and rounding
    assert positive.max() < 1 + tolerance and positive.max() > 0.98 and positive.min() < 0.02
    assert negative.min() > 1 - tolerance and negative.max() < 2 + tolerance and negative.max() > 1.98
    assert (module(targets).reference.sigmoid() > 0).all()
    signs = noise(module(targets), module, targets).sign().mean((0, 1, 2, 3))
    assert signs.abs().max() < 0.15, "to either side alike"


def test_label_noise_replaces_its_share_by_annotated_organs(make_targets):
    module, targets = queries(groups=1000, label_noise=0.5), make_targets([2])
    targets[0]["annotated"][3] = False  # organ 4
    labels = targets[0]["labels"].view(1, 1, 1, 2).expand(1, 1000, 1, 2)
    noisy = module.noisy_labels(labels, targets[0]["annotated"][None])
    assert set(noisy.flatten().tolist()) == {1, 2, 3}
    kept = (noisy == labels).float().mean()
    assert abs(kept - (0.5 + 0.5 / 3)) < 0.03  # a drawn label may be the old one
    assert torch.equal(queries(label_noise=0.0).noisy_labels(labels, targets[0]["annotated"][None]), labels)


@pytest.mark.parametrize(("contrastive", "kinds"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("counts", [[3, 1], [0, 2], [0, 0]])
def test_number_of_positives_negatives_and_queries(make_targets, contrastive, kinds, counts):
    module, targets = queries(contrastive=contrastive), make_targets(counts)
    extra = module(targets)
    slots = max(*counts, 1)
    assert extra.content.shape == (2, 3 * kinds * slots, 24)
    match = extra.matches
    assert len(match.query) == 3 * sum(counts)
    taking_part = (~match.ignored).sum(1).tolist()
    assert taking_part == [3 * kinds * count for count in counts]
    assert not match.ignored[match.image, match.query].any()
    pairs = set(zip(match.image.tolist(), match.query.tolist(), strict=True))
    assert len(pairs) == len(match.query), "a query serves one organ"


def test_each_positive_stands_for_the_organ_it_was_made_from(make_targets):
    module, targets = queries(box_noise=0.01, label_noise=0.0, contrastive=True), make_targets([3, 2])
    extra = module(targets)
    match = extra.matches
    for i, q, organ in zip(match.image, match.query, match.organ, strict=True):
        truth = targets[i]["boxes"][organ]
        assert torch.allclose(extra.reference.sigmoid()[i, q], truth, atol=4e-3)
        assert torch.equal(extra.content[i, q], module.label_embedding.weight[targets[i]["labels"][organ] - 1])


def test_unannotated_organ_counts_for_nothing(network, make_targets):
    network, targets = network(), make_targets([2], shape=SHAPE)
    targets[0]["annotated"][3] = False
    targets[0]["mask"][targets[0]["mask"] == 4] = 0
    output = network(image(1), targets)
    extra = output["extra"]
    extra["logits"].retain_grad()
    DetectionLoss(HungarianMatcher())(output, targets)["loss"].backward()
    gradient = extra["logits"].grad
    assert gradient[..., 4].abs().max() == 0 and gradient[..., :4].abs().max() > 0
    assert network.extra_queries.label_embedding.weight.grad[3].abs().max() == 0


@pytest.mark.parametrize("matcher", [HungarianMatcher(), DenseQueryMatcher()])
@pytest.mark.parametrize("contrastive", [False, True])
def test_loss_has_its_terms_and_every_parameter_a_gradient(network, make_targets, matcher, contrastive):
    network, targets = network(contrastive=contrastive), make_targets([3, 1], shape=SHAPE)
    output = network(image(), targets)
    terms = DetectionLoss(matcher)(output, targets)
    terms["loss"].backward()
    assert {"class_extra", "l1_extra", "giou_extra"} <= set(terms)
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle
    plain = {key: value for key, value in output.items() if key != "extra"}
    want = DetectionLoss(matcher)(plain, targets)["loss"]
    layers = 2
    for name, weight in (("class", 2), ("l1", 5), ("giou", 2)):
        want = want + layers * weight * terms[f"{name}_extra"]
    assert terms["loss"].item() == pytest.approx(want.item(), rel=1e-5)
    off = DetectionLoss(matcher, weights={"extra": 0.0})(output, targets)
    assert off["loss"].item() == pytest.approx(DetectionLoss(matcher)(plain, targets)["loss"].item(), rel=1e-6)


def test_perfect_denoising_costs_nothing_and_negatives_are_no_organ(make_targets):
    targets = make_targets([3, 1])
    match = queries(contrastive=True)(targets).matches
    logits = torch.full((2, 18, 5), -20.0)
    logits[..., 0] = 20.0
    boxes = torch.full((2, 18, 6), 0.5)
    for i, q, organ in zip(match.image, match.query, match.organ, strict=True):
        logits[i, q, 0], logits[i, q, targets[i]["labels"][organ]] = -20.0, 20.0
        boxes[i, q] = targets[i]["boxes"][organ]
    logits[match.ignored] = torch.randn(5)  # what is said at the empty places is nobody's business
    loss = DetectionLoss(HungarianMatcher())
    nothing = {"logits": torch.zeros(2, 20, 5), "boxes": torch.full((2, 20, 6), 0.5)}
    terms = loss({**nothing, "extra": {"logits": logits, "boxes": boxes, "matches": match}}, targets)
    assert all(terms[f"{name}_extra"].item() == pytest.approx(0, abs=1e-4) for name in ("class", "l1", "giou"))
    sure = logits.clone()
    sure[0, 3] = torch.tensor([-20.0, 20.0, -20.0, -20.0, -20.0])  # the first negative of the first group
    terms = loss({**nothing, "extra": {"logits": sure, "boxes": boxes, "matches": match}}, targets)
    assert terms["class_extra"] > 0.1


def test_batch_without_organs_still_reaches_every_parameter(network, make_targets):
    network, targets = network(contrastive=True), make_targets([0, 0], shape=SHAPE)
    terms = DetectionLoss(HungarianMatcher())(network(image(), targets), targets)
    terms["loss"].backward()
    assert all(value.isfinite() for value in terms.values()) and terms["class_extra"] == 0
    assert all(p.grad is not None for p in network.parameters()), "DistributedDataParallel would wait for it"


def test_nothing_is_left_at_inference(network, make_targets):
    network = network().eval()
    network.extra_queries.forward = None  # calling it would raise
    assert set(network(image())) == {"logits", "boxes"}


def test_a_step_waits_for_the_device_once(network, make_targets):
    network, targets = network(contrastive=True), make_targets([3, 1], shape=SHAPE)
    with without_waits(transfers=1):
        DetectionLoss(HungarianMatcher())(network(image(), targets), targets)["loss"].backward()


def test_clear_errors(network):
    with pytest.raises(ValueError, match=r"network\(image, targets\)"):
        network()(image())
    with pytest.raises(ValueError, match="groups.*0"):
        queries(groups=0)
    with pytest.raises(ValueError, match=r"0\.5\).*0.6"):
        queries(box_noise=0.6, contrastive=True)
    with pytest.raises(ValueError, match="label_noise.*1.5"):
        queries(label_noise=1.5)
