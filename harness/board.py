"""`python -m harness.board pack SOURCE TARGET`: make a results folder small enough to publish.

Keeps what tables are derived from: configurations, prompts, journals and scores, compressed, and
distances of sets of images. Leaves out images, but for a few thumbnails, their features, and what
only figures are made of: most traces and partial pictures of candidates. `python -m harness
'stages=[report]' results=TARGET` then writes the same tables from it, byte for byte.

`python -m harness.board pages FOLDER` writes what a board says into README and docs, between their
marks: see harness/results/pages.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import math
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.arguments import print_error
from harness.costs import describe_bench, join_bench, lay_out, read_bench
from harness.records import Prompt, SampleRecord, UserError
from harness.results.exports import to_markdown, write_exports
from harness.results.leaderboard import Board, build, project_runs
from harness.results.pages import BENCHES, Fragment, Shown, many_at_a_time, render_pages
from harness.results.pages import FRAGMENTS as OF_RESULTS
from harness.results.report import panels, write_figures, write_thumbnail
from harness.runs.journal import find_journals, write_atomic
from harness.runs.metrics import DESCRIPTION
from harness.runs.read import Run, find_runs, read_run, read_runs

JOURNALS = ("jobs.jsonl", "records-*.jsonl", "scores*.jsonl", "timings-*.jsonl", "metrics*.jsonl")
MOST_MB = 32.0
"""Size of a board's packed journals, at most."""
THUMBNAILS = 200
"""Thumbnails of a board, at most."""
DETAILED = 128
"""Records of a journal that keep the traces and pictures in their notes, at most."""
SECONDS = re.compile(rb'("[a-z]+_s":)([0-9]+\.[0-9]+(?:e[+-]?[0-9]+)?|[0-9]+e-[0-9]+)')
"""A number of seconds in a journal."""
FIGURE_ONLY = ("trace", "pictures")
"""Notes that only figures are made of."""
README = """# Board

{runs} complete runs, without their images. They were made, in a folder of their own, by

```
{sweeps}
python -m harness.board pack FOLDER results/board
```

at {commits}. The tables here follow from the journals alone; this writes them again, byte for byte:

```
python -m harness 'stages=[report]' results=results/board
```

`leaderboard.csv` has a row for each run, `metrics.csv` one for each run and metric, \
`curves.csv` one for each method
and currency; `export/` holds Markdown, LaTeX, the hub's format, and what papers claim.

Seconds were measured on a shared machine, whose load differed between runs: \
compare tokens and passes.

{figures}

{table}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.board",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    packing = kinds.add_parser("pack", help="pack the complete runs of a results folder")
    packing.add_argument("source", type=Path)
    packing.add_argument("target", type=Path)
    packing.add_argument(
        "--experiments",
        nargs="+",
        default=["embedded_board"],
        metavar="NAME",
        help="the sweeps that made it, for its README",
    )
    showing = kinds.add_parser("pages", help="write a board's numbers into README and docs")
    showing.add_argument("board", type=Path, nargs="?", default=Path("results/board"))
    showing.add_argument("--root", type=Path, default=Path(), help="the repository, with its pages")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.kind == "pages":
            return show(chosen.board, chosen.root)
        return pack(chosen.source, chosen.target, chosen.experiments)
    except UserError as error:
        return print_error(error)


def show(folder: Path, root: Path) -> int:
    """Write the numbers of a board into the pages of a repository.

    Raises UserError for a board without a run, and for a mark that cannot be filled.
    """
    found = read_runs(folder)
    if not found.runs:
        raise UserError(f"{folder}: no runs there; name a board or a results folder")
    board = project_runs(found.runs, found.problems)
    for path, text in render_pages(board, root, FRAGMENTS).items():
        is_new = path.read_text(encoding="utf-8") != text
        write_atomic(path, text.encode())
        print(f"{path}: {'written' if is_new else 'as it was'}")
    return 0


def write_times(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return times of a bench's file over plain sampling's, and places by passes and by time."""
    bench = read_bench(shown.root / BENCHES / f"{' '.join(words)}.csv")
    times = bench.by_run(join_bench(shown.board, bench))
    timed = shown.board.frame[shown.board.frame["fingerprint"].isin(times.keys())]
    once = many_at_a_time(timed).sort_values("images", ascending=False, kind="stable")
    once = once.drop_duplicates(["method", "params", "candidates"])
    return "\n".join(lay_out(describe_bench(once, times), markdown=True))


FRAGMENTS: Mapping[str, Fragment] = {**OF_RESULTS, "times": write_times}
"""What a mark of a page may ask for."""


def pack(source: Path, target: Path, experiments: Sequence[str]) -> int:
    """Pack the complete runs of `source` into `target`, whose former board is replaced.

    Raises UserError for a source without a complete run, for a target with runs that are not
    packed, and where the journals are larger than a board may be.
    """
    # 1. Refuse, before anything is written.
    runs = [read_run(folder) for folder in find_runs(source)]
    complete = [run for run in runs if _may_be_packed(run)]
    if not complete:
        raise UserError(
            f"{source}: none of its {len(runs)} runs is complete; run its sweep again to finish it"
        )
    former = find_runs(target) if target.is_dir() else []
    for folder in former:
        if not (folder / "records-0.jsonl.gz").exists():
            raise UserError(f"{folder} is not packed, and would be lost: choose another target")

    packed = _pack_runs(complete, source)
    size_mb = sum(map(len, packed.values())) / 1e6
    if size_mb > MOST_MB:
        raise UserError(
            f"{source}: its journals take {size_mb:.1f} MB packed, a board at most {MOST_MB:g} MB"
        )

    # 2. Replace the former board's runs.
    for folder in former:
        shutil.rmtree(folder)
    for path, data in packed.items():
        write_atomic(target / path, data)

    # 3. Derive all else from the packed runs.
    _write_tables(target, experiments)
    _write_thumbnails(complete, target / "report" / "thumbs")

    for run in runs:
        if run not in complete:
            print(f"left out: {run.path} ({_reason_left_out(run)})")
    print(f"{target}: {len(complete)} runs, {size_mb:.2f} MB of journals")
    return 0


