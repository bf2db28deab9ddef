"""PSNR, MSE and SSIM of two pictures, by torchmetrics.

Shapes: H and W pixels. Pictures are uint8 [H, W, 3].
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

SsimBorder = Literal["cut", "full"]
"""How SSIM treats the border: torchmetrics up to 1.4.1 cut 5 pixels off, later versions do not."""
WINDOW_BORDER = 5
"""Pixels from the middle of SSIM's window to its edge."""
LEAST_SIDE = 2 * WINDOW_BORDER + 1
"""Pixels that a side has at least: the window's."""


def compare_pixels(source: np.ndarray, output: np.ndarray, border: SsimBorder) -> dict[str, float]:
    """Return `psnr`, `mse` and `ssim` of two pictures; PSNR is infinite where they are equal.

    Raises ValueError for pictures of two shapes, or smaller than SSIM's window.
    """
    import torch
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )
    from torchmetrics.functional.regression import mean_squared_error

    expect_equal_shapes(source, output)
    # The reference divides before it computes in 32 bits.
    source_13HW = torch.from_numpy(np.float32(source) / np.float32(255)).permute(2, 0, 1)[None]
    output_13HW = torch.from_numpy(np.float32(output) / np.float32(255)).permute(2, 0, 1)[None]
    mse = float(mean_squared_error(output_13HW.contiguous(), source_13HW.contiguous()))
    psnr = float(peak_signal_noise_ratio(output_13HW, source_13HW, data_range=1.0))
    _, similarity_13HW = structural_similarity_index_measure(
        output_13HW, source_13HW, data_range=1.0, return_full_image=True
    )
    if border == "cut":
        inner = slice(WINDOW_BORDER, -WINDOW_BORDER)
        similarity_13HW = similarity_13HW[..., inner, inner]
    return {
        "psnr": psnr if mse else math.inf,
        "mse": mse,
        "ssim": float(similarity_13HW.mean()),
    }


def expect_equal_shapes(source: np.ndarray, output: np.ndarray) -> None:
    """Raise ValueError for pictures of two shapes, or with a side shorter than SSIM's window."""
    if source.shape != output.shape:
        raise ValueError(
            f"the output is {_name_size(output)}, its source {_name_size(source)}: "
            "they must be equal"
        )
    if min(source.shape[:2]) < LEAST_SIDE:
        raise ValueError(f"{_name_size(source)}: SSIM needs {LEAST_SIDE} pixels a side at least")


def _name_size(pixels: np.ndarray) -> str:
    height, width = pixels.shape[:2]
    return f"{width}x{height}"
