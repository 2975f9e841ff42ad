"""Prompt-conditioned instance queries: one click becomes a query for everything that looks like what was clicked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from organdetr_monai.networks.attention import MLP
from organdetr_monai.networks.pointwise import PointwiseConv3d

#: Cosine from which up a place is of the prompt's kind: training pulls apart what is above and what is below.
ALIKE = 0.5


class Prompt(NamedTuple):
    """What was clicked, wherever that was: it can be kept, averaged over clicks, and looked for in any window."""

    #: (B, dim), conditions the queries.
    token: Tensor
    #: (B, d), what the keys of a window are compared with.
    feature: Tensor


def sample_at(fmap: Tensor, points: Tensor) -> Tensor:
    """Trilinear samples of a map.

    Parameters
    ----------
    fmap : Tensor of shape (B, C, X, Y, Z)
    points : Tensor of shape (B, N, 3)
        Array axis order, normalised to [0, 1]: voxel ``i`` has its centre at ``(i + 0.5) / n``. Beyond the outer
        centres the map goes on as it ends.

    Returns
    -------
    Tensor of shape (B, N, C)
    """
    # grid_sample wants its coordinates last axis first.
    where = (points.flip(-1) * 2 - 1)[:, :, None, None].to(fmap.dtype)
    sampled = F.grid_sample(fmap, where, align_corners=False, padding_mode="border")  # (B, C, N, 1, 1)
    return sampled.flatten(2).transpose(1, 2)


def cell_centres(shape: Sequence[int], device: torch.device | None = None) -> list[Tensor]:
    """Normalised coordinates of the cell centres along each axis: three tensors of X, Y and Z numbers."""
    return [(torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n for n in shape]


def squared_distance(shape: Sequence[int], centre: Tensor, scale: Tensor) -> Tensor:
    """Squared distance of every cell of a grid from points, in units of ``scale`` along each axis.

    Parameters
    ----------
    shape : (X, Y, Z)
    centre, scale : Tensor of shape (..., 3)
        Normalised to [0, 1] of the grid.

    Returns
    -------
    Tensor of shape (..., X, Y, Z), float32
    """
    x, y, z = (
        ((cells - centre[..., axis, None].float()) / scale[..., axis, None].float()) ** 2
        for axis, cells in enumerate(cell_centres(shape, centre.device))
    )
    return x[..., :, None, None] + y[..., None, :, None] + z[..., None, None, :]


class Presence(nn.Module):
    """Whether a place belongs to a lesion at all, of whatever kind: an extra task for the encoder, in training only.

    It has an answer at every place of every window, whereas kinds and instances are learned from what one click asks
    for: as the segmentation heads do for Organ-DETR, it shortens the time until the maps are worth looking at.

    Parameters
    ----------
    channels : int
        Width of the map.
    prior : float
        Probability at the start: few places belong to a lesion.
    """

    def __init__(self, channels: int = 24, *, prior: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(PointwiseConv3d(channels, channels), nn.GELU(), PointwiseConv3d(channels, 1))
        _, bias = self.layers[-1].parameters()
        nn.init.constant_(bias, math.log(prior / (1 - prior)))

    def forward(self, fine: Tensor) -> Tensor:
        """Map (B, channels, X, Y, Z) to logits (B, X, Y, Z), float32."""
        return self.layers(fine)[:, 0].float()


class KeyProjection(nn.Module):
    """Keys of a map: where they point in the prompt's direction there is something of its kind."""

    def __init__(self, dim: int = 96, key_dim: int = 48) -> None:
        super().__init__()
        self.layers = nn.Sequential(PointwiseConv3d(dim, dim), nn.GELU(), PointwiseConv3d(dim, key_dim))

    def forward(self, fmap: Tensor) -> Tensor:
        """Map (B, dim, X, Y, Z) to keys of length 1, (B, key_dim, X, Y, Z), float32."""
        return F.normalize(self.layers(fmap).float(), dim=1)


def cosine(keys: Tensor, feature: Tensor) -> Tensor:
    """Keys (B, d, X, Y, Z) and feature (B, d), both of length 1, to (B, X, Y, Z).

    Not a matrix product: autocast would make that one bfloat16, which cannot tell 0.995 from 1.
    """
    return (keys * feature[:, :, None, None, None]).sum(1)


