"""From the leaderboard to what the page and the figures show: plain values, a pure function of the
journals.

The runs that may be compared (one protocol) form a `Panel`. An image is an *entry*, numbered prompt
* images + image; every run of a panel has the same entries in the same order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from harness.records import Prompt, SampleRecord, Score
from harness.results.leaderboard import Board
from harness.results.ranking import RankedGroup
from harness.runs.read import RankingProtocol, Run
from harness.runs.trace_codec import unpack_series

Row = Mapping[str, Any]
"""A run's line of the leaderboard: column -> value."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A run with its leaderboard row, and how it is called and drawn in every figure."""

    run: Run
    row: Row
    options: str  # "n=8, seed 1"
    family: str  # what a scaling curve connects: the method and its options, less the number of candidates
    plain: str | None  # id of the plain run that it is compared with
    color: int = 0  # a number for each method, 0 for plain
    symbol: int = 0  # a number for each family of a method

    @property
    def id(self) -> str:
        """The fingerprint, fit for a file's name."""
        return _id(self.run)

    @property
    def label(self) -> str:
        return _method(self.run) + (f" ({self.options})" if self.options else "")

    @property
    def seconds(self) -> float:
        """Device and judge seconds of a delivered image; of a latency run, those on the wall."""
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
        return f"{self.protocol.benchmark} on {self.protocol.model}"

    @property
    def prompts(self) -> list[Prompt]:
        return list(self.shown[0].run.prompts.values())

    @property
    def baseline(self) -> str | None:
        """The plain run that the first of the others is compared with."""
        return next((one.plain for one in self.shown if one.plain), None)

    def keys(self) -> list[tuple[str, int]]:
        return [
            (prompt.id, image)
            for prompt in self.prompts
            for image in range(self.protocol.images_per_prompt)
        ]


def panels(board: Board) -> list[Panel]:
    """The panels of a leaderboard, in the order of their first rows."""
    rows = {
        id(run): _row(row)
        for run, row in zip(board.runs, board.frame.to_dict("records"), strict=True)
    }
    place = {id(run): i for i, run in enumerate(board.runs)}
    found = []
    for protocol, members in groupby(
        sorted(board.runs, key=lambda run: run.protocol), key=lambda run: run.protocol
    ):
        runs = list(members)
        shown = _dressed(runs, [rows[id(run)] for run in runs])
        found.append(
            (min(place[id(run)] for run in runs), Panel(protocol, sorted(shown, key=_best_first)))
        )
    return [panel for _, panel in sorted(found, key=lambda one: one[0])]


def _row(row: Mapping[Any, Any]) -> Row:
    return {str(name): value for name, value in row.items()}


def _dressed(runs: Sequence[Run], rows: Sequence[Row]) -> list[Shown]:
    group = RankedGroup(runs)
    methods = sorted({str(run.about["method"]) for run in runs} - {"plain"})
    families: dict[str, list[str]] = {}
    shown = []
    for run, row in zip(runs, rows, strict=True):
        method = str(run.about["method"])
        plain = group.plain_of(run)
        one = Shown(
            run, row, _options(run, runs), _family(run), None if plain is None else _id(plain)
        )
        known = families.setdefault(method, [])
        known += [] if one.family in known else [one.family]
        color = 0 if method == "plain" else 1 + methods.index(method)
        shown.append(replace(one, color=color, symbol=known.index(one.family)))
    return shown


def _id(run: Run) -> str:
    return re.sub(r"\W", "_", run.fingerprint)


def _method(run: Run) -> str:
    return str(run.about["method"]).replace("_", " ")


def _options(run: Run, among: Sequence[Run]) -> str:
    """A run's options, the number of candidates first, and what else tells it from the others."""
    words = [option for option in str(run.about["params"]).split(", ") if option]
    n = run.options.get("n")
    if isinstance(n, int) and f"n={n}" not in words:
        words.insert(0, f"n={n}")
    if len({other.about["seed"] for other in among}) > 1:
        words.append(f"seed {run.about['seed']}")
    if len({other.concurrency for other in among}) > 1 and run.concurrency:
        words.append(f"{run.concurrency} at a time")
    return ", ".join(words)


def _family(run: Run) -> str:
    options = [
        option
        for option in str(run.about["params"]).split(", ")
        if not re.fullmatch(r"n=\d+|", option)
    ]
    return ", ".join([_method(run), *options])


