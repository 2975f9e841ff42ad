"""The second look: cubes that show what lies in a box, and walls that it puts right."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from organdetr_monai.boxes import centre_to_corners, normalise
from organdetr_monai.inference import DetectionInferer, best_queries
from organdetr_monai.losses import DetectionLoss
from organdetr_monai.matching import DenseQueryMatcher
from organdetr_monai.networks import ROIRefiner
from organdetr_monai.networks.roi_refiner import expected_iou, expected_walls, sample_boxes
from organdetr_monai.roi_loss import RefinerLoss, refiner_terms

SHAPE = (32, 24, 20)


def with_grid_sample(volume: torch.Tensor, box: torch.Tensor, size: int) -> torch.Tensor:
    """One cube of a volume (X, Y, Z) by torch's own trilinear interpolation."""
    cells = (torch.arange(size) + 0.5) / size
    at = [(box[a] + cells * (box[a + 3] - box[a])) / volume.shape[a] * 2 - 1 for a in range(3)]
    grid = torch.stack(torch.meshgrid(*at, indexing="ij"), dim=-1).flip(-1)
    return F.grid_sample(volume[None, None], grid[None], padding_mode="border", align_corners=False)[0, 0]


def test_fine_cells_are_trilinear_samples_and_the_border_goes_on_outside():
    generator = torch.Generator().manual_seed(0)
    volumes = torch.rand(2, *SHAPE, generator=generator)
    boxes = torch.tensor(
        [[[3.0, 2, 5, 9, 10, 12], [-4, 20, 3, 3, 27.5, 7]], [[28, 0, 16, 35, 7, 23], [1, 1, 1, 2, 3, 4]]]
    )
    cubes = sample_boxes(volumes, boxes, 8)
    for image in range(2):
        for k in range(2):
            torch.testing.assert_close(cubes[image, k], with_grid_sample(volumes[image], boxes[image, k], 8))


