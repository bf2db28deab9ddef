"""A second, slow LlamaGen: float64, padded prompts under a mask, no cache, no harness.models.

`write_fixture` makes a parity folder from it: a tiny model of random weights, and the arrays that
this implementation computes with them.

Shapes: T condition positions, n image tokens, V codes, D model width, H heads, d head width, C
feature width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

LAYERS = 2
DIM = 32
HEADS = 2
HIDDEN = 48
CODES = 40
SIDE = 4
CONDITION = 5
WIDTH = 12
SCALE = 3.0
INTERVAL = 4
VQ_WIDTH = 8
MULTIPLIERS = (1, 2)
GROUPS = 4
LATENT = 8
CODE_DIM = 4
PIXELS = SIDE * 2 ** (len(MULTIPLIERS) - 1)
LENGTHS = (5, 2, 1)
"""Caption lengths: one that needs no padding, and one that is nothing but its end token."""

State = Mapping[str, Tensor]
"""Tensors of a checkpoint by name."""


# ------------------------------------------------------------------ the GPT


def gpt_state(seed: int = 1) -> dict[str, Tensor]:
    """Draw random weights under the names of a released text-to-image file."""
    g = torch.Generator().manual_seed(seed)

    def random(*shape: int, gain: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=g) * gain / math.sqrt(shape[-1])

    state = {
        "cls_embedding.cap_proj.fc1.weight": random(DIM, WIDTH, gain=1.5),
        "cls_embedding.cap_proj.fc2.weight": random(DIM, DIM, gain=1.5),
        "cls_embedding.uncond_embedding": torch.randn(CONDITION, WIDTH, generator=g),
        "tok_embeddings.weight": torch.randn(CODES, DIM, generator=g),
        "norm.weight": 1 + 0.1 * torch.randn(DIM, generator=g),
        "output.weight": random(CODES, DIM, gain=2.0),
    }
    for i in range(LAYERS):
        state |= {
            f"layers.{i}.attention.wqkv.weight": random(3 * DIM, DIM, gain=1.5),
            f"layers.{i}.attention.wo.weight": random(DIM, DIM),
            f"layers.{i}.feed_forward.w1.weight": random(HIDDEN, DIM),
            f"layers.{i}.feed_forward.w3.weight": random(HIDDEN, DIM),
            f"layers.{i}.feed_forward.w2.weight": random(DIM, HIDDEN),
            f"layers.{i}.attention_norm.weight": 1 + 0.1 * torch.randn(DIM, generator=g),
            f"layers.{i}.ffn_norm.weight": 1 + 0.1 * torch.randn(DIM, generator=g),
        }
    return state


def logits(state: State, feature_TC: Tensor | None, mask_T: Tensor, tokens: list[int]) -> Tensor:
    """Compute logits [T + n, V] at all positions.

    `feature_TC` None is the null prompt: the learned features, under the same mask.
    """
    w = {name: tensor.double() for name, tensor in state.items()}
    if feature_TC is None:
        feature_TC = w["cls_embedding.uncond_embedding"]

    # 1. Embeddings of the condition, then of the tokens.
    inner = feature_TC.double() @ w["cls_embedding.cap_proj.fc1.weight"].T
    inner = gelu_tanh(inner)
    condition_TD = inner @ w["cls_embedding.cap_proj.fc2.weight"].T
    x = torch.cat((condition_TD, w["tok_embeddings.weight"][tokens]))

    # 2. Blocks.
    allowed = visible(mask_T, len(tokens))
    for i in range(LAYERS):
        h = norm(x, w[f"layers.{i}.attention_norm.weight"])
        qkv = (h @ w[f"layers.{i}.attention.wqkv.weight"].T).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(0, 1) for part in qkv)
        score = turn(q, len(tokens)) @ turn(k, len(tokens)).mT / math.sqrt(DIM // HEADS)
        share = score.masked_fill(~allowed, -math.inf).softmax(-1)
        attended = (share @ v).transpose(0, 1).flatten(1)
        x = x + attended @ w[f"layers.{i}.attention.wo.weight"].T

        h = norm(x, w[f"layers.{i}.ffn_norm.weight"])
        gate = h @ w[f"layers.{i}.feed_forward.w1.weight"].T
        up = h @ w[f"layers.{i}.feed_forward.w3.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ w[f"layers.{i}.feed_forward.w2.weight"].T

    # 3. The head.
    return norm(x, w["norm.weight"]) @ w["output.weight"].T


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def visible(mask_T: Tensor, tokens: int) -> Tensor:
    """Compute who sees whom: earlier positions that are no padding, and oneself."""
    seen = [*mask_T.bool().tolist(), *[True] * tokens]
    length = len(seen)
    allowed = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(i):
            allowed[i, j] = seen[j]
        allowed[i, i] = True
    return allowed


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def turn(x_HLd: Tensor, tokens: int) -> Tensor:
    """Rotate adjacent pairs as complex numbers, by row and column; times zero for the prompt."""
    pairs = x_HLd.shape[-1] // 2
    turns = torch.zeros(x_HLd.shape[1], pairs, dtype=torch.complex128)
    for n in range(tokens):
        for j in range(pairs):
            by_row = j < pairs // 2
            place = n // SIDE if by_row else n % SIDE
            slowness = j if by_row else j - pairs // 2
            angle = place * 10000 ** (-2 * slowness / pairs)
            turns[n - tokens, j] = complex(math.cos(angle), math.sin(angle))
    complex_pairs = torch.view_as_complex(x_HLd.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(complex_pairs * turns).flatten(-2)


def guided(
    state: State, feature_TC: Tensor, mask_T: Tensor, tokens: list[int], scale: float = SCALE
) -> Tensor:
    text = logits(state, feature_TC, mask_T, tokens)
    null = logits(state, None, mask_T, tokens)
    return null + scale * (text - null)


def greedy(
    state: State, feature_TC: Tensor, mask_T: Tensor, interval: int = -1, scale: float = SCALE
) -> list[int]:
    """Draw the tokens of largest logit, guided up to an interval."""
    tokens: list[int] = []
    for n in range(SIDE**2):
        is_guided = scale != 1 and (interval < 0 or n < interval + 2)
        compute = guided if is_guided else logits
        tokens.append(int(compute(state, feature_TC, mask_T, tokens)[-1].argmax()))
    return tokens


# ------------------------------------------------------------------ tokenizer


def vq_state(names: Mapping[str, tuple[int, ...]], seed: int = 2) -> dict[str, Tensor]:
    """Draw random weights of the given names and shapes."""
    g = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in names.items():
        std = 0.1 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        state[name] = torch.randn(shape, generator=g) * std + mean
    return state


class Tokenizer:
    """Encoder and decoder, read off the names of their tensors."""

    def __init__(self, state: State) -> None:
        self.w = {name: tensor.double() for name, tensor in state.items()}

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.w[f"{name}.weight"]
        padding = 0 if stride == 2 else weight.shape[-1] // 2
        return F.conv2d(x, weight, self.w[f"{name}.bias"], stride=stride, padding=padding)

    def norm(self, name: str, x: Tensor) -> Tensor:
        grouped = x.unflatten(1, (GROUPS, -1))
        mean = grouped.mean((2, 3, 4), keepdim=True)
        variance = grouped.var((2, 3, 4), correction=0, keepdim=True)
        normed = ((grouped - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
        weight = self.w[f"{name}.weight"][:, None, None]
        bias = self.w[f"{name}.bias"][:, None, None]
        return normed * weight + bias

    def active(self, name: str, x: Tensor) -> Tensor:
        y = self.norm(name, x)
        return y * torch.sigmoid(y)

    def residual(self, name: str, x: Tensor) -> Tensor:
        y = self.conv(f"{name}.conv1", self.active(f"{name}.norm1", x))
        y = self.conv(f"{name}.conv2", self.active(f"{name}.norm2", y))
        shortcut = f"{name}.nin_shortcut"
        if f"{shortcut}.weight" in self.w:
            x = self.conv(shortcut, x)
        return y + x

    def attention(self, name: str, x: Tensor) -> Tensor:
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).flatten(2) for part in "qkv")
        share = (q.mT @ k / math.sqrt(x.shape[1])).softmax(-1)
        return x + self.conv(f"{name}.proj_out", (v @ share.mT).view_as(x))

    def level(self, name: str, x: Tensor) -> Tensor:
        for block in range(9):
            if f"{name}.res.{block}.conv1.weight" in self.w:
                x = self.residual(f"{name}.res.{block}", x)
            if f"{name}.attn.{block}.q.weight" in self.w:
                x = self.attention(f"{name}.attn.{block}", x)
        if f"{name}.downsample.conv.weight" in self.w:
            x = self.conv(f"{name}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        if f"{name}.upsample.conv.weight" in self.w:
            doubled = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
            x = self.conv(f"{name}.upsample.conv", doubled)
        return x

    def middle(self, name: str, x: Tensor) -> Tensor:
        x = self.residual(f"{name}.mid.0", x)
        x = self.attention(f"{name}.mid.1", x)
        return self.residual(f"{name}.mid.2", x)

    def latent(self, image: Tensor) -> Tensor:
        x = self.conv("encoder.conv_in", image.double())
        for level in range(len(MULTIPLIERS)):
            x = self.level(f"encoder.conv_blocks.{level}", x)
        x = self.active("encoder.norm_out", self.middle("encoder", x))
        return self.conv("quant_conv", self.conv("encoder.conv_out", x))

    def rows(self) -> Tensor:
        codebook = self.w["quantize.embedding.weight"]
        return codebook / codebook.square().sum(-1, keepdim=True).sqrt()

    def codes(self, latent: Tensor) -> Tensor:
        return torch.einsum("bdhw,vd->bhwv", latent, self.rows()).argmax(-1)

    def entries(self, codes: Tensor) -> Tensor:
        return self.rows()[codes].movedim(-1, 1)

    def pixels(self, codes: Tensor) -> Tensor:
        x = self.conv("post_quant_conv", self.entries(codes.view(-1, SIDE, SIDE)))
        x = self.middle("decoder", self.conv("decoder.conv_in", x))
        for level in range(len(MULTIPLIERS)):
            x = self.level(f"decoder.conv_blocks.{level}", x)
        return self.conv("decoder.conv_out", self.active("decoder.norm_out", x))


# ------------------------------------------------------------------ filters


def probs(
    row: np.ndarray, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> np.ndarray:
    """Filter one row of logits by top-k and then top-p, and return its probabilities."""
    row = row / temperature
    if 0 < top_k < len(row):
        row = np.where(row < np.sort(row)[-top_k], -np.inf, row)
    weight = np.exp(row - row.max())
    weight /= weight.sum()
    kept = np.zeros_like(weight)
    total = 0.0
    for place in np.argsort(-weight, kind="stable"):
        if total > top_p or weight[place] == 0:
            break
        kept[place] = weight[place]
        total += weight[place]
    return kept / kept.sum()


# ------------------------------------------------------------------ a fixture folder


def write_fixture(folder: Path, vq_names: Mapping[str, tuple[int, ...]]) -> Path:
    """Write a parity folder of the schema of the shared ones, its values from the code above."""
    state = gpt_state()
    vq = vq_state(vq_names)
    write_checkpoints(folder / "checkpoints", state, vq)

    inputs = draw_inputs()
    gpt = expected_gpt(state, inputs)
    tables = {
        "inputs": inputs,
        "expected_gpt": gpt,
        "expected_vq": expected_vq(vq, inputs, gpt["greedy_tokens_cfg"]),
        "expected_sampling": expected_sampling(),
    }
    for file, tensors in tables.items():
        save_file(
            {name: as_stored(tensor) for name, tensor in tensors.items()},
            folder / f"{file}.safetensors",
        )
    (folder / "manifest.json").write_text(json.dumps(manifest(state, vq, tables)))
    return folder


def write_checkpoints(folder: Path, state: State, vq: State) -> None:
    """Write both files in the released layout, with the tensors that are not needed."""
    folder.mkdir(parents=True)
    table = torch.zeros(CONDITION + SIDE**2, 4, 2)
    torch.save({"model": {**state, "freqs_cis": table}}, folder / "gpt.pt")
    used = torch.zeros(7)
    torch.save({"state_dict": {**vq, "quantize.codebook_used": used}}, folder / "vq.pt")


def as_stored(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.dtype == torch.float64 else tensor).contiguous()


def draw_inputs() -> dict[str, Tensor]:
    """Draw caption features, a teacher's tokens, and codes and pictures for the tokenizer."""
    g = torch.Generator().manual_seed(3)
    rows = len(LENGTHS)
    total = SIDE**2
    right = torch.randn(rows, CONDITION, WIDTH, generator=g)
    mask = torch.tensor([[1] * n + [0] * (CONDITION - n) for n in LENGTHS])
    left = torch.zeros_like(right)
    for row, n in enumerate(LENGTHS):
        left[row, CONDITION - n :] = right[row, :n]
    teacher = torch.randint(0, CODES, (rows, total), generator=g)
    codes = torch.randint(0, CODES, (2, total), generator=g)
    image = torch.rand(2, 3, PIXELS, PIXELS, generator=g) * 2 - 1
    return {
        "t5_features_right_padded": right,
        "t5_attention_mask": mask,
        "teacher_tokens": teacher,
        "caption_embs_left_padded": left,
        "emb_masks_left": mask.flip(1),
        "image": image,
        "decode_codes": codes,
        "decode_codes_quarter_then_zero": torch.where(
            torch.arange(total) < total // 4, codes[:1], 0
        ),
    }


