"""Collect what the page and the figures show, as plain values, from the leaderboard and journals.

The runs that may be compared (one protocol) form a `Panel`. An image is an *entry*, numbered prompt
* images + image; every run of a panel has the same entries in the same order. Everything here is a
pure function of the journals. Names of arrays carry suffixes: `N` candidates, `T` tokens of an
image in raster order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from harness.records import PROMPT_CUT, Prompt, SampleRecord, Score
from harness.results.labels import Label
from harness.results.leaderboard import Board
from harness.results.ranking import PLAIN, find_plain
from harness.runs.read import RankingProtocol, Run
from harness.runs.trace_codec import unpack_series

Row = Mapping[str, Any]
"""A run's line of the leaderboard: column -> value."""
Key = tuple[str, int]
"""An image of a run: prompt id and number of the image."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A run with its leaderboard row, and its name, colour and symbol in every figure."""

    run: Run
    row: Row
    name: Label
    plain: str | None  # id of the plain run that it is compared with
    color: int = 0  # a number for each method, 0 for plain
    shade: float = 1.0  # 1 for the method's largest number of candidates, 0 for its smallest
    symbol: int = 0  # a number for each family of a method, from another start for each method

    @property
    def id(self) -> str:
        """Return the fingerprint with only such letters as may be in a file's name."""
        return _id(self.run)

    @property
    def label(self) -> str:
        """Return title, budget and options, as everything names the run."""
        return str(self.name)

    @property
    def title(self) -> str:
        """Return title and budget."""
        return self.name.title

    @property
    def options(self) -> str:
        """Return what the label says besides title and budget."""
        return ", ".join(self.name.options)

    @property
    def family(self) -> str:
        """Return title and options without the number of candidates: a scaling curve's name."""
        return self.name.family

    @property
    def seconds(self) -> float:
        """Return device and judge seconds of a delivered image; wall seconds of a latency run."""
        if self.run.concurrency == 1:
            return float(self.row["wall_s"])
        return float(self.row["device_s"]) + float(self.row["judge_s"])


@dataclass(frozen=True, slots=True)
class Panel:
    """Runs of one protocol, best first, over the same entries."""

    protocol: RankingProtocol
    shown: Sequence[Shown]

    @property
    def title(self) -> str:
        """Return the heading of the panel: benchmark and model."""
        return f"{self.protocol.benchmark} on {self.protocol.model}"

    @property
    def prompts(self) -> list[Prompt]:
        """Return the prompts in the order of the entries."""
        return list(self.shown[0].run.prompts.values())

    @property
    def is_scored(self) -> bool:
        """Tell whether any run has been judged: else there are images and costs only."""
        return any(one.run.is_scored for one in self.shown)

    @property
    def baseline(self) -> str | None:
        """Return the id of the plain run that the best of the others is compared with."""
        return next((one.plain for one in self.shown if one.plain), None)

    @property
    def remark(self) -> str:
        """Return what the benchmark says beside its scores; "" if nothing."""
        return next(
            (str(one.run.about["remark"]) for one in self.shown if "remark" in one.run.about), ""
        )

    def keys(self) -> list[Key]:
        """Return prompt id and image of every entry."""
        images = range(self.protocol.images_per_prompt)
        return [(prompt.id, image) for prompt in self.prompts for image in images]


def panels(board: Board) -> list[Panel]:
    """Return a panel for each protocol of a leaderboard, in the order of their first rows."""
    rows: dict[Path, Row] = {}
    labels: dict[Path, Label] = {}
    places: dict[Path, int] = {}
    lines = board.frame.to_dict("records")
    every = zip(board.runs, lines, board.labels, strict=True)
    for place, (run, line, label) in enumerate(every):
        rows[run.path] = {str(name): value for name, value in line.items()}
        labels[run.path] = label
        places[run.path] = place

    found = []
    for protocol, members in groupby(sorted(board.runs, key=_protocol), key=_protocol):
        runs = list(members)
        shown = []
        for run in runs:
            plain = find_plain(run, runs)
            plain_id = None if plain is None else _id(plain)
            shown.append(Shown(run, rows[run.path], labels[run.path], plain_id))
        first = min(places[run.path] for run in runs)
        found.append((first, Panel(protocol, sorted(_dress(shown), key=_best_first))))
    return [panel for _, panel in sorted(found, key=lambda one: one[0])]


