"""Judge images one by one and as a set: scores, features beside the images, and distances.

Whatever the networks are, the rest is the same: an image whose file, score or features cannot be
had is unjudged, and a set that is not complete has no distance.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.images import judge_each, read_images
from harness.judges.features import (
    SIZE,
    Extractor,
    describe_sizes,
    digest_features,
    read_features,
)
from harness.records import (
    FEATURES,
    SET_METRICS,
    FeaturedScore,
    Prompt,
    Score,
    SetMetric,
    SetMetrics,
    UserError,
)
from harness.results.stats import set_metrics
from harness.results.stats.distances import Moments
from harness.results.stats.set_metrics import DISTANCES, NEIGHBOURHOODS, Reference

log = logging.getLogger("harness")

BATCH = 64
"""Images read and judged at a time."""
MOST_BROKEN = 0.01
"""Share of images whose numbers may be infinite or none, before the run stops."""
NOT_FINITE = "no finite number"
"""How the reason begins that stands for a broken feature or score."""


class Scorer(Protocol):
    """A network that scores how well pictures show their texts."""

    @property
    def id(self) -> str:
        """Name the network, its weights and its unit."""
        ...

    def __call__(
        self, texts: Sequence[str], images: Sequence[np.ndarray]
    ) -> Sequence[float | None]:
        """Score each picture, uint8 [H, W, 3]; None where the network cannot tell."""
        ...


Prepare = Callable[[np.ndarray], np.ndarray]
"""What is done to a picture before any network sees it."""


def leave(image: np.ndarray) -> np.ndarray:
    """Return a picture as it is."""
    return image


@dataclass
class SetJudge:
    """Score images by `scorers`, describe them by `extractor`, and compare them as a set.

    `scorers` have the names of metrics; the first one's value, divided by `score_scale` and cut to
    0 to 1, is the score, and those of `unlisted` are no more than that. `reference` makes what the
    set is compared with, as an extractor describes it, once it is needed; None: there is nothing
    to compare with. `neighbours` describes images for precision and recall; None: without them.
    """

    id: str
    extractor: Extractor | None
    scorers: Mapping[str, Scorer]
    reference: Callable[[Extractor], Reference] | None
    neighbours: Extractor | None = None
    score_scale: float = 1.0
    unlisted: Sequence[str] = ()
    prepare: Prepare = leave
    planned: int = 0
    batch: int = BATCH
    _broken: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Raise UserError for a single image, which is no set to be compared with a reference."""
        if self.reference is not None and self.planned == 1:
            raise UserError(
                "a single image has no distance to a set: take more captions (benchmark.prompts, "
                "benchmark.total) or images (benchmark.images)"
            )

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score | FeaturedScore]:
        """Judge image files named by their number, in order.

        A file that cannot be read, or of which a network makes no finite number, gets no value;
        `unjudged` in its detail says why. Raises UserError where one image in a hundred has none.
        """
        remaining = iter(items)
        while some := list(islice(remaining, self.batch)):
            pictures = read_images(path for _, path in some)
            readable = []
            for (prompt, _), picture in zip(some, pictures, strict=True):
                if isinstance(picture, np.ndarray):
                    readable.append((prompt.text, picture))
            judged = iter(judge_each(self._describe, readable))
            for (prompt, path), picture in zip(some, pictures, strict=True):
                found = picture if isinstance(picture, str) else next(judged)
                yield self._make_score(prompt, int(path.stem), found)

    def _describe(self, batch: Sequence[tuple[str, np.ndarray]]) -> list[_Described]:
        """Ask all networks about pictures and their texts."""
        texts = [text for text, _ in batch]
        images = [self.prepare(image) for _, image in batch]
        features = {one.identity: one.features(images) for one in self._list_extractors()}
        columns = {name: list(scorer(texts, images)) for name, scorer in self.scorers.items()}
        described = []
        for i, (_, image) in enumerate(batch):
            height, width = image.shape[:2]
            described.append(
                _Described(
                    {name: features_ND[i] for name, features_ND in features.items()},
                    {name: values[i] for name, values in columns.items()},
                    f"{width} x {height}",
                )
            )
        return described

    def _list_extractors(self) -> list[Extractor]:
        """List the networks that describe images, each once."""
        extractors: dict[str, Extractor] = {}
        for extractor in (self.extractor, self.neighbours):
            if extractor is not None:
                extractors.setdefault(extractor.identity, extractor)
        return list(extractors.values())

    def _make_score(
        self, prompt: Prompt, image: int, found: _Described | str
    ) -> Score | FeaturedScore:
        """Make the score of an image; a string says why nothing is known of it."""
        reason = found if isinstance(found, str) else self._find_broken(found)
        if isinstance(found, str) or reason:
            return Score(prompt.id, image, self.id, None, {"unjudged": reason})
        first = found.metrics[next(iter(self.scorers))]
        value = None if first is None else min(1.0, max(0.0, float(first) / self.score_scale))
        metrics = {}
        for name, known in found.metrics.items():
            if known is not None and name not in self.unlisted:
                metrics[name] = float(known)
        detail = {"metrics": metrics, SIZE: found.size}
        if value is None:
            return Score(prompt.id, image, self.id, None, {"unjudged": "no score", **detail})
        score = Score(prompt.id, image, self.id, value, detail)
        return FeaturedScore(score, dict(found.features)) if found.features else score

    def _find_broken(self, found: _Described) -> str:
        """Name the network that gave an infinite number or none; "" for finite ones.

        Raises UserError where too many images have such.
        """
        broken = ""
        for extractor, features_D in found.features.items():
            if not np.isfinite(features_D).all():
                broken = extractor
        for name, value in found.metrics.items():
            if value is not None and not math.isfinite(value):
                broken = self.scorers[name].id
        if not broken:
            return ""
        self._broken += 1
        if self._broken >= MOST_BROKEN * max(self.planned, 1 / MOST_BROKEN):
            raise UserError(
                f"{broken} gave no finite number for {self._broken} of {self.planned} images: "
                "try another device, and check its weights"
            )
        return f"{NOT_FINITE}: {broken}"

    # ------------------------------------------------------------------ the set

    def files(self, scores: Sequence[Score], folder: Path) -> dict[str, str]:
        """Make `set_metrics.json`: empty unless every planned image has a score and features.

        Raises UserError for features that are missing or altered.
        """
        if self.extractor is None or self.reference is None:
            return {}
        whole = sorted(_select_whole(scores), key=lambda score: (score.prompt_id, score.image))
        about = partial(SetMetrics, self.id, self.planned, len(whole), note=describe_sizes(whole))
        if about().problem:
            log.info("no distances to a reference: %s", about().problem)
            return {SET_METRICS: about().to_json()}
        found = self._measure(self.extractor, DISTANCES, whole, folder)
        if self.neighbours is not None:
            found |= self._measure(self.neighbours, NEIGHBOURHOODS, whole, folder)
        for name, metric in found.items():
            log.info("%s", describe_metric(name, metric))
        features = digest_features(whole, self.extractor.identity)
        return {SET_METRICS: about(features=features, metrics=found).to_json()}

    def _measure(
        self, extractor: Extractor, wanted: Sequence[str], whole: Sequence[Score], folder: Path
    ) -> dict[str, SetMetric]:
        """Measure all images beside the reference, as one extractor describes both."""
        assert self.reference is not None
        features_ND = read_features(folder, whole, extractor.identity).astype(np.float64)
        reference = self.reference(extractor)
        if set_metrics.needs_scaling(extractor.identity):
            features_ND, reference = _scale_by_reference(features_ND, reference)
        prompt_ids = [score.prompt_id for score in whole]
        return set_metrics.measure_sets(
            features_ND, prompt_ids, extractor.identity, reference, wanted
        )

    def summarise(self, scores: Sequence[Score]) -> Iterator[str]:
        """Format the mean of each metric of single images; an incomplete run has none."""
        judged = [score for score in scores if score.value is not None]
        yield f"{len(judged):,} of {self.planned:,} images judged"
        for name in self.scorers:
            values = [score.detail["metrics"].get(name) for score in judged]
            if name in self.unlisted:
                values = [score.value for score in judged]
            known = [value for value in values if value is not None]
            if len(known) < self.planned:
                yield f"{name}: incomplete {len(known):,}/{self.planned:,}"
                continue
            yield f"{name}: {math.fsum(known) / len(known):.4f}"
        if sizes := describe_sizes(scores):
            yield f"No distances: {sizes}"
        yield f"Judge {self.id}; distances to the reference are in {SET_METRICS}"


