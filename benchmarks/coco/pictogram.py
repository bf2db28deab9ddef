"""COCO's way of scoring in the embedded model's world: distances to rendered scenes, no download.

Captions are sentences of the embedded grammar, the reference is a scene rendered for each of them,
and the embedded judge describes images. Its scores are no COCO scores: captions, reference and
networks are others. They compare methods with each other, and the distance to plain sampling's own
images is the same test that `coco` makes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.coco.judge import SetJudge
from harness.judges.features import Extractor, PictogramFeatures
from harness.judges.pictogram import PictogramReward
from harness.models.pictogram.grammar import DEFAULT, Row, generate_prompts, parse
from harness.models.pictogram.world import draw_scene
from harness.records import (
    Count,
    FeaturedScore,
    Natural,
    Prompt,
    Score,
    UserError,
    digest,
    dump,
)
from harness.results.stats.set_metrics import Reference

CATEGORY = "coco"


class CocoPictogram:
    """Score `images` images of each of `total` captions made from `seed`.

    The score is the reward detector's: how likely the image shows its caption. `prompts` takes the
    first captions, which are spread evenly over the six kinds of scenes. The reference are rendered
    scenes of the same captions, another draw for each `reference_seed`. Raises UserError where that
    cannot be had.
    """

    name = "coco_pictogram"
    version = "1"

    def __init__(
        self,
        prompts: Count | None = None,
        images: Count = 1,
        total: Count = 553,
        seed: Natural = 0,
        reference_seed: Natural = 0,
        weights: str = DEFAULT,
    ) -> None:
        if images < 1:
            raise UserError(f"benchmark.images={images}: at least one image per prompt is needed")
        reward = PictogramReward(weights)
        judge = PictogramReward(weights, part="judge")
        self.images = images
        self._reference_seed = reference_seed
        self._extractor = PictogramFeatures(weights)
        available = self._make_prompts(reward.classes, total, seed)
        self._prompts = available[: _expect_available(prompts, len(available))]
        if len(self._prompts) < 2:
            given = f"total={total}" if prompts is None else f"prompts={prompts}"
            raise UserError(
                f"benchmark.{given}: the scene of a single caption is no set to be compared with: "
                "take two captions or more"
            )
        self._reference: Reference | None = None
        scorers = {"pictogram_reward": reward, "pictogram_judge": judge}
        identities = [self._extractor.identity, *(one.id for one in scorers.values())]
        named = digest(dump([*identities, self._name_reference()]).encode(), 8)
        self.judge = SetJudge(
            id=f"pictogram-coco-{named}+{reward.id}",
            extractor=self._extractor,
            neighbours=self._extractor,
            scorers=scorers,
            reference=self._render_reference,
            unlisted=("pictogram_reward",),
            planned=len(self._prompts) * images,
        )

    def prompts(self) -> list[Prompt]:
        """List the prompts to draw."""
        return list(self._prompts)

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score | FeaturedScore]:
        """Judge image files named by their number ("images/00042/2.png"), in order.

        A file that is missing, broken or of a size the networks cannot read gets no value, which
        counts as wrong; `unjudged` in its detail says why.
        """
        yield from self.judge.score(items)

    def summarise(self, scores: Sequence[Score]) -> Iterator[str]:
        """Format the mean of each metric of single images."""
        yield from self.judge.summarise(scores)

    def files(self, scores: Sequence[Score], folder: Path) -> Mapping[str, str]:
        """Make `set_metrics.json`: the distances of all images to the rendered scenes."""
        return self.judge.files(scores, folder)

    def _make_prompts(self, classes: Sequence[str], total: int, seed: int) -> list[Prompt]:
        """Make captions, a scene of each kind in turn."""
        try:
            rows = generate_prompts(classes, total, seed)
        except ValueError as error:
            raise UserError(f"benchmark.total={total}: {error}") from None
        return [
            Prompt(f"{self.name}/{i:05d}", row["prompt"], CATEGORY, {"tag": row["tag"]})
            for i, row in enumerate(_take_turns(rows))
        ]

    def _name_reference(self) -> str:
        """Name the scenes by what they follow from."""
        texts = [prompt.text for prompt in self._prompts]
        made_of = dump([self.version, self._reference_seed, texts])
        return f"scenes-{digest(made_of.encode(), 8)}"

    def _render_reference(self, extractor: Extractor) -> Reference:
        """Render a scene for each caption, and describe it; once."""
        if self._reference is None:
            scenes = []
            for prompt in self._prompts:
                scenes.append(render_scene(prompt.text, f"{self._reference_seed}/{prompt.id}"))
            features_MD = extractor.features(scenes)
            self._reference = Reference.of_features(
                self._name_reference(), features_MD, [prompt.id for prompt in self._prompts]
            )
        return self._reference


def render_scene(text: str, seed: str) -> np.ndarray:
    """Render a scene of a caption of the grammar, uint8 [48, 48, 3], from a seed of its own."""
    spec = parse(text)
    assert spec is not None
    pixels, _ = draw_scene(spec, random.Random(f"coco_pictogram/{seed}"))
    return pixels


def _take_turns(rows: Sequence[Row]) -> list[Row]:
    """Order rows so that the kinds of scenes take turns."""
    turns: Counter[str] = Counter()
    order = []
    for i, row in enumerate(rows):
        order.append((turns[row["tag"]], i))
        turns[row["tag"]] += 1
    return [rows[i] for _, i in sorted(order)]


def _expect_available(wanted: int | None, available: int) -> int:
    """Return how many captions to take. Raises UserError for more than there are."""
    if wanted is None:
        return available
    if not 1 <= wanted <= available:
        raise UserError(
            f"benchmark.prompts={wanted}: choose from 1 to the {available} prompts available"
        )
    return wanted
