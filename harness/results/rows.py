"""The rows of leaderboard.csv: what a run is, its score and costs, and how it compares with others.

Planned images that were not delivered or not judged count as wrong; costs are means over delivered
images. What the columns mean is in `columns`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from harness.records import SampleRecord
from harness.results import stats
from harness.results.columns import COSTS, STAGE_SECONDS, own_column
from harness.results.labels import Label
from harness.results.ranking import RankedGroup, Saving
from harness.results.stats import Difference
from harness.results.stats.set_metrics import PlainDistance
from harness.runs.read import Run

Cell = str | int | float | None
Row = dict[str, Cell]
"""Column -> value; columns that are not there are empty."""

RESOLVED = "resolved"
"""The verdict on a difference of detectable size whose adjusted p is below 5 %."""
NOT_RESOLVED = "not resolved: "
"""What the verdict on any other difference begins with; the reason follows."""
PERCENTILES = (0.5, 0.9, 0.95, 0.99)


def leaderboard_rows(group: RankedGroup) -> list[Row]:
    """Return a row for each run of a group, in the group's order."""
    rows = []
    for run in group.runs:
        rows.append(_describe(group, run) | _compare(group, run))
    for family in ("vs_plain", "vs_bon"):
        adjust_p_values(rows, family)
        add_verdicts(rows, family)
    _mark_pareto_front(rows, "front_tokens", cost="visual_tokens")
    _mark_pareto_front(rows, "front_seconds", cost="budget_s")
    if len(rows) > 1 and group.error_is_known:
        ranks = zip(rows, group.tie_groups(), group.rank_ranges(), strict=True)
        for row, tie_group, (low, high) in ranks:
            row |= {"tie_group": tie_group, "rank_low": low, "rank_high": high}
    return rows


def name_run(label: Label) -> Row:
    """Return the columns that tell a run from its neighbours."""
    return {"params": ", ".join(label.params), "label": str(label)}


def unscored_row(run: Run) -> Row:
    """Return the row of a run that no judge has valued: no score, no interval and no rank."""
    return _describe_run(run)


def number(value: Cell) -> float:
    """Return a cell as a number; nan for text and for a cell that is empty."""
    return float(value) if isinstance(value, int | float) else math.nan


def wall_seconds(run: Run) -> list[float]:
    """Return the latencies of a run's images; none unless it drew one image at a time."""
    if run.concurrency != 1:
        return []
    return [record.usage.wall_s for _, record in sorted(run.done.items())]


# --- one run by itself ----------------------------------------------------------------------------


def _describe(group: RankedGroup, run: Run) -> Row:
    """Return the columns that follow from a run alone."""
    low, high = group.aggregate_interval(run, "score")
    means = group.category_means(run) | group.aggregates(run)
    return {
        **_describe_run(run),
        **{own_column(name): mean for name, mean in means.items()},
        "ci_low": low,
        "ci_high": high,
    }


def _describe_run(run: Run) -> Row:
    """Return what a run is, what it delivered, and what that cost."""
    done = [record for _, record in sorted(run.done.items())]
    row: Row = {
        "method": str(run.about["method"] or ""),
        "fingerprint": str(run.about["fingerprint"] or ""),
        **run.protocol._asdict(),
        "protocol": run.protocol.id,
        "seed": run.about["seed"],
        "prompts": len(run.prompts),
        "images": len(done),
        "failed": len(run.failed),
        "missing": len(run.planned) - len(done) - len(run.failed),
        "unjudged": len(run.unjudged),
        "unanswered": sum(run.unanswered.values()),
        "cut_prompts": len(run.cut_prompts),
        "scenario": run.scenario,
        "concurrency": run.concurrency,
        "candidates": run.candidates,
        "device": run.stamped("device"),
        "commit": run.stamped("commit"),
        "reward_is_judge": find_overlap(run, run.judge),
        "accepted": _mean_accepted(done),
    }
    row |= _describe_sets(run)
    row |= _mean_usage(done, COSTS)
    if any(record.usage.decode_s for record in done):  # older journals have no stages
        row |= _mean_usage(done, STAGE_SECONDS)
    return row | _latencies(run) | _throughput(run)


