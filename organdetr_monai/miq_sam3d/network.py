"""MIQ-SAM3D: encoder, prompt, instance queries and competitive decoder, put together."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from organdetr_monai.miq_sam3d.decoder import CompetitiveDecoder
from organdetr_monai.miq_sam3d.encoder import DualEncoder, Maps
from organdetr_monai.miq_sam3d.heads import Evidence
from organdetr_monai.miq_sam3d.queries import BoxVotes, Prompt, PromptEncoder, QueryGenerator, Votes, VoxelKinds, alike
from organdetr_monai.networks.pointwise import PointwiseConv3d

SURE = 0.98  # a voxel's probability counts as no more than this, so that its logit leaves queries something to say


class Encoding(NamedTuple):
    """What the network keeps of a window; it depends on no click."""

    maps: Maps
    #: (B, C + 1, X, Y, Z), logits of the voxels' kinds, background first.
    kinds: Tensor
    #: In the cells of the fine map.
    votes: Votes


class MIQSAM3D(nn.Module):
    """One click in, every instance of the clicked kind out (a design after the abstract of arXiv 2511.01345).

    The encoder learns from the kinds of the voxels, and from their votes. What clicks ask for trains the rest of the
    network and stops at the encoder's maps: a click has few voxels to learn from, and its gradients are many times
    as large.

    Parameters
    ----------
    encoder : DualEncoder
    kinds : VoxelKinds
        Of the encoder's map of all voxels.
    votes : BoxVotes
    prompt_encoder : PromptEncoder
    generator : QueryGenerator
        Reads the fine map and the pyramid, as `votes` does.
    decoder : CompetitiveDecoder
        Of two levels.
    num_queries : int
        K, the most instances that one window can give. No weight depends on it: it may be raised after training.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        kinds: VoxelKinds,
        votes: BoxVotes,
        prompt_encoder: PromptEncoder,
        generator: QueryGenerator,
        decoder: CompetitiveDecoder,
        *,
        num_queries: int = 12,
    ) -> None:
        super().__init__()
        self.encoder, self.kinds, self.votes = encoder, kinds, votes
        self.prompt_encoder, self.generator, self.decoder = prompt_encoder, generator, decoder
        widths = (encoder.channels[1], encoder.channels[-1])
        self.levels = nn.ModuleList(PointwiseConv3d(width, decoder.dim) for width in widths)
        self.num_queries = num_queries

    def encode(self, image: Tensor) -> Encoding:
        """Image (B, 1, X, Y, Z), intensities in [0, 1], to what clicks are answered from."""
        maps = self.encoder(image)
        return Encoding(maps, self.kinds(maps.voxels), self.votes([maps.fine, *maps.pyramid]))

    def prompt(self, encoding: Encoding, click: Tensor, *, voxels: Tensor | None = None) -> Prompt:
        """What lies under one click for each image, (B, 3) normalised to [0, 1] of the window.

        `voxels` are probabilities as :meth:`voxels` gives them, from who knows better than this window alone.
        """
        return self.prompt_encoder(_shares(encoding) if voxels is None else voxels, click)

    def voxels(self, encoding: Encoding) -> Tensor:
        """Probabilities of the kinds of all voxels of a window, (B, C + 1, X, Y, Z), background first."""
        return _shares(encoding)

    def retrieve(
        self, encoding: Encoding, prompt: Prompt, click: Tensor | None = None, *, local: Tensor | None = None
    ) -> dict[str, Any]:
        """Every instance of the prompt's kind in a window.

        Parameters
        ----------
        encoding : Encoding
        prompt : Prompt
            One for each image, of this window or of another.
        click : Tensor of shape (B, 3), optional
            Where the click lies in this window, normalised; None: it lies in none of these.
        local : bool Tensor of shape (B,), optional
            For which images ``click`` lies in this window; None: for all.

        Returns
        -------
        dict
            ``masks`` (B, K, ⌈X/2⌉, ⌈Y/2⌉, ⌈Z/2⌉), ``objectness`` (B, K), ``quality`` (B, K), which is IoU, all logits;
            ``boxes`` (B, K, 6), (cx, cy, cz, w, h, d) in [0, 1] of the window, axes in array order; ``kinds`` (B, K,
            C), the mean probability of each kind over a mask; ``detail`` (B, X, Y, Z), what is to be added to masks
            that were interpolated to the voxels. Where the click is in the window, query 0 is the clicked instance's.
            In training there is no ``detail`` but ``aux``, the same for each earlier decoder layer, ``voxels`` (B, C +
            1, X, Y, Z), logits of the kinds of all voxels, ``votes`` (B, 6, ⌈X/2⌉, …) and ``middles`` (B, ⌈X/2⌉, …) of
            all cells.
        """
        maps, shares = _read(encoding.maps), _shares(encoding)
        fine, pyramid = maps[0], [layer(m) for layer, m in zip(self.levels, maps[1:], strict=True)]
        votes = Votes(*(part.detach() for part in encoding.votes))
        of_kind = alike(shares, prompt)
        highest = F.max_pool3d(of_kind[:, None], 2, ceil_mode=True)[:, 0]
        queries = self.generator(maps, highest, votes, prompt, click, local, self.num_queries)
        lesion = 1 - shares[:, :1]
        evidence = Evidence(_sure(_halved(lesion)[:, 0]), _halved(shares[:, 1:]), prompt.kinds)
        *aux, last = self.decoder(pyramid, fine, queries.content, queries.boxes, evidence)
        output: dict[str, Any] = dict(last)
        if self.training:
            return output | {"aux": aux} | _said(encoding)
        # What the queries add is smooth; the voxels' own part of the masks is as sharp as the voxels.
        smooth = F.interpolate(evidence.lesion[:, None], size=lesion.shape[2:], mode="trilinear")
        output["detail"] = self.decoder.heads.share * (_sure(lesion) - smooth)[:, 0]
        return output

    def forward(
        self, image: Tensor, click: Tensor | None, exemplar: Tensor | None = None, remote: Tensor | None = None
    ) -> dict[str, Any]:
        """Answer one click for each image.

        Parameters
        ----------
        image : Tensor of shape (B, 1, X, Y, Z)
        click : Tensor of shape (B, 3), optional
            Normalised to [0, 1] of the volume that it lies in. None, in training alone: nothing is asked, and the
            answer is what the voxels say, ``voxels``, ``votes`` and ``middles``.
        exemplar : Tensor of shape (B, 1, X, Y, Z), optional
            Where ``remote``, the volume that the click lies in; elsewhere not looked at.
        remote : bool Tensor of shape (B,), optional
            Whether the click lies in the exemplar; None: in none.

        Returns
        -------
        dict
            As of :meth:`retrieve`. In training the exemplars of remote clicks follow the images, answered, too: the
            first dimension is B and the number of remote clicks.
        """
        if exemplar is None or remote is None or not remote.any():
            encoding = self.encode(image)
            return _said(encoding) if click is None else self.retrieve(encoding, self.prompt(encoding, click), click)
        away = remote.nonzero()[:, 0]
        images = torch.cat([image, exemplar[away]])
        encoding = self.encode(images)
        if click is None:
            return _said(encoding)
        clicked = torch.arange(len(image), device=image.device)
        clicked[away] = len(image) + torch.arange(len(away), device=image.device)  # the window that each click lies in
        prompt = self.prompt(_rows(encoding, clicked), click)
        if not self.training:
            return self.retrieve(_rows(encoding, slice(len(image))), prompt, click, local=~remote)
        prompt = Prompt(*(torch.cat([part, part[away]]) for part in prompt))
        local = torch.cat([~remote, remote[away]])
        return self.retrieve(encoding, prompt, torch.cat([click, click[away]]), local=local)


