"""From run folders to tables: a pure projection of what the journals say, one row per run.

    results/leaderboard.csv  one row per run: score, costs, interval, tie group, differences
    results/metrics.csv      tidy: one row per run and metric, with interval, sample size and protocol
    results/curves.csv       one row per method and currency: quality at equal budget, areas, hypervolume

Nothing but run folders is read (see runs.py), and equal journals give equal files, byte for byte.
Rows whose protocols differ (benchmark, version, prompts, judge, images per prompt, numerics, model)
are never ranked together.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd

from harness.records import STAGES, TIMES, SampleRecord, UserError
from harness.results import stats
from harness.results.ranking import CURRENCIES, Curve, Group
from harness.runs.journal import write_atomic
from harness.runs.read import RankingProtocol, Run, find_runs, read_run

Cell = str | int | float | None

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COSTS = (
    *(
        "visual_tokens",
        "target_passes",
        "target_positions",
        "drafted_positions",
        "renders",
        "judge_calls",
    ),
    *("judge_s", "device_s", "wall_s"),
)
MORE_COSTS = ("skipped", "discarded", "text_positions", "judge_tokens")
BUDGETS = ("budget", "budget_s", "accepted", "latency_p50_s", "latency_p90_s")
SPENT = tuple(name for name in STAGES if name not in COSTS)
"""Stages of an image's time; empty where its journal is older than they are."""
THROUGHPUT = ("images_per_s", "utilisation", "joules", "peak_memory_gb")
"""From the run's timings; empty where no process drew to its end."""
COMPARED = (
    *(
        "speedup",
        "speedup_low",
        "speedup_high",
        "pass_saving",
        "pass_saving_low",
        "pass_saving_high",
    ),
    *("tie_group", "rank_low", "rank_high"),
    *(
        "vs_plain",
        "vs_plain_low",
        "vs_plain_high",
        "vs_plain_p",
        "vs_plain_p_holm",
        "vs_plain_detectable",
    ),
    *("vs_bon", "vs_bon_low", "vs_bon_high", "vs_bon_p", "vs_bon_p_holm", "vs_bon_detectable"),
    *(
        "vs_bon_s",
        "vs_bon_s_low",
        "vs_bon_s_high",
        "worse_at_most",
        "worst_task",
        "worst_task_bound",
        "non_inferior",
    ),
    *(
        "oracle",
        "selection_efficiency",
        "selection_low",
        "selection_high",
        "front_tokens",
        "front_seconds",
    ),
)
COLUMNS = (
    *(
        "benchmark",
        "model",
        "method",
        "params",
        "images",
        "score",
        "ci_low",
        "ci_high",
        *TASKS,
        *COSTS,
    ),
    *(
        "failed",
        "unjudged",
        "seed",
        "fingerprint",
        "device",
        "commit",
        "missing",
        "judge",
        "numerics",
    ),
    *(
        "version",
        "prompts_sha",
        "prompts",
        "images_per_prompt",
        "concurrency",
        "candidates",
        "protocol",
    ),
    "reward_is_judge",
    *(*MORE_COSTS, *BUDGETS, *COMPARED),
    *("scenario", "latency_p95_s", "latency_p99_s", *SPENT, *THROUGHPUT),
)
TIMED = (
    *(*TIMES, "budget_s", "speedup", "speedup_low", "speedup_high", *THROUGHPUT),
    *("latency_p50_s", "latency_p90_s", "latency_p95_s", "latency_p99_s"),
    *("vs_bon_s", "vs_bon_s_low", "vs_bon_s_high", "front_seconds"),
)
"""Columns that differ between two runs of the same jobs: they follow from clocks."""
METRICS = (
    *("protocol", "benchmark", "model", "method", "params", "seed", "fingerprint"),
    *("metric", "value", "ci_low", "ci_high", "n"),
)
CURVES = (
    *(
        "protocol",
        "benchmark",
        "model",
        "method",
        "params",
        "seed",
        "currency",
        "budgets",
        "scores",
    ),
    *(f"quality_at_{budget}" for budget in stats.BUDGETS),
    *("budget_for_best_of_8", "ausc", "ausc_low", "ausc_high", "hypervolume"),
)
PERCENTILES = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Board:
    """A results folder, projected."""

    runs: tuple[Run, ...]  # in the order of the frame's rows
    frame: pd.DataFrame  # leaderboard.csv
    metrics: pd.DataFrame  # metrics.csv
    curves: pd.DataFrame  # curves.csv
    excluded: tuple[Run, ...]  # runs that name a reason not to be here


