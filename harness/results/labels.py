"""Label runs for people: title, budget, and every option that tells a run from its neighbours.

    labels = label_runs(runs)          # of one or several protocols
    str(labels[run.path])              # "Best-of-4", "GridAR, N = 8 (rewrite=False, seed 1)"

Terminal, page, contact sheet, exports and dashboards all take their labels from here. A `Board` has
them as `board.labels`, in the order of its runs, and leaderboard.csv in its column `label`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.records import digest
from harness.runs.fingerprint import PLACES_OF_JUDGES
from harness.runs.read import Run

BUDGET = "n"
"""The option with the number of candidates, which is part of the title."""
TARGET = "_target_"
ONE_AT_A_TIME = "one at a time"
MOST_LETTERS = 40
"""Letters of an option's value; a longer one is named by its beginning and its digest."""
DIGEST_LETTERS = 6
ABSENT = object()
"""Stands for the value of an option that a run does not have."""

Flat = Mapping[str, Any]
"""Dotted name of an option -> its value."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a run is called among the runs of its protocol, none of which is called the same."""

    title: str  # with the budget: "Best-of-4", "GridAR, N = 4"
    family: str  # without the budget, with the method's options: names a scaling curve
    options: tuple[str, ...]  # "rewrite=False", "seed 1", "one at a time"
    params: tuple[str, ...]  # the method's options, budget included: "n=4", "rewrite=False"

    def __str__(self) -> str:
        """Return title and options: "GridAR, N = 4 (rewrite=False, seed 1)"."""
        return _with_options(self.title, self.options)

    @property
    def params_without_budget(self) -> tuple[str, ...]:
        """Return the method's options without the number of candidates."""
        return tuple(param for param in self.params if not param.startswith(f"{BUDGET}="))


def label_runs(runs: Iterable[Run]) -> dict[Path, Label]:
    """Return the label of each run, by its folder.

    A label has the budget, each option that differs from the preset, each that another run of the
    same method and protocol has at another value (so also one at its default), and seed and
    concurrency where the protocol's runs differ in them. Labels of one protocol are all different.
    """
    by_protocol: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        by_protocol[run.protocol].append(run)
    labels: dict[Path, Label] = {}
    for members in by_protocol.values():
        labels |= _label_protocol(members)
    return labels


def _label_protocol(runs: Sequence[Run]) -> dict[Path, Label]:
    """Label the runs of one protocol."""
    # 1. Options of the method, those that were swept included.
    by_method: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_method[str(run.about["method"])].append(run)
    labels: dict[Path, Label] = {}
    for siblings in by_method.values():
        swept = _differing_options([_options(run) for run in siblings])
        for run in siblings:
            labels[run.path] = _label_method(run, swept)

    # 2. How the runs were made, where they differ.
    seeds = {run.about["seed"] for run in runs}
    concurrencies = {run.concurrency for run in runs}
    for run in runs:
        words = []
        if len(seeds) > 1:
            words.append(f"seed {run.about['seed']}")
        if len(concurrencies) > 1:
            words += _concurrency_words(run)
        labels[run.path] = _add_options(labels[run.path], words)

    # 3. What else tells apart those that are still called the same.
    for details in (_method_names, _differing_details, _fingerprints, _folders):
        for namesakes in _find_namesakes(runs, labels):
            for run, words in zip(namesakes, details(namesakes), strict=True):
                labels[run.path] = _add_options(labels[run.path], words)
    return labels


def _label_method(run: Run, swept: Collection[str]) -> Label:
    """Label a run by its method alone."""
    options = _options(run)
    shown = sorted({*_changed_options(run, options), *swept} & options.keys())
    params = [f"{name}={options[name]}" for name in shown if name != BUDGET]
    words = _option_words(run, options, [name for name in shown if name != BUDGET])
    title = run.title
    if run.candidates is not None:
        params.insert(0, f"{BUDGET}={run.candidates}")
        title = title_with_budget(title, run.candidates)
    elif BUDGET in shown:  # an option of that name that is no number of candidates
        params.insert(0, f"{BUDGET}={options[BUDGET]}")
        words.insert(0, params[0])
    return Label(title, _with_options(run.title, words), tuple(words), tuple(params))


