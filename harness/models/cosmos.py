"""SimpleAR's image tokenizer, Cosmos DV8x16x16: a decoder of one frame, and its checkpoint.

The released network (NVIDIA/Cosmos-Tokenizer) is for video. Its causal convolutions repeat the
first frame backwards in time, so for one frame a kernel acts as the sum of its temporal slices, and
the network is two-dimensional. Codes have no codebook: they are the digits of six small numbers
(finite scalar quantisation, arXiv 2309.15505).

Shapes: B images, C channels, H x W map, h x w codes, V codes, d digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models import checkpoint as checkpoints
from harness.models.stored_names import Layout, fill_from
from harness.models.torchscript import read_torchscript
from harness.models.vq import (
    MISSING,
    AttnBlock,
    ResnetBlock,
    full_precision_convolutions,
    group_norm,
    lay_out_for_rendering,
)
from harness.records import UserError


@dataclass(frozen=True, slots=True)
class CosmosSpec:
    """Dimensions of the tokenizer's decoder; those of the released one are the defaults.

    `levels` are the values that each digit may have, `multipliers` count from the highest
    resolution. Every level but that one doubles the map's sides, and a wavelet step at the end
    doubles them twice.
    """

    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    width: int = 128
    multipliers: tuple[int, ...] = (2, 4, 4)
    blocks: int = 2
    latent: int = 16

    @property
    def codes(self) -> int:
        return prod(self.levels)

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.multipliers) - 1) * _WAVELET_FACTOR


RELEASED = CosmosSpec()

_WAVELET_STEPS = 2
_WAVELET_FACTOR = 2**_WAVELET_STEPS
_BANDS = 8**_WAVELET_STEPS
"""Wavelet bands of a colour: low and high in time, height and width at each step."""

_TIMED_LEVEL = 1
"""The level before whose upsampling the released network doubles the number of frames."""

FILES = ("decoder.jit", "autoencoder.jit")


class Cosmos(nn.Module):
    """The half of the tokenizer that decodes still images.

    Pixels are float32 [B, 3, H, W], nominally in [-1, 1]; codes are int64 [B, N] in raster order.
    """

    def __init__(self, spec: CosmosSpec = RELEASED) -> None:
        super().__init__()
        self.spec = spec
        self.post_quant_conv = nn.Conv2d(len(spec.levels), spec.latent, 1)
        self.decoder = CosmosDecoder(spec)

    @property
    def codebook(self) -> Tensor:
        """Compute the vectors of all codes, [V, d]."""
        code_V = torch.arange(self.spec.codes, device=self.post_quant_conv.weight.device)
        return compute_vectors(code_V, self.spec.levels)

    def for_rendering(self, dtype: torch.dtype = torch.float32) -> Cosmos:
        """Lay the decoder out as convolutions are fastest, and let it compute in `dtype`.

        Returns the tokenizer itself.
        """
        lay_out_for_rendering((self.post_quant_conv, self.decoder), dtype)
        return self

    def decode_bytes(self, codes: int) -> int:
        """Count the bytes that decoding one image of so many codes takes for a moment.

        Five maps of the decoder's largest layer are alive at a time.
        """
        spec = self.spec
        map_sizes = [3 * _BANDS * codes * 4 ** (len(spec.multipliers) - 1)]
        for level, multiplier in enumerate(spec.multipliers):
            doublings = len(spec.multipliers) - 1 - max(0, level - 1)  # it ends by upsampling
            map_sizes.append(spec.width * multiplier * codes * 4**doublings)
        return 5 * max(map_sizes) * self.post_quant_conv.weight.element_size()

    def decode(self, codes_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decode the codes of a grid of (rows, columns) to pixels."""
        codes_Bhw = codes_BN.unflatten(1, grid)
        known_Bhw1 = (codes_Bhw != MISSING).unsqueeze(-1)
        vector_Bhwd = compute_vectors(codes_Bhw.clamp(min=0), self.spec.levels) * known_Bhw1
        z_Bdhw = vector_Bhwd.permute(0, 3, 1, 2).to(self.post_quant_conv.weight.dtype)
        with full_precision_convolutions():
            return self.decoder(self.post_quant_conv(z_Bdhw))


def compute_vectors(codes: Tensor, levels: Sequence[int]) -> Tensor:
    """Compute the vectors of codes [...]: [..., d], float32 in [-1, 1].

    The first digit is the least significant. A digit of L values is (digit - L // 2) / (L // 2).
    """
    numbers = []
    basis = 1
    for count in levels:
        half = count // 2
        digit = codes // basis % count
        numbers.append((digit - half) / half)
        basis *= count
    return torch.stack(numbers, -1)


