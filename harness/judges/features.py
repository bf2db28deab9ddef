"""Describe pictures by numbers, so that sets of pictures have distances."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from harness.download import file_sha256
from harness.models.pictogram.detector import Detector
from harness.records import FEATURES, Score, UserError, digest, dump, features_path, one_line

CLIP = "ViT-B-32-quickgelu"
"""OpenAI's weights were trained with QuickGELU; open_clip builds it only on request."""
BATCH = 16
"""Pictures of a forward of CLIP: always as many, so that no feature depends on the others."""
SIZE = "size"
"""What a score's detail calls the width and height of its image, where it has them."""


class Extractor(Protocol):
    """A network that describes a picture by `dim` numbers, D."""

    @property
    def identity(self) -> str:
        """Name the network, its weights and what it makes of a picture before it reads it."""
        ...

    @property
    def dim(self) -> int: ...

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return float32 [N, D] for pictures uint8 [H, W, 3].

        Raises UserError for pictures that the network does not read.
        """


class PictogramFeatures:
    """The embedded judge's last channels, averaged over the picture: 88 numbers."""

    def __init__(self, weights: str = "pictogram_80") -> None:
        self._detector, sha = Detector.load(weights, "judge")
        self.identity = f"pictogram-judge-{sha[:8]}-mean"
        self.dim = int(self._detector.network.head.in_channels)

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
        self.identity = f"clip-{model}-{name}"
        self.dim = int(self._network.text_projection.shape[-1])
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


# ------------------------------------------------------------------ features of a run folder


def read_features(folder: Path, scores: Iterable[Score], extractor: str) -> np.ndarray:
    """Read the features of scored images of a run folder, float32 [N, D], in the scores' order.

    Raises UserError for features that are missing, altered or no array.
    """
    found = []
    for score in scores:
        file = folder / features_path(extractor, score.prompt_id, score.image)
        sha = feature_sha(score, extractor)
        data = file.read_bytes() if file.is_file() else b""
        if not sha or digest(data) != sha:
            raise UserError(f"{file}: is missing or altered: stages=[score] makes it again")
        try:
            found.append(np.load(io.BytesIO(data), allow_pickle=False))
        except ValueError as error:
            raise UserError(f"{file}: is no array of features ({one_line(error)})") from None
    return np.stack(found)


def feature_sha(score: Score, extractor: str) -> str:
    """Return the sha256 of an image's features, as its score's line has it; "" without any."""
    shas = score.detail.get(FEATURES)
    return str(shas.get(extractor, "")) if isinstance(shas, dict) else ""


def digest_features(scores: Iterable[Score], extractor: str) -> str:
    """Return 16 digits that name the features of some images, by the lines of their scores."""
    named = [[score.prompt_id, score.image, feature_sha(score, extractor)] for score in scores]
    return digest(dump(sorted(named)).encode(), 16)


def describe_sizes(scores: Iterable[Score]) -> str:
    """Say that images are not of one size, which no distance may hide; "" where they are.

    Scores of a time that noted no sizes are of one.
    """
    by_size: dict[str, list[Score]] = {}
    for score in scores:
        if SIZE in score.detail:
            by_size.setdefault(str(score.detail[SIZE]), []).append(score)
    if len(by_size) < 2:
        return ""
    most, *others = sorted(by_size, key=lambda size: (-len(by_size[size]), size))
    odd = by_size[others[0]][0]
    count = sum(len(by_size[size]) for size in others)
    return (
        f"{count:,} of {count + len(by_size[most]):,} images are not of {most} pixels, such as "
        f"{odd.prompt_id} image {odd.image} of {others[0]}"
    )


def count_oblong(scores: Iterable[Score]) -> int:
    """Count the scored images that are known to be no squares."""
    sizes = [str(score.detail[SIZE]).split(" x ") for score in scores if SIZE in score.detail]
    return sum(width != height for width, height in sizes)
