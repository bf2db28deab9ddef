"""EditAR (arXiv 2501.04699): LlamaGen's network, taught to edit an image by an instruction.

A context is the source image's tokens, then all T text positions, padding included. The logits at
the last of them predict the first token of the edited image. Source and target share the token
embeddings. Rotary positions follow a grid of twice the side: source cells lie in its first quadrant
and target cells in the last one; text positions have a table of zeros. Nothing is masked but what
comes later. Guidance keeps the source and replaces the text by learned features.

Shapes: B rows, W positions, N image tokens, T text positions (120), P = N + T context positions of
a branch, C feature width, D width, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.download import prepare_hub
from harness.models import checkpoint as checkpoints
from harness.models.captioned import CaptionedModel
from harness.models.captions import Captions, WordFeatures
from harness.models.finite import note_pixels
from harness.models.llamagen import choose_gpt_spec, choose_vq_spec
from harness.models.llamagen_checkpoint import WeightSource, fill_editor
from harness.models.llamagen_network import GPT, GPTSpec
from harness.models.trunk import axial_rotary
from harness.models.vq import VQ
from harness.records import Count, SourceImage, UserError

KEPT_SOURCES = 1024
"""Sources whose tokens are kept, so that a source is encoded once for all its candidates."""


class EditingGPT(GPT):
    """The transformer, with the learned embeddings [N, D] that stand for no source image."""

    img_uncond_embedding: Tensor

    def __init__(self, spec: GPTSpec) -> None:
        super().__init__(spec)
        self.register_buffer("img_uncond_embedding", torch.zeros(spec.side**2, spec.trunk.dim))


def rotary_table(spec: GPTSpec) -> Tensor:
    """Tabulate (cosine, sine) of source cells, text and target cells, [N + T + N, d/2, 2].

    Those of text positions are zero (EditAR `gpt_edit.py`, as GridAR carries it).
    """
    place_N = torch.arange(spec.side**2)
    coords_N2 = torch.stack((place_N // spec.side, place_N % spec.side), -1)
    source_N = axial_rotary(coords_N2, spec.trunk.head_dim)
    target_N = axial_rotary(coords_N2 + spec.side, spec.trunk.head_dim)
    text_T = torch.zeros((spec.condition, *source_N.shape[1:]))
    return torch.cat((source_N, text_T, target_N))


class EditAR(CaptionedModel):
    """EditAR as the engine draws it (`harness.models.ImageModel` and `EditsImages`)."""

    gpt: EditingGPT

    def __init__(
        self,
        gpt: EditingGPT,
        vq: VQ | None,
        captions: Captions,
        *,
        name: str = "editar",
        revision: str = "random",
        dtype: torch.dtype = torch.float32,
        render_dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(
            gpt,
            vq,
            captions,
            rotary_table(gpt.spec),
            name=name,
            revision=revision,
            dtype=dtype,
            render_dtype=render_dtype,
            device=device,
        )
        self.max_context = self.num_tokens + gpt.spec.condition
        self.encode_source: Callable[[SourceImage], Tensor] = lru_cache(maxsize=KEPT_SOURCES)(
            self._encode_source
        )

    # ------------------------------------------------------------------ instructions and sources

    @torch.no_grad()
    def context(self, text: str | None, like: str) -> Tensor:
        """Embed an instruction behind the empty image, [P, D]; None is the null instruction."""
        return torch.cat((self.gpt.img_uncond_embedding, self._embed_text(text)))

    @torch.no_grad()
    def edit_context(self, text: str | None, like: str, source: SourceImage) -> Tensor:
        """Embed a source image and an instruction, [P, D]; None is the null instruction."""
        source_ND = self.gpt.tok_embeddings(self.encode_source(source))
        return torch.cat((source_ND, self._embed_text(text)))

    def _embed_text(self, text: str | None) -> Tensor:
        """Embed all text positions, [T, D]."""
        spec = self.gpt.spec
        if text is None:
            row_TC = self.gpt.cls_embedding.uncond_embedding
        else:
            row_TC = self.captions(text).row_vC
            if row_TC.shape != (spec.condition, spec.caption_dim):
                raise UserError(
                    f"instruction features are {tuple(row_TC.shape)}, the model takes "
                    f"{spec.condition} rows of {spec.caption_dim}: use the text encoder that it "
                    "was trained with, and model.captions.padded=true"
                )
        return self.gpt.cls_embedding.cap_proj(row_TC.to(self.device, self.dtype))

    @torch.no_grad()
    def _encode_source(self, source: SourceImage) -> Tensor:
        """Encode a source image as tokens, int64 [N]."""
        side = self.grid[0] * self.vq.spec.downsampling
        pixels = crop_source(source.pixels(), side)
        pixels_13HW = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        return self.vq.encode(pixels_13HW.to(self.device))[0]

    # ------------------------------------------------------------------ positions and pixels

    def rotary(self, pos_BW: Tensor, start_B: Tensor) -> Tensor:
        return self._rotary[pos_BW]  # all contexts are equally long

    def decode(self, token_BN: Tensor) -> Tensor:
        return truncate_pixels(self.vq.decode(token_BN, self.grid))


def crop_source(pixels: np.ndarray, side: int) -> np.ndarray:
    """Resize the short side of a picture by Lanczos and crop its middle, uint8 [side, side, 3]."""
    height, width = pixels.shape[:2]
    ratio = side / min(height, width)
    size = (max(side, round(width * ratio)), max(side, round(height * ratio)))
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    top = (size[1] - side) // 2
    left = (size[0] - side) // 2
    return resized[top : top + side, left : left + side]


def truncate_pixels(x_B3HW: Tensor) -> Tensor:
    """Truncate pixels in [-1, 1] to uint8 [B, H, W, 3], as EditAR's sampling script does."""
    note_pixels(x_B3HW)
    scaled = (x_B3HW.float().clamp(-1, 1) + 1) / 2 * 255
    return scaled.to(torch.uint8).permute(0, 2, 3, 1)


