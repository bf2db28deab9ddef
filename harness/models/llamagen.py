"""LlamaGen text-to-image (arXiv 2406.06525), and models of its kind such as AR-GRPO.

AR-GRPO is the same network with other weights, and prompts padded on the other side.

The prompt's positions have a rotary table of zeros, cosine and sine, so their queries and keys are
exactly zero: attention inside the prompt is a running mean of values, and a later position gives
each of them the score 0. The prompt therefore acts as one cache entry with a zero key, the mean of
its values and a score of log(how many). With `collapse` all prompt positions but the last are
computed at once into that entry (`prefix`), and the last one is fed. Padding is dropped altogether,
which changes nothing, since where a prompt sits does not matter.

Shapes: B rows, W positions, T condition positions (120), v of them seen, P context positions of a
branch, C feature width, N image tokens, V codes, D width, H heads, d head width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from harness.models import checkpoint as checkpoints
from harness.models.captioned import CaptionedModel
from harness.models.captions import Captions, WordFeatures
from harness.models.kv_cache import KVCache, Prefix
from harness.models.llamagen_checkpoint import WeightSource, fill_model
from harness.models.llamagen_network import GPT, SIZES, GPTSpec, rotary_table
from harness.models.trunk import Attend, TrunkSpec
from harness.models.vq import VQ, VQSpec, to_uint8
from harness.records import Count, UserError

log = logging.getLogger(__name__)

Padding = Literal["left", "right"]
"""Side of the prompt on which its padding was in training: left for LlamaGen, right for AR-GRPO."""


class LlamaGen(CaptionedModel):
    """LlamaGen as the engine draws it (`harness.models.ImageModel`).

    Without `collapse` every seen prompt position is fed and cached: the reference that the
    collapsed form is held to.
    """

    def __init__(
        self,
        gpt: GPT,
        vq: VQ,
        captions: Captions,
        *,
        name: str = "llamagen",
        revision: str = "random",
        padding: Padding = "left",
        collapse: bool = True,
        dtype: torch.dtype = torch.float32,
        render_dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        if padding not in ("left", "right"):
            raise UserError(f"model.padding={padding}: choose left (LlamaGen) or right (AR-GRPO)")
        super().__init__(
            gpt,
            vq,
            captions,
            rotary_table(gpt.spec),
            name=name,
            revision=revision,
            dtype=dtype,
            render_dtype=render_dtype,
            device=device,
        )
        self.padding = padding
        self.collapse = collapse
        self.max_context = 2 if collapse else gpt.spec.condition
        self._prompt = lru_cache(maxsize=256)(self._embed_prompt)

    # ------------------------------------------------------------------ prompts

    def context(self, text: str | None, like: str) -> Tensor:
        """Embed a prompt, [P, D].

        Collapsed, P is 2: the entry of `prefix` and the prompt's last position. The row of the
        former is never fed, so it may be anything.
        """
        prompt_PD, _ = self._prompt(text, like)
        return prompt_PD[-1:].expand(2, -1) if self.collapse else prompt_PD

    @torch.no_grad()
    def prefix(self, text: str | None, like: str) -> Prefix:
        """Compute the prompt's positions before the last as one cache entry.

        Without `collapse` there is no entry, only the bias that hides a padding position. Exact but
        for rounding: a bfloat16 cache rounds the bias by up to 0.016, within what it does to
        everything else.
        """
        prompt_PD, is_padded = self._prompt(text, like)
        count = len(prompt_PD) - 1
        last_bias = -math.inf if is_padded else 0.0  # nothing but itself sees a padding position

        if not self.collapse:
            nothing = self._zero_entries(0)
            return Prefix(nothing, nothing, self._tensor([0.0] * count + [last_bias]), 0)

        mean = self._zero_entries(1)
        if count:
            no_rotation_1P = self._rotary[:1].expand(count, -1, -1).unsqueeze(0)
            self.gpt.trunk(prompt_PD[None, :-1], no_rotation_1P, _attend_by_running_mean(mean))
        entry_bias = math.log(count) if count else -math.inf
        bias_P = self._tensor([entry_bias, last_bias])
        return Prefix(torch.zeros_like(mean), mean, bias_P, count)

    def _zero_entries(self, count: int) -> Tensor:
        """Keys or values of so many cache entries, [layers, H, count, d]."""
        spec = self.gpt.spec.trunk
        shape = (spec.layers, spec.kv_heads, count, spec.head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _tensor(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    @torch.no_grad()
    def _embed_prompt(self, text: str | None, like: str) -> tuple[Tensor, bool]:
        """Embeddings [P, D] that the first image token follows, and whether the last is padding.

        The null prompt is the learned array at the positions that the real prompt would have.
        """
        features = self.captions(like if text is None else text)
        row_vC = features.row_vC
        last_C = features.last_C
        spec = self.gpt.spec
        count = len(row_vC)
        if not (1 <= count <= spec.condition and row_vC.shape[1] == spec.caption_dim):
            raise UserError(
                f"caption features are {tuple(row_vC.shape)}, "
                f"the model takes 1 to {spec.condition} rows of {spec.caption_dim}: "
                "use the text encoder that it was trained with"
            )
        if text is None:
            learned_TC = self.gpt.cls_embedding.uncond_embedding
            row_vC = learned_TC[-count:] if self.padding == "left" else learned_TC[:count]
            last_C = learned_TC[-1]

        is_padded = self.padding == "right" and count < spec.condition
        row_PC = torch.cat((row_vC, last_C.unsqueeze(0))) if is_padded else row_vC
        return self.gpt.cls_embedding.cap_proj(row_PC.to(self.device, self.dtype)), is_padded

    # ------------------------------------------------------------------ image tokens

    def rotary(self, pos_BW: Tensor, start_B: Tensor) -> Tensor:
        row_BW = pos_BW - start_B.unsqueeze(1) + 1
        return self._rotary[row_BW.clamp(min=0)]  # all prompt positions share the first row

    def cache(self, slots: int, tree_capacity: int = 0) -> KVCache:
        length = self.max_context + self.num_tokens + tree_capacity
        return KVCache(self.gpt.spec.trunk, slots, length, self.dtype, self.device, biased=True)

    # ------------------------------------------------------------------ pixels

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Encode images in [-1, 1] as codes [B, N]."""
        return self.vq.encode(pixels_B3HW.to(self.device, torch.float32))

    def decode(self, token_BN: Tensor) -> Tensor:
        return to_uint8(self.vq.decode(token_BN, self.grid))


