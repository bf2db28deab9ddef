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
from harness.models.finite import watch_pixels
from harness.models.vq import MISSING
from harness.records import NotFiniteError

Image = np.ndarray
"""uint8 [height, width, 3]."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that is decoded, or being decoded."""

    pixels_HW3: Tensor  # on the host; valid once `arrived` has happened
    is_finite: Tensor  # whether they were numbers before they were rounded; valid likewise
    arrived: torch.cuda.Event | None  # None: the pixels are there

    @property
    def ready(self) -> bool:
        """Tell whether `image` returns without waiting."""
        return self.arrived is None or self.arrived.query()

    def image(self) -> Image:
        """Return the image; waits until it is decoded.

        Raises NotFiniteError for pixels that were no finite numbers.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        if not self.is_finite:
            raise NotFiniteError(
                "pixels are not finite: the image decoder overflows in its type; "
                "set a decoder of float32, if the model has the option"
            )
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
            pixels_BHW3, is_finite_B = self._decode_chunk(given_BN)
            arrived = None
        else:
            pixels_BHW3, is_finite_B, arrived = self._decode_on_stream(given_BN)
        pictures = []
        for pixels_HW3, is_finite, _ in zip(pixels_BHW3, is_finite_B, tokens, strict=False):
            pictures.append(Picture(pixels_HW3, is_finite, arrived))
        return pictures

    def _decode_chunk(self, token_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Decode a chunk where the model is: its pixels, and whether each image's are finite."""
        with watch_pixels() as found:
            pixels_BHW3 = self._model.decode(token_BN)
        is_finite_B = torch.ones(len(token_BN), dtype=torch.bool, device=pixels_BHW3.device)
        for noted_B in found:
            is_finite_B = is_finite_B & noted_B
        return pixels_BHW3, is_finite_B

    def _decode_on_stream(self, token_BN: Tensor) -> tuple[Tensor, Tensor, torch.cuda.Event]:
        """Enqueue a chunk on the current stream: what is on the host, and when it is valid.

        Pinned memory on both ways lets the copies run without the host waiting for them.
        """
        given_BN = token_BN.pin_memory().to(self._model.device, non_blocking=True)
        pixels_BHW3, is_finite_B = map(_copy_to_pinned, self._decode_chunk(given_BN))
        arrived = torch.cuda.Event()
        arrived.record()
        return pixels_BHW3, is_finite_B, arrived


def _copy_to_pinned(value: Tensor) -> Tensor:
    """Begin to copy a tensor to the host; it is there when the stream has come so far."""
    copied = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return copied.copy_(value, non_blocking=True)


def images_at_once(device: torch.device, batch: int) -> int:
    """Return the images per call of the decoder: `batch` on a GPU, one on a CPU.

    On a CPU a batch is hardly faster than its images one after the other, and most methods finish
    them one by one: padding would cost as much as the images that it stands for.
    """
    return 1 if device.type == "cpu" else batch
