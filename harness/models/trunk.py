"""The one decoder trunk: pre-norm attention and gated feed-forward blocks over embeddings.

It serves all models. What differs between them (word and position embeddings, rotary tables,
heads) lives in their adapters. How keys and values are stored is left to the `Attend` function that
is passed in: `causal` for training, or one that `harness.models.kv_cache` makes for prefill and
decoding. All of them share every line here.

Shapes: B rows, W positions per row, D model width, H query heads, G key-value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.linear import Linear, can_pack, linear
from harness.records import UserError

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_BHWd, k_BGWd, v_BGWd) -> attended values, same shape as q.

Query head h attends to the keys and values of head h div (H / G).
"""

HEAD_NORM_EPS = 1e-5
"""Added to the variance in a norm of heads (Chameleon)."""


@dataclass(frozen=True, slots=True)
class TrunkSpec:
    """Dimensions of a trunk. LlamaGen-XL is `TrunkSpec(36, 1280, 20, 3584)`.

    `groups` is the number of key-value heads, each of which serves as many query heads (grouped
    queries); None is one for each query head. `bias` adds biases to queries, keys and values
    (Qwen2). `head_norm` normalises each head of queries and keys before the rotation: "layer" by
    mean and variance (Chameleon). Raises UserError for sizes that no trunk has.
    """

    layers: int
    dim: int
    heads: int
    hidden: int
    norm_eps: float = 1e-5
    groups: int | None = None
    bias: bool = False
    head_norm: Literal["none", "layer"] = "none"

    def __post_init__(self) -> None:
        if min(self.layers, self.dim, self.heads, self.hidden) < 1 or self.dim % self.heads:
            raise UserError(
                f"{self.layers} layers of width {self.dim} with {self.heads} heads and "
                f"{self.hidden} hidden numbers are no trunk"
            )
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise UserError(
                f"{self.heads} query heads do not share {self.kv_heads} heads of keys and values "
                "evenly"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def kv_heads(self) -> int:
        """Count the heads of keys and values, G."""
        return self.heads if self.groups is None else self.groups


class Trunk(nn.Module):
    """Blocks and a final norm.

    Names follow LlamaGen's checkpoints (`layers.{i}.attention.wqkv`, ..., `norm`).
    """

    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.norm = RMSNorm(spec.dim, spec.norm_eps)

    def forward(self, x_BWD: Tensor, rotary_BW2: Tensor, attend: Attend) -> Tensor:
        """Compute hidden states after the final norm, [B, W, D]."""
        rotation = Rotation.of(rotary_BW2)
        for layer, block in enumerate(self.layers):
            x_BWD = block(x_BWD, rotation, layer, attend)
        return self.norm(x_BWD)


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and added to its input."""

    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.attention = Attention(spec)
        self.feed_forward = FeedForward(spec)
        self.attention_norm = RMSNorm(spec.dim, spec.norm_eps)
        self.ffn_norm = RMSNorm(spec.dim, spec.norm_eps)

    def forward(self, x_BWD: Tensor, rotation: Rotation, layer: int, attend: Attend) -> Tensor:
        x_BWD = x_BWD + self.attention(self.attention_norm(x_BWD), rotation, layer, attend)
        return x_BWD + self.feed_forward(self.ffn_norm(x_BWD))


class Attention(nn.Module):
    """Multi-head attention with rotary positions; `attend` decides what a query sees.

    The rows of `wqkv` are those of the query heads, then the key heads, then the value heads.
    """

    head_norm: HeadNorm | None

    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.rotated = spec.heads + spec.kv_heads  # the heads of queries and keys
        self.head_dim = spec.head_dim
        rows = (spec.heads + 2 * spec.kv_heads) * spec.head_dim
        self.wqkv = Linear(spec.dim, rows, bias=spec.bias)
        self.wo = Linear(spec.dim, spec.dim, bias=False)
        self.head_norm = None
        if spec.head_norm == "layer":
            self.head_norm = HeadNorm(self.rotated, spec.head_dim)

    def forward(self, x_BWD: Tensor, rotation: Rotation, layer: int, attend: Attend) -> Tensor:
        heads_BWHd = self.wqkv(x_BWD).unflatten(-1, (-1, self.head_dim))
        turning_BWHd = heads_BWHd[:, :, : self.rotated]
        if self.head_norm is not None:
            turning_BWHd = self.head_norm(turning_BWHd)
        turned_BHWd = rotate(turning_BWHd.transpose(1, 2), rotation)
        q_BHWd = turned_BHWd[:, : self.heads]
        k_BGWd = turned_BHWd[:, self.heads :]
        v_BGWd = heads_BWHd[:, :, self.rotated :].transpose(1, 2)
        attended_BHWd = attend(layer, q_BHWd, k_BGWd, v_BGWd)
        return self.wo(attended_BHWd.transpose(1, 2).flatten(-2))


class HeadNorm(nn.Module):
    """A layer norm over the d numbers of each head, with a weight and bias of its own.

    Computed at least in float32, and cast back before the weight (Chameleon's
    `ChameleonLayerNorm`).
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads * head_dim))
        self.bias = nn.Parameter(torch.zeros(heads * head_dim))

    def forward(self, x_BWHd: Tensor) -> Tensor:
        wide = x_BWHd.to(torch.promote_types(x_BWHd.dtype, torch.float32))
        normal_BWHd = F.layer_norm(wide, wide.shape[-1:], eps=HEAD_NORM_EPS).to(x_BWHd.dtype)
        shape = x_BWHd.shape[-2:]
        return normal_BWHd * self.weight.view(shape) + self.bias.view(shape)


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x).

    Training keeps the matrices apart, as checkpoints do; inference may `fuse` w1 and w3, unless
    they are packed.
    """

    fused_w1_w3: Tensor | None

    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.w1 = Linear(spec.dim, spec.hidden, bias=False)
        self.w3 = Linear(spec.dim, spec.hidden, bias=False)
        self.w2 = Linear(spec.hidden, spec.dim, bias=False)
        self.register_buffer("fused_w1_w3", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused_w1_w3 is None:
            return self.w2(F.silu(self.w1(x)) * self.w3(x))

        gate_and_up = linear(x, self.fused_w1_w3)
        hidden = self.w2.in_features
        gate = F.silu(gate_and_up[..., :hidden], inplace=True)
        return self.w2(gate.mul_(gate_and_up[..., hidden:]))

    def fuse(self) -> None:
        """Compute gate and up in one product from now on, without a copy of either matrix.

        w1 and w3 become halves of the fused matrix. Only for loaded weights that neither move to
        another device nor are trained.
        """
        self.fused_w1_w3 = torch.cat((self.w1.weight.detach(), self.w3.weight.detach()))
        self.w1.weight.data, self.w3.weight.data = self.fused_w1_w3.chunk(2)


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, cast back before the weight (LlamaGen `gpt.py`)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, eps=self.eps) * self.weight


def causal(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend over a whole sequence without a cache: training and teacher-forced evaluation."""
    is_grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped)


