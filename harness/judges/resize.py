"""Resize pictures as the evaluators of papers do: each way moves distances, so each has a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

INCEPTION_SIDE = 299


def crop_to_square(image: np.ndarray, side: int = 256) -> np.ndarray:
    """Cut the largest square out of the middle, and resize it by Lanczos: uint8 [side, side, 3].

    LANTERN's evaluation (3a56e451) makes generated pictures and photographs ready so.
    """
    from PIL import Image

    height, width = image.shape[:2]
    square = min(height, width)
    top = (height - square) // 2
    left = (width - square) // 2
    cropped = image[top : top + square, left : left + square]
    if square == side:
        return np.ascontiguousarray(cropped)
    resized = Image.fromarray(cropped).resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(resized)


def resize_clean(image: np.ndarray, side: int = INCEPTION_SIDE) -> np.ndarray:
    """Resize as clean-fid does: each channel as a float image, by Pillow's bicubic filter.

    The filter's support grows when it shrinks. Returns float32 [side, side, 3], cut to 0 to 255
    and not rounded; clean-fid at e88c4d62.
    """
    from PIL import Image

    channels = []
    for channel in range(3):
        plane = Image.fromarray(image[:, :, channel].astype(np.float32))
        channels.append(np.asarray(plane.resize((side, side), Image.Resampling.BICUBIC)))
    return np.stack(channels, axis=-1).clip(0, 255)


def normalise_clean(image: np.ndarray) -> Tensor:
    """Prepare a picture as clean-fid does, float32 [3, 299, 299]."""
    import torch

    return (torch.from_numpy(resize_clean(image)).permute(2, 0, 1) - 128) / 128


def normalise_torch(image: np.ndarray) -> Tensor:
    """Prepare a picture as pytorch-fid does: torch's bilinear resize without antialias.

    pytorch-fid at b9c18118, which MLPerf copies.
    """
    import torch.nn.functional as F

    pixels_13HW = _as_floats(image) / 255
    size = (INCEPTION_SIDE, INCEPTION_SIDE)
    resized = F.interpolate(pixels_13HW, size, mode="bilinear", align_corners=False)
    return 2 * resized[0] - 1


def normalise_tensorflow(image: np.ndarray) -> Tensor:
    """Prepare a picture as torch-fidelity does: TensorFlow 1's bilinear resize.

    Its grid begins in the corner, and nothing is averaged when it shrinks; torch-fidelity at
    5e211a95.
    """
    pixels_3HW = _as_floats(image)[0]
    for axis in (1, 2):
        pixels_3HW = _interpolate_from_corner(pixels_3HW, axis, INCEPTION_SIDE)
    return (pixels_3HW - 128) / 128


def _as_floats(image: np.ndarray) -> Tensor:
    """Return pixels as float32 [1, 3, H, W]."""
    import torch

    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()


def _interpolate_from_corner(pixels_3HW: Tensor, axis: int, size: int) -> Tensor:
    """Interpolate along an axis at the places i * length / size."""
    import torch

    length = pixels_3HW.shape[axis]
    place = torch.arange(size, dtype=torch.float32) * torch.tensor(length / size)
    low = place.long()
    high = (low + 1).clamp(max=length - 1)
    weight = (place - low).reshape([-1 if i == axis else 1 for i in range(3)])
    before = pixels_3HW.index_select(axis, low)
    after = pixels_3HW.index_select(axis, high)
    return before + (after - before) * weight


NORMALISATIONS: dict[str, Callable[[np.ndarray], Tensor]] = {
    "clean299": normalise_clean,
    "torch299": normalise_torch,
    "tf299": normalise_tensorflow,
}
"""What is done to a picture before Inception reads it, by the name that its id ends with."""
