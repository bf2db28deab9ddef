"""Find, check, load and run a network that scores pictures of texts, whichever it is.

Shapes: B pictures with their texts, W tokens of a text, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness.judges.placement import OnDevice, count_rows, place_network
from harness.records import Count, MemoryPart, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Weights = Literal["published", "random", "tiny"]
CUDA_BATCH = 16
"""Pictures of a forward on a GPU; on the CPU it is one."""
ACTIVATION_COPIES = 12
"""What a forward takes beside the weights, in copies of the hidden states of its pictures."""


class ScoringNetwork(ABC):
    """Score pictures of texts by a network, in float32 and in forwards of one constant shape.

    `checkpoint` is a file of the weights; None is the hub's at `revision`. `weights` are
    "published", "random" ones of the same size, or "tiny": a network of the same kind with few
    weights. Random ones test the path: their numbers mean nothing and enter no table. `batch` is
    the number of pictures of every forward; None is 1 on the CPU and 16 on a GPU.
    """

    name: str
    """How ids begin."""
    hub: str
    """Repository of the weights."""
    file: str
    """The file of the weights in it."""
    unit = "score"
    better = "higher"
    digits = 4
    width: int
    """Positions times width of the largest hidden states of a picture."""

    def __init__(
        self,
        checkpoint: str | None = None,
        revision: str = "main",
        weights: Weights = "published",
        device: str = "auto",
        batch: Count | None = None,
    ) -> None:
        if weights not in ("published", "random", "tiny"):
            raise UserError(f"{self.name}: weights={weights}: choose published, random or tiny")
        if batch is not None and batch < 1:
            raise UserError(f"{self.name}: batch={batch}: at least one picture is needed")
        if weights != "published" and checkpoint:
            raise UserError(f"{self.name}: weights={weights} and a checkpoint exclude each other")
        self.weights = weights
        self._checkpoint = None if checkpoint is None else Path(checkpoint).expanduser()
        self._revision = revision
        self._device_name = device
        self._batch = batch
        self._network: Any = None
        self._bytes = 0
        self._device: torch.device | None = None
        self.id = f"{self.name}-{self.name_weights()}"

    @property
    def identity(self) -> str:
        """Name network, weights and conventions: the id."""
        return self.id

    @property
    def excluded(self) -> str:
        """Why its numbers must not enter a table; "" if they may."""
        return "" if self.weights == "published" else "random weights"

    @property
    def device(self) -> str:
        """Name the device that it runs on."""
        return str(self._device or self._device_name)

    # ------------------------------------------------------------------ what a network is

    @abstractmethod
    def build(self) -> Any:
        """Build the network with random weights, on torch's default device."""

    @abstractmethod
    def read(self, file: Path) -> Mapping[str, Tensor]:
        """Read a file of weights, under the names that they have in the network."""

    @abstractmethod
    def prepare(self, image: np.ndarray) -> Tensor:
        """Make of a picture, uint8 [H, W, 3], what the network reads: float32 [3, side, side]."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Make of texts what the network reads, cut to its length, each a tensor [B, W]."""

    @abstractmethod
    def count_cut(self, text: str) -> int:
        """Count the tokens at the end of a text that are cut off."""

    @abstractmethod
    def forward(self, network: Any, tokens: Mapping[str, Tensor], pixels_B3HW: Tensor) -> Tensor:
        """Score pictures of texts, [B]."""

    # ------------------------------------------------------------------ what all have

    def memory_need(self, _model: object, shape: OnDevice) -> list[MemoryPart]:
        """List its weights, and what a forward over a batch of pictures takes."""
        size = self.count_bytes()
        held = 0 if self._network is None else size
        pictures = count_rows(self._batch, place_network(self._device_name, shape), CUDA_BATCH)
        work = 4 * pictures * ACTIVATION_COPIES * self.width
        return [
            MemoryPart(self.name, size, held=held, device=self._device_name),
            MemoryPart(f"{self.name}'s pictures", fixed=work, device=self._device_name),
        ]

    def count_bytes(self) -> int:
        """Count the bytes of the weights in float32, without allocating any."""
        if not self._bytes:
            sizes = [
                tensor.numel() for tensor in self._build_without_memory().state_dict().values()
            ]
            self._bytes = 4 * sum(sizes)
        return self._bytes

    def batch_size(self) -> int:
        """Return how many pictures a forward has."""
        from harness.models.devices import device_named

        return count_rows(self._batch, device_named(self._device_name), CUDA_BATCH)

    def ready(self) -> None:
        """Find the weights, and compare their names and shapes with the network's.

        Raises UserError for a file that cannot be had, or is of another network.
        """
        if self._network is not None:
            return
        self.tokenize(["a photo"])
        network = self._build_without_memory()
        if self.weights == "published":
            file = self.find_file()
            self._expect_fit(self.read(file), network, file)

    def load(self) -> Any:
        """Return the network, loaded onto its device at the first call."""
        if self._network is not None:
            return self._network
        import torch

        from harness.models.checkpoint import fill
        from harness.models.devices import device_named

        self._device = device_named(self._device_name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = self.build()
            if self.weights == "tiny":
                _enliven(network)
        if self.weights == "published":
            file = self.find_file()
            state = self.read(file)
            self._expect_fit(state, network, file)
            known = network.state_dict()
            fill(network, {name: state[name].float() for name in known}, file)
        self._network = network.to(self._device).eval().requires_grad_(False)
        return self._network

    def release(self) -> None:
        """Let go of the network; the next call loads it again."""
        if self._network is None:
            return
        import torch

        self._network = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __call__(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> list[float]:
        """Score each picture of its text; every forward has `batch` pictures.

        The last forward is filled up with copies, so that no score depends on the other pictures.
        """
        import torch

        if not texts:
            return []
        network = self.load()
        size = self.batch_size()
        filled = -len(texts) % size
        asked = [*texts, *[texts[-1]] * filled]
        pictures = [self.prepare(image) for image in images]
        pictures += pictures[-1:] * filled

        scores: list[float] = []
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            for first in range(0, len(asked), size):
                pixels_B3HW = torch.stack(pictures[first : first + size]).to(self._device)
                tokens = {
                    name: ids.to(self._device)
                    for name, ids in self.tokenize(asked[first : first + size]).items()
                }
                scores += self.forward(network, tokens, pixels_B3HW).double().tolist()
        return scores[: len(texts)]

    # ------------------------------------------------------------------ weights

    def name_weights(self) -> str:
        """Name the weights: digits of a file's content, or of the hub's commit."""
        if self.weights != "published":
            return self.weights
        if self._checkpoint is None:
            return self._revision[:8]
        from harness.models.checkpoint import content_of

        if not self._checkpoint.is_file():
            raise UserError(f"{self.name}: checkpoint={self._checkpoint}: there is no such file")
        return content_of(self._checkpoint)[:8]

    def find_file(self) -> Path:
        """Find the file of weights: as given, or in the hub's cache, downloaded if need be."""
        if self._checkpoint is not None:
            return self._checkpoint
        from harness.models.checkpoint import locate

        return locate(self.hub, self._revision, [self.file], None, "checkpoint") / self.file

    def _expect_fit(self, state: Mapping[str, Tensor], network: Any, file: Path) -> None:
        from harness.models.checkpoint import expect_same_tensors

        expect_same_tensors(state, network, file, self.name)

    def _build_without_memory(self) -> Any:
        import torch

        with torch.device("meta"):
            return self.build()


def _enliven(network: Any) -> None:
    """Give random weights a size at which what is read moves what is scored, as trained ones do."""
    import torch

    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.ndim > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5)
