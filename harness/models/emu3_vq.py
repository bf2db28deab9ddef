"""Emu3's image tokenizer: a decoder of one frame, two-dimensional throughout, and its checkpoints.

The released network is for video and makes four frames of a code map, of which an image is the
first. All its temporal kernels are causal, with zeros before the first frame: for that frame a
kernel acts as its last temporal slice, so a 3 x 3 x 3 convolution is a 3 x 3 one. The rest is
`harness.models.vq` with norms that are modulated by the code map (MoVQ, arXiv 2209.09002).

Shapes: B images, C channels, H x W pixels or map, h x w codes, d code width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models import checkpoint as checkpoints
from harness.models.stored_names import Layout, fill_from
from harness.models.vq import (
    Decoder,
    Quantizer,
    VQSpec,
    count_decoder_bytes,
    full_precision_convolutions,
    lay_out_for_rendering,
)
from harness.records import UserError

RELEASED = VQSpec(
    codes=32768, code_dim=4, width=256, multipliers=(1, 2, 2, 4), latent=4, unit_length=False
)
"""Dimensions of the released tokenizer: 8 times smaller sides, 32,768 codes of 4 numbers."""


class Emu3VQ(nn.Module):
    """The half of Emu3's tokenizer that decodes still images.

    Pixels are float32 [B, 3, H, W], nominally in [-1, 1]; codes are int64 [B, N] in raster order.
    """

    def __init__(self, spec: VQSpec = RELEASED) -> None:
        super().__init__()
        self.spec = spec
        self.quantize = Quantizer(spec.codes, spec.code_dim, spec.unit_length)
        self.post_quant_conv = nn.Conv2d(spec.code_dim, spec.latent, 1)
        self.time_res_stack = nn.ModuleList(BatchNormBlock(spec.latent) for _ in range(spec.blocks))
        self.time_conv = nn.ModuleList(
            nn.Conv2d(spec.latent, spec.latent, 3, padding=1) for _ in range(2)
        )

        def norm(channels: int) -> nn.Module:
            return ModulatedNorm(channels, spec.groups, spec.code_dim)

        self.decoder = Decoder(spec, norm)

    @property
    def codebook(self) -> Tensor:
        """Return the code vectors as stored, [V, d]."""
        return self.quantize.rows()

    def for_rendering(self, dtype: torch.dtype = torch.float32) -> Emu3VQ:
        """Lay the decoder out as convolutions are fastest, and let it compute in `dtype`.

        Code vectors stay as they are. Returns the tokenizer itself.
        """
        parts = (self.post_quant_conv, self.time_res_stack, self.time_conv, self.decoder)
        lay_out_for_rendering(parts, dtype)
        return self

    def decode_bytes(self, codes: int) -> int:
        """Count the bytes that decoding one image of so many codes takes for a moment."""
        return count_decoder_bytes(self.spec, codes, self.post_quant_conv.weight.dtype)

    def decode(self, codes_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decode the codes of a grid of (rows, columns) to pixels."""
        z_Bdhw = self.quantize.lookup(codes_BN.unflatten(1, grid))
        z_Bdhw = z_Bdhw.to(self.post_quant_conv.weight.dtype)
        with full_precision_convolutions():
            map_Bdhw = self._process(z_Bdhw)
            return self.decoder(self._process(self.post_quant_conv(z_Bdhw)), map_Bdhw)

    def _process(self, x: Tensor) -> Tensor:
        """What the released network does along time, for its first frame."""
        for block in self.time_res_stack:
            x = block(x)
        for conv in self.time_conv:
            x = F.silu(conv(x))
        return x


class BatchNormBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, each behind a batch norm of stored statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = StoredNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = StoredNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class StoredNorm(nn.Module):
    """A batch norm that has its statistics from training, and never takes those of a batch."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class ModulatedNorm(nn.Module):
    """A group norm times one linear function of the code map, plus another one."""

    def __init__(self, channels: int, groups: int, code_dim: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_y = nn.Conv2d(code_dim, channels, 1)
        self.conv_b = nn.Conv2d(code_dim, channels, 1)

    def forward(self, x_BCHW: Tensor, map_Bdhw: Tensor) -> Tensor:
        # The convolutions are 1 x 1, so they may come before the map is stretched: it is smaller.
        factor_BCHW = _stretch(self.conv_y(map_Bdhw), x_BCHW)
        summand_BCHW = _stretch(self.conv_b(map_Bdhw), x_BCHW)
        return torch.addcmul(summand_BCHW, self.norm_layer(x_BCHW), factor_BCHW)


def _stretch(map_BChw: Tensor, like_BCHW: Tensor) -> Tensor:
    return F.interpolate(map_BChw, size=like_BCHW.shape[-2:], mode="nearest")


# ------------------------------------------------------------------ checkpoints


def read_spec(config: Mapping[str, Any], file: Path) -> VQSpec:
    """Read the tokenizer's dimensions out of its configuration, in either layout.

    `file` is named in errors. Raises UserError for a configuration of another kind of tokenizer.
    """
    try:
        is_library = "base_channels" in config
        multipliers = config["channel_multiplier" if is_library else "ch_mult"]
        spec = VQSpec(
            codes=int(config["codebook_size"]),
            code_dim=int(config["embed_dim"]),
            width=int(config["base_channels" if is_library else "ch"]),
            multipliers=tuple(int(one) for one in multipliers),
            blocks=int(config["num_res_blocks"]),
            latent=int(config["latent_channels" if is_library else "z_channels"]),
            unit_length=False,
        )
        attended = tuple(config["attn_resolutions"])
        temporal = int(config["temporal_downsample_factor"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} does not describe Emu3's image tokenizer ({error!r}): download it again"
        ) from None
    if attended != (len(spec.multipliers) - 1,) or temporal != 4:
        raise UserError(
            f"{file} has attn_resolutions {list(attended)} and temporal_downsample_factor "
            f"{temporal}, which Emu3's image tokenizer has not: this is another model"
        )
    return spec


def load(
    state: Mapping[str, Tensor], file: Path, spec: VQSpec = RELEASED, prefix: str | None = None
) -> Emu3VQ:
    """Fill the tokenizer, in float32, out of tensors of either layout.

    With `prefix`, such as `vqmodel.`, the tensors have the library's names behind it; without it
    they have those of the original tokenizer's repository. Raises UserError for tensors that are
    missing or of another shape.
    """
    with torch.device("meta"):
        vq = Emu3VQ(spec)
    levels = len(spec.multipliers)
    layout = original_layout(levels) if prefix is None else library_layout(levels, prefix)
    fill_from(vq, state, file, layout, _to_one_frame)
    return vq.eval().requires_grad_(False)


def load_folder(folder: Path, config: Mapping[str, Any], prefix: str | None) -> Emu3VQ:
    """Read the tokenizer from a checkpoint's folder, with what `config` says of it.

    `prefix` is that of its names in the library's layout. Of other tensors in the files nothing is
    kept. Raises UserError for files that are damaged or of another model.
    """
    spec = read_spec(config, folder)
    kept: dict[str, Tensor] = {}
    for file in checkpoints.weight_files(folder):
        for name, tensor in checkpoints.read_file(file).items():
            if name.startswith(prefix or ""):
                kept[name] = tensor
    return load(kept, folder, spec, prefix)


_NOT_NEEDED = r"encoder\.|quant_conv\.|.*\.num_batches_tracked$"


def original_layout(levels: int) -> Layout:
    """Return where `BAAI/Emu3-VisionTokenizer` stores a decoder of so many levels."""
    rules = [
        (r"^post_quant_conv\.", "post_quant_conv.conv."),
        (r"^time_res_stack\.(\d+)\.(conv\d)\.", r"decoder.time_res_stack.\1.\2.conv."),
        (r"^time_res_stack\.", "decoder.time_res_stack."),
        (r"^time_conv\.(\d+)\.", r"decoder.time_conv.\1.conv.conv."),
    ]
    for level in range(levels):
        stored = levels - 1 - level
        rules.append((rf"^decoder\.conv_blocks\.{level}\.", f"decoder.up.{stored}."))
    rules += [
        (r"\.res\.", ".block."),
        (r"\.mid\.0\.", ".mid.block_1."),
        (r"\.mid\.1\.", ".mid.attn_1."),
        (r"\.mid\.2\.", ".mid.block_2."),
    ]
    return Layout(tuple(rules), _NOT_NEEDED)


def library_layout(levels: int, prefix: str) -> Layout:
    """Return where the transformers library stores the same tensors."""
    rules = (
        (r"^decoder\.up\.(\d+)\.attn\.(\d+)\.norm\.", r"decoder.up.\1.attn_norms.\2."),
        (r"^decoder\.mid\.attn_1\.norm\.", "decoder.mid.attn_norm."),
        (r"\.(attn_1|attn\.\d+)\.(q|k|v)\.", r".\1.\2_proj."),
        (r"\.proj_out\.", ".out_proj."),
        (r"^decoder\.up\.", "decoder.up_block.up."),
        (r"^decoder\.mid\.", "decoder.middle_block."),
    )
    return Layout(original_layout(levels).rules + rules, _NOT_NEEDED, prefix)


def _to_one_frame(name: str, tensor: Tensor) -> Tensor:
    """A kernel as it acts on the first frame: its last temporal slice.

    The library's attention has matrices, which are 1 x 1 kernels here.
    """
    if tensor.ndim == 5:
        return tensor[:, :, -1]
    is_matrix = tensor.ndim == 2 and not name.startswith("quantize.")
    return tensor[:, :, None, None] if is_matrix else tensor