def test_coarse_cells_average_and_stay_in_place():
    """A ramp comes out as it is, noise comes out smoother than samples of it."""
    ramp = torch.arange(32.0)[:, None, None].expand(32, 32, 32)
    box = torch.tensor([[[4.0, 0, 0, 28, 32, 32]]])
    cube = sample_boxes(ramp[None], box, 4)[0, 0]
    torch.testing.assert_close(cube[:, 0, 0], torch.tensor([6.5, 12.5, 18.5, 24.5]))
    noise = torch.rand(1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    assert sample_boxes(noise, box, 4).std() < 0.2 * noise.std()


def refiner(num_classes: int = 3, **options) -> ROIRefiner:
    torch.manual_seed(0)
    return ROIRefiner(num_classes, **{"size": 16, "channels": (4, 8, 12, 16), **options})


def scene(seed: int, organs: int = 2) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """A bright and a dark block in noise, of random place and size: image (1, 1, X, Y, Z) and its target."""
    generator = torch.Generator().manual_seed(seed)
    image, mask = 0.5 + 0.05 * torch.randn(1, 1, *SHAPE, generator=generator), torch.zeros(SHAPE, dtype=torch.uint8)
    boxes = torch.zeros(organs, 6)
    for k in range(organs):
        low = torch.tensor([2 + 16 * k, 3, 3]) + torch.randint(0, 4, (3,), generator=generator)
        high = low + torch.randint(5, 10, (3,), generator=generator)
        inside = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        mask[inside] = k + 1
        image[(0, 0, *inside)] += 0.4 if k == 0 else -0.4
        boxes[k] = torch.cat([low, high])
    labels = torch.arange(1, organs + 1)
    return image, [
        {"boxes": normalise(boxes, SHAPE), "labels": labels, "annotated": torch.ones(3).bool(), "mask": mask}
    ]


@pytest.fixture(scope="module")
def trained() -> ROIRefiner:
    """A refiner that knows the two blocks of `scene`."""
    network = refiner(2, per_image=4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for step in range(120):
        loss = sum(refiner_terms(network.train()(*scene(step))).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def test_untrained_it_leaves_boxes_where_they_are():
    image, (target,) = scene(3)
    logits = torch.tensor([[[0.0, 5.0, 0.0], [0.0, 0.0, 5.0]]])
    with torch.no_grad():
        found = refiner(2).eval().refine(image, {"logits": logits, "boxes": target["boxes"][None]})
    moved = (centre_to_corners(found["boxes"][0]) - centre_to_corners(target["boxes"])) * torch.tensor(SHAPE).repeat(2)
    assert moved.abs().max() < 0.5  # voxels
    assert (best_queries(found, SHAPE)[0] > 0.5).all()  # not unlearned either that they are there


def test_it_learns_to_put_walls_right(trained):
    before, after = [], []
    for seed in range(1000, 1010):
        image, (target,) = scene(seed)
        generator = torch.Generator().manual_seed(seed)
        shape = torch.tensor(SHAPE).repeat(2)
        truth = centre_to_corners(target["boxes"]) * shape
        moved = truth + 1.2 * torch.randn(2, 6, generator=generator)
        with torch.no_grad():
            logits = torch.tensor([[[0.0, 4.0, 0.0], [0.0, 0.0, 3.0]]])
            found = trained.refine(image, {"logits": logits, "boxes": normalise(moved, SHAPE)[None]})
        before.append((moved - truth).abs().mean())
        after.append((centre_to_corners(found["boxes"][0]) * shape - truth).abs().mean())
    assert torch.stack(after).mean() < 0.5 * torch.stack(before).mean()


def test_sure_walls_are_worth_a_sure_box():
    """A peak has no deviation, an even spread over n cells one of n / 4; IoU falls with it, most for small boxes."""
    peak, even = torch.full((1, 3, 2, 8), -1e4), torch.zeros(1, 3, 2, 8)
    peak[:, :, 0, 1], peak[:, :, 1, 6] = 0.0, 0.0
    place, deviation = expected_walls(peak)
    torch.testing.assert_close(place, torch.tensor([1.5 / 8, 6.5 / 8]).expand(1, 3, 2))
    assert float(expected_iou(place, deviation)) == pytest.approx(1)
    assert expected_walls(even)[1].tolist() == [[[0.25] * 2] * 3]
    wished = -(((torch.arange(24) + 0.5 - torch.tensor([[6.3], [17.1]])) ** 2) / 2).expand(1, 3, 2, 24)
    at, deviation = expected_walls(wished)  # as walls are trained to be
    torch.testing.assert_close(at, (torch.tensor([6.3, 17.1]) / 24).expand(1, 3, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(deviation, torch.full((1, 3, 2), (2 / torch.pi) ** 0.5 / 24), atol=2e-3, rtol=0)
    off = torch.full((1, 3, 2), 0.05)
    box = torch.tensor([0.25, 0.75]).expand(1, 3, 2)
    assert float(expected_iou(box, off)) == pytest.approx((0.45 / 0.55) ** 3)
    small = torch.tensor([0.45, 0.55]).expand(1, 3, 2)
    assert float(expected_iou(small, off)) < float(expected_iou(box, off))
    assert float(expected_iou(torch.tensor([0.5, 0.5]).expand(1, 3, 2), off)) == 0


def test_each_organ_is_as_likely_as_its_best_query_says_and_its_walls_are_sure(trained):
    image, (target,) = scene(5)
    boxes = target["boxes"][torch.tensor([0, 1, 0, 1])][None] * (1 + 0.02 * torch.arange(4.0)[None, :, None])
    logits = torch.tensor([[[0.0, 3, 0], [1, 0, 2], [0, 1, 0], [2, 0, 1]]])
    with torch.no_grad():
        found = trained.refine(image, {"logits": logits, "boxes": boxes})
        vague = trained.refine(image, {"logits": logits / 9, "boxes": boxes})
    assert found["logits"].shape == (1, 2, 3) and found["boxes"].shape == (1, 2, 6)
    scores, corners = best_queries(found, SHAPE)
    before, old = best_queries({"logits": logits, "boxes": boxes}, SHAPE)
    sure = scores**4 / before**3
    assert ((sure > 0.4) & (sure < 1)).all()
    with torch.no_grad():
        guessed = refiner(2).eval().refine(image, {"logits": logits, "boxes": boxes})
    assert (best_queries(guessed, SHAPE)[0] ** 4 / before**3 < sure).all()
    said = (logits / 9).softmax(-1)[0, :2, 1:].diagonal()
    torch.testing.assert_close(best_queries(vague, SHAPE)[0] ** 4 / said**3, sure)
    torch.testing.assert_close(vague["boxes"], found["boxes"])  # of the same best queries
    assert ((corners - old).abs() < 2.5).all()  # organ k is at k, and so are its box and its score


@pytest.mark.parametrize("score", [1.0, 0.0])
def test_certainty_stays_finite(trained, score):
    image, (target,) = scene(5)
    logits = torch.tensor([[[200 * (1 - score), 200 * score, 0.0]]])
    with torch.no_grad():
        found = trained.refine(image, {"logits": logits, "boxes": target["boxes"][None, :1]})
    assert found["logits"].isfinite().all()
    (own,) = found["logits"].softmax(-1)[0, :1, 1].tolist()
    assert 0.4 < own <= 1 if score else own < 0.01


def test_an_image_without_organs_costs_nothing():
    image, (target,) = scene(0)
    none = {**target, "boxes": torch.zeros(0, 6), "labels": torch.zeros(0, dtype=torch.int64)}
    network = refiner()
    refined = network.train()(image, [none])
    assert all(float(term) == 0 for term in refiner_terms(refined).values())
    both = network(torch.cat([image, image]), [target, none])
    assert both["there"].tolist() == [1, 1, 0, 0]


def test_organs_known_by_boxes_alone_cost_no_mask():
    image, (target,) = scene(0)
    boxes_only = {**target, "segmented": torch.zeros(3).bool()}
    terms = refiner_terms(refiner().train()(image, [boxes_only]))
    assert float(terms["roi_mask"]) == 0 and float(terms["walls"]) > 0


def test_walls_outside_of_the_cube_are_not_asked_for():
    image, target = scene(0)
    refined = refiner().train()(image, target)
    outside = {**refined, "wanted": torch.where(refined["wanted"] < 0.5, -0.2, 1.1)}
    assert float(refiner_terms(outside)["walls"]) == 0
    outside["wanted"][0, 0, 0] = 0.2
    assert float(refiner_terms(outside)["walls"]) > 0


def test_it_stands_behind_the_decoder(small_network):
    torch.manual_seed(0)
    network = small_network(refiner=refiner(4))
    image = torch.rand(2, 1, 32, 32, 32)
    target = {
        "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.4, 0.4, 0.4]]),
        "labels": torch.tensor([2]),
        "annotated": torch.ones(4).bool(),
        "mask": torch.zeros(32, 32, 32, dtype=torch.uint8),
    }
    assert network.needs_targets
    output = network.train()(image, [target] * 2)
    assert output["boxes"].shape[1] == 20  # the loss sees all queries
    terms = DetectionLoss(DenseQueryMatcher())(output, [target] * 2)
    terms["loss"].backward()
    assert {"walls", "roi_mask"} <= set(terms)
    assert all(p.grad is not None for p in network.refiner.parameters())
    with torch.no_grad():
        found = network.eval()(image)
    assert set(found) == {"logits", "boxes"} and found["boxes"].shape == (2, 4, 6)


def test_targets_are_asked_for():
    with pytest.raises(ValueError, match="needs the targets"):
        refiner()(torch.rand(1, 1, *SHAPE), None)
    with pytest.raises(ValueError, match="multiple of 8"):
        ROIRefiner(3, size=20)
    with pytest.raises(ValueError, match="at least 16, got 8"):
        ROIRefiner(3, size=8)


def test_it_is_trained_on_as_many_organs_as_there_are():
    image, target = scene(0)
    for seed, (per_image, shown) in product(range(4), ((1, 1), (2, 2), (3, 2))):
        still = refiner(per_image=per_image, noise=(0.0, 0.0)).train()  # so that one organ is one cube
        refined = still(image, [{**target[0], "seed": seed}])
        places = {tuple(cube.flatten().tolist()) for cube in refined["shown"]}
        assert len(refined["there"]) == per_image and len(places) == shown


def test_cubes_are_the_same_under_autocast():
    volume = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[3.0, 2, 5, 9, 10, 12]]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = sample_boxes(volume, boxes, 8)
    assert half.dtype == torch.float32 and torch.equal(half, sample_boxes(volume, boxes, 8))


def test_processes_with_unequal_shares_of_a_batch_cost_what_the_whole_batch_does():
    """Two images here and one there: the mean of their losses is that of three images."""
    images, targets = zip(*[(image, target) for seed in range(3) for image, (target,) in [scene(seed)]], strict=True)
    torch.manual_seed(1)
    refined = refiner().train()(torch.cat(images), targets)
    parts = [({k: v[rows] for k, v in refined.items()}, n) for rows, n in ((slice(0, 4), 2), (slice(4, 6), 1))]
    loss = RefinerLoss(average=lambda own: torch.full_like(own, 1.5))
    costs = [loss(part, [None] * n)["loss"] for part, n in parts]
    torch.testing.assert_close(sum(costs) / 2, RefinerLoss()(refined, targets)["loss"])


@pytest.mark.parametrize("amp_dtype", [None, "bfloat16"])
def test_organs_are_looked_at_again_in_each_window_and_in_a_padded_one(trained, small_network, amp_dtype):
    """Of a decoder that knows where they are, moved: of several windows those that hold an organ say where it ends."""
    image, (target,) = scene(4)
    shape = torch.tensor(SHAPE).repeat(2)
    truth = centre_to_corners(target["boxes"]) * shape

    class Decoder(torch.nn.Module):
        def forward(self, window: torch.Tensor) -> dict[str, torch.Tensor]:
            start = next(s for s in starts if torch.equal(window[0, 0], padded[s : s + size[0]]))
            inside = truth - torch.tensor([start, 0, 0, start, 0, 0])
            seen = (inside[:, 3] > 0) & (inside[:, 0] < size[0])
            low, high = inside[:, :3].clamp(min=0), torch.minimum(inside[:, 3:], torch.tensor(size))
            moved = torch.cat([low + 0.6, torch.maximum(high - 0.6, low + 2)], dim=1)
            logits = torch.where(torch.eye(2).bool() & seen[:, None], 5.0, -5.0)
            output = {"logits": torch.cat([torch.zeros(2, 1), logits], 1)[None], "boxes": normalise(moved, size)[None]}
            return trained.refine(window, output)

    for size in ((20, 24, 20), (40, 28, 24)):
        padded = torch.nn.functional.pad(
            image[0, 0], [n for a, b in zip(size, SHAPE, strict=True) for n in (max(a - b, 0), 0)][::-1]
        )
        starts = range(SHAPE[0])
        with torch.inference_mode():
            (found,) = DetectionInferer(size, amp_dtype=amp_dtype)(image, Decoder())
        assert (found["scores"] > 0.5).all()
        assert (found["boxes"] - truth).abs().mean() < 0.45 and (found["boxes"] - truth).abs().max() < 1.2


def test_what_is_drawn_belongs_to_the_image():
    """The seed of a sample decides which organs are looked at and where, beside whatever other images."""
    (image, (one,)), (_, (other,)) = scene(0), scene(1)
    network = refiner().train()
    alone = network(image, [{**one, "seed": 7}])
    together = network(torch.cat([image] * 2), [{**other, "seed": 5}, {**one, "seed": 7}])
    again = network(image, [{**one, "seed": 8}])
    torch.testing.assert_close(together["wanted"][2:], alone["wanted"])
    assert not torch.allclose(again["wanted"], alone["wanted"])
