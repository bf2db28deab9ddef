"""Convolutional VQ tokenizers of the taming-transformers kind: encoder, codebook, decoder.

LlamaGen's `vq_ds16_t2i` is `VQSpec()`; the embedded tokenizer is the same classes at small width,
Chameleon's (`harness.models.chameleon_vq`) has other settings. The blocks serve Emu3's and Cosmos'
decoders too, with norms and convolutions of their own.

Shapes: B images, C channels, N codes per image in raster order, V codebook rows, d code width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.finite import note_pixels

MISSING = -1
"""Stands for a code that is not drawn yet; it decodes from a zero latent vector."""

MakeNorm = Callable[[int], nn.Module]
"""Makes the norm of so many channels; it is called with a feature map, and all that follows it."""

MakeConv = Callable[[int, int], nn.Module]
"""Makes a convolution that keeps a map's height and width, from its channels in and out."""


@dataclass(frozen=True, slots=True)
class VQSpec:
    """Dimensions of a tokenizer.

    Defaults are LlamaGen's `vq_ds16_t2i` (downsampling 16, 16384 codes of 8 numbers).
    `unit_length` scales code vectors at every look-up, `lowest_attention` attends behind each
    residual block at the lowest resolution too, and not in the middle only. Raises ValueError for
    sizes that no tokenizer has.
    """

    codes: int = 16384
    code_dim: int = 8
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    latent: int = 256
    groups: int = 32
    unit_length: bool = True
    lowest_attention: bool = True

    def __post_init__(self) -> None:
        sizes = (self.codes, self.code_dim, self.width, self.blocks, self.latent, self.groups)
        if not self.multipliers or min(*sizes, *self.multipliers) < 1:
            raise ValueError("a tokenizer's sizes must be at least 1")
        for multiplier in self.multipliers:
            if self.width * multiplier % self.groups:
                raise ValueError(
                    f"a width of {self.width * multiplier} is no multiple of {self.groups} groups"
                )

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.multipliers) - 1)


