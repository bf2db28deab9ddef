"""Check an extractor on three pictures that are always the same, before its features are used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from harness.records import UserError

RECORDED = Path(__file__).with_name("known_features.json")
"""The first features of each picture, by the identity of the extractor that they are of."""
TOLERANCE = 1e-3
"""Difference that is allowed, relative to the largest feature of a picture."""
SIDE = 48


class Checked(Protocol):
    """What is checked."""

    @property
    def identity(self) -> str: ...
    @property
    def dim(self) -> int: ...
    def features(self, images: Sequence[np.ndarray]) -> np.ndarray: ...


def draw_known_pictures(side: int = SIDE) -> list[np.ndarray]:
    """Draw a slope of colours, a chequered field and noise, each uint8 [side, side, 3]."""
    row, column = np.mgrid[0:side, 0:side]
    slope = np.stack([row * 255 // side, column * 255 // side, (row + column) * 127 // side], -1)
    field = np.where(((row // 8 + column // 8) % 2)[..., None], (230, 40, 90), (20, 200, 160))
    noise = (row[..., None] * 7919 + column[..., None] * 104729 + np.array([3, 5, 7])) ** 2 % 251
    return [picture.astype(np.uint8) for picture in (slope, field, noise)]


def check_extractor(extractor: Checked, reference: Checked | None = None) -> None:
    """Check what an extractor makes of the known pictures, also against `reference` if given.

    Raises UserError if features are not finite, of another number than it says, the same for all
    pictures, dependent on which pictures come together, or others than those recorded.
    """
    pictures = draw_known_pictures()
    found_ND = extractor.features(pictures)
    if found_ND.shape != (len(pictures), extractor.dim) or found_ND.dtype != np.float32:
        raise _fail(extractor, f"gives {found_ND.dtype} {found_ND.shape}")
    if not np.isfinite(found_ND).all():
        raise _fail(extractor, "gives no finite numbers")
    if any(np.array_equal(found_ND[0], other_D) for other_D in found_ND[1:]):
        raise _fail(extractor, "gives the same features for unlike pictures")
    alone_ND = np.concatenate([extractor.features([picture]) for picture in pictures])
    if not np.array_equal(found_ND, alone_ND):
        raise _fail(extractor, "gives features that depend on which pictures come together")

    recorded = read_recorded().get(extractor.identity)
    if recorded is not None:
        _expect_close(extractor, found_ND, np.array(recorded), "those recorded")
    if reference is not None:
        _expect_close(extractor, found_ND, reference.features(pictures), "those of the CPU")


def read_recorded() -> dict[str, list[list[float]]]:
    """Read the first features of the known pictures, by the identity of their extractor."""
    recorded: dict[str, list[list[float]]] = json.loads(RECORDED.read_text())
    return recorded


def _expect_close(
    extractor: Checked, found_ND: np.ndarray, known_NK: np.ndarray, whose: str
) -> None:
    """Compare the first K features of each picture with known ones."""
    known = known_NK.shape[1]
    largest_N1 = np.abs(known_NK).max(1, keepdims=True)
    distance = float((np.abs(found_ND[:, :known] - known_NK) / largest_N1).max())
    if distance > TOLERANCE:
        raise _fail(extractor, f"gives features up to {distance:.2g} away from {whose}")


def _fail(extractor: Checked, fault: str) -> UserError:
    return UserError(
        f"{extractor.identity} {fault} on known pictures: use another device, or another version "
        "of torch"
    )
