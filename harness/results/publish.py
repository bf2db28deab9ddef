"""Publish a results folder: write everything that is derived from the journals of its runs.

leaderboard.csv, metrics.csv, curves.csv   tables (harness/results/leaderboard.py)
export/                                    Markdown, LaTeX, the hub's format (exports.py)
sheet.png                                  contact sheet of some runs (contact_sheet.py)
report/index.html                          figures and gallery (report/)
wandb/                                     dashboards, if a logger is chosen (wandb.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.records import UserError
from harness.results.contact_sheet import write_contact_sheet
from harness.results.exports import write_exports
from harness.results.leaderboard import (
    Board,
    build,
    excluded_line,
    problems_line,
    protocols,
    rows_beside,
)
from harness.results.report import write_report
from harness.results.terminal_table import render_table
from harness.results.wandb import Tracker
from harness.runs.journal import write_atomic
from harness.runs.lock import hold_lock
from harness.sweeps.finished import hash_results

OUTPUTS = {
    "report/index.html": "tables, curves and a gallery",
    "leaderboard.csv": "a row for each run",
    "sheet.png": "prompts x methods, in pictures",
}
"""What people open of a results folder, and what it is."""


def publish(
    results: Path, folders: Sequence[Path], tracker: Tracker, *, fresh: bool = True
) -> None:
    """Write tables, exports, contact sheet, report and dashboards of a results folder.

    The contact sheet shows the runs in `folders`, and what is printed are the boards that these
    stand on. Without any there is no sheet, all boards are printed, and the report gets its figures
    as PDF. If nothing is `fresh` and no journal has changed since the last call,
    nothing is written. Processes that end at the same time publish one after another, so that the
    last one has read all journals. Raises UserError if there is no such folder, and, once all is
    written, if runs had to be left out.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such results folder")

    with hold_lock(results / ".report.lock"):
        published = results / ".reported"
        state = hash_results(results, [*map(str, folders), repr(vars(tracker))])
        is_unchanged = published.exists() and published.read_text() == state
        if is_unchanged and not fresh:
            print(f"{results / 'leaderboard.csv'}: nothing has changed since it was written")
            _name_outputs(results)
            return

        board = _write_all(results, folders, tracker)
        _name_outputs(results)
        if board.problems:
            published.unlink(missing_ok=True)  # the next call complains again
            raise UserError(problems_line(board))
        write_atomic(published, state.encode())


def _write_all(results: Path, folders: Sequence[Path], tracker: Tracker) -> Board:
    """Write and print each part, from the quickest to the slowest."""
    # 1. Tables.
    board = build(results)
    write_exports(board, results / "export")
    rows = rows_beside(board, folders)
    print(render_table(rows, metrics=board.image_metrics))
    print(f"\n{results / 'leaderboard.csv'}: {len(board.runs)} runs")
    others = len(protocols(board.frame)) - len(protocols(rows))
    if others:
        boards = "board is" if others == 1 else "boards are"
        print(f"{others} other {boards} there: results={results} 'stages=[report]' prints all")
    if board.excluded:
        print(excluded_line(board))

    # 2. Pictures. PDF figures take seconds: they are drawn only if no run was made before.
    shown = [folder for folder in folders if any(run.path == folder for run in board.runs)]
    print("writing pictures and page", flush=True)
    if shown:
        write_contact_sheet(shown, results / "sheet.png")
    write_report(results, board, figures=not folders, made=folders)

    # 3. Dashboards.
    summary = tracker.publish(board, results)
    if summary:
        print(summary)
    return board


def _name_outputs(results: Path) -> None:
    """Print the files that people open."""
    print("\nOpen:")
    for name, content in OUTPUTS.items():
        if (results / name).exists():
            print(f"  {results / name}: {content}")