def title_with_budget(title: str, candidates: int) -> str:
    """Put a number of candidates into a title: Best-of-4 of "Best-of-N", else "GridAR, N = 4"."""
    if re.search(r"\bN\b", title):
        return re.sub(r"\bN\b", str(candidates), title)
    return f"{title}, N = {candidates}"


def _with_options(title: str, options: Sequence[str]) -> str:
    return f"{title} ({', '.join(options)})" if options else title


def _add_options(label: Label, words: Sequence[str]) -> Label:
    return replace(label, options=(*label.options, *words))


# --- options of a method --------------------------------------------------------------------------


def flatten_options(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested options under dotted names."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= flatten_options(inner, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _options(run: Run) -> Flat:
    """Return a run's method options that results depend on; the changed ones if it has no others.

    Runs that were not made here may name their changed options alone.
    """
    flat = flatten_options(run.options)
    if not flat.keys() - {TARGET, ""}:
        recorded = [part.partition("=") for part in str(run.about["params"]).split(", ") if part]
        return {name: value for name, _, value in recorded}
    kept = {}
    for name, value in flat.items():
        if name != TARGET and name.rpartition(".")[2] not in PLACES_OF_JUDGES:
            kept[name] = value
    return kept


def _changed_options(run: Run, options: Flat) -> set[str]:
    """Return the options that differ from the preset, as the run has recorded them."""
    recorded = f", {run.about['params']}, "
    return {name for name, value in options.items() if f", {name}={value}, " in recorded}


def _differing_options(runs: Sequence[Flat]) -> set[str]:
    """Return the names of the options that have several values among some runs."""
    names = {name for options in runs for name in options}
    differing = set()
    for name in names:
        values = [options.get(name, ABSENT) for options in runs]
        if any(value != values[0] for value in values[1:]):
            differing.add(name)
    return differing


def _option_words(run: Run, options: Flat, shown: Sequence[str]) -> list[str]:
    """Return the shown options for people: a part of another class by its name alone."""
    replaced = []
    for name in shown:
        if name.endswith(f".{TARGET}"):
            replaced.append(name.removesuffix(TARGET))
    asked = run.about.get("asked") or {}
    words = []
    for name in shown:
        place = name.removesuffix(f".{TARGET}")
        if place != name:
            part = asked.get(place) or str(options[name]).rpartition(".")[2]
            words.append(f"{place}={part}")
        elif not any(name.startswith(start) for start in replaced):
            words.append(f"{name}={shorten_value(options[name])}")
    return words


def shorten_value(value: Any) -> str:
    """Return a value in one line; a long one by its beginning and its digest."""
    text = " ".join(str(value).split())
    if len(text) <= MOST_LETTERS:
        return text
    named = digest(str(value).encode(), DIGEST_LETTERS)
    return f"{text[: MOST_LETTERS - DIGEST_LETTERS - 4]}... {named}"


def _concurrency_words(run: Run) -> list[str]:
    if run.concurrency is None:
        return []
    return [ONE_AT_A_TIME if run.concurrency == 1 else f"{run.concurrency} at a time"]


# --- runs that are still called the same ----------------------------------------------------------


def _find_namesakes(runs: Sequence[Run], labels: Mapping[Path, Label]) -> list[list[Run]]:
    """Return the sets of runs whose labels are equal."""
    counts = Counter(str(labels[run.path]) for run in runs)
    named: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        text = str(labels[run.path])
        if counts[text] > 1:
            named[text].append(run)
    return list(named.values())


def _method_names(runs: Sequence[Run]) -> list[list[str]]:
    """Return the names of the methods, where methods of one title are several."""
    names = [str(run.about["method"]) for run in runs]
    return [[name] if len(set(names)) > 1 else [] for name in names]


def _differing_details(runs: Sequence[Run]) -> list[list[str]]:
    """Return all configuration in which runs differ."""
    details = []
    for run in runs:
        config = {name: value for name, value in run.config.items() if name != "run"}
        details.append(flatten_options(config))
    differing = sorted(_differing_options(details))
    words = []
    for flat in details:
        known = [name for name in differing if name in flat]
        words.append([f"{name}={shorten_value(flat[name])}" for name in known])
    return words


def _fingerprints(runs: Sequence[Run]) -> list[list[str]]:
    return [[run.fingerprint] for run in runs]


def _folders(runs: Sequence[Run]) -> list[list[str]]:
    return [["/".join(run.path.parts[-3:])] for run in runs]