@dataclass(frozen=True, slots=True)
class _Described:
    """What the networks make of a picture."""

    features: Mapping[str, np.ndarray]
    """Of each extractor, by its identity."""
    metrics: Mapping[str, float | None]
    size: str


def _select_whole(scores: Iterable[Score]) -> Iterator[Score]:
    """Select the scores of images that have a value and features."""
    for score in scores:
        if score.value is not None and FEATURES in score.detail:
            yield score


def _scale_by_reference(
    features_ND: np.ndarray, reference: Reference
) -> tuple[np.ndarray, Reference]:
    """Divide features by the reference's deviations; leave out those that do not vary there."""
    moments = reference.moments
    deviation_D = np.sqrt(moments.covariance.diagonal())
    varies_D = deviation_D > 0
    scale_D = deviation_D[varies_D]
    scaled = Moments(
        moments.mean[varies_D] / scale_D,
        moments.covariance[np.ix_(varies_D, varies_D)] / scale_D / scale_D[:, None],
    )
    features_MD = reference.features_MD
    if features_MD is not None:
        features_MD = features_MD[:, varies_D] / scale_D
    return features_ND[:, varies_D] / scale_D, replace(
        reference, moments=scaled, features_MD=features_MD
    )


def describe_metric(name: str, metric: SetMetric) -> str:
    """Say what a distance is, with its error; never without what equals would be apart."""
    line = f"{name} {metric.value:.4f}"
    if metric.error is not None:
        line += f" ± {metric.error:.4f}"
    line += f" (n = {metric.n}, m = {metric.m or 'unknown'}, {metric.extractor})"
    if metric.bias is not None:
        line += f"; two sets of one distribution would be {metric.bias:.4f} apart"
    return f"{line}; {metric.note}" if metric.note else line