def expected_gpt(state: State, inputs: State) -> dict[str, Tensor]:
    """Compute everything that parity compares of the GPT."""
    rows = len(LENGTHS)
    right = inputs["t5_features_right_padded"]
    mask = inputs["t5_attention_mask"]
    left = inputs["caption_embs_left_padded"]
    left_mask = inputs["emb_masks_left"]
    teacher = inputs["teacher_tokens"]
    everything = torch.ones_like(mask)
    no_tokens: list[list[int]] = [[]] * rows

    def both(features: Tensor, masks: Tensor, tokens: list[list[int]]) -> Tensor:
        """Logits of all captions, then of their null prompts."""
        texts = [logits(state, features[r], masks[r], tokens[r]) for r in range(rows)]
        nulls = [logits(state, None, masks[r], tokens[r]) for r in range(rows)]
        return torch.stack(texts + nulls)

    def guide(logits_R: Tensor) -> Tensor:
        return logits_R[rows:] + SCALE * (logits_R[:rows] - logits_R[rows:])

    def drawn(features: Tensor, masks: Tensor, interval: int = -1, scale: float = SCALE) -> Tensor:
        tokens = [greedy(state, features[r], masks[r], interval, scale) for r in range(rows)]
        return torch.tensor(tokens)

    forced = both(left, left_mask, teacher[:, :-1].tolist())
    cached = forced[:, CONDITION - 1 :]
    tokens = drawn(left, left_mask)
    along = both(left, left_mask, tokens[:, :-1].tolist())[:, CONDITION - 1 :]
    unmasked = logits(state, left[0], everything[0], teacher[0, :-1].tolist())
    seen = [visible(m, SIDE**2) for m in (*left_mask, *left_mask)]
    return {
        "attention_mask_bool": torch.stack(seen).to(torch.uint8),
        "prefill_logits": forced[:, :CONDITION],
        "teacher_forced_logits": cached,
        "cached_logits": cached,
        "cfg_logits": guide(cached),
        "greedy_tokens_cfg": tokens,
        "greedy_cfg_logits": guide(along),
        "greedy_tokens_cfg_interval": drawn(left, left_mask, INTERVAL),
        "greedy_tokens_no_cfg": drawn(left, left_mask, scale=1.0),
        "greedy_tokens_no_emb_mask": drawn(left, everything),
        "prefill_last_logits_no_emb_mask": both(left, everything, no_tokens)[:, -1],
        "greedy_tokens_right_padded": drawn(right, mask),
        "prefill_last_logits_right_padded": both(right, mask, no_tokens)[:, -1],
        "cond_only_nomask_teacher_forced_logits_row0": unmasked[None, CONDITION - 1 :],
    }


