"""Describe pictures by torchvision's VGG-16, as evaluations of precision and recall do.

LANTERN's evaluation (3a56e451) takes the second fully connected layer before it is cut at 0: 4,096
numbers, of pictures that are squeezed to a square.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.judges.network_features import NetworkFeatures, Weights
from harness.records import Count

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 224
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""ImageNet's."""
LAYERS = 4
"""Of the classifier: two linear layers, and what is between them."""


class VggFeatures(NetworkFeatures):
    """Describe pictures by the last hidden layer of VGG-16, 4,096 numbers."""

    name = "vgg16"
    title = "VGG-16"
    url = "https://download.pytorch.org/models/vgg16-397923af.pth"
    sha256 = "397923af"
    cached = "vgg16/vgg16.pth"
    dim = 4096
    weight_bytes = 4 * 138_400_000
    picture_bytes = 4 * 64 * SIDE * SIDE * 4

    def __init__(
        self,
        checkpoint: str | None = None,
        weights: Weights = "published",
        device: str = "auto",
        batch: Count | None = None,
    ) -> None:
        super().__init__(checkpoint, "squeeze224", weights, device, batch)

    def build(self) -> Any:
        """Build the network with random weights."""
        from torchvision.models import vgg16

        return vgg16(weights=None)

    def fill(self, network: Any, file: Path) -> None:
        """Fill the network from a file. Raises UserError for one that is of another network."""
        from harness.models.checkpoint import expect_same_tensors, read_file

        state = read_file(file)
        expect_same_tensors(state, network, file, self.title)
        network.load_state_dict(state)

    def prepare(self, image: np.ndarray) -> Tensor:
        """Squeeze a picture to 224 pixels by Pillow's bilinear filter, and normalise it."""
        from PIL import Image
        from torchvision.transforms import functional as F

        squeezed = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return F.normalize(F.to_tensor(squeezed), list(MEAN), list(DEVIATION))

    def forward(self, network: Any, pixels_B3HW: Tensor) -> Tensor:
        """Return the second linear layer's outputs, [B, 4096]."""
        pooled_BCHW = network.avgpool(network.features(pixels_B3HW))
        return network.classifier[:LAYERS](pooled_BCHW.flatten(1))
