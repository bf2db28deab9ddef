"""Detect objects: what GenEval's evaluator asks of a Mask2Former, whichever library it comes from.

Reference: mmdet 2.27's inference of mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco, as GenEval calls
it. A backend provides the network; the meaning of its raw outputs is decided here, the same for all
backends. Nothing is suppressed at any point.

Shapes: B images, Q queries, C classes, N candidates (a query as a class), M distinct masks;
H x W is the picture, h x w the network's mask resolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from benchmarks.networks import is_random, list_network_parts
from harness.judges.placement import OnDevice, count_rows, place_network
from harness.models.pictogram.grammar import CLASSES
from harness.records import MemoryPart, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_INSTANCES = 100
"""Objects per picture, all classes together; one query may appear under several classes."""
LONG_SIDE_RATIO = 1333 / 800
"""Largest ratio of the long to the short side of a network's input."""


WEIGHT_BYTES = 4 * 69_000_000
"""Bytes of Mask2Former Swin-S in float32, before it is loaded."""
PICTURES = 8
"""Pictures of a forward on a GPU."""
USUAL_SIDE = 800
"""Pixels of a picture's side, unless another is chosen."""
PLACE_VALUES = 2300
"""Numbers in float32 that live at once at each place of a picture's finest map, 4 x 4 pixels.

They are the maps of the pixel decoder, the widest layer of the backbone, and the masks of 100
queries after 10 layers: added up from the network's dimensions, not measured.
"""


@dataclass(frozen=True, slots=True)
class Instance:
    """Hold an object that was found in a picture."""

    name: str
    # x1, y1, x2, y2: tight around the mask, the far corner exclusive
    box: tuple[float, float, float, float]
    score: float  # a 32-bit float
    mask: np.ndarray  # bool [H, W]


class Detector(Protocol):
    """The object detector of an evaluator."""

    id: str  # backend, network and weights: results of different ones are never mixed
    random: bool  # True for random weights: they test the path, their verdicts mean nothing

    def load(self) -> None:
        """Load the network; later calls do nothing. Raises UserError if that is impossible."""

    def detect(self, images: Sequence[np.ndarray], floor: float) -> list[list[Instance]]:
        """Find the objects that score above `floor` in each RGB picture, uint8 [H, W, 3].

        The pictures may differ in size.
        """


