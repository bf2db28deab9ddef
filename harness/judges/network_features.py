"""Describe pictures by a published network, whichever it is, from forwards of one constant shape.

Shapes: N pictures, B pictures of a forward, D features, H W pixels.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from harness.download import fetch, file_sha256
from harness.judges.known_pictures import check_extractor
from harness.judges.placement import OnDevice, count_rows, place_network
from harness.records import Count, MemoryPart, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Weights = Literal["published", "random"]
CUDA_BATCH = 32


class NetworkFeatures(ABC):
    """Describe pictures by a network, in float32 and in forwards of one constant shape.

    `weights` are "published" (a `checkpoint` file, or the pinned download) or "random", which test
    the path. `batch` is the number of pictures of every forward; None is 1 on the CPU and 32 on a
    GPU. `resize` names what is done to a picture before, as the end of the identity.
    """

    name: ClassVar[str]
    """How identities begin."""
    title: ClassVar[str]
    """What the network is called in messages."""
    url: ClassVar[str]
    sha256: ClassVar[str]
    """First digits of the download's hash, which its name has."""
    cached: ClassVar[str]
    """Name of the download in the cache."""
    dim: int
    weight_bytes: ClassVar[int]
    picture_bytes: ClassVar[int]
    """Bytes that a picture takes: some copies of the largest feature map."""

    def __init__(
        self,
        checkpoint: str | None,
        resize: str,
        weights: Weights,
        device: str,
        batch: Count | None,
    ) -> None:
        if weights not in ("published", "random"):
            raise UserError(f"weights={weights}: choose published or random")
        if weights == "random" and checkpoint:
            raise UserError(f"{self.name}: weights=random and a checkpoint exclude each other")
        if batch is not None and batch < 1:
            raise UserError(f"{self.name}: batch={batch}: at least one picture is needed")
        self.random = weights == "random"
        self._checkpoint = None if checkpoint is None else Path(checkpoint).expanduser()
        self._device_name = device
        self._batch = batch
        self._network: Any = None
        self._device: torch.device | None = None
        digits = "random" if self.random else self.sha256
        if self._checkpoint is not None:
            digits = file_sha256(self._checkpoint)[: len(self.sha256)]
        self.identity = f"{self.name}-{digits}-{resize}"

    # ------------------------------------------------------------------ what a network is

    @abstractmethod
    def build(self) -> Any:
        """Build the network with random weights of a size that tells pictures apart."""

    @abstractmethod
    def fill(self, network: Any, file: Path) -> None:
        """Fill the network from a file. Raises UserError for one that is of another network."""

    @abstractmethod
    def prepare(self, image: np.ndarray) -> Tensor:
        """Make of a picture, uint8 [H, W, 3], what the network reads: float32 [3, side, side]."""

    @abstractmethod
    def forward(self, network: Any, pixels_B3HW: Tensor) -> Tensor:
        """Describe pictures made ready, [B, D]."""

    # ------------------------------------------------------------------ what all have

    def memory_need(self, _model: object, shape: OnDevice) -> list[MemoryPart]:
        """List its weights, and what a forward over a batch of pictures takes."""
        held = 0 if self._network is None else self.weight_bytes
        pictures = count_rows(self._batch, place_network(self._device_name, shape), CUDA_BATCH)
        work = pictures * self.picture_bytes
        return [
            MemoryPart(self.title, self.weight_bytes, held=held, device=self._device_name),
            MemoryPart(f"{self.title}'s pictures", fixed=work, device=self._device_name),
        ]

    def ready(self) -> None:
        """Load the network, and check it on known pictures. Raises UserError if it is unusable."""
        self._load()
        check_extractor(self, reference=self._on_cpu())

    def release(self) -> None:
        """Let go of the network; the next call loads it again."""
        self._network = None

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return float32 [N, D] for pictures uint8 [H, W, 3]."""
        import torch

        if not len(images):
            return np.zeros((0, self.dim), np.float32)
        network = self._load()
        size = self._batch_size()
        ready = [self.prepare(image) for image in images]
        ready += ready[-1:] * (-len(ready) % size)
        found = []
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            for first in range(0, len(ready), size):
                pixels_B3HW = torch.stack(ready[first : first + size]).to(self._device)
                found.append(self.forward(network, pixels_B3HW).cpu().numpy())
        return np.concatenate(found)[: len(images)]

    def _on_cpu(self) -> Self | None:
        """Return the same extractor on the CPU, to compare with; None for one that runs there."""
        if self._device is None or self._device.type == "cpu":
            return None
        same = copy.copy(self)
        same._network = None
        same._device_name = "cpu"
        return same

    def _batch_size(self) -> int:
        from harness.models.devices import device_named

        return count_rows(self._batch, device_named(self._device_name), CUDA_BATCH)

    def _load(self) -> Any:
        if self._network is not None:
            return self._network
        import torch

        from harness.models.devices import device_named

        self._device = device_named(self._device_name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = self.build()
        if not self.random:
            self.fill(network, self._find_file())
        self._network = network.to(self._device).eval().requires_grad_(False)
        return self._network

    def _find_file(self) -> Path:
        if self._checkpoint is not None:
            return self._checkpoint
        return fetch(self.url, self.sha256, self.cached, "set checkpoint=PATH")
