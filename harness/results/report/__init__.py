"""The report: results/report/, a static page that works offline from its folder.

    index.html, style.css, *.js    the page (harness/report/page), the same for every report
    plotly.min.js                  the plotting library, out of the installed plotly package
    data/board.js                  leaderboard, curves, fronts, histograms: what is there at first paint
    data/claims.js                 published numbers, which were not measured here
    data/gallery.js                a column of values for each run and property, over all images
    data/<run>-<part>.js           boxes and notes of some prompts, loaded when they are looked at
    thumbs/<hash>.png, .webp       small images by the hash of the original, which may be gone by now
    figures/*.pdf                  the same figures for a paper (harness/report/figures.py)

Everything is a pure function of the journals and of the images that are still there; no image is
needed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from harness.records import SampleRecord, digest
from harness.results.claims import compare_with_claims
from harness.results.leaderboard import Board, resolved
from harness.results.report import collect
from harness.results.report.collect import Panel, Shown, panels
from harness.results.report.figures import write_figures
from harness.runs.folder import FORMATS, UNREADABLE
from harness.runs.journal import write_atomic
from harness.runs.read import Run

PART = 16
"""Prompts whose boxes and notes share a file."""
THUMB = 192
"""Pixels of a thumbnail's longer side, at most; smaller images are their own thumbnails."""
EXAMPLES = 6
"""GridAR composites of a run that are shown without asking."""


def write_report(results: Path, board: Board, *, figures: bool = True) -> Path:
    """Write results/report/ about a leaderboard; returns the page's path.

    Without `figures`, which take seconds, there are none afterwards: older ones would show other
    numbers.
    """
    every = panels(board)
    report = results / "report"
    _write_page(report)
    files = {f"{name}.js" for name in ("board", "claims", "figures", "gallery")}
    galleries = []
    there = {path.stem: path.name for path in (report / "thumbs").glob("*.*")}
    for panel in every:
        for one in panel.shown:
            _write_thumbs(one, report / "thumbs", there)
            files |= _write_details(panel, one, report / "data")
        galleries.append(_gallery(panel, there))
    _write_data(report / "data/board.js", "boards", [_summary(panel, results) for panel in every])
    _write_data(report / "data/gallery.js", "galleries", galleries)
    _write_data(
        report / "data/claims.js",
        "claims",
        [_claim(row) for row in compare_with_claims(board).to_dict("records")],
    )
    names = write_figures(every, report / "figures") if figures else []
    _write_data(report / "data/figures.js", "figures", names)
    used = {
        name for gallery in galleries for run in gallery["runs"].values() for name in run["thumb"]
    }
    kept = files | used | {f"{name}.pdf" for name in names}
    for stale in (
        *report.glob("data/*.js"),
        *report.glob("thumbs/*.*"),
        *report.glob("figures/*.pdf"),
    ):
        if stale.name not in kept:
            stale.unlink()
    return report / "index.html"


def _write_page(report: Path) -> None:
    """The page's own files, and the plotting library."""
    for file in resources.files("harness.results.report").joinpath("page").iterdir():
        write_atomic(report / file.name, file.read_bytes())
    plotly = resources.files("plotly").joinpath("package_data", "plotly.min.js")
    with resources.as_file(plotly) as source:
        target = report / source.name
        if not target.exists() or target.stat().st_size != source.stat().st_size:
            shutil.copyfile(source, target)


# --- images ---------------------------------------------------------------------------------------


def _write_thumbs(one: Shown, folder: Path, there: dict[str, str]) -> None:
    """Make the thumbnails that are not `there` yet (stem -> file name) of images that are."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in one.run.done.values():
        stem = _stem(record)
        if (
            stem not in there
            and (source := one.run.image(record))
            and (name := _write_thumb(source, folder / stem))
        ):
            there[stem] = name


def write_thumbnail(run: Run, key: tuple[str, int], folder: Path) -> str:
    """Write a delivered image's thumbnail where reports look for it; returns its file's name, ""
    without the image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = run.image(run.done[key])
    return _write_thumb(source, folder / _stem(run.done[key])) if source else ""


def _write_thumb(source: Path, target: Path) -> str:
    """Copy a small image, shrink a large one; written so that a kill leaves no half file. "" for a
    damaged one.
    """
    temporary = target.with_name(f".{target.name}")
    try:
        with Image.open(source, formats=FORMATS) as image:
            image.load()
            if max(image.size) <= THUMB:
                target = target.with_suffix(".png")
                temporary.write_bytes(source.read_bytes())
            else:
                target = target.with_suffix(".webp")
                image.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
                image.save(temporary, format="WEBP", quality=80)
    except UNREADABLE:
        return ""
    os.replace(temporary, target)
    return target.name


def _stem(record: SampleRecord) -> str:
    """Hashed once more: a journal may say anything, and this becomes a file's name."""
    return digest(record.image_sha.encode(), 16)


def _size(one: Shown) -> list[int] | None:
    """Width and height of the run's images in pixels, from the first that is there."""
    for record in one.run.done.values():
        if source := one.run.image(record):
            with suppress(*UNREADABLE), Image.open(source, formats=FORMATS) as image:
                return list(image.size)
    return None


# --- data -----------------------------------------------------------------------------------------


