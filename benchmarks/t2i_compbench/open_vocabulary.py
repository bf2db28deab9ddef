"""Find named objects with OWLv2 of transformers: a substitute for the reference's detector.

It is asked for the objects of a prompt, so it knows each of them; its scores and boxes are others
than UniDet's, and the score of a position contains them. Rows by it are marked and never ranked
with the reference's.

Shapes: B pictures, N boxes of a picture, Q names, W words of a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.boxes import Found
from benchmarks.geneval.transformers_backend import explain_missing, find_revision
from benchmarks.networks import is_random, list_network_parts
from benchmarks.optional import require
from benchmarks.t2i_compbench.boxes import resized_sides
from benchmarks.t2i_compbench.evaluators import Picture
from harness.records import MemoryPart

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MODEL = "google/owlv2-base-patch16-ensemble"
SIDE = 960
"""Pixels a side of the network's input."""
WORDS = 16
"""Tokens of a name."""
TEMPLATE = "a photo of {article} {name}"

WEIGHT_BYTES = 4 * 155_000_000
"""Bytes of the network in float32."""
PICTURE_BYTES = 8 * 4 * 3601 * 3072
"""Bytes that a picture takes: eight copies of the widest layer, 3072 numbers at 3601 positions.

Its attention is never held as a whole.
"""


class OpenVocabulary:
    """Detect with OWLv2: the published weights, or random ones of the same size.

    `model` is a hub id at a `revision`, or a folder. Objects score at least `threshold`; of two of
    a name that overlap by more than `overlap` (IoU) the better one stays. A picture is a forward of
    its own, so that no result depends on others.
    """

    def __init__(
        self,
        model: str = MODEL,
        revision: str | None = None,
        weights: str = "published",
        threshold: float = 0.2,
        overlap: float = 0.5,
        device: str = "auto",
    ) -> None:
        self.random = is_random("detector", weights)
        self.missing = ""
        self._model = model
        self._revision = revision
        self._threshold = threshold
        self._overlap = overlap
        self._device_name = device
        self._network: Any = None
        name = model.rstrip("/").split("/")[-1]
        self.protocol = f"detector={name}"
        weights_name = "random" if self.random else (revision or find_revision(model))[:8]
        self.id = f"{name}-{weights_name}@{threshold}"

    def memory_need(self, _model: object, _shape: object) -> list[MemoryPart]:
        """List its weights, and what a forward over a picture takes."""
        return list_network_parts(
            "OWLv2",
            WEIGHT_BYTES,
            PICTURE_BYTES,
            is_loaded=self._network is not None,
            device=self._device_name,
        )

    def load(self) -> None:
        """Build network and tokenizer; later calls do nothing."""
        if self._network is not None:
            return
        require("open_clip", extra="geneval")
        from open_clip import SimpleTokenizer
        from transformers import Owlv2ImageProcessor

        from harness.models.devices import device_named

        # open_clip's tokenizer is CLIP's, which this network has, and comes without a download.
        self._tokenizer = SimpleTokenizer(context_length=WORDS)
        self._processor = Owlv2ImageProcessor()
        self._device: torch.device = device_named(self._device_name)
        network = self._random_network() if self.random else self._published_network()
        self._network = network.to(self._device).eval()

    def detect(self, pictures: Sequence[Picture]) -> list[list[Found] | None]:
        """Find the named objects of each picture, the best first; nothing where none is named."""
        self.load()
        return [self._detect_one(picture) if picture.names else [] for picture in pictures]

    def _detect_one(self, picture: Picture) -> list[Found]:
        import torch

        names = list(dict.fromkeys(picture.names))
        with torch.inference_mode():
            # 1. Run the network: the picture in a square, top left, and the names as texts.
            ids_QW = self._tokenizer([_write_query(name) for name in names]).to(self._device)
            end_Q1 = ids_QW.argmax(-1, keepdim=True)
            places_W = torch.arange(WORDS, device=self._device)
            pixels = self._processor(picture.pixels.copy(), return_tensors="pt")["pixel_values"]
            outputs = self._network(
                input_ids=ids_QW,
                attention_mask=(places_W <= end_Q1).long(),
                pixel_values=pixels.to(self._device),
            )

            # 2. Read scores, names and boxes.
            score_NQ = outputs.logits[0].float().sigmoid().cpu()
            score_N, name_N = score_NQ.max(-1)
            box_N4 = _read_boxes(outputs.pred_boxes[0].float().cpu(), picture.pixels)

        # 3. Keep the good ones, the best first.
        kept = self._select(score_N, name_N, box_N4)
        return [
            Found(names[int(name_N[i])], tuple(box_N4[i].tolist()), float(score_N[i])) for i in kept
        ]

    def _select(self, score_N: Tensor, name_N: Tensor, box_N4: Tensor) -> list[int]:
        """Select the boxes above the threshold that no better one of their name covers."""
        from torchvision.ops import batched_nms

        good_N = (score_N >= self._threshold).nonzero()[:, 0]
        kept = batched_nms(box_N4[good_N], score_N[good_N], name_N[good_N], self._overlap)
        return [int(i) for i in good_N[kept]]

    def _random_network(self) -> Any:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build_network()

    def _published_network(self) -> Any:
        import torch
        from transformers import Owlv2ForObjectDetection

        kind: Any = Owlv2ForObjectDetection
        try:
            return kind.from_pretrained(self._model, revision=self._revision, dtype=torch.float32)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise explain_missing(self._model, error) from None


def build_network() -> Any:
    """Build a network of the published one's shape, with random weights."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    return Owlv2ForObjectDetection(Owlv2Config(vision_config={"image_size": SIDE}))


def _write_query(name: str) -> str:
    article = "an" if name[0] in "aeiou" else "a"
    return TEMPLATE.format(article=article, name=name)


def _read_boxes(box_N4: Tensor, pixels: np.ndarray) -> Tensor:
    """Read boxes (centre and size, as shares of the square) in the reference detector's scale."""
    from torchvision.ops import box_convert

    height, width = pixels.shape[:2]
    wide, high = resized_sides(width, height)
    corners_N4 = box_convert(box_N4, "cxcywh", "xyxy") * max(wide, high)
    corners_N4[:, 0::2] = corners_N4[:, 0::2].clamp(0, wide)
    corners_N4[:, 1::2] = corners_N4[:, 1::2].clamp(0, high)
    return corners_N4