class BoxVotes(nn.Module):
    """Every cell of a map says which box it would belong to, whatever the click: where a query at this cell starts.

    Parameters
    ----------
    dim : int
        Width of the map.
    stride : int
        Of the map.
    typical : float
        Edge of a box at the start of training, in voxels of the image, and the unit of the votes.
    """

    def __init__(self, dim: int = 96, *, stride: int = 4, typical: float = 8.0) -> None:
        super().__init__()
        self.stride, self.typical = stride, typical
        self.layers = nn.Sequential(PointwiseConv3d(dim, dim), nn.GELU(), PointwiseConv3d(dim, 6))
        weight, bias = self.layers[-1].parameters()
        nn.init.normal_(weight, std=1e-3)
        nn.init.zeros_(bias)

    def forward(self, fmap: Tensor) -> Tensor:
        """Map (B, dim, X, Y, Z) to normalised centre boxes (B, 6, X, Y, Z), float32."""
        shape = fmap.shape[2:]
        unit = self.typical / (self.stride * torch.tensor(shape, device=fmap.device)).view(3, 1, 1, 1)
        shift, size = self.layers(fmap).float().chunk(2, 1)
        centre = torch.stack(torch.meshgrid(cell_centres(shape, fmap.device), indexing="ij"))  # (3, X, Y, Z)
        return torch.cat([(centre + unit * shift).clamp(0, 1), (unit * size.clamp(-3, 3).exp()).clamp(max=1)], 1)


class PromptEncoder(nn.Module):
    """From the maps around a click to a :class:`Prompt`.

    What lies under the click is one sample of a lesion, at its edge half of something else. One step of mean shift
    makes it a sample of the whole: the mean over the cells nearby whose keys resemble the clicked one. Nothing says
    where the click was, because the lesions to be found are elsewhere.

    The feature to compare with is the mean of these cells' own keys, plus a learned correction that starts at zero: a
    projection of its own would first have to learn that like resembles like.

    Parameters
    ----------
    dim, key_dim : int
        Widths of the maps and of the keys.
    levels : int
        Maps of the pyramid.
    reach : float
        Standard deviation of "nearby" at the start, in cells of the finest map.
    """

    def __init__(self, dim: int = 96, key_dim: int = 48, *, levels: int = 3, reach: float = 1.5) -> None:
        super().__init__()
        self.log_reach = nn.Parameter(torch.tensor(reach).log())
        self.log_sharpness = nn.Parameter(torch.tensor(5.0).log())
        self.token = MLP(dim * (levels + 1), dim, dim, depth=2)
        self.norm = nn.LayerNorm(dim)
        self.correction = nn.Linear(dim, key_dim)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, pyramid: Sequence[Tensor], keys: Tensor, click: Tensor) -> Prompt:
        """Encode one click for each image.

        Parameters
        ----------
        pyramid : sequence of Tensor of shape (B, dim, X, Y, Z)
            Finest first.
        keys : Tensor of shape (B, key_dim, X, Y, Z)
            Of the finest map.
        click : Tensor of shape (B, 3)
            Normalised to [0, 1] of the window.
        """
        shape = keys.shape[2:]
        clicked = F.normalize(sample_at(keys, click[:, None])[:, 0], dim=-1)  # (B, key_dim)
        alike = cosine(keys, clicked).flatten(1)  # (B, cells)
        cell = 1 / torch.tensor(shape, device=click.device)
        distance = squared_distance(shape, click, self.log_reach.exp() * cell).flatten(1)
        weight = (self.log_sharpness.exp() * alike - distance / 2).softmax(-1)
        fmap = pyramid[0].flatten(2)
        mean = fmap @ weight[:, :, None].to(fmap.dtype)  # (B, dim, 1)
        points = [sample_at(m, click[:, None])[:, 0] for m in pyramid]
        token = self.norm(self.token(torch.cat([mean[..., 0], *points], -1)))
        key = (keys.flatten(2) * weight[:, None]).sum(-1)  # (B, key_dim)
        return Prompt(token.float(), F.normalize(key + self.correction(token).float(), dim=-1))


