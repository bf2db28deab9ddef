"""Define the benchmark PIE-Bench: edits by instruction, what they keep and what they reach."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.images import judge_each, read_images
from benchmarks.pie_bench.annotations import COUNTS, SIDE, TYPES, read_annotations
from benchmarks.pie_bench.layout import crop_output, find_outputs
from benchmarks.pie_bench.masks import decode_mask
from benchmarks.pie_bench.metrics import Edit, Measured, Meter
from benchmarks.pie_bench.networks import KeyReader, PerceptualDistance, TextSimilarity
from benchmarks.pie_bench.pixels import SsimBorder
from benchmarks.pie_bench.summary import INFINITE, RESULTS, summarise_metrics, write_results
from benchmarks.spread import spread_evenly
from harness.records import Count, Prompt, Score, UserError

BATCH = 8
"""Images read and judged at a time; their scores are journaled before the next batch."""
REFERENCE = "07f97f44"
"""The reference's commit."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """What the reference and GridAR's driver do differently."""

    ssim_border: SsimBorder
    antialias: bool  # of the resize before DINO: the default of the torchvision of its time
    brackets: bool  # in the texts that CLIP reads
    with_source_similarity: bool


PROTOCOLS = {
    "reference": Protocol("cut", False, False, True),
    "gridar": Protocol("full", True, True, False),
}


class PieBench:
    """Judge `images` edits of each of PIE-Bench's images.

    `metadata` is the folder with the mapping file and the images. `types` are edit types (None: all
    ten), and `prompts` takes that many edits, spread evenly over them. `protocol` is "reference" or
    "gridar"; `ssim_border` and `antialias` replace one setting of it, and are named in the version.
    `images` may be a folder of edited images instead of a number.

    An image's score is its CLIP similarity with the target prompt over 100: whether the edit was
    made. What was kept is in the six other metrics, in summary.txt and by `python -m
    benchmarks.pie_bench compare`. Raises UserError for what cannot be had.
    """

    name = "pie_bench"
    reads_folders = True

    def __init__(
        self,
        structure: KeyReader,
        lpips: PerceptualDistance,
        clip: TextSimilarity,
        metadata: str | None = None,
        types: Sequence[str] | None = None,
        protocol: str = "reference",
        ssim_border: str | None = None,
        antialias: bool | None = None,
        prompts: Count | None = None,
        images: Count | str = 1,
    ) -> None:
        rules = _choose_rules(protocol, ssim_border, antialias)
        chosen = TYPES if types is None else tuple(types)
        available, data = read_annotations(metadata, chosen, brackets=rules.brackets)
        self._prompts = available if prompts is None else spread_evenly(available, prompts)
        self._expected = sum(COUNTS[TYPES.index(name)] for name in chosen)
        self._networks = (structure, lpips, clip)
        for network in self._networks:
            if network.missing:
                raise UserError(f"edits cannot be judged: set {network.missing}")
        self._meter = Meter(
            structure,
            lpips,
            clip,
            rules.ssim_border,
            rules.antialias,
            rules.with_source_similarity,
        )
        self.judge = _JudgeId("+".join(network.id for network in self._networks))

        self.found: dict[tuple[str, int], Path] = {}
        """Imported images, by prompt id and number."""
        if isinstance(images, str):
            self.found = find_outputs(Path(images).expanduser(), self._prompts)
            self.images = 1
        elif images < 1:
            raise UserError(f"benchmark.images={images}: at least one image per edit is needed")
        else:
            self.images = images
        resize = "antialias" if rules.antialias else "plain"
        self.version = (
            f"{REFERENCE}+{protocol}+ssim={rules.ssim_border}+resize={resize}+data={data}"
        )
        self.excluded = "images made elsewhere: what they cost is not known" if self.found else ""

    def prompts(self) -> list[Prompt]:
        """List the edits: a prompt's text is the instruction, its source the image."""
        return list(self._prompts)

    def ready(self) -> None:
        """Load the networks. Raises UserError if that is impossible."""
        for network in self._networks:
            network.load()

    def aggregates(self, categories: Sequence[str]) -> dict[str, dict[str, float]]:
        """Weigh edit types by their images: published means are over images."""
        counts = Counter(prompt.category for prompt in self._prompts)
        return {"score": {name: counts[name] / len(self._prompts) for name in categories}}

    def estimate(self, prompts: Sequence[Prompt]) -> str:
        """Count the forwards that judging an image of each of these prompts takes."""
        structure, lpips, clip = self._networks
        pictures = 3 if self._meter.with_source_similarity else 2
        number = len(prompts)
        return (
            f"{2 * number:,} pictures to {structure.id}; {number:,} pairs to {lpips.id}; "
            f"{pictures * number:,} pictures and texts to {clip.id}"
        )

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]:
        """Measure image files named by their number ("images/111000000000/0.png"), in order.

        A file that is missing, broken or of another size than its source gets no value, which
        counts as wrong; `unjudged` in its detail says why.
        """
        remaining = iter(items)
        while batch := list(islice(remaining, BATCH)):
            pictures = read_images(path for _, path in batch)
            shown = [
                (prompt, picture)
                for (prompt, _), picture in zip(batch, pictures, strict=True)
                if isinstance(picture, np.ndarray)
            ]
            judged = iter(judge_each(self._measure_all, shown))
            for (prompt, path), picture in zip(batch, pictures, strict=True):
                found = picture if isinstance(picture, str) else next(judged)
                yield self._make_score(prompt, int(path.stem), found)

    def summarise(self, scores: Sequence[Score]) -> Iterator[str]:
        """Format each metric with its interval, the edit types, and what marks the run."""
        categories = {prompt.id: prompt.category for prompt in self._prompts}
        yield from summarise_metrics(scores, categories)
        planned = len(self._prompts) * self.images
        if len(scores) < planned:
            yield f"PARTIAL: {len(scores)} of {planned} images"
        problems = Counter(score.detail["unjudged"] for score in scores if score.value is None)
        if problems:
            listed = ", ".join(f"{count} {why}" for why, count in problems.most_common(4))
            yield f"without metrics, and in no mean: {listed}"
        if len(self._prompts) != self._expected:
            yield f"PARTIAL: {len(self._prompts)} of {self._expected} edits"
        cut = sum(bool(score.detail.get("cut")) for score in scores)
        if cut:
            yield f"{cut} texts are longer than CLIP reads; they were cut"
        yield f"Version {self.version}, judge {self.judge.id}"
        if self.excluded:
            yield f"NOT FOR A LEADERBOARD: {self.excluded}"

    def files(self, scores: Sequence[Score], folder: Path) -> dict[str, str]:
        """Write the metrics of each image as the reference does; returns a text by its name."""
        return {RESULTS: write_results(scores, folder.name)}

    def _measure_all(self, shown: Sequence[tuple[Prompt, np.ndarray]]) -> list[Measured]:
        return [self._measure(prompt, pixels) for prompt, pixels in shown]

    def _measure(self, prompt: Prompt, pixels: np.ndarray) -> Measured:
        """Measure an output. Raises ValueError for one that cannot be compared with its source."""
        assert prompt.source is not None
        edit = Edit(
            source=prompt.source.pixels(),
            output=crop_output(pixels),
            mask=decode_mask(prompt.spec["mask"], SIDE, SIDE),
            source_prompt=prompt.spec["source_prompt"],
            target_prompt=prompt.spec["target_prompt"],
        )
        return self._meter.measure(edit)

    def _make_score(self, prompt: Prompt, image: int, found: Measured | str) -> Score:
        """Make the score of an image; a text says why it has none.

        Infinite metrics are named: JSON has no number for them.
        """
        if isinstance(found, str):
            return Score(prompt.id, image, self.judge.id, None, {"unjudged": found})
        infinite = [name for name, value in found.values.items() if value == math.inf]
        finite = {name: value for name, value in found.values.items() if name not in infinite}
        detail: dict[str, Any] = {"metrics": finite}
        if infinite:
            detail[INFINITE] = infinite
        if found.cut:
            detail["cut"] = True
        whole = found.values["clip_similarity_target_image"]
        assert whole is not None
        return Score(prompt.id, image, self.judge.id, min(1.0, whole / 100), detail)


class _JudgeId:
    """The judge: the three networks."""

    def __init__(self, judge_id: str) -> None:
        self.id = judge_id


def _choose_rules(protocol: str, ssim_border: str | None, antialias: bool | None) -> Protocol:
    """Choose a protocol's settings, some of them replaced. Raises UserError for unknown ones."""
    if protocol not in PROTOCOLS:
        raise UserError(f"benchmark.protocol={protocol}: choose from {', '.join(PROTOCOLS)}")
    rules = PROTOCOLS[protocol]
    borders: Mapping[str, SsimBorder] = {"cut": "cut", "full": "full"}
    if ssim_border is not None and ssim_border not in borders:
        raise UserError(f"benchmark.ssim_border={ssim_border}: choose from {', '.join(borders)}")
    return Protocol(
        ssim_border=borders[ssim_border] if ssim_border else rules.ssim_border,
        antialias=rules.antialias if antialias is None else antialias,
        brackets=rules.brackets,
        with_source_similarity=rules.with_source_similarity,
    )
