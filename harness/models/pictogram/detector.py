"""Detectors of the pictogram world: what objects a picture shows, where, and of which colour.

CenterNet-like (Zhou et al. 2019): a heat map per class at a quarter of the resolution, whose peaks
are objects, and four distances from a peak to the sides of its box. Two architectures exist so that
a reward and a judge share neither weights nor shape. Shapes: B pictures, C classes, h w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.pictogram import weights as files
from harness.models.pictogram.grammar import COLORS
from harness.models.pictogram.world import REFERENCE_RGB, SIDE, Pixels

STRIDE = 4
MICROBATCH = 16
LOWEST = 0.05
"""Detections below this score are not reported."""


Peak = tuple[str, tuple[float, float, float, float], float]
"""Class, box and score."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One object found in a picture; the box is in pixels, right and bottom exclusive."""

    name: str
    box: tuple[float, float, float, float]
    score: float
    color: str
    color_shares: tuple[float, ...]  # how well each of the ten colours fits, summing to 1


# --- networks -------------------------------------------------------------------------------------


def _conv(
    c_in: int, c_out: int, size: int = 3, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    pad = dilation * (size // 2)
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, size, stride, pad, dilation, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = _conv(channels, channels, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class ResidualNet(nn.Module):
    """The judge's shape: a plain stack of residual blocks at the resolution of the heat map, some
    of them dilated.
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
        return self.head(self.body(self.stem(x_B3HW)))


class HourglassNet(nn.Module):
    """The reward's shape: patches, then down to a coarse view of the whole picture and up again
    with skips.
    """

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
        fine = self.fine(self.stem(x_B3HW))
        down = self.down(fine)
        coarse = F.interpolate(self.coarse(down), size=down.shape[-2:])
        up = F.interpolate(self.join[0](torch.cat((down, coarse), 1)), size=fine.shape[-2:])
        return self.head(self.join[2](self.join[1](torch.cat((fine, up), 1))))


ARCHITECTURES: dict[str, type[ResidualNet] | type[HourglassNet]] = {
    "residual": ResidualNet,
    "hourglass": HourglassNet,
}


def new_network(architecture: str, classes: int) -> nn.Module:
    network = ARCHITECTURES[architecture](classes)
    nn.init.constant_(network.head.bias[:classes], -3.0)  # type: ignore[index]
    return network.to(memory_format=torch.channels_last)


# --- targets and decoding -------------------------------------------------------------------------


def split(out_B_hw: Tensor) -> tuple[Tensor, Tensor]:
    """Network output to heat logits [B, C, h, w] and distances left, top, right, bottom [B, 4, h,
    w] in pixels.
    """
    return out_B_hw[:, :-4], out_B_hw[:, -4:] * 16 + 12


def cell_centres(side: int) -> Tensor:
    return torch.arange(side // STRIDE) * STRIDE + STRIDE / 2


@torch.no_grad()
def peaks(out: Tensor, classes: Sequence[str]) -> list[list[Peak]]:
    """Class, box and score of each local maximum of at least `LOWEST`, best first, per picture."""
    heat, sides = split(out.float())
    score = heat.sigmoid()
    score = score * (F.max_pool2d(score, 3, 1, 1) == score)
    side = out.shape[-1] * STRIDE
    centres = cell_centres(side)
    found: list[list[Peak]] = [[] for _ in range(len(out))]
    for b, c, i, j in (score >= LOWEST).nonzero().tolist():
        left, top, right, bottom = sides[b, :, i, j].tolist()
        x = float(centres[j])
        y = float(centres[i])
        x1, y1, x2, y2 = (
            min(max(v, 0.0), float(side)) for v in (x - left, y - top, x + right, y + bottom)
        )
        found[b].append((classes[c], (x1, y1, x2, y2), float(score[b, c, i, j])))
    return [sorted(one, key=lambda found_one: -found_one[2]) for one in found]


# --- colour ---------------------------------------------------------------------------------------


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB 0..255 [..., 3] to CIE Lab (D65)."""
    linear = rgb / 255.0
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    matrix = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack(
        (116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])), -1
    )


REFERENCE_LAB = to_lab(np.array([REFERENCE_RGB[color] for color in COLORS], np.float64))


def color_shares(lab: np.ndarray, box: Sequence[float], background: np.ndarray) -> np.ndarray:
    """How well each of the ten colours fits the median foreground pixel of a box, summing to 1.

    `lab` is the whole picture [H, W, 3]. The foreground is what differs from the background; the
    median is by lightness, taken over the middle fifth, so that windows, wheels and anti-aliased
    rims do not count.
    """
    x1, y1, x2, y2 = (round(v) for v in box)
    inside = lab[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)].reshape(-1, 3)
    distant = inside[np.linalg.norm(inside - background, axis=-1) > 14]
    pixels = distant if len(distant) >= 5 else inside
    ranked = pixels[np.argsort(pixels[:, 0], kind="stable")]
    middle = np.median(ranked[int(len(ranked) * 0.4) : int(len(ranked) * 0.6) + 1], axis=0)
    distance = np.linalg.norm(REFERENCE_LAB - middle, axis=-1)
    share = np.exp(-(distance - distance.min()) / 6.0)
    return np.asarray(share / share.sum())


