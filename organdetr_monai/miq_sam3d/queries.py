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

EPS = 1e-4  # of probabilities, before they are divided
SEEN = 0.2  # mean probability of a lesion around a click from which on there is one


class Prompt(NamedTuple):
    """What was clicked, wherever that was: it can be kept, averaged over clicks, and looked for in any window."""

    #: (B, dim), conditions the queries.
    token: Tensor
    #: (B, C), how much it is of each kind of the training; sums to 1.
    kinds: Tensor


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


class VoxelKinds(nn.Module):
    """What every voxel is: background or a lesion of one of the kinds of the training.

    It has an answer at every voxel of every window, whereas instances are learned from what one click asks for; and it
    is what a click is compared with: the network knows a lesion by its kinds.

    Parameters
    ----------
    channels : int
        Width of the map.
    num_kinds : int
        C, kinds of lesions in the training data.
    """

    def __init__(self, channels: int = 16, *, num_kinds: int = 1) -> None:
        super().__init__()
        if num_kinds < 1:
            raise ValueError(f"num_kinds must be positive, got {num_kinds}")
        self.num_kinds = num_kinds
        self.layer = PointwiseConv3d(channels, num_kinds + 1)

    def forward(self, voxels: Tensor) -> Tensor:
        """Map (B, channels, X, Y, Z) to logits (B, C + 1, X, Y, Z), background first, float32."""
        return self.layer(voxels).float()


class Votes(NamedTuple):
    """What every cell of a map says of the lesion that it would belong to, whatever the click."""

    #: (B, 6, X, Y, Z), its box, normalised centre boxes.
    boxes: Tensor
    #: (B, X, Y, Z), the logit of being in the middle of one.
    middle: Tensor


