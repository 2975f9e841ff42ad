"""MIQ-SAM3D: encoder, prompt, instance queries and competitive decoder, put together."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from organdetr_monai.miq_sam3d.decoder import CompetitiveDecoder
from organdetr_monai.miq_sam3d.encoder import DualEncoder
from organdetr_monai.miq_sam3d.queries import (
    BoxVotes,
    KeyProjection,
    Presence,
    Prompt,
    PromptEncoder,
    QueryGenerator,
    cosine,
)


class Encoding(NamedTuple):
    """What the network keeps of a window; it depends on no click."""

    #: (B, fine_channels, ⌈X/2⌉, ⌈Y/2⌉, ⌈Z/2⌉)
    fine: Tensor
    #: (B, dim, …) at strides 4, 8 and 16.
    maps: list[Tensor]
    #: (B, key_dim, …) at stride 4, of length 1.
    keys: Tensor
    #: (B, 6, …) at stride 4, normalised centre boxes.
    votes: Tensor


class MIQSAM3D(nn.Module):
    """One click in, every instance of the clicked kind out (a design after the abstract of arXiv 2511.01345).

    Parameters
    ----------
    encoder : DualEncoder
    presence : Presence
        Of the encoder's fine map; in training only.
    keys : KeyProjection
    votes : BoxVotes
        Both of the finest map of the encoder's pyramid.
    prompt_encoder : PromptEncoder
    generator : QueryGenerator
    decoder : CompetitiveDecoder
    num_queries : int
        K, the most instances that one window can give. No weight depends on it: it may be raised after training.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        presence: Presence,
        keys: KeyProjection,
        votes: BoxVotes,
        prompt_encoder: PromptEncoder,
        generator: QueryGenerator,
        decoder: CompetitiveDecoder,
        *,
        num_queries: int = 12,
    ) -> None:
        super().__init__()
        self.encoder, self.presence, self.keys, self.votes = encoder, presence, keys, votes
        self.prompt_encoder, self.generator, self.decoder = prompt_encoder, generator, decoder
        self.num_queries = num_queries

    def encode(self, image: Tensor) -> Encoding:
        """Image (B, 1, X, Y, Z), intensities in [0, 1], to what clicks are answered from."""
        fine, pyramid = self.encoder(image)
        return Encoding(fine, pyramid, self.keys(pyramid[0]), self.votes(pyramid[0]))

    def prompt(self, encoding: Encoding, click: Tensor) -> Prompt:
        """What lies under one click for each image, (B, 3) normalised to [0, 1] of the window."""
        return self.prompt_encoder(encoding.maps, encoding.keys, click)

    def likeness(self, encoding: Encoding, prompt: Prompt) -> Tensor:
        """Highest cosine of a prompt with a window's keys, (B,): below `ALIKE` nothing there is of its kind."""
        return cosine(encoding.keys, F.normalize(prompt.feature.float(), dim=-1)).flatten(1).amax(1)

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
            ``boxes`` (B, K, 6), (cx, cy, cz, w, h, d) in [0, 1] of the window, axes in array order. Where the click is
            in the window, query 0 is the clicked instance's. In training also ``aux``, the same for each earlier
            decoder layer, ``similarity`` (B, ⌈X/4⌉, …), the cosine of prompt and keys, ``presence`` (B, ⌈X/2⌉, …), the
            logit of any lesion, and ``keys`` and ``votes`` as in :class:`Encoding`.
        """
        fine, maps, keys, votes = encoding
        queries = self.generator(maps, keys, votes, prompt, click, local, self.num_queries)
        *aux, last = self.decoder(maps, fine, queries.content, queries.boxes, queries.likeness)
        output: dict[str, Any] = dict(last)
        if self.training:
            output |= {"aux": aux, "similarity": queries.similarity, "presence": self.presence(fine)}
            output |= {"keys": keys, "votes": votes}
        return output

    def forward(
        self, image: Tensor, click: Tensor, exemplar: Tensor | None = None, remote: Tensor | None = None
    ) -> dict[str, Any]:
        """Answer one click for each image.

        Parameters
        ----------
        image : Tensor of shape (B, 1, X, Y, Z)
        click : Tensor of shape (B, 3)
            Normalised to [0, 1] of the volume that it lies in.
        exemplar : Tensor of shape (B, 1, X', Y', Z'), optional
            Where ``remote``, the volume that the click lies in; elsewhere not looked at.
        remote : bool Tensor of shape (B,), optional
            Whether the click lies in the exemplar; None: in none.

        Returns
        -------
        dict
            As of :meth:`retrieve`.
        """
        encoding = self.encode(image)
        prompt = self.prompt(encoding, click)
        if exemplar is None or remote is None:
            return self.retrieve(encoding, prompt, click)
        if remote.any():
            far = self.prompt(self.encode(exemplar[remote]), click[remote])
            row = remote.nonzero()[:, 0]
            prompt = Prompt(*(ours.index_copy(0, row, theirs) for ours, theirs in zip(prompt, far, strict=True)))
        return self.retrieve(encoding, prompt, click, local=~remote)
