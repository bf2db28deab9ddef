"""Compare the runs of one protocol: with plain sampling, with Best-of-N at equal budget, by rank.

Runs are paired by prompt, and one set of bootstrap resamples serves all comparisons, so they agree
with each other. Budgets are counted in plain images: by visual tokens, or by seconds (device and
judge; a latency run's wall clock).

Legend of suffixes: P prompts, C categories, K aggregates, R runs, D bootstrap draws.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from harness.records import SampleRecord
from harness.results import stats
from harness.results.columns import LEADERBOARD
from harness.results.stats.comparison import ALPHA, MARGIN, TASK_MARGIN, Difference
from harness.results.stats.scaling import BUDGET_TOLERANCE
from harness.runs.read import RankingProtocol, Run

Currency = Literal["visual_tokens", "seconds"]
Quantity = Literal["visual_tokens", "seconds", "target_passes"]
CURRENCIES: tuple[Currency, ...] = ("visual_tokens", "seconds")
PLAIN = "plain"
BEST_OF_N = "best_of_n"
ONE_IMAGE = 1 + BUDGET_TOLERANCE
"""Largest budget, in plain images, that still counts as one image's."""
LEAST_GAIN = 1e-9
"""Smallest denominator of a selection efficiency; below it one would divide by about zero."""


class Saving(NamedTuple):
    """How many times less a run costs than plain sampling, with its 95 % interval."""

    ratio: float
    low: float
    high: float


class Selection(NamedTuple):
    """What choosing among n candidates could gain, and how much of it a run gained."""

    oracle: float  # score of always choosing the best
    efficiency: float  # share of the gain from one image to the oracle
    low: float  # 95 % interval of the efficiency
    high: float


class CategoryInterval(NamedTuple):
    """The difference of two runs in one category, with its 95 % interval."""

    category: str
    value: float
    low: float
    high: float


class CategoryDifference(NamedTuple):
    """The difference of two runs in one category; q is adjusted for all categories."""

    category: str
    value: float
    low: float
    high: float
    q: float


class CurvePoint(NamedTuple):
    """A run on a scaling curve, and its budget in plain images."""

    budget: float
    run: Run


@dataclass(frozen=True, slots=True)
class NonInferiority:
    """What an acceleration may have lost against plain sampling, as one-sided 95 % bounds."""

    bound: float  # the true difference of scores is above it (-0.01 = one point below plain)
    task: str  # the category with the lowest bound
    task_bound: float

    @property
    def shown(self) -> bool:
        """Tell whether the bounds are within the margins: 1 point overall, 2 in every category."""
        return self.bound >= -MARGIN and self.task_bound >= -TASK_MARGIN


@dataclass(frozen=True, slots=True)
class Curve:
    """A method over its budgets, from plain sampling on."""

    method: str
    params: str  # without n
    seed: int
    runs: tuple[Run, ...]
    budgets: tuple[float, ...]  # plain images, increasing
    quality: np.ndarray  # score at each budget
    quality_D: np.ndarray  # [budgets, D]; D = 0 where the error cannot be known


