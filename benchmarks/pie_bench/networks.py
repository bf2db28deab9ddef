"""The networks of PIE-Bench's metrics: DINO's keys, LPIPS, and CLIP.

Each has an `id` that names its weights, and `missing`, which says what the user has to give before
it can be used; it is empty where nothing is missing. They are loaded on first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from benchmarks.pie_bench.structure import prepare_input
from harness.download import fetch, file_sha256, prepare_hub
from harness.records import UserError, one_line

if TYPE_CHECKING:
    from torch import Tensor

DINO = "facebook/dino-vitb8"
DINO_EPSILON = 1e-6
"""DINO's own; the configuration on the hub has 1e-12."""
CLIP = "openai/clip-vit-large-patch14"
CLIP_TOKENS = 77
"""Tokens of a text that CLIP reads; torchmetrics cuts the others off, the end token too."""
SQUEEZENET = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"
SQUEEZENET_SHA256 = "b8a52dc0"
"""The first digits, as torchvision publishes them in the file's name."""


class Network(Protocol):
    """What every network has."""

    id: str
    missing: str

    def load(self) -> None:
        """Load the weights; later calls do nothing. Raises UserError if that is impossible."""


class KeyReader(Network, Protocol):
    """Reads the keys of a vision transformer's last block."""

    def read_keys(self, pixels: np.ndarray, *, antialias: bool) -> Tensor:
        """Return the keys of a picture's tokens, class token first, [T, D]."""


class PerceptualDistance(Network, Protocol):
    """Measures how different two pictures look."""

    def measure(self, source: np.ndarray, output: np.ndarray) -> float:
        """Return the distance of two pictures of one size, at least 0."""


class TextSimilarity(Network, Protocol):
    """Compares pictures with texts."""

    def compare(self, asked: Sequence[tuple[np.ndarray, str]]) -> list[tuple[float, bool]]:
        """Return the cosine of each picture and text, and whether the text had to be cut."""


class DinoKeys:
    """Read the keys of DINO's last block, through transformers; a picture is a forward of its own.

    `model` is a hub id at a `revision`, or a folder.
    """

    def __init__(
        self, model: str = DINO, revision: str | None = None, device: str = "auto"
    ) -> None:
        self.id = f"dino-{_name_weights(model, revision)}"
        self.missing = _ask_for_revision("benchmark.structure", model, revision)
        self._model = model
        self._revision = revision
        self._device_name = device
        self._network: Any = None
        self._keys_1TD: Tensor | None = None

    def load(self) -> None:
        """Build the network; later calls do nothing."""
        if self._network is not None:
            return
        from transformers import ViTModel

        from harness.models.devices import device_named

        kind: Any = ViTModel
        network = _load_pretrained(
            kind,
            self._model,
            self._revision,
            option="benchmark.structure.model",
            layer_norm_eps=DINO_EPSILON,
            add_pooling_layer=False,
        )
        last = f".{network.config.num_hidden_layers - 1}."
        named = [
            module
            for name, module in network.named_modules()
            if last in f".{name}" and name.endswith(("attention.k_proj", "attention.key"))
        ]
        if len(named) != 1:
            raise UserError(
                f"benchmark.structure.model={self._model}: {len(named)} layers compute the keys of "
                "its last block where one is expected: use transformers as pyproject.toml has it"
            )
        named[0].register_forward_hook(self._keep_keys)
        self._device = device_named(self._device_name)
        self._network = network.to(self._device).eval()

    def read_keys(self, pixels: np.ndarray, *, antialias: bool) -> Tensor:
        """Return the keys of a picture's tokens, class token first, [T, D]."""
        import torch

        self.load()
        input_13HW = prepare_input(pixels, antialias=antialias)[None].to(self._device)
        with torch.inference_mode():
            self._network(pixel_values=input_13HW, interpolate_pos_encoding=True)
        assert self._keys_1TD is not None
        return self._keys_1TD[0].float()

    def _keep_keys(self, _module: object, _inputs: object, keys_1TD: Tensor) -> None:
        self._keys_1TD = keys_1TD


class SqueezeLpips:
    """Measure LPIPS with SqueezeNet 1.1, by torchmetrics; a pair is a forward of its own.

    torchmetrics carries the linear weights. `checkpoint` is torchvision's file of the backbone;
    None is a download, pinned by its hash.
    """

    def __init__(self, checkpoint: str | None = None, device: str = "auto") -> None:
        name = file_sha256(Path(checkpoint).expanduser())[:8] if checkpoint else SQUEEZENET_SHA256
        self.id = f"lpips-squeeze-{name}"
        self.missing = ""
        self._checkpoint = checkpoint
        self._device_name = device
        self._network: Any = None

    def load(self) -> None:
        """Build the network; later calls do nothing."""
        if self._network is not None:
            return
        # Its public class downloads the backbone unpinned, and takes no file.
        from torchmetrics.functional.image.lpips import _LPIPS

        from harness.models.checkpoint import read_file
        from harness.models.devices import device_named

        path = self._locate_backbone()
        weights = read_file(path)
        network = _LPIPS(pretrained=True, net="squeeze", pnet_rand=True)
        slices: Any = network.net.slices
        for part in slices:
            for name, layer in part.named_children():
                begin = f"features.{name}."
                own = {
                    key.removeprefix(begin): tensor
                    for key, tensor in weights.items()
                    if key.startswith(begin)
                }
                _fill_layer(layer, own, path)
        self._device = device_named(self._device_name)
        self._network = network.to(self._device).eval()

    def measure(self, source: np.ndarray, output: np.ndarray) -> float:
        """Return the distance of two pictures of one size."""
        import torch

        self.load()
        pair = [
            torch.from_numpy(np.float32(pixels) / np.float32(255)).permute(2, 0, 1)[None] * 2 - 1
            for pixels in (output, source)
        ]
        with torch.inference_mode():
            distance = self._network(pair[0].to(self._device), pair[1].to(self._device))
        return float(distance)

    def _locate_backbone(self) -> Path:
        if self._checkpoint is not None:
            return Path(self._checkpoint).expanduser()
        return fetch(
            SQUEEZENET,
            SQUEEZENET_SHA256,
            "pie_bench/squeezenet1_1-b8a52dc0.pth",
            "set benchmark.lpips.checkpoint=PATH",
        )


