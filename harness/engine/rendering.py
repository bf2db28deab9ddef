"""Images of tokens, decoded in chunks of one shape while other canvases are drawn on.

On CUDA a stream of its own decodes, and pixels reach the host through pinned memory: who needs an
image waits for that image alone. On the CPU the same calls decode at once. Shapes: X images asked
for, B images of a chunk, N tokens.
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

    _pixels_HW3: Tensor
    _arrived: torch.cuda.Event | None

    @property
    def ready(self) -> bool:
        """Whether `image` need not wait."""
        return self._arrived is None or self._arrived.query()

    def image(self) -> Image:
        """The image; waits for it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._pixels_HW3.numpy()


class Renderer:
    """Decodes up to `chunk` images at a time. Fewer are padded, so that an image does not depend on
    its company.
    """

    def __init__(self, model: ImageModel, batch: int) -> None:
        self._model = model
        self.chunk = images_at_once(model, batch)
        self._stream: torch.cuda.Stream | None = None
        if model.device.type == "cuda":
            self._stream = torch.cuda.Stream(model.device)
            self._stream.wait_stream(
                torch.cuda.current_stream(model.device)
            )  # until the weights are there

    def beside(self) -> AbstractContextManager[object]:
        """Where decoding happens: beside what the device does otherwise."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    @torch.no_grad()
    def decode(self, tokens: Sequence[Sequence[int]]) -> list[Picture]:
        """Pictures of at most `chunk` rows of tokens; what a row lacks is missing. To be called
        inside `beside`.
        """
        token_BN = np.full((self.chunk, self._model.num_tokens), MISSING, dtype=np.int64)
        for row_N, known in zip(token_BN, tokens, strict=False):
            row_N[: len(known)] = known
        if self._stream is None:
            pixels_BHW3 = self._model.decode(torch.from_numpy(token_BN)).to("cpu")
            arrived = None
        else:
            given_BN = (
                torch.from_numpy(token_BN).pin_memory().to(self._model.device, non_blocking=True)
            )
            shown_BHW3 = self._model.decode(given_BN)
            pixels_BHW3 = torch.empty(shown_BHW3.shape, dtype=torch.uint8, pin_memory=True)
            pixels_BHW3.copy_(shown_BHW3, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return [Picture(pixels_HW3, arrived) for pixels_HW3 in pixels_BHW3[: len(tokens)]]


def images_at_once(model: ImageModel, batch: int) -> int:
    """Images per call of the decoder: `batch`, but one on a CPU.

    There a batch is hardly faster than its images one after the other, and most methods finish them
    one by one: padding would cost as much as the images that it stands for.
    """
    return 1 if model.device.type == "cpu" else batch
