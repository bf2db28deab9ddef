"""The embedded editor's benchmark: edits of pictograms, judged by what was made and what was kept.

Source, target and mask of every edit are known exactly. Its scores are no PIE-Bench scores; they
compare methods with each other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embedded import Detector, DetectorBenchmark
from benchmarks.pie_bench.masks import decode_mask
from benchmarks.pie_bench.metrics import KNOWN, compare_part
from benchmarks.pie_bench.summary import INFINITE, summarise_metrics, take_number, write_results
from harness.judges.pictogram_edit import Detection, judge_edit, read_box_colors
from harness.models.pictogram.edits import MARGIN, Edit, describe, generate_edits
from harness.records import Count, Natural, Prompt, Score, SourceImage

MEASURED = (
    *("done", "kept", "both"),
    *("psnr_unedit_part", "mse_unedit_part", "ssim_unedit_part"),
)
METRICS = [metric for metric in KNOWN if metric.name in MEASURED]
"""The judge's verdicts, and those of PIE-Bench's metrics that need no network."""
TYPES = {"color": 6, "replace": 1, "add": 2, "remove": 3}
"""PIE-Bench's numbers of the kinds of edits, with which file ids begin."""


class EditPictogram(DetectorBenchmark):
    """Judge `images` edits of each of `total` pairs that are generated from `seed`.

    They change a colour, replace, add and remove, as many of each. An edit is right if it was made
    and everything else was kept. `prompts` takes that many, spread evenly over the kinds.
    Raises UserError where that cannot be had.
    """

    name = "edit_pictogram"
    version = "1"

    def __init__(
        self,
        judge: Detector,
        prompts: Count | None = None,
        images: Count = 4,
        total: Count = 240,
        seed: Natural = 0,
    ) -> None:
        made = generate_edits(judge.classes, total, seed, read_box_colors)
        available = [_make_prompt(number, edit) for number, edit in enumerate(made)]
        super().__init__(judge, available, prompts, images)

    def summarise(self, scores: Sequence[Score]) -> Iterator[str]:
        """Format how many edits were made, kept the rest, and did both, and what changed outside.

        Each has its interval, and a row for each kind.
        """
        kinds = {prompt.id: prompt.category for prompt in self._prompts}
        yield from summarise_metrics(scores, kinds, METRICS)
        problems = Counter(score.detail["unjudged"] for score in scores if score.value is None)
        if problems:
            listed = ", ".join(f"{count} {why}" for why, count in problems.most_common(4))
            yield f"unjudged, counted as wrong, and in none of these means: {listed}"

    def files(self, scores: Sequence[Score], folder: Path) -> dict[str, str]:
        """Write the metrics of each image, as PIE-Bench does; returns a text by its name."""
        names = {
            prompt.id: f"{TYPES[prompt.category]}{take_number(prompt.id)}"
            for prompt in self._prompts
        }
        table = write_results(scores, folder.name, METRICS, names.__getitem__)
        return {"edit_pictogram-results.csv": table}

    def _judge_image(
        self, prompt: Prompt, pixels: np.ndarray, found: Sequence[Detection]
    ) -> tuple[float, dict[str, Any]]:
        """Decide about an edit, and measure what changed outside its mask."""
        verdict = judge_edit(prompt.spec, found)
        metrics: dict[str, float | None] = {
            "done": float(verdict.done),
            "kept": float(verdict.kept),
            "both": float(verdict.correct),
            **_compare_outside(prompt, pixels, found),
        }
        infinite = [name for name, value in metrics.items() if value == math.inf]
        finite = {name: value for name, value in metrics.items() if name not in infinite}
        detail: dict[str, Any] = {"reasons": list(verdict.reasons), "metrics": finite}
        if infinite:
            detail[INFINITE] = infinite
        return float(verdict.correct), detail


def _make_prompt(number: int, edit: Edit) -> Prompt:
    pixels, _ = edit.source.draw()
    return Prompt(
        id=f"edit_pictogram/{number:05d}",
        text=edit.text,
        category=edit.kind,
        spec=describe(edit),
        source=SourceImage.of_pixels(pixels, f"edit {number}"),
    )


def _compare_outside(
    prompt: Prompt, pixels: np.ndarray, found: Sequence[Detection]
) -> dict[str, float | None]:
    """Compare a picture with its source outside the mask: PSNR (dB), MSE and SSIM.

    PSNR is infinite where nothing differs; all are None where the mask covers everything. What was
    added may lie anywhere on its side: the mask covers it where it was found.
    """
    assert prompt.source is not None
    source = prompt.source.pixels()
    mask = decode_mask(prompt.spec["mask"], *source.shape[:2])
    if prompt.spec["kind"] == "add":
        added = [one.box for one in found if one.name == prompt.spec["made"]["name"]]
        for left, top, right, bottom in added[:1]:
            rows = slice(max(0, round(top) - MARGIN), round(bottom) + MARGIN)
            columns = slice(max(0, round(left) - MARGIN), round(right) + MARGIN)
            mask[rows, columns] = 1
    values = compare_part(source, pixels, mask, "unedit", "full") or {}
    return {f"{name}_unedit_part": values.get(name) for name in ("psnr", "mse", "ssim")}
