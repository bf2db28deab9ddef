"""Detectors of the pictogram world: which objects a picture shows, where, and of which colour.

CenterNet-like (Zhou et al. 2019): a heat map per class at a quarter of the resolution, whose peaks
are objects, and four distances from a peak to the sides of its box. Two architectures exist so that
a reward and a judge share neither weights nor shape.

Shapes: B pictures, C classes, h w cells, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.pictogram import weights as files
from harness.models.pictogram.grammar import COLORS
from harness.models.pictogram.world import REFERENCE_RGB, SIDE, Pixels

STRIDE = 4
"""Pixels a side of a cell of the heat map."""

MICROBATCH = 16
"""Pictures that a network computes at a time."""

LOWEST = 0.05
"""Detections below this score are not reported."""

Box = tuple[float, float, float, float]
"""(x1, y1, x2, y2) in pixels, right and bottom exclusive."""

Peak = tuple[str, Box, float]
"""Class, box and score of an object whose colour is not known yet."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One object found in a picture."""

    name: str
    box: Box
    score: float
    color: str
    color_shares: tuple[float, ...]  # how well each of the ten colours fits, summing to 1


class Detector:
    """A trained network with its classes.

    It runs in float32 in batches of one constant shape, so that results do not depend on which
    other pictures are in the batch.
    """

    def __init__(self, network: nn.Module, classes: Sequence[str]) -> None:
        self.network: Any = network.eval()
        self.classes = tuple(classes)

    @classmethod
    def load(cls, weights: str, part: str) -> tuple[Detector, str]:
        """Load a detector of a shipped set; returns it and the sha256 of its file."""
        state, config, sha = files.read_part(weights, part)
        classes = files.config_strings(config, "classes")
        network = new_network(str(config["architecture"]), len(classes))
        files.fill_module(network, state, f"{part} of {weights!r}")
        return cls(network, classes), sha

    def detect(self, images: Sequence[Pixels]) -> list[list[Detection]]:
        """Find the objects of each picture (uint8 [48, 48, 3]), best first.

        Raises ValueError for a picture of another shape.
        """
        found: list[list[Detection]] = []
        for start in range(0, len(images), MICROBATCH):
            found += self._detect_batch(images[start : start + MICROBATCH])
        return found

    @torch.no_grad()
    def features(self, images: Sequence[Pixels]) -> np.ndarray:
        """Describe each picture by the mean of the network's last channels, float32 [N, width].

        Raises ValueError for a picture of another shape.
        """
        found = [np.zeros((0, self.network.head.in_channels), np.float32)]
        for start in range(0, len(images), MICROBATCH):
            batch = images[start : start + MICROBATCH]
            channels = self.network.trunk(_to_batch(batch))
            found.append(channels.mean((2, 3))[: len(batch)].numpy())
        return np.concatenate(found)

    @torch.no_grad()
    def _detect_batch(self, images: Sequence[Pixels]) -> list[list[Detection]]:
        peaks = find_peaks(self.network(_to_batch(images)), self.classes)[: len(images)]
        return [_add_colors(image, found) for image, found in zip(images, peaks, strict=True)]


def _to_batch(images: Sequence[Pixels]) -> Tensor:
    """Stack up to `MICROBATCH` pictures, and black ones to the full number, in [-1, 1]."""
    batch_BHW3 = torch.zeros(MICROBATCH, SIDE, SIDE, 3)
    for i, image in enumerate(images):
        if image.shape != (SIDE, SIDE, 3):
            raise ValueError(
                f"a picture of shape {image.shape}: the pictogram detectors read {SIDE}x{SIDE}x3"
            )
        batch_BHW3[i] = torch.from_numpy(np.array(image, np.float32))
    scaled_B3HW = batch_BHW3.permute(0, 3, 1, 2).div(127.5).sub(1)
    return scaled_B3HW.contiguous(memory_format=torch.channels_last)