# ------------------------------------------------------------------ from a configuration


def load(
    name: str,
    size: str | Mapping[str, Count],
    image: Count,
    captions: Captions,
    *,
    weights: str = "published",
    hub: str | None = None,
    revision: str | None = None,
    file: str | None = None,
    sha256: str | None = None,
    checkpoint: str | None = None,
    tokenizer: Mapping[str, Count | Sequence[Count]] | None = None,
    tokenizer_hub: str | None = None,
    tokenizer_file: str = "vq_ds16_t2i.pt",
    tokenizer_checkpoint: str | None = None,
    dtype: str = "bfloat16",
    render_dtype: str = "float32",
    device: str | torch.device = "cpu",
) -> EditAR:
    """Load a model of `image` pixels a side, with published or random weights of full size.

    `checkpoint` is the editor's file. None is the file `file` of the hub's dataset repository
    `hub`, which nothing but its hash identifies: `sha256` pins it, by as many digits as are given.
    The tokenizer is LlamaGen's. Options that LlamaGen has, too, are as there. Raises UserError,
    with the remedy, for weights that are missing, damaged or of another model.
    """
    # 1. Dimensions and types.
    vq_spec = choose_vq_spec(tokenizer or {})
    if image % vq_spec.downsampling:
        raise UserError(f"model.image={image}: must be a multiple of {vq_spec.downsampling}")
    gpt_spec = choose_gpt_spec(size, image // vq_spec.downsampling, vq_spec.codes)
    gpt_dtype = checkpoints.dtype_named(dtype)
    pixel_dtype = checkpoints.dtype_named(render_dtype, "render_dtype")

    # 2. Modules without memory, then their weights.
    with torch.device("meta"):
        gpt = EditingGPT(gpt_spec)
        vq = VQ(vq_spec)
    if weights == "random":
        captions = WordFeatures(gpt_spec.caption_dim, gpt_spec.condition, padded=True)
        checkpoints.randomise(gpt.to(gpt_dtype), device)
        checkpoints.randomise(vq, device)
        found_revision = "random"
    elif weights == "published":
        source = WeightSource(
            checkpoint=checkpoint or str(_fetch_editor(hub, revision, file)),
            tokenizer_hub=tokenizer_hub,
            tokenizer_file=tokenizer_file,
            tokenizer_checkpoint=tokenizer_checkpoint,
        )
        found_revision = fill_editor(gpt, vq, source, sha256)
    else:
        raise UserError(f"model.weights={weights}: choose published or random")
    return EditAR(
        gpt,
        vq,
        captions,
        name=name,
        revision=found_revision,
        dtype=gpt_dtype,
        render_dtype=pixel_dtype,
        device=device,
    )


def _fetch_editor(hub: str | None, revision: str | None, file: str | None) -> Path:
    """Find the editor's file in the hub's cache, or download it.

    Raises UserError with the remedy if there is no network.
    """
    if hub is None or file is None:
        raise UserError(
            "the model names no weights: set model.checkpoint=PATH, or model.hub and model.file to "
            "a dataset repository of the hub and its file"
        )
    from huggingface_hub import hf_hub_download

    silence = prepare_hub()
    try:
        return Path(hf_hub_download(hub, file, repo_type="dataset", revision=revision))
    # The HTTP client's errors have no common base, and all mean the same to the user.
    except Exception as error:
        raise UserError(
            f"{file} of the dataset repository {hub} is not in the hub's cache and cannot be "
            f"downloaded ({silence or type(error).__name__}): download it where there is a "
            "network, or set model.checkpoint=PATH"
        ) from error
