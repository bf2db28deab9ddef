"""Runs of one protocol beside each other: against plain, against Best-of-N at equal budget, ranks,
ties, curves.

Runs are paired by prompt; one set of bootstrap resamples serves all comparisons, so they agree with
each other. Budgets are counted in plain images: by visual tokens, or by seconds (device and judge;
a latency run's wall clock).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from harness.records import SampleRecord, UserError
from harness.results import stats
from harness.results.stats.comparison import MARGIN, TASK_MARGIN, Difference, difference
from harness.results.stats.scaling import SLACK
from harness.runs.read import Run

Currency = Literal["visual_tokens", "seconds"]
Quantity = Literal["visual_tokens", "seconds", "target_passes"]
CURRENCIES: tuple[Currency, ...] = ("visual_tokens", "seconds")
PLAIN = "plain"
BEST_OF_N = "best_of_n"


@dataclass(frozen=True, slots=True)
class NonInferiority:
    """What an acceleration may have lost, with 95 % confidence (one-sided), in units of the
    score.
    """

    bound: float  # overall: at most this much below plain, as a difference (-0.01 = one point)
    task: str  # the category with the lowest bound
    task_bound: float

    @property
    def shown(self) -> bool:
        """Whether both bounds are inside the margins, 1 point overall and 2 in every category."""
        return self.bound >= -MARGIN and self.task_bound >= -TASK_MARGIN


@dataclass(frozen=True, slots=True)
class Curve:
    """A method over its budgets, plain sampling first."""

    method: str
    params: str  # without n
    seed: int
    runs: tuple[int, ...]  # positions in the group
    budgets: tuple[float, ...]  # plain images, increasing
    quality: np.ndarray  # [points]
    quality_D: np.ndarray  # [points, D]; no draws where the error cannot be known


class Group:
    """Runs of one protocol, in a fixed order; `pool` are plain runs of the same prompts with more
    images each.

    Raises UserError for runs that name one protocol but do not agree in their prompts or
    aggregates.
    """

    def __init__(self, runs: Sequence[Run], pool: Sequence[Run] = ()) -> None:
        self.runs = list(runs)
        self._pool = list(pool)
        self._costs: dict[tuple[int, Currency], float] = {}
        tables = [run.table for run in self.runs]
        self.design = stats.Design(tables[0])
        for run, table in zip(self.runs, tables, strict=True):
            if (
                not stats.Design(table).index.equals(self.design.index)
                or run.aggregates != self.runs[0].aggregates
            ):
                raise UserError(
                    f"{run.path} and {self.runs[0].path} claim the same prompts, but their jobs differ"
                )
        self.protocol = self.runs[0].protocol
        self.value_RP = stats.stack(tables)
        self.weight_KC = self.design.matrix(self.runs[0].aggregates)
        self._binary = self.protocol.images_per_prompt == 1 and bool(
            np.isin(self.value_RP, (0.0, 1.0)).all()
        )

    @cached_property
    def draws_DRC(self) -> np.ndarray:
        """Bootstrap draws of all runs' category means; none (D = 0) where the error cannot be
        known.
        """
        if not self.design.uncertain:
            return np.zeros((0, *self.value_RP.shape[:1], len(self.design.categories)))
        return self.design.bootstrap(self.value_RP)

    @cached_property
    def score_R(self) -> np.ndarray:
        return self.design.means(self.value_RP) @ self.weight_KC[0]

    @cached_property
    def score_DR(self) -> np.ndarray:
        return self.draws_DRC @ self.weight_KC[0]

    # ---------------------------------------------------------------- one number of one run

    def interval(self, run: int, weight_C: np.ndarray) -> tuple[float, float]:
        """95 % interval of a combination of category means."""
        return _interval(self.draws_DRC[:, run] @ weight_C)

    def task_interval(self, run: int, category: int) -> tuple[float, float]:
        """95 % interval of a category's rate: Wilson's, with as many images as would be
        independent.
        """
        draws_D = self.draws_DRC[:, run, category]
        rate = float(self.design.means(self.value_RP[run : run + 1])[0, category])
        clusters = self.design.counts()[self.design.categories[category]]
        return stats.clustered_wilson(
            rate, float(draws_D.std()) if len(draws_D) else math.nan, clusters
        )

    def cost(self, run: int, currency: Currency) -> float:
        """Mean cost of a delivered image."""
        if (run, currency) not in self._costs:
            costs = [
                _cost(self.runs[run], record, currency) for record in self.runs[run].done.values()
            ]
            self._costs[run, currency] = math.fsum(costs) / len(costs) if costs else math.nan
        return self._costs[run, currency]

    def budget(self, run: int, currency: Currency = "visual_tokens") -> float:
        """Mean cost of a delivered image in plain images; nan without a plain run to measure by.

        Seconds are measured against a plain run on the same device, at the same concurrency.
        """
        plain = self.plain_of(run)
        if plain is None or (currency == "seconds" and not self._timed_alike(run, plain)):
            return math.nan
        one = self.cost(plain, currency)
        return self.cost(run, currency) / one if one > 0 else math.nan

    # ---------------------------------------------------------------- against others

    @cached_property
    def _plains(self) -> list[int]:
        plain = (
            i
            for i, run in enumerate(self.runs)
            if run.about["method"] == PLAIN and not run.about["params"]
        )
        return [i for i in plain if self.runs[i].complete]

    def plain_of(self, run: int) -> int | None:
        """The plain run to compare with: of the same seed, concurrency and device, as far as there
        is one.
        """
        return min(self._plains, key=lambda i: (*self._unlike(i, run), i), default=None)

    def _unlike(self, a: int, b: int) -> tuple[bool, bool, bool]:
        one = self.runs[a]
        other = self.runs[b]
        return (
            one.about["seed"] != other.about["seed"],
            one.concurrency != other.concurrency,
            one.device != other.device,
        )

    def _timed_alike(self, a: int, b: int) -> bool:
        return not any(self._unlike(a, b)[1:])

    def difference(self, a: int, b: int) -> Difference:
        """Score of run `a` minus that of run `b`."""
        draws_D = self.score_DR[:, a] - self.score_DR[:, b] if len(self.score_DR) else None
        return difference(
            self.design,
            *(self.value_RP[a], self.value_RP[b], self.weight_KC[0]),
            binary=self._binary,
            draws_D=draws_D,
        )

    def vs_plain(self, run: int) -> Difference | None:
        plain = self.plain_of(run)
        return None if plain is None or run in self._plains else self.difference(run, plain)

    def vs_best_of_n(self, run: int, currency: Currency = "visual_tokens") -> Difference | None:
        """Against Best-of-N with the reward at the run's own budget, which lies between two N (log2
        of the budget).

        None where Best-of-N was not run at such a budget, for Best-of-N itself, and for methods
        that spend no more than plain sampling does.
        """
        budget = self.budget(run, currency)
        if run in self._plains or _is_best_of_n(self.runs[run]) or not budget > 1 + SLACK:
            return None
        curve = self._points(
            [i for i in range(len(self.runs)) if _is_best_of_n(self.runs[i])], run, currency
        )
        rival_P = stats.quality_at(
            [b for b, _ in curve], self.value_RP[[i for _, i in curve]], budget
        )
        if np.isnan(rival_P).any():
            return None
        return difference(self.design, self.value_RP[run], rival_P, self.weight_KC[0], binary=False)

    def _points(
        self, runs: Sequence[int], like: int, currency: Currency
    ) -> list[tuple[float, int]]:
        """(budget, run) of plain and those of `runs` that share seed, concurrency and device with
        its plain run.
        """
        plain = self.plain_of(like)
        if plain is None:
            return []
        alike = [
            i
            for i in runs
            if not any(self._unlike(i, plain)) and self.budget(i, currency) > 1 + SLACK
        ]
        return sorted([(1.0, plain), *((self.budget(i, currency), i) for i in alike)])

    def non_inferiority(self, run: int) -> NonInferiority | None:
        """For methods that draw one image's tokens, as plain sampling does: what they may have
        lost. Else None.
        """
        plain = self.plain_of(run)
        budget = self.budget(run)
        if (
            plain is None
            or run in self._plains
            or not budget <= 1 + SLACK
            or not len(self.draws_DRC)
        ):
            return None
        lost_DC = self.draws_DRC[:, run] - self.draws_DRC[:, plain]
        tasks = np.quantile(lost_DC, 0.05, axis=0)
        worst = int(tasks.argmin())
        overall = float(np.quantile(lost_DC @ self.weight_KC[0], 0.05))
        return NonInferiority(overall, self.design.categories[worst], float(tasks[worst]))

    def saving(self, run: int, quantity: Quantity) -> tuple[float, float, float] | None:
        """Geometric mean over prompts of plain's cost over the run's, and its interval: for
        seconds, the speed-up.

        None without a plain run (for seconds, one on the same device at the same concurrency), or
        where a prompt has no image.
        """
        plain = self.plain_of(run)
        if (
            plain is None
            or run in self._plains
            or (quantity == "seconds" and not self._timed_alike(run, plain))
        ):
            return None
        ours = self._per_prompt(run, quantity)
        theirs = self._per_prompt(plain, quantity)
        if ours is None or theirs is None or (ours <= 0).any() or (theirs <= 0).any():
            return None
        log_P = np.log(theirs) - np.log(ours)
        weight_C = self.design.per_prompt()
        value = float(np.exp(self.design.means(log_P[None])[0] @ weight_C))
        if not self.design.uncertain:
            return value, math.nan, math.nan
        low, high = _interval(self.design.bootstrap(log_P[None])[:, 0] @ weight_C)
        return value, math.exp(low), math.exp(high)

    def _per_prompt(self, run: int, quantity: Quantity) -> np.ndarray | None:
        """Mean cost of each prompt's delivered images [P]; None where a prompt has none."""
        costs: dict[tuple[str, str], list[float]] = {}
        for record in self.runs[run].done.values():
            costs.setdefault((record.category, record.prompt_id), []).append(
                _cost(self.runs[run], record, quantity)
            )
        if set(costs) != set(self.design.index):
            return None
        return np.array([np.mean(costs[key]) for key in self.design.index])

    def oracle(self, run: int) -> tuple[float, float, float, float] | None:
        """Score of always choosing the best of n candidates; the share of that gain which the run
        made, its interval.

        Estimated from a plain run with at least n images for each of the prompts; None without one.
        The pool's images are others than the run's, so the share can come out above 1.
        """
        n = self.runs[run].candidates
        plain = self.plain_of(run)
        if n is None or n < 2 or plain is None:
            return None
        pools = [
            p
            for p in [*self._pool, *(self.runs[i] for i in self._plains)]
            if p.protocol.images_per_prompt >= n
        ]
        pools = [p for p in pools if p.about["seed"] == self.runs[run].about["seed"]]
        if not pools:
            return None
        table = max(pools, key=lambda p: p.protocol.images_per_prompt).table
        values = table.groupby(["category", "prompt_id"], sort=True)["value"]
        best_P = np.array([stats.oracle(images.to_numpy(), n) for _, images in values])
        single_P = values.mean().to_numpy()
        three = np.stack([self.value_RP[run], single_P, best_P])
        selected, single, best = (
            float(score) for score in self.design.means(three) @ self.weight_KC[0]
        )
        low = high = math.nan
        if self.design.uncertain and best > single:
            draws_3D = (self.design.bootstrap(three) @ self.weight_KC[0]).T
            share_D = (draws_3D[0] - draws_3D[1]) / np.maximum(draws_3D[2] - draws_3D[1], 1e-9)
            low, high = stats.percentiles(share_D)
        return best, stats.selection_efficiency(selected, single, best), low, high

    # ---------------------------------------------------------------- all of them

    def ties(self) -> list[int]:
        """Tie group of each run (see stats.tie_groups)."""
        return stats.tie_groups(self.design, self.value_RP, self.weight_KC[0], self.score_DR)

    def ranks(self) -> list[tuple[int, int]]:
        return stats.rank_intervals(self.score_DR)

    def curves(self, currency: Currency) -> list[Curve]:
        """Every method that spends more than plain sampling, over its n, from plain sampling on."""
        families: dict[tuple[str, str, int], list[int]] = {}
        for i, run in enumerate(self.runs):
            if self.budget(i, currency) > 1 + SLACK:
                families.setdefault(
                    (str(run.about["method"]), _without_n(run), run.about["seed"]), []
                ).append(i)
        found = []
        for (method, params, seed), members in families.items():
            for concurrency in sorted({self.runs[i].concurrency for i in members}, key=str):
                same = [i for i in members if self.runs[i].concurrency == concurrency]
                points = self._points(same, same[0], currency)
                if len(points) > 1:
                    chosen = [i for _, i in points]
                    found.append(
                        Curve(
                            *(method, params, seed, tuple(chosen), tuple(b for b, _ in points)),
                            quality=self.score_R[chosen],
                            quality_D=self.score_DR[:, chosen].T,
                        )
                    )
        return found

    def best_of(self, n: int, like: Sequence[int]) -> float:
        """Score of Best-of-n with the reward among runs timed and seeded as `like`; nan without
        one.
        """
        plain = self.plain_of(like[0])
        chosen = [
            i for i, run in enumerate(self.runs) if _is_best_of_n(run) and run.candidates == n
        ]
        alike = [i for i in chosen if plain is not None and not any(self._unlike(i, plain))]
        return float(self.score_R[alike[0]]) if alike else math.nan


def _cost(run: Run, record: SampleRecord, quantity: Quantity) -> float:
    if quantity != "seconds":
        return float(getattr(record.usage, quantity))
    return (
        record.usage.wall_s
        if run.concurrency == 1
        else record.usage.device_s + record.usage.judge_s
    )


def _is_best_of_n(run: Run) -> bool:
    """Whether it is all of a Best-of-N with the reward of its configuration: nothing but n was
    changed.
    """
    return run.about["method"] == BEST_OF_N and _without_n(run) == "" and run.complete


def _without_n(run: Run) -> str:
    return ", ".join(
        part for part in str(run.about["params"]).split(", ") if not re.fullmatch(r"n=\d+", part)
    )


def _interval(draws_D: np.ndarray) -> tuple[float, float]:
    return stats.percentiles(draws_D) if len(draws_D) else (math.nan, math.nan)
