"""Describe pictures by numbers, so that sets of pictures have distances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from harness.download import file_sha256
from harness.models.pictogram.detector import Detector
from harness.records import UserError, one_line

CLIP = "ViT-B-32-quickgelu"
"""OpenAI's weights were trained with QuickGELU; open_clip builds it only on request."""
BATCH = 16
"""Pictures of a forward of CLIP: always as many, so that no feature depends on the others."""


class Extractor(Protocol):
    """A network that describes a picture by D numbers."""

    id: str

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return float32 [N, D] for pictures uint8 [H, W, 3].

        Raises UserError for pictures that the network does not read.
        """


class PictogramFeatures:
    """The embedded judge's last channels, averaged over the picture: 88 numbers."""

    def __init__(self, weights: str = "pictogram_80") -> None:
        self._detector, sha = Detector.load(weights, "judge")
        self.id = f"pictogram-judge-{sha[:8]}-mean"

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        try:
            return self._detector.features(images)
        except ValueError as error:
            raise UserError(f"{error}; describe pictures of other models by clip") from None


class ClipFeatures:
    """CLIP's image embeddings of length 1; `weights` is a tag of open_clip, or a file."""

    def __init__(self, weights: str = "openai", model: str = CLIP) -> None:
        import open_clip
        import torch

        try:
            network, _, preprocess = open_clip.create_model_and_transforms(
                model, pretrained=weights
            )
        except Exception as error:  # of the hub, a reader or a shape: the weights cannot be had
            raise UserError(
                f"CLIP {model} with weights {weights} cannot be loaded ({one_line(error)[:200]}): "
                "give its open_clip_model.safetensors by --weights"
            ) from None
        self._network: Any = network.eval()
        self._preprocess: Any = preprocess
        name = weights
        if Path(weights).is_file():
            name = file_sha256(Path(weights))[:8]
        self.id = f"clip-{model}-{name}"
        self._torch = torch

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        from PIL import Image

        torch = self._torch
        ready = [self._preprocess(Image.fromarray(image)) for image in images]
        ready += ready[-1:] * (-len(ready) % BATCH)
        found = []
        with torch.inference_mode():
            for first in range(0, len(ready), BATCH):
                batch = torch.stack(ready[first : first + BATCH])
                found.append(self._network.encode_image(batch, normalize=True).float().numpy())
        return np.concatenate(found)[: len(images)]