def build(results: Path) -> Board:
    """Rebuild the tables of `results` from the run folders below
    (benchmark/model/method-fingerprint).

    Raises UserError naming the folder that cannot be read; the files are then left as they were.
    """
    board = project([read_run(folder) for folder in find_runs(results)])
    tables = {"leaderboard": board.frame, "metrics": board.metrics, "curves": board.curves}
    for name, table in tables.items():
        write_atomic(results / f"{name}.csv", to_csv(table))
    return board


def project(runs: Iterable[Run]) -> Board:
    """Rows, metrics and curves of runs, in an order of their own."""
    every = sorted(runs, key=_order)
    ranked = [run for run in every if not run.excluded]
    rows: dict[Path, dict[str, Cell]] = {}
    metrics: dict[Path, list[Metric]] = {}
    curves: list[dict[str, Cell]] = []
    for protocol, members in groupby(
        sorted(ranked, key=lambda run: run.protocol), key=lambda run: run.protocol
    ):
        pool = [run for run in ranked if _pools(run, protocol)]
        group = Group(list(members), pool)
        for i, row in enumerate(_rows(group)):
            rows[group.runs[i].path] = row
            metrics[group.runs[i].path] = _metrics(group, i, row)
        curves += _curves(group)
    extra = sorted({name for row in rows.values() for name in row} - set(COLUMNS))
    named = [
        {**_identity(run), **dict(zip(METRICS[-5:], metric, strict=True))}
        for run in ranked
        for metric in metrics[run.path]
    ]
    return Board(
        runs=tuple(ranked),
        frame=pd.DataFrame([rows[run.path] for run in ranked], columns=[*COLUMNS, *extra]),
        metrics=pd.DataFrame(named, columns=METRICS),
        curves=pd.DataFrame(curves, columns=CURVES),
        excluded=tuple(run for run in every if run.excluded),
    )


def _pools(run: Run, protocol: RankingProtocol) -> bool:
    """Whether it is plain sampling under the same protocol but for its number of images."""
    alike = run.protocol._replace(images_per_prompt=0) == protocol._replace(images_per_prompt=0)
    return alike and run.about["method"] == "plain" and run.complete


# --- rows -----------------------------------------------------------------------------------------


def _rows(group: Group) -> list[dict[str, Cell]]:
    """A row for each run of a group. Planned images that were not delivered or not judged are
    wrong.

    `images` counts the delivered ones; costs are means over these.
    """
    rows = [{**_own(group, i), **_beside_plain(group, i)} for i in range(len(group.runs))]
    for family in ("vs_plain", "vs_bon"):
        values = [_number(row.get(f"{family}_p")) for row in rows]
        for row, corrected in zip(rows, stats.holm(values), strict=True):
            row[f"{family}_p_holm"] = corrected
    for front, cost in (("front_tokens", "visual_tokens"), ("front_seconds", "budget_s")):
        costs, scores = ([_number(row[name]) for row in rows] for name in (cost, "score"))
        for row, on in zip(rows, stats.pareto(costs, scores), strict=True):
            row[front] = "yes" if on and len(rows) > 1 else ""
    if len(rows) > 1 and group.design.uncertain:
        for row, tie, (low, high) in zip(rows, group.ties(), group.ranks(), strict=True):
            row |= {"tie_group": tie, "rank_low": low, "rank_high": high}
    return rows


