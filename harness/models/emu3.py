"""Emu3-Gen (arXiv 2409.18869): a Llama that is fed a line token behind each row of codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harness.models import checkpoint as checkpoints
from harness.models import emu3_prompt as prompts
from harness.models import emu3_vq
from harness.models import language_loading as loading
from harness.models.emu3_vq import Emu3VQ
from harness.models.language_checkpoint import EMU3
from harness.models.language_model import ImageWords, LanguageModel, LanguageSpec
from harness.models.trunk import TrunkSpec
from harness.models.vq import truncate_to_uint8
from harness.records import Count, UserError

SIZES = {
    "8B": LanguageSpec(TrunkSpec(32, 4096, 32, 14336, groups=8), 184_622, 1e6, 9216),
}

_LIBRARY_PREFIX = "vqmodel."


def load(
    name: str,
    size: str | None = None,
    ratio: str = "1:1",
    area: Count = 518_400,
    *,
    weights: str = "published",
    hub: str | None = None,
    revision: str | None = None,
    files: Sequence[str] = ("*.json", "*.safetensors"),
    checkpoint: str | None = None,
    tokenizer_hub: str | None = None,
    tokenizer_files: Sequence[str] = ("*.json", "*.safetensors"),
    tokenizer_checkpoint: str | None = None,
    positive: str = prompts.POSITIVE,
    negative: str = prompts.NEGATIVE,
    max_context: Count = 512,
    dtype: str = "bfloat16",
    render_dtype: str = "float32",
    device: str | torch.device = "cpu",
) -> LanguageModel:
    """Load Emu3 for images of one `ratio` (width:height) and about `area` pixels.

    The library's layout has the image tokenizer in the same files; for the original one it is
    looked for as `tokenizer_hub` and `tokenizer_checkpoint` say. `size` (a row of `SIZES`) is what
    the checkpoint must be; None takes any. `positive` stands behind every prompt, `negative` is the
    text of the null prompt. Raises UserError, with the remedy, for weights that are missing,
    damaged or of another model.
    """
    precision = loading.Precision.of(device, dtype, render_dtype)
    expected = loading.read_size(size, SIZES)
    grid = prompts.compute_grid(_read_ratio(ratio), area)

    if loading.choose_weights(weights):
        source = loading.Source(
            *(hub, revision, files, checkpoint),
            *(tokenizer_hub, tokenizer_files, tokenizer_checkpoint),
        )
        parts = _load_parts(source, expected, precision)
    else:
        parts = _make_random_parts(expected, precision)
    return loading.assemble(
        parts,
        prompts.Emu3Prompts(parts.words, grid, positive, negative),
        truncate_to_uint8,
        precision,
        grid=grid,
        name=name,
        max_context=max_context,
    )


def _load_parts(
    source: loading.Source, expected: LanguageSpec | None, precision: loading.Precision
) -> loading.Parts:
    path = source.find_model()
    config = checkpoints.read_config(path)
    spec = loading.read_expected_spec(path, config, EMU3, expected)
    words = loading.expect_words(prompts.read_words(path, spec.words), path)
    decoder, tokenizer_file = _load_decoder(source, path, config)
    ids = prompts.find_image_ids(words.vocabulary, decoder.spec.codes, path)
    image = ImageWords(ids.start, len(ids), words.vocabulary[prompts.ROW_END])
    language = loading.load_language(path, config, spec, image, precision)
    revision = loading.name_revision(path, tokenizer_file)
    return loading.Parts(language, image, words, decoder, revision)


def _make_random_parts(
    expected: LanguageSpec | None, precision: loading.Precision
) -> loading.Parts:
    spec = loading.expect_size(expected, SIZES)
    words = prompts.hashed_words()
    row_end = words.vocabulary[prompts.ROW_END]
    image = ImageWords(prompts.FIRST_CODE, emu3_vq.RELEASED.codes, row_end)
    language = loading.make_random_language(spec, image, precision)
    with torch.device("meta"):
        decoder = Emu3VQ()
    return loading.Parts(language, image, words, decoder, loading.RANDOM)


def _read_ratio(ratio: str) -> tuple[int, int]:
    width, colon, height = str(ratio).partition(":")
    if not (colon and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UserError(f"model.ratio={ratio}: give width and height, such as 16:9")
    return int(width), int(height)


def _load_decoder(
    source: loading.Source, path: Path, config: dict[str, Any]
) -> tuple[Emu3VQ, Path | None]:
    """Read the image tokenizer; also returns its file where it is another than the model's."""
    if "vq_config" in config:
        return emu3_vq.load_folder(path, config["vq_config"], _LIBRARY_PREFIX), None
    folder = source.find_tokenizer()
    tokenizer_config = checkpoints.read_config(folder)
    decoder = emu3_vq.load_folder(folder, tokenizer_config, None)
    return decoder, checkpoints.weight_files(folder)[0]