def background_lab(lab: np.ndarray, boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Median colour outside all boxes (of the frame where boxes leave too little)."""
    outside = np.ones(lab.shape[:2], bool)
    for x1, y1, x2, y2 in boxes:
        outside[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = False
    if outside.sum() < 50:
        outside[:] = False
        outside[0] = True
        outside[-1] = True
        outside[:, 0] = True
        outside[:, -1] = True
    return np.asarray(np.median(lab[outside], axis=0))


# --- the detector ---------------------------------------------------------------------------------


class Detector:
    """A trained network with its classes. Runs in float32 in batches of one constant shape: company
    changes nothing.
    """

    def __init__(self, network: nn.Module, classes: Sequence[str]) -> None:
        self.network = network.eval()
        self.classes = tuple(classes)

    @classmethod
    def load(cls, weights: str, part: str) -> tuple[Detector, str]:
        """The detector of a shipped set and its sha256."""
        state, config, sha = files.read(weights, part)
        classes = files.strings(config, "classes")
        network = new_network(str(config["architecture"]), len(classes))
        files.fill(network, state, f"{part} of {weights!r}")
        return cls(network, classes), sha

    def detect(self, images: Sequence[Pixels]) -> list[list[Detection]]:
        """Objects of each picture (uint8 [48, 48, 3]), best first."""
        found: list[list[Detection]] = []
        for start in range(0, len(images), MICROBATCH):
            found += self._detect_batch(images[start : start + MICROBATCH])
        return found

    @torch.no_grad()
    def _detect_batch(self, images: Sequence[Pixels]) -> list[list[Detection]]:
        batch = torch.zeros(MICROBATCH, SIDE, SIDE, 3)
        for i, image in enumerate(images):
            if image.shape != (SIDE, SIDE, 3):
                raise ValueError(
                    f"a picture of shape {image.shape}: the pictogram detectors read {SIDE}x{SIDE}x3"
                )
            batch[i] = torch.from_numpy(np.array(image, np.float32))
        pixels = (
            batch.permute(0, 3, 1, 2)
            .div(127.5)
            .sub(1)
            .contiguous(memory_format=torch.channels_last)
        )
        raw = peaks(self.network(pixels), self.classes)
        return [_colored(image, one) for image, one in zip(images, raw, strict=False)]


def _colored(image: Pixels, raw: Sequence[Peak]) -> list[Detection]:
    lab = to_lab(np.asarray(image, np.float64))
    background = background_lab(lab, [box for _, box, score in raw if score > 0.3])
    detections = []
    for name, box, score in raw:
        shares = color_shares(lab, box, background)
        detections.append(
            Detection(name, box, score, COLORS[int(shares.argmax())], tuple(map(float, shares)))
        )
    return detections