class ClipSimilarity:
    """Compare with CLIP ViT-L/14 through transformers; a picture is a forward of its own.

    `model` is a hub id at a `revision`, or a folder.
    """

    def __init__(
        self, model: str = CLIP, revision: str | None = None, device: str = "auto"
    ) -> None:
        self.id = f"clip-{_name_weights(model, revision)}"
        self.missing = _ask_for_revision("benchmark.clip", model, revision)
        self._model = model
        self._revision = revision
        self._device_name = device
        self._network: Any = None

    def load(self) -> None:
        """Build the network; later calls do nothing."""
        if self._network is not None:
            return
        from transformers import CLIPModel, CLIPProcessor

        from harness.models.devices import device_named

        option = "benchmark.clip.model"
        kind: Any = CLIPModel
        network = _load_pretrained(kind, self._model, self._revision, option=option)
        processor: Any = CLIPProcessor
        self._processor = _load_pretrained(processor, self._model, self._revision, option=option)
        self._device = device_named(self._device_name)
        self._network = network.to(self._device).eval()

    def compare(self, asked: Sequence[tuple[np.ndarray, str]]) -> list[tuple[float, bool]]:
        """Return the cosine of each picture and text, and whether the text had to be cut."""
        self.load()
        return [self._compare_one(pixels, text) for pixels, text in asked]

    def _compare_one(self, pixels: np.ndarray, text: str) -> tuple[float, bool]:
        import torch
        import torch.nn.functional as F

        ids = self._processor.tokenizer(text)["input_ids"]
        shown = self._processor.image_processor(
            images=[torch.from_numpy(pixels.copy()).permute(2, 0, 1)], return_tensors="pt"
        )
        ids_1W = torch.tensor([ids[:CLIP_TOKENS]], device=self._device)
        with torch.inference_mode():
            image = self._network.get_image_features(
                pixel_values=shown["pixel_values"].to(self._device)
            )
            words = self._network.get_text_features(input_ids=ids_1W)
            image_D = F.normalize(_read_features(image).float(), dim=-1)[0]
            text_D = F.normalize(_read_features(words).float(), dim=-1)[0]
        return float(image_D @ text_D), len(ids) > CLIP_TOKENS


def _read_features(returned: Any) -> Tensor:
    """Return the features [B, D]: transformers 5 wraps them, 4 did not."""
    features: Tensor = getattr(returned, "pooler_output", returned)
    return features


def _name_weights(model: str, revision: str | None) -> str:
    """Name weights for an id: a folder by its content, a hub id by its revision."""
    if Path(model).expanduser().is_dir():
        from harness.models.checkpoint import content_of

        return content_of(Path(model).expanduser())[:8]
    return f"{model.rpartition('/')[2]}-{(revision or '')[:8]}"


def _ask_for_revision(option: str, model: str, revision: str | None) -> str:
    """Say what names the weights; "" for a folder, whose content does."""
    if revision is not None or Path(model).expanduser().is_dir():
        return ""
    return f"{option}.revision=COMMIT, the version of its weights, or {option}.model=FOLDER"


def _load_pretrained(
    kind: Any, model: str, revision: str | None, *, option: str, **settings: Any
) -> Any:
    """Load a model or processor of transformers. Raises UserError if it cannot be had."""
    folder = Path(model).expanduser()
    name = str(folder) if folder.is_dir() else model
    prepare_hub()
    try:
        return kind.from_pretrained(name, revision=revision, **settings)
    except Exception as error:  # of the hub, a reader or a shape: the weights cannot be had
        raise UserError(
            f"{option}={model} cannot be had ({one_line(error)[:200]}): "
            f"set {option} to a folder with its files"
        ) from None


def _fill_layer(layer: Any, weights: dict[str, Tensor], path: Path) -> None:
    """Put weights into one layer. Raises UserError for a file of another network."""
    try:
        layer.load_state_dict(weights)
    except RuntimeError:
        raise UserError(
            f"{path} has no features of SqueezeNet 1.1: set benchmark.lpips.checkpoint to "
            "squeezenet1_1-b8a52dc0.pth of torchvision"
        ) from None
