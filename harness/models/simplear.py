"""SimpleAR (arXiv 2504.11455): a Qwen2.5 that draws Cosmos tokens, without line ends.

Upstream does not forbid words while it draws: it clamps what is none of the codes. Here only codes
are drawn, by their probabilities given that a code is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.models import checkpoint as checkpoints
from harness.models import cosmos
from harness.models import language_loading as loading
from harness.models import simplear_prompt as prompts
from harness.models.cosmos import Cosmos, CosmosSpec
from harness.models.language_checkpoint import QWEN2
from harness.models.language_model import ImageWords, LanguageModel, LanguageSpec
from harness.models.trunk import TrunkSpec
from harness.models.vq import round_to_uint8
from harness.records import Count, UserError

_WORDS = 215_672

SIZES = {
    "0.5B": LanguageSpec(
        TrunkSpec(24, 896, 14, 4864, norm_eps=1e-6, groups=2, bias=True), _WORDS, 1e6, 32768
    ),
    "1.5B": LanguageSpec(
        TrunkSpec(28, 1536, 12, 8960, norm_eps=1e-6, groups=2, bias=True), _WORDS, 1e6, 32768
    ),
}


def load(
    name: str,
    size: str | None = None,
    image: Count = 1024,
    *,
    weights: str = "published",
    hub: str | None = None,
    revision: str | None = None,
    files: Sequence[str] = ("*.json", "*.txt", "*.safetensors"),
    checkpoint: str | None = None,
    tokenizer_hub: str | None = None,
    tokenizer_files: Sequence[str] = ("decoder.jit",),
    tokenizer_checkpoint: str | None = None,
    tokenizer: CosmosSpec = cosmos.RELEASED,
    prefix: str = prompts.PREFIX,
    negative: str = prompts.NEGATIVE,
    max_context: Count = 192,
    dtype: str = "bfloat16",
    render_dtype: str = "float32",
    device: str | torch.device = "cpu",
) -> LanguageModel:
    """Load a SimpleAR of `image` pixels a side, with published or random weights of full size.

    `size` (a row of `SIZES`) is what the checkpoint must be; None takes any. `prefix` stands before
    every prompt, `negative` is the text of the null prompt. Raises UserError, with the remedy, for
    weights that are missing, damaged or of another model.
    """
    precision = loading.Precision.of(device, dtype, render_dtype)
    expected = loading.read_size(size, SIZES)
    if image < tokenizer.downsampling or image % tokenizer.downsampling:
        raise UserError(f"model.image={image}: must be a multiple of {tokenizer.downsampling}")
    side = image // tokenizer.downsampling

    if loading.choose_weights(weights):
        source = loading.Source(
            *(hub, revision, files, checkpoint),
            *(tokenizer_hub, tokenizer_files, tokenizer_checkpoint),
        )
        parts = _load_parts(source, expected, tokenizer, precision)
    else:
        parts = _make_random_parts(expected, tokenizer, precision)
    return loading.assemble(
        parts,
        prompts.SimpleARPrompts(parts.words, prefix, negative),
        round_to_uint8,
        precision,
        grid=(side, side),
        name=name,
        max_context=max_context,
    )


def _load_parts(
    source: loading.Source,
    expected: LanguageSpec | None,
    tokenizer: CosmosSpec,
    precision: loading.Precision,
) -> loading.Parts:
    path = source.find_model()
    config = checkpoints.read_config(path)
    spec = loading.read_expected_spec(path, config, QWEN2, expected)
    found = prompts.read_words(path, spec.words, tokenizer.codes)
    words = loading.expect_words(found, path)
    image = _image_words(spec, tokenizer)
    decoder_file = cosmos.find_file(source.find_tokenizer())
    decoder = cosmos.load(decoder_file, tokenizer)
    language = loading.load_language(path, config, spec, image, precision)
    revision = loading.name_revision(path, decoder_file)
    return loading.Parts(language, image, words, decoder, revision)


def _make_random_parts(
    expected: LanguageSpec | None, tokenizer: CosmosSpec, precision: loading.Precision
) -> loading.Parts:
    spec = loading.expect_size(expected, SIZES)
    image = _image_words(spec, tokenizer)
    words = prompts.hashed_words(spec.words, tokenizer.codes)
    language = loading.make_random_language(spec, image, precision)
    with torch.device("meta"):
        decoder = Cosmos(tokenizer)
    return loading.Parts(language, image, words, decoder, loading.RANDOM)


def _image_words(spec: LanguageSpec, tokenizer: CosmosSpec) -> ImageWords:
    """Say where the codes are: at the end of the vocabulary."""
    return ImageWords(spec.words - tokenizer.codes, tokenizer.codes)