class BoxVotes(nn.Module):
    """Every cell of a map says which box it would belong to, and whether it is the middle of it: queries start there.

    Parameters
    ----------
    channels : sequence of int
        Widths of the maps, finest first: what a coarse one sees, all of its cells know.
    dim : int
        Width of the layers.
    stride : int
        Of the finest map.
    typical : float
        Edge of a box at the start of training, in voxels of the image, and the unit of the votes.
    prior : float
        Probability of a middle at the start: few cells are one.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32, 128),
        dim: int = 32,
        *,
        stride: int = 2,
        typical: float = 8.0,
        prior: float = 0.01,
    ) -> None:
        super().__init__()
        self.stride, self.typical = stride, typical
        self.look = nn.ModuleList(PointwiseConv3d(width, dim) for width in channels)
        self.say = PointwiseConv3d(dim, 7)
        weight, bias = self.say.parameters()
        nn.init.normal_(weight, std=1e-3)
        nn.init.zeros_(bias)
        nn.init.constant_(bias[6:], math.log(prior / (1 - prior)))

    def forward(self, maps: Sequence[Tensor]) -> Votes:
        """Maps (B, channels[k], …) to what the cells of the first of them say, float32."""
        shape, device = maps[0].shape[2:], maps[0].device
        seen = [look(m) for look, m in zip(self.look, maps, strict=True)]
        seen[1:] = [F.interpolate(m, size=shape) for m in seen[1:]]
        unit = self.typical / (self.stride * torch.tensor(shape, device=device)).view(3, 1, 1, 1)
        shift, size, middle = self.say(F.gelu(torch.stack(seen).sum(0))).float().split([3, 3, 1], 1)
        centre = torch.stack(torch.meshgrid(cell_centres(shape, device), indexing="ij"))  # (3, X, Y, Z)
        boxes = torch.cat([(centre + unit * shift).clamp(0, 1), (unit * size.clamp(-3, 3).exp()).clamp(max=1)], 1)
        return Votes(boxes, middle[:, 0])


def alike(kinds: Tensor, prompt: Prompt) -> Tensor:
    """Probability that a place is of the prompt's kind: the sum over the kinds of what both say.

    Parameters
    ----------
    kinds : Tensor of shape (B, C + 1, X, Y, Z)
        Probabilities, background first.
    prompt : Prompt

    Returns
    -------
    Tensor of shape (B, X, Y, Z)
    """
    return (kinds[:, 1:] * prompt.kinds[:, :, None, None, None]).sum(1)


class PromptEncoder(nn.Module):
    """From what lies around a click to a :class:`Prompt`.

    The kinds of the prompt are those of the voxels around the click, weighed with a Gaussian: one voxel is a poor
    sample, at a lesion's edge half of something else. A lesion is of one kind, so the likeliest is raised over the
    others. The token says which kinds, and whether there is a lesion at all, and nothing else of the click: whoever
    clicks elsewhere on a lesion, or on another one of its kind, asks for the same.

    Parameters
    ----------
    num_kinds, dim : int
        C; width of the token.
    reach : float
        Standard deviation of the Gaussian in voxels.
    sharpness : float
        Exponent of the kinds' shares.
    """

    def __init__(self, *, num_kinds: int = 1, dim: int = 96, reach: float = 2.0, sharpness: float = 4.0) -> None:
        super().__init__()
        self.reach, self.sharpness = reach, sharpness
        self.token = MLP(num_kinds + 1, dim, dim, depth=2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, kinds: Tensor, click: Tensor) -> Prompt:
        """Encode one click for each image.

        Parameters
        ----------
        kinds : Tensor of shape (B, C + 1, X, Y, Z)
            Probabilities, background first.
        click : Tensor of shape (B, 3)
            Normalised to [0, 1] of the window.
        """
        x, y, z = (
            (-(((cells - click[:, axis, None].float()) * len(cells) / self.reach) ** 2) / 2).softmax(-1)
            for axis, cells in enumerate(cell_centres(kinds.shape[2:], click.device))
        )
        around = (kinds[:, 1:] * z[:, None, None, None]).sum(-1)  # (B, C, X, Y), then (…, X), then (B, C)
        around = ((around * y[:, None, None]).sum(-1) * x[:, None]).sum(-1)
        share = (around + EPS) / (around + EPS).sum(-1, keepdim=True)
        share = share**self.sharpness
        share = share / share.sum(-1, keepdim=True)
        seen = (around.sum(-1, keepdim=True) / SEEN).clamp(max=1)
        return Prompt(self.norm(self.token(torch.cat([share * seen, seen], -1))), share)


class Queries(NamedTuple):
    """What a deformable decoder starts from."""

    #: (B, K, dim)
    content: Tensor
    #: (B, K, 6), normalised centre boxes.
    boxes: Tensor


class QueryGenerator(nn.Module):
    """Middles of lesions of the prompt's kind become queries, and the click itself becomes the first of them.

    A query is ``LN(FiLM_token(b) + W [F(a), s(a)])``: a learned start ``b``, one for the click and one for all peaks,
    so that their number is free, modulated by the prompt (Perez et al. 2018), plus what the maps F and the likeness s
    show at its anchor ``a``; its first box is the one that the cell there votes for.

    Parameters
    ----------
    channels : sequence of int
        Widths of the maps that are read at the anchors.
    dim : int
        Width of the queries.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 128), *, dim: int = 96) -> None:
        super().__init__()
        self.role = nn.Parameter(torch.randn(2, dim))  # of the click, of a peak
        self.film = nn.Linear(dim, 2 * dim)
        self.look = nn.Linear(sum(channels) + 1, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        maps: Sequence[Tensor],
        alike: Tensor,
        votes: Votes,
        prompt: Prompt,
        click: Tensor | None,
        local: Tensor | None,
        num_queries: int,
    ) -> Queries:
        """Make queries.

        Parameters
        ----------
        maps : sequence of Tensor of shape (B, channels[k], …)
        alike : Tensor of shape (B, X, Y, Z)
            Highest probability in each of the votes' cells of being of the prompt's kind.
        votes : Votes
            Of cells (B, …, X, Y, Z).
        prompt : Prompt
        click : Tensor of shape (B, 3), optional
            Normalised to [0, 1] of the window.
        local : bool Tensor of shape (B,), optional
            Where False the click lies in another window, and the first query is a peak like the others.
        num_queries : int
            K.
        """
        heat = (alike * votes.middle.sigmoid()).sqrt()
        if click is None:
            anchors = peaks(heat.detach(), num_queries)  # (B, K, 3)
            role = torch.ones(anchors.shape[:2], dtype=torch.int64, device=anchors.device)
        else:
            # Not of len(click): a trace would hold for that many images alone.
            here = torch.ones_like(click[:, 0], dtype=torch.bool) if local is None else local
            # The clicked lesion has its query: a second one at its middle would be a double, right or wrong by chance.
            centre, size = sample_at(votes.boxes, click[:, None])[:, 0].chunk(2, -1)
            taken = here[:, None, None, None] & (squared_distance(heat.shape[1:], centre, size / 2) < 1)
            anchors = peaks(heat.detach(), num_queries, taken=taken)
            first = torch.cat([click[:, None].to(anchors.dtype), anchors[:, :-1]], 1)
            anchors = torch.where(here[:, None, None], first, anchors)
            role = torch.ones_like(anchors[..., 0], dtype=torch.int64)
            role[:, 0] = torch.where(here, 0, 1)
        seen = [sample_at(m, anchors) for m in maps]
        seen.append(sample_at(heat[:, None], anchors).to(seen[0].dtype))  # (B, K, 1)
        scale, shift = self.film(prompt.token)[:, None].chunk(2, -1)  # (B, 1, dim)
        content = self.norm(self.role[role] * (1 + scale) + shift + self.look(torch.cat(seen, -1)))
        return Queries(content, sample_at(votes.boxes, anchors))


@torch.no_grad()
def peaks(score: Tensor, count: int, *, taken: Tensor | None = None) -> Tensor:
    """The highest local maxima of a volume, each the largest of its 5×5×5 neighbourhood; then the highest other cells.

    Parameters
    ----------
    score : Tensor of shape (B, X, Y, Z)
    count : int
        How many, at most X * Y * Z.
    taken : bool Tensor of shape (B, X, Y, Z), optional
        Cells that come last, whatever their score.

    Returns
    -------
    Tensor of shape (B, count, 3)
        Centres of their cells, normalised to [0, 1], the highest peak first.
    """
    shape = torch.Size(int(n) for n in score.shape[1:])  # numbers, also while a trace is recorded
    if count > shape.numel():
        raise ValueError(f"{count} queries need as many cells, but the map has {tuple(shape)}: use a larger window")
    best = F.max_pool3d(score[:, None], 5, stride=1, padding=2)[:, 0]
    spread = 1 + score.amax() - score.amin()
    rank = torch.where(score == best, score, score - spread)
    rank = (rank if taken is None else rank - 2 * spread * taken).flatten(1)
    index = rank.topk(count, dim=1).indices
    place = torch.stack(torch.unravel_index(index, shape), -1)  # (B, count, 3)
    return (place + 0.5) / torch.tensor(shape, device=score.device)