def _best_first(one: Shown) -> tuple[float, str, str]:
    score = float(one.row["score"])
    return (math.inf if math.isnan(score) else -score), one.label, one.id


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


def dots(panel: Panel, front: str) -> list[Dot]:
    """Each run with its cost on a front, by rising cost; none where there is no plain run to
    measure by.
    """
    found = []
    for one in panel.shown:
        score, low, high = (float(one.row[name]) for name in ("score", "ci_low", "ci_high"))
        cost = float(one.row[FRONTS[front]])
        efficient = one.row[f"front_{front}"] == "yes"
        found.append(Dot(one, cost, score, low, high, efficient))
    return sorted((dot for dot in found if dot.cost > 0), key=lambda dot: (dot.cost, -dot.score))


def curves(panel: Panel) -> list[tuple[str, list[Dot]]]:
    """Families with two or more budgets of visual tokens above plain's, from plain sampling on."""
    families: dict[tuple[str, str | None, int | None], list[Dot]] = {}
    every = dots(panel, "tokens")
    for dot in every:
        if dot.cost > 1.01:
            families.setdefault(
                (dot.one.family, dot.one.plain, dot.one.run.concurrency), []
            ).append(dot)
    plain = {dot.one.id: dot for dot in every}
    return [
        (family, [*([plain[start]] if start in plain else []), *some])
        for (family, start, _), some in families.items()
        if len({dot.cost for dot in some}) > 1
    ]


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
    """Mean seconds of an image by stage; with one image at a time also what the host needs besides,
    to the whole.

    Empty where the journal is older than stages are.
    """
    if math.isnan(float(one.row["decode_s"])):
        return {}
    found = {stage: float(one.row[column]) for stage, column in SPENT.items()}
    if one.run.concurrency == 1:
        found["host"] = max(0.0, float(one.row["wall_s"]) - sum(found.values()))
    return found


# --- what methods noted ---------------------------------------------------------------------------


def noted(one: Shown, name: str) -> list[tuple[SampleRecord, Any]]:
    """Delivered records that carry a note, in the order of their keys."""
    return [
        (record, record.notes[name])
        for _, record in sorted(one.run.done.items())
        if name in record.notes
    ]


def acceptance(one: Shown) -> dict[str, list[int]]:
    """Rounds by tokens accepted (`accepted`), and by tokens committed unseen (`skips`), over all
    images.
    """
    found = {}
    for name in ("accepted", "skips"):
        histograms = [[int(count) for count in value] for _, value in noted(one, name)]
        if histograms and any(map(any, histograms)):
            length = max(
                1 + max(i for i, count in enumerate(h) if count) for h in histograms if any(h)
            )
            found[name] = [sum(h[i] for h in histograms if i < len(h)) for i in range(length)]
    return found


@dataclass(frozen=True, slots=True)
class Confidence:
    """ScalingAR's own confidence over a run: maps [T] in raster order, and what happened at each
    step.
    """

    side: int  # tokens in a row of the image
    right_T: np.ndarray  # mean confidence of delivered candidates whose image was judged right
    wrong_T: np.ndarray
    delivered_T: np.ndarray
    ended_T: np.ndarray  # mean confidence of candidates that were terminated later
    threshold_T: np.ndarray
    alive_T: np.ndarray  # mean number of candidates alive
    terminated_T: np.ndarray  # candidates whose last step this was, over all images


def confidence(one: Shown) -> Confidence | None:
    """None where no record carries a trace."""
    delivered: list[np.ndarray] = []
    right: list[np.ndarray] = []
    wrong: list[np.ndarray] = []
    ended = []
    thresholds = []
    alive = []
    for record, trace in noted(one, "trace"):
        last = record.notes["terminated_at"]
        confidence_NT = _lives(
            unpack_series(trace["confidence"]), last, unpack_series(trace["threshold"])
        )
        delivered.append(confidence_NT[record.notes["chosen"]])
        score = one.run.scores.get(record.key)
        if score is not None and score.value is not None:
            (right if score.value >= 0.5 else wrong).append(delivered[-1])
        ended += [confidence_NT[i] for i, step in enumerate(last) if step is not None]
        thresholds.append(unpack_series(trace["threshold"]))
        alive.append((~np.isnan(confidence_NT)).sum(0))
    if not alive:
        return None
    alive_T = np.mean(alive, axis=0)
    total_T = np.sum(alive, axis=0)
    steps = len(alive_T)
    return Confidence(
        side=math.isqrt(steps) if math.isqrt(steps) ** 2 == steps else steps,
        right_T=_mean(right, steps),
        wrong_T=_mean(wrong, steps),
        delivered_T=_mean(delivered, steps),
        ended_T=_mean(ended, steps),
        threshold_T=_mean(thresholds, steps),
        alive_T=alive_T,
        terminated_T=np.append(total_T[:-1] - total_T[1:], 0),
    )