def _describe_sets(run: Run) -> Row:
    """Return what a reader must know of the metrics of a run's images as a set."""
    if run.sets is None:
        return {}
    row: Row = {}
    if "fid" in run.sets.metrics:
        row["fid_bias"] = run.sets.metrics["fid"].bias
    notes = [run.sets.problem]
    for name, metric in run.sets.metrics.items():
        if metric.note:
            notes.append(f"{name} {metric.value:.4g}, {metric.note}")
    row["set_note"] = "; ".join(note for note in notes if note)
    return row


def describe_distance(distance: PlainDistance) -> Row:
    """Return how far a run's images are from plain sampling's."""
    return {
        "fd_plain": distance.value,
        "fd_plain_null": distance.null,
        "fd_plain_p": distance.p,
        "fd_plain_verdict": distance.verdict,
    }


def _mean_usage(done: Sequence[SampleRecord], names: Sequence[str]) -> Row:
    """Average fields of `Usage` over delivered images."""
    means: Row = {}
    for name in names:
        means[name] = _mean([getattr(record.usage, name) for record in done])
    return means


def _latencies(run: Run) -> Row:
    seconds = wall_seconds(run)
    return {latency_column(q): stats.latency_percentile(seconds, q) for q in PERCENTILES}


def latency_column(q: float) -> str:
    """Return the column of a latency quantile: latency_p50_s for 0.5."""
    return f"latency_p{100 * q:.0f}_s"


def _throughput(run: Run) -> Row:
    """Return images per second, slot utilisation, energy and memory; empty without timings.

    A process that was killed left no timing, and its images count in none of them.
    """
    timings = [timing for timing in run.timings if timing.images]
    if not timings:
        return {}
    images = sum(timing.images for timing in timings)
    seconds = math.fsum(timing.seconds for timing in timings)
    active_steps = sum(timing.fed for timing in timings)
    slot_steps = sum(timing.rounds * timing.slots for timing in timings)
    joules = [math.nan if timing.joules is None else timing.joules for timing in timings]
    memory = [timing.peak_memory_gb for timing in timings if timing.peak_memory_gb is not None]
    return {
        "images_per_s": images / seconds,
        "utilisation": active_steps / slot_steps if slot_steps else math.nan,
        "joules": math.fsum(joules) / images,
        "peak_memory_gb": max(memory, default=math.nan),
    }


def _mean_accepted(done: Sequence[SampleRecord]) -> float:
    """Return the mean number of draft tokens accepted per verification; nan without any.

    Speculative methods note a histogram: how many verifications accepted 0, 1, 2, ... tokens.
    """
    verifications: Counter[int] = Counter()
    for record in done:
        for accepted, count in enumerate(record.notes.get("accepted") or ()):
            verifications[accepted] += count
    if not verifications.total():
        return math.nan
    tokens = sum(accepted * count for accepted, count in verifications.items())
    return tokens / verifications.total()


def find_overlap(run: Run, judge: str) -> str:
    """Tell whether the method asked a judge itself ("same") or one of its family ("family").

    Such a reward shares the judge's blind spots, so its gains are partly the judge's errors. A
    method that asked nobody (Best-of-1) gained nothing from it.
    """
    if not any(record.usage.judge_calls for record in run.done.values()):
        return ""
    asked = run.about.get("asked") or {}
    models = [str(model) for role, model in asked.items() if role != "drafter"]
    if any(part in models for part in judge.split("+")):  # of a judge that is several models
        return "same"
    families = map(_family, models)
    return "family" if judge and _family(judge) in families else ""


