"""The embedded editor's benchmark: edits of pictograms, judged by what was made and what was kept.

Source, target and mask of every edit are known exactly. Its scores are no PIE-Bench scores; they
compare methods with each other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.images import judge_files
from benchmarks.pie_bench.masks import decode_mask, select_part
from benchmarks.spread import spread_evenly
from harness.judges.pictogram_edit import Detection, judge_edit, read_box_colors
from harness.models.pictogram.edits import KINDS, MARGIN, Edit, describe, generate_edits
from harness.records import Count, Natural, Prompt, Score, SourceImage, UserError

BATCH = 64
"""Images read and judged at a time."""


class Detector(Protocol):
    """The benchmark's judge (harness/judges/pictogram.py)."""

    @property
    def id(self) -> str: ...
    @property
    def classes(self) -> Sequence[str]: ...
    def detect(self, images: Sequence[np.ndarray]) -> Sequence[Sequence[Detection]]: ...


class EditPictogram:
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
        if images < 1:
            raise UserError(f"benchmark.images={images}: at least one image per edit is needed")
        self.judge = judge
        self.images = images
        made = generate_edits(judge.classes, total, seed, read_box_colors)
        available = [_make_prompt(number, edit) for number, edit in enumerate(made)]
        self._prompts = available if prompts is None else spread_evenly(available, prompts)

    def prompts(self) -> list[Prompt]:
        """List the edits: a prompt's text is the instruction, its source the picture."""
        return list(self._prompts)

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]:
        """Judge image files named by their number ("images/00042/2.png"), in order.

        A file that is missing, broken or of a size the judge cannot read gets no value, which
        counts as wrong; `unjudged` in its detail says why.
        """
        for prompt, path, pixels, found in judge_files(self.judge.detect, items, BATCH):
            number = int(path.stem)
            if isinstance(found, str) or isinstance(pixels, str):
                yield Score(prompt.id, number, self.judge.id, None, {"unjudged": str(found)})
                continue
            verdict = judge_edit(prompt.spec, found)
            detail: dict[str, Any] = {
                "done": verdict.done,
                "kept": verdict.kept,
                "reasons": list(verdict.reasons),
                "psnr_unedit_part": _measure_outside(prompt, pixels, found),
            }
            yield Score(prompt.id, number, self.judge.id, float(verdict.correct), detail)

    def summarise(self, scores: Sequence[Score]) -> Iterator[str]:
        """Format, by kind, how many edits were made, kept the rest, and did both."""
        kinds = {prompt.id: prompt.category for prompt in self._prompts}
        for kind in KINDS:
            own = [score.detail for score in scores if kinds[score.prompt_id] == kind]
            judged = [detail for detail in own if "done" in detail]
            if judged:
                yield f"{kind:<8} {_describe_shares(judged)}, {len(judged)} images"
        problems = Counter(score.detail["unjudged"] for score in scores if score.value is None)
        if problems:
            listed = ", ".join(f"{count} {why}" for why, count in problems.most_common(4))
            yield f"unjudged, counted as wrong: {listed}"


def _make_prompt(number: int, edit: Edit) -> Prompt:
    pixels, _ = edit.source.draw()
    return Prompt(
        id=f"edit_pictogram/{number:05d}",
        text=edit.text,
        category=edit.kind,
        spec=describe(edit),
        source=SourceImage.of_pixels(pixels, f"edit {number}"),
    )


def _measure_outside(
    prompt: Prompt, pixels: np.ndarray, found: Sequence[Detection]
) -> float | None:
    """Return the PSNR outside the mask, in dB; None where nothing differs there.

    What was added may lie anywhere on its side: the mask covers it where it was found.
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
    before = select_part(source, mask, "unedit").astype(np.float64) / 255
    after = select_part(pixels, mask, "unedit").astype(np.float64) / 255
    mse = float(np.square(before - after).mean())
    return round(-10 * math.log10(mse), 3) if mse else None


def _describe_shares(details: Sequence[Mapping[str, Any]]) -> str:
    done = sum(detail["done"] for detail in details) / len(details)
    kept = sum(detail["kept"] for detail in details) / len(details)
    both = sum(detail["done"] and detail["kept"] for detail in details) / len(details)
    return f"done {done:.3f}, kept {kept:.3f}, both {both:.3f}{_describe_psnr(details)}"


def _describe_psnr(details: Sequence[Mapping[str, Any]]) -> str:
    known = [one["psnr_unedit_part"] for one in details if one["psnr_unedit_part"] is not None]
    return f", PSNR outside the mask {sum(known) / len(known):.1f} dB" if known else ""