class VQ(nn.Module):
    """An image tokenizer.

    Pixels are float32 in [-1, 1], [B, 3, H, W]; codes are int64 [B, N] in raster order. Without
    `encodes` it has no encoder, and only decodes.
    """

    def __init__(self, spec: VQSpec, *, encodes: bool = True) -> None:
        super().__init__()
        self.spec = spec
        if encodes:
            self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)
        self.quantize = Quantizer(spec.codes, spec.code_dim, spec.unit_length)
        if encodes:
            self.quant_conv = nn.Conv2d(spec.latent, spec.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(spec.code_dim, spec.latent, 1)

    @property
    def codebook(self) -> Tensor:
        """Return the code vectors, [V, d]."""
        return self.quantize.rows()

    def for_rendering(self, dtype: torch.dtype = torch.float32) -> VQ:
        """Lay the decoder out as convolutions are fastest, and let it compute in `dtype`.

        Encoder and codebook stay as they are. Training and fixtures of intermediate values need
        none of it. Returns the tokenizer itself.
        """
        lay_out_for_rendering((self.decoder, self.post_quant_conv), dtype)
        return self

    def decode_bytes(self, codes: int) -> int:
        """Count the bytes that decoding one image of so many codes takes for a moment."""
        return count_decoder_bytes(self.spec, codes, self.post_quant_conv.weight.dtype)

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
        with full_precision_convolutions():
            return self.decoder(self.post_quant_conv(z_Bdhw))


# ------------------------------------------------------------------ what all decoders need


def lay_out_for_rendering(parts: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Lay convolutions out as they are fastest, and let them compute in `dtype`."""
    for part in parts:
        part.to(dtype).to(memory_format=torch.channels_last)


def full_precision_convolutions() -> AbstractContextManager[None]:
    """Return a context in which float32 convolutions are float32 on a GPU too, not its TF32."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def count_decoder_bytes(spec: VQSpec, codes: int, dtype: torch.dtype) -> int:
    """Count the bytes that a `Decoder` takes for a moment, for one image of so many codes.

    Five maps of its largest layer are alive at a time.
    """
    pixels = codes * spec.downsampling**2
    map_sizes = []
    for level, multiplier in enumerate(spec.multipliers):
        halvings = max(0, level - 1)  # it ends by upsampling to the next finer level
        map_sizes.append(spec.width * multiplier * pixels // 4**halvings)
    return 5 * max(map_sizes) * dtype.itemsize


def to_uint8(x_B3HW: Tensor) -> Tensor:
    """Round pixels in [-1, 1] to uint8 [B, H, W, 3] by LlamaGen's batch rule.

    It is 127.5 x + 128, clamped and truncated.
    """
    note_pixels(x_B3HW)
    scaled = 127.5 * x_B3HW.float() + 128.0
    return scaled.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def truncate_to_uint8(x_B3HW: Tensor) -> Tensor:
    """Truncate pixels in [-1, 1] to uint8 [B, H, W, 3], by the rule of Janus, Lumina and Emu3.

    It is (x + 1) / 2 * 255, clipped and truncated.
    """
    note_pixels(x_B3HW)
    scaled = (x_B3HW.float() + 1) / 2 * 255
    return scaled.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def round_to_uint8(x_B3HW: Tensor) -> Tensor:
    """Round pixels in [-1, 1] to uint8 [B, H, W, 3], as torchvision's `save_image` does.

    It is (x + 1) / 2 * 255 + 0.5 of clamped pixels, truncated.
    """
    note_pixels(x_B3HW)
    scaled = (x_B3HW.float().clamp(-1, 1) + 1) / 2 * 255 + 0.5
    return scaled.to(torch.uint8).permute(0, 2, 3, 1)


def look_up(codes_Bhw: Tensor, rows_Vd: Tensor) -> Tensor:
    """Look up code vectors [B, d, h, w]; zero where a code is `MISSING`."""
    known_Bhw1 = (codes_Bhw != MISSING).unsqueeze(-1)
    vector_Bhwd = F.embedding(codes_Bhw.clamp(min=0), rows_Vd)
    return (vector_Bhwd * known_Bhw1).permute(0, 3, 1, 2)


# ------------------------------------------------------------------ parts of a tokenizer


class Quantizer(nn.Module):
    """A codebook.

    Its rows are as they are stored, or scaled to unit length at every look-up (LlamaGen
    `vq_model.py`).
    """

    def __init__(self, codes: int, code_dim: int, unit_length: bool) -> None:
        super().__init__()
        self.unit_length = unit_length
        self.embedding = nn.Embedding(codes, code_dim)

    def rows(self) -> Tensor:
        """Return the code vectors, [V, d]."""
        stored_Vd = self.embedding.weight
        return F.normalize(stored_Vd, dim=-1) if self.unit_length else stored_Vd

    def nearest(self, z_Bdhw: Tensor) -> Tensor:
        """Find the nearest row at every position, int64 [B, h, w].

        It is the one of the largest cosine where rows have unit length.
        """
        rows_Vd = self.rows()
        if self.unit_length:
            unit_Bhwd = F.normalize(z_Bdhw, dim=1).permute(0, 2, 3, 1)
            return (unit_Bhwd @ rows_Vd.T).argmax(-1)
        half_square_V = rows_Vd.square().sum(-1) / 2
        return (z_Bdhw.permute(0, 2, 3, 1) @ rows_Vd.T - half_square_V).argmax(-1)

    def lookup(self, codes_Bhw: Tensor) -> Tensor:
        """Look up code vectors [B, d, h, w]; zero where a code is `MISSING`."""
        return look_up(codes_Bhw, self.rows())


class Encoder(nn.Module):
    """Residual levels from full resolution down to the latent, [B, 3, H, W] to [B, latent, h, w].

    Every level but the last halves the resolution.
    """

    def __init__(self, spec: VQSpec) -> None:
        super().__init__()
        widths = [spec.width * multiplier for multiplier in spec.multipliers]
        norm = group_norm(spec.groups)
        self.conv_in = nn.Conv2d(3, spec.width, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, c_out in enumerate(widths):
            is_last = i == len(widths) - 1
            c_in = widths[max(i - 1, 0)]
            attends = is_last and spec.lowest_attention
            level = Level(c_in, c_out, spec.blocks, norm, attends=attends)
            if not is_last:
                level.downsample = Downsample(c_out)
            self.conv_blocks.append(level)
        self.mid = _middle_blocks(widths[-1], norm)
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], spec.latent, 3, padding=1)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        h = self.conv_in(x_B3HW)
        for part in (*self.conv_blocks, *self.mid):
            h = part(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """The encoder's mirror image, [B, latent, h, w] to [B, 3, H, W], without a final activation.

    `conv_blocks` counts from the lowest resolution upwards. Norms are group norms, unless `norm`
    makes others; what follows the latent in a call is handed to all of them.
    """

    def __init__(self, spec: VQSpec, norm: MakeNorm | None = None) -> None:
        super().__init__()
        norm = norm or group_norm(spec.groups)
        widths = [spec.width * multiplier for multiplier in reversed(spec.multipliers)]
        self.conv_in = nn.Conv2d(spec.latent, widths[0], 3, padding=1)
        self.mid = _middle_blocks(widths[0], norm)
        self.conv_blocks = nn.ModuleList()
        for i, c_out in enumerate(widths):
            is_last = i == len(widths) - 1
            c_in = widths[max(i - 1, 0)]
            attends = i == 0 and spec.lowest_attention
            level = Level(c_in, c_out, spec.blocks + 1, norm, attends=attends)
            if not is_last:
                level.upsample = Upsample(c_out)
            self.conv_blocks.append(level)
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z_BChw: Tensor, *for_norms: Tensor) -> Tensor:
        h = self.conv_in(z_BChw)
        for part in (*self.mid, *self.conv_blocks):
            h = part(h, *for_norms)
        return self.conv_out(F.silu(self.norm_out(h, *for_norms)))


class Level(nn.Module):
    """Residual blocks at one resolution, each with attention behind it or none; a resampling."""

    def __init__(self, c_in: int, c_out: int, blocks: int, norm: MakeNorm, attends: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            ResnetBlock(c_in if i == 0 else c_out, c_out, norm) for i in range(blocks)
        )
        self.attn = nn.ModuleList(
            AttnBlock(c_out, norm) if attends else nn.Identity() for _ in range(blocks)
        )
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor, *for_norms: Tensor) -> Tensor:
        for block, attn in zip(self.res, self.attn, strict=True):
            x = block(x, *for_norms)
            if isinstance(attn, AttnBlock):
                x = attn(x, *for_norms)
        return self.upsample(self.downsample(x))


def _convolve_3x3(c_in: int, c_out: int) -> nn.Module:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


class ResnetBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, each behind a norm and an activation."""

    def __init__(
        self, c_in: int, c_out: int, norm: MakeNorm, conv: MakeConv = _convolve_3x3
    ) -> None:
        super().__init__()
        self.norm1 = norm(c_in)
        self.conv1 = conv(c_in, c_out)
        self.norm2 = norm(c_out)
        self.conv2 = conv(c_out, c_out)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, *for_norms: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x, *for_norms)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h, *for_norms)))


class AttnBlock(nn.Module):
    """Single-head attention over all positions of a feature map."""

    def __init__(self, channels: int, norm: MakeNorm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, *for_norms: Tensor) -> Tensor:
        h = self.norm(x, *for_norms)
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


def group_norm(groups: int) -> MakeNorm:
    """Return what makes group norms of so many groups."""
    return partial(nn.GroupNorm, groups, eps=1e-6)


def _middle_blocks(channels: int, norm: MakeNorm) -> nn.ModuleList:
    """The blocks at the lowest resolution, between encoder or decoder levels and the latent."""
    return nn.ModuleList(
        (
            ResnetBlock(channels, channels, norm),
            AttnBlock(channels, norm),
            ResnetBlock(channels, channels, norm),
        )
    )


def _as_sequence(x_BChw: Tensor) -> Tensor:
    """A feature map as one head's sequence of positions, [B, 1, hw, C]."""
    return x_BChw.flatten(2).transpose(1, 2).unsqueeze(1)