class RankedGroup:
    """Runs of one protocol, in a fixed order, and their comparisons with each other.

    `pool` are plain runs of the same prompts, perhaps with more images each; the oracle is
    estimated from them. The runs fit each other (see `find_misfits`).
    """

    def __init__(self, runs: Sequence[Run], pool: Sequence[Run] = ()) -> None:
        self.runs = tuple(runs)
        self.protocol = self.runs[0].protocol
        self._pool = list(pool)
        self._row_of_path = {run.path: row for row, run in enumerate(self.runs)}
        self._costs: dict[tuple[Path, Currency], float] = {}

        tables = [run.table for run in self.runs]
        self.design = stats.Design(tables[0])
        self._value_RP = stats.stack_prompt_means(tables)
        self._weight_KC = self.design.aggregate_weights(self.runs[0].aggregates)
        self._score_weight_C = self._weight_KC[0]  # "score" is the first aggregate
        self._aggregates = list(self.runs[0].aggregates)

        judged_right_or_wrong = bool(np.isin(self._value_RP, (0.0, 1.0)).all())
        self._binary = self.protocol.images_per_prompt == 1 and judged_right_or_wrong

    @property
    def error_is_known(self) -> bool:
        """Tell whether intervals and tests exist: no category depends on a single prompt."""
        return self.design.error_is_known

    def _row(self, run: Run) -> int:
        """Return the row of a run in all arrays [R, ...]."""
        return self._row_of_path[run.path]

    def _rows(self, runs: Iterable[Run]) -> list[int]:
        return [self._row(run) for run in runs]

    def _values(self, run: Run) -> np.ndarray:
        """Return the prompt means [P] of a run."""
        return np.asarray(self._value_RP[self._row(run)])

    @cached_property
    def _draws_DRC(self) -> np.ndarray:
        """Bootstrap draws of all runs' category means; D = 0 where the error cannot be known."""
        if not self.error_is_known:
            return np.zeros((0, len(self.runs), len(self.design.categories)))
        return self.design.bootstrap(self._value_RP)

    def _category_draws(self, run: Run) -> np.ndarray:
        """Return the bootstrap draws [D, C] of a run's category means."""
        return np.asarray(self._draws_DRC[:, self._row(run)])

    def _score_draws(self, run: Run) -> np.ndarray:
        """Return the bootstrap draws [D] of a run's score."""
        return np.asarray(self._score_DR[:, self._row(run)])

    @cached_property
    def _score_R(self) -> np.ndarray:
        return self.design.category_means(self._value_RP) @ self._score_weight_C

    @cached_property
    def _score_DR(self) -> np.ndarray:
        return self._draws_DRC @ self._score_weight_C

    # --- one number of one run --------------------------------------------------------------------

    def score(self, run: Run) -> float:
        """Return a run's score."""
        return float(self._score_R[self._row(run)])

    def category_means(self, run: Run) -> dict[str, float]:
        """Return a run's mean of each category."""
        mean_C = self._category_means(run)
        return dict(zip(self.design.categories, mean_C.tolist(), strict=True))

    def aggregates(self, run: Run) -> dict[str, float]:
        """Return a run's named combinations of category means; "score" is the first."""
        value_K = self._weight_KC @ self._category_means(run)
        return dict(zip(self._aggregates, value_K.tolist(), strict=True))

    def _category_means(self, run: Run) -> np.ndarray:
        row = self._row(run)
        value_1P = self._value_RP[row : row + 1]
        mean_1C = self.design.category_means(value_1P)
        return np.asarray(mean_1C[0])

    def aggregate_interval(self, run: Run, aggregate: str) -> tuple[float, float]:
        """Return the 95 % interval of a named combination of category means."""
        weight_C = self._weight_KC[self._aggregates.index(aggregate)]
        return _interval_or_nan(self._category_draws(run) @ weight_C)

    def category_interval(self, run: Run, category: str) -> tuple[float, float]:
        """Return Wilson's 95 % interval of a category's rate, at its effective sample size."""
        c = self.design.categories.index(category)
        draws_D = self._category_draws(run)[:, c]
        error = float(draws_D.std()) if len(draws_D) else math.nan
        rate = float(self._category_means(run)[c])
        clusters = self.design.clusters_by_category()[category]
        return stats.clustered_wilson(rate, error, clusters)

    def cost(self, run: Run, currency: Currency) -> float:
        """Return the mean cost of a delivered image; nan where none was delivered."""
        key = (run.path, currency)
        if key not in self._costs:
            costs = [_cost(run, record, currency) for record in run.done.values()]
            mean = math.fsum(costs) / len(costs) if costs else math.nan
            self._costs[key] = mean
        return self._costs[key]

    def budget(self, run: Run, currency: Currency = "visual_tokens") -> float:
        """Return the mean cost of a delivered image in plain images.

        nan without a plain run to measure by; for seconds, that is one on the same device at the
        same concurrency.
        """
        plain = self.plain_of(run)
        if plain is None or (currency == "seconds" and not _are_timed_alike(run, plain)):
            return math.nan
        plain_cost = self.cost(plain, currency)
        return self.cost(run, currency) / plain_cost if plain_cost > 0 else math.nan

    # --- against plain sampling -------------------------------------------------------------------

    def plain_of(self, run: Run) -> Run | None:
        """Return the plain run to compare with; None without one (see `find_plain`)."""
        return find_plain(run, self.runs)

    def difference(self, a: Run, b: Run) -> Difference:
        """Return the score of `a` minus that of `b`, paired by prompt."""
        draws_D = None
        if self.error_is_known:
            draws_D = self._score_draws(a) - self._score_draws(b)
        return stats.compare_paired(
            self.design,
            self._values(a),
            self._values(b),
            self._score_weight_C,
            binary=self._binary,
            draws_D=draws_D,
        )

    def category_differences(self, a: Run, b: Run) -> list[CategoryDifference]:
        """Return `a` minus `b` in every category: an exploration (Benjamini and Hochberg's q).

        Only where the error is known.
        """
        delta_P = self._values(a) - self._values(b)
        p = []
        for one_hot_C in np.eye(len(self.design.categories)):
            contribution_G = self.design.cluster_contributions(delta_P, one_hot_C)
            p.append(stats.sign_flip_test(contribution_G))
        q = stats.benjamini_hochberg(p)
        intervals = self.category_intervals(a, b)
        return [
            CategoryDifference(*found, q_of_category)
            for found, q_of_category in zip(intervals, q, strict=True)
        ]

    def category_intervals(self, a: Run, b: Run) -> list[CategoryInterval]:
        """Return `a` minus `b` in every category; ends are nan where the error is not known."""
        delta_P = self._values(a) - self._values(b)
        delta_DC = self._category_draws(a) - self._category_draws(b)
        value_C = self.design.category_means(delta_P[None])[0]
        found = []
        for c, category in enumerate(self.design.categories):
            low, high = _interval_or_nan(delta_DC[:, c])
            found.append(CategoryInterval(category, float(value_C[c]), low, high))
        return found

    def vs_plain(self, run: Run) -> Difference | None:
        """Return the difference from plain sampling; None without a plain run or for one."""
        plain = self.plain_of(run)
        return None if plain is None or is_plain(run) else self.difference(run, plain)

    def non_inferiority(self, run: Run) -> NonInferiority | None:
        """Bound what a run that draws one image's tokens lost against plain sampling.

        None for methods that spend more tokens, and where the error cannot be known.
        """
        plain = self.plain_of(run)
        if plain is None or is_plain(run) or not self.error_is_known:
            return None
        if not self.budget(run) <= ONE_IMAGE:
            return None
        delta_DC = self._category_draws(run) - self._category_draws(plain)
        bound_C = np.quantile(delta_DC, ALPHA, axis=0)
        worst = int(bound_C.argmin())
        bound = float(np.quantile(delta_DC @ self._score_weight_C, ALPHA))
        return NonInferiority(bound, self.design.categories[worst], float(bound_C[worst]))

    def saving(self, run: Run, quantity: Quantity) -> Saving | None:
        """Return how many times less a run costs than plain; for seconds, the speed-up.

        The geometric mean over prompts of plain's cost over the run's (Fleming and Wallace, CACM
        29, 1986). None without a plain run (for seconds, one on the same device at the same
        concurrency), and where a prompt has no image.
        """
        plain = self.plain_of(run)
        if plain is None or is_plain(run):
            return None
        if quantity == "seconds" and not _are_timed_alike(run, plain):
            return None
        cost_P = self._cost_per_prompt(run, quantity)
        plain_cost_P = self._cost_per_prompt(plain, quantity)
        if cost_P is None or plain_cost_P is None:
            return None
        if (cost_P <= 0).any() or (plain_cost_P <= 0).any():
            return None

        log_P = np.log(plain_cost_P) - np.log(cost_P)
        weight_C = self.design.micro_weights()
        mean_log_C = self.design.category_means(log_P[None])[0]
        ratio = float(np.exp(mean_log_C @ weight_C))
        if not self.error_is_known:
            return Saving(ratio, math.nan, math.nan)
        log_draws_D = self.design.bootstrap(log_P[None])[:, 0] @ weight_C
        low, high = stats.percentile_interval(log_draws_D)
        return Saving(ratio, math.exp(low), math.exp(high))

    def _cost_per_prompt(self, run: Run, quantity: Quantity) -> np.ndarray | None:
        """Return the mean cost [P] of each prompt's images; None where a prompt has none."""
        costs: dict[tuple[str, str], list[float]] = {}
        for record in run.done.values():
            key = (record.category, record.prompt_id)
            costs.setdefault(key, []).append(_cost(run, record, quantity))
        if set(costs) != set(self.design.prompts):
            return None
        return np.array([np.mean(costs[key]) for key in self.design.prompts])

    # --- against choosing among candidates --------------------------------------------------------

    def vs_best_of_n(self, run: Run, currency: Currency = "visual_tokens") -> Difference | None:
        """Return the difference from Best-of-N with the reward at the run's own budget.

        Best-of-N's prompt means are interpolated between two N, linearly in log2 of the budget.
        None where it was not run at such budgets, for Best-of-N itself, and for methods that spend
        no more than plain sampling.
        """
        budget = self.budget(run, currency)
        if is_plain(run) or _is_best_of_n(run) or not budget > ONE_IMAGE:
            return None
        best_of_n = [other for other in self.runs if _is_best_of_n(other)]
        points = self._curve_points(best_of_n, run, currency)
        budgets = [point.budget for point in points]
        value_RP = self._value_RP[self._rows(point.run for point in points)]
        rival_P = stats.quality_at(budgets, value_RP, budget)
        if np.isnan(rival_P).any():
            return None
        return stats.compare_paired(
            self.design, self._values(run), rival_P, self._score_weight_C, binary=False
        )

    def selection(self, run: Run) -> Selection | None:
        """Compare a run with always choosing the best of its n candidates.

        Estimated from a plain run of the same seed with at least n images of each prompt; None
        without one. Its images are others than the run's, so the efficiency can exceed 1.
        """
        n = run.candidates
        if n is None or n < 2 or self.plain_of(run) is None:
            return None
        pool = self._largest_pool(run, n)
        if pool is None:
            return None
        images = pool.table.groupby(["category", "prompt_id"], sort=True)["value"]
        best_P = np.array([stats.oracle(values.to_numpy(), n) for _, values in images])
        single_P = images.mean().to_numpy()
        value_3P = np.stack([self._values(run), single_P, best_P])
        score_3 = self.design.category_means(value_3P) @ self._score_weight_C
        selected, single, best = map(float, score_3)

        low = high = math.nan
        if self.error_is_known and best > single:
            draws_D3 = self.design.bootstrap(value_3P) @ self._score_weight_C
            selected_D, single_D, best_D = draws_D3.T
            possible_D = np.maximum(best_D - single_D, LEAST_GAIN)
            low, high = stats.percentile_interval((selected_D - single_D) / possible_D)
        efficiency = stats.selection_efficiency(selected, single, best)
        return Selection(best, efficiency, low, high)

    def _largest_pool(self, run: Run, n: int) -> Run | None:
        """Return the plain run of the same seed with the most images per prompt, n at least."""
        pools = []
        for plain in (*self._pool, *filter(is_plain, self.runs)):
            same_seed = plain.about["seed"] == run.about["seed"]
            if same_seed and plain.protocol.images_per_prompt >= n:
                pools.append(plain)
        return max(pools, key=lambda plain: plain.protocol.images_per_prompt, default=None)

    # --- all runs ---------------------------------------------------------------------------------

    @cached_property
    def _better_RR(self) -> np.ndarray:
        """Whether the first run of each pair is resolved to be better than the second."""
        return stats.resolve_pairs(
            self.design,
            self._value_RP,
            self._score_weight_C,
            self._score_DR,
            binary=self._binary,
        )

    def resolved_pairs(self) -> np.ndarray:
        """Tell for each pair of runs whether the first is resolved to be better, bool [R, R]."""
        return self._better_RR

    def tie_groups(self) -> list[int]:
        """Number each run's tie group, in the order of `runs` (see `stats.tie_groups`)."""
        return stats.tie_groups(self._better_RR)

    def rank_ranges(self) -> list[tuple[int, int]]:
        """Return the ranks that each run may have, in the order of `runs`."""
        return stats.rank_ranges(self._better_RR)

    def curves(self, currency: Currency) -> list[Curve]:
        """Return a curve over n for every method that spends more than plain sampling.

        Runs of one curve agree in method, options but n, seed, concurrency and device.
        """
        families: dict[tuple[str, str, int], list[Run]] = {}
        for run in self.runs:
            if self.budget(run, currency) > ONE_IMAGE:
                method = str(run.about["method"])
                family = (method, _params_without_n(run), run.about["seed"])
                families.setdefault(family, []).append(run)

        found = []
        for family, members in families.items():
            for concurrency in sorted({run.concurrency for run in members}, key=str):
                same = [run for run in members if run.concurrency == concurrency]
                points = self._curve_points(same, same[0], currency)
                if len(points) > 1:
                    found.append(self._curve(*family, points))
        return found

    def _curve(self, method: str, params: str, seed: int, points: Sequence[CurvePoint]) -> Curve:
        runs = tuple(point.run for point in points)
        rows = self._rows(runs)
        return Curve(
            method=method,
            params=params,
            seed=seed,
            runs=runs,
            budgets=tuple(point.budget for point in points),
            quality=self._score_R[rows],
            quality_D=self._score_DR[:, rows].T,
        )

    def _curve_points(self, runs: Sequence[Run], like: Run, currency: Currency) -> list[CurvePoint]:
        """Put plain sampling and the comparable ones of `runs` in the order of their budgets.

        Comparable are those that agree in seed, concurrency and device with the plain run of
        `like`, and spend more than it.
        """
        plain = self.plain_of(like)
        if plain is None:
            return []
        points = [CurvePoint(1.0, plain)]
        for run in runs:
            budget = self.budget(run, currency)
            if not any(_mismatch(run, plain)) and budget > ONE_IMAGE:
                points.append(CurvePoint(budget, run))
        return sorted(points, key=lambda point: (point.budget, self._row(point.run)))

    def best_of(self, n: int, like: Run) -> float:
        """Return the score of Best-of-n with the reward, comparable with `like`; nan without it."""
        plain = self.plain_of(like)
        if plain is None:
            return math.nan
        for run in self.runs:
            is_best_of_this_n = _is_best_of_n(run) and run.candidates == n
            if is_best_of_this_n and not any(_mismatch(run, plain)):
                return self.score(run)
        return math.nan


