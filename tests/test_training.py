"""The glue of training: batches, the step, parameter groups, seeds."""

from types import SimpleNamespace

import pytest
import torch
from monai.engines import SupervisedTrainer

from organdetr_monai.errors import InputError
from organdetr_monai.losses import DetectionLoss
from organdetr_monai.matching import DenseQueryMatcher
from organdetr_monai.networks import DenoisingQueries, HybridQueries, Proposals
from organdetr_monai.training import (
    ReseedEpochs,
    TrainingStep,
    collate,
    parameter_groups,
    prepare_batch,
    prepare_eval_batch,
    reference_boxes,
)

#: Three voxels a side in the coarsest map. On two, oneDNN's bfloat16 gradient of a 3×3×3 convolution reads memory that
#: nobody wrote (PyTorch 2.13 on a processor with AVX512-BF16): now and then it is NaN.
WINDOW = (48, 48, 48)


def sample(organs: int, case: str = "a") -> dict:
    g = torch.Generator().manual_seed(organs)
    start = torch.rand(organs, 3, generator=g) * 12
    return {
        "image": torch.rand(1, *WINDOW, generator=g),
        "label": torch.randint(0, 5, (1, *WINDOW), generator=g, dtype=torch.uint8),
        "boxes": torch.cat([start, start + 8], 1),
        "labels": torch.arange(1, organs + 1),
        "annotated": torch.ones(4, dtype=torch.bool),
        "case": case,
    }


def test_batch_keeps_each_image_its_own_organs():
    batch = collate([sample(2, "a"), sample(4, "b"), sample(0, "c")])
    image, targets = prepare_batch(batch)
    assert image.shape == (3, 1, *WINDOW)
    assert [len(t["labels"]) for t in targets] == [2, 4, 0]
    assert targets[0]["boxes"].shape == (2, 6) and targets[0]["mask"].shape == WINDOW
    want = (batch["boxes"][1][:, :3] + batch["boxes"][1][:, 3:]) / (2 * WINDOW[0])
    assert torch.allclose(targets[1]["boxes"][:, :3], want)


def test_evaluation_keeps_boxes_in_voxels():
    _, truths = prepare_eval_batch(collate([sample(2, "a"), sample(1, "b")]))
    assert [t["case"] for t in truths] == ["a", "b"]
    assert torch.equal(truths[0]["boxes"], sample(2)["boxes"])


def trainer(network, **options):
    loader = [collate([sample(2), sample(3)])] * 2
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.AdamW(parameter_groups(network, lr=1e-3)),
        loss_function=DetectionLoss(DenseQueryMatcher()),
        prepare_batch=prepare_batch,
        iteration_update=TrainingStep(**options),
        decollate=False,
    )


@pytest.mark.parametrize("amp", ["float32", "bfloat16"])
def test_step_moves_every_parameter_and_reports_every_term(small_network, amp):
    network = small_network()
    before = {n: p.clone() for n, p in network.named_parameters()}
    engine = trainer(network, amp_dtype=amp)
    engine.run()
    assert [n for n, p in network.named_parameters() if torch.equal(p, before[n])] == []
    terms = {"loss", "class", "l1", "giou", "class_aux", "l1_aux", "giou_aux", "segmentation", "grad_norm"}
    (output,) = engine.state.output
    assert set(output) == terms
    assert all(v.isfinite() and not v.requires_grad for v in output.values())


def test_network_that_needs_the_targets_gets_them(small_network):
    network = small_network(extra_queries=DenoisingQueries(24, 4))
    seen = []
    network.extra_queries.register_forward_pre_hook(
        lambda _, inputs: seen.append([len(t["labels"]) for t in inputs[0]])
    )
    engine = trainer(network)
    engine.run()
    assert seen == [[2, 3]] * 2
    (output,) = engine.state.output
    assert {"class_extra", "l1_extra", "giou_extra"} <= set(output)
    assert not small_network().needs_targets


def test_gradient_is_clipped_after_unscaling(small_network):
    network = small_network()
    engine = trainer(network, clip_norm=1e-3)
    # A scaler that scales also on the CPU: clipping before unscaling would leave a norm of 1e-3 / 1024.
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    engine.run()
    norm = torch.stack([p.grad.norm() for p in network.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_every_parameter_is_in_one_group_and_the_right_one(small_network):
    network = small_network()
    groups = parameter_groups(network, lr=1.0, weight_decay=0.5, slow=0.1)
    found = {id(p): g for g in groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in groups) == len(list(network.parameters()))
    names = dict(network.named_parameters())

    def setting(name):
        group = found[id(names[name])]
        return group["lr"], group["weight_decay"]

    assert setting("reference") == (0.1, 0)
    assert setting("content") == (1.0, 0)
    assert setting("decoder.layers.0.cross_attention.offsets.weight") == (0.1, 0.5)
    assert setting("decoder.layers.0.norms.0.weight") == (1.0, 0)
    assert setting("decoder.level_embedding") == (1.0, 0)
    assert setting("backbone.stages.0.0.conv.weight") == (1.0, 0.5)


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ({"proposals": Proposals(24, 4)}, {"proposals.reference": (0.1, 0), "proposals.class_head.weight": (1.0, 0.5)}),
        (
            {"extra_queries": HybridQueries(24)},
            {"extra_queries.reference": (0.1, 0), "extra_queries.content": (1.0, 0)},
        ),
        ({"extra_queries": DenoisingQueries(24, 4)}, {"extra_queries.label_embedding.weight": (1.0, 0)}),
    ],
)
def test_other_queries_are_treated_as_the_learned_ones(small_network, part, settings):
    network = small_network(**part)
    groups = parameter_groups(network, lr=1.0, weight_decay=0.5, slow=0.1)
    names = {id(p): name for name, p in network.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert {name: found[name] for name in settings} == settings


def test_reference_boxes_are_those_of_the_samples_in_some_order():
    boxes = reference_boxes([sample(2), sample(0), sample(3)])
    want = torch.cat([prepare_batch(collate([sample(n)]))[1][0]["boxes"] for n in (2, 3)])
    assert torch.equal(boxes[boxes[:, 0].argsort()], want[want[:, 0].argsort()])
    with pytest.raises(InputError, match="no training sample has a box"):
        reference_boxes([sample(0)])


def test_epochs_have_seeds_of_their_own():
    def draw(seed, epoch):
        ReseedEpochs(seed)(SimpleNamespace(state=SimpleNamespace(epoch=epoch)))
        return torch.rand(3).tolist()

    assert draw(0, 5) == draw(0, 5)
    assert draw(0, 5) != draw(0, 6) != draw(1, 5)


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="float8"):
        TrainingStep(amp_dtype="float8")
