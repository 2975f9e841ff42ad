"""From a click to queries: sampling, peaks, the prompt and the votes."""

import pytest
import torch
import torch.nn.functional as F

from organdetr_monai.miq_sam3d.queries import (
    BoxVotes,
    Presence,
    Prompt,
    PromptEncoder,
    QueryGenerator,
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
    score = torch.zeros(2, *CELLS)
    score[0, 1, 1, 1], score[0, 1, 1, 2], score[0, 5, 3, 4] = 0.5, 0.4, 0.9  # the second is no maximum
    score[1, 6, 4, 5] = 0.3
    found = peaks(score + 1e-3 * torch.rand(2, *CELLS), 3) * torch.tensor(CELLS) - 0.5
    assert found[0, 0].round().tolist() == [5, 3, 4] and found[0, 1].round().tolist() == [1, 1, 1]
    assert found[0, 2].round().tolist() != [1, 1, 2]
    assert found[1, 0].round().tolist() == [6, 4, 5]


def test_peaks_are_distinct_even_where_there_are_too_few():
    found = peaks(torch.arange(24.0).view(1, 2, 3, 4), 24)
    assert len({tuple(p) for p in found[0].tolist()}) == 24
    with pytest.raises(ValueError, match="larger window"):
        peaks(torch.zeros(1, 2, 2, 2), 9)


def test_prompt_is_the_same_anywhere_on_a_thing():
    """Mean shift: clicks on different cells of one blob give nearly one prompt, closer than their own samples do."""
    torch.manual_seed(0)
    encoder = PromptEncoder(12, 6, levels=1).eval()
    fmap = torch.rand(1, 12, 8, 8, 8) * 0.3
    blob = torch.rand(12, 3, 3, 3) * 0.5 + torch.arange(12.0)[:, None, None, None] / 6
    fmap[0, :, 2:5, 3:6, 2:5] = blob
    keys = F.normalize(fmap[:, :6], dim=1)
    clicks = [torch.tensor([[x, 0.56, 0.44]]) for x in (0.32, 0.56)]
    with torch.no_grad():
        encoder.log_sharpness.fill_(3.0)
        means = []
        encoder.token.register_forward_pre_hook(lambda _, args: means.append(args[0][:, :12]))
        for click in clicks:
            encoder([fmap], keys, click)
    samples = [sample_at(fmap, click[:, None])[:, 0] for click in clicks]
    assert (means[0] - means[1]).norm() < 0.5 * (samples[0] - samples[1]).norm()


def test_first_query_is_at_the_click_only_where_it_is_local():
    generator = QueryGenerator(12, levels=1)
    keys = F.normalize(torch.rand(2, 6, *CELLS), dim=1)
    fmap, votes = torch.rand(2, 12, *CELLS), BoxVotes(12)(torch.rand(2, 12, *CELLS))
    prompt = Prompt(torch.rand(2, 12), torch.rand(2, 6))
    click = torch.tensor([[0.9, 0.1, 0.5]]).expand(2, -1)
    queries = generator([fmap], keys, votes, prompt, click, torch.tensor([True, False]), 4)
    at = sample_at(votes, click[:, None])[:, 0]
    assert torch.allclose(queries.boxes[0, 0], at[0]) and not torch.allclose(queries.boxes[1, 0], at[1], atol=1e-3)
    best = sample_at(votes, peaks(queries.similarity, 4))
    assert torch.allclose(queries.boxes[0, 1:], best[0, :3], atol=1e-5)
    assert torch.allclose(queries.boxes[1], best[1], atol=1e-5)
    assert torch.allclose(generator([fmap], keys, votes, prompt, None, None, 4).boxes, best, atol=1e-5)


def test_few_places_belong_to_a_lesion_at_the_start():
    torch.manual_seed(0)
    presence = Presence(8)(torch.rand(2, 8, *CELLS))
    assert presence.shape == (2, *CELLS)
    assert float(presence.detach().sigmoid().mean()) == pytest.approx(0.1, abs=0.03)


def test_votes_start_at_their_own_cell_with_a_typical_size():
    boxes = BoxVotes(24, stride=4, typical=8.0)(torch.rand(1, 24, 10, 8, 6))
    voxels = boxes[0, :, 9, 0, 3] * torch.tensor([*SHAPE, *SHAPE])
    assert torch.allclose(voxels, torch.tensor([38.0, 2, 14, 8, 8, 8]), atol=0.3)


def test_clicks_are_normalised_by_voxel_centres():
    assert torch.allclose(normalised((0, 31, 11)), torch.tensor([0.5 / 40, 31.5 / 32, 11.5 / 24]))