def expected_vq(vq: State, inputs: State, greedy_tokens: Tensor) -> dict[str, Tensor]:
    """Compute everything that parity compares of the tokenizer."""
    tokenizer = Tokenizer(vq)
    codes = inputs["decode_codes"]
    latent = tokenizer.latent(inputs["image"])
    pixels = tokenizer.pixels(greedy_tokens[:2])
    truncated = (127.5 * pixels + 128).clamp(0, 255)
    rounded = (pixels.clamp(-1, 1) + 1) * 127.5 + 0.5
    return {
        "codebook_entries": tokenizer.entries(codes.view(-1, SIDE, SIDE)),
        "decoded_pixels": tokenizer.pixels(codes),
        "decoded_pixels_quarter_then_zero": tokenizer.pixels(
            inputs["decode_codes_quarter_then_zero"]
        ),
        "decoded_pixels_greedy": pixels,
        "uint8_greedy_batch_script": truncated.to(torch.uint8).permute(0, 2, 3, 1),
        "uint8_greedy_save_image": rounded.to(torch.uint8).permute(0, 2, 3, 1),
        "encoder_pre_quant": latent,
        "encoder_codes": tokenizer.codes(latent).flatten(1),
        "encoder_quantised": tokenizer.entries(tokenizer.codes(latent)),
    }


