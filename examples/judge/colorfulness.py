"""Reward colorful images: no network, two lines of statistics."""

from collections.abc import Sequence

import numpy as np

from harness import Image


class Colorfulness:
    """M3 of Hasler and Suesstrunk, "Measuring colorfulness in natural images" (2003)."""

    id = "colorfulness-m3-1"  # changes whenever its answers do

    def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> list[float]:
        return [measure(np.asarray(image, dtype=float)) for image in images]


def measure(pixels_HW3: np.ndarray) -> float:
    red, green, blue = np.moveaxis(pixels_HW3, -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    spread = np.hypot(*opponents.std(axis=(1, 2)))
    middle = np.hypot(*opponents.mean(axis=(1, 2)))
    return float(spread + 0.3 * middle)
