"""Search among candidates by a reward: importance sampling, beam search, FR-TTS.

Importance sampling chooses once, at the end, at random. Beam search and FR-TTS (arXiv 2512.00438,
after the released code, xuhang07/FR-TTS) choose at stops, too: candidates with a poor reward are
overwritten by copies of good ones, which go on differently. FR-TTS scores an unfinished picture by
the best of many ways to fill its undrawn part with blocks that are drawn.

Every picture that is looked at is rendered and asked about through the session, so that the ledger
counts it. With one candidate nothing is scored, and the image is that of plain sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness import (
    Canvas,
    Count,
    Image,
    Judge,
    Natural,
    NotNegative,
    Positive,
    Session,
    UserError,
)
from methods.best_of_n import index_of_best, is_missing
from methods.gridar import padding_tokens

PADS = ("repeat", "zero", "mean", "model", "crop")

Scores = Sequence[float | None]
Facts = dict[str, Any]
"""What a stop adds to the journal, as plain values."""


# ------------------------------------------------------------------ importance sampling


class ImportanceSampling:
    """Draw N candidates and deliver one at random, with chance proportional to exp(gain * reward).

    A gain of 0 picks uniformly, a very large one is Best-of-N. The published gain of 10 belongs to
    ImageReward (ali-vilab/TTS-VAR), and must be scaled for a reward of another range. Notes the
    scores, the chances and what score was to be expected. Raises UserError for values out of range.
    """

    branches = 2
    tokens_per_step = 1

    def __init__(self, n: Count, reward: Judge, gain: NotNegative = 10.0) -> None:
        _expect_candidates(n)
        if not 0 <= gain < math.inf:
            raise UserError(f"method.gain={gain}: must be 0 (uniform) or positive")
        self.n = n
        self.rows = n
        self.reward = reward
        self.gain = gain

    async def generate(self, prompt: str, s: Session) -> Canvas:
        # 1. Draw N candidates.
        candidates = s.open(self.n)
        await s.run(candidates)
        if self.n == 1:
            return candidates[0]

        # 2. Score them, and draw one.
        scores = await s.ask(self.reward, prompt, await s.render(candidates))
        chances = importance_weights(scores, self.gain)
        chosen = int(s.rng("importance").choice(self.n, p=chances))
        known = [0.0 if is_missing(score) else float(score) for score in scores]
        s.note(
            scores=scores,
            chances=[round(chance, 6) for chance in chances],
            expected_score=math.fsum(c * score for c, score in zip(chances, known, strict=True)),
            chosen=chosen,
        )
        return candidates[chosen]


def importance_weights(scores: Scores, gain: float) -> list[float]:
    """Return softmax(gain * score); a missing score has no chance, unless all are missing.

    Then the first candidate is certain.
    """
    known = [-math.inf if is_missing(score) else gain * float(score) for score in scores]  # type: ignore[arg-type]
    highest = max(known)
    if highest == -math.inf:
        return [1.0] + [0.0] * (len(scores) - 1)
    weights = [math.exp(value - highest) for value in known]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


# ------------------------------------------------------------------ beam search


class Beam:
    """Keep the best `beams` candidates at every stop, and let each go on in `branch` ways.

    `stops` are shares of the image, drawn when that much of it is. An unfinished picture is scored
    with its undrawn part shown as `pad` says: the drawn tokens repeated, zeros, their mean, as the
    model shows it, or not at all (`crop`: the drawn rows, stretched to the whole height). The best
    finished image is delivered. With `branch` 1 this is Best-of-N.

    On models that draw in raster order, the reward of an unfinished picture says little; this is a
    baseline, whose settings are ours. Raises UserError for values out of range, and for a grid that
    a stop does not divide into whole rows.
    """

    branches = 2
    tokens_per_step = 1

    def __init__(
        self,
        reward: Judge,
        beams: Count = 2,
        branch: Count = 4,
        stops: Sequence[float] = (0.25, 0.5, 0.75),
        pad: str = "repeat",
    ) -> None:
        for name, value in (("beams", beams), ("branch", branch)):
            if value < 1:
                raise UserError(f"method.{name}={value}: must be at least 1")
        if pad not in PADS:
            raise UserError(f"method.pad={pad}: choose from {', '.join(PADS)}")
        self.beams = beams
        self.branch = branch
        self.rows = beams * branch
        self.stops = _read_stops(stops)
        self.pad = pad
        self.reward = reward

    def expect_grid(self, grid: tuple[int, int]) -> None:
        """Raise UserError if a stop does not end with a whole row of the grid."""
        for stop in self.stops:
            count_rows(stop, grid)

    async def generate(self, prompt: str, s: Session) -> Canvas:
        candidates = s.open(self.rows)
        stops: list[Facts] = []
        for stop in self.stops if self.rows > 1 else ():
            # 1. Draw to the stop, and score what is there.
            drawn_rows = count_rows(stop, s.grid)
            await s.run(candidates, until=s.raster.places_of_rows(drawn_rows))
            views = await self._render_views(candidates, drawn_rows, s)
            scores = await s.ask(self.reward, prompt, views)

            # 2. The best go on, each in several ways.
            sources = descend(scores, self.beams, self.branch)
            reassign(candidates, sources, s)
            stops.append({"stop": stop, "scores": scores, "source": sources})
        return await _deliver_best(candidates, self.reward, prompt, stops, s)

    async def _render_views(
        self, candidates: Sequence[Canvas], drawn_rows: int, s: Session
    ) -> list[Image]:
        """Decode unfinished candidates as the reward is shown them."""
        if self.pad == "crop":
            return [
                stretch_top(view, drawn_rows / s.grid[0]) for view in await s.render(candidates)
            ]
        pads = []
        for canvas in candidates:
            codes = s.raster.pick_codes(canvas.tokens)
            pads.append(padding_tokens(codes, s.raster.codes, self.pad))
        return await s.render(candidates, pads)


def descend(scores: Scores, beams: int, branch: int) -> list[int]:
    """Return whose copy each candidate becomes, when each of the best has `branch` descendants.

    Ties go to the lower index, missing scores come last. A candidate that is kept keeps its place;
    the others are taken in index order by the descendants of the best first.
    """
    order = sorted(range(len(scores)), key=lambda i: _descending(scores[i]))
    kept = order[:beams]
    return _settle(dict.fromkeys(kept, branch), len(scores), kept)


def _descending(score: float | None) -> tuple[bool, float]:
    if score is None or math.isnan(score):
        return True, 0.0
    return False, -score


def _settle(copies: dict[int, int], count: int, order: Sequence[int]) -> list[int]:
    """Assign places: who is copied stays, and its further copies fill the others in index order."""
    sources = list(range(count))
    free = [place for place in range(count) if not copies.get(place)]
    surplus = [i for i in order for _ in range(copies[i] - 1)]
    for place, i in zip(free, surplus, strict=True):
        sources[place] = i
    return sources


def reassign(candidates: Sequence[Canvas], sources: Sequence[int], s: Session) -> None:
    """Turn each candidate into a copy of its source, with noise of its own from here on.

    A source must be its own.
    """
    for place, source in enumerate(sources):
        assert sources[source] == source, "a source is overwritten before it is copied"
        if source != place:
            s.fork(candidates[source], over=candidates[place])


# ------------------------------------------------------------------ FR-TTS


@dataclass(frozen=True, slots=True)
class Climb:
    """How the best filling of an undrawn part is looked for."""

    fills: Count = 5  # random fillings to begin with
    rounds: Natural = 5  # rounds of changes at most, of two attempts each
    misses: Count = 2  # rounds without a better filling that end the search


class FillingReward:
    """FR-TTS: score unfinished candidates by their best filling, and resample them at stops.

    At a stop the undrawn part of a candidate is filled with copies of its own drawn blocks of
    `block` tokens (None: half a row), at random; the best of `climb.fills` fillings is changed a
    quarter at a time as long as the reward likes that better. Its reward is the candidate's. It is
    weighed against diversity, the distance of its picture from those of earlier candidates by
    `features`, which counts most in the upper part of the image (None: never). From the softmax of
    the scores of the best half (later quarter), all candidates are drawn anew, with replacement.
    The best finished image is delivered.

    The constants are those of the released code, which was written for 24 x 24 tokens; shares of
    the image stand in for its row numbers. Raises UserError for values out of range, and for a grid
    that stops or blocks do not divide.
    """

    branches = 2
    tokens_per_step = 1

    def __init__(
        self,
        n: Count,
        reward: Judge,
        features: Judge | None = None,
        stops: Sequence[float] = (0.5, 0.75),
        block: Count | None = None,
        climb: Climb | None = None,
        temperature: Positive = 1.0,
    ) -> None:
        _expect_candidates(n)
        if block is not None and block < 1:
            raise UserError(f"method.block={block}: must be at least 1, or null for half a row")
        if not 0 < temperature < math.inf:
            raise UserError(f"method.temperature={temperature}: must be positive")
        self.n = n
        self.rows = n
        self.reward = reward
        self.features = features
        self.stops = _read_stops(stops)
        self.block = block
        self.climb = Climb() if climb is None else climb
        self.temperature = temperature

    def expect_grid(self, grid: tuple[int, int]) -> None:
        """Raise UserError if a stop is no whole number of rows, or of blocks."""
        block = self._block_of(grid)
        total = grid[0] * grid[1]
        for stop in self.stops:
            drawn = count_rows(stop, grid) * grid[1]
            if drawn % block or total % block:
                raise UserError(
                    f"method.block={block}: {drawn} of {total} tokens are drawn at the stop "
                    f"{stop:g}; choose a block that divides both"
                )

    async def generate(self, prompt: str, s: Session) -> Canvas:
        candidates = s.open(self.n)
        stops: list[Facts] = []
        for stop in self.stops if self.n > 1 else ():
            # 1. Draw to the stop.
            drawn_rows = count_rows(stop, s.grid)
            await s.run(candidates, until=s.raster.places_of_rows(drawn_rows))

            # 2. Score each candidate by its best filling, and by how it differs from the others.
            search = _FillSearch(candidates, self._block_of(s.grid), stop)
            await search.climb(self.climb, self.reward, prompt, s)
            diversities = await self._measure_diversity(search.views, drawn_rows, prompt, s)
            scores = weigh(search.rewards, diversities, stop)

            # 3. Draw all candidates anew from the best.
            sources = self._resample(scores, stop, s)
            reassign(candidates, sources, s)
            stops.append(
                {
                    "stop": stop,
                    "rewards": search.rewards,
                    "diversities": diversities,
                    "scores": scores,
                    "looks": search.looks,
                    "source": sources,
                }
            )
        return await _deliver_best(candidates, self.reward, prompt, stops, s)

    def _block_of(self, grid: tuple[int, int]) -> int:
        return max(1, grid[1] // 2) if self.block is None else self.block

    async def _measure_diversity(
        self, views: Sequence[Image], drawn_rows: int, prompt: str, s: Session
    ) -> list[float] | None:
        """Return how far each picture's drawn part is from those of earlier candidates."""
        if self.features is None:
            return None
        tops = [view[: len(view) * drawn_rows // s.grid[0]] for view in views]
        vectors = await s.ask(self.features, prompt, tops)
        return distances_from_earlier(np.asarray(vectors, dtype=np.float64))

    def _resample(self, scores: Sequence[float], stop: float, s: Session) -> list[int]:
        """Draw whose copy each candidate becomes."""
        order = sorted(range(self.n), key=lambda i: -scores[i])
        kept = order[: survivors(self.n, stop)]
        chances = importance_weights([scores[i] for i in kept], 1 / self.temperature)
        drawn = s.rng(f"resample {stop:g}").choice(len(kept), size=self.n, p=chances)
        copies = {i: int((drawn == rank).sum()) for rank, i in enumerate(kept)}
        present = [i for i in sorted(kept) if copies[i]]
        return _settle({i: copies[i] for i in present}, self.n, present)


class _FillSearch:
    """The search for the best filling of every candidate's undrawn part, all of them at once."""

    def __init__(self, candidates: Sequence[Canvas], block: int, stop: float) -> None:
        self._candidates = candidates
        self._codes: list[Sequence[int]] = []  # what each has drawn
        self._block = block
        self._stop = stop
        self.looks = 0  # pictures that were rendered and scored
        self.fillings: list[list[int]] = [[] for _ in candidates]  # drawn block per undrawn one
        self.rewards: list[float] = [-math.inf for _ in candidates]
        self.views: list[Image] = []

    async def climb(self, settings: Climb, reward: Judge, prompt: str, s: Session) -> None:
        """Find the best fillings; draws from the session's generator in one fixed order."""
        rng = s.rng(f"fill {self._stop:g}")
        self._codes = [s.raster.pick_codes(canvas.tokens) for canvas in self._candidates]
        drawn = len(self._codes[0]) // self._block
        undrawn = s.raster.codes // self._block - drawn
        everyone = list(range(len(self._candidates)))
        self.views = [np.zeros((0, 0, 3), dtype=np.uint8) for _ in everyone]

        # 1. The best of some random fillings.
        trials = []
        for i in everyone:
            for _ in range(settings.fills):
                trials.append((i, rng.integers(drawn, size=undrawn).tolist()))
        await self._try(trials, reward, prompt, s)

        # 2. Change a quarter of it, twice a round, as long as that helps.
        misses = [0] * len(everyone)
        for _ in range(settings.rounds):
            climbing = [i for i in everyone if misses[i] < settings.misses]
            waiting = climbing
            for _attempt in range(2):
                changed = [(i, self._change(i, drawn, rng)) for i in waiting]
                better = await self._try(changed, reward, prompt, s)
                waiting = [i for i in waiting if i not in better]
            for i in climbing:
                misses[i] = misses[i] + 1 if i in waiting else 0

    def _change(self, i: int, drawn: int, rng: np.random.Generator) -> list[int]:
        """Fill a quarter of the undrawn blocks anew."""
        filling = list(self.fillings[i])
        places = rng.choice(len(filling), size=max(1, len(filling) // 4), replace=False)
        for place in places:
            filling[int(place)] = int(rng.integers(drawn))
        return filling

    async def _try(
        self, trials: Sequence[tuple[int, list[int]]], reward: Judge, prompt: str, s: Session
    ) -> set[int]:
        """Render and score fillings; keep those that are better, and return whose they are."""
        if not trials:
            return set()
        rows = [self._candidates[i] for i, _ in trials]
        pads = [self._tokens_of(i, filling) for i, filling in trials]
        views = await s.render(rows, pads)
        scores = await s.ask(reward, prompt, views)
        self.looks += len(trials)
        better = set()
        for (i, filling), view, score in zip(trials, views, scores, strict=True):
            value = -math.inf if is_missing(score) else float(score)
            if value > self.rewards[i] or not self.fillings[i]:
                self.rewards[i] = value
                self.fillings[i] = filling
                self.views[i] = view
                better.add(i)
        return better

    def _tokens_of(self, i: int, filling: Sequence[int]) -> list[int]:
        """Return the tokens of a filling's blocks."""
        codes = self._codes[i]
        shown: list[int] = []
        for block in filling:
            shown += codes[block * self._block : (block + 1) * self._block]
        return shown


class CellColors:
    """Describe a picture by the mean colours of `cells` x `cells` cells, as features of diversity.

    The published features are VGG16's; these need no download (our choice).
    """

    def __init__(self, cells: Count = 6) -> None:
        if cells < 1:
            raise UserError(f"features.cells={cells}: must be at least 1")
        self.cells = cells
        self.id = f"cell-colors-{cells}"

    def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> list[list[float]]:
        return [self._describe(image) for image in images]

    def _describe(self, image: Image) -> list[float]:
        """Return the normalised vector of mean colours."""
        means = []
        for band in np.array_split(image.astype(np.float64), self.cells):
            for cell in np.array_split(band, self.cells, axis=1):
                means.append(cell.mean((0, 1)) if cell.size else np.zeros(3))
        vector = np.concatenate(means)
        norm = float(np.linalg.norm(vector))
        return (vector / norm if norm else vector).tolist()


def distances_from_earlier(vectors: np.ndarray) -> list[float]:
    """Return each vector's distance from the nearest earlier one; the first has the largest."""
    nearest = []
    for i in range(1, len(vectors)):
        gaps = np.linalg.norm(vectors[:i] - vectors[i], axis=1)
        nearest.append(float(gaps.min()))
    return [max(nearest, default=0.0), *nearest]


def weights_at(stop: float, variance: float) -> tuple[float, float]:
    """Return the weights of reward and diversity at a share of the image.

    Diversity fades from the upper quarter to three quarters of the image; where the rewards differ
    much (a variance above 0.03), the reward counts more.
    """
    faded = min(max((stop - 0.25) / 0.5, 0.0), 1.0)
    shift = (1 / (1 + math.exp(-10 * (variance - 0.03))) - 0.5) * 2 * 0.3
    diversity = min(max(1 - faded - shift, 0.0), 1.0)
    reward = min(max(faded + shift, 0.0), 1.0)
    return reward, diversity


def weigh(
    rewards: Sequence[float], diversities: Sequence[float] | None, stop: float
) -> list[float]:
    """Return the score of every candidate: weighted reward and diversity, each scaled to 0..1."""
    scaled = _scale(rewards)
    if diversities is None:
        return scaled
    reward_weight, diversity_weight = weights_at(stop, float(np.var(rewards)))
    pairs = zip(scaled, _scale(diversities), strict=True)
    return [reward_weight * reward + diversity_weight * other for reward, other in pairs]


def _scale(values: Sequence[float]) -> list[float]:
    low = min(values)
    spread = max(values) - low
    return [(value - low) / spread if spread else 1.0 for value in values]


def survivors(n: int, stop: float) -> int:
    """Return how many candidates may be drawn at a share of the image (200 and 400 of 576)."""
    if stop * 576 < 200:
        return n
    return max(1, n // 2 if stop * 576 < 400 else n // 4)


# ------------------------------------------------------------------ shared parts


async def _deliver_best(
    candidates: Sequence[Canvas], reward: Judge, prompt: str, stops: list[Facts], s: Session
) -> Canvas:
    """Finish all candidates, and return the one that the reward likes best."""
    await s.run(candidates)
    if len(candidates) == 1:
        return candidates[0]
    scores = await s.ask(reward, prompt, await s.render(candidates))
    chosen = index_of_best(scores)
    s.note(stops=stops, scores=scores, chosen=chosen)
    return candidates[chosen]


def count_rows(stop: float, grid: tuple[int, int]) -> int:
    """Return how many rows of tokens are drawn at a stop. Raises UserError for a part of a row."""
    rows = stop * grid[0]
    if rows != int(rows) or not 0 < rows < grid[0]:
        raise UserError(
            f"method.stops: the top {stop:g} of {grid[0]} rows of tokens is {rows:g} rows; "
            "choose shares that give whole rows, fewer than all"
        )
    return int(rows)


def stretch_top(view: Image, share: float) -> Image:
    """Return the top `share` of a picture, stretched to its height by repeating rows of pixels."""
    visible = max(1, round(share * len(view)))
    return view[np.arange(len(view)) * visible // len(view)]


def _read_stops(stops: Sequence[float]) -> tuple[float, ...]:
    read = tuple(float(stop) for stop in stops)
    if any(not 0 < stop < 1 for stop in read) or list(read) != sorted(set(read)):
        raise UserError(
            f"method.stops={list(read)}: give shares of the image between 0 and 1, in rising order"
        )
    return read


def _expect_candidates(n: int) -> None:
    if n < 1:
        raise UserError(f"method.n={n}: at least one candidate is needed")