def _own(group: Group, i: int) -> dict[str, Cell]:
    """What a run is, scored and cost, without regard to others."""
    run = group.runs[i]
    design = group.design
    means = design.means(group.value_RP[i : i + 1])[0]
    tasks = dict(zip(design.categories, means.tolist(), strict=True))
    named = dict(zip(run.aggregates, (group.weight_KC @ means).tolist(), strict=True))
    if clash := [
        name for name in {**tasks, **named} if name in COLUMNS and name not in ("score", *TASKS)
    ]:
        raise UserError(
            f"{run.path}: category {clash[0]!r} has the name of a leaderboard column; rename the category"
        )
    low, high = group.interval(i, group.weight_KC[0])
    done = [record for _, record in sorted(run.done.items())]
    seconds = [record.usage.wall_s for record in done] if run.concurrency == 1 else []
    protocol = run.protocol._asdict()
    return {
        **{name: str(run.about[name] or "") for name in ("method", "params", "fingerprint")},
        **protocol,
        **tasks,
        **named,
        **{
            name: _mean(getattr(record.usage, name) for record in done)
            for name in (*COSTS, *MORE_COSTS)
        },
        **(_spent(done) | _throughput(run)),
        "scenario": run.scenario,
        "protocol": run.protocol.id,
        "prompts": len(run.prompts),
        "concurrency": run.concurrency,
        "candidates": run.candidates,
        "images": len(done),
        "ci_low": low,
        "ci_high": high,
        "failed": len(run.failed),
        "missing": len(run.planned) - len(done) - len(run.failed),
        "unjudged": len(run.unjudged),
        "seed": run.about["seed"],
        "reward_is_judge": _kinship(run),
        "accepted": _accepted(done),
        **{f"latency_p{100 * q:.0f}_s": percentile(seconds, q) for q in PERCENTILES},
        **{name: run.stamped(name) for name in ("device", "commit")},
    }


def _spent(done: Sequence[SampleRecord]) -> dict[str, Cell]:
    """Mean seconds of each stage of an image."""
    if not any(record.usage.decode_s for record in done):
        return {}
    return {name: _mean(getattr(record.usage, name) for record in done) for name in SPENT}


def _throughput(run: Run) -> dict[str, Cell]:
    """Images a second, share of decoding rows that did work, joules an image, and the highest
    memory.

    Over the images that the run's timings are about: a process that was killed has left none.
    """
    timings = [timing for timing in run.timings if timing.images]
    if not timings:
        return {}
    images = sum(timing.images for timing in timings)
    rows = sum(timing.rounds * timing.slots for timing in timings)
    joules = [math.nan if timing.joules is None else timing.joules for timing in timings]
    memory = [timing.peak_memory_gb for timing in timings if timing.peak_memory_gb is not None]
    return {
        "images_per_s": images / math.fsum(timing.seconds for timing in timings),
        "utilisation": sum(timing.fed for timing in timings) / rows if rows else math.nan,
        "joules": math.fsum(joules) / images,
        "peak_memory_gb": max(memory, default=math.nan),
    }


def _beside_plain(group: Group, i: int) -> dict[str, Cell]:
    """Budget, speed, differences and bounds of a run among its group."""
    row: dict[str, Cell] = {"budget": group.budget(i), "budget_s": group.budget(i, "seconds")}
    for name, saved in (
        ("speedup", group.saving(i, "seconds")),
        ("pass_saving", group.saving(i, "target_passes")),
    ):
        if saved:
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), saved, strict=True))
    differences = {"vs_plain": group.vs_plain(i), "vs_bon": group.vs_best_of_n(i)}
    for name, found in {**differences, "vs_bon_s": group.vs_best_of_n(i, "seconds")}.items():
        if found:
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
            if name in differences:
                row |= {f"{name}_p": found.p, f"{name}_detectable": found.detectable}
    if bound := group.non_inferiority(i):
        row |= {
            "worse_at_most": bound.bound,
            "worst_task": bound.task,
            "worst_task_bound": bound.task_bound,
        }
        row["non_inferior"] = "yes" if bound.shown else "no"
    if known := group.oracle(i):
        row |= dict(
            zip(
                ("oracle", "selection_efficiency", "selection_low", "selection_high"),
                known,
                strict=True,
            )
        )
    return row


def _kinship(run: Run) -> str:
    """Whether what the method asked is the judge itself or of its family, which shares its blind
    spots.
    """
    asked = [
        str(name) for part, name in (run.about.get("asked") or {}).items() if part != "drafter"
    ]
    if run.judge in asked:
        return "same"
    return "family" if run.judge and _family(run.judge) in map(_family, asked) else ""


def _family(judge: str) -> str:
    """The letters that a judge's name begins with: pictogram, vlm-Qwen."""
    found = re.match(r"(vlm-)?(\w+/)?[A-Za-z]+", judge)
    return found.group() if found else judge


