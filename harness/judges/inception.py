"""Describe pictures by the network of FID: TensorFlow's Inception of 2015, 2,048 numbers.

It is not torchvision's: 1,008 outputs, average pooling that leaves the padding out, and maximum
pooling in the last block. Its weights were ported once, under the names of torchvision's modules,
by pytorch-fid and torch-fidelity: a file of the same first eight digits. Those modules are taken
from torchvision, and pool as the original does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness.judges.network_features import NetworkFeatures, Weights
from harness.judges.resize import NORMALISATIONS
from harness.records import Count, UserError

if TYPE_CHECKING:
    from torch import Tensor

URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
SHA256 = "6726825d"
"""First digits, which its name ends with."""
DIM = 2048
AVERAGING = (
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    "Mixed_7b",
)
"""Blocks whose average pooling leaves the padding out."""


class InceptionFeatures(NetworkFeatures):
    """Describe pictures by pool3 of Inception, 2,048 numbers of at least 0.

    `resize` is what is done before: "clean299" as clean-fid, "torch299" as pytorch-fid, "tf299" as
    torch-fidelity.
    """

    name = "inception"
    title = "Inception"
    url = URL
    sha256 = SHA256
    cached = "inception/pt_inception-2015-12-05.pth"
    dim = DIM
    weight_bytes = 4 * 23_900_000
    picture_bytes = 4 * 64 * 147 * 147 * 4

    def __init__(
        self,
        checkpoint: str | None = None,
        resize: Literal["clean299", "torch299", "tf299"] = "clean299",
        weights: Weights = "published",
        device: str = "auto",
        batch: Count | None = None,
    ) -> None:
        if resize not in NORMALISATIONS:
            raise UserError(f"resize={resize}: choose from {', '.join(NORMALISATIONS)}")
        super().__init__(checkpoint, resize, weights, device, batch)
        self._resize = NORMALISATIONS[resize]

    def build(self) -> Any:
        """Build the network with random weights."""
        return build_inception()

    def fill(self, network: Any, file: Path) -> None:
        """Fill the network from a file. Raises UserError for one that is of another network."""
        _fill(network, file)

    def prepare(self, image: np.ndarray) -> Tensor:
        """Resize and normalise a picture, float32 [3, 299, 299]."""
        return self._resize(image)

    def forward(self, network: Any, pixels_B3HW: Tensor) -> Tensor:
        """Return the last pooled features, [B, 2048]."""
        return compute_pool3(network, pixels_B3HW)


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
