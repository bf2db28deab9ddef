"""Write a report's data files: what the page shows, as scripts that assign JSON to `report`."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.results.image_metrics import describe_metrics, list_shown
from harness.results.leaderboard import resolved
from harness.results.reasons import explain_value
from harness.results.remarks import list_remarks
from harness.results.report import collect
from harness.results.report.budgets import AXES, LEVELS, Family, list_families
from harness.results.report.collect import Confidence, Dot, Key, Panel, Shown
from harness.results.report.colors import THEMES, list_stage_colors, run_color
from harness.results.report.pairs import Pair, compare_pairs, mean_by_prompt
from harness.results.report.thumbnails import measure_images, source_stem, thumbnail_stem
from harness.results.set_words import explain_sets
from harness.runs.journal import write_atomic
from harness.runs.metrics import MetricAbout

PART = 16
"""Prompts whose boxes and notes share a file."""
EXAMPLES = 6
"""GridAR composites of a run that are shown without asking."""


# --- files ----------------------------------------------------------------------------------------


def write_data(path: Path, name: str, value: Any) -> None:
    """Write a script that sets `report.name`.

    A page opened from a disk can load scripts, and nothing else. The text is ASCII, and cannot end
    the script.
    """
    text = json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)
    safe = text.replace("</", "<\\/")
    write_atomic(path, f"report.{name}={safe};\n".encode("ascii"))


def write_details(panel: Panel, one: Shown, folder: Path) -> set[str]:
    """Write boxes, costs and notes of a run, a file for every PART prompts; returns their names."""
    keys = panel.keys()
    step = PART * panel.protocol.images_per_prompt
    names = set()
    for part, first in enumerate(range(0, len(keys), step)):
        name = f"{one.id}-{part}"
        entries = [_describe_image(one, key) for key in keys[first : first + step]]
        write_data(folder / f"{name}.js", f"details[{json.dumps(name)}]", entries)
        names.add(f"{name}.js")
    return names


# --- images ---------------------------------------------------------------------------------------


def describe_gallery(panel: Panel, thumbs: Mapping[str, str]) -> dict[str, Any]:
    """Return all images of a panel: a column for each run and property, a value for each entry.

    `thumbs` maps the stem of a thumbnail to its file's name. Reasons are given by their number in
    `reasons`: most of them repeat.
    """
    reasons = {"": 0}
    runs = {}
    for one in panel.shown:
        runs[one.id] = _gallery_columns(one, panel.keys(), thumbs, reasons)
    return {
        "prompts": [[prompt.id, prompt.text, prompt.category] for prompt in panel.prompts],
        "sources": _source_thumbnails(panel, thumbs),
        "images": panel.protocol.images_per_prompt,
        "runs": runs,
        "reasons": list(reasons),
        "part": PART,
    }


def _source_thumbnails(panel: Panel, thumbs: Mapping[str, str]) -> list[str]:
    """Return the thumbnail of each prompt's source, "" for one without; [] where none has any."""
    sources = [one.run.sources for one in panel.shown]
    if not any(sources):
        return []
    names = []
    for prompt in panel.prompts:
        sha = next((found[prompt.id] for found in sources if prompt.id in found), "")
        names.append(thumbs.get(source_stem(sha), "") if sha else "")
    return names


def _gallery_columns(
    one: Shown, keys: Sequence[Key], thumbs: Mapping[str, str], reasons: dict[str, int]
) -> dict[str, Any]:
    """Return the columns of a run; new reasons are added to `reasons`."""
    columns: dict[str, Any] = {
        name: [] for name in ("value", "thumb", "reason", "drawn", "tokens", "ms")
    }
    for key in keys:
        reason = explain_value(one.run, key)
        cell = _gallery_cell(one, key, thumbs)
        cell["reason"] = reasons.setdefault(reason, len(reasons))
        for name, value in cell.items():
            columns[name].append(value)
    columns["size"] = measure_images(one.run)
    columns["mean"] = None
    if one.run.is_scored:
        means = mean_by_prompt(one)
        columns["mean"] = [means[prompt_id] for prompt_id in dict.fromkeys(key[0] for key in keys)]
    return columns