def _accepted(done: Sequence[SampleRecord]) -> float:
    """Mean number of draft tokens accepted a round, from the rounds that speculative methods
    note.
    """
    rounds: Counter[int] = Counter()
    for record in done:
        for accepted, count in enumerate(record.notes.get("accepted") or ()):
            rounds[accepted] += count
    return (
        sum(a * count for a, count in rounds.items()) / rounds.total()
        if rounds.total()
        else math.nan
    )


def percentile(seconds: Sequence[float], q: float) -> float:
    """Percentile of latencies; nan where there are too few for it (MLPerf's early-stopping
    rule).
    """
    return float(np.quantile(seconds, q)) if len(seconds) >= samples_for(q) else math.nan


def samples_for(q: float, confidence: float = 0.99) -> int:
    """Fewest samples of which, with that confidence, two at least lie above the percentile: 11 for
    p50, 64 for p90.
    """
    n = 2
    while q**n + n * (1 - q) * q ** (n - 1) > 1 - confidence:
        n += 1
    return n


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def _number(value: Cell) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


# --- metrics and curves ---------------------------------------------------------------------------

Metric = tuple[str, float, float, float, int]
"""Name, value, ends of its 95 % interval (nan where it has none), sample size."""


def _metrics(group: Group, i: int, row: Mapping[str, Cell]) -> list[Metric]:
    """A run's numbers in long form: quality/..., cost/..., latency/..., compare/...; n counts
    independent units.
    """
    run = group.runs[i]
    design = group.design
    found: list[Metric] = [
        (f"quality/{name}", _number(row[name]), *group.interval(i, weight_C), design.clusters)
        for name, weight_C in zip(run.aggregates, group.weight_KC, strict=True)
    ]
    for category, name in enumerate(design.categories):
        found.append(
            (
                f"quality/{name}",
                _number(row[name]),
                *group.task_interval(i, category),
                design.counts()[name],
            )
        )
    costs = (*COSTS, *MORE_COSTS, *(SPENT if "decode_s" in row else ()))
    for name, (low, high) in zip(costs, _cost_intervals(group, i, costs), strict=True):
        found.append((f"cost/{name}", _number(row[name]), low, high, len(run.done)))
    if run.concurrency == 1:
        seconds = [record.usage.wall_s for record in run.done.values()]
        found += [
            (f"latency/p{100 * q:.0f}_s", percentile(seconds, q), math.nan, math.nan, len(seconds))
            for q in PERCENTILES
        ]
    timed = sum(timing.images for timing in run.timings)
    for name in THROUGHPUT:
        found.append((f"throughput/{name}", _number(row.get(name)), math.nan, math.nan, timed))
    for name in ("speedup", "pass_saving", "vs_plain", "vs_bon", "vs_bon_s"):
        ends = (_number(row.get(f"{name}_{end}")) for end in ("low", "high"))
        found.append((f"compare/{name}", _number(row.get(name)), *ends, design.clusters))  # type: ignore[arg-type]
    ends = (_number(row.get(f"selection_{end}")) for end in ("low", "high"))
    found.append(
        (  # type: ignore[arg-type]
            "compare/selection_efficiency",
            _number(row.get("selection_efficiency")),
            *ends,
            design.clusters,
        )
    )
    for name in ("budget", "budget_s", "accepted", "worse_at_most", "worst_task_bound", "oracle"):
        found.append(
            (f"compare/{name}", _number(row.get(name)), math.nan, math.nan, design.clusters)
        )
    return [metric for metric in found if not math.isnan(metric[1])]


def _cost_intervals(group: Group, i: int, costs: Sequence[str]) -> list[tuple[float, float]]:
    """95 % intervals of mean costs, prompts resampled; unknown where a prompt has no image."""
    run = group.runs[i]
    design = group.design
    usage = pd.DataFrame(
        [
            (r.category, r.prompt_id, *(getattr(r.usage, name) for name in costs))
            for _, r in sorted(run.done.items())
        ],
        columns=["category", "prompt_id", *costs],
    )
    means = usage.groupby(["category", "prompt_id"], sort=True)[list(costs)].mean()
    if not design.uncertain or len(run.done) != len(run.planned):
        return [(math.nan, math.nan)] * len(costs)
    draws_DX = design.bootstrap(means.to_numpy(float).T) @ design.per_prompt()
    return [stats.percentiles(draws_D) for draws_D in draws_DX.T]


def _curves(group: Group) -> list[dict[str, Cell]]:
    return [
        {**_identity(group.runs[curve.runs[-1]]), "currency": currency, **_curve(group, curve)}
        for currency in CURRENCIES
        for curve in group.curves(currency)
    ]