def _add_colors(image: Pixels, peaks: Sequence[Peak]) -> list[Detection]:
    """Detections of a picture: its peaks with the colours of their boxes."""
    lab = to_lab(np.asarray(image, np.float64))
    background = background_lab(lab, [box for _, box, score in peaks if score > 0.3])
    detections = []
    for name, box, score in peaks:
        shares = color_shares(lab, box, background)
        color = COLORS[int(shares.argmax())]
        detections.append(Detection(name, box, score, color, tuple(map(float, shares))))
    return detections


# --- networks -------------------------------------------------------------------------------------


def new_network(architecture: str, classes: int) -> nn.Module:
    """Build an untrained network ("residual" or "hourglass") that finds next to nothing."""
    network = ARCHITECTURES[architecture](classes)
    nn.init.constant_(network.head.bias[:classes], -3.0)  # type: ignore[index]
    return network.to(memory_format=torch.channels_last)


class ResidualNet(nn.Module):
    """The judge's shape: a plain stack of residual blocks at the resolution of the heat map.

    Some of them are dilated.
    """

    def __init__(self, classes: int, width: int = 88) -> None:
        super().__init__()
        half = width // 2
        self.stem = nn.Sequential(
            _conv(3, half, stride=2), Residual(half), _conv(half, width, stride=2)
        )
        self.body = nn.Sequential(*(Residual(width, dilation) for dilation in (1, 2, 1, 2, 1)))
        self.head = nn.Conv2d(width, classes + 4, 1)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        return self.head(self.trunk(x_B3HW))

    def trunk(self, x_B3HW: Tensor) -> Tensor:
        """Return what the head reads, [B, width, h, w]."""
        return self.body(self.stem(x_B3HW))


class HourglassNet(nn.Module):
    """The reward's shape: patches, then down to a coarse view and up again with skips."""

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 40, 5, 2), _conv(40, width, 5, 2))
        self.fine = nn.Sequential(_conv(width, width), _conv(width, width))
        self.down = nn.Sequential(
            _conv(width, 2 * width, stride=2),
            _conv(2 * width, 2 * width),
            _conv(2 * width, 2 * width),
        )
        self.coarse = nn.Sequential(_conv(2 * width, width, stride=2), _conv(width, width))
        self.join = nn.Sequential(
            _conv(3 * width, width), _conv(2 * width, width), _conv(width, width)
        )
        self.head = nn.Conv2d(width, classes + 4, 1)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        return self.head(self.trunk(x_B3HW))

    def trunk(self, x_B3HW: Tensor) -> Tensor:
        """Return what the head reads, [B, width, h, w]."""
        join_down, join_fine, last = self.join
        fine = self.fine(self.stem(x_B3HW))
        down = self.down(fine)
        coarse = F.interpolate(self.coarse(down), size=down.shape[-2:])
        joined = join_down(torch.cat((down, coarse), 1))
        up = F.interpolate(joined, size=fine.shape[-2:])
        return last(join_fine(torch.cat((fine, up), 1)))


ARCHITECTURES: dict[str, type[ResidualNet] | type[HourglassNet]] = {
    "residual": ResidualNet,
    "hourglass": HourglassNet,
}