def find_plain(run: Run, among: Iterable[Run], *, scored: bool = True) -> Run | None:
    """Return the run of plain sampling by which another one is measured; None without one.

    It has the default options, is complete and, unless `scored` is False, scored. Of several, it is
    the one that agrees in seed, else in concurrency, else in device.
    """
    plain_runs = [other for other in among if is_plain(other) and (other.is_scored or not scored)]
    return min(plain_runs, key=lambda plain: _mismatch(plain, run), default=None)


def find_misfits(runs: Sequence[Run]) -> dict[Path, str]:
    """Find the runs that cannot stand in a table with the others, and say why.

    Such a run has a metric with the name of a column, or names the protocol of runs before it
    without agreeing with them in prompts and aggregates.
    """
    misfits: dict[Path, str] = {}
    first_of: dict[RankingProtocol, Run] = {}
    for run in runs:
        categories = {*run.planned.values(), *run.aggregates}
        if clashing := sorted(run.metrics.keys() & {*LEADERBOARD.names, *categories}):
            misfits[run.path] = (
                f"{run.path}: metric {clashing[0]!r} has the name of a leaderboard column; "
                "rename the metric"
            )
            continue
        first = first_of.setdefault(run.protocol, run)
        if not _agree(run, first):
            misfits[run.path] = (
                f"{run.path} and {first.path} claim the same prompts, but their jobs differ"
            )
    return misfits