def _gallery_cell(one: Shown, key: Key, thumbs: Mapping[str, str]) -> dict[str, Any]:
    record = one.run.done.get(key)
    if record is None:
        return {"value": None, "thumb": "", "drawn": 0, "tokens": None, "ms": None}
    score = one.run.scores.get(key)
    usage = record.usage
    return {
        "value": None if score is None else score.value,
        "thumb": thumbs.get(thumbnail_stem(record), ""),
        "drawn": 1,
        "tokens": usage.visual_tokens,
        "ms": _milliseconds(usage.device_s + usage.judge_s),
    }


def _describe_image(one: Shown, key: Key) -> dict[str, Any]:
    """Return what the page shows beside a large image; {} for one that was not delivered."""
    record = one.run.done.get(key)
    if record is None:
        return {}
    usage = record.usage
    costs = {
        "visual tokens": usage.visual_tokens,
        "target passes": usage.target_passes,
        "target positions": usage.target_positions,
        "drafted positions": usage.drafted_positions,
        "renders": usage.renders,
        "judge calls": usage.judge_calls,
        "device ms": _milliseconds(usage.device_s),
        "judge ms": _milliseconds(usage.judge_s),
    }

    score = one.run.scores.get(key)
    judged = dict(score.detail) if score else {}
    judged.pop("kept", None)
    judged.pop("reasons", None)
    return {
        "boxes": collect.boxes(score),
        "said": judged,
        "costs": costs,
        "notes": record.notes,
        "path": record.path if one.run.image(record) else "",
    }


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 1)


# --- boards ---------------------------------------------------------------------------------------


def describe_panel(panel: Panel, results: Path) -> dict[str, Any]:
    """Return what the first view and the figures show of a panel."""
    fronts = {}
    for front in collect.FRONTS:
        fronts[front] = [_describe_dot(dot) for dot in collect.dots(panel, front)]
    curves = []
    for family, dots in collect.curves(panel):
        curves.append({"family": family, "dots": [_describe_dot(dot) for dot in dots]})

    rows = pd.DataFrame([dict(one.row) for one in panel.shown])
    metrics = describe_metrics([one.run for one in panel.shown])
    return {
        "title": panel.title,
        "benchmark": panel.protocol.benchmark,
        "version": panel.protocol.version,
        "model": panel.protocol.model,
        "numerics": panel.protocol.numerics,
        "judge": panel.protocol.judge,
        "images": panel.protocol.images_per_prompt,
        "prompts": len(panel.prompts),
        "categories": list(dict.fromkeys(prompt.category for prompt in panel.prompts)),
        "baseline": panel.baseline,
        "remark": panel.remark,
        "runs": [_describe_run(one, results) for one in panel.shown],
        "metrics": _describe_metrics(metrics),
        "remarks": [*list_remarks(rows, metrics), *explain_sets(rows)],
        "scored": panel.is_scored,
        "fronts": fronts,
        "curves": curves,
        "budgets": _describe_budgets(panel),
        "noted": any(collect.has_notes(one) for one in panel.shown),
        **_describe_notes(panel),
    }


def _describe_metrics(metrics: Mapping[str, MetricAbout]) -> list[dict[str, Any]]:
    """Return what is known of the metrics of a panel's images, besides the numbers of its runs."""
    described = []
    for name, about in metrics.items():
        described.append(
            {"name": name, "unit": about.unit, "better": about.better, "digits": about.digits}
        )
    return described


def _describe_budgets(panel: Panel) -> dict[str, list[Any]]:
    """Return, for each axis, what every family of runs buys at `LEVELS`; none without any cost."""
    found = {}
    for axis in AXES:
        found[axis] = [_describe_family(family) for family in list_families(panel, axis)]
    return found


def _describe_family(family: Family) -> dict[str, Any]:
    bought = [family.bought_at(level) for level in LEVELS]
    return {
        "name": family.name,
        "offers": [{"id": offer.one.id, "cost": _plain(offer.cost)} for offer in family.offers],
        "bought": [None if offer is None else offer.one.id for offer in bought],
    }


def describe_pairs(panel: Panel) -> dict[str, Any]:
    """Return the comparison of every pair of runs, by the ids of both: "a b"."""
    return {f"{pair.a.id} {pair.b.id}": _describe_pair(pair) for pair in compare_pairs(panel)}


def _describe_pair(pair: Pair) -> dict[str, Any]:
    found = pair.difference
    categories = {}
    for interval in pair.categories:
        outcomes = pair.outcomes[interval.category]
        categories[interval.category] = [
            *(_plain(number) for number in (interval.value, interval.low, interval.high)),
            outcomes.wins,
            outcomes.ties,
            outcomes.losses,
        ]
    numbers = ("value", "low", "high", "p", "test", "detectable", "resolved")
    return {name: _plain(getattr(found, name)) for name in numbers} | {"categories": categories}