def _said(encoding: Encoding) -> dict[str, Any]:
    """What training looks at whatever was clicked."""
    return {"voxels": encoding.kinds, "votes": encoding.votes.boxes, "middles": encoding.votes.middle}


def _read(maps: Maps) -> list[Tensor]:
    """What prompts and queries read, without a way back to the encoder."""
    return [m.detach() for m in (maps.fine, *maps.pyramid)]


def _shares(encoding: Encoding) -> Tensor:
    """Probabilities of the kinds, likewise."""
    return encoding.kinds.detach().softmax(1)


def _halved(volume: Tensor) -> Tensor:
    """Mean over the cells of the fine map: (B, C, X, Y, Z) to (B, C, ⌈X/2⌉, ⌈Y/2⌉, ⌈Z/2⌉)."""
    return F.avg_pool3d(volume, 2, ceil_mode=True)


def _sure(p: Tensor) -> Tensor:
    return p.clamp(1 - SURE, SURE).logit()


def _rows(encoding: Any, rows: Tensor | slice) -> Any:
    """Some of the images of an encoding: of all tensors in nested tuples and lists."""
    if torch.is_tensor(encoding):
        return encoding[rows]
    parts = [_rows(part, rows) for part in encoding]
    return parts if isinstance(encoding, list) else type(encoding)(*parts)