def _agree(one: Run, other: Run) -> bool:
    """True for runs of the same prompts, images and aggregates."""
    without_values = one.table.drop(columns="value")
    same_table = without_values.equals(other.table.drop(columns="value"))
    return same_table and one.aggregates == other.aggregates


def _cost(run: Run, record: SampleRecord, quantity: Quantity) -> float:
    """Return what a delivered image cost; seconds are on the wall for latency runs."""
    usage = record.usage
    if quantity != "seconds":
        return float(getattr(usage, quantity))
    return usage.wall_s if run.concurrency == 1 else usage.device_s + usage.judge_s


def _mismatch(one: Run, other: Run) -> tuple[bool, bool, bool]:
    """Tell in what two runs differ: seed, concurrency, device."""
    return (
        one.about["seed"] != other.about["seed"],
        one.concurrency != other.concurrency,
        one.device != other.device,
    )


def _are_timed_alike(one: Run, other: Run) -> bool:
    _, concurrency_differs, device_differs = _mismatch(one, other)
    return not (concurrency_differs or device_differs)


def is_plain(run: Run) -> bool:
    """True for a complete run of plain sampling with its default options."""
    return run.about["method"] == PLAIN and not run.about["params"] and run.complete


def _is_best_of_n(run: Run) -> bool:
    """True for a complete run of Best-of-N whose options are the default ones but for n."""
    return run.about["method"] == BEST_OF_N and _params_without_n(run) == "" and run.complete


def _params_without_n(run: Run) -> str:
    return drop_budget(str(run.about["params"]))


def drop_budget(params: str) -> str:
    """Return changed options without the number of candidates.

    Older runs name it always, newer ones where it differs from the preset.
    """
    kept = [param for param in params.split(", ") if not re.fullmatch(r"n=\d+", param)]
    return ", ".join(kept)


def _interval_or_nan(draws_D: np.ndarray) -> tuple[float, float]:
    return stats.percentile_interval(draws_D) if len(draws_D) else (math.nan, math.nan)