def _gallery(panel: Panel, there: Mapping[str, str]) -> dict[str, Any]:
    """All images of a board, a column for each run and property; reasons by number, they repeat."""
    keys = panel.keys()
    reasons = {"": 0}

    def column(one: Shown) -> dict[str, Any]:
        done = [one.run.done.get(key) for key in keys]
        scores = [one.run.scores.get(key) for key in keys]
        return {
            "value": [
                None if r is None or s is None else s.value
                for r, s in zip(done, scores, strict=True)
            ],
            "thumb": ["" if r is None else there.get(_stem(r), "") for r in done],
            "reason": [
                reasons.setdefault(collect.reason(one.run, key), len(reasons)) for key in keys
            ],
            "drawn": [int(r is not None) for r in done],
            "tokens": [r and r.usage.visual_tokens for r in done],
            "ms": [r and round(1000 * (r.usage.device_s + r.usage.judge_s), 1) for r in done],
            "size": _size(one),
        }

    runs = {one.id: column(one) for one in panel.shown}
    return {
        "prompts": [[p.id, p.text, p.category] for p in panel.prompts],
        "images": panel.protocol.images_per_prompt,
        "runs": runs,
        "reasons": list(reasons),
        "part": PART,
    }


def _write_details(panel: Panel, one: Shown, folder: Path) -> set[str]:
    """Boxes, costs and notes, a file for every PART prompts; returns the files' names."""
    keys = panel.keys()
    step = PART * panel.protocol.images_per_prompt
    names = set()
    for part, first in enumerate(range(0, len(keys), step)):
        name = f"{one.id}-{part}"
        entries = [_detail(one, key) for key in keys[first : first + step]]
        write_atomic(folder / f"{name}.js", _script(f"details[{json.dumps(name)}]", entries))
        names.add(f"{name}.js")
    return names


def _detail(one: Shown, key: tuple[str, int]) -> dict[str, Any]:
    record = one.run.done.get(key)
    score = one.run.scores.get(key)
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
        "device ms": round(1000 * usage.device_s, 1),
        "judge ms": round(1000 * usage.judge_s, 1),
    }
    said = {k: v for k, v in score.detail.items() if k not in ("kept", "reasons")} if score else {}
    path = record.path if one.run.image(record) else ""
    return {
        "boxes": collect.boxes(score),
        "said": said,
        "costs": costs,
        "notes": record.notes,
        "path": path,
    }


def _summary(panel: Panel, results: Path) -> dict[str, Any]:
    """What the first view shows of a panel."""
    return {
        "title": panel.title,
        "judge": panel.protocol.judge,
        "images": panel.protocol.images_per_prompt,
        "prompts": len(panel.prompts),
        "categories": list(dict.fromkeys(prompt.category for prompt in panel.prompts)),
        "baseline": panel.baseline,
        "runs": [_run(one, results) for one in panel.shown],
        "fronts": {
            front: [_dot(dot) for dot in collect.dots(panel, front)] for front in collect.FRONTS
        },
        "curves": [
            {"family": name, "dots": [_dot(dot) for dot in dots]}
            for name, dots in collect.curves(panel)
        ],
        "acceptance": [
            {"id": one.id, **found} for one in panel.shown if (found := collect.acceptance(one))
        ],
        "confidence": [
            _confidence(one, seen) for one in panel.shown if (seen := collect.confidence(one))
        ],
        "stages": [
            {"id": one.id, "stages": stops, "examples": _examples(one, panel.keys())}
            for one in panel.shown
            if (stops := collect.stages(one))
        ],
    }


def _run(one: Shown, results: Path) -> dict[str, Any]:
    row = pd.Series(dict(one.row))
    return {
        **{str(name): _plain(value) for name, value in one.row.items()},
        **{
            name: getattr(one, name)
            for name in ("id", "label", "options", "family", "plain", "color", "symbol")
        },
        **{
            f"{name}_resolved": not pd.isna(row[name]) and resolved(row, name)
            for name in ("vs_plain", "vs_bon")
        },
        "folder": os.path.relpath(one.run.path, results),
        "seconds": _plain(one.seconds),
        "memory_gb": one.run.about.get("memory_gb"),
        "spent": collect.spent(one),
    }


def _claim(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A published number, and what was measured here of the same model and benchmark."""
    return {str(name): _plain(value) for name, value in row.items()}


def _dot(dot: collect.Dot) -> dict[str, Any]:
    numbers = {
        name: _plain(getattr(dot, name)) for name in ("cost", "score", "low", "high", "efficient")
    }
    return {"id": dot.one.id, "label": dot.one.label, **numbers}


def _confidence(one: Shown, found: collect.Confidence) -> dict[str, Any]:
    series = {
        name: [_plain(round(float(value), 4)) for value in getattr(found, f"{name}_T")]
        for name in ("right", "wrong", "delivered", "ended", "threshold", "alive", "terminated")
    }
    return {"id": one.id, "side": found.side, **series}


def _examples(one: Shown, keys: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    entries = collect.replaced_entries(one, keys, EXAMPLES)
    return [
        {"entry": entry, "stages": one.run.done[keys[entry]].notes["stages"]} for entry in entries
    ]


def _plain(value: Any) -> Any:
    """A number or text that JSON can carry; no number is null."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_data(path: Path, name: str, value: Any) -> None:
    write_atomic(path, _script(name, value))


def _script(name: str, value: Any) -> bytes:
    """`report.name = value;` as ASCII: a page opened from a disk can load scripts, and nothing
    else.
    """
    text = json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False).replace(
        "</", "<\\/"
    )
    return f"report.{name}={text};\n".encode("ascii")
