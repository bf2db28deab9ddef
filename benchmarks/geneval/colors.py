"""The color of a detected object, by CLIP: the picture outside its mask is gray, and ten colors are
put to choice.

Reference: `color_classification` of GenEval's evaluate_images.py, with clip_benchmark's zero-shot
classifier.
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

from benchmarks.geneval.detector import Found
from benchmarks.geneval.verdict import COLORS
from harness.download import file_sha256
from harness.records import UserError, one_line

if TYPE_CHECKING:
    from torch import Tensor

PROMPTS = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
GRAY = (153, 153, 153)
OFFICIAL = "ViT-L-14-quickgelu"


@dataclass(frozen=True, slots=True)
class Question:
    """An object whose color is asked for: in its picture, uint8 [H, W, 3], as this class."""

    image: np.ndarray
    found: Found


class Colors(Protocol):
    """The color classifier of an evaluator."""

    id: str
    random: bool

    def load(self) -> None:
        """Make it ready, once; later calls do nothing. Raises UserError where that is
        impossible.
        """

    def scores(self, questions: Sequence[Question]) -> list[list[float]]:
        """Per object how much it looks like each of the ten `COLORS`; the largest is its color."""


class Clip:
    """A CLIP of open_clip: `model` is a name among its models or the JSON file of one.

    `weights` are `openai`, any other tag that open_clip knows for the model, or `random`; or they
    are read from a `checkpoint` file. OpenAI's were trained with QuickGELU, which newer open_clip
    only builds when it is asked to, so a model without it is refused. Every forward has `batch`
    crops, so that no result depends on its company; null is 1 on the CPU and 16 on a GPU, where the
    reference's mixed precision is used.
    """

    def __init__(
        self,
        model: str = OFFICIAL,
        weights: str = "openai",
        checkpoint: str | None = None,
        device: str = "auto",
        batch: int | None = None,
    ) -> None:
        if batch is not None and batch < 1:
            raise UserError(f"benchmark.colors.batch={batch}: at least one crop is needed")
        if weights == "random" and checkpoint:
            raise UserError("benchmark.colors: weights=random and a checkpoint exclude each other")
        if model.endswith(".json"):
            quick = _described(Path(model))
            name = f"{Path(model).stem}-{file_sha256(Path(model))[:8]}"
        else:
            quick = model.endswith("-quickgelu")
            name = model
        if not quick:
            raise UserError(
                f"benchmark.colors.model={model} has no QuickGELU, which OpenAI's weights need: {OFFICIAL}"
            )
        self.random = weights == "random"
        which = file_sha256(Path(checkpoint))[:8] if checkpoint else weights
        self.id = f"clip-{name}-{which}"
        self._name = model
        self._weights = weights
        self._checkpoint = checkpoint
        self._asked = device
        self._batch = batch
        self._model: Any = None
        self._text: dict[str, Tensor] = {}  # class -> [colors, D]

    def load(self) -> None:
        if self._model is not None:
            return
        import open_clip
        import torch

        from harness.models.checkpoint import device_named

        device = device_named(self._asked)
        name = self._name
        if name.endswith(".json"):
            open_clip.add_model_config(Path(name))
            name = Path(name).stem
        with torch.random.fork_rng(devices=[]), _silence():
            torch.manual_seed(0)
            try:
                self._model, _, self._transform = open_clip.create_model_and_transforms(
                    name, pretrained=None if self.random else self._checkpoint or self._weights
                )
            except Exception as error:  # a hub's, a reader's or a shape's error: all mean that the weights are not had
                raise UserError(
                    f"CLIP {self._name} with weights {self._checkpoint or self._weights} cannot be loaded "
                    f"({one_line(error)[:200]}): set benchmark.colors.checkpoint to its open_clip_model.safetensors"
                ) from None
            self._tokenizer = open_clip.get_tokenizer(name)
        self._device = device
        self._model = self._model.to(device).eval()

    def scores(self, questions: Sequence[Question]) -> list[list[float]]:
        import torch
        import torch.nn.functional as F

        if not questions:
            return []
        self.load()
        size = self._batch or (1 if self._device.type == "cpu" else 16)
        crops = [self._transform(crop(question.image, question.found)) for question in questions]
        crops += crops[-1:] * (-len(crops) % size)
        made = []
        with torch.inference_mode(), self._precision():
            for first in range(0, len(crops), size):
                made.append(
                    self._model.encode_image(
                        torch.stack(crops[first : first + size]).to(self._device)
                    )
                )
            image_ND = F.normalize(torch.cat(made).float(), dim=-1)
            return [
                (self._classifier(question.found.name) @ image_D).tolist()
                for question, image_D in zip(questions, image_ND[: len(questions)], strict=True)
            ]

    def _classifier(self, name: str) -> Tensor:
        """Text side for one class: per color the mean of the three prompts' directions, float32
        [colors, D].
        """
        import torch
        import torch.nn.functional as F

        if name not in self._text:
            texts = [
                prompt.format(color=color, name=name) for color in COLORS for prompt in PROMPTS
            ]
            tokens = self._tokenizer(texts).to(self._device)
            made = [
                self._model.encode_text(tokens[i : i + len(PROMPTS)])
                for i in range(0, len(tokens), len(PROMPTS))
            ]
            text_CPD = F.normalize(torch.stack(made).float(), dim=-1)
            self._text[name] = F.normalize(text_CPD.mean(1), dim=-1)
        return self._text[name]

    def _precision(self) -> Any:
        import torch

        return torch.autocast(self._device.type, enabled=self._device.type == "cuda")


def crop(image: np.ndarray, found: Found) -> Any:
    """The object's box as a Pillow image, gray outside the object's mask."""
    from PIL import Image

    masked = np.where(found.mask[:, :, None], image, np.array(GRAY, np.uint8))
    return Image.fromarray(masked).crop(found.box)


@contextmanager
def _silence() -> Iterator[None]:
    """open_clip tells the root logger of each of its steps."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def _described(path: Path) -> bool:
    """Whether the model of a JSON file has QuickGELU."""
    try:
        return bool(json.loads(path.read_text())["quick_gelu"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no model of open_clip with quick_gelu in it ({one_line(error)})"
        ) from None