def _attend_by_running_mean(last_mean: Tensor) -> Attend:
    """Attention where all queries and keys are zero: each position gets the mean of values so far.

    The mean at the last position of each layer is left in `last_mean` [layers, H, 1, d].
    """

    def attend(layer: int, _q: Tensor, _k: Tensor, v_BHWd: Tensor) -> Tensor:
        count_W1 = torch.arange(1, v_BHWd.shape[2] + 1, device=v_BHWd.device).unsqueeze(-1)
        wide_BHWd = v_BHWd.to(torch.promote_types(v_BHWd.dtype, torch.float32))
        mean_BHWd = wide_BHWd.cumsum(2) / count_W1
        last_mean[layer] = mean_BHWd[0, :, -1:]
        return mean_BHWd.to(v_BHWd.dtype)

    return attend


# ------------------------------------------------------------------ from a configuration


def load(
    name: str,
    size: str | Mapping[str, Count],
    image: Count,
    captions: Captions,
    *,
    weights: str = "published",
    hub: str | None = None,
    revision: str | None = None,
    file: str | None = None,
    checkpoint: str | None = None,
    tokenizer: Mapping[str, Count | Sequence[Count]] | None = None,
    tokenizer_hub: str | None = None,
    tokenizer_file: str = "vq_ds16_t2i.pt",
    tokenizer_checkpoint: str | None = None,
    padding: Padding = "left",
    collapse: bool = True,
    dtype: str = "bfloat16",
    render_dtype: str = "float32",
    device: str | torch.device = "cpu",
) -> LlamaGen:
    """Load a model of `image` pixels a side, with published or random weights of full size.

    `size` is a row of `SIZES`, or gives dimensions (`layers`, `dim`, `heads`, `hidden`, and
    GPTSpec's) of another model; `tokenizer` gives those of VQSpec in which the tokenizer differs
    from `vq_ds16_t2i`. `checkpoint` is the GPT's file, or the folder that has it, instead of the
    repository `hub`. Raises UserError, with the remedy, for weights that are missing, damaged or of
    another model.
    """
    # 1. Dimensions and types.
    vq_spec = choose_vq_spec(tokenizer or {})
    if image % vq_spec.downsampling:
        raise UserError(f"model.image={image}: must be a multiple of {vq_spec.downsampling}")
    gpt_spec = choose_gpt_spec(size, image // vq_spec.downsampling, vq_spec.codes)
    gpt_dtype = checkpoints.dtype_named(dtype)
    pixel_dtype = checkpoints.dtype_named(render_dtype, "render_dtype")

    # 2. Modules without memory, then their weights.
    with torch.device("meta"):
        gpt = GPT(gpt_spec)
        vq = VQ(vq_spec)
    if weights == "random":
        captions = WordFeatures(gpt_spec.caption_dim, gpt_spec.condition)
        checkpoints.randomise(gpt.to(gpt_dtype), device)
        checkpoints.randomise(vq, device)
        found_revision = "random"
    elif weights == "published":
        source = WeightSource(
            hub=hub,
            revision=revision,
            file=file,
            checkpoint=checkpoint,
            tokenizer_hub=tokenizer_hub,
            tokenizer_file=tokenizer_file,
            tokenizer_checkpoint=tokenizer_checkpoint,
        )
        found_revision = fill_model(gpt, vq, image, source)
    else:
        raise UserError(f"model.weights={weights}: choose published or random")

    # 3. The model.
    log.info("%s: prompts padded on the %s", name, padding)
    return LlamaGen(
        gpt,
        vq,
        captions,
        name=name,
        revision=found_revision,
        padding=padding,
        collapse=collapse,
        dtype=gpt_dtype,
        render_dtype=pixel_dtype,
        device=device,
    )


def choose_gpt_spec(size: str | Mapping[str, Count], side: int, codes: int) -> GPTSpec:
    """Return a row of `SIZES`, or given dimensions. Raises UserError for unknown ones."""
    if isinstance(size, str):
        if size not in SIZES:
            raise UserError(f"model.size={size}: choose from {', '.join(SIZES)}")
        return GPTSpec(SIZES[size], side, codes)

    trunk_sizes: dict[str, Any] = dict(size)
    other_sizes = {}
    for key in ("condition", "caption_dim"):
        if key in trunk_sizes:
            other_sizes[key] = trunk_sizes.pop(key)
    try:
        return GPTSpec(TrunkSpec(**trunk_sizes), side, codes, **other_sizes)
    except TypeError as error:
        raise UserError(
            f"model.size={dict(size)}: {error}; give layers, dim, heads and hidden"
        ) from None


def choose_vq_spec(sizes: Mapping[str, int | Sequence[int]]) -> VQSpec:
    """Return the published tokenizer's dimensions, some replaced. Raises UserError for others."""
    given: dict[str, Any] = {}
    for key, value in sizes.items():
        given[key] = tuple(value) if isinstance(value, Sequence) else value
    try:
        return replace(VQSpec(), **given)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.tokenizer={dict(sizes)}: {error}") from None
