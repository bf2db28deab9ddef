"""Watch whether the pixels that a model decodes are finite numbers.

Rounded to bytes, a number that is none looks like any other. So `note_pixels` is called where a
decoder's output is rounded, and whoever wants to know asks around the decoder's call.

Shapes: B images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_watched: list[list[Tensor]] = []  # by each `watch_pixels` that is entered


@contextmanager
def watch_pixels() -> Iterator[list[Tensor]]:
    """Collect, for each rounding inside, whether each image's pixels are finite: bool [B]."""
    found: list[Tensor] = []
    _watched.append(found)
    try:
        yield found
    finally:
        _watched.pop()


def note_pixels(x_B3HW: Tensor) -> None:
    """Note whether the pixels of each image are finite, if somebody watches; does not wait."""
    if _watched:
        _watched[-1].append(torch.isfinite(x_B3HW).flatten(1).all(1))
