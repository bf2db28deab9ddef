"""Lumina-mGPT (arXiv 2408.02657) and Anole (arXiv 2407.06135): two Chameleons that draw images.

Lumina-mGPT is fed a line token behind each row and the image's size before it; Anole is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from harness.models import chameleon_prompt as prompts
from harness.models import chameleon_vq
from harness.models import checkpoint as checkpoints
from harness.models import language_loading as loading
from harness.models.language_checkpoint import CHAMELEON
from harness.models.language_model import ImageWords, LanguageModel, LanguageSpec, Prompts
from harness.models.trunk import TrunkSpec
from harness.models.vq import VQ, truncate_to_uint8
from harness.models.words import read_vocabulary
from harness.records import Count, UserError

Family = Literal["lumina", "anole"]

SIZES = {
    "7B": LanguageSpec(
        TrunkSpec(32, 4096, 32, 11008, groups=32, head_norm="layer"), 65536, 10000.0, 4096
    ),
}


def load(
    name: str,
    family: Family,
    height: Count,
    width: Count,
    size: str | None = None,
    *,
    weights: str = "published",
    hub: str | None = None,
    revision: str | None = None,
    files: Sequence[str] = ("*.json", "*.safetensors"),
    checkpoint: str | None = None,
    tokenizer_hub: str | None = None,
    tokenizer_files: Sequence[str] = ("tokenizer/*",),
    tokenizer_checkpoint: str | None = None,
    max_context: Count = 192,
    dtype: str = "bfloat16",
    render_dtype: str = "float32",
    device: str | torch.device = "cpu",
) -> LanguageModel:
    """Load a model for images of one size in pixels, with published or random weights.

    `family` is what is fed before the image and behind its rows. `size` (a row of `SIZES`) is what
    the checkpoint must be; None takes any. Raises UserError, with the remedy, for weights that are
    missing, damaged or of another model.
    """
    if family not in ("lumina", "anole"):
        raise UserError(f"model.family={family}: choose lumina or anole")
    precision = loading.Precision.of(device, dtype, render_dtype)
    expected = loading.read_size(size, SIZES)
    grid = loading.count_rows_and_columns(height, width, prompts.PIXELS_PER_CODE)

    if loading.choose_weights(weights):
        source = loading.Source(
            *(hub, revision, files, checkpoint),
            *(tokenizer_hub, tokenizer_files, tokenizer_checkpoint),
        )
        parts = _load_parts(source, expected, family, precision)
    else:
        parts = _make_random_parts(expected, family, precision)
    asked: Prompts
    if family == "lumina":
        asked = prompts.LuminaPrompts(parts.words, grid)
    else:
        asked = prompts.AnolePrompts(parts.words)
    return loading.assemble(
        parts,
        asked,
        truncate_to_uint8,
        precision,
        grid=grid,
        name=name,
        max_context=max_context,
    )


def _load_parts(
    source: loading.Source,
    expected: LanguageSpec | None,
    family: Family,
    precision: loading.Precision,
) -> loading.Parts:
    path = source.find_model()
    config = checkpoints.read_config(path)
    spec = loading.read_expected_spec(path, config, CHAMELEON, expected)
    words = loading.expect_words(prompts.read_words(path, spec.words), path)
    decoder_file = chameleon_vq.find_file(source.find_tokenizer())
    decoder = chameleon_vq.load(decoder_file)
    ids = prompts.find_image_ids(words.vocabulary, decoder.spec.codes, path)
    _expect_same_ids(config, ids, path)
    image = _image_words(family, ids, words.vocabulary)
    language = loading.load_language(path, config, spec, image, precision)
    revision = loading.name_revision(path, decoder_file)
    return loading.Parts(language, image, words, decoder, revision)


def _make_random_parts(
    expected: LanguageSpec | None, family: Family, precision: loading.Precision
) -> loading.Parts:
    spec = loading.expect_size(expected, SIZES)
    words = prompts.hashed_words(spec.words)
    ids = range(prompts.FIRST_CODE, prompts.FIRST_CODE + prompts.CODES)
    image = _image_words(family, ids, words.vocabulary)
    language = loading.make_random_language(spec, image, precision)
    with torch.device("meta"):
        decoder = VQ(chameleon_vq.RELEASED, encodes=False)
    return loading.Parts(language, image, words, decoder, loading.RANDOM)


def _image_words(family: Family, ids: range, vocabulary: Mapping[str, int]) -> ImageWords:
    row_end = vocabulary[prompts.ROW_END] if family == "lumina" else None
    return ImageWords(ids.start, len(ids), row_end)


def _expect_same_ids(config: Mapping[str, Any], ids: range, path: Path) -> None:
    """Raise UserError where the configuration has the codes elsewhere than the tokenizer."""
    if "vocabulary_map" not in config:
        return
    stated = prompts.find_image_ids(read_vocabulary(config, path), len(ids), path)
    if stated != ids:
        raise UserError(
            f"{path}: image tokens begin at {stated.start} in config.json, at {ids.start} in the "
            "tokenizer: the files are of different models"
        )
