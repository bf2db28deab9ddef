"""Image decoders written again from other parts, for tests/test_image_decoders.py.

Cosmos in three dimensions as it was released, wavelets included; Chameleon's decoder out of the
transformers library's blocks, which has its encoder only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    """A convolution that is causal in time: the first frame is repeated before it."""

    def __init__(self, c_in: int, c_out: int, time: int, side: int) -> None:
        super().__init__()
        self.before = time - 1
        self.around = side // 2
        self.conv3d = nn.Conv3d(c_in, c_out, (time, side, side))

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, :, :1].repeat(1, 1, self.before, 1, 1)
        x = torch.cat((first, x), 2)
        around = self.around
        return self.conv3d(F.pad(x, (around, around, around, around)))


def pair(c_in: int, c_out: int) -> nn.Module:
    return nn.Sequential(Conv(c_in, c_out, 1, 3), Conv(c_out, c_out, 3, 1))


class Norm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.permute(0, 2, 1, 3, 4)
        normed = self.norm(frames.flatten(0, 1))
        return normed.unflatten(0, frames.shape[:2]).permute(0, 2, 1, 3, 4)


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1 = Norm(c_in)
        self.conv1 = pair(c_in, c_out)
        self.norm2 = Norm(c_out)
        self.conv2 = pair(c_out, c_out)
        self.nin_shortcut = Conv(c_in, c_out, 1, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        h = self.conv1(h * torch.sigmoid(h))
        h = self.norm2(h)
        h = self.conv2(h * torch.sigmoid(h))
        return self.nin_shortcut(x) + h


class Attention(nn.Module):
    """Attention over the positions of a frame, or over the frames of a position (causal)."""

    def __init__(self, channels: int, over_time: bool) -> None:
        super().__init__()
        self.over_time = over_time
        self.norm = Norm(channels)
        self.q = Conv(channels, channels, 1, 1)
        self.k = Conv(channels, channels, 1, 1)
        self.v = Conv(channels, channels, 1, 1)
        self.proj_out = Conv(channels, channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = self._sequences(self.q(h)), self._sequences(self.k(h)), self._sequences(self.v(h))
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        if self.over_time:
            is_later = torch.ones(scores.shape[-2:]).triu(1) > 0
            scores = scores.masked_fill(is_later, -math.inf)
        mixed = scores.softmax(-1) @ v
        batch, channels, time, height, width = x.shape
        if self.over_time:
            back = mixed.reshape(batch, height, width, time, channels).permute(0, 4, 3, 1, 2)
        else:
            back = mixed.reshape(batch, time, height, width, channels).permute(0, 4, 1, 2, 3)
        return x + self.proj_out(back)

    def _sequences(self, x: Tensor) -> Tensor:
        if self.over_time:
            return x.permute(0, 3, 4, 2, 1).flatten(0, 2)
        return x.permute(0, 2, 3, 4, 1).flatten(0, 1).flatten(1, 2)


class Upsample(nn.Module):
    def __init__(self, channels: int, timed: bool) -> None:
        super().__init__()
        self.timed = timed
        self.conv1 = Conv(channels, channels, 3, 1)
        self.conv2 = Conv(channels, channels, 1, 3)
        self.conv3 = Conv(channels, channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.timed:
            x = self.conv1(x) + x
        x = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
        return self.conv3(self.conv2(x) + x)


class CosmosDecoder(nn.Module):
    """Cosmos' decoder of one frame in three dimensions, with the released names."""

    def __init__(self, width: int, multipliers: tuple[int, ...], latent: int) -> None:
        super().__init__()
        widths = [width * multiplier for multiplier in multipliers]
        self.conv_in = pair(latent, widths[-1])
        self.mid = nn.Module()
        self.mid.block_1 = Block(widths[-1], widths[-1])
        self.mid.attn_1 = nn.Sequential(Attention(widths[-1], False), Attention(widths[-1], True))
        self.mid.block_2 = Block(widths[-1], widths[-1])
        levels = []
        for level, c_out in enumerate(widths):
            c_in = widths[min(level + 1, len(widths) - 1)]
            part = nn.Module()
            part.block = nn.Sequential(Block(c_in, c_out), Block(c_out, c_out), Block(c_out, c_out))
            if level:
                part.upsample = Upsample(c_out, timed=level == 1)
            levels.append(part)
        self.up = nn.ModuleList(levels)
        self.norm_out = Norm(widths[0])
        self.conv_out = pair(widths[0], 192)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(self.conv_in(z))))
        for level in reversed(range(len(self.up))):
            h = self.up[level].block(h)
            if level:
                h = self.up[level].upsample(h)
        h = self.norm_out(h)
        h = self.conv_out(h * torch.sigmoid(h))
        for _ in range(2):
            h = invert_haar(h)
        return h[:, :, 3:]