def _curve(group: Group, curve: Curve) -> dict[str, Cell]:
    area_D = stats.area_under(curve.budgets, curve.quality_D)
    low, high = stats.percentiles(area_D) if len(area_D) else (math.nan, math.nan)
    at = {
        f"quality_at_{b}": float(stats.quality_at(curve.budgets, curve.quality, b))
        for b in stats.BUDGETS
    }
    wanted = group.best_of(8, curve.runs)
    return {
        "params": curve.params,
        "budgets": " ".join(f"{budget:.4g}" for budget in curve.budgets),
        "scores": " ".join(f"{round(float(score), 10):.4f}" for score in curve.quality),
        **at,
        "budget_for_best_of_8": stats.budget_for(curve.budgets, curve.quality.tolist(), wanted),
        "ausc": float(stats.area_under(curve.budgets, curve.quality)),
        "ausc_low": low,
        "ausc_high": high,
        "hypervolume": stats.hypervolume(
            curve.budgets, curve.quality.tolist(), float(curve.quality[0])
        ),
    }


def _identity(run: Run) -> dict[str, Cell]:
    about = {
        name: str(run.about[name] or "")
        for name in ("benchmark", "model", "method", "params", "fingerprint")
    }
    return {**about, "protocol": run.protocol.id, "seed": run.about["seed"]}


# --- writing --------------------------------------------------------------------------------------


def _order(run: Run) -> list[list[tuple[int, str]]]:
    """Sorts texts by the numbers in them: n=2, n=4, n=16."""
    first = ("benchmark", "model", "method")
    last = ("params", "seed", "fingerprint")
    texts = (
        *(run.about[name] for name in first),
        run.candidates or 0,
        *(run.about[name] for name in last),
    )
    parts = [re.findall(r"\d+|\D+", str(text)) for text in texts]
    return [[(int(part) if part.isdecimal() else -1, part) for part in split] for split in parts]


def to_csv(frame: pd.DataFrame) -> bytes:
    """A table as its file's bytes."""
    text = pd.DataFrame(
        {name: [cell(name, value) for value in frame[name]] for name in map(str, frame)},
        dtype=object,
    )
    return text.to_csv(index=False, lineterminator="\n").encode()


def cell(name: str, value: object) -> str:
    """A cell's text: whole numbers as they are, others with four digits; two for costs that are
    counts.

    Sums may differ in their last bit between machines; rounding twice keeps that out of the file.
    """
    if not isinstance(value, float):
        return "" if value is None or value is pd.NA else str(value)
    if math.isnan(value):
        return ""
    if name in INTEGERS or math.isinf(value):
        return f"{value:.0f}"
    return f"{round(value, 10):.{2 if name in (*COSTS, *MORE_COSTS) and not name.endswith('_s') else 4}f}"


INTEGERS = ("tie_group", "rank_low", "rank_high", "concurrency", "candidates")
"""Whole numbers that a missing one turns into floats."""


def excluded_line(board: Board) -> str:
    """How many runs stay out, and why; "" if none does."""
    reasons = Counter(run.excluded for run in board.excluded)
    return "; ".join(f"{count} excluded: {reason}" for reason, count in sorted(reasons.items()))


# --- reading a table ------------------------------------------------------------------------------


def protocols(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each protocol, in the order of their first ones."""
    return [runs for _, runs in frame.groupby("protocol", sort=False)]


def heading(runs: pd.DataFrame) -> str:
    """What the rows of one protocol are about."""
    first = runs.iloc[0]
    return f"{first['benchmark']} on {first['model']}, {first['prompts']} prompts x {first['images_per_prompt']} images"


def signed(row: pd.Series, name: str) -> str:
    """A difference with its sign; in brackets where it is not resolved, a dash where there is
    none.
    """
    if pd.isna(row[name]):
        return "-"
    return f"{row[name]:+.3f} " if resolved(row, name) else f"({row[name]:+.3f})"


def resolved(row: pd.Series, name: str) -> bool:
    """Whether a row's difference can be told from none (stats.Difference.resolved, corrected for
    its family).
    """
    return bool(abs(row[name]) >= row[f"{name}_detectable"] and row[f"{name}_p_holm"] < stats.ALPHA)
