"""Janus-Pro's two checkpoint layouts: dimensions, and where each of our tensors is stored.

The original layout (deepseek-ai) and the transformers port's (deepseek-community) hold the same
tensors under other names. One table per layout translates our names. Tensors that no name asks for
are either known and not needed (the understanding tower, the language head, the tokenizer's
training counter) or unknown, which is reported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.models.checkpoint import read_config, report_unknown
from harness.models.trunk import TrunkSpec, to_adjacent_pairs
from harness.models.vq import VQSpec
from harness.records import UserError


@dataclass(frozen=True, slots=True)
class JanusSpec:
    """Dimensions of a Janus-Pro.

    Trunk, number of word embeddings, side of the image grid in tokens, tokenizer, rotary base and
    position limit.
    """

    trunk: TrunkSpec
    words: int = 102400
    side: int = 24
    vq: VQSpec = field(default_factory=VQSpec)
    rope_base: float = 10000.0
    positions: int = 16384

    @property
    def summary(self) -> str:
        trunk = self.trunk
        return (
            f"{trunk.layers} layers of width {trunk.dim} with {trunk.heads} heads, "
            f"{self.words} words and {self.side} x {self.side} of {self.vq.codes} codes"
        )


SIZES = {
    "1B": JanusSpec(TrunkSpec(24, 2048, 16, 5632, norm_eps=1e-6)),
    "7B": JanusSpec(TrunkSpec(30, 4096, 32, 11008, norm_eps=1e-6)),
}

_LLAMA_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
"""The library's LlamaConfig defaults: both layouts leave out what equals them."""

_ORIGINAL_NAMES = (
    (r"^words\.", "language_model.model.embed_tokens."),
    (r"^trunk\.norm\.", "language_model.model.norm."),
    (r"^trunk\.layers\.", "language_model.model.layers."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"^gen_aligner\.", "gen_aligner.layers."),
    (r"^gen_head\.0\.", "gen_head.output_mlp_projector."),
    (r"^gen_head\.2\.", "gen_head.vision_head."),
    (r"^vq\.", "gen_vision_model."),
)
"""Our names to the original layout's, applied one after the other."""

_LIBRARY_NAMES = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^gen_embed\.", "model.generation_embeddings."),
    (r"^gen_aligner\.layers\.0\.", "model.generation_aligner.fc1."),
    (r"^gen_aligner\.layers\.2\.", "model.generation_aligner.hidden_layers.0."),
    (r"^gen_head\.output_mlp_projector\.", "model.generation_head.proj_out."),
    (r"^gen_head\.", "model.generation_head."),
    (r"^gen_vision_model\.", "model.vqmodel."),
    (r"\.conv_blocks\.(\d+)\.res\.", r".conv_blocks.\1.block."),
    (r"\.encoder\.conv_blocks\.", ".encoder.down."),
    (r"\.decoder\.conv_blocks\.", ".decoder.up."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
)
"""The original layout's names to the library's, applied one after the other."""

_NOT_NEEDED = re.compile(
    r"(model\.)?(vision_model|aligner)\."
    r"|(language_model\.)?lm_head\."
    r"|.*\.rotary_emb\.inv_freq$"
    r"|.*\.codebook_used$"
)


# ------------------------------------------------------------------ dimensions


def read_spec(path: Path, weights: Mapping[str, Tensor]) -> JanusSpec:
    """Read the dimensions of a checkpoint from config.json and from its tensors' shapes.

    The original configuration does not describe the tokenizer, whose dimensions are its shapes.
    Raises UserError for a configuration of another model.
    """
    config = read_config(path)
    is_library = _is_library(config, path)
    try:
        stated = config.get("text_config" if is_library else "language_config", {})
        llama = {**_LLAMA_DEFAULTS, **stated}
        _expect_plain(llama, config, path)
        vq = _vq_spec(weights, is_library, path)
        return JanusSpec(
            trunk=_trunk_spec(llama),
            words=int(llama["vocab_size"]),
            side=_grid_side(config, vq, is_library),
            vq=vq,
            rope_base=_rope_base(llama, is_library),
            positions=int(llama["max_position_embeddings"]),
        )
    except (TypeError, ValueError, AttributeError, KeyError, ZeroDivisionError) as error:
        raise UserError(f"{path}: config.json is not a Janus configuration ({error!r})") from None


def _is_library(config: Mapping[str, Any], path: Path) -> bool:
    """True for the library's layout, false for the original one."""
    kind = config.get("model_type")
    if kind not in ("janus", "multi_modality"):
        raise UserError(
            f"{path}: config.json says model_type {kind!r}; Janus-Pro has janus or multi_modality"
        )
    return kind == "janus"