def expected_sampling() -> dict[str, Tensor]:
    """Filter random logits by the settings that the arrays are named after."""
    score = np.random.default_rng(4).normal(size=(3, 30)).astype(np.float32) * 2
    score[1, 7] = score[1, np.argsort(score[1])[-5]]  # a tie at the fifth largest
    expected = {
        "logits": torch.from_numpy(score),
        "argmax_temperature_0": torch.from_numpy(score.argmax(1))[:, None],
    }
    cases: dict[str, dict[str, Any]] = {
        "probs_top_k_5": {"top_k": 5},
        "probs_top_k_1000_larger_than_vocab": {"top_k": 1000},
        "probs_top_p_0p8": {"top_p": 0.8},
        "probs_top_k_5_top_p_0p6_temperature_1p3": {"top_k": 5, "top_p": 0.6, "temperature": 1.3},
    }
    for name, settings in cases.items():
        rows = [probs(row.astype(float), **settings) for row in score]
        expected[name] = torch.from_numpy(np.stack(rows))
    return expected


def manifest(state: State, vq: State, tables: Mapping[str, State]) -> dict[str, Any]:
    """Describe the folder: dimensions, settings, tolerances, and every tensor with its kind."""
    kinds = {}
    for file, tensors in tables.items():
        kinds[f"{file}.safetensors"] = {name: {"kind": kind_of(name)} for name in tensors}
    return {
        "family": "LlamaGen text-to-image",
        "config": {"gpt": GPT_CONFIG, "vq": VQ_CONFIG},
        "run": {"cfg_scale": SCALE, "cfg_interval_case": INTERVAL},
        "checkpoints": {
            "checkpoints/gpt.pt": {"tensors": {name: list(t.shape) for name, t in state.items()}},
            "checkpoints/vq.pt": {"tensors": {name: list(t.shape) for name, t in vq.items()}},
        },
        "tolerances_float32_cpu": TOLERANCES,
        "tolerances_float32_cuda_tf32_off": {},
        "measured": {"bf16": {"mean": 0.05, "max": 0.5}},
        "tensors": kinds,
    }