def prepare(module: nn.Module) -> None:
    """Arrange the loaded weights of a module's layers for inference, without a copy of any.

    Matrices are packed where the device multiplies packed ones, and else fused where they can be.
    The weights must not move to another device any more, nor be trained.
    """
    for part in module.modules():
        if isinstance(part, Linear) and can_pack(part.weight):
            part.pack()
        elif isinstance(part, FeedForward) and not can_pack(part.w1.weight):
            part.fuse()


# ------------------------------------------------------------------ rotary positions


class Rotation(NamedTuple):
    """What `rotate` multiplies by, [B, 1, W, d] each: a forward makes it for all layers once.

    The cosine of a pair stands at both of its numbers, and so does its sine, negative at the first.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, rotary_BW2: Tensor) -> Rotation:
        """Spread a table of (cosine, sine) of pairs, [B, W, d/2, 2]."""
        cos, sin = rotary_BW2.unsqueeze(1).unbind(-1)
        return cls(cos.repeat_interleave(2, -1), torch.stack((-sin, sin), -1).flatten(-2))


def rotate(x_BHWd: Tensor, rotation: Rotation) -> Tensor:
    """Rotate adjacent pairs.

    Computes at least in float32, as LlamaGen's `apply_rotary_emb` does, and rounds each product as
    it does. There may be more axes in front, such as one of queries and keys.
    """
    wide = x_BHWd.to(torch.promote_types(x_BHWd.dtype, torch.float32))
    swapped = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (wide * rotation.cos + swapped * rotation.sin).to(x_BHWd.dtype)


def axial_rotary(coords: Tensor, head_dim: int, base: float = 10000.0) -> Tensor:
    """Tabulate the rotation of integer (row, column) coordinates [..., 2].

    Returns (cosine, sine), [..., head_dim/2, 2], float32. The first head_dim/4 pairs turn with the
    row, the others with the column (LlamaGen `precompute_freqs_cis_2d`).
    """
    quarter = head_dim // 4
    frequency = base ** (-2.0 * torch.arange(quarter, dtype=torch.float32) / (head_dim // 2))
    angle = (coords.float().unsqueeze(-1) * frequency).flatten(-2)
    return torch.stack((angle.cos(), angle.sin()), -1)


def running_rotary(pos: Tensor, head_dim: int, base: float = 10000.0) -> Tensor:
    """Tabulate the rotation of ordinary positions [...] (Llama).

    Returns (cosine, sine), [..., head_dim/2, 2], float32.
    """
    frequency = 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = pos.float().unsqueeze(-1) * frequency
    return torch.stack((angle.cos(), angle.sin()), -1)


def to_adjacent_pairs(rows: Tensor, heads: int) -> Tensor:
    """Reorder query or key rows from half-split rotary pairs to the pairs of `rotate`.

    `rows` [heads d, ...] are those of a weight, its bias, or of a head norm's parameters
    flattened. Half-split pairs join row i with row i + d/2. The permutation stays within a head and
    is the same for queries and keys, so scores do not change.
    """
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
