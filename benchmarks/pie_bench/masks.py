"""Decode the masks of PIE-Bench, and take the edited or the other part of a picture.

Shapes: H and W pixels of a picture. A mask is 1 where the picture is to be edited.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Part = Literal["whole", "edit", "unedit"]
"""The whole picture, what is to be edited, or all else."""


def decode_mask(runs: Sequence[int], height: int, width: int) -> np.ndarray:
    """Decode pairs (start, length) over the pixels in row order, uint8 [H, W].

    Runs may overlap, and are cut at the end. The outer border is always 1, as the reference has it.
    Raises ValueError for an odd number of values, and for one below 0.
    """
    if len(runs) % 2:
        raise ValueError(f"a mask of {len(runs)} values: they are pairs of start and length")
    values = np.asarray(runs, dtype=np.int64)
    if (values < 0).any():
        raise ValueError(f"a mask with the value {values.min()}: none may be below 0")
    pixels = height * width
    starts = values[::2].clip(max=pixels)
    ends = (values[::2] + values[1::2]).clip(max=pixels)

    # A pixel is covered where more runs have begun than have ended.
    changes = np.zeros(pixels + 1, dtype=np.int64)
    np.add.at(changes, starts, 1)
    np.add.at(changes, ends, -1)
    mask = (changes.cumsum()[:-1] > 0).astype(np.uint8).reshape(height, width)
    mask[[0, -1], :] = 1
    mask[:, [0, -1]] = 1
    return mask


def select_part(pixels: np.ndarray, mask: np.ndarray, part: Part) -> np.ndarray:
    """Return a picture [H, W, 3] with zeros outside of a part."""
    if part == "whole":
        return pixels
    kept = mask if part == "edit" else 1 - mask
    return pixels * kept[..., None]


def has_part(mask: np.ndarray, part: Part) -> bool:
    """Tell whether a part has any pixel; without one it has no metrics."""
    if part == "whole":
        return True
    return bool(mask.any() if part == "edit" else (1 - mask).any())