class Queries(NamedTuple):
    """What a deformable decoder starts from."""

    #: (B, K, dim)
    content: Tensor
    #: (B, K, 6), normalised centre boxes.
    boxes: Tensor
    #: (B, K), the similarity at their anchors.
    likeness: Tensor
    #: (B, X, Y, Z), cosine of the prompt with every cell of the finest map.
    similarity: Tensor


class QueryGenerator(nn.Module):
    """Peaks of the similarity with a prompt become queries, and the click itself becomes the first of them.

    A query is ``LN(FiLM_token(b) + W [F(a), s(a)])``: a learned start ``b``, one for the click and one for all peaks,
    so that their number is free, modulated by the prompt (Perez et al. 2018), plus what the maps F and the similarity s
    show at its anchor ``a``; its first box is the one that the cell there votes for.

    Parameters
    ----------
    dim : int
        Width.
    levels : int
        Maps of the pyramid, all of which are read at the anchors.
    """

    def __init__(self, dim: int = 96, *, levels: int = 3) -> None:
        super().__init__()
        self.role = nn.Parameter(torch.randn(2, dim))  # of the click, of a peak
        self.film = nn.Linear(dim, 2 * dim)
        self.look = nn.Linear(dim * levels + 1, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        pyramid: Sequence[Tensor],
        keys: Tensor,
        votes: Tensor,
        prompt: Prompt,
        click: Tensor | None,
        local: Tensor | None,
        num_queries: int,
    ) -> Queries:
        """Make queries.

        Parameters
        ----------
        pyramid : sequence of Tensor of shape (B, dim, X, Y, Z)
        keys : Tensor of shape (B, d, X, Y, Z)
            Of the finest map.
        votes : Tensor of shape (B, 6, X, Y, Z)
            Box of each of its cells.
        prompt : Prompt
        click : Tensor of shape (B, 3), optional
            Normalised to [0, 1] of the window.
        local : bool Tensor of shape (B,), optional
            Where False the click lies in another window, and the first query is a peak like the others.
        num_queries : int
            K.
        """
        feature = F.normalize(prompt.feature.float(), dim=-1)
        similarity = cosine(keys, feature)
        anchors = peaks(similarity.detach(), num_queries)  # (B, K, 3)
        role = torch.ones(anchors.shape[:2], dtype=torch.int64, device=anchors.device)
        if click is not None:
            first = torch.cat([click[:, None].to(anchors.dtype), anchors[:, :-1]], 1)
            here = torch.ones_like(role[:, 0], dtype=torch.bool) if local is None else local
            anchors = torch.where(here[:, None, None], first, anchors)
            role[:, 0] = torch.where(here, 0, 1)
        seen = [sample_at(m, anchors) for m in pyramid]
        likeness = sample_at(similarity[:, None], anchors)  # (B, K, 1)
        seen.append(likeness.to(seen[0].dtype))
        scale, shift = self.film(prompt.token)[:, None].chunk(2, -1)  # (B, 1, dim)
        content = self.norm(self.role[role] * (1 + scale) + shift + self.look(torch.cat(seen, -1)))
        return Queries(content, sample_at(votes.detach(), anchors), likeness[..., 0], similarity)


@torch.no_grad()
def peaks(score: Tensor, count: int) -> Tensor:
    """The highest local maxima of a volume, each the largest of its 3×3×3 neighbourhood; then the highest other cells.

    Parameters
    ----------
    score : Tensor of shape (B, X, Y, Z)
    count : int
        How many, at most X * Y * Z.

    Returns
    -------
    Tensor of shape (B, count, 3)
        Centres of their cells, normalised to [0, 1], the highest peak first.
    """
    shape = torch.Size(int(n) for n in score.shape[1:])  # numbers, also while a trace is recorded
    if count > shape.numel():
        raise ValueError(f"{count} queries need as many cells, but the map has {tuple(shape)}: use a larger window")
    best = F.max_pool3d(score[:, None], 3, stride=1, padding=1)[:, 0]
    spread = 1 + score.amax() - score.amin()
    rank = torch.where(score == best, score, score - spread).flatten(1)
    index = rank.topk(count, dim=1).indices
    place = torch.stack(torch.unravel_index(index, shape), -1)  # (B, count, 3)
    return (place + 0.5) / torch.tensor(shape, device=score.device)
