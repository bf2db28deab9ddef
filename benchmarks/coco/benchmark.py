"""COCO captions, 5,000: one image each, distances to photographs and a CLIP score.

Papers differ in captions, crop, resize, network and unit, and so do their numbers for one model. A
protocol fixes them all, and is part of the judge's id: rows of two protocols are never ranked
together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.coco.caption_files import MLPERF, read_captions
from benchmarks.coco.captions import Caption
from benchmarks.coco.judge import Scorer, SetJudge, leave
from benchmarks.coco.layout import find_images
from benchmarks.coco.reference import (
    PHOTOGRAPHS,
    Photographs,
    has_photographs,
    name_moments,
    read_moments,
)
from harness.judges.features import Extractor, count_oblong
from harness.judges.resize import crop_to_square
from harness.records import (
    Count,
    FeaturedScore,
    Prompt,
    Score,
    UserError,
    digest,
    dump,
)
from harness.results.stats.set_metrics import Reference

log = logging.getLogger("harness")

CATEGORY = "coco"
CROPS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": leave,
    "square256": crop_to_square,
}
"""What is done to images and photographs before any network sees them, by name."""
SCALES = {"100 x cosine": 100.0, "CLIPScore": 2.5}
"""What CLIP's unit is divided by, so that it is a score from 0 to 1."""


B32 = "ViT-B-32-quickgelu"
B16 = "ViT-B-16-quickgelu"


@dataclass(frozen=True, slots=True)
class Rules:
    """How a paper's evaluation measures: options that must hold for its name."""

    captions: str
    crop: str
    resize: str
    """How identities of its extractors end."""
    model: str
    """CLIP's network, which the id of its scorer has."""
    clip: str
    """How that id ends, behind the name of the weights."""


PROTOCOLS: Mapping[str, Rules] = {
    "clean": Rules("longest", "square256", "clean299", B32, "-cosine"),
    "lantern": Rules("longest", "square256", "clean299", B32, "-cosine-prefix-A-photo-depicts"),
    "sjd": Rules("sjd", "none", "torch299", B16, "-percent-squeeze299"),
    "mlperf": Rules(MLPERF, "none", "torch299", B32, "-percent"),
}
"""Evaluations by name: ours, LANTERN's (3a56e451), SJD's (b389cfb2) and MLPerf's (b66003e1)."""