def describe_palette() -> dict[str, Any]:
    """Return the colours of each theme that belong to no run."""
    return {theme: {"stages": list_stage_colors(theme)} for theme in THEMES}


def _describe_notes(panel: Panel) -> dict[str, list[Any]]:
    """Return what the methods of a panel noted, without the runs that noted nothing."""
    acceptance: list[Any] = []
    confidence: list[Any] = []
    stages: list[Any] = []
    for one in panel.shown:
        histograms = collect.acceptance(one)
        if histograms:
            acceptance.append({"id": one.id, **histograms})
        seen = collect.confidence(one)
        if seen is not None:
            confidence.append(_describe_confidence(one, seen))
        stops = collect.stages(one)
        if stops:
            examples = _stage_examples(one, panel.keys())
            stages.append({"id": one.id, "stages": stops, "examples": examples})
    return {"acceptance": acceptance, "confidence": confidence, "stages": stages}


def _describe_run(one: Shown, results: Path) -> dict[str, Any]:
    """Return a run's leaderboard row, how it is drawn, and where its seconds went."""
    found = {name: _plain(value) for name, value in one.row.items()}
    for name in ("id", "label", "title", "options", "family", "plain", "symbol"):
        found[name] = getattr(one, name)
    found["color"] = {theme: run_color(one.color, one.shade, theme) for theme in THEMES}
    # by themselves: a task may be called "color", as what is drawn is
    found["tasks"] = {name: _plain(one.row.get(name)) for name in _list_categories(one)}
    found["scored"] = one.run.is_scored

    row = pd.Series(dict(one.row))
    for name in ("vs_plain", "vs_bon", *(f"{metric}_vs_plain" for metric in list_shown(one.run))):
        is_known = not pd.isna(row[name])
        found[f"{name}_resolved"] = is_known and resolved(row, name)
        found[f"{name}_reason"] = _shorten_verdict(found.get(f"{name}_verdict"))

    found["marks"] = one.run.marks
    found["folder"] = os.path.relpath(one.run.path, results)
    found["seconds"] = _plain(one.seconds)
    found["memory_gb"] = one.run.about.get("memory_gb")
    found["spent"] = collect.spent(one)
    return found


def _list_categories(one: Shown) -> list[str]:
    """Return the categories of a run's prompts, in their order."""
    return list(dict.fromkeys(prompt.category for prompt in one.run.prompts.values()))


NUMBERLESS = (
    (r"not resolved: ", ""),
    (r"^p [\d.e-]+$", "not significant: p is 5 % or more"),
    (r", which takes [\d.]+$", ""),
)
"""What is left out of a verdict, so that equal reasons read alike."""


def _shorten_verdict(verdict: object) -> str:
    """Return why a difference is not resolved, without the run's numbers; "" if it is."""
    if not isinstance(verdict, str) or not verdict.startswith("not resolved"):
        return ""
    for pattern, replacement in NUMBERLESS:
        verdict = re.sub(pattern, replacement, verdict)
    return verdict


def describe_claim(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a published number, and what was measured here of the same model and benchmark."""
    return {str(name): _plain(value) for name, value in row.items()}


def _describe_dot(dot: Dot) -> dict[str, Any]:
    numbers = ("cost", "score", "low", "high", "efficient")
    found = {name: _plain(getattr(dot, name)) for name in numbers}
    return {"id": dot.one.id, "label": dot.one.label, **found}


def _describe_confidence(one: Shown, found: Confidence) -> dict[str, Any]:
    series = ("right", "wrong", "delivered", "ended", "threshold", "alive", "terminated")
    described: dict[str, Any] = {"id": one.id, "side": found.side}
    for name in series:
        values = getattr(found, f"{name}_T").tolist()
        described[name] = [_plain(round(float(value), 4)) for value in values]
    return described


def _stage_examples(one: Shown, keys: Sequence[Key]) -> list[dict[str, Any]]:
    """Return some entries in which GridAR replaced candidates, with what it noted there."""
    examples = []
    for entry in collect.replaced_entries(one, keys, EXAMPLES):
        record = one.run.done[keys[entry]]
        examples.append({"entry": entry, "stages": record.notes["stages"]})
    return examples


def _plain(value: Any) -> Any:
    """Return a number or text that JSON can carry; None for a number that is not finite."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
