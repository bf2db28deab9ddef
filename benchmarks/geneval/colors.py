"""Name the color of a detected object with CLIP: what is outside its mask is painted gray.

Reference: `color_classification` of GenEval's evaluate_images.py, with clip_benchmark's zero-shot
classifier. Shapes: N crops, C colors, P prompts per color, D embedding width.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from benchmarks.geneval.detector import Instance
from benchmarks.geneval.verdict import COLORS
from benchmarks.networks import list_network_parts
from benchmarks.optional import require
from harness.download import file_sha256
from harness.judges.placement import OnDevice, count_rows, place_network
from harness.records import Count, MemoryPart, UserError, one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PROMPTS = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
GRAY = (153, 153, 153)
OFFICIAL = "ViT-L-14-quickgelu"


SIZES = {
    OFFICIAL: (428_000_000, 257 * 1024),
    "ViT-B-32-quickgelu": (151_000_000, 50 * 768 + 77 * 512),
}
"""Weights of a model, and hidden states of a picture (and its text); others count as the first."""
CROPS = 16
"""Pictures of a forward on a GPU."""
STATE_COPIES = 12
"""Copies of the hidden states that live at once in a forward."""


@dataclass(frozen=True, slots=True)
class ColorQuestion:
    """Hold an object whose color is asked for, and its picture, uint8 [H, W, 3]."""

    image: np.ndarray
    instance: Instance


class Colors(Protocol):
    """The color classifier of an evaluator."""

    id: str
    random: bool  # True for random weights: they test the path, their verdicts mean nothing

    def load(self) -> None:
        """Load the network; later calls do nothing. Raises UserError if that is impossible."""

    def scores(self, questions: Sequence[ColorQuestion]) -> list[list[float]]:
        """Score how much each object looks like each of the ten `COLORS`; the largest wins."""


class Clip:
    """Classify colors with a CLIP of open_clip.

    `model` is a name among open_clip's models or the JSON file of one. `weights` are "openai", any
    other tag that open_clip knows for the model, or "random"; a `checkpoint` file replaces them.
    OpenAI's weights were trained with QuickGELU, which newer open_clip builds only on request, so
    a model without it is refused.

    Every forward has `batch` crops, so that no result depends on what else is in the batch. None is
    1 on the CPU and 16 on a GPU, where the reference's mixed precision is used.
    """

    option = "colors"
    """The benchmark's option that configures it, for messages."""

    def __init__(
        self,
        model: str = OFFICIAL,
        weights: str = "openai",
        checkpoint: str | None = None,
        device: str = "auto",
        batch: Count | None = None,
    ) -> None:
        if batch is not None and batch < 1:
            raise UserError(f"benchmark.{self.option}.batch={batch}: at least one crop is needed")
        if weights == "random" and checkpoint:
            raise UserError(
                f"benchmark.{self.option}: weights=random and a checkpoint exclude each other"
            )

        is_file = model.endswith(".json")
        has_quick_gelu = (
            _file_has_quick_gelu(Path(model)) if is_file else model.endswith("-quickgelu")
        )
        if not has_quick_gelu:
            raise UserError(
                f"benchmark.{self.option}.model={model} has no QuickGELU, "
                f"which OpenAI's weights need: {OFFICIAL}"
            )
        name = f"{Path(model).stem}-{file_sha256(Path(model))[:8]}" if is_file else model
        weights_name = file_sha256(Path(checkpoint))[:8] if checkpoint else weights
        self.id = f"clip-{name}-{weights_name}"
        self.random = weights == "random"
        self._model = model
        self._weights = weights
        self._checkpoint = checkpoint
        self._device_name = device
        self._batch = batch
        self._network: Any = None
        self._text_CD: dict[str, Tensor] = {}  # by class

    @property
    def network(self) -> Any:
        assert self._network is not None, "load() comes first"
        return self._network

    def memory_need(self, _model: object, shape: OnDevice) -> list[MemoryPart]:
        """List its weights, and what a forward over a batch of crops takes."""
        crops = count_rows(self._batch, place_network(self._device_name, shape), CROPS)
        weights, states = SIZES.get(self._model, SIZES[OFFICIAL])
        return list_network_parts(
            "CLIP",
            4 * weights,
            4 * STATE_COPIES * states * crops,
            is_loaded=self._network is not None,
            device=self._device_name,
        )

    def load(self) -> None:
        """Build the network on the device; later calls do nothing."""
        if self._network is not None:
            return
        require("open_clip", extra="geneval")
        import open_clip
        import torch

        from harness.models.devices import device_named

        device = device_named(self._device_name)
        name = self._model
        if name.endswith(".json"):
            open_clip.add_model_config(Path(name))
            name = Path(name).stem
        with torch.random.fork_rng(devices=[]), _quiet_logging():
            torch.manual_seed(0)
            network, self.preprocess = self._create_network(name)
            self._tokenizer = open_clip.get_tokenizer(name)
        self._device: torch.device = device
        self._network = network.to(device).eval()

    def scores(self, questions: Sequence[ColorQuestion]) -> list[list[float]]:
        """Score each object against each of the ten `COLORS`: cosines of image and text."""
        import torch
        import torch.nn.functional as F

        if not questions:
            return []
        self.load()

        # 1. Crop the objects, and fill the last batch up with copies of the last crop.
        size = count_rows(self._batch, self._device, CROPS)
        crops = [
            self.preprocess(crop_object(question.image, question.instance))
            for question in questions
        ]
        crops += crops[-1:] * (-len(crops) % size)

        with torch.inference_mode(), self._mixed_precision():
            # 2. Embed the crops, batch by batch.
            embedded = []
            for first in range(0, len(crops), size):
                pixels_BCHW = torch.stack(crops[first : first + size]).to(self._device)
                embedded.append(self.network.encode_image(pixels_BCHW))
            image_ND = F.normalize(torch.cat(embedded).float(), dim=-1)

            # 3. Compare each with the colors of its class.
            return [
                (self._embed_colors(question.instance.name) @ image_D).tolist()
                for question, image_D in zip(questions, image_ND[: len(questions)], strict=True)
            ]

    def _create_network(self, name: str) -> tuple[Any, Any]:
        """Create the network and its preprocessing."""
        import open_clip

        pretrained = None if self.random else self._checkpoint or self._weights
        try:
            network, _, preprocess = open_clip.create_model_and_transforms(
                name, pretrained=pretrained
            )
        except Exception as error:  # of the hub, a reader or a shape: the weights cannot be had
            raise UserError(
                f"CLIP {self._model} with weights {self._checkpoint or self._weights} "
                f"cannot be loaded ({one_line(error)[:200]}): "
                f"set benchmark.{self.option}.checkpoint to its open_clip_model.safetensors"
            ) from None
        return network, preprocess

    def _embed_colors(self, name: str) -> Tensor:
        """Embed the colors of a class: the mean direction of each one's prompts, float32 [C, D]."""
        import torch
        import torch.nn.functional as F

        if name in self._text_CD:
            return self._text_CD[name]
        texts = [prompt.format(color=color, name=name) for color in COLORS for prompt in PROMPTS]
        tokens = self._tokenizer(texts).to(self._device)
        embedded = []
        for first in range(0, len(tokens), len(PROMPTS)):
            embedded.append(self.network.encode_text(tokens[first : first + len(PROMPTS)]))
        text_CPD = F.normalize(torch.stack(embedded).float(), dim=-1)
        self._text_CD[name] = F.normalize(text_CPD.mean(1), dim=-1)
        return self._text_CD[name]

    def _mixed_precision(self) -> Any:
        import torch

        return torch.autocast(self._device.type, enabled=self._device.type == "cuda")


def crop_object(image: np.ndarray, instance: Instance) -> Any:
    """Cut an object's box out as a Pillow image, gray outside the object's mask."""
    from PIL import Image

    masked = np.where(instance.mask[:, :, None], image, np.array(GRAY, np.uint8))
    return Image.fromarray(masked).crop(instance.box)


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Silence open_clip, which reports each of its steps to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def _file_has_quick_gelu(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text())["quick_gelu"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no model of open_clip with quick_gelu in it ({one_line(error)})"
        ) from None
