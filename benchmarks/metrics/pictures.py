"""Prepare pictures and texts as the references' code does: CLIP's transform, HPSv2's, and BPE."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.optional import require

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 224
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, which BLIP, HPSv2 and PickScore share."""
LENGTH = 77
"""Tokens of a text, start and end included."""


def crop_as_clip(image: np.ndarray, side: int = SIDE) -> Tensor:
    """Resize the shorter side by Pillow's bicubic filter, cut the middle out, and normalise."""
    from PIL import Image
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    picture = F.resize(Image.fromarray(image), side, interpolation=InterpolationMode.BICUBIC)
    cropped = F.center_crop(picture, [side, side])
    return F.normalize(F.to_tensor(cropped), list(MEAN), list(DEVIATION))


def pad_as_hps(image: np.ndarray, side: int = SIDE) -> Tensor:
    """Resize the longer side, pad with black to a square, and normalise, as HPSv2 does.

    The resize is torch's bicubic one of a float tensor, with antialias, and is not cut to [0, 1].
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    pixels_3HW = F.to_tensor(image)
    scale = side / max(image.shape[:2])
    if scale != 1:
        height, width = (round(length * scale) for length in image.shape[:2])
        pixels_3HW = F.resize(
            pixels_3HW, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True
        )
        left = (side - width) // 2
        top = (side - height) // 2
        borders = [left, top, side - width - left, side - height - top]
        pixels_3HW = F.pad(pixels_3HW, borders, fill=0)
    return F.normalize(pixels_3HW, list(MEAN), list(DEVIATION))


def squeeze_as_torchmetrics(image: np.ndarray, side: int = 299) -> np.ndarray:
    """Resize to a square, whatever the shape, bilinearly without antialias, and round.

    SJD's evaluation hands CLIP the pictures that were made ready for Inception.
    """
    import torch
    import torch.nn.functional as F

    pixels_13HW = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    resized = F.interpolate(pixels_13HW, (side, side), mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


@lru_cache(maxsize=1)
def clip_tokenizer() -> Any:
    """Return CLIP's tokenizer as open_clip has it, which cleans HTML and fixes broken text."""
    require("open_clip", extra="metrics", asker="a metric by CLIP")
    import open_clip

    return open_clip.SimpleTokenizer(context_length=LENGTH)


@lru_cache(maxsize=1)
def hub_tokenizer() -> Any:
    """Return CLIP's tokenizer as transformers has it: the same vocabulary, other cleaning."""
    from transformers import CLIPTokenizer

    known = clip_tokenizer()
    marks = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {marks.get(word, word): number for word, number in known.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=list(known.bpe_ranks))