def _protocol(run: Run) -> RankingProtocol:
    return run.protocol


def _dress(shown: Sequence[Shown]) -> list[Shown]:
    """Give each run of a panel its colour, shade and symbol."""
    by_method: dict[str, list[Shown]] = {}
    for one in shown:
        by_method.setdefault(_method(one.run), []).append(one)

    dressed = []
    others = sorted(by_method.keys() - {PLAIN})
    for method, siblings in by_method.items():
        color = 0 if method == PLAIN else 1 + others.index(method)
        families = list(dict.fromkeys(one.family for one in siblings))
        sizes = sorted({one.run.candidates or 0 for one in siblings})
        for one in siblings:
            rank = sizes.index(one.run.candidates or 0)
            shade = rank / (len(sizes) - 1) if len(sizes) > 1 else 1.0
            symbol = color + families.index(one.family)
            dressed.append(replace(one, color=color, shade=shade, symbol=symbol))
    return dressed


def _id(run: Run) -> str:
    return re.sub(r"\W", "_", run.fingerprint)


def _method(run: Run) -> str:
    return str(run.about["method"])


def _best_first(one: Shown) -> tuple[float, str, str]:
    score = float(one.row["score"])
    rank = math.inf if math.isnan(score) else -score
    return rank, one.label, one.id


# --- costs and curves -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dot:
    """A run in a plane of cost and quality; cost 1 is plain sampling's."""

    one: Shown
    cost: float
    score: float
    low: float
    high: float
    efficient: bool  # no other run is at least as good at no more cost


FRONTS = {"tokens": "budget", "seconds": "budget_s"}
"""Front -> the leaderboard's column with its cost."""
PLAIN_COST = 1.01
"""Runs that cost more have a budget above plain sampling's."""
_Family = tuple[str, str | None, int | None]
"""Name of a family, id of its plain run, and images at a time."""


def dots(panel: Panel, front: str) -> list[Dot]:
    """Return the runs with a known cost on a front, by rising cost.

    Costs are relative to plain sampling: without a plain run there are none.
    """
    found = []
    for one in panel.shown:
        dot = Dot(
            one=one,
            cost=float(one.row[FRONTS[front]]),
            score=float(one.row["score"]),
            low=float(one.row["ci_low"]),
            high=float(one.row["ci_high"]),
            efficient=one.row[f"front_{front}"] == "yes",
        )
        if dot.cost > 0 and one.run.is_scored:
            found.append(dot)
    return sorted(found, key=lambda dot: (dot.cost, -dot.score))


def curves(panel: Panel) -> list[tuple[str, list[Dot]]]:
    """Return the scaling curves: family -> dots over visual tokens, the plain run's first.

    A curve is a family with two or more budgets above plain sampling's, all compared with the same
    plain run and drawn with the same number of images at a time.
    """
    every = dots(panel, "tokens")
    by_id = {dot.one.id: dot for dot in every}
    families: dict[_Family, list[Dot]] = {}
    for dot in every:
        if dot.cost > PLAIN_COST:
            one = dot.one
            family = (one.family, one.plain, one.run.concurrency)
            families.setdefault(family, []).append(dot)

    found = []
    for (name, plain, _), members in families.items():
        budgets = {dot.cost for dot in members}
        if len(budgets) > 1:
            start = [by_id[plain]] if plain in by_id else []
            found.append((name, [*start, *members]))
    return found


SPENT = {
    "text": "text_s",
    "prefill": "prefill_s",
    "decode": "decode_s",
    "draft": "draft_s",
    "judge": "judge_s",
    "VQ decode": "render_s",
    "save": "save_s",
}
"""Stage -> the leaderboard's column with its seconds."""


def spent(one: Shown) -> dict[str, float]:
    """Return the mean seconds of an image by stage; {} if the journal is older than stages are.

    With one image at a time, `host` is the rest of the wall seconds.
    """
    if math.isnan(float(one.row["decode_s"])):
        return {}
    found = {stage: float(one.row[column]) for stage, column in SPENT.items()}
    if one.run.concurrency == 1:
        wall_s = float(one.row["wall_s"])
        found["host"] = max(0.0, wall_s - sum(found.values()))
    return found


