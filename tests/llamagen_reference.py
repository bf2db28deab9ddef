"""LlamaGen told once more, slowly: float64, prompts padded under a mask, no cache, nothing taken
from harness.models.

`write_fixture` makes a parity folder from it: a tiny model of random weights, and what this loop
says of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

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
LENGTHS = (5, 2, 1)
"""Caption lengths: one that needs no padding, and one that is nothing but its end token."""

State = Mapping[str, Tensor]


def gpt_state(seed: int = 1) -> dict[str, Tensor]:
    """Random weights under the names of a released text-to-image file."""
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
    """Logits [T + n, V] at all positions; features None are the learned ones, under the same
    mask.
    """
    w = {name: tensor.double() for name, tensor in state.items()}
    if feature_TC is None:
        feature_TC = w["cls_embedding.uncond_embedding"]
    inner = feature_TC.double() @ w["cls_embedding.cap_proj.fc1.weight"].T
    inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    x = torch.cat(
        (inner @ w["cls_embedding.cap_proj.fc2.weight"].T, w["tok_embeddings.weight"][tokens])
    )
    allowed = visible(mask_T, len(tokens))
    for i in range(LAYERS):
        h = norm(x, w[f"layers.{i}.attention_norm.weight"])
        qkv = (h @ w[f"layers.{i}.attention.wqkv.weight"].T).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(0, 1) for part in qkv)
        score = turn(q, len(tokens)) @ turn(k, len(tokens)).mT / math.sqrt(DIM // HEADS)
        share = score.masked_fill(~allowed, -math.inf).softmax(-1)
        x = x + (share @ v).transpose(0, 1).flatten(1) @ w[f"layers.{i}.attention.wo.weight"].T
        h = norm(x, w[f"layers.{i}.ffn_norm.weight"])
        gate = h @ w[f"layers.{i}.feed_forward.w1.weight"].T
        up = h @ w[f"layers.{i}.feed_forward.w3.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ w[f"layers.{i}.feed_forward.w2.weight"].T
    return norm(x, w["norm.weight"]) @ w["output.weight"].T


def visible(mask_T: Tensor, tokens: int) -> Tensor:
    """Who sees whom: earlier positions that are no padding, and oneself."""
    length = len(mask_T) + tokens
    seen = torch.cat((mask_T.bool(), torch.ones(tokens, dtype=torch.bool)))
    return torch.tensor(
        [[i == j or (j < i and bool(seen[j])) for j in range(length)] for i in range(length)]
    )


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def turn(x_HLd: Tensor, tokens: int) -> Tensor:
    """Adjacent pairs as complex numbers, times a rotation by row and column; times zero for the
    prompt.
    """
    pairs = x_HLd.shape[-1] // 2
    turns = torch.zeros(x_HLd.shape[1], pairs, dtype=torch.complex128)
    for n in range(tokens):
        for j in range(pairs):
            place, slow = (n // SIDE, j) if j < pairs // 2 else (n % SIDE, j - pairs // 2)
            angle = place * 10000 ** (-2 * slow / pairs)
            turns[n - tokens, j] = complex(math.cos(angle), math.sin(angle))
    return torch.view_as_real(
        torch.view_as_complex(x_HLd.unflatten(-1, (-1, 2)).contiguous()) * turns
    ).flatten(-2)


def guided(
    state: State, feature_TC: Tensor, mask_T: Tensor, tokens: list[int], scale: float = SCALE
) -> Tensor:
    text, null = (logits(state, features, mask_T, tokens) for features in (feature_TC, None))
    return null + scale * (text - null)


def greedy(
    state: State, feature_TC: Tensor, mask_T: Tensor, interval: int = -1, scale: float = SCALE
) -> list[int]:
    tokens: list[int] = []
    for n in range(SIDE**2):
        on = scale != 1 and (interval < 0 or n < interval + 2)
        probs = (
            guided(state, feature_TC, mask_T, tokens)
            if on
            else logits(state, feature_TC, mask_T, tokens)
        )
        tokens.append(int(probs[-1].argmax()))
    return tokens


# ------------------------------------------------------------------ tokenizer


def vq_state(names: Mapping[str, tuple[int, ...]], seed: int = 2) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=g)
        * (0.1 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5)
        + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        for name, shape in names.items()
    }


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
        still = ((grouped - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
        return (
            still * self.w[f"{name}.weight"][:, None, None] + self.w[f"{name}.bias"][:, None, None]
        )

    def active(self, name: str, x: Tensor) -> Tensor:
        y = self.norm(name, x)
        return y * torch.sigmoid(y)

    def residual(self, name: str, x: Tensor) -> Tensor:
        y = self.conv(f"{name}.conv1", self.active(f"{name}.norm1", x))
        y = self.conv(f"{name}.conv2", self.active(f"{name}.norm2", y))
        wider = f"{name}.nin_shortcut"
        return y + (self.conv(wider, x) if f"{wider}.weight" in self.w else x)

    def attention(self, name: str, x: Tensor) -> Tensor:
        q, k, v = (
            self.conv(f"{name}.{part}", self.norm(f"{name}.norm", x)).flatten(2) for part in "qkv"
        )
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
            x = self.conv(
                f"{name}.upsample.conv", x.repeat_interleave(2, -1).repeat_interleave(2, -2)
            )
        return x

    def middle(self, name: str, x: Tensor) -> Tensor:
        return self.residual(
            f"{name}.mid.2", self.attention(f"{name}.mid.1", self.residual(f"{name}.mid.0", x))
        )

    def latent(self, image: Tensor) -> Tensor:
        x = self.conv("encoder.conv_in", image.double())
        for level in range(len(MULTIPLIERS)):
            x = self.level(f"encoder.conv_blocks.{level}", x)
        x = self.conv(
            "encoder.conv_out", self.active("encoder.norm_out", self.middle("encoder", x))
        )
        return self.conv("quant_conv", x)

    def rows(self) -> Tensor:
        book = self.w["quantize.embedding.weight"]
        return book / book.square().sum(-1, keepdim=True).sqrt()

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
    """A parity folder of the schema of the shared ones, its values from the code above only."""
    (folder / "checkpoints").mkdir(parents=True)
    g = torch.Generator().manual_seed(3)
    state = gpt_state()
    vq = vq_state(vq_names)
    torch.save(
        {"model": {**state, "freqs_cis": torch.zeros(CONDITION + SIDE**2, 4, 2)}},
        folder / "checkpoints/gpt.pt",
    )
    torch.save(
        {"state_dict": {**vq, "quantize.codebook_used": torch.zeros(7)}},
        folder / "checkpoints/vq.pt",
    )

    rows = len(LENGTHS)
    total = SIDE**2
    pixels = SIDE * 2 ** (len(MULTIPLIERS) - 1)
    right = torch.randn(rows, CONDITION, WIDTH, generator=g)
    mask = torch.tensor([[1] * n + [0] * (CONDITION - n) for n in LENGTHS])
    left = torch.zeros_like(right)
    left_mask = mask.flip(1)
    for row, n in enumerate(LENGTHS):
        left[row, CONDITION - n :] = right[row, :n]
    teacher = torch.randint(0, CODES, (rows, total), generator=g)
    codes = torch.randint(0, CODES, (2, total), generator=g)
    partial = torch.where(torch.arange(total) < total // 4, codes[:1], 0)
    image = torch.rand(2, 3, pixels, pixels, generator=g) * 2 - 1
    given = {
        "t5_features_right_padded": right,
        "t5_attention_mask": mask,
        "teacher_tokens": teacher,
    }
    given |= {
        "caption_embs_left_padded": left,
        "emb_masks_left": left_mask,
        "image": image,
        "decode_codes": codes,
    }
    given["decode_codes_quarter_then_zero"] = partial

    def both(features: Tensor, masks: Tensor, tokens: list[list[int]]) -> Tensor:
        said = [logits(state, features[r], masks[r], tokens[r]) for r in range(rows)]
        return torch.stack(said + [logits(state, None, masks[r], tokens[r]) for r in range(rows)])

    def drawn(features: Tensor, masks: Tensor, interval: int = -1, scale: float = SCALE) -> Tensor:
        return torch.tensor(
            [greedy(state, features[r], masks[r], interval, scale) for r in range(rows)]
        )

    everything = torch.ones_like(mask)
    nothing = [[]] * rows
    forced = both(left, left_mask, teacher[:, :-1].tolist())
    cached = forced[:, CONDITION - 1 :]
    tokens = drawn(left, left_mask)
    along = both(left, left_mask, tokens[:, :-1].tolist())[:, CONDITION - 1 :]
    gpt = {
        "attention_mask_bool": torch.stack(
            [visible(m, total) for m in (*left_mask, *left_mask)]
        ).to(torch.uint8),
        "prefill_logits": forced[:, :CONDITION],
        "teacher_forced_logits": cached,
        "cached_logits": cached,
        "cfg_logits": cached[rows:] + SCALE * (cached[:rows] - cached[rows:]),
        "greedy_tokens_cfg": tokens,
        "greedy_cfg_logits": along[rows:] + SCALE * (along[:rows] - along[rows:]),
        "greedy_tokens_cfg_interval": drawn(left, left_mask, INTERVAL),
        "greedy_tokens_no_cfg": drawn(left, left_mask, scale=1.0),
        "greedy_tokens_no_emb_mask": drawn(left, everything),
        "prefill_last_logits_no_emb_mask": both(left, everything, nothing)[:, -1],
        "greedy_tokens_right_padded": drawn(right, mask),
        "prefill_last_logits_right_padded": both(right, mask, nothing)[:, -1],
        "cond_only_nomask_teacher_forced_logits_row0": logits(
            state, left[0], everything[0], teacher[0, :-1].tolist()
        )[None, CONDITION - 1 :],
    }
    tokenizer = Tokenizer(vq)
    latent = tokenizer.latent(image)
    shown = tokenizer.pixels(tokens[:2])
    pictures = {
        "codebook_entries": tokenizer.entries(codes.view(-1, SIDE, SIDE)),
        "decoded_pixels": tokenizer.pixels(codes),
        "decoded_pixels_quarter_then_zero": tokenizer.pixels(partial),
        "decoded_pixels_greedy": shown,
        "uint8_greedy_batch_script": (127.5 * shown + 128)
        .clamp(0, 255)
        .to(torch.uint8)
        .permute(0, 2, 3, 1),
        "uint8_greedy_save_image": ((shown.clamp(-1, 1) + 1) * 127.5 + 0.5)
        .to(torch.uint8)
        .permute(0, 2, 3, 1),
        "encoder_pre_quant": latent,
        "encoder_codes": tokenizer.codes(latent).flatten(1),
        "encoder_quantised": tokenizer.entries(tokenizer.codes(latent)),
    }
    score = np.random.default_rng(4).normal(size=(3, 30)).astype(np.float32) * 2
    score[1, 7] = score[1, np.argsort(score[1])[-5]]  # a tie at the fifth largest
    sampling = {
        "logits": torch.from_numpy(score),
        "argmax_temperature_0": torch.from_numpy(score.argmax(1))[:, None],
    }
    for name, settings in {
        "probs_top_k_5": {"top_k": 5},
        "probs_top_k_1000_larger_than_vocab": {"top_k": 1000},
        "probs_top_p_0p8": {"top_p": 0.8},
        "probs_top_k_5_top_p_0p6_temperature_1p3": {"top_k": 5, "top_p": 0.6, "temperature": 1.3},
    }.items():
        sampling[name] = torch.from_numpy(
            np.stack([probs(row.astype(float), **settings) for row in score])
        )

    tables = {
        "inputs": given,
        "expected_gpt": gpt,
        "expected_vq": pictures,
        "expected_sampling": sampling,
    }
    for file, tensors in tables.items():
        whole = {name: t.float() if t.dtype == torch.float64 else t for name, t in tensors.items()}
        save_file(
            {name: t.contiguous() for name, t in whole.items()}, folder / f"{file}.safetensors"
        )
    manifest = {
        "family": "LlamaGen text-to-image",
        "config": {
            "gpt": {
                "dim": DIM, "n_layer": LAYERS, "n_head": HEADS, "n_kv_head": HEADS, "ffn_hidden": HIDDEN,
                "vocab_size": CODES, "cls_token_num": CONDITION, "caption_dim": WIDTH, "grid": SIDE,
                "rope_base": 10000, "norm_eps": 1e-5,
            },
            "vq": {
                "codebook_size": CODES, "codebook_embed_dim": CODE_DIM, "z_channels": LATENT, "ch": VQ_WIDTH,
                "ch_mult": MULTIPLIERS, "num_res_blocks": 1, "image_size": pixels, "group_norm": {"groups": GROUPS},
            },
        },
        "run": {"cfg_scale": SCALE, "cfg_interval_case": INTERVAL},
        "checkpoints": {
            "checkpoints/gpt.pt": {"tensors": {name: list(t.shape) for name, t in state.items()}},
            "checkpoints/vq.pt": {"tensors": {name: list(t.shape) for name, t in vq.items()}},
        },
        "tolerances_float32_cpu": TOLERANCES,
        "tolerances_float32_cuda_tf32_off": {},
        "measured": {"bf16": {"mean": 0.05, "max": 0.5}},
        "tensors": {
            f"{file}.safetensors": {name: {"kind": _kind(name)} for name in tensors} for file, tensors in tables.items()
        },
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


TOLERANCES = {
    kind: f"max abs {value}"
    for kind, value in {
        "logits": 1e-4,
        "cfg": 5e-4,
        "pixels": 4e-5,
        "latent": 2e-5,
        "embed": 1e-5,
        "probs": 1e-6,
    }.items()
}


def _kind(name: str) -> str:
    if "uint8" in name:
        return "uint8"
    if name in ("codebook_entries", "encoder_pre_quant", "encoder_quantised"):
        return "embed" if name == "codebook_entries" else "latent"
    if "pixels" in name or name.startswith("probs"):
        return "pixels" if "pixels" in name else "probs"
    return "exact" if "logits" not in name else "cfg" if "cfg" in name else "logits"
