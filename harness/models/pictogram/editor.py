"""The embedded editor: the embedded generator, which reads a source picture before the instruction.

A context is the 144 source tokens, then 32 words. A place of the target is drawn from all of them,
and from the source token of the same cell, which is added to the input through a projection: most
of a picture is to be copied, and so this is learned with a third of the samples. Rotary positions
put the source one grid side up and left of the target, as EditAR does.

Shapes: B rows, W positions, N image tokens, P = N + 32 context positions, V codes, D width, d head
width.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from harness.models.linear import Linear
from harness.models.pictogram import edits
from harness.models.pictogram.generator import (
    GPT,
    PROMPT,
    GPTSpec,
    PictogramModel,
    load_network,
    load_tokenizer,
)
from harness.models.pictogram.world import SIDE
from harness.models.trunk import Attend, axial_rotary
from harness.models.vq import VQ
from harness.records import SourceImage, UserError

PART = "editor"
"""The part of a weight set that holds an editor."""


class EditorGPT(GPT):
    """The generator's network, with a source in front of the words."""

    def __init__(self, spec: GPTSpec) -> None:
        super().__init__(spec)
        self.source_embedding = nn.Parameter(torch.zeros(spec.dim))
        self.empty_source_embeddings = nn.Parameter(0.02 * torch.randn(spec.side**2, spec.dim))
        self.hint = Linear(spec.dim, spec.dim, bias=False)
        nn.init.eye_(self.hint.weight)
        self.register_buffer("rotary", _rotary_table(spec), persistent=False)

    @property
    def context_positions(self) -> int:
        """Count the positions of a context: the source, and an instruction."""
        return self.spec.side**2 + PROMPT

    def embed_source(self, token_BN: Tensor, is_empty_B: Tensor) -> Tensor:
        """Embed sources, [B, N, D]; the learned empty one where `is_empty_B` says so."""
        index_N = torch.arange(token_BN.shape[1], device=token_BN.device)
        source_BND = self.embed_tokens(token_BN, index_N) + self.source_embedding
        is_empty_B11 = is_empty_B[:, None, None]
        return torch.where(is_empty_B11, self.empty_source_embeddings, source_BND)

    def embed_context(self, word_B32: Tensor, source_BND: Tensor) -> Tensor:
        """Embed a source and an instruction, [B, P, D]; the last word has the first cell's hint."""
        words_B32D = self.embed_words(word_B32)
        first_B1D = self.hint(source_BND[:, :1])
        hinted_B1D = words_B32D[:, -1:] + first_B1D
        return torch.cat((source_BND, words_B32D[:, :-1], hinted_B1D), 1)

    def embed_targets(self, token_BW: Tensor, index_BW: Tensor, source_BND: Tensor) -> Tensor:
        """Embed target tokens, [B, W, D], each with the hint of the cell that is drawn next."""
        next_BW = (index_BW + 1).clamp(max=source_BND.shape[1] - 1)
        hint_BWD = source_BND.gather(1, next_BW.unsqueeze(-1).expand(-1, -1, self.spec.dim))
        return self.embed_tokens(token_BW, index_BW) + self.hint(hint_BWD)

    def forward_edits(
        self,
        source_BN: Tensor,
        is_empty_B: Tensor,
        word_B32: Tensor,
        token_BN: Tensor,
        attend: Attend,
    ) -> Tensor:
        """Compute logits [B, N, V]: token n from source, words and the tokens before n."""
        source_BND = self.embed_source(source_BN, is_empty_B)
        index_BW = torch.arange(token_BN.shape[1] - 1, device=token_BN.device)
        index_BW = index_BW.expand(len(token_BN), -1)
        context_BPD = self.embed_context(word_B32, source_BND)
        targets_BWD = self.embed_targets(token_BN[:, :-1], index_BW, source_BND)
        x_BWD = torch.cat((context_BPD, targets_BWD), 1)
        rotary_1W2 = self.rotary[: x_BWD.shape[1]].unsqueeze(0)
        hidden_BWD = self.trunk(x_BWD, rotary_1W2, attend)
        return self.head(hidden_BWD[:, context_BPD.shape[1] - 1 :])