# --- what methods noted ---------------------------------------------------------------------------


def noted(one: Shown, name: str) -> list[tuple[SampleRecord, Any]]:
    """Return delivered records that carry the note `name`, with it, in the order of their keys."""
    found = []
    for _, record in sorted(one.run.done.items()):
        if name in record.notes:
            found.append((record, record.notes[name]))
    return found


def has_notes(one: Shown) -> bool:
    """Tell whether a delivered image of a run carries any note of its method."""
    return any(record.notes.keys() - {PROMPT_CUT} for record in one.run.done.values())


def acceptance(one: Shown) -> dict[str, list[int]]:
    """Return histograms over all images: how many decode steps accepted 0, 1, 2, ... tokens.

    `accepted` counts draft tokens that the target accepted, `skips` tokens that were committed
    without asking it. Histograms without a count are left out.
    """
    found = {}
    for name in ("accepted", "skips"):
        counts: list[int] = []
        for _, histogram in noted(one, name):
            _add_counts(counts, histogram)
        while counts and not counts[-1]:
            counts.pop()
        if counts:
            found[name] = counts
    return found


def _add_counts(counts: list[int], histogram: Sequence[float]) -> None:
    """Add a histogram to `counts`, which grows to its length."""
    counts += [0] * (len(histogram) - len(counts))
    for i, count in enumerate(histogram):
        counts[i] += int(count)


@dataclass(frozen=True, slots=True)
class Confidence:
    """ScalingAR's own confidence over a run, averaged over images; NaN where nothing was drawn."""

    side: int  # tokens in a row of the image
    right_T: np.ndarray  # confidence of delivered candidates whose image was judged right
    wrong_T: np.ndarray
    delivered_T: np.ndarray
    ended_T: np.ndarray  # confidence of candidates that were terminated later
    threshold_T: np.ndarray
    alive_T: np.ndarray  # number of candidates alive
    terminated_T: np.ndarray  # candidates whose last step this was, summed over images


@dataclass(slots=True)
class _Traces:
    """The traces of a run: series [T], one for each image or candidate."""

    right: list[np.ndarray] = field(default_factory=list)
    wrong: list[np.ndarray] = field(default_factory=list)
    delivered: list[np.ndarray] = field(default_factory=list)
    ended: list[np.ndarray] = field(default_factory=list)
    threshold: list[np.ndarray] = field(default_factory=list)
    alive: list[np.ndarray] = field(default_factory=list)


def confidence(one: Shown) -> Confidence | None:
    """Average the confidence traces of a run; None if no record carries one."""
    traces = _collect_traces(one)
    if not traces.alive:
        return None

    alive_T = np.mean(traces.alive, axis=0)
    total_T = np.sum(traces.alive, axis=0)
    steps = len(alive_T)
    side = math.isqrt(steps)
    return Confidence(
        side=side if side * side == steps else steps,
        right_T=_mean(traces.right, steps),
        wrong_T=_mean(traces.wrong, steps),
        delivered_T=_mean(traces.delivered, steps),
        ended_T=_mean(traces.ended, steps),
        threshold_T=_mean(traces.threshold, steps),
        alive_T=alive_T,
        terminated_T=np.append(total_T[:-1] - total_T[1:], 0),
    )


def _collect_traces(one: Shown) -> _Traces:
    """Unpack the noted traces, and sort their series by what became of the candidate."""
    traces = _Traces()
    for record, trace in noted(one, "trace"):
        terminated_at = record.notes["terminated_at"]
        threshold_T = unpack_series(trace["threshold"])
        values = unpack_series(trace["confidence"])
        confidence_NT = _spread_over_candidates(values, terminated_at, len(threshold_T))

        delivered_T = confidence_NT[record.notes["chosen"]]
        traces.delivered.append(delivered_T)
        score = one.run.scores.get(record.key)
        if score is not None and score.value is not None:
            judged = traces.right if score.value >= 0.5 else traces.wrong
            judged.append(delivered_T)

        for candidate, step in enumerate(terminated_at):
            if step is not None:
                traces.ended.append(confidence_NT[candidate])
        traces.threshold.append(threshold_T)
        traces.alive.append((~np.isnan(confidence_NT)).sum(0))
    return traces


