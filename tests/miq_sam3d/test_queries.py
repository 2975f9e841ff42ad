"""From a click to queries: sampling, peaks, the prompt and the votes."""

import pytest
import torch

from organdetr_monai.miq_sam3d.queries import (
    BoxVotes,
    Prompt,
    PromptEncoder,
    QueryGenerator,
    Votes,
    VoxelKinds,
    alike,
    peaks,
    sample_at,
)
from tests.miq_sam3d.toys import SHAPE, normalised

CELLS = (7, 5, 6)


def test_samples_are_the_cells_in_array_order():
    fmap = torch.rand(2, 3, *CELLS)
    index = torch.tensor([[6, 0, 2], [1, 4, 5]])
    points = (index + 0.5) / torch.tensor(CELLS)
    got = sample_at(fmap, points.expand(2, -1, -1))  # (2, 2, 3)
    for k, (x, y, z) in enumerate(index.tolist()):
        assert torch.allclose(got[:, k], fmap[:, :, x, y, z], atol=1e-5)


def test_peaks_are_the_local_maxima_highest_first():
    cells = (12, 9, 10)
    score = torch.zeros(2, *cells)
    score[0, 1, 1, 1], score[0, 1, 1, 3], score[0, 5, 3, 4] = 0.5, 0.4, 0.9  # the second is no maximum
    score[1, 6, 4, 5] = 0.3
    noise = 1e-3 * torch.rand(2, *cells)
    found = peaks(score + noise, 3) * torch.tensor(cells) - 0.5
    assert found[0, 0].round().tolist() == [5, 3, 4] and found[0, 1].round().tolist() == [1, 1, 1]
    assert found[0, 2].round().tolist() != [1, 1, 3]
    assert found[1, 0].round().tolist() == [6, 4, 5]
    taken = torch.zeros(2, *cells, dtype=torch.bool)
    taken[0, 4:7, 2:5, 3:6] = True
    rest = peaks(score + noise, 3, taken=taken) * torch.tensor(cells) - 0.5
    assert rest[0, 0].round().tolist() == [1, 1, 1] and rest[1, 0].round().tolist() == [6, 4, 5]
    assert [5, 3, 4] not in rest[0].round().tolist()


def test_peaks_are_distinct_even_where_there_are_too_few():
    found = peaks(torch.arange(24.0).view(1, 2, 3, 4), 24)
    assert len({tuple(p) for p in found[0].tolist()}) == 24
    with pytest.raises(ValueError, match="larger window"):
        peaks(torch.zeros(1, 2, 2, 2), 9)


def kinds_of(labels: torch.Tensor, count: int = 2) -> torch.Tensor:
    """Probabilities (1, count + 1, X, Y, Z) that are sure of labels (X, Y, Z)."""
    return torch.nn.functional.one_hot(labels, count + 1).movedim(-1, 0)[None].float()


def test_kinds_of_a_prompt_are_those_around_the_click():
    torch.manual_seed(0)
    encoder = PromptEncoder(num_kinds=2, dim=12).eval()
    labels = torch.zeros(12, 10, 8, dtype=torch.int64)
    labels[1:4, 5:8, 2:5], labels[8:11, 5:8, 2:5] = 1, 2
    kinds = kinds_of(labels)
    with torch.no_grad():
        for index, kind in (((2, 6, 3), 0), ((3, 7, 4), 0), ((9, 6, 3), 1), ((7, 6, 3), 1)):  # the last beside it
            click = (torch.tensor([index]) + 0.5) / torch.tensor(labels.shape)
            prompt = encoder(kinds, click)
            assert float(prompt.kinds[0, kind]) > 0.99 and float(prompt.kinds.sum()) == pytest.approx(1)
        nothing = encoder(kinds_of(torch.zeros_like(labels)), click)
    assert torch.allclose(nothing.kinds, torch.tensor([[0.5, 0.5]]))


def test_clicks_on_lesions_of_a_kind_are_one_prompt():
    torch.manual_seed(0)
    encoder = PromptEncoder(num_kinds=2, dim=12).eval()
    labels = torch.zeros(24, 10, 8, dtype=torch.int64)
    labels[1:8, 1:8, 1:7], labels[10:16, 1:8, 1:7], labels[20:23, 5:8, 2:5] = 1, 2, 1
    places = torch.tensor([[4, 4, 4], [2, 6, 3], [21, 6, 3], [13, 4, 4], [18, 1, 1]])
    with torch.no_grad():
        clicks = (places + 0.5) / torch.tensor(labels.shape)
        tokens = encoder(kinds_of(labels).expand(len(places), -1, -1, -1, -1), clicks).token
    distance = torch.cdist(tokens, tokens)[0]
    assert distance[1:3].max() < 0.05 < distance[3:].min(), "another kind, or none, must be another prompt"


def test_alike_is_what_place_and_prompt_share():
    kinds = kinds_of(torch.tensor([[[0, 1, 2]]]))
    prompt = Prompt(torch.zeros(1, 12), torch.tensor([[0.8, 0.2]]))
    assert torch.allclose(alike(kinds, prompt)[0, 0, 0], torch.tensor([0.0, 0.8, 0.2]))


def test_first_query_is_at_the_click_only_where_it_is_local():
    generator = QueryGenerator((12,), dim=12)
    fmap = torch.rand(2, 12, *CELLS)
    boxes, middle = BoxVotes((12,))([torch.rand(2, 12, *CELLS)])
    votes = Votes(boxes, middle + torch.rand(2, *CELLS))
    near, prompt = torch.rand(2, *CELLS), Prompt(torch.rand(2, 12), torch.rand(2, 2))
    click = torch.tensor([[0.9, 0.1, 0.5]]).expand(2, -1)
    queries = generator([fmap], near, votes, prompt, click, torch.tensor([True, False]), 4)
    at = sample_at(boxes, click[:, None])[:, 0]
    assert torch.allclose(queries.boxes[0, 0], at[0]) and not torch.allclose(queries.boxes[1, 0], at[1], atol=1e-3)
    best = sample_at(boxes, peaks((near * votes.middle.sigmoid()).sqrt(), 4))
    assert torch.allclose(queries.boxes[0, 1:], best[0, :3], atol=1e-5)
    assert torch.allclose(queries.boxes[1], best[1], atol=1e-5)
    assert torch.allclose(generator([fmap], near, votes, prompt, None, None, 4).boxes, best, atol=1e-5)


def test_kinds_are_numbered_from_background():
    assert VoxelKinds(8, num_kinds=3)(torch.rand(2, 8, *CELLS)).shape == (2, 4, *CELLS)
    with pytest.raises(ValueError, match="num_kinds"):
        VoxelKinds(8, num_kinds=0)


def test_votes_start_at_their_own_cell_with_a_typical_size():
    boxes, middle = BoxVotes((24, 3), stride=4)([torch.rand(1, 24, 10, 8, 6), torch.rand(1, 3, 5, 4, 3)])
    voxels = boxes[0, :, 9, 0, 3] * torch.tensor([*SHAPE, *SHAPE])
    assert torch.allclose(voxels, torch.tensor([38.0, 2, 14, 8, 8, 8]), atol=0.3)
    assert float(middle.sigmoid().mean()) == pytest.approx(0.01, rel=0.1), "few cells are a middle"


def test_clicks_are_normalised_by_voxel_centres():
    assert torch.allclose(normalised((0, 31, 11)), torch.tensor([0.5 / 40, 31.5 / 32, 11.5 / 24]))
