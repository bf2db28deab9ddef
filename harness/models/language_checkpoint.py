"""Checkpoints of language models that draw images: dimensions, words by name, tensors.

All of them have Llama's names, with biases (Qwen2) or norms of heads (Chameleon) beside them. Files
are read one at a time, and only what is kept is converted: a float32 checkpoint of 34 GB never is
in memory at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.models import checkpoint as checkpoints
from harness.models.language_model import ImageWords, LanguageNet, LanguageSpec
from harness.models.trunk import TrunkSpec, to_adjacent_pairs
from harness.records import UserError

_PLAIN_NAMES = (
    (r"^trunk\.norm\.", "model.norm."),
    (r"^trunk\.layers\.", "model.layers."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
)
"""Our names to Llama's, of tensors that are kept as they are; applied one after the other."""

WORD_TABLE = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
_NOT_NEEDED = re.compile(r".*\.rotary_emb\.inv_freq$")
_OTHERS = re.compile(r"(model\.)?vqmodel\.")
"""Names of the image tokenizer, which some layouts store with the language model."""


@dataclass(frozen=True, slots=True)
class Family:
    """Language models of one class: its `model_type`s, what it assumes, and how its trunk differs.

    `defaults` are the values where a configuration is silent, those of transformers' classes.
    """

    name: str
    kinds: tuple[str, ...]
    defaults: Mapping[str, Any]
    bias: bool = False
    head_norm: Literal["none", "layer"] = "none"


