"""Chameleon's image tokenizer, which Lumina-mGPT and Anole draw through, and its checkpoints.

It is `harness.models.vq` with code vectors as they are stored and attention in the middle only. Its
released file, `vqgan.ckpt`, is what a training program saved; the transformers library stores the
half that encodes under the same names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.models import checkpoint as checkpoints
from harness.models.stored_names import Layout, fill_from
from harness.models.vq import VQ, VQSpec
from harness.records import UserError

RELEASED = VQSpec(codes=8192, code_dim=256, unit_length=False, lowest_attention=False)
"""Dimensions of the released tokenizer: 16 times smaller sides, 8192 codes of 256 numbers."""

FILE = "vqgan.ckpt"

_TRAINING_CLASSES = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
"""Classes that the training program's own notes are of; they are read as empty ones."""


class _Ignored(dict[Any, Any]):
    """Stands for a class of the training program; nothing of it is used."""


def find_file(path: Path) -> Path:
    """Find the tokenizer's file: the path itself, or in the folder `path`, or in its `tokenizer`.

    Raises UserError if there is none.
    """
    for found in (path, path / FILE, path / "tokenizer" / FILE):
        if found.is_file():
            return found
    raise UserError(f"{path} has no {FILE}: set model.tokenizer_checkpoint to Chameleon's {FILE}")


def load(path: Path, *, encodes: bool = False) -> VQ:
    """Read the tokenizer in float32, with or without the half that encodes images.

    `path` is its file, or a folder that has it. Dimensions are those of its tensors. Raises
    UserError for a file that is damaged, holds code, or is of another tokenizer.
    """
    file = find_file(path)
    state = _read_state(file)
    spec = _read_spec(state, file)
    with torch.device("meta"):
        vq = VQ(spec, encodes=encodes)
    fill_from(vq, state, file, layout(len(spec.multipliers)))
    return vq.eval().requires_grad_(False)


def layout(levels: int) -> Layout:
    """Return where a tokenizer of so many levels is stored: level 0 has the highest resolution."""
    rules: list[tuple[str, str]] = []
    for level in range(levels):
        stored = levels - 1 - level
        rules.append((rf"^decoder\.conv_blocks\.{level}\.", f"decoder.up.{stored}."))
    rules += [
        (r"^encoder\.conv_blocks\.", "encoder.down."),
        (r"\.res\.", ".block."),
        (r"\.mid\.0\.", ".mid.block_1."),
        (r"\.mid\.1\.", ".mid.attn_1."),
        (r"\.mid\.2\.", ".mid.block_2."),
    ]
    return Layout(tuple(rules), not_needed=r"encoder\.|quant_conv\.|loss\.")


def _read_state(file: Path) -> Mapping[str, Tensor]:
    """Read the tensors by name out of what the training program saved."""
    if file.suffix == ".safetensors":
        return checkpoints.read_file(file)
    allowed = [(_Ignored, name) for name in _TRAINING_CLASSES]
    saved = checkpoints.unpickle(file, allowed)
    state = saved.get("state_dict", saved)
    is_state = isinstance(state, dict) and all(isinstance(t, Tensor) for t in state.values())
    if not is_state:
        raise UserError(f"{file} has no tensors by name, neither on top nor under state_dict")
    return state


def _read_spec(state: Mapping[str, Tensor], file: Path) -> VQSpec:
    """Read the dimensions off the shapes of the decoder's tensors.

    `vqgan.yaml`, which lies beside the released file, says the same.
    """

    def shape_of(name: str) -> tuple[int, ...]:
        if name not in state or state[name].ndim < 2:
            raise UserError(f"{file} has no {name} of Chameleon's: it is no {FILE}")
        return tuple(state[name].shape)

    attended = [name for name in state if re.match(r"decoder\.up\.\d+\.attn\.", name)]
    if attended:
        raise UserError(
            f"{file} has {attended[0]}: Chameleon attends in the middle of its decoder only, so "
            "this is another tokenizer"
        )
    levels = _count(state, "decoder.up.{}.block.0.conv1.weight")
    blocks = _count(state, "decoder.up.0.block.{}.conv1.weight") - 1
    codes, code_dim = shape_of("quantize.embedding.weight")[:2]
    latent = shape_of("post_quant_conv.weight")[0]
    outputs = [
        shape_of(f"decoder.up.{level}.block.0.conv1.weight")[0] for level in range(max(levels, 1))
    ]
    width = max(outputs[0], 1)  # the first multiplier is 1
    multipliers = tuple(output // width for output in outputs)
    try:
        return VQSpec(
            codes,
            code_dim,
            width,
            multipliers,
            blocks,
            latent,
            unit_length=False,
            lowest_attention=False,
        )
    except ValueError as error:
        raise UserError(f"{file} is no {FILE} of Chameleon's: {error}") from None


def _count(state: Mapping[str, Tensor], name: str) -> int:
    """Count how many of the names with 0, 1, ... in the place of {} there are."""
    count = 0
    while name.format(count) in state:
        count += 1
    return count