def _expect_plain(llama: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    """Refuse variants that the shared trunk, aligner and head do not compute."""
    heads = llama["num_attention_heads"]
    rope_type = (llama.get("rope_parameters") or {}).get("rope_type", "default")
    original_depth = config.get("gen_aligner_config", {}).get("params", {}).get("depth", 2)
    library_depth = config.get("vq_config", {}).get("num_hidden_layers", 2)
    is_plain = {
        "num_key_value_heads": llama.get("num_key_value_heads") in (None, heads),
        "head_dim": llama.get("head_dim") in (None, llama["hidden_size"] // heads),
        "hidden_act": llama.get("hidden_act", "silu") == "silu",
        "attention_bias": not llama.get("attention_bias", False),
        "mlp_bias": not llama.get("mlp_bias", False),
        "rope_scaling": llama.get("rope_scaling") is None,
        "rope_type": rope_type == "default",
        "generation aligner's depth": original_depth == library_depth == 2,
    }
    for what, holds in is_plain.items():
        if not holds:
            raise UserError(
                f"{path}: config.json has a {what} that no Janus-Pro has: this is another model"
            )


def _trunk_spec(llama: Mapping[str, Any]) -> TrunkSpec:
    return TrunkSpec(
        layers=int(llama["num_hidden_layers"]),
        dim=int(llama["hidden_size"]),
        heads=int(llama["num_attention_heads"]),
        hidden=int(llama["intermediate_size"]),
        norm_eps=float(llama["rms_norm_eps"]),
    )


def _grid_side(config: Mapping[str, Any], vq: VQSpec, is_library: bool) -> int:
    """The side of the image grid in tokens."""
    vision = config.get("vision_config", {})
    if is_library:
        return math.isqrt(int(vision.get("num_image_tokens", 576)))
    return int(vision.get("params", {}).get("image_size", 384)) // vq.downsampling


def _rope_base(llama: Mapping[str, Any], is_library: bool) -> float:
    base = llama["rope_theta"]
    if is_library:
        base = (llama.get("rope_parameters") or {}).get("rope_theta", base)
    return float(base)


def _vq_spec(weights: Mapping[str, Tensor], is_library: bool, path: Path) -> VQSpec:
    """The tokenizer's dimensions, by the shapes of its tensors."""

    def stored_name(name: str) -> str:
        return _stored_names(f"vq.{name}", is_library)[0]

    def shape_of(name: str) -> tuple[int, ...]:
        stored = stored_name(name)
        if stored not in weights:
            raise UserError(f"{path} lacks tensor {stored}: it is no complete Janus checkpoint")
        return tuple(weights[stored].shape)

    levels = 1
    while stored_name(f"encoder.conv_blocks.{levels}.res.0.conv1.weight") in weights:
        levels += 1
    blocks = 1
    while stored_name(f"encoder.conv_blocks.0.res.{blocks}.conv1.weight") in weights:
        blocks += 1

    width = shape_of("encoder.conv_in.weight")[0]
    multipliers = tuple(
        shape_of(f"encoder.conv_blocks.{level}.res.0.conv1.weight")[0] // max(width, 1)
        for level in range(levels)
    )
    codes, code_dim = shape_of("quantize.embedding.weight")
    latent = shape_of("encoder.conv_out.weight")[0]
    return VQSpec(codes, code_dim, width, multipliers, blocks, latent)


# ------------------------------------------------------------------ tensors


def read_state(
    path: Path, weights: Mapping[str, Tensor], module: nn.Module, heads: int
) -> dict[str, Tensor]:
    """Pick the tensors of `module` out of a checkpoint, by the module's names.

    Queries, keys and values are joined, and their rows put in the order that the trunk rotates in.
    Raises UserError for missing tensors, naming them as the checkpoint would.
    """
    is_library = _is_library(read_config(path), path)
    sources_of = {name: _stored_names(name, is_library) for name in module.state_dict()}
    used = {source for sources in sources_of.values() for source in sources}

    missing = sorted(used - weights.keys())
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} tensors, the first is {missing[0]}: "
            "the download is not complete, or config.json is another model's"
        )
    unused = weights.keys() - used
    report_unknown({name for name in unused if not _NOT_NEEDED.match(name)}, path)

    state = {}
    for name, sources in sources_of.items():
        if len(sources) == 1:
            state[name] = weights[sources[0]]
            continue
        q, k, v = (weights[source] for source in sources)
        state[name] = torch.cat((to_adjacent_pairs(q, heads), to_adjacent_pairs(k, heads), v))
    return state


def _stored_names(name: str, is_library: bool) -> tuple[str, ...]:
    """Where one of our tensors is stored: under one name, or queries, keys and values apart."""
    fused = ".attention.wqkv."
    if fused in name:
        apart = [name.replace(fused, f".self_attn.{part}_proj.") for part in "qkv"]
        return tuple(_stored_names(one, is_library)[0] for one in apart)

    rules = _ORIGINAL_NAMES + (_LIBRARY_NAMES if is_library else ())
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return (name,)
