"""What the language models that draw images have in common in their loading.

A model is loaded in three parts: the language model's weights, the image tokenizer's, and the
prompts. `harness.models.simplear`, `lumina` and `emu3` say which they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.models import checkpoint as checkpoints
from harness.models.cosmos import Cosmos
from harness.models.emu3_vq import Emu3VQ
from harness.models.language_checkpoint import Family, load_net, prefix_of, read_spec
from harness.models.language_model import (
    ImageTokenizer,
    ImageWords,
    LanguageModel,
    LanguageNet,
    LanguageSpec,
    Prompts,
)
from harness.models.vq import VQ
from harness.models.words import TokenizerWords, Words
from harness.records import Count, UserError

RANDOM = "random"
"""The revision of random weights."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where published weights are: in a repository of the hub, or at a path that replaces it."""

    hub: str | None
    revision: str | None
    files: Sequence[str]
    checkpoint: str | None
    tokenizer_hub: str | None = None
    tokenizer_files: Sequence[str] = ()
    tokenizer_checkpoint: str | None = None

    def find_model(self) -> Path:
        """Find the language model's folder. Raises UserError, with the remedy, if it is missing."""
        return checkpoints.locate(self.hub, self.revision, self.files, self.checkpoint)

    def find_tokenizer(self) -> Path:
        """Find the image tokenizer's folder or file, which is another repository's.

        Raises UserError, with the remedy, if it is missing.
        """
        return checkpoints.locate_tokenizer(
            self.tokenizer_hub, None, self.tokenizer_files, self.tokenizer_checkpoint
        )


@dataclass(frozen=True, slots=True)
class Language:
    """A language model's weights: on the device what forwards read, on the CPU the word table."""

    spec: LanguageSpec
    net: LanguageNet
    words: nn.Embedding


Decoder = Cosmos | Emu3VQ | VQ


@dataclass(frozen=True, slots=True)
class Parts:
    """What a model is made of: weights, where its codes are, words of prompts, image decoder.

    `revision` names the weights; it is "random" for random ones, whose decoder has none yet.
    """

    language: Language
    image: ImageWords
    words: Words
    decoder: Decoder
    revision: str


@dataclass(frozen=True, slots=True)
class Precision:
    """Where and in which types a model computes."""

    device: torch.device
    dtype: torch.dtype
    render_dtype: torch.dtype

    @classmethod
    def of(cls, device: str | torch.device, dtype: str, render_dtype: str) -> Precision:
        """Read the options of a configuration. Raises UserError for types that there are not."""
        return cls(
            torch.device(device),
            checkpoints.dtype_named(dtype),
            checkpoints.dtype_named(render_dtype, "render_dtype"),
        )


def choose_weights(weights: str) -> bool:
    """Tell whether published weights are asked for. Raises UserError for an unknown choice."""
    if weights not in ("published", "random"):
        raise UserError(f"model.weights={weights}: choose published or random")
    return weights == "published"


def read_size(size: str | None, sizes: Mapping[str, LanguageSpec]) -> LanguageSpec | None:
    """Look a size up; None stands for any. Raises UserError for an unknown one."""
    if size is None:
        return None
    if size not in sizes:
        raise UserError(f"model.size={size}: known sizes are {', '.join(sizes)}")
    return sizes[size]


def read_expected_spec(
    path: Path, config: Mapping[str, Any], family: Family, expected: LanguageSpec | None
) -> LanguageSpec:
    """Read a checkpoint's dimensions. Raises UserError if they are not the expected ones."""
    spec = read_spec(path, config, family)
    if expected is not None and (spec.trunk, spec.words) != (expected.trunk, expected.words):
        raise UserError(f"{path} is {spec.summary}, not {expected.summary} as model.size says")
    return spec


def load_language(
    path: Path,
    config: Mapping[str, Any],
    spec: LanguageSpec,
    image: ImageWords,
    precision: Precision,
) -> Language:
    """Read the language model of a checkpoint, file after file."""
    net, words = load_net(
        path,
        spec,
        image,
        prefix=prefix_of(config),
        dtype=precision.dtype,
        device=precision.device,
    )
    return Language(spec, net, words)


def expect_size(spec: LanguageSpec | None, sizes: Mapping[str, LanguageSpec]) -> LanguageSpec:
    """Return the size of random weights. Raises UserError if none was chosen."""
    if spec is None:
        raise UserError(f"model.weights=random needs model.size, one of {', '.join(sizes)}")
    return spec


def make_random_language(spec: LanguageSpec, image: ImageWords, precision: Precision) -> Language:
    """Make a language model of random weights, for work on speed."""
    with torch.device("meta"):
        net = LanguageNet(spec, image).to(precision.dtype)
    checkpoints.randomise(net, precision.device)
    # Contexts are read from it a word at a time, so a table of equal rows serves as well.
    row_1D = torch.randn(1, spec.trunk.dim, generator=torch.Generator().manual_seed(0))
    table_VD = row_1D.to(precision.dtype).expand(spec.words, -1)
    return Language(spec, net, nn.Embedding.from_pretrained(table_VD))


def expect_words(words: TokenizerWords | None, path: Path) -> TokenizerWords:
    """Return the tokenizer of prompts. Raises UserError if the checkpoint has none."""
    if words is None:
        raise UserError(
            f"{path} has no tokenizer.json, which prompts need: put it beside the weights"
        )
    return words


def name_revision(path: Path, tokenizer_file: Path | None) -> str:
    """Name the weights: the checkpoint's revision, and the tokenizer's where it lies elsewhere."""
    revision = checkpoints.revision_of(path)
    if tokenizer_file is None:
        return revision
    return f"{revision}+{checkpoints.sha256([tokenizer_file])[:12]}"


def count_rows_and_columns(height: int, width: int, pixels_per_code: int) -> tuple[int, int]:
    """Count rows and columns of codes. Raises UserError for sizes that are no whole numbers."""
    for name, pixels in (("height", height), ("width", width)):
        if pixels < pixels_per_code or pixels % pixels_per_code:
            raise UserError(f"model.{name}={pixels}: must be a multiple of {pixels_per_code}")
    return height // pixels_per_code, width // pixels_per_code


def assemble(
    parts: Parts,
    prompts: Prompts,
    to_uint8: Callable[[Tensor], Tensor],
    precision: Precision,
    *,
    grid: tuple[int, int],
    name: str,
    max_context: Count,
) -> LanguageModel:
    """Make the model of its parts: the image decoder is placed, and laid out for rendering."""
    decoder = parts.decoder
    if parts.revision == RANDOM:
        checkpoints.randomise(decoder, precision.device)
    decoder.eval().requires_grad_(False).to(precision.device)
    codebook_Vd = decoder.codebook.clone()
    decoder.for_rendering(precision.render_dtype)
    return LanguageModel(
        parts.language.net,
        parts.language.words,
        ImageTokenizer(decoder, codebook_Vd, to_uint8),
        prompts,
        spec=parts.language.spec,
        image=parts.image,
        grid=grid,
        name=name,
        revision=parts.revision,
        max_context=max_context,
        dtype=precision.dtype,
        device=precision.device,
    )
