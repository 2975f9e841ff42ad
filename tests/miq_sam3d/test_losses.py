"""What an answer costs: the right one nothing, nothing for nothing, and each mistake its own term."""

import pytest
import torch

from organdetr_monai.miq_sam3d.losses import DEFAULT_WEIGHTS, MIQLoss, contrast, kind_contrast, votes
from organdetr_monai.miq_sam3d.matching import InstanceMatcher
from organdetr_monai.miq_sam3d.targets import wanted_instances
from organdetr_monai.segmentation_loss import class_shares
from tests.miq_sam3d.toys import BALL, CUBE, SHAPE, draw

THINGS = [(BALL, (10, 10, 10), 5), (CUBE, (12, 25, 12), 3), (BALL, (30, 20, 12), 5)]
FINE, COARSE = tuple(n // 2 for n in SHAPE), tuple(n // 4 for n in SHAPE)


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
    similarity = 2 * (targets.shares(COARSE).sum(1) > 0).float() - 1
    inside = torch.nn.functional.interpolate(targets.all_labels[:, None].float(), size=COARSE).long()[:, 0]
    said = torch.zeros(1, 6, *COARSE) + 0.5
    for k in range(3):
        said = torch.where((inside == k + 1)[:, None], targets.all_boxes[:, k, :, None, None, None], said)
    keys = torch.nn.functional.one_hot(torch.tensor([0, BALL, CUBE, BALL])[inside], 3).movedim(-1, 1).float()
    return {
        "masks": masks,
        "objectness": torch.tensor([[12.0, 12, -12, -12]]),
        "quality": torch.full((1, 4), 3.0),
        "boxes": boxes,
        "similarity": similarity,
        "presence": 24 * class_shares(targets.all_labels.clamp(max=1), FINE, 2)[:, 1].round() - 12,
        "votes": said,
        "keys": keys,
    }


def cost(output, targets):
    return {k: float(v) for k, v in MIQLoss(InstanceMatcher())(output, targets).items()}


def test_right_answer_costs_next_to_nothing(perfect, targets):
    terms = cost(perfect, targets)
    assert set(terms) == {"loss", *DEFAULT_WEIGHTS}
    assert terms["objectness"] < 1e-6 and terms["l1"] < 1e-6 and terms["giou"] < 1e-5
    # A cell on the border is shared; no mask of whole cells is quite right.
    assert terms["dice"] < 0.1 and terms["focal"] < 1.0 and terms["quality"] < 0.1 and terms["contrast"] < 0.01
    wrong = cost({**perfect, "presence": -perfect["presence"]}, targets)
    assert terms["presence"] < 0.1 * wrong["presence"]


@pytest.mark.parametrize(
    ("key", "change", "terms"),
    [
        ("objectness", lambda x: x.flip(1), {"objectness", "union"}),
        ("masks", lambda x: -x, {"focal", "dice", "union"}),
        ("boxes", lambda x: x.roll(1, -1), {"l1", "giou"}),
        ("quality", lambda x: -x, {"quality"}),
        ("similarity", lambda x: -x, {"contrast"}),
        ("presence", lambda x: -x, {"presence"}),
        ("votes", lambda x: x.roll(1, 1), {"votes"}),
        ("keys", lambda x: x.roll(2, 2), {"kinds"}),
        ("keys", lambda x: x[:, :1].repeat(1, 3, 1, 1, 1), {"kinds"}),
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
    unlike = torch.full_like(perfect["similarity"], -1)
    silent = {**perfect, "objectness": torch.full((1, 4), -12.0), "similarity": unlike}
    terms = cost(silent, nothing)
    assert all(terms[name] < 1e-3 for name in DEFAULT_WEIGHTS if name not in ("presence", "votes", "kinds"))
    terms = cost(perfect, nothing)
    assert terms["objectness"] > 5 and terms["union"] > 1 and terms["contrast"] > 1


def test_volume_without_any_instance_gives_a_finite_loss_and_gradients():
    empty = wanted_instances(torch.zeros(1, *SHAPE, dtype=torch.int64), [torch.zeros(0, dtype=torch.int64)], [0], [0])
    shapes = {"masks": (1, 4, *FINE), "objectness": (1, 4), "quality": (1, 4), "boxes": (1, 4, 6)}
    output = {name: torch.rand(shape, requires_grad=True) for name, shape in shapes.items()}
    output["similarity"] = torch.rand(1, *COARSE, requires_grad=True)
    output["presence"] = torch.rand(1, *FINE, requires_grad=True)
    output["votes"] = torch.rand(1, 6, *COARSE, requires_grad=True)
    output["keys"] = torch.rand(1, 3, *COARSE, requires_grad=True)
    loss = MIQLoss(InstanceMatcher())(output, empty)["loss"]
    loss.backward()
    assert torch.isfinite(loss) and all(x.grad is None or x.grad.isfinite().all() for x in output.values())


def test_every_layer_counts(perfect, targets):
    worse = {**{k: perfect[k] for k in ("objectness", "quality", "boxes")}, "masks": -perfect["masks"]}
    terms = cost({**perfect, "aux": [worse]}, targets)
    assert terms["dice_aux"] > 0.9 > terms["dice"]
    assert terms["loss"] > cost(perfect, targets)["loss"] + DEFAULT_WEIGHTS["dice"] * 0.9


def test_contrast_asks_for_a_peak_in_the_middle_of_each_instance(targets):
    """Lowering the similarity at an instance's rim costs nothing; lowering it in its middle does."""
    high = 2 * (targets.shares(COARSE).sum(1) > 0).float() - 1
    base = float(contrast(high, targets, temperature=0.1))
    middle = (targets.boxes[0, 0, :3] * torch.tensor(COARSE)).long().tolist()
    share = targets.shares(COARSE)[0, 0]
    rim = ((share > 0) & (share < 0.3)).float()
    assert rim.any()
    assert float(contrast(high - rim, targets, temperature=0.1)) == pytest.approx(base, abs=1e-6)
    low = high.clone()
    low[(0, *middle)] = -1
    assert float(contrast(low, targets, temperature=0.1)) > base + 0.05


def test_kinds_are_told_apart_and_places_of_a_kind_are_alike(perfect, targets):
    def kinds(keys):
        return float(kind_contrast(torch.nn.functional.normalize(keys, dim=1), targets, temperature=0.1))

    assert kinds(perfect["keys"]) < 0.05
    ball, cube = perfect["keys"].clone(), perfect["keys"].clone()
    far = torch.zeros(COARSE, dtype=torch.bool)
    far[COARSE[0] // 2 :] = True  # the second ball alone
    ball[:, :, far] = ball[:, [0, 2, 1]][:, :, far]
    assert kinds(ball) > 1, "one ball looks like a cube"
    cube[:, 1] += cube[:, 2]
    cube[:, 2] = 0
    assert kinds(cube) > 1, "the cube looks like a ball"
    void = targets._replace(all_kinds=torch.zeros_like(targets.all_kinds))
    assert float(kind_contrast(perfect["keys"], void, temperature=0.1)) == 0


def test_votes_count_inside_instances_alone(perfect, targets):
    outside = (targets.all_labels == 0).float()[:, None]
    coarse = torch.nn.functional.interpolate(outside, size=COARSE)
    far = torch.nn.functional.max_pool3d(1 - coarse, 5, 1, 2) == 0
    assert far.any()
    changed = torch.where(far, torch.rand_like(perfect["votes"]), perfect["votes"])
    assert float(votes(changed, targets)) == pytest.approx(float(votes(perfect["votes"], targets)))


def test_refuses_terms_it_does_not_know():
    with pytest.raises(ValueError, match="'bce'"):
        MIQLoss(InstanceMatcher(), weights={"bce": 1.0})
