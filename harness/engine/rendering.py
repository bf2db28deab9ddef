"""Turn tokens into images, in chunks of one shape, while other canvases are drawn on.

On CUDA a second stream decodes, and pixels reach the host through pinned memory: whoever needs an
image waits for that image alone. On the CPU the same calls decode at once.

Shapes: B images of a chunk, N tokens of an image, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.models import ImageModel
from harness.models.vq import MISSING

Image = np.ndarray
"""uint8 [height, width, 3]."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that is decoded, or being decoded."""

    pixels_HW3: Tensor  # on the host; valid once `arrived` has happened
    arrived: torch.cuda.Event | None  # None: the pixels are there

    @property
    def ready(self) -> bool:
        """Tell whether `image` returns without waiting."""
        return self.arrived is None or self.arrived.query()

    def image(self) -> Image:
        """Return the image; waits until it is decoded."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.pixels_HW3.numpy()


class Renderer:
    """Decodes images in chunks of `chunk`.

    Smaller chunks are padded, so that an image does not depend on which others are decoded with it.
    """

    def __init__(self, model: ImageModel, batch: int) -> None:
        self._model = model
        self.chunk = images_at_once(model.device, batch)
        self._stream: torch.cuda.Stream | None = None
        if model.device.type == "cuda":
            self._stream = torch.cuda.Stream(model.device)
            # The weights may still be on their way to the device.
            self._stream.wait_stream(torch.cuda.current_stream(model.device))

    def beside(self) -> AbstractContextManager[object]:
        """Put the work done inside beside the drawing: on the renderer's own CUDA stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    @torch.no_grad()
    def decode(self, tokens: Sequence[Sequence[int]]) -> list[Picture]:
        """Decode at most `chunk` rows of tokens. Call it inside `beside`.

        Tokens that a row lacks at its end are shown as missing.
        """
        token_BN = np.full((self.chunk, self._model.num_tokens), MISSING, dtype=np.int64)
        for row_N, known in zip(token_BN, tokens, strict=False):
            row_N[: len(known)] = known
        given_BN = torch.from_numpy(token_BN)

        if self._stream is None:
            pixels_BHW3 = self._model.decode(given_BN).to("cpu")
            arrived = None
        else:
            pixels_BHW3, arrived = self._decode_on_stream(given_BN)
        return [Picture(pixels_HW3, arrived) for pixels_HW3 in pixels_BHW3[: len(tokens)]]

    def _decode_on_stream(self, token_BN: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Enqueue a chunk on the current stream: its pixels on the host, and when they are valid.

        Pinned memory on both ways lets the copies run without the host waiting for them.
        """
        given_BN = token_BN.pin_memory().to(self._model.device, non_blocking=True)
        shown_BHW3 = self._model.decode(given_BN)
        pixels_BHW3 = torch.empty(shown_BHW3.shape, dtype=torch.uint8, pin_memory=True)
        pixels_BHW3.copy_(shown_BHW3, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return pixels_BHW3, arrived


def images_at_once(device: torch.device, batch: int) -> int:
    """Return the images per call of the decoder: `batch` on a GPU, one on a CPU.

    On a CPU a batch is hardly faster than its images one after the other, and most methods finish
    them one by one: padding would cost as much as the images that it stands for.
    """
    return 1 if device.type == "cpu" else batch
