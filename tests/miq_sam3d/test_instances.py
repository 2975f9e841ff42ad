"""Disjoint instances from overlapping masks."""

import torch

from organdetr_monai.miq_sam3d.instances import disjoint

SIZE = (16, 12, 8)


def answer(masks, objectness, quality=None):
    """Masks as boxes of voxels ``((x0, x1), (y0, y1), (z0, z1))`` on a grid of half the size."""
    logits = torch.full((1, len(masks), *(n // 2 for n in SIZE)), -9.0)
    for k, (x, y, z) in enumerate(masks):
        logits[0, k, slice(*x), slice(*y), slice(*z)] = 9.0
    quality = [0.9] * len(masks) if quality is None else quality
    return {
        "masks": logits,
        "objectness": torch.tensor([objectness]).logit(),
        "quality": torch.tensor([quality]).logit(),
        "boxes": torch.rand(1, len(masks), 6),
    }


LEFT, RIGHT, WIDE = ((0, 3), (0, 4), (0, 4)), ((4, 8), (0, 4), (0, 4)), ((0, 4), (0, 4), (0, 4))


def test_ids_are_disjoint_and_by_score():
    (found,) = disjoint(answer([LEFT, RIGHT], [0.7, 0.9]), SIZE)
    assert found.labels.shape == SIZE and found.queries.tolist() == [1, 0]
    assert found.labels[14, 2, 2] == 1 and found.labels[1, 2, 2] == 2
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_detail_makes_masks_as_sharp_as_the_voxels():
    output = answer([LEFT], [0.9])
    output["detail"] = torch.zeros(1, *SIZE)
    output["detail"][0, 2, 2, 2], output["detail"][0, 12, 2, 2] = -40.0, 40.0
    (found,) = disjoint(output, SIZE)
    assert found.labels[2, 2, 2] == 0 and found.labels[1, 2, 2] == found.labels[12, 2, 2] == 1


def test_clicked_query_is_first_where_there_is_one():
    output = answer([LEFT, RIGHT], [0.6, 0.9])
    (found,) = disjoint(output, SIZE, local=[True])
    assert found.queries.tolist() == [0, 1] and found.labels[1, 2, 2] == 1
    (found,) = disjoint(output, SIZE, local=[False])
    assert found.queries.tolist() == [1, 0]


def test_doubles_go_and_their_voxels_go_to_what_stays():
    (found,) = disjoint(answer([WIDE, LEFT, RIGHT], [0.95, 0.7, 0.9]), SIZE)
    assert found.queries.tolist() == [0, 2]
    assert (found.labels[:6, :8, :8] == 1).all()


def test_half_of_a_mask_is_enough_to_stay():
    near = ((2, 6), (0, 4), (0, 4))  # shares two of its four slices with WIDE
    (found,) = disjoint(answer([WIDE, near], [0.9, 0.8]), SIZE)
    assert found.queries.tolist() == [0, 1]
    (found,) = disjoint(answer([WIDE, near], [0.9, 0.8]), SIZE, keep=0.6)
    assert found.queries.tolist() == [0]


def test_unsure_queries_and_empty_masks_are_nothing():
    (found,) = disjoint(answer([LEFT, RIGHT], [0.4, 0.3]), SIZE)
    assert not found.labels.any() and len(found.scores) == len(found.queries) == len(found.boxes) == 0
    nowhere = ((0, 0), (0, 0), (0, 0))
    (found,) = disjoint(answer([nowhere, RIGHT], [0.9, 0.8]), SIZE, local=[True])
    assert found.queries.tolist() == [1]


def test_every_id_has_a_voxel():
    output = answer([LEFT, RIGHT, ((3, 4), (5, 6), (2, 3))], [0.7, 0.8, 0.9])
    output["masks"][0, 2] = output["masks"][0, 2].clamp(max=0.1)  # between the centres of its cell and the next: below
    (found,) = disjoint(output, SIZE)
    assert found.queries.tolist() == [1, 0] and found.labels.unique().tolist() == [0, 1, 2]
    assert found.labels[14, 2, 2] == 1 and found.labels[1, 2, 2] == 2 and found.boxes.shape == (2, 6)
