"""Write all that a results folder adds up to: tables, exports, contact sheet, report page and
dashboard.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.records import UserError
from harness.results.contact_sheet import write_sheet
from harness.results.exports import write_exports
from harness.results.leaderboard import build, excluded_line
from harness.results.report import write_report
from harness.results.terminal_table import render_table
from harness.results.wandb import Tracker
from harness.runs.journal import write_atomic
from harness.runs.lock import hold_lock
from harness.sweeps.finished import hash_results


def publish(
    results: Path, folders: Sequence[Path], tracker: Tracker, *, fresh: bool = True
) -> None:
    """Write tables and pages of a results folder, one process at a time: who comes last has seen
    all journals.

    If nothing is `fresh`, and no journal has changed since the last report, that one stands.
    """

    if not results.is_dir():
        raise UserError(f"{results}: no such results folder")
    with hold_lock(results / ".report.lock"):
        before = results / ".reported"
        state = hash_results(results, [*map(str, folders), repr(vars(tracker))])
        if not fresh and before.exists() and before.read_text() == state:
            print(f"{results / 'leaderboard.csv'}: nothing has changed since it was written")
            return
        board = build(results)
        write_exports(board, results / "export")
        print(render_table(board.frame))
        print(f"\n{results / 'leaderboard.csv'}: {len(board.runs)} runs")
        if board.excluded:
            print(excluded_line(board))
        if folders:
            print(f"{write_sheet(list(folders), results / 'sheet.png')}: prompts x methods")
        page = write_report(
            results, board, figures=not folders
        )  # they take seconds: only where the report is all
        print(f"{page}: figures and gallery")
        if said := tracker.publish(board, results):
            print(said)
        write_atomic(before, state.encode())
