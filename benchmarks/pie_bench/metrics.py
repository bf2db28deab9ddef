"""The metrics of one edited image, how they are shown, and their means over images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.pie_bench.masks import Part, has_part, select_part
from benchmarks.pie_bench.networks import KeyReader, PerceptualDistance, TextSimilarity
from benchmarks.pie_bench.pixels import SsimBorder, compare_pixels, expect_equal_shapes
from benchmarks.pie_bench.structure import measure_distance


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is printed: its value is multiplied by `factor`."""

    name: str
    title: str
    head: str  # of its column in the table of edit types
    factor: float
    larger_is_better: bool


METRICS = (
    Metric("structure_distance", "structure distance x 1000", "structure", 1e3, False),
    Metric("psnr_unedit_part", "PSNR outside", "PSNR", 1.0, True),
    Metric("lpips_unedit_part", "LPIPS outside x 1000", "LPIPS", 1e3, False),
    Metric("mse_unedit_part", "MSE outside x 10000", "MSE", 1e4, False),
    Metric("ssim_unedit_part", "SSIM outside x 100", "SSIM", 1e2, True),
    Metric("clip_similarity_target_image", "CLIP whole", "CLIP", 1.0, True),
    Metric("clip_similarity_target_image_edit_part", "CLIP edited", "CLIP ed.", 1.0, True),
)
"""The columns of published tables, with their factors."""
VERDICTS = (
    Metric("done", "edit done, %", "done", 1e2, True),
    Metric("kept", "rest kept, %", "kept", 1e2, True),
    Metric("both", "both at once, %", "both", 1e2, True),
)
"""Shares of images by a judge that decides about edits (`benchmarks.edit_pictogram`)."""
SOURCE_SIMILARITY = "clip_similarity_source_image"
"""Measured by the reference beside them, and in no table."""
KNOWN = (*VERDICTS, *METRICS)
FACTORS = {metric.name: metric.factor for metric in KNOWN}
NO_VALUE = "nan"
"""What the reference writes where a picture has no such part."""


@dataclass(frozen=True, slots=True)
class Edit:
    """An edited image: source and output, uint8 [H, W, 3], the mask [H, W], and both texts."""

    source: np.ndarray
    output: np.ndarray
    mask: np.ndarray
    source_prompt: str
    target_prompt: str


@dataclass(frozen=True, slots=True)
class Measured:
    """The metrics of an image: a number, infinite for an untouched output, or None without a part.

    `cut` says whether CLIP read the beginning of a text only.
    """

    values: Mapping[str, float | None]
    cut: bool


@dataclass(frozen=True, slots=True)
class Meter:
    """What measures edits: three networks, and the protocol's settings."""

    structure: KeyReader
    lpips: PerceptualDistance
    clip: TextSimilarity
    ssim_border: SsimBorder
    antialias: bool
    with_source_similarity: bool

    def measure(self, edit: Edit) -> Measured:
        """Measure one edit. Raises ValueError where output and source differ in size."""
        expect_equal_shapes(edit.source, edit.output)
        values: dict[str, float | None] = {
            "structure_distance": self._measure_structure(edit),
            **self._measure_preservation(edit),
        }
        similar, cut = self._compare_texts(edit)
        return Measured({**values, **similar}, cut)

    def _measure_structure(self, edit: Edit) -> float:
        keys = self.structure.read_keys(edit.source, antialias=self.antialias)
        others = self.structure.read_keys(edit.output, antialias=self.antialias)
        return measure_distance(others, keys)

    def _measure_preservation(self, edit: Edit) -> dict[str, float | None]:
        """Compare what lies outside the mask."""
        names = ("psnr", "lpips", "mse", "ssim")
        if not has_part(edit.mask, "unedit"):
            return {f"{name}_unedit_part": None for name in names}
        source = select_part(edit.source, edit.mask, "unedit")
        output = select_part(edit.output, edit.mask, "unedit")
        found: dict[str, float] = compare_pixels(source, output, self.ssim_border)
        found["lpips"] = self.lpips.measure(source, output)
        return {f"{name}_unedit_part": found[name] for name in names}

    def _compare_texts(self, edit: Edit) -> tuple[dict[str, float | None], bool]:
        """Compare the pictures with their prompts: the source, the output, and its edited part."""
        asked = {
            "clip_similarity_target_image": (edit.output, edit.target_prompt),
            "clip_similarity_target_image_edit_part": (
                select_part(edit.output, edit.mask, "edit"),
                edit.target_prompt,
            ),
        }
        if self.with_source_similarity:
            asked[SOURCE_SIMILARITY] = (edit.source, edit.source_prompt)
        answers = self.clip.compare(list(asked.values()))
        values: dict[str, float | None] = {
            name: score_cosine(cosine) for name, (cosine, _) in zip(asked, answers, strict=True)
        }
        return values, any(cut for _, cut in answers)


def compare_part(
    source: np.ndarray, output: np.ndarray, mask: np.ndarray, part: Part, border: SsimBorder
) -> dict[str, float] | None:
    """Compare a part of two pictures by PSNR, MSE and SSIM; None if it has no pixel."""
    if not has_part(mask, part):
        return None
    return compare_pixels(select_part(source, mask, part), select_part(output, mask, part), border)


def score_cosine(cosine: float) -> float:
    """Return torchmetrics' CLIPScore of one picture and text: 100 times the cosine, at least 0."""
    return max(100.0 * cosine, 0.0)


def average(values: Sequence[float | None]) -> tuple[float, int]:
    """Return the mean of the values that count, and how many they are; nan without any.

    Images without the part, and infinite values of untouched outputs, do not count.
    """
    counted = [value for value in values if value is not None and math.isfinite(value)]
    return (sum(counted) / len(counted) if counted else math.nan), len(counted)
