"""What an answer costs: the right one nothing, nothing for nothing, and each mistake its own term."""

import pytest
import torch

from organdetr_monai.miq_sam3d.losses import DEFAULT_WEIGHTS, MIQLoss, middles, votes
from organdetr_monai.miq_sam3d.matching import InstanceMatcher
from organdetr_monai.miq_sam3d.targets import wanted_instances
from tests.miq_sam3d.toys import BALL, CUBE, SHAPE, draw

THINGS = [(BALL, (10, 10, 10), 5), (CUBE, (12, 25, 12), 3), (BALL, (30, 20, 12), 5)]
FINE = tuple(n // 2 for n in SHAPE)


@pytest.fixture
def targets():
    _, ids = draw(THINGS)
    return wanted_instances(torch.from_numpy(ids)[None], [torch.tensor([BALL, CUBE, BALL])], [BALL], [3])


@pytest.fixture
def perfect(targets):
    """Four queries: the first the clicked ball (id 3), the second the other, two idle."""
    shares = targets.shares(FINE)
    masks = torch.full((1, 4, *FINE), -12.0)
    masks[:, 0], masks[:, 1] = (24 * shares[:, k].round() - 12 for k in (1, 0))
    boxes = torch.rand(1, 4, 6)
    boxes[0, 0], boxes[0, 1] = targets.boxes[0, 1], targets.boxes[0, 0]
    inside = torch.nn.functional.interpolate(targets.all_labels[:, None].float(), size=FINE).long()[:, 0]
    said = torch.zeros(1, 6, *FINE) + 0.5
    for k in range(3):
        said = torch.where((inside == k + 1)[:, None], targets.all_boxes[:, k, :, None, None, None], said)
    kinds = torch.nn.functional.one_hot(targets.voxel_kinds, 3).movedim(-1, 1).float()
    return {
        "masks": masks,
        "objectness": torch.tensor([[12.0, 12, -12, -12]]),
        "quality": torch.full((1, 4), 3.0),
        "boxes": boxes,
        "voxels": 24 * kinds - 12,
        "votes": said,
        "middles": heat(targets).clamp(1e-6, 1 - 1e-6).logit(),
    }


def heat(targets):
    """1 in the middles, falling off to 0 within each thing: what `middles` asks for."""
    near = torch.zeros(FINE)
    for kind, centre, radius in THINGS:
        cells = torch.meshgrid(*(2 * torch.arange(n) + 0.5 for n in FINE), indexing="ij")
        distance = sum(((axis - c) / (radius + 0.5)) ** 2 for axis, c in zip(cells, centre, strict=True))
        # a ball ends where r is 1, a cube at its faces
        reach = (
            distance <= 1.3
            if kind == BALL
            else torch.stack([(a - c).abs() <= radius + 1 for a, c in zip(cells, centre, strict=True)]).all(0)
        )
        own = torch.exp(-2 * distance) * reach
        near = torch.maximum(near, own / own.max())
    return near[None]


def cost(output, targets):
    return {k: float(v) for k, v in MIQLoss(InstanceMatcher())(output, targets).items()}


def test_right_answer_costs_next_to_nothing(perfect, targets):
    terms = cost(perfect, targets)
    assert set(terms) == {"loss", *DEFAULT_WEIGHTS}
    assert terms["objectness"] < 1e-6 and terms["l1"] < 1e-6 and terms["giou"] < 1e-5
    # A cell on the border is shared; no mask of whole cells is quite right.
    assert terms["dice"] < 0.1 and terms["focal"] < 1.0 and terms["quality"] < 0.1
    assert terms["kinds"] < 1e-3 and terms["votes"] < 0.3
    assert terms["middles"] < 0.1 * cost({**perfect, "middles": -perfect["middles"]}, targets)["middles"]


@pytest.mark.parametrize(
    ("key", "change", "terms"),
    [
        ("objectness", lambda x: x.flip(1), {"objectness", "union"}),
        ("masks", lambda x: -x, {"focal", "dice", "union"}),
        ("boxes", lambda x: x.roll(1, -1), {"l1", "giou"}),
        ("quality", lambda x: -x, {"quality"}),
        ("votes", lambda x: x.roll(1, 1), {"votes"}),
        ("middles", lambda x: x.roll(4, 2), {"middles"}),
        ("voxels", lambda x: x.roll(2, 2), {"kinds"}),
        ("voxels", lambda x: x[:, [0, 2, 1]], {"kinds"}),
    ],
)
def test_each_mistake_has_its_term(perfect, targets, key, change, terms):
    right, wrong = cost(perfect, targets), cost({**perfect, key: change(perfect[key])}, targets)
    assert terms <= {name for name in right if wrong[name] > right[name] + 0.05}


def test_clicked_instance_in_another_query_is_wrong(perfect, targets):
    swapped = {k: v[:, [1, 0, 2, 3]] if v.shape[1] == 4 else v for k, v in perfect.items()}
    assert cost(swapped, targets)["dice"] > 0.9


def test_nothing_for_nothing_costs_nothing(perfect, targets):
    nothing = wanted_instances(targets.all_labels, [torch.tensor([BALL, CUBE, BALL])], [0], [0])
    silent = {**perfect, "objectness": torch.full((1, 4), -12.0)}
    terms = cost(silent, nothing)
    assert all(terms[name] < 1e-3 for name in DEFAULT_WEIGHTS if name not in ("votes", "middles"))
    terms = cost(perfect, nothing)
    assert terms["objectness"] > 5 and terms["union"] > 1


def test_volume_without_any_instance_gives_a_finite_loss_and_gradients():
    empty = wanted_instances(torch.zeros(1, *SHAPE, dtype=torch.int64), [torch.zeros(0, dtype=torch.int64)], [0], [0])
    shapes = {"masks": (1, 4, *FINE), "objectness": (1, 4), "quality": (1, 4), "boxes": (1, 4, 6)}
    output = {name: torch.rand(shape, requires_grad=True) for name, shape in shapes.items()}
    output["voxels"] = torch.rand(1, 3, *SHAPE, requires_grad=True)
    output["votes"] = torch.rand(1, 6, *FINE, requires_grad=True)
    output["middles"] = torch.rand(1, *FINE, requires_grad=True)
    loss = MIQLoss(InstanceMatcher())(output, empty)["loss"]
    loss.backward()
    assert torch.isfinite(loss) and all(x.grad is None or x.grad.isfinite().all() for x in output.values())


def test_every_layer_counts(perfect, targets):
    worse = {**{k: perfect[k] for k in ("objectness", "quality", "boxes")}, "masks": -perfect["masks"]}
    terms = cost({**perfect, "aux": [worse]}, targets)
    assert terms["dice_aux"] > 0.9 > terms["dice"]
    assert terms["loss"] > cost(perfect, targets)["loss"] + DEFAULT_WEIGHTS["dice"] * 0.9


def test_every_instance_has_a_middle_and_it_is_its_highest_place(targets):
    """A map that is high in one middle less costs more, whichever instance it is; so does one that is high at a rim."""
    right = heat(targets).clamp(1e-6, 1 - 1e-6).logit()
    base = float(middles(right, targets))
    for _, centre, _ in THINGS:
        worse = right.clone()
        worse[(0, *(round((c - 0.5) / 2) for c in centre))] = -9.0
        assert float(middles(worse, targets)) > base + 0.05
    flat = torch.where(heat(targets) > 0, 5.0, right)
    assert float(middles(flat, targets)) > base + 0.5


def test_votes_count_inside_instances_alone(perfect, targets):
    outside = (targets.all_labels == 0).float()[:, None]
    coarse = torch.nn.functional.interpolate(outside, size=FINE)
    far = torch.nn.functional.max_pool3d(1 - coarse, 5, 1, 2) == 0
    assert far.any()
    changed = torch.where(far, torch.rand_like(perfect["votes"]), perfect["votes"])
    assert float(votes(changed, targets)) == pytest.approx(float(votes(perfect["votes"], targets)))


def test_refuses_terms_it_does_not_know():
    with pytest.raises(ValueError, match="'bce'"):
        MIQLoss(InstanceMatcher(), weights={"bce": 1.0})