def invert_haar(x: Tensor) -> Tensor:
    """One step over time, height and width, by transposed convolutions with both filters."""
    low = torch.tensor([1.0, 1.0], dtype=x.dtype) / math.sqrt(2)
    high = torch.tensor([1.0, -1.0], dtype=x.dtype) / math.sqrt(2)
    channels = x.shape[1] // 8
    total = torch.zeros(1, dtype=x.dtype)
    for band, part in enumerate(x.chunk(8, 1)):
        filters = [high if band >> shift & 1 else low for shift in (2, 1, 0)]
        kernel = torch.einsum("t,h,w->thw", *filters).expand(channels, 1, 2, 2, 2)
        total = total + F.conv_transpose3d(part, kernel, stride=2, groups=channels)
    return total * 2 * math.sqrt(2)


class CosmosTokenizer(nn.Module):
    """What the released archive holds: a quantiser's buffers, and the decoder."""

    def __init__(self, levels: tuple[int, ...], width: int, latent: int) -> None:
        super().__init__()
        self.inv_quant = nn.Module()
        self.inv_quant.quantizer = nn.Module()
        self.inv_quant.quantizer.register_buffer("_levels", torch.tensor(levels))
        self.post_quant_conv = Conv(len(levels), latent, 1, 1)
        self.decoder = CosmosDecoder(width, (2, 4, 4), latent)

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


class ChameleonDecoder(nn.Module):
    """The decoder that transformers' `ChameleonVQVAE` lacks, of the blocks of its encoder."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers.models.chameleon import modeling_chameleon as library

        block = library.ChameleonVQVAEEncoderResnetBlock
        widths = [config.base_channels * one for one in config.channel_multiplier]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = nn.Module()
        self.mid.block_1 = block(config, widths[-1], widths[-1])
        self.mid.attn_1 = library.ChameleonVQVAEEncoderAttnBlock(widths[-1])
        self.mid.block_2 = block(config, widths[-1], widths[-1])
        self.up = nn.ModuleList()
        for level, c_out in enumerate(widths):
            c_in = widths[min(level + 1, len(widths) - 1)]
            part = nn.Module()
            part.block = nn.ModuleList([block(config, c_in, c_out)])
            for _ in range(config.num_res_blocks):
                part.block.append(block(config, c_out, c_out))
            if level:
                part.upsample = nn.Module()
                part.upsample.conv = nn.Conv2d(c_out, c_out, 3, padding=1)
            self.up.append(part)
        self.norm_out = nn.GroupNorm(32, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(self.conv_in(z))))
        for level in reversed(range(len(self.up))):
            for block in self.up[level].block:
                h = block(h)
            if level:
                h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
                h = self.up[level].upsample.conv(h)
        h = self.norm_out(h)
        return self.conv_out(h * torch.sigmoid(h))


@torch.no_grad()
def spread_out(module: nn.Module, seed: int) -> None:
    """Give a module weights whose maps have numbers of about one everywhere, norms included."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim == 1:
            is_weight = name.endswith("weight")
            tensor.normal_(float(is_weight), 0.3, generator=generator)
        else:
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
