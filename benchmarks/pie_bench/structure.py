"""Structure distance: how far the self-similarities of two pictures' DINO keys are apart.

Tumanyan et al., Splicing ViT Features (CVPR 2022), as PIE-Bench's `matrics_calculator.py` has it.

Shapes: H and W pixels, T tokens with the class token's, D key width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SHORT_SIDE = 224
LONGEST_SIDE = 480
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
LEAST_NORM = 1e-8
"""What a product of norms is at least."""


def prepare_input(pixels: np.ndarray, *, antialias: bool) -> Tensor:
    """Resize a picture, uint8 [H, W, 3], and normalise it, [3, H', W'].

    Its values stay 0 to 255 while mean and deviation are those of 0 to 1: every published number
    contains this. The reference's torchvision did not antialias, newer ones do by default.
    """
    import torch
    from torchvision.transforms.functional import normalize, resize

    values_3HW = torch.from_numpy(np.float32(pixels)).permute(2, 0, 1)
    resized_3HW = resize(values_3HW, [SHORT_SIDE], max_size=LONGEST_SIDE, antialias=antialias)
    return normalize(resized_3HW, list(MEAN), list(DEVIATION))


def measure_distance(key_TD: Tensor, other_TD: Tensor) -> float:
    """Return the mean squared difference of the cosine similarities of all pairs of tokens."""
    return float((_similarity(key_TD) - _similarity(other_TD)).square().mean())


def _similarity(key_TD: Tensor) -> Tensor:
    """Return the cosine of each pair of tokens, [T, T]."""
    norm_T1 = key_TD.norm(dim=1, keepdim=True)
    return (key_TD @ key_TD.T) / (norm_T1 @ norm_T1.T).clamp(min=LEAST_NORM)
