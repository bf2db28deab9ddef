"""Janus-Pro's two checkpoint layouts: sizes from config.json and shapes, and where each of our
tensors is stored.

The original layout (deepseek-ai) and the transformers port's (deepseek-community) hold the same
tensors under other names. Our tensors are looked up by one table per layout; what is left over is
the understanding tower, the language head and the tokenizer's training counter, which are not
needed, or unknown, which is reported.
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
    """Dimensions of a Janus-Pro: trunk, text vocabulary, grid side, tokenizer, rotary base and
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
            f"{trunk.layers} layers of width {trunk.dim} with {trunk.heads} heads, {self.words} words and "
            f"{self.side} x {self.side} of {self.vq.codes} codes"
        )


SIZES = {
    "1B": JanusSpec(TrunkSpec(24, 2048, 16, 5632, norm_eps=1e-6)),
    "7B": JanusSpec(TrunkSpec(30, 4096, 32, 11008, norm_eps=1e-6)),
}

_LLAMA = {
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

_ORIGINAL = (
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

_LIBRARY = (
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
    r"(model\.)?(vision_model|aligner)\.|(language_model\.)?lm_head\.|.*\.rotary_emb\.inv_freq$|.*\.codebook_used$"
)


def read_spec(path: Path, weights: Mapping[str, Tensor]) -> JanusSpec:
    """Dimensions of a checkpoint. The original configuration says nothing of the tokenizer: its
    shapes do.
    """
    config = read_config(path)
    library = _is_library(config, path)
    llama = {**_LLAMA, **config.get("text_config" if library else "language_config", {})}
    try:
        _expect_plain(llama, config, path)
        vq = _vq_spec(weights, library, path)
        vision = config.get("vision_config", {})
        if library:
            side = math.isqrt(int(vision.get("num_image_tokens", 576)))
            rope_base = (llama.get("rope_parameters") or {}).get("rope_theta", llama["rope_theta"])
        else:
            side = int(vision.get("params", {}).get("image_size", 384)) // vq.downsampling
            rope_base = llama["rope_theta"]
        trunk = TrunkSpec(
            int(llama["num_hidden_layers"]),
            int(llama["hidden_size"]),
            int(llama["num_attention_heads"]),
            int(llama["intermediate_size"]),
            norm_eps=float(llama["rms_norm_eps"]),
        )
        return JanusSpec(
            trunk,
            int(llama["vocab_size"]),
            side,
            vq,
            float(rope_base),
            int(llama["max_position_embeddings"]),
        )
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: config.json is not a Janus configuration ({error!r})") from None


def _is_library(config: Mapping[str, Any], path: Path) -> bool:
    kind = config.get("model_type")
    if kind not in ("janus", "multi_modality"):
        raise UserError(
            f"{path}: config.json says model_type {kind!r}; Janus-Pro has janus or multi_modality"
        )
    return kind == "janus"


def _expect_plain(llama: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    """Refuse variants that the shared trunk, aligner and head do not compute."""
    heads = llama["num_attention_heads"]
    depth = config.get("gen_aligner_config", {}).get("params", {}).get("depth", 2)
    for what, is_plain in (
        ("num_key_value_heads", llama.get("num_key_value_heads") in (None, heads)),
        ("head_dim", llama.get("head_dim") in (None, llama["hidden_size"] // heads)),
        ("hidden_act", llama.get("hidden_act", "silu") == "silu"),
        ("attention_bias", not llama.get("attention_bias", False)),
        ("mlp_bias", not llama.get("mlp_bias", False)),
        ("rope_scaling", llama.get("rope_scaling") is None),
        (
            "rope_type",
            (llama.get("rope_parameters") or {}).get("rope_type", "default") == "default",
        ),
        (
            "generation aligner's depth",
            depth == config.get("vq_config", {}).get("num_hidden_layers", 2) == 2,
        ),
    ):
        if not is_plain:
            raise UserError(
                f"{path}: config.json has a {what} that no Janus-Pro has: this is another model"
            )


def _vq_spec(weights: Mapping[str, Tensor], library: bool, path: Path) -> VQSpec:
    def shape(name: str) -> tuple[int, ...]:
        stored = _stored(f"vq.{name}", library)[0]
        if stored not in weights:
            raise UserError(f"{path} lacks tensor {stored}: it is no complete Janus checkpoint")
        return tuple(weights[stored].shape)

    def has(name: str) -> bool:
        return _stored(f"vq.{name}", library)[0] in weights

    level = blocks = 1
    while has(f"encoder.conv_blocks.{level}.res.0.conv1.weight"):
        level += 1
    while has(f"encoder.conv_blocks.0.res.{blocks}.conv1.weight"):
        blocks += 1
    width = shape("encoder.conv_in.weight")[0]
    multipliers = tuple(
        shape(f"encoder.conv_blocks.{i}.res.0.conv1.weight")[0] // width for i in range(level)
    )
    codes, code_dim = shape("quantize.embedding.weight")
    return VQSpec(codes, code_dim, width, multipliers, blocks, shape("encoder.conv_out.weight")[0])


def read_state(
    path: Path, weights: Mapping[str, Tensor], module: nn.Module, heads: int
) -> dict[str, Tensor]:
    """The tensors of `module` by its own names. Missing ones are an error that names them as the
    checkpoint would.
    """
    library = _is_library(read_config(path), path)
    stored = {name: _stored(name, library) for name in module.state_dict()}
    used = {source for sources in stored.values() for source in sources}
    missing = sorted(used - weights.keys())
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} tensors, the first is {missing[0]}: the download is not complete, "
            "or config.json is another model's"
        )
    report_unknown({name for name in weights.keys() - used if not _NOT_NEEDED.match(name)}, path)
    state = {}
    for name, sources in stored.items():
        if len(sources) == 1:
            state[name] = weights[sources[0]]
        else:
            q, k, v = (weights[source] for source in sources)
            state[name] = torch.cat((to_adjacent_pairs(q, heads), to_adjacent_pairs(k, heads), v))
    return state


def _stored(name: str, library: bool) -> tuple[str, ...]:
    """Where one of our tensors is stored: under one name, or queries, keys and values under
    three.
    """
    fused = ".attention.wqkv."
    if fused in name:
        return tuple(
            _stored(name.replace(fused, f".self_attn.{part}_proj."), library)[0] for part in "qkv"
        )
    for pattern, replacement in _ORIGINAL + (_LIBRARY if library else ()):
        name = re.sub(pattern, replacement, name)
    return (name,)