class Coco:
    """Score one image for each caption by CLIP, and all of them by distances to photographs.

    `captions` is the list, `coco` where its file lies, `reference` a folder of photographs or an
    .npz of moments; without either, distances to it are left out. `prompts` takes the first ones.
    `images` may be the folder of images that were made elsewhere. `neighbours` describes images for
    precision and recall, where there are photographs. Raises UserError for what cannot be had.
    """

    name = "coco"
    reads_folders = True

    def __init__(
        self,
        extractor: Extractor,
        clip: Scorer,
        captions: str = "longest",
        crop: Literal["none", "square256"] = "square256",
        coco: str | None = None,
        reference: str | None = None,
        prompts: Count | None = None,
        images: Count | str = 1,
        allow_other_version: bool = False,
        neighbours: Extractor | None = None,
    ) -> None:
        if crop not in CROPS:
            raise UserError(f"benchmark.crop={crop}: choose from {', '.join(CROPS)}")
        listed, self.version = read_captions(
            captions, coco, allow_other_version=allow_other_version
        )
        self._all = listed
        self._prompts = _take_first([_make_prompt(one, captions) for one in listed], prompts)
        self._captions = captions
        self._crop = crop
        self._extractor = extractor
        self._clip = clip

        self.found: dict[tuple[str, int], Path] = {}
        """Images made elsewhere, by prompt id and number."""
        if isinstance(images, str):
            self.found = find_images(Path(images).expanduser(), self._prompts)
            self.images = 1
        elif images < 1:
            raise UserError(f"benchmark.images={images}: at least one image per caption is needed")
        else:
            self.images = images

        reference_id, make_reference = self._find_reference(extractor, coco, reference)
        if not reference_id.startswith(PHOTOGRAPHS):
            neighbours = None
        self._networks: dict[str, Any] = {"extractor": extractor, "clip": clip}
        if neighbours is not None:
            self._networks["neighbours"] = neighbours
        reasons = {_why_excluded(network) for network in self._networks.values()}
        self.excluded = "; ".join(sorted(reasons - {""}))
        names = [extractor.identity, crop, clip.id, reference_id]
        if neighbours is not None:
            names.append(neighbours.identity)
        named = dump(names)
        self.judge = SetJudge(
            id=f"coco-{self._name_protocol()}-{digest(named.encode(), 8)}+{clip.id}",
            extractor=extractor,
            neighbours=neighbours,
            scorers={"clip": clip},
            reference=make_reference,
            prepare=CROPS[crop],
            planned=len(self._prompts) * self.images,
            score_scale=SCALES.get(str(getattr(clip, "unit", "")), 1.0),
        )

    def prompts(self) -> list[Prompt]:
        """List the prompts to draw."""
        return list(self._prompts)

    def ready(self) -> None:
        """Load the networks. Raises UserError if one cannot be had."""
        for name, network in self._networks.items():
            ready = getattr(network, "ready", None)
            if not callable(ready):
                continue
            try:
                ready()
            except UserError as error:
                raise UserError(f"benchmark.{name}: {error}") from None

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score | FeaturedScore]:
        """Judge image files named by their number ("images/000000000139/0.png"), in order.

        A file that is missing or broken gets no value; `unjudged` in its detail says why.
        """
        yield from self.judge.score(items)

    def summarise(self, scores: Sequence[Score]) -> Iterator[str]:
        """Format the mean CLIP score, and what marks the run."""
        yield from self.judge.summarise(scores)
        if self._crop == "square256" and (oblong := count_oblong(scores)):
            yield f"{oblong:,} images are not square: only their middles are seen"
        if self.judge.reference is None:
            yield "No reference images: benchmark.reference=FOLDER or FILE.npz adds fid and kid"
        count_cut = getattr(self._clip, "count_cut", None)
        if callable(count_cut):
            cut = sum(count_cut(prompt.text) > 0 for prompt in self._prompts)
            yield f"{cut} captions are longer than CLIP reads"

    def files(self, scores: Sequence[Score], folder: Path) -> Mapping[str, str]:
        """Make `set_metrics.json`: the distances of all images to the reference."""
        return self.judge.files(scores, folder)

    def _name_protocol(self) -> str:
        """Name the evaluation whose rules all options follow; "own" for none."""
        extractor = self._extractor
        clip = self._clip
        for name, rules in PROTOCOLS.items():
            is_same = (
                self._captions == rules.captions
                and self._crop == rules.crop
                and extractor.identity.endswith(rules.resize)
                and rules.model in clip.id
                and clip.id.endswith(rules.clip)
            )
            if is_same:
                return name
        return "own"

    def _find_reference(
        self, extractor: Extractor, coco: str | None, reference: str | None
    ) -> tuple[str, Callable[[Extractor], Reference] | None]:
        """Name the reference images, and return what describes them; None without any.

        They are `reference`, else the photographs beside the captions. Raises UserError for an
        option that is neither photographs nor moments, and for photographs that are not whole.
        """
        place = Path(reference or coco or "").expanduser()
        if reference is not None and place.suffix == ".npz":
            read_moments(place, extractor, self._crop)
            return name_moments(place), lambda chosen: read_moments(place, chosen, self._crop)
        if not has_photographs(place):
            if reference is not None:
                raise UserError(
                    f"benchmark.reference={reference}: neither a folder of photographs "
                    "(val2017/*.jpg) nor an .npz of moments"
                )
            return "no-reference", None
        if self._captions == MLPERF:
            raise UserError(
                f"{place}: MLPerf compares with a file of moments: benchmark.reference=val2014.npz"
            )
        images = sorted(caption.image for caption in self._all)
        found = Photographs.find(place, images, CROPS[self._crop], self._crop)
        return found.id, found.describe


def _make_prompt(caption: Caption, rule: str) -> Prompt:
    """Make the prompt of a caption: blanks in a row are one, but in MLPerf's list."""
    is_table = rule == MLPERF
    number = str(caption.annotation) if is_table else f"{caption.image:012d}"
    key = {
        "image_id": caption.image,
        "annotation_id": caption.annotation,
        "caption": caption.raw,
    }
    return Prompt(f"coco/{number}", caption.raw if is_table else caption.text, CATEGORY, key)


def _take_first(prompts: list[Prompt], wanted: int | None) -> list[Prompt]:
    """Take the first prompts. Raises UserError for more than there are."""
    if wanted is None:
        return prompts
    if not 1 <= wanted <= len(prompts):
        raise UserError(
            f"benchmark.prompts={wanted}: choose from 1 to the {len(prompts)} captions of the list"
        )
    return prompts[:wanted]


def _why_excluded(network: Any) -> str:
    """Say why a network's numbers must not enter a leaderboard; "" if they may."""
    if getattr(network, "random", False):
        return "random weights"
    return str(getattr(network, "excluded", ""))