class CosmosDecoder(nn.Module):
    """[B, latent, h, w] to [B, 3, H, W], without a final activation."""

    def __init__(self, spec: CosmosSpec) -> None:
        super().__init__()
        norm = group_norm(1)
        widths = [spec.width * multiplier for multiplier in reversed(spec.multipliers)]
        self.conv_in = _pair(spec.latent, widths[0])
        self.mid = nn.ModuleList(
            (
                ResnetBlock(widths[0], widths[0], norm, _pair),
                AttnBlock(widths[0], norm),
                AttentionOverOneFrame(widths[0]),
                ResnetBlock(widths[0], widths[0], norm, _pair),
            )
        )
        self.up = nn.ModuleList()
        c_in = widths[0]
        for i, c_out in enumerate(widths):
            level = len(widths) - 1 - i
            for _ in range(spec.blocks + 1):
                self.up.append(ResnetBlock(c_in, c_out, norm, _pair))
                c_in = c_out
            if level > 0:
                self.up.append(ResidualUpsample(c_out, timed=level == _TIMED_LEVEL))
        self.norm_out = norm(widths[-1])
        self.conv_out = _pair(widths[-1], 3 * _BANDS)

    def forward(self, z_BChw: Tensor) -> Tensor:
        h = self.conv_in(z_BChw)
        for part in (*self.mid, *self.up):
            h = part(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        for _ in range(_WAVELET_STEPS):
            h = invert_haar(h)
        return h


class AttentionOverOneFrame(nn.Module):
    """Attention over time where there is one frame: it attends to itself, whatever the query."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(1)(channels)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj_out(self.v(self.norm(x)))


class ResidualUpsample(nn.Module):
    """Nearest-neighbour doubling, a convolution added to its input, and a linear map.

    A `timed` one has what the network does before it doubles the number of frames.
    """

    def __init__(self, channels: int, timed: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1) if timed else None
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv3 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv1 is not None:
            x = x + self.conv1(x)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv3(x + self.conv2(x))


def invert_haar(x_BCHW: Tensor) -> Tensor:
    """Invert one wavelet step of the later frame: [B, 8 C, H, W] to [B, C, 2 H, 2 W].

    Channels are low and high in time, then in height, then in width. A pair of numbers becomes sum
    and difference over the square root of 2, and the three of them are scaled by its cube.
    """
    low_BCHW, high_BCHW = x_BCHW.chunk(2, 1)
    later_BCHW = low_BCHW - high_BCHW
    upper, lower = _sum_and_difference(later_BCHW)
    rows_BCHW = torch.stack((upper, lower), 3).flatten(2, 3)
    left, right = _sum_and_difference(rows_BCHW)
    return torch.stack((left, right), 4).flatten(3, 4)


def _sum_and_difference(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    low_BCHW, high_BCHW = x_BCHW.chunk(2, 1)
    return low_BCHW + high_BCHW, low_BCHW - high_BCHW


def _pair(c_in: int, c_out: int) -> nn.Module:
    """The released network's convolution over space, and then over time."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.Conv2d(c_out, c_out, 1))


# ------------------------------------------------------------------ checkpoints


def find_file(path: Path) -> Path:
    """Find the decoder's file: the path itself, or one of `FILES` in the folder `path`.

    Raises UserError if there is none.
    """
    if path.is_file():
        return path
    for name in (*FILES, "decoder.safetensors"):
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"{path} has none of {', '.join(FILES)}: "
        "set model.tokenizer_checkpoint to the file of the Cosmos tokenizer"
    )


def load(path: Path, spec: CosmosSpec = RELEASED) -> Cosmos:
    """Read the decoder in float32 from a TorchScript archive, which is not run, or a safetensors.

    Raises UserError for a file that is damaged or of another tokenizer.
    """
    file = find_file(path)
    is_archive = file.suffix == ".jit"
    state = read_torchscript(file) if is_archive else checkpoints.read_file(file)
    with torch.device("meta"):
        cosmos = Cosmos(spec)
    fill_from(cosmos, state, file, layout(spec), _to_one_frame)
    return cosmos.eval().requires_grad_(False)


def layout(spec: CosmosSpec) -> Layout:
    """Return where the released network stores the decoder's tensors.

    Not needed are the encoder, what TorchScript keeps of the quantiser and the wavelets, queries
    and keys of the attention over time, and the kernels that nothing is left to do for.
    """
    rules = []
    position = 0
    for level in reversed(range(len(spec.multipliers))):
        for block in range(spec.blocks + 1):
            rules.append((rf"^decoder\.up\.{position}\.", f"decoder.UP.{level}.block.{block}."))
            position += 1
        if level > 0:
            rules.append((rf"^decoder\.up\.{position}\.", f"decoder.UP.{level}.upsample."))
            position += 1
    rules += [
        (r"\.UP\.", ".up."),
        (r"\.mid\.0\.", ".mid.block_1."),
        (r"\.mid\.1\.", ".mid.attn_1.0."),
        (r"\.mid\.2\.", ".mid.attn_1.1."),
        (r"\.mid\.3\.", ".mid.block_2."),
        (r"(norm\w*)\.(weight|bias)$", r"\1.norm.\2"),
        (r"(?<!\.norm)\.(weight|bias)$", r".conv3d.\1"),
    ]
    not_needed = (
        r"encoder\.|quant_conv\.|quantizer\.|inv_quant\.|decoder\.unpatcher\w*\."
        r"|decoder\.mid\.attn_1\.1\.(q|k)\.|decoder\.up\.\d+\.upsample\.conv1\."
    )
    return Layout(tuple(rules), not_needed)


def _to_one_frame(_name: str, kernel: Tensor) -> Tensor:
    """A kernel as it acts on a single frame: the sum of its temporal slices."""
    return kernel.float().sum(2) if kernel.ndim == 5 else kernel
