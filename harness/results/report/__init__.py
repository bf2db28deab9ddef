"""Write the report: results/report/, a static page that works offline from its folder.

    index.html, style.css, *.js    the page (harness/results/report/page), the same for every report
    plotly.min.js                  the plotting library, out of the installed plotly package
    data/board.js                  what is there at first paint: leaderboard, curves, fronts, ...
    data/first.js                  which board is opened first: that of the last command
    data/palette.js                colours that belong to no run
    data/pairs-<board>.js          any two runs compared, loaded when that is looked at
    data/claims.js                 published numbers, which were not measured here
    data/gallery.js                a column of values for each run and property, over all images
    data/<run>-<part>.js           boxes and notes of some prompts, loaded when they are looked at
    thumbs/<hash>.png, .webp       small images by the hash of the original, which may be gone
    figures/*.pdf                  the same figures for a paper (harness/results/report/figures.py)

Everything is a pure function of the journals, of the images that are still there and of the runs
that the last command made; no image is needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from harness.results.claims import compare_with_claims
from harness.results.leaderboard import Board
from harness.results.report.collect import Panel, panels
from harness.results.report.data import (
    describe_claim,
    describe_gallery,
    describe_pairs,
    describe_palette,
    describe_panel,
    write_data,
    write_details,
)
from harness.results.report.figures import write_figures
from harness.results.report.thumbnails import (
    write_source_thumbnails,
    write_thumbnail,
    write_thumbnails,
)
from harness.runs.journal import write_atomic

__all__ = ["panels", "write_figures", "write_report", "write_thumbnail"]

DATA_FILES = {"board.js", "claims.js", "figures.js", "first.js", "gallery.js", "palette.js"}
"""Data files that every report has."""


def write_report(
    results: Path, board: Board, *, figures: bool = True, made: Sequence[Path] = ()
) -> Path:
    """Write results/report/ about a leaderboard; returns the page's path.

    The page opens on the board of the last run in `made`, or on the first one. Without `figures`,
    which take seconds, older ones are removed: they would show other numbers.
    """
    report = results / "report"
    data = report / "data"
    every = panels(board)
    _write_page(report)

    # 1. Images: thumbnails, and what the page shows of each.
    thumbs = {path.stem: path.name for path in (report / "thumbs").glob("*.*")}
    galleries = []
    details: set[str] = set()
    for panel in every:
        for one in panel.shown:
            write_thumbnails(one.run, report / "thumbs", thumbs)
            write_source_thumbnails(one.run, report / "thumbs", thumbs)
            details |= write_details(panel, one, data)
        galleries.append(describe_gallery(panel, thumbs))
    write_data(data / "gallery.js", "galleries", galleries)

    # 2. Numbers.
    claims = compare_with_claims(board).to_dict("records")
    write_data(data / "board.js", "boards", [describe_panel(panel, results) for panel in every])
    write_data(data / "first.js", "first", _find_first(every, made))
    write_data(data / "palette.js", "palette", describe_palette())
    for i, panel in enumerate(every):
        write_data(data / f"pairs-{i}.js", f"pairs[{i}]", describe_pairs(panel))
        details.add(f"pairs-{i}.js")
    write_data(data / "claims.js", "claims", [describe_claim(row) for row in claims])

    # 3. Figures.
    names = write_figures(every, report / "figures") if figures else []
    write_data(data / "figures.js", "figures", names)

    # 4. Files of an earlier report go.
    pdfs = {f"{name}.pdf" for name in names}
    _remove_stale(data.glob("*.js"), DATA_FILES | details)
    _remove_stale((report / "thumbs").glob("*.*"), _used_thumbnails(galleries))
    _remove_stale((report / "figures").glob("*.pdf"), pdfs)
    return report / "index.html"


def _find_first(every: Sequence[Panel], made: Sequence[Path]) -> int:
    """Return the number of the board to open: that of the last run in `made` that is on any."""
    for folder in reversed(made):
        for i, panel in enumerate(every):
            if any(one.run.path == folder for one in panel.shown):
                return i
    return 0


def _write_page(report: Path) -> None:
    """Copy the page's own files, and the plotting library."""
    for file in resources.files("harness.results.report").joinpath("page").iterdir():
        write_atomic(report / file.name, file.read_bytes())

    plotly = resources.files("plotly").joinpath("package_data", "plotly.min.js")
    with resources.as_file(plotly) as source:
        target = report / source.name
        if not target.exists() or target.stat().st_size != source.stat().st_size:
            shutil.copyfile(source, target)


def _used_thumbnails(galleries: Iterable[Mapping[str, Any]]) -> set[str]:
    used: set[str] = set()
    for gallery in galleries:
        used.update(gallery["sources"])
        for run in gallery["runs"].values():
            used.update(run["thumb"])
    return used


def _remove_stale(files: Iterable[Path], kept: set[str]) -> None:
    """Delete files whose name is not among those that are kept."""
    for file in list(files):
        if file.name not in kept:
            file.unlink()
