"""The convolutional VQ tokenizer of LlamaGen (taming-transformers kind): encoder, codebook,
decoder.

LlamaGen's `vq_ds16_t2i` is `VQSpec()`; the embedded tokenizer is the same classes at small width.
Shapes: B images, C channels, N codes per image in raster order, V codebook rows, d code width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MISSING = -1
"""Stands for a code that is not drawn yet; it decodes from a zero latent vector."""


@dataclass(frozen=True, slots=True)
class VQSpec:
    """Dimensions of a tokenizer; defaults are LlamaGen's `vq_ds16_t2i` (downsampling 16, 16384
    codes of 8 numbers).
    """

    codes: int = 16384
    code_dim: int = 8
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    latent: int = 256
    groups: int = 32

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.multipliers) - 1)


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(c_in, groups)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = _norm(c_out, groups)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AttnBlock(nn.Module):
    """Single-head attention over all positions of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2).unsqueeze(1) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
        return x + self.proj_out(mixed.reshape(x.shape))


class Downsample(nn.Module):
    """Stride-2 convolution after one zero column on the right and one zero row at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, with attention where the resolution is lowest, then a
    resampling.
    """

    def __init__(self, c_in: int, c_out: int, blocks: int, groups: int, lowest: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            ResnetBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(blocks)
        )
        self.attn = nn.ModuleList(
            AttnBlock(c_out, groups) if lowest else nn.Identity() for _ in range(blocks)
        )
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block, attn in zip(self.res, self.attn, strict=True):
            x = attn(block(x))
        return self.upsample(self.downsample(x))


def _middle(channels: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(
        (
            ResnetBlock(channels, channels, groups),
            AttnBlock(channels, groups),
            ResnetBlock(channels, channels, groups),
        )
    )


class Encoder(nn.Module):
    def __init__(self, spec: VQSpec) -> None:
        super().__init__()
        widths = [spec.width * m for m in spec.multipliers]
        self.conv_in = nn.Conv2d(3, spec.width, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, c_out in enumerate(widths):
            last = i == len(widths) - 1
            c_in = widths[max(i - 1, 0)]
            level = Level(c_in, c_out, spec.blocks, spec.groups, lowest=last)
            if not last:
                level.downsample = Downsample(c_out)
            self.conv_blocks.append(level)
        self.mid = _middle(widths[-1], spec.groups)
        self.norm_out = _norm(widths[-1], spec.groups)
        self.conv_out = nn.Conv2d(widths[-1], spec.latent, 3, padding=1)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        h = self.conv_in(x_B3HW)
        for part in (*self.conv_blocks, *self.mid):
            h = part(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Mirror of the encoder; `conv_blocks` counts from the lowest resolution upwards. No final
    activation.
    """

    def __init__(self, spec: VQSpec) -> None:
        super().__init__()
        widths = [spec.width * m for m in reversed(spec.multipliers)]
        self.conv_in = nn.Conv2d(spec.latent, widths[0], 3, padding=1)
        self.mid = _middle(widths[0], spec.groups)
        self.conv_blocks = nn.ModuleList()
        for i, c_out in enumerate(widths):
            last = i == len(widths) - 1
            c_in = widths[max(i - 1, 0)]
            level = Level(c_in, c_out, spec.blocks + 1, spec.groups, lowest=i == 0)
            if not last:
                level.upsample = Upsample(c_out)
            self.conv_blocks.append(level)
        self.norm_out = _norm(widths[-1], spec.groups)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z_BChw: Tensor) -> Tensor:
        h = self.conv_in(z_BChw)
        for part in (*self.mid, *self.conv_blocks):
            h = part(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Quantizer(nn.Module):
    """Codebook whose rows are scaled to unit length at every look-up (LlamaGen `vq_model.py`,
    l2-normalised codes).
    """

    def __init__(self, spec: VQSpec) -> None:
        super().__init__()
        self.embedding = nn.Embedding(spec.codes, spec.code_dim)

    def rows(self) -> Tensor:
        """Unit-length codebook, [V, d]."""
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, z_BdHW: Tensor) -> Tensor:
        """Index of the row with the largest cosine at every position, int64 [B, h, w]."""
        return (F.normalize(z_BdHW, dim=1).permute(0, 2, 3, 1) @ self.rows().T).argmax(-1)

    def lookup(self, codes_Bhw: Tensor) -> Tensor:
        """Unit-length code vectors [B, d, h, w]; zero vectors where a code is `MISSING`."""
        known = (codes_Bhw != MISSING).unsqueeze(-1)
        return (F.embedding(codes_Bhw.clamp(min=0), self.rows()) * known).permute(0, 3, 1, 2)


class VQ(nn.Module):
    """Image tokenizer. Pixels are float32 in [-1, 1], [B, 3, H, W]; codes are int64 [B, N] in
    raster order.
    """

    def __init__(self, spec: VQSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)
        self.quantize = Quantizer(spec)
        self.quant_conv = nn.Conv2d(spec.latent, spec.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(spec.code_dim, spec.latent, 1)

    def for_rendering(self, dtype: torch.dtype = torch.float32) -> VQ:
        """Lay the decoder out as convolutions are fastest, and let it compute in `dtype`.

        Encoder and codebook stay as they are. Training and fixtures of intermediate values need
        none of it.
        """
        for part in (self.decoder, self.post_quant_conv):
            part.to(dtype).to(memory_format=torch.channels_last)
        return self

    def decode_bytes(self, codes: int) -> int:
        """Working memory of decoding one image of so many codes: five maps of its largest layer are
        alive.
        """
        pixels = codes * self.spec.downsampling**2
        widths = (self.spec.width * multiplier for multiplier in self.spec.multipliers)
        largest = max(width * pixels // 4 ** max(0, i - 1) for i, width in enumerate(widths))
        return 5 * largest * self.post_quant_conv.weight.element_size()

    def encode(self, x_B3HW: Tensor) -> Tensor:
        return self.quantize.nearest(self.quant_conv(self.encoder(x_B3HW))).flatten(1)

    def decode(self, codes_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.decode_latent(self.quantize.lookup(codes_BN.unflatten(1, grid)))

    def decode_latent(self, z_Bdhw: Tensor) -> Tensor:
        """Pixels in the type the decoder computes in; float32 is float32 on a GPU too, not its
        TF32.
        """
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return self.decoder(self.post_quant_conv(z_Bdhw.to(self.post_quant_conv.weight.dtype)))


def to_uint8(x_B3HW: Tensor) -> Tensor:
    """Pixels in [-1, 1] to uint8 [B, H, W, 3] by LlamaGen's batch rule: 127.5 x + 128, clamped and
    truncated.
    """
    return (127.5 * x_B3HW.float() + 128.0).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