class Residual(nn.Module):
    """Two convolutions, added to their input."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = _conv(channels, channels, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


def _conv(
    c_in: int, c_out: int, size: int = 3, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    pad = dilation * (size // 2)
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, size, stride, pad, dilation, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


# --- targets and decoding -------------------------------------------------------------------------


def split_output(out: Tensor) -> tuple[Tensor, Tensor]:
    """Split a network's output [B, C + 4, h, w].

    Returns heat logits [B, C, h, w], and distances in pixels from a cell's centre to the left, top,
    right and bottom of a box, [B, 4, h, w].
    """
    return out[:, :-4], out[:, -4:] * 16 + 12


def cell_centres(side: int) -> Tensor:
    """List the pixel coordinates of the cells' centres along a side."""
    return torch.arange(side // STRIDE) * STRIDE + STRIDE / 2


@torch.no_grad()
def find_peaks(out: Tensor, classes: Sequence[str]) -> list[list[Peak]]:
    """Find the local maxima of at least `LOWEST` in a network's output, best first, per picture."""
    heat, distances = split_output(out.float())
    score = heat.sigmoid()
    is_maximum = F.max_pool2d(score, 3, 1, 1) == score
    score = score * is_maximum

    side = out.shape[-1] * STRIDE
    centres = cell_centres(side).tolist()
    peaks: list[list[Peak]] = [[] for _ in range(len(out))]
    for picture, class_, row, column in (score >= LOWEST).nonzero().tolist():
        to_sides = distances[picture, :, row, column].tolist()
        box = _box_around(centres[column], centres[row], to_sides, side)
        peak_score = float(score[picture, class_, row, column])
        peaks[picture].append((classes[class_], box, peak_score))
    return [sorted(found, key=_negative_score) for found in peaks]


def _box_around(x: float, y: float, to_sides: Sequence[float], side: int) -> Box:
    """The box of so many pixels to each side of a centre, cut to the picture."""
    left, top, right, bottom = to_sides

    def inside(value: float) -> float:
        return min(max(value, 0.0), float(side))

    return inside(x - left), inside(y - top), inside(x + right), inside(y + bottom)


def _negative_score(peak: Peak) -> float:
    return -peak[2]


# --- colour ---------------------------------------------------------------------------------------

_XYZ_OF_RGB = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)
_WHITE_XYZ = np.array([0.9505, 1.0, 1.089])


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB 0..255 [..., 3] to CIE Lab (D65)."""
    linear = rgb / 255.0
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    xyz = linear @ _XYZ_OF_RGB.T / _WHITE_XYZ
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    fx = f[..., 0]
    fy = f[..., 1]
    fz = f[..., 2]
    return np.stack((116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)), -1)


REFERENCE_LAB = to_lab(np.array([REFERENCE_RGB[color] for color in COLORS], np.float64))


def read_box_colors(image: Pixels, box: Sequence[float]) -> list[float]:
    """Read how well each of the ten colours fits what is in a box of a picture, summing to 1."""
    lab = to_lab(np.asarray(image, np.float64))
    shares: list[float] = color_shares(lab, box, background_lab(lab, [box])).tolist()
    return shares


def color_shares(lab: np.ndarray, box: Sequence[float], background: np.ndarray) -> np.ndarray:
    """Compute how well each of the ten colours fits the foreground of a box, summing to 1.

    `lab` is the whole picture [H, W, 3]. The foreground is what differs from the background. Its
    colour is the median by lightness, taken over the middle fifth, so that windows, wheels and
    anti-aliased rims do not count.
    """
    # 1. The foreground's pixels; all of the box if hardly any differ.
    x1, y1, x2, y2 = (round(v) for v in box)
    inside = lab[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)].reshape(-1, 3)
    distant = inside[np.linalg.norm(inside - background, axis=-1) > 14]
    pixels = distant if len(distant) >= 5 else inside

    # 2. Their colour.
    ranked = pixels[np.argsort(pixels[:, 0], kind="stable")]
    first = int(len(ranked) * 0.4)
    last = int(len(ranked) * 0.6)
    middle = np.median(ranked[first : last + 1], axis=0)

    # 3. Its distance from every reference, as shares.
    distance = np.linalg.norm(REFERENCE_LAB - middle, axis=-1)
    share = np.exp(-(distance - distance.min()) / 6.0)
    return np.asarray(share / share.sum())


def background_lab(lab: np.ndarray, boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Compute the median colour outside all boxes, or of the frame if boxes leave too little."""
    outside = np.ones(lab.shape[:2], bool)
    for x1, y1, x2, y2 in boxes:
        outside[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = False
    if outside.sum() < 50:
        outside[:] = False
        outside[[0, -1]] = True
        outside[:, [0, -1]] = True
    return np.asarray(np.median(lab[outside], axis=0))