GPT_CONFIG = {
    "dim": DIM,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_kv_head": HEADS,
    "ffn_hidden": HIDDEN,
    "vocab_size": CODES,
    "cls_token_num": CONDITION,
    "caption_dim": WIDTH,
    "grid": SIDE,
    "rope_base": 10000,
    "norm_eps": 1e-5,
}
VQ_CONFIG = {
    "codebook_size": CODES,
    "codebook_embed_dim": CODE_DIM,
    "z_channels": LATENT,
    "ch": VQ_WIDTH,
    "ch_mult": MULTIPLIERS,
    "num_res_blocks": 1,
    "image_size": PIXELS,
    "group_norm": {"groups": GROUPS},
}
TOLERANCES = {
    "logits": "max abs 0.0001",
    "cfg": "max abs 0.0005",
    "pixels": "max abs 4e-05",
    "latent": "max abs 2e-05",
    "embed": "max abs 1e-05",
    "probs": "max abs 1e-06",
}


def kind_of(name: str) -> str:
    """Choose the kind of an array, by its name."""
    if "uint8" in name:
        return "uint8"
    if name == "codebook_entries":
        return "embed"
    if name in ("encoder_pre_quant", "encoder_quantised"):
        return "latent"
    if "pixels" in name:
        return "pixels"
    if name.startswith("probs"):
        return "probs"
    if "logits" not in name:
        return "exact"
    return "cfg" if "cfg" in name else "logits"
