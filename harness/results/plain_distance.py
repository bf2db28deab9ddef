"""Compare the images of runs with plain sampling's own, from features that scoring has kept.

A method that keeps the model's distribution draws images as far from a plain run's as another plain
run's are. That needs no reference images and no judge. Features are large and may be gone, so what
they say is kept in the method's folder as set_metrics-vs-<fingerprint of the plain run>.json.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from harness.judges.features import describe_sizes, digest_features, read_features
from harness.records import FEATURES, PLAIN_DISTANCE, Score, UserError, one_line
from harness.results.ranking import is_plain
from harness.results.stats.set_metrics import (
    PlainDistance,
    check_plain,
    name_scale,
    needs_scaling,
)
from harness.runs.journal import write_atomic
from harness.runs.read import RankingProtocol, Run

log = logging.getLogger("harness")

FEWEST = 8
"""Prompts below which no exchange can be rare: 2 in 2^7 are 1.6 %."""


class Comparison:
    """Runs of one protocol and extractor: which plain runs a run is compared with."""

    def __init__(self, runs: Sequence[Run], extractor: str) -> None:
        self.extractor = extractor
        self._plain = sorted(filter(is_plain, runs), key=lambda run: (run.about["seed"], run.path))
        self.runs = runs
        self._digests: dict[Path, str] = {}

    def choose_plain(self, run: Run) -> Run | None:
        """Return the plain run to compare with: of another seed, where there is one."""
        others = [plain for plain in self._plain if plain.path != run.path]
        seed = run.about["seed"]
        return min(others, key=lambda plain: plain.about["seed"] == seed, default=None)

    def choose_other_plain(self, run: Run, plain: Run) -> Run | None:
        """Return a plain run of another seed than `plain`, which tells how far apart equals are."""
        for other in self._plain:
            is_other = other.path not in (run.path, plain.path)
            if is_other and other.about["seed"] != plain.about["seed"]:
                return other
        return None

    def read(self, run: Run) -> PlainDistance | None:
        """Return what is kept of a run's distance.

        None unless it is of the same features, scaled by the same rule.
        """
        plain = self.choose_plain(run)
        if plain is None:
            return None
        file = _locate(run, plain.fingerprint)
        try:
            found = PlainDistance.from_json(file.read_bytes())
        except (OSError, ValueError):
            return None  # it is made again
        other = self.choose_other_plain(run, plain)
        if found.scale != name_scale(self.extractor):
            return None
        return found if found.made_of == self._name_inputs(run, plain, other) else None

    def measure(self, run: Run) -> PlainDistance | None:
        """Measure a run's distance from the features of all runs; None without a plain run.

        Raises UserError for features that are missing or altered.
        """
        plain = self.choose_plain(run)
        if plain is None or len(run.prompts) < FEWEST:
            return None
        other = self.choose_other_plain(run, plain)
        runs = [one for one in (run, plain, other) if one is not None]
        sets = [self._read(one) for one in runs]
        of_plain = [found for one, found in zip(runs, sets, strict=True) if is_plain(one)]
        prompt_ids = [prompt_id for prompt_id, _ in sorted(run.planned)]
        found = check_plain(
            sets[0],
            sets[1],
            sets[2] if other is not None else None,
            np.unique(prompt_ids, return_inverse=True)[1],
            are_independent=run.about["seed"] != plain.about["seed"],
            scale_by=of_plain if needs_scaling(self.extractor) else None,
        )
        return PlainDistance(
            plain=plain.fingerprint,
            other_plain=other.fingerprint if other is not None else "",
            extractor=self.extractor,
            made_of=self._name_inputs(run, plain, other),
            n=len(run.planned),
            prompts=len(run.prompts),
            scale=name_scale(self.extractor),
            **found,
        )

    def _read(self, run: Run) -> np.ndarray:
        features_ND = read_features(run.path, _list_scores(run), self.extractor)
        return features_ND.astype(np.float64)

    def _name_inputs(self, *runs: Run | None) -> dict[str, str]:
        """Return a digest of the features of each run, by its fingerprint."""
        named = {}
        for run in runs:
            if run is None:
                continue
            if run.path not in self._digests:
                self._digests[run.path] = digest_features(_list_scores(run), self.extractor)
            named[run.fingerprint] = self._digests[run.path]
        return named


def group_comparable(runs: Iterable[Run]) -> list[Comparison]:
    """Group complete runs that keep features, by protocol and extractor."""
    groups: dict[tuple[RankingProtocol, str], list[Run]] = {}
    for run in runs:
        extractor = find_extractor(run)
        if extractor and not run.excluded:
            groups.setdefault((run.protocol, extractor), []).append(run)
    return [Comparison(members, extractor) for (_, extractor), members in groups.items()]


def find_extractor(run: Run) -> str:
    """Return the extractor of which a complete run keeps all features; "" without one.

    Of several it is the one of FID. Images of several sizes are no set.
    """
    if not run.complete or set(run.scores) != set(run.planned):
        return ""
    if describe_sizes(run.scores.values()):
        return ""
    shared: set[str] | None = None
    for score in run.scores.values():
        shas = score.detail.get(FEATURES)
        names = set(shas) if isinstance(shas, dict) else set()
        shared = names if shared is None else shared & names
    fid = run.sets.metrics.get("fid") if run.sets is not None else None
    if shared and fid is not None and fid.extractor in shared:
        return fid.extractor
    return min(shared or {""})


def update_distances(runs: Iterable[Run]) -> None:
    """Measure the distances to plain sampling that are not known yet, and keep them.

    Features that are gone are told once for each run; what was kept of them before stays.
    """
    for comparison in group_comparable(runs):
        for run in comparison.runs:
            if comparison.read(run) is not None:
                continue
            try:
                found = comparison.measure(run)
            except UserError as error:
                log.warning("no distance to plain sampling: %s", one_line(error))
                continue
            if found is None:
                continue
            for former in run.path.glob(f"{PLAIN_DISTANCE}*.json"):
                former.unlink()
            write_atomic(_locate(run, found.plain), found.to_json().encode())


def read_distances(runs: Iterable[Run]) -> dict[Path, PlainDistance]:
    """Read the distances to plain sampling that are kept, by run folder."""
    found = {}
    for comparison in group_comparable(runs):
        for run in comparison.runs:
            kept = comparison.read(run)
            if kept is not None:
                found[run.path] = kept
    return found


def _list_scores(run: Run) -> list[Score]:
    return [run.scores[key] for key in sorted(run.planned)]


def _locate(run: Run, plain: str) -> Path:
    return run.path / f"{PLAIN_DISTANCE}{plain}.json"