def _rotary_table(spec: GPTSpec) -> Tensor:
    """(cosine, sine) of source cells, words and target cells, [N + 32 + N, d/2, 2]."""
    place_N = torch.arange(spec.side**2)
    target_N2 = torch.stack((place_N // spec.side, place_N % spec.side), -1)
    word_P2 = torch.arange(-PROMPT, 0).unsqueeze(-1).expand(-1, 2)
    coords = torch.cat((target_N2 - spec.side, word_P2, target_N2))
    return axial_rotary(coords, spec.dim // spec.heads)


class PictogramEditor(PictogramModel):
    """The embedded editor as the engine draws it (`ImageModel`, `EditsImages`, `ReadsContext`).

    Editor and tokenizer of one weight set. Raises WeightsError for weights that are missing,
    altered or of another shape.
    """

    gpt: EditorGPT

    def __init__(self, weights: str = "pictogram_16", device: str | torch.device = "cpu") -> None:
        gpt, classes, gpt_sha = load_editor(weights)
        vq, vq_sha = load_tokenizer(weights)
        self.name = f"{Path(weights).name}_editor"
        self.revision = f"{gpt_sha[:12]}-{vq_sha[:12]}"
        self.classes = classes
        self.take_networks(gpt, vq, device)

    @classmethod
    def of_networks(cls, gpt: EditorGPT, vq: VQ, classes: tuple[str, ...]) -> PictogramEditor:
        """Make an editor of networks that are there, as training does, on the CPU."""
        editor = cls.__new__(cls)
        editor.name = "editor"
        editor.revision = "training"
        editor.classes = classes
        editor.take_networks(gpt, vq, "cpu")
        return editor

    # ------------------------------------------------------------------ contexts

    @torch.no_grad()
    def context(self, text: str | None, like: str) -> Tensor:
        """Embed an instruction behind the empty source, [P, D]."""
        token_1N = torch.zeros((1, self.num_tokens), dtype=torch.int64, device=self.device)
        return self._embed_context(text, token_1N, is_empty=True)

    @torch.no_grad()
    def edit_context(self, text: str | None, like: str, source: SourceImage) -> Tensor:
        """Embed a source and an instruction, [P, D]. Raises UserError for another size."""
        return self._embed_context(text, self.encode(source.pixels()), is_empty=False)

    def encode(self, pixels: np.ndarray) -> Tensor:
        """Encode a picture as tokens, int64 [1, N]. Raises UserError unless it is 48 x 48."""
        height, width = pixels.shape[:2]
        if (height, width) != (SIDE, SIDE):
            raise UserError(
                f"a source of {width}x{height}: the embedded editor reads {SIDE}x{SIDE} pixels"
            )
        pixels_13HW = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
        return self.vq.encode(pixels_13HW.div(127.5).sub(1).to(self.device))

    def _embed_context(self, text: str | None, token_1N: Tensor, *, is_empty: bool) -> Tensor:
        is_empty_1 = torch.tensor([is_empty], device=self.device)
        word_132 = torch.tensor([edits.encode(text)], device=self.device)
        source_1ND = self.gpt.embed_source(token_1N, is_empty_1)
        return self.gpt.embed_context(word_132, source_1ND)[0]

    # ------------------------------------------------------------------ image tokens

    def embed(self, token_BW: Tensor, index_BW: Tensor) -> Tensor:
        raise RuntimeError("the editor embeds tokens beside their context only")

    def embed_in_context(self, token_BW: Tensor, index_BW: Tensor, context_BPD: Tensor) -> Tensor:
        return self.gpt.embed_targets(token_BW, index_BW, context_BPD[:, : self.num_tokens])


def editor_spec(spec: GPTSpec) -> GPTSpec:
    """Return the dimensions of an editor that begins with a generator's weights."""
    return replace(spec, words=len(edits.vocabulary()))


def begin_with_generator(gpt: EditorGPT, generator: GPT) -> None:
    """Put a generator's weights into an editor; what is new keeps its own.

    Words of instructions follow those of captions, so that these keep their numbers.
    """
    targets = gpt.state_dict()
    for name, source in generator.state_dict().items():
        corner = tuple(map(slice, source.shape))
        targets[name][corner].copy_(source)


def load_editor(weights: str) -> tuple[EditorGPT, tuple[str, ...], str]:
    """Load the editor of a weight set, its classes and the sha256 of its file.

    Raises WeightsError for weights that are missing, altered or of another vocabulary.
    """
    return load_network(EditorGPT, weights, PART, len(edits.vocabulary()))