class Mask2Former:
    """Run batches of pictures through a network.

    A backend subclasses this; it builds the network, prepares a picture and calls the network.

    Every forward has `batch` rows, so that no result depends on what else is in the batch. None is
    1 on the CPU, where more gain nothing, and 8 on a GPU.
    """

    def __init__(self, device: str, batch: int | None, weights: str) -> None:
        if batch is not None and batch < 1:
            raise UserError(f"benchmark.detector.batch={batch}: at least one picture is needed")
        self.random = is_random("detector", weights)
        self._device_name = device
        self._batch = batch
        self._network: torch.nn.Module | None = None

    @property
    def device(self) -> torch.device:
        from harness.models.devices import device_named

        return device_named(self._device_name)

    @property
    def network(self) -> torch.nn.Module:
        assert self._network is not None, "load() comes first"
        return self._network

    def memory_need(self, _model: object, shape: OnDevice) -> list[MemoryPart]:
        """List its weights, and what a forward over a batch of square pictures takes."""
        places = (self.side // 4) ** 2
        device = place_network(self._device_name, shape)
        pictures = count_rows(self._batch, device, PICTURES)
        return list_network_parts(
            "detector",
            WEIGHT_BYTES,
            4 * PLACE_VALUES * places * pictures,
            is_loaded=self._network is not None,
            device=self._device_name,
        )

    @property
    def side(self) -> int:
        """Return the pixels of a picture's short side."""
        return USUAL_SIDE

    def load(self) -> None:
        """Build the network on the device; later calls do nothing."""
        if self._network is None:
            network = self.build()
            self._network = network.to(self.device).eval()

    def detect(self, images: Sequence[np.ndarray], floor: float) -> list[list[Instance]]:
        """Find the objects that score above `floor` in each RGB picture, uint8 [H, W, 3]."""
        import torch

        self.load()
        found: list[list[Instance]] = [[] for _ in images]
        size = count_rows(self._batch, self.device, PICTURES)
        with torch.inference_mode():
            # 1. Prepare all pictures; those with inputs of one shape share forwards.
            prepared = [self.prepare(image) for image in images]
            shapes = [tuple(pixels_CHW.shape) for pixels_CHW, _ in prepared]

            for rows in _batches_of_one_shape(shapes, size):
                # 2. Fill the batch up with copies of its last picture.
                filled = rows + rows[-1:] * (size - len(rows))
                pixels_BCHW = torch.stack([prepared[i][0] for i in filled]).to(self.device)

                # 3. Run the network and read its outputs, picture by picture.
                class_BQC, mask_BQhw = self.forward(pixels_BCHW)
                for row, i in enumerate(rows):
                    height, width = images[i].shape[:2]
                    found[i] = read_instances(
                        class_BQC[row],
                        mask_BQhw[row],
                        padded=pixels_BCHW.shape[2:],
                        used=prepared[i][1],
                        picture=(height, width),
                        floor=floor,
                    )
        return found

    def build(self) -> torch.nn.Module:
        """Build the network on the CPU."""
        raise NotImplementedError

    def prepare(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """Make the network's input of a picture, and tell how much of it is no padding.

        Returns float32 [3, h, w], and the height and width of the part that shows the picture.
        """
        raise NotImplementedError

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Compute class logits [B, Q, C + 1] and mask logits [B, Q, h, w].

        The last class is "no object".
        """
        raise NotImplementedError


def read_instances(
    class_QC: Tensor,
    mask_Qhw: Tensor,
    padded: Sequence[int],
    used: tuple[int, int],
    picture: tuple[int, int],
    floor: float,
) -> list[Instance]:
    """Read the objects that score above `floor` from the network's outputs for one picture.

    A score is class probability times mask quality, the mean probability of a mask's pixels, so a
    class probability that does not exceed `floor` needs no mask. `padded`, `used` and `picture` are
    heights and widths: of the network's input, of its part without padding, and of the picture.
    Reference: mmdet's MaskFormerFusionHead.
    """
    # 1. Take the most probable pairs of query and class.
    classes = class_QC.shape[1] - 1
    probs_QC = class_QC.softmax(-1)[:, :-1]
    most = min(MAX_INSTANCES, len(class_QC) * classes)
    prob_N, index_N = probs_QC.flatten().topk(most, sorted=False)
    likely_N = prob_N > floor
    prob_N = prob_N[likely_N]
    index_N = index_N[likely_N]
    if not len(index_N):
        return []

    # 2. Make each query's mask once, however many classes it appears under.
    query_M, mask_of_N = (index_N // classes).unique(return_inverse=True)
    logit_MHW = _resize_masks(mask_Qhw[query_M], padded, used, picture)
    mask_MHW = logit_MHW > 0

    # 3. Score.
    area_M = mask_MHW.flatten(1).sum(1)
    quality_M = (logit_MHW.sigmoid() * mask_MHW).flatten(1).sum(1) / (area_M + 1e-6)
    score_N = (prob_N * quality_M[mask_of_N]).cpu().numpy()

    # 4. Keep what exceeds the floor.
    names = [CLASSES[i] for i in (index_N % classes).tolist()]
    masks = mask_MHW.cpu().numpy()
    boxes = [_bounding_box(mask) for mask in masks]
    return [
        Instance(name, boxes[m], float(score), masks[m])
        for name, score, m in zip(names, score_N, mask_of_N.tolist(), strict=True)
        if score > floor
    ]


def expect_coco(classes: int, source: str) -> None:
    """Raise UserError unless a network has the 80 classes of COCO's objects."""
    if classes != len(CLASSES):
        raise UserError(
            f"{source} knows {classes} classes, GenEval's detector {len(CLASSES)}: "
            "take the instance segmentation variant, not the panoptic one"
        )


def _batches_of_one_shape(shapes: Sequence[tuple[int, ...]], size: int) -> Iterator[list[int]]:
    """Cut indices into batches of at most `size` that have one shape."""
    for shape in dict.fromkeys(shapes):
        same = [i for i, other in enumerate(shapes) if other == shape]
        for first in range(0, len(same), size):
            yield same[first : first + size]


def _resize_masks(
    mask_Mhw: Tensor, padded: Sequence[int], used: tuple[int, int], picture: tuple[int, int]
) -> Tensor:
    """Resize mask logits to the network's input, cut the padding off, resize to the picture.

    Both steps are bilinear, as in the reference; one step would give other pixels.
    """
    import torch.nn.functional as F

    input_1MHW = F.interpolate(
        mask_Mhw[None].float(), tuple(padded), mode="bilinear", align_corners=False
    )
    used_1MHW = input_1MHW[:, :, : used[0], : used[1]]
    return F.interpolate(used_1MHW, picture, mode="bilinear", align_corners=False)[0]


def _bounding_box(mask_HW: np.ndarray) -> tuple[float, float, float, float]:
    """Find the box of a mask; zeros for an empty mask."""
    rows = np.flatnonzero(mask_HW.any(1))
    columns = np.flatnonzero(mask_HW.any(0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    left, right = columns[[0, -1]].astype(float).tolist()
    top, bottom = rows[[0, -1]].astype(float).tolist()
    return left, top, right + 1, bottom + 1