_COMMON = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
QWEN2 = Family(
    "Qwen2",
    ("qwen2",),
    {
        **_COMMON,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    bias=True,
)
CHAMELEON = Family(
    "Chameleon",
    ("chameleon",),
    {
        **_COMMON,
        "intermediate_size": 11008,
        "num_key_value_heads": 32,
        "vocab_size": 65536,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    },
    head_norm="layer",
)
EMU3 = Family(
    "Emu3",
    ("Emu3", "emu3"),
    {
        **_COMMON,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "vocab_size": 184622,
        "max_position_embeddings": 9216,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
    },
)


# ------------------------------------------------------------------ dimensions


def read_spec(path: Path, config: Mapping[str, Any], family: Family) -> LanguageSpec:
    """Read the dimensions of the checkpoint at `path` out of its configuration.

    Raises UserError for another family's, and for a variant that the trunk does not compute.
    """
    kind = config.get("model_type")
    if kind not in family.kinds:
        raise UserError(
            f"{path}: config.json says model_type {kind!r}; {family.name} has "
            f"{' or '.join(family.kinds)}"
        )
    try:
        stated = {**family.defaults, **config.get("text_config", config)}
        _expect_plain(stated, path)
        heads = int(stated["num_attention_heads"])
        trunk = TrunkSpec(
            layers=int(stated["num_hidden_layers"]),
            dim=int(stated["hidden_size"]),
            heads=heads,
            hidden=int(stated["intermediate_size"]),
            norm_eps=float(stated["rms_norm_eps"]),
            groups=int(stated.get("num_key_value_heads") or heads),
            bias=family.bias,
            head_norm=family.head_norm,
        )
        return LanguageSpec(
            trunk=trunk,
            words=int(stated["vocab_size"]),
            rope_base=_rope_base(stated),
            positions=int(stated["max_position_embeddings"]),
        )
    except (TypeError, ValueError, AttributeError, KeyError, ZeroDivisionError) as error:
        raise UserError(
            f"{path}: config.json does not describe a language model ({error!r})"
        ) from None


def _rope_base(stated: Mapping[str, Any]) -> float:
    """Read the rotary base, which newer files keep among other parameters."""
    parameters = stated.get("rope_parameters") or {}
    return float(parameters.get("rope_theta", stated["rope_theta"]))


def _expect_plain(stated: Mapping[str, Any], path: Path) -> None:
    """Raise UserError for variants that the shared trunk does not compute."""
    heads = stated["num_attention_heads"]
    rope_type = (stated.get("rope_parameters") or {}).get("rope_type", "default")
    is_plain = {
        "head_dim": stated.get("head_dim") in (None, stated["hidden_size"] // heads),
        "hidden_act": stated.get("hidden_act", "silu") == "silu",
        "attention_bias": not stated.get("attention_bias", False),
        "mlp_bias": not stated.get("mlp_bias", False),
        "swin_norm": not stated.get("swin_norm", False),
        "use_sliding_window": not stated.get("use_sliding_window", False),
        "rope_scaling": stated.get("rope_scaling") is None,
        "rope_type": rope_type == "default",
    }
    for what, holds in is_plain.items():
        if not holds:
            raise UserError(
                f"{path}: config.json has a {what} that is not supported: this is another model"
            )


# ------------------------------------------------------------------ tensors


def load_net(
    path: Path,
    spec: LanguageSpec,
    image: ImageWords,
    *,
    prefix: str,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[LanguageNet, nn.Embedding]:
    """Read a checkpoint: the weights that forwards read, on the device, and the word table.

    `prefix` stands before the language model's names (`prefix_of`). A checkpoint without a head
    uses its word table as one. Raises UserError for tensors that are missing, of another shape, or
    not finite.
    """
    _expect_inside(spec, image, path)
    stored: dict[str, Tensor] = {}
    for name, tensor in _read_kept(path, prefix):
        if name == HEAD:
            _expect_rows(tensor, name, spec, path)
            tensor = tensor[image.first : image.first + image.codes].clone()
        stored[name] = tensor.to(dtype)

    # 1. The word table, and what is cut out of it.
    words = _pop(stored, WORD_TABLE, path)
    _expect_rows(words, WORD_TABLE, spec, path)
    codes = slice(image.first, image.first + image.codes)
    lines = [] if image.line is None else [words[image.line : image.line + 1]]
    state = {"image_words.weight": torch.cat((words[codes], *lines))}
    state["head.weight"] = stored.pop(HEAD) if HEAD in stored else words[codes].clone()

    # 2. The trunk, tensor after tensor.
    with torch.device("meta"):
        net = LanguageNet(spec, image)
        table = nn.Embedding(*words.shape)
    for name in net.state_dict():
        if name not in state:
            state[name] = _make_tensor(name, stored, spec.trunk, path)
    left = {name for name in stored if not _NOT_NEEDED.match(name)}
    checkpoints.report_unknown(left, path)

    # 3. Both filled, after all shapes were checked.
    placed = {name: tensor.to(device) for name, tensor in state.items()}
    checkpoints.fill(net, placed, path)
    checkpoints.fill(table, {"weight": words}, path)
    return net, table


def prefix_of(config: Mapping[str, Any]) -> str:
    """Return what stands before a language model's names: nothing, unless it is a part of more."""
    return "text_model." if "text_config" in config else ""


def _read_kept(path: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the language model's tensors, file after file, without the prefix of their names."""
    for file in checkpoints.weight_files(path):
        state = checkpoints.read_file(file)
        for name in sorted(state):
            if name.startswith(prefix) and not _OTHERS.match(name):
                yield name.removeprefix(prefix), state[name]


def _make_tensor(name: str, stored: dict[str, Tensor], trunk: TrunkSpec, path: Path) -> Tensor:
    """Take the tensors that make up one of ours out of those that were read, and join them."""
    layer, is_norm, _ = name.partition(".attention.head_norm.")
    kind = name.rpartition(".")[2]
    if is_norm:
        queries = _pop(stored, f"{_layer_of(layer)}.self_attn.q_norm.{kind}", path)
        keys = _pop(stored, f"{_layer_of(layer)}.self_attn.k_norm.{kind}", path)
        parts = (_spread(queries, trunk.heads), _spread(keys, trunk.kv_heads))
        return torch.cat(
            (
                to_adjacent_pairs(parts[0], trunk.heads),
                to_adjacent_pairs(parts[1], trunk.kv_heads),
            )
        )
    layer, is_fused, _ = name.partition(".attention.wqkv.")
    if is_fused:
        q, k, v = (
            _pop(stored, f"{_layer_of(layer)}.self_attn.{part}_proj.{kind}", path) for part in "qkv"
        )
        _expect_heads(q, trunk.heads, name, path)
        _expect_heads(k, trunk.kv_heads, name, path)
        return torch.cat(
            (to_adjacent_pairs(q, trunk.heads), to_adjacent_pairs(k, trunk.kv_heads), v)
        )
    for pattern, replacement in _PLAIN_NAMES:
        name = re.sub(pattern, replacement, name)
    return _pop(stored, name, path)


def _layer_of(name: str) -> str:
    """Translate the name of one of our layers."""
    return name.replace("trunk.layers.", "model.layers.")


def _spread(norm: Tensor, heads: int) -> Tensor:
    """Give each head its parameters of a norm, flattened; stored are those of all, or one for all.

    Upstream's Lumina-mGPT stores 1 x d, transformers' Chameleon heads x d.
    """
    return norm.expand(heads, -1).flatten()


def _pop(stored: dict[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in stored:
        raise UserError(
            f"{path} lacks tensor {name}: the download is not complete, or config.json is another "
            "model's"
        )
    return stored.pop(name)


def _expect_heads(rows: Tensor, heads: int, name: str, path: Path) -> None:
    """Raise UserError for rows that are no whole heads of rotary pairs."""
    if len(rows) % (2 * heads):
        raise UserError(
            f"{path}: {name} has {len(rows)} rows of queries or keys for {heads} heads: "
            "config.json is another model's"
        )


def _expect_rows(table: Tensor, name: str, spec: LanguageSpec, path: Path) -> None:
    """Raise UserError for a table that has not a row for each word."""
    if tuple(table.shape) != (spec.words, spec.trunk.dim):
        raise UserError(
            f"{path}: tensor {name} is {tuple(table.shape)}, "
            f"the model needs {(spec.words, spec.trunk.dim)}: this checkpoint is of another size"
        )


def _expect_inside(spec: LanguageSpec, image: ImageWords, path: Path) -> None:
    """Raise UserError for image tokens that are not in the vocabulary."""
    last = max(image.first + image.codes - 1, image.line or 0)
    if image.first < 0 or last >= spec.words:
        raise UserError(
            f"{path}: image tokens {image.first} to {last} are not among the model's "
            f"{spec.words} words"
        )