def _spread_over_candidates(
    values: np.ndarray, terminated_at: Sequence[int | None], steps: int
) -> np.ndarray:
    """Unfold a noted series -> [N, T], NaN after a candidate's last step.

    A series holds, step by step, a value for each candidate that is alive.
    """
    last = [steps - 1 if step is None else step for step in terminated_at]
    is_alive_TN = np.arange(steps)[:, None] <= np.array(last)
    values_TN = np.full(is_alive_TN.shape, np.nan)
    values_TN[is_alive_TN] = values
    return values_TN.T


def _mean(series: Sequence[np.ndarray], steps: int) -> np.ndarray:
    """Average the known values of each step -> [T]; NaN for a step without one."""
    if not series:
        return np.full(steps, np.nan)
    is_known = ~np.isnan(series)
    count_T = is_known.sum(0)
    with np.errstate(invalid="ignore"):
        return np.where(is_known, series, 0).sum(0) / count_T


def stages(one: Shown) -> list[dict[str, Any]]:
    """Sum up GridAR's stops over a run: a mapping of counts for each stage, in order.

    Counts images and candidates, and the candidates that the verifier called impossible, that were
    replaced by a copy of another, and that went on with a reworded prompt; further its calls
    without an answer and its malformed answers.
    """
    found: dict[str, dict[str, Any]] = {}
    for record, stops in noted(one, "stages"):
        prompt = one.run.prompts[record.prompt_id].text
        for stop in stops:
            name = stop["stage"]
            sums = found.setdefault(name, {"stage": name, "images": 0, "candidates": 0})
            for counted, count in _count_stop(stop, prompt).items():
                sums[counted] = sums.get(counted, 0) + count
    return list(found.values())


def _count_stop(stop: Mapping[str, Any], prompt: str) -> dict[str, int]:
    """Count what happened to the candidates of one image at one stop."""
    possible = stop.get("possible") or []
    texts = stop.get("texts") or []
    failed = int(stop.get("failed") or 0)
    unanswered = int(stop.get("unanswered") or 0)
    return {
        "images": 1,
        "candidates": max(len(possible), len(texts)),
        "impossible": possible.count(False),
        "replaced": _count_replaced(stop),
        "reworded": sum(text != prompt for text in texts),
        "unanswered": failed + unanswered,
        "malformed": int(stop.get("malformed") or 0),
    }


def _count_replaced(stop: Mapping[str, Any]) -> int:
    """Count the candidates that became a copy of another."""
    source = stop.get("source") or []
    return sum(origin != candidate for candidate, origin in enumerate(source))


def replaced_entries(one: Shown, keys: Sequence[Key], most: int) -> list[int]:
    """Return at most `most` entries with noted pictures in which GridAR replaced candidates.

    The entries with the most replaced candidates come first.
    """
    index = {key: i for i, key in enumerate(keys)}
    busy = []
    for record, stops in noted(one, "stages"):
        replaced = sum(map(_count_replaced, stops))
        if replaced and any(stop.get("pictures") for stop in stops):
            busy.append((-replaced, index[record.key]))
    return [entry for _, entry in sorted(busy)[:most]]


# --- images ---------------------------------------------------------------------------------------


def boxes(score: Score | None) -> list[list[Any]]:
    """Return the boxes that the judge kept: [class, x1, y1, x2, y2, confidence, color], in pixels.

    The confidence may be None and the color "". A journal may say anything: what does not look
    like a box is left out.
    """
    kept = score.detail.get("kept") if score is not None else None
    if not isinstance(kept, Mapping):
        return []
    found: list[list[Any]] = []
    for name, boxes_of_class in kept.items():
        if not isinstance(boxes_of_class, Sequence):
            continue
        for box in boxes_of_class:
            if _is_box(box):
                confidence = box[4] if len(box) > 4 else None
                color = box[5] if len(box) > 5 else None
                found.append([str(name), *box[:4], confidence, color or ""])
    return found


def _is_box(value: object) -> bool:
    """True for a sequence that begins with four numbers."""
    if not isinstance(value, Sequence) or len(value) < 4:
        return False
    return all(isinstance(number, int | float) for number in value[:4])
