"""LlamaGen's convolutional VQ tokenizer (taming-transformers kind): encoder, codebook, decoder.

LlamaGen's `vq_ds16_t2i` is `VQSpec()`; the embedded tokenizer is the same classes at small width.

Shapes: B images, C channels, N codes per image in raster order, V codebook rows, d code width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.finite import note_pixels

MISSING = -1
"""Stands for a code that is not drawn yet; it decodes from a zero latent vector."""


@dataclass(frozen=True, slots=True)
class VQSpec:
    """Dimensions of a tokenizer.

    Defaults are LlamaGen's `vq_ds16_t2i` (downsampling 16, 16384 codes of 8 numbers).
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


class VQ(nn.Module):
    """An image tokenizer.

    Pixels are float32 in [-1, 1], [B, 3, H, W]; codes are int64 [B, N] in raster order.
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
        none of it. Returns the tokenizer itself.
        """
        for part in (self.decoder, self.post_quant_conv):
            part.to(dtype).to(memory_format=torch.channels_last)
        return self

    def decode_bytes(self, codes: int) -> int:
        """Count the bytes that decoding one image of so many codes takes for a moment.

        Five maps of the decoder's largest layer are alive at a time.
        """
        pixels = codes * self.spec.downsampling**2
        map_sizes = []
        for level, multiplier in enumerate(self.spec.multipliers):
            halvings = max(0, level - 1)  # it ends by upsampling to the next finer level
            map_sizes.append(self.spec.width * multiplier * pixels // 4**halvings)
        return 5 * max(map_sizes) * self.post_quant_conv.weight.element_size()

    def encode(self, x_B3HW: Tensor) -> Tensor:
        """Encode pixels as codes [B, N]."""
        latent_Bdhw = self.quant_conv(self.encoder(x_B3HW))
        return self.quantize.nearest(latent_Bdhw).flatten(1)

    def decode(self, codes_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decode the codes of a grid of (rows, columns) to pixels."""
        codes_Bhw = codes_BN.unflatten(1, grid)
        return self.decode_latent(self.quantize.lookup(codes_Bhw))

    def decode_latent(self, z_Bdhw: Tensor) -> Tensor:
        """Decode code vectors to pixels, in the type that the decoder computes in.

        float32 is float32 on a GPU too, not its TF32.
        """
        z_Bdhw = z_Bdhw.to(self.post_quant_conv.weight.dtype)
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return self.decoder(self.post_quant_conv(z_Bdhw))


def to_uint8(x_B3HW: Tensor) -> Tensor:
    """Round pixels in [-1, 1] to uint8 [B, H, W, 3] by LlamaGen's batch rule.

    It is 127.5 x + 128, clamped and truncated.
    """
    note_pixels(x_B3HW)
    scaled = 127.5 * x_B3HW.float() + 128.0
    return scaled.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


class Quantizer(nn.Module):
    """A codebook whose rows are scaled to unit length at every look-up (LlamaGen `vq_model.py`)."""

    def __init__(self, spec: VQSpec) -> None:
        super().__init__()
        self.embedding = nn.Embedding(spec.codes, spec.code_dim)

    def rows(self) -> Tensor:
        """Scale the codebook to unit length, [V, d]."""
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, z_Bdhw: Tensor) -> Tensor:
        """Find the row with the largest cosine at every position, int64 [B, h, w]."""
        unit_Bhwd = F.normalize(z_Bdhw, dim=1).permute(0, 2, 3, 1)
        return (unit_Bhwd @ self.rows().T).argmax(-1)

    def lookup(self, codes_Bhw: Tensor) -> Tensor:
        """Look up unit-length code vectors [B, d, h, w]; zero where a code is `MISSING`."""
        known_Bhw1 = (codes_Bhw != MISSING).unsqueeze(-1)
        vector_Bhwd = F.embedding(codes_Bhw.clamp(min=0), self.rows())
        return (vector_Bhwd * known_Bhw1).permute(0, 3, 1, 2)


class Encoder(nn.Module):
    """Residual levels from full resolution down to the latent, [B, 3, H, W] to [B, latent, h, w].

    Every level but the last halves the resolution.
    """

    def __init__(self, spec: VQSpec) -> None:
        super().__init__()
        widths = [spec.width * multiplier for multiplier in spec.multipliers]
        self.conv_in = nn.Conv2d(3, spec.width, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, c_out in enumerate(widths):
            is_last = i == len(widths) - 1
            c_in = widths[max(i - 1, 0)]
            level = Level(c_in, c_out, spec.blocks, spec.groups, lowest=is_last)
            if not is_last:
                level.downsample = Downsample(c_out)
            self.conv_blocks.append(level)
        self.mid = _middle_blocks(widths[-1], spec.groups)
        self.norm_out = _group_norm(widths[-1], spec.groups)
        self.conv_out = nn.Conv2d(widths[-1], spec.latent, 3, padding=1)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        h = self.conv_in(x_B3HW)
        for part in (*self.conv_blocks, *self.mid):
            h = part(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """The encoder's mirror image, [B, latent, h, w] to [B, 3, H, W], without a final activation.

    `conv_blocks` counts from the lowest resolution upwards.
    """

    def __init__(self, spec: VQSpec) -> None:
        super().__init__()
        widths = [spec.width * multiplier for multiplier in reversed(spec.multipliers)]
        self.conv_in = nn.Conv2d(spec.latent, widths[0], 3, padding=1)
        self.mid = _middle_blocks(widths[0], spec.groups)
        self.conv_blocks = nn.ModuleList()
        for i, c_out in enumerate(widths):
            is_last = i == len(widths) - 1
            c_in = widths[max(i - 1, 0)]
            level = Level(c_in, c_out, spec.blocks + 1, spec.groups, lowest=i == 0)
            if not is_last:
                level.upsample = Upsample(c_out)
            self.conv_blocks.append(level)
        self.norm_out = _group_norm(widths[-1], spec.groups)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z_BChw: Tensor) -> Tensor:
        h = self.conv_in(z_BChw)
        for part in (*self.mid, *self.conv_blocks):
            h = part(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Level(nn.Module):
    """Residual blocks at one resolution, then a resampling; with attention at the lowest one."""

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


class ResnetBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, each behind a norm and an activation."""

    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _group_norm(c_in, groups)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = _group_norm(c_out, groups)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AttnBlock(nn.Module):
    """Single-head attention over all positions of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q = _as_sequence(self.q(h))
        k = _as_sequence(self.k(h))
        v = _as_sequence(self.v(h))
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
    """Nearest-neighbour doubling of the resolution, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _group_norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _middle_blocks(channels: int, groups: int) -> nn.ModuleList:
    """The blocks at the lowest resolution, between encoder or decoder levels and the latent."""
    return nn.ModuleList(
        (
            ResnetBlock(channels, channels, groups),
            AttnBlock(channels, groups),
            ResnetBlock(channels, channels, groups),
        )
    )


def _as_sequence(x_BChw: Tensor) -> Tensor:
    """A feature map as one head's sequence of positions, [B, 1, hw, C]."""
    return x_BChw.flatten(2).transpose(1, 2).unsqueeze(1)