def _may_be_packed(run: Run) -> bool:
    return run.complete and not run.unjudged and not run.excluded


def _reason_left_out(run: Run) -> str:
    missing = len(run.planned) - len(run.done)
    return run.excluded or f"{missing} images missing, {len(run.unjudged)} unjudged"


# --- journals -------------------------------------------------------------------------------------


def _pack_runs(runs: Sequence[Run], source: Path) -> dict[Path, bytes]:
    """Return the packed files of all runs, by their places below `source`."""
    packed = {}
    for run in runs:
        for name, data in _pack_run(run.path).items():
            packed[run.path.relative_to(source) / name] = data
    return packed


def _pack_run(folder: Path) -> dict[str, bytes]:
    """Return a run folder's files, journals compressed; equal files give equal bytes."""
    files = {"config.yaml": (folder / "config.yaml").read_bytes()}
    if (folder / DESCRIPTION).exists():
        files[DESCRIPTION] = (folder / DESCRIPTION).read_bytes()
    for name in JOURNALS:
        for path in find_journals(folder, name):
            if path.exists():
                plain_name = path.name.removesuffix(".gz")
                files[f"{plain_name}.gz"] = _pack_journal(path)
    for path in sorted(folder.glob("set_metrics*.json")):
        files[path.name] = path.read_bytes()
    return files


def _pack_journal(path: Path) -> bytes:
    """Return a journal compressed, and thinned if it is one of records."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if path.name.startswith("records-"):
        data = _thin_records(data)
    return gzip.compress(data, mtime=0)


def _thin_records(journal: bytes) -> bytes:
    """Round seconds; remove traces and pictures from all but `DETAILED` records, spread evenly."""
    lines = [_round_seconds(line) for line in journal.splitlines(keepends=True)]
    detailed = []
    for number, line in enumerate(lines):
        if b'"trace":' in line or b'"pictures":' in line:
            detailed.append(number)

    every = math.ceil(len(detailed) / DETAILED) or 1
    for number in set(detailed) - set(detailed[::every]):
        record = SampleRecord.from_json(lines[number].decode())
        thinned = dataclasses.replace(record, notes=_thin_notes(record.notes))
        lines[number] = f"{thinned.to_json()}\n".encode()
    return b"".join(lines)


def _round_seconds(line: bytes) -> bytes:
    """Round the seconds of a record to microseconds: most of a journal's bytes are their digits."""

    def write(found: re.Match[bytes]) -> bytes:
        return found[1] + repr(round(float(found[2]), 6)).encode()

    return SECONDS.sub(write, line)


def _thin_notes(notes: Any) -> Any:
    """Return notes without what only figures are made of, at any depth."""
    if isinstance(notes, Mapping):
        kept = [name for name in notes if name not in FIGURE_ONLY]
        return {name: _thin_notes(notes[name]) for name in kept}
    if isinstance(notes, list):
        return [_thin_notes(value) for value in notes]
    return notes


# --- what is derived ------------------------------------------------------------------------------


def _write_tables(target: Path, experiments: Sequence[str]) -> None:
    """Write tables, exports, README, and scaling curves of the two largest panels."""
    board = build(target)
    write_exports(board, target / "export")

    figures = target / "figures"
    largest = sorted(panels(board), key=lambda panel: -len(panel.shown))[:2]
    shutil.rmtree(figures, ignore_errors=True)
    names = write_figures(largest, figures, only=("scaling",), kind="svg")

    write_atomic(target / "README.md", _readme(board, experiments, names).encode())


def _readme(board: Board, experiments: Sequence[str], figures: Sequence[str]) -> str:
    commits = set()
    for run in board.runs:
        commits |= {record.stamp.get("commit", "") for record in run.done.values()}
    return README.format(
        runs=len(board.runs),
        sweeps="\n".join(
            f"python -m harness -m experiment={name} results=FOLDER" for name in experiments
        ),
        commits=" ".join(sorted(commits)),
        figures="\n".join(f"![{name}](figures/{name}.svg)" for name in figures),
        table=to_markdown(board),
    )


def _write_thumbnails(runs: Sequence[Run], folder: Path) -> None:
    """Write at most `THUMBNAILS` thumbnails, in place of older ones: a few rows of the gallery.

    Takes the first image of prompts of each category in turn. A prompt is shown for all runs that
    have it or for none.
    """
    shutil.rmtree(folder, ignore_errors=True)
    written = 0
    for prompt_id in _prompts_by_turns(runs):
        key = (prompt_id, 0)
        by_image = {run.done[key].image_sha: run for run in runs if key in run.done}
        if written + len(by_image) > THUMBNAILS:
            return
        for run in by_image.values():
            written += bool(write_thumbnail(run, key, folder))


def _prompts_by_turns(runs: Sequence[Run]) -> list[str]:
    """Return the ids of all prompts: the first of each category, then the second, ..."""
    prompts: dict[str, Prompt] = {}
    for run in runs:
        prompts |= run.prompts
    turns: Counter[str] = Counter()
    order: list[tuple[int, str]] = []
    for prompt_id in sorted(prompts):
        category = prompts[prompt_id].category
        order.append((turns[category], prompt_id))
        turns[category] += 1
    return [prompt_id for _, prompt_id in sorted(order)]


if __name__ == "__main__":
    sys.exit(main())
