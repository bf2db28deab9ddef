"""The one decoder trunk: pre-norm attention and gated feed-forward blocks over embeddings.

It serves the embedded model, LlamaGen and Janus-Pro's language model. What differs between them
(word and position embeddings, rotary tables, heads) lives in their adapters; how keys and values
are stored lives in the `Attend` that is passed in, so training (no cache), decoding and prefill
share every line here.

Shapes: B rows, W positions per row, D model width, H heads, d head width, L cache length, S slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_BHWd, k_BHWd, v_BHWd) -> attended values, same shape as q."""


@dataclass(frozen=True, slots=True)
class TrunkSpec:
    """Dimensions of a trunk. LlamaGen-XL is `TrunkSpec(36, 1280, 20, 3584)`."""

    layers: int
    dim: int
    heads: int
    hidden: int
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, cast back before the weight (LlamaGen `gpt.py`,
    RMSNorm).
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype != torch.float64 else x
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


def rotate(x_BHWd: Tensor, rotary_BW2: Tensor) -> Tensor:
    """Rotate adjacent pairs by `rotary_BW2` = (cos, sin) of shape [B, W, d/2, 2] (LlamaGen
    `apply_rotary_emb`).

    At least in float32, as the original does. There may be more axes in front, of queries and keys,
    say.
    """
    cos, sin = rotary_BW2.unsqueeze(1).unbind(-1)
    even, odd = (
        x_BHWd.unflatten(-1, (-1, 2))
        .to(torch.promote_types(x_BHWd.dtype, torch.float32))
        .unbind(-1)
    )
    return (
        torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
        .flatten(-2)
        .to(x_BHWd.dtype)
    )


def axial_rotary(coords: Tensor, head_dim: int, base: float = 10000.0) -> Tensor:
    """Rotation table of integer (row, column) coordinates [..., 2]: returns (cos, sin), [...,
    head_dim/2, 2], float32.

    The first head_dim/4 pairs turn with the row, the others with the column (LlamaGen
    `precompute_freqs_cis_2d`).
    """
    quarter = head_dim // 4
    frequency = base ** (-2.0 * torch.arange(quarter, dtype=torch.float32) / (head_dim // 2))
    angle = (coords.float().unsqueeze(-1) * frequency).flatten(-2)
    return torch.stack((angle.cos(), angle.sin()), -1)


def running_rotary(pos: Tensor, head_dim: int, base: float = 10000.0) -> Tensor:
    """Rotation table of ordinary positions [...]: returns (cos, sin), [..., head_dim/2, 2], float32
    (Llama).
    """
    frequency = 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = pos.float().unsqueeze(-1) * frequency
    return torch.stack((angle.cos(), angle.sin()), -1)


def adjacent_pairs(weight: Tensor, heads: int) -> Tensor:
    """Query or key rows [D, D] trained for half-split rotary pairs (i with i + d/2), put in the
    order of `rotate`.

    A permutation within each head, the same for queries and keys: scores do not change.
    """
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


class Attention(nn.Module):
    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.wqkv = nn.Linear(spec.dim, 3 * spec.dim, bias=False)
        self.wo = nn.Linear(spec.dim, spec.dim, bias=False)

    def forward(self, x_BWD: Tensor, rotary_BW2: Tensor, layer: int, attend: Attend) -> Tensor:
        qkv = self.wqkv(x_BWD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(qkv[:2], rotary_BW2)
        return self.wo(attend(layer, q, k, qkv[2]).transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x). Training keeps the matrices apart, as checkpoints do; inference may
    `fuse` w1 and w3.
    """

    both: Tensor | None

    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.w1 = nn.Linear(spec.dim, spec.hidden, bias=False)
        self.w3 = nn.Linear(spec.dim, spec.hidden, bias=False)
        self.w2 = nn.Linear(spec.hidden, spec.dim, bias=False)
        self.register_buffer("both", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.both is None:
            return self.w2(F.silu(self.w1(x)) * self.w3(x))
        wide = F.linear(x, self.both)
        hidden = self.w2.in_features
        return self.w2(F.silu(wide[..., :hidden], inplace=True).mul_(wide[..., hidden:]))

    def fuse(self) -> None:
        """Let one product make gate and up, without a copy of either; w1 and w3 become its halves.

        For weights that are loaded, where they stay, and are not trained.
        """
        self.both = torch.cat((self.w1.weight.detach(), self.w3.weight.detach()))
        self.w1.weight.data, self.w3.weight.data = self.both.chunk(2)


class Block(nn.Module):
    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.attention = Attention(spec)
        self.feed_forward = FeedForward(spec)
        self.attention_norm = RMSNorm(spec.dim, spec.norm_eps)
        self.ffn_norm = RMSNorm(spec.dim, spec.norm_eps)

    def forward(self, x_BWD: Tensor, rotary_BW2: Tensor, layer: int, attend: Attend) -> Tensor:
        x_BWD = x_BWD + self.attention(self.attention_norm(x_BWD), rotary_BW2, layer, attend)
        return x_BWD + self.feed_forward(self.ffn_norm(x_BWD))


class Trunk(nn.Module):
    """Blocks and final norm; names follow LlamaGen's checkpoints (`layers.{i}.attention.wqkv`, ...,
    `norm`).
    """

    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.norm = RMSNorm(spec.dim, spec.norm_eps)

    def fuse(self) -> None:
        """Fuse what can be, for inference: see `FeedForward.fuse`."""
        for module in self.modules():
            if isinstance(module, FeedForward):
                module.fuse()

    def forward(self, x_BWD: Tensor, rotary_BW2: Tensor, attend: Attend) -> Tensor:
        """Hidden states after the final norm, [B, W, D]."""
        for layer, block in enumerate(self.layers):
            x_BWD = block(x_BWD, rotary_BW2, layer, attend)
        return self.norm(x_BWD)


def causal(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of a whole sequence without a cache: training and teacher-forced evaluation."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)