def _family(judge: str) -> str:
    """Return the letters that a judge's name begins with: pictogram, vlm-Qwen."""
    found = re.match(r"(vlm-)?(\w+/)?[A-Za-z]+", judge)
    return found.group() if found else judge


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


# --- one run beside others ------------------------------------------------------------------------


def _compare(group: RankedGroup, run: Run) -> Row:
    """Return the columns that follow from a run and one other: budgets, differences and bounds."""
    row: Row = {"budget": group.budget(run), "budget_s": group.budget(run, "seconds")}
    row |= _saving("speedup", group.saving(run, "seconds"))
    row |= _saving("pass_saving", group.saving(run, "target_passes"))
    row |= describe_tested_difference("vs_plain", group.vs_plain(run))
    row |= describe_tested_difference("vs_bon", group.vs_best_of_n(run))
    row |= _difference("vs_bon_s", group.vs_best_of_n(run, "seconds"))

    if loss := group.non_inferiority(run):
        row["worse_at_most"] = loss.bound
        row["worst_task"] = loss.task
        row["worst_task_bound"] = loss.task_bound
        row["non_inferior"] = "yes" if loss.shown else "no"
    if selection := group.selection(run):
        row["oracle"] = selection.oracle
        row["selection_efficiency"] = selection.efficiency
        row["selection_low"] = selection.low
        row["selection_high"] = selection.high
    return row


def _saving(name: str, found: Saving | None) -> Row:
    if found is None:
        return {}
    return {name: found.ratio, f"{name}_low": found.low, f"{name}_high": found.high}


def _difference(name: str, found: Difference | None) -> Row:
    if found is None:
        return {}
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def describe_tested_difference(name: str, found: Difference | None) -> Row:
    """Return the columns of a paired difference: its interval, its test and what it detects."""
    if found is None:
        return {}
    test: Row = {f"{name}_p": found.p, f"{name}_detectable": found.detectable}
    return _difference(name, found) | test


def adjust_p_values(rows: Sequence[Row], family: str) -> None:
    """Add Holm's adjusted p values of a family of tests to the rows."""
    p = [number(row.get(f"{family}_p")) for row in rows]
    for row, adjusted in zip(rows, stats.holm(p), strict=True):
        row[f"{family}_p_holm"] = adjusted


def add_verdicts(rows: Sequence[Row], family: str, digits: int = 3) -> None:
    """Add to each row whether its difference is resolved, and if not, why.

    `digits` are those of a detectable difference, after the decimal point.
    """
    tested = [row for row in rows if not math.isnan(number(row.get(f"{family}_p")))]
    for row in tested:
        row[f"{family}_verdict"] = _verdict(row, family, comparisons=len(tested), digits=digits)


def _verdict(row: Row, family: str, comparisons: int, digits: int) -> str:
    p = number(row[f"{family}_p"])
    difference = abs(number(row[family]))
    detectable = number(row[f"{family}_detectable"])
    if math.isnan(detectable):
        return f"{NOT_RESOLVED}the error is not known, as a category has a single prompt"
    if p >= stats.ALPHA:
        return f"{NOT_RESOLVED}p {p:.2g}"
    if number(row[f"{family}_p_holm"]) >= stats.ALPHA:
        return f"{NOT_RESOLVED}not significant after correction for {comparisons} comparisons"
    if difference < detectable:
        return (
            f"{NOT_RESOLVED}found in less than 80 % of repeats, which takes {detectable:.{digits}f}"
        )
    return RESOLVED


def _mark_pareto_front(rows: Sequence[Row], column: str, *, cost: str) -> None:
    """Mark the rows that are on the Pareto front of a cost and the score, if there are several."""
    costs = [number(row[cost]) for row in rows]
    scores = [number(row["score"]) for row in rows]
    for row, on_front in zip(rows, stats.pareto(costs, scores), strict=True):
        row[column] = "yes" if on_front and len(rows) > 1 else ""