def _lives(
    values: np.ndarray, terminated_at: Sequence[int | None], threshold_T: np.ndarray
) -> np.ndarray:
    """A noted series, kept for live candidates only, step by step -> [N, T] with NaN after a
    candidate's end.
    """
    steps = len(threshold_T)
    last_N = np.array([steps - 1 if last is None else last for last in terminated_at])
    lived_TN = np.arange(steps)[:, None] <= last_N
    values_TN = np.full(lived_TN.shape, np.nan)
    values_TN[lived_TN] = values
    return values_TN.T


def _mean(series: Sequence[np.ndarray], steps: int) -> np.ndarray:
    """Mean over what is there at each step; NaN where nothing is."""
    if not series:
        return np.full(steps, np.nan)
    there = ~np.isnan(series)
    count_T = there.sum(0)
    with np.errstate(invalid="ignore"):
        return np.where(there, series, 0).sum(0) / count_T


def stages(one: Shown) -> list[dict[str, Any]]:
    """GridAR's stops over a run: how many candidates the verifier refused, were replaced, were
    given other words.
    """
    found: dict[str, dict[str, Any]] = {}
    for record, stops in noted(one, "stages"):
        prompt = one.run.prompts[record.prompt_id].text
        for stop in stops:
            sums = found.setdefault(
                stop["stage"], {"stage": stop["stage"], "images": 0, "candidates": 0}
            )
            sums["images"] += 1
            possible, source, texts = (
                stop.get(name) or [] for name in ("possible", "source", "texts")
            )
            sums["candidates"] += max(len(possible), len(texts))
            for name, count in (
                ("impossible", possible.count(False)),
                ("replaced", sum(s != i for i, s in enumerate(source))),
                ("reworded", sum(text != prompt for text in texts)),
                ("unanswered", int(stop.get("failed") or 0) + int(stop.get("unanswered") or 0)),
                ("malformed", int(stop.get("malformed") or 0)),
            ):
                sums[name] = sums.get(name, 0) + count
    return list(found.values())


def replaced_entries(one: Shown, keys: Sequence[tuple[str, int]], most: int) -> list[int]:
    """Entries in which GridAR replaced a candidate, the busiest first, as far as their pictures
    were noted.
    """
    index = {key: i for i, key in enumerate(keys)}
    busy = []
    for record, stops in noted(one, "stages"):
        replaced = sum(s != i for stop in stops for i, s in enumerate(stop.get("source") or []))
        if replaced and any(stop.get("pictures") for stop in stops):
            busy.append((-replaced, index[record.key]))
    return [entry for _, entry in sorted(busy)[:most]]


# --- images ---------------------------------------------------------------------------------------


def reason(run: Run, key: tuple[str, int]) -> str:
    """Why an image counts as it does, in a line: the judge's words, or what kept it from being
    judged.
    """
    if key not in run.done:
        return "failed: the same command draws it again" if key in run.failed else "not drawn yet"
    score = run.scores.get(key)
    if score is None:
        return "not judged yet"
    said = (
        score.detail.get("reasons")
        or score.detail.get("unjudged")
        or score.detail.get("reason")
        or ""
    )
    return (
        said
        if isinstance(said, str)
        else "; ".join(map(str, said))
        if isinstance(said, Iterable)
        else str(said)
    )


def boxes(score: Score | None) -> list[list[Any]]:
    """What the judge kept: [class, x1, y1, x2, y2, confidence, color or ""], in pixels."""
    kept = score.detail.get("kept") if score is not None else None
    found: list[list[Any]] = []
    for name, some in kept.items() if isinstance(kept, Mapping) else ():
        for box in some if isinstance(some, Sequence) else ():
            if (
                isinstance(box, Sequence)
                and len(box) >= 4
                and all(isinstance(v, int | float) for v in box[:4])
            ):
                confidence, color, *_ = (*box[4:6], None, None)
                found.append([str(name), *box[:4], confidence, color or ""])
    return found
