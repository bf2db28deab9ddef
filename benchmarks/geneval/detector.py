"""From pictures to objects: what GenEval's evaluator asks of a Mask2Former, whichever library it
comes from.

Reference: mmdet 2.27's inference of mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco, as GenEval calls
it. The network is a backend's; what its raw outputs mean is decided here, the same for all. There
is no suppression at any point. Shapes: B images, Q queries, C classes, N objects; H x W is the
picture, h x w the network's mask resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from harness.models.pictogram.grammar import CLASSES
from harness.records import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOST = 100
"""Objects per picture, all classes together; one query may appear under several."""
LONG_SIDE = 1333 / 800
"""Longest side of a network's input at most, as a multiple of the short one."""


@dataclass(frozen=True, slots=True)
class Found:
    """An object of a picture."""

    name: str
    box: tuple[
        float, float, float, float
    ]  # x1, y1, x2, y2: tight around the mask, the far corner exclusive
    score: float  # a 32-bit float
    mask: np.ndarray  # bool [H, W]


class Detector(Protocol):
    """The object detector of an evaluator."""

    id: str  # backend, network and weights: results of different ones are never mixed
    random: bool  # its weights are random: a path to test, no result

    def load(self) -> None:
        """Make it ready, once; later calls do nothing. Raises UserError where that is
        impossible.
        """

    def detect(self, images: Sequence[np.ndarray], floor: float) -> list[list[Found]]:
        """Objects with a score above `floor` of each RGB picture, uint8 [H, W, 3], whatever their
        sizes.
        """


class Mask2Former:
    """Batches of pictures through a network. A backend says how a picture is prepared and what the
    network returns.

    Every forward has `batch` rows, so that no result depends on how many pictures are asked about
    together; null is 1 on the CPU, where more gain nothing, and 8 on a GPU.
    """

    def __init__(self, device: str, batch: int | None, weights: str) -> None:
        if batch is not None and batch < 1:
            raise UserError(f"benchmark.detector.batch={batch}: at least one picture is needed")
        if weights not in ("published", "random"):
            raise UserError(f"benchmark.detector.weights={weights}: choose published or random")
        self.random = weights == "random"
        self._asked = device
        self._batch = batch
        self._network: torch.nn.Module | None = None

    @property
    def device(self) -> torch.device:
        from harness.models.checkpoint import device_named

        return device_named(self._asked)

    def load(self) -> None:
        if self._network is None:
            network = self.build()
            self._network = network.to(self.device).eval()

    def detect(self, images: Sequence[np.ndarray], floor: float) -> list[list[Found]]:
        import torch

        self.load()
        found: list[list[Found]] = [[] for _ in images]
        size = self._batch or (1 if self.device.type == "cpu" else 8)
        with torch.inference_mode():
            ready = [self.prepare(image) for image in images]
            shapes = [tuple(pixels.shape) for pixels, _ in ready]
            for shape in dict.fromkeys(shapes):
                rows = [i for i, one in enumerate(shapes) if one == shape]
                for first in range(0, len(rows), size):
                    some = rows[first : first + size]
                    filled = some + some[-1:] * (size - len(some))
                    pixels_BCHW = torch.stack([ready[i][0] for i in filled]).to(self.device)
                    class_BQC, mask_BQhw = self.forward(pixels_BCHW)
                    for row, i in enumerate(some):
                        height, width = images[i].shape[:2]
                        found[i] = instances(
                            class_BQC[row],
                            mask_BQhw[row],
                            shape[1:],
                            ready[i][1],
                            (height, width),
                            floor,
                        )
        return found

    @property
    def network(self) -> torch.nn.Module:
        assert self._network is not None, "load() comes first"
        return self._network

    def build(self) -> torch.nn.Module:
        """The network, on the CPU."""
        raise NotImplementedError

    def prepare(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """Network input of a picture, float32 [3, h, w], and the height and width of it that are no
        padding.
        """
        raise NotImplementedError

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [B, Q, C + 1], the last being no object, and mask logits [B, Q, h, w]."""
        raise NotImplementedError


def instances(
    class_QC: Tensor,
    mask_Qhw: Tensor,
    padded: Sequence[int],
    used: tuple[int, int],
    picture: tuple[int, int],
    floor: float,
) -> list[Found]:
    """Objects scoring above `floor` from the raw outputs for one picture; mmdet's
    MaskFormerFusionHead.

    Masks go from the network's resolution to the `padded` input, lose the padding beyond `used`,
    and are resized to the `picture`, bilinearly both times. A score is class probability times mask
    quality, so a probability that does not exceed `floor` needs no mask.
    """
    import torch.nn.functional as F

    classes = class_QC.shape[1] - 1
    chance_N, index_N = (
        class_QC.softmax(-1)[:, :-1]
        .flatten()
        .topk(min(MOST, len(class_QC) * classes), sorted=False)
    )
    worth = chance_N > floor
    chance_N = chance_N[worth]
    index_N = index_N[worth]
    if not len(index_N):
        return []
    query_M, mask_of_N = (index_N // classes).unique(return_inverse=True)
    logit_MHW = F.interpolate(
        mask_Qhw[query_M][None].float(), tuple(padded), mode="bilinear", align_corners=False
    )
    logit_MHW = logit_MHW[:, :, : used[0], : used[1]]
    logit_MHW = F.interpolate(logit_MHW, picture, mode="bilinear", align_corners=False)[0]
    mask_MHW = logit_MHW > 0
    area_M = mask_MHW.flatten(1).sum(1)
    quality_M = (logit_MHW.sigmoid() * mask_MHW).flatten(1).sum(1) / (area_M + 1e-6)
    score_N = (chance_N * quality_M[mask_of_N]).cpu().numpy()
    names = [CLASSES[i] for i in (index_N % classes).tolist()]
    masks = mask_MHW.cpu().numpy()
    boxes = [_bounds(mask) for mask in masks]
    return [
        Found(name, boxes[m], float(score), masks[m])
        for name, score, m in zip(names, score_N, mask_of_N.tolist(), strict=True)
        if score > floor
    ]


def expect_coco(classes: int, source: str) -> None:
    """Raises UserError for a network that was not taught COCO's 80 objects."""
    if classes != len(CLASSES):
        raise UserError(
            f"{source} knows {classes} classes, GenEval's detector {len(CLASSES)}: "
            "take the instance segmentation variant, not the panoptic one"
        )


def _bounds(mask_HW: np.ndarray) -> tuple[float, float, float, float]:
    """Box of a mask, zeros for an empty one."""
    rows = np.flatnonzero(mask_HW.any(1))
    columns = np.flatnonzero(mask_HW.any(0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
