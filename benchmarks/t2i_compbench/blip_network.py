"""Run BLIP's VQA network through transformers, from the checkpoint of its authors.

Reference: BLIPvqa_eval of github.com/Karine-Huang/T2I-CompBench, which carries BLIP. The library's
own conversion resizes the position table to 384 pixels, its generate() attends to padded positions
of a question, and its processor keeps the first token as it is; so the three parts are called here.

Shapes: B pictures, Q questions, W words of a question, D model width.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.records import UserError, one_line

if TYPE_CHECKING:
    from torch import Tensor

ANSWER_START = 30522
"""The token that an answer begins with."""
QUESTION_START = 30523
"""The token that a question begins with, in place of the tokenizer's first one."""
YES = 2748
NO = 2053
MAX_TOKENS = 35
"""Tokens of a question."""
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
VISION_EPSILON = 1e-6
"""Of the vision encoder's layer norms; the library's default is another one."""
_PATCHES = {
    "visual_encoder.cls_token": "vision_model.embeddings.class_embedding",
    "visual_encoder.pos_embed": "vision_model.embeddings.position_embedding",
    "visual_encoder.patch_embed.proj.": "vision_model.embeddings.patch_embedding.",
    "visual_encoder.norm.": "vision_model.post_layernorm.",
}
_IN_BLOCK = {
    "attn.qkv.": "self_attn.qkv.",
    "attn.proj.": "self_attn.projection.",
    "norm1.": "layer_norm1.",
    "norm2.": "layer_norm2.",
}
_BLOCK = re.compile(r"visual_encoder\.blocks\.(\d+)\.(.*)")


@dataclass(frozen=True, slots=True)
class BlipSpec:
    """Sizes of a network; the defaults are those of the reference's."""

    image_size: int = 480
    patch_size: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vocabulary: int = 30524
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_inner: int = 3072
    text_positions: int = 512
    text_epsilon: float = 1e-12


def build_network(spec: BlipSpec) -> Any:
    """Build a network with random weights: the library's, with three parts."""
    from transformers import BlipConfig, BlipForQuestionAnswering, BlipTextConfig, BlipVisionConfig

    vision = BlipVisionConfig(
        hidden_size=spec.vision_width,
        intermediate_size=4 * spec.vision_width,
        num_hidden_layers=spec.vision_layers,
        num_attention_heads=spec.vision_heads,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        layer_norm_eps=VISION_EPSILON,
        hidden_act="gelu",
    )
    text = BlipTextConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.text_width,
        encoder_hidden_size=spec.vision_width,
        intermediate_size=spec.text_inner,
        num_hidden_layers=spec.text_layers,
        num_attention_heads=spec.text_heads,
        max_position_embeddings=spec.text_positions,
        layer_norm_eps=spec.text_epsilon,
        hidden_act="gelu",
    )
    config = BlipConfig(vision_config=vision.to_dict(), text_config=text.to_dict())
    return BlipForQuestionAnswering(config).eval()


def load_checkpoint(network: Any, path: Path) -> None:
    """Fill a network from a file as it was released. Raises UserError for any other file."""
    import torch

    try:
        released = torch.load(path, map_location="cpu", weights_only=True)["model"]
        renamed = {}
        for name, tensor in released.items():
            new_name = rename_tensor(name)
            if new_name:
                renamed[new_name] = tensor
    except (
        OSError,
        RuntimeError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise UserError(
            f"{path} is no checkpoint of BLIP's VQA network ({one_line(error)[:200]})"
        ) from None

    expected = network.state_dict()
    for name, tensor in expected.items():
        if name.endswith("position_ids"):
            continue
        if name not in renamed:
            raise UserError(f"{path} lacks the tensor {name} of BLIP's VQA network")
        if renamed[name].shape != tensor.shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(renamed[name].shape)}, "
                f"BLIP's VQA network at 480 pixels has {tuple(tensor.shape)}"
            )
    if unknown := sorted(set(renamed) - set(expected)):
        raise UserError(f"{path} has a tensor that BLIP's VQA network has not: {unknown[0]}")
    network.load_state_dict(renamed, strict=False)


def rename_tensor(name: str) -> str:
    """Return the library's name of a released tensor; "" for one that is a constant there."""
    if name.endswith("position_ids"):
        return ""
    block = _BLOCK.fullmatch(name)
    if block:
        return f"vision_model.encoder.layers.{block[1]}.{_rename_start(block[2], _IN_BLOCK)}"
    return _rename_start(name, _PATCHES)


def _rename_start(name: str, names: Mapping[str, str]) -> str:
    for start, new_start in names.items():
        if name.startswith(start):
            return new_start + name.removeprefix(start)
    return name


# --- the three parts ------------------------------------------------------------------------------


def prepare_picture(image: np.ndarray, size: int) -> Tensor:
    """Resize a picture (uint8 [H, W, 3]) to a square and normalise it; float32 [3, size, size]."""
    from PIL import Image
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    picture = F.resize(
        Image.fromarray(image), [size, size], interpolation=InterpolationMode.BICUBIC
    )
    return F.normalize(F.to_tensor(picture), list(MEAN), list(DEVIATION))


def encode_pictures(network: Any, pixels_B3HW: Tensor) -> Tensor:
    """Encode pictures; returns [B, 1 + patches, D], the class position first."""
    states: Tensor = network.vision_model(pixel_values=pixels_B3HW).last_hidden_state
    return states


def encode_questions(network: Any, ids_QW: Tensor, picture_QPD: Tensor) -> Tensor:
    """Encode questions of one length, each about its picture; returns [Q, W, D].

    The first token of each is replaced by the one that the network was trained with.
    """
    import torch

    ids_QW = ids_QW.clone()
    ids_QW[:, 0] = QUESTION_START
    states: Tensor = network.text_encoder(
        input_ids=ids_QW,
        attention_mask=torch.ones_like(ids_QW),
        encoder_hidden_states=picture_QPD,
        encoder_attention_mask=torch.ones(
            picture_QPD.shape[:2], dtype=torch.long, device=ids_QW.device
        ),
        return_dict=True,
    ).last_hidden_state
    return states


def answer_logits(network: Any, question_QWD: Tensor) -> Tensor:
    """Compute the logits of yes and of no, [Q, 2], as the first word of an answer.

    All questions have one length: the library does not hide padded positions from the decoder.
    """
    import torch

    count, words = question_QWD.shape[:2]
    device = question_QWD.device
    start_Q1 = torch.full((count, 1), ANSWER_START, device=device)
    logits_Q1V: Tensor = network.text_decoder(
        input_ids=start_Q1,
        attention_mask=torch.ones_like(start_Q1),
        encoder_hidden_states=question_QWD,
        encoder_attention_mask=torch.ones((count, words), dtype=torch.long, device=device),
        return_dict=True,
    ).logits
    return logits_Q1V[:, -1, [YES, NO]]


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Group indices by length, in the order in which lengths first appear."""
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(length, []).append(index)
    return list(groups.values())
