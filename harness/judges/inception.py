"""Describe pictures by the network of FID: TensorFlow's Inception of 2015, 2,048 numbers.

It is not torchvision's: 1,008 outputs, average pooling that leaves the padding out, and maximum
pooling in the last block. Its weights were ported once, under the names of torchvision's modules,
by pytorch-fid and torch-fidelity: a file of the same first eight digits. Those modules are taken
from torchvision, and pool as the original does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness.download import fetch, file_sha256
from harness.judges.known_pictures import check_extractor
from harness.judges.placement import OnDevice, count_rows, place_network
from harness.judges.resize import NORMALISATIONS
from harness.records import Count, MemoryPart, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
SHA256 = "6726825d"
"""First digits, which its name ends with."""
DIM = 2048
WEIGHT_BYTES = 4 * 23_900_000
PICTURE_BYTES = 4 * 64 * 147 * 147 * 4
"""Bytes that a picture takes: some copies of the largest feature map."""
CUDA_BATCH = 32
AVERAGING = (
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    "Mixed_7b",
)
"""Blocks whose average pooling leaves the padding out."""


class InceptionFeatures:
    """Describe pictures by pool3 of Inception, in float32 and in forwards of one constant shape.

    `resize` is what is done before: "clean299" as clean-fid, "torch299" as pytorch-fid, "tf299" as
    torch-fidelity. `weights` are "published" (a `checkpoint` file, or the pinned download) or
    "random", which test the path. `batch` is the number of pictures of every forward; None is 1 on
    the CPU and 32 on a GPU.
    """

    dim = DIM

    def __init__(
        self,
        checkpoint: str | None = None,
        resize: Literal["clean299", "torch299", "tf299"] = "clean299",
        weights: Literal["published", "random"] = "published",
        device: str = "auto",
        batch: Count | None = None,
    ) -> None:
        if resize not in NORMALISATIONS:
            raise UserError(f"resize={resize}: choose from {', '.join(NORMALISATIONS)}")
        if weights not in ("published", "random"):
            raise UserError(f"weights={weights}: choose published or random")
        if weights == "random" and checkpoint:
            raise UserError("inception: weights=random and a checkpoint exclude each other")
        if batch is not None and batch < 1:
            raise UserError(f"inception: batch={batch}: at least one picture is needed")
        self.random = weights == "random"
        self._checkpoint = None if checkpoint is None else Path(checkpoint).expanduser()
        self._prepare = NORMALISATIONS[resize]
        self._device_name = device
        self._batch = batch
        self._network: Any = None
        self._device: torch.device | None = None
        name = "random" if self.random else SHA256
        if self._checkpoint is not None:
            name = file_sha256(self._checkpoint)[: len(SHA256)]
        self.identity = f"inception-{name}-{resize}"

    def memory_need(self, _model: object, shape: OnDevice) -> list[MemoryPart]:
        """List its weights, and what a forward over a batch of pictures takes."""
        held = 0 if self._network is None else WEIGHT_BYTES
        pictures = count_rows(self._batch, place_network(self._device_name, shape), CUDA_BATCH)
        work = pictures * PICTURE_BYTES
        return [
            MemoryPart("Inception", WEIGHT_BYTES, held=held, device=self._device_name),
            MemoryPart("Inception's pictures", fixed=work, device=self._device_name),
        ]

    def ready(self) -> None:
        """Load the network, and check it on known pictures. Raises UserError if it is unusable."""
        self._load()
        check_extractor(self, reference=self._on_cpu())

    def release(self) -> None:
        """Let go of the network; the next call loads it again."""
        self._network = None

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return float32 [N, 2048] for pictures uint8 [H, W, 3]; every number is at least 0."""
        import torch

        if not len(images):
            return np.zeros((0, DIM), np.float32)
        network = self._load()
        size = self._batch_size()
        ready = [self._prepare(image) for image in images]
        ready += ready[-1:] * (-len(ready) % size)
        found = []
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            for first in range(0, len(ready), size):
                pixels_B3HW = torch.stack(ready[first : first + size]).to(self._device)
                found.append(compute_pool3(network, pixels_B3HW).cpu().numpy())
        return np.concatenate(found)[: len(images)]

    def _on_cpu(self) -> InceptionFeatures | None:
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
            network = build_inception()
        if not self.random:
            _fill(network, self._find_file())
        self._network = network.to(self._device).eval().requires_grad_(False)
        return self._network

    def _find_file(self) -> Path:
        if self._checkpoint is not None:
            return self._checkpoint
        remedy = "give its path as the extractor's checkpoint"
        return fetch(URL, SHA256, "inception/pt_inception-2015-12-05.pth", remedy)


# ------------------------------------------------------------------ the network


def build_inception() -> Any:
    """Build the network with random weights: torchvision's modules, pooling as the original.

    The weights have a size that keeps the features' (He et al. 2015), so that they tell pictures
    apart as trained ones do.
    """
    from torch import nn
    from torchvision.models import Inception3

    network = Inception3(
        num_classes=1008, aux_logits=False, transform_input=False, init_weights=False
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    for name in AVERAGING:
        _pool_by(getattr(network, name), _average)
    _pool_by(network.Mixed_7c, _maximum)
    return network


def compute_pool3(network: Any, pixels_B3HW: Tensor) -> Tensor:
    """Compute the last pooled features [B, 2048] of pictures made ready."""
    x = pixels_B3HW
    for name, child in network.named_children():
        if name not in ("dropout", "fc"):
            x = child(x)
    return x.flatten(1)


def _pool_by(block: Any, pool: Callable[[Tensor], Tensor]) -> None:
    """Let the pooling branch of a block of torchvision read its input pooled by `pool`.

    What the block pools itself is thrown away.
    """
    given: list[Tensor] = []

    def keep_input(_block: Any, inputs: tuple[Tensor, ...]) -> None:
        given.append(inputs[0])

    def pool_input(_branch: Any, _pooled: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (pool(given.pop()),)

    block.register_forward_pre_hook(keep_input)
    block.branch_pool.register_forward_pre_hook(pool_input)


def _average(x: Tensor) -> Tensor:
    import torch.nn.functional as F

    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    import torch.nn.functional as F

    return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)


def _fill(network: Any, file: Path) -> None:
    """Fill the network from a file. Raises UserError for one that is of another network."""
    from harness.models.checkpoint import expect_same_tensors, read_file

    state = read_file(file)
    counted = {name for name in network.state_dict() if name.endswith("num_batches_tracked")}
    known = {name: tensor for name, tensor in state.items() if name not in counted}
    expect_same_tensors(known, network, file, "FID's Inception", without=counted)
    network.load_state_dict({**network.state_dict(), **known})
