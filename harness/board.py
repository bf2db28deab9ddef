"""`python -m harness.board pack SOURCE TARGET`: a results folder made small enough to publish.

Keeps what tables are derived from (configurations, prompts, journals, scores; journals compressed)
and leaves images out, but for a few thumbnails, and most traces and partial pictures of candidates,
which only figures are made of. `python -m harness 'stages=[report]' results=TARGET` then writes the
same tables from it, byte for byte.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import math
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.cli import print_error
from harness.records import SampleRecord, UserError
from harness.results.exports import to_markdown, write_exports
from harness.results.leaderboard import Board, build
from harness.results.report import panels, write_figures, write_thumbnail
from harness.runs.journal import find_journals, write_atomic
from harness.runs.read import Run, find_runs, read_run

JOURNALS = ("jobs.jsonl", "records-*.jsonl", "scores*.jsonl", "timings-*.jsonl")
MOST_MB = 16.0
THUMBNAILS = 200
"""Most of them."""
DETAILED = 128
"""Records of a journal that keep the traces and pictures in their notes, at most."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.board", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    packing = kinds.add_parser("pack", help="pack the complete runs of a results folder")
    packing.add_argument("source", type=Path)
    packing.add_argument("target", type=Path)
    packing.add_argument(
        "--experiment", default="embedded_board", help="the sweep that made it, for its README"
    )
    chosen = parser.parse_args(arguments)
    try:
        return pack(chosen.source, chosen.target, chosen.experiment)
    except UserError as error:
        return print_error(error)


def pack(source: Path, target: Path, experiment: str) -> int:
    """Pack the complete runs of `source` into `target`, whose former board is replaced.

    Raises UserError for a source without a complete run, for a target with runs that are not
    packed, and where the journals are larger than a board may be.
    """
    runs = [read_run(folder) for folder in find_runs(source)]
    complete = [run for run in runs if run.complete and not run.unjudged and not run.excluded]
    if not complete:
        raise UserError(
            f"{source}: none of its {len(runs)} runs is complete; run its sweep again to finish it"
        )
    former = find_runs(target) if target.is_dir() else []
    if open_ones := [folder for folder in former if not (folder / "records-0.jsonl.gz").exists()]:
        raise UserError(f"{open_ones[0]} is not packed, and would be lost: choose another target")
    packed = {
        run.path.relative_to(source) / name: data
        for run in complete
        for name, data in _packed(run.path).items()
    }
    size_mb = sum(map(len, packed.values())) / 1e6
    if size_mb > MOST_MB:
        raise UserError(
            f"{source}: its journals take {size_mb:.1f} MB packed, a board at most {MOST_MB:g} MB"
        )
    for folder in former:
        shutil.rmtree(folder)
    for path, data in packed.items():
        write_atomic(target / path, data)
    board = build(target)
    write_exports(board, target / "export")
    largest = sorted(panels(board), key=lambda panel: -len(panel.shown))[:2]
    shutil.rmtree(target / "figures", ignore_errors=True)
    plots = write_figures(largest, target / "figures", only=("scaling",), kind="svg")
    write_atomic(target / "README.md", _readme(board, experiment, plots).encode())
    _thumbnails(complete, target / "report" / "thumbs")
    for run in runs:
        if run not in complete:
            print(
                f"left out: {run.path} ({run.excluded or _gap(len(run.planned) - len(run.done), len(run.unjudged))})"
            )
    print(f"{target}: {len(complete)} runs, {size_mb:.2f} MB of journals")
    return 0


def _packed(folder: Path) -> dict[str, bytes]:
    """A run folder's files, journals compressed; equal files give equal bytes."""
    files = {"config.yaml": (folder / "config.yaml").read_bytes()}
    for path in (
        path for name in JOURNALS for path in find_journals(folder, name) if path.exists()
    ):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if path.name.startswith("records-"):
            data = _thinned(data)
        files[path.name.removesuffix(".gz") + ".gz"] = gzip.compress(data, mtime=0)
    return files


def _thinned(journal: bytes) -> bytes:
    """A journal of records of which no more than `DETAILED`, spread evenly, have traces or
    pictures.
    """
    lines = journal.splitlines(keepends=True)
    heavy = [
        number for number, line in enumerate(lines) if b'"trace":' in line or b'"pictures":' in line
    ]
    for number in set(heavy) - set(heavy[:: math.ceil(len(heavy) / DETAILED) or 1]):
        record = SampleRecord.from_json(lines[number].decode())
        lines[number] = (
            f"{dataclasses.replace(record, notes=_light(record.notes)).to_json()}\n".encode()
        )
    return b"".join(lines)


def _light(note: Any) -> Any:
    """Notes without what only figures are made of, at any depth."""
    if isinstance(note, Mapping):
        return {
            name: _light(value) for name, value in note.items() if name not in ("trace", "pictures")
        }
    return [_light(value) for value in note] if isinstance(note, list) else note


def _gap(missing: int, unjudged: int) -> str:
    return f"{missing} images missing, {unjudged} unjudged"


def _thumbnails(runs: Sequence[Run], folder: Path) -> None:
    """The first images of some prompts, in turn from each category, for every run that has them: a
    few rows of gallery.

    Older ones are removed. A prompt is shown for all of its runs or not at all.
    """
    shutil.rmtree(folder, ignore_errors=True)
    prompts = {prompt.id: prompt for run in runs for prompt in run.prompts.values()}
    turns: Counter[str] = Counter()
    order: list[tuple[int, str]] = []
    for prompt in sorted(prompts.values(), key=lambda prompt: prompt.id):
        order.append((turns[prompt.category], prompt.id))
        turns[prompt.category] += 1
    made = 0
    for _, prompt_id in sorted(order):
        shown = {
            run.done[prompt_id, 0].image_sha: run for run in runs if (prompt_id, 0) in run.done
        }
        if made + len(shown) > THUMBNAILS:
            return
        made += sum(bool(write_thumbnail(run, (prompt_id, 0), folder)) for run in shown.values())


def _readme(board: Board, experiment: str, plots: Sequence[str]) -> str:
    commits = " ".join(
        sorted(
            {record.stamp.get("commit", "") for run in board.runs for record in run.done.values()}
        )
    )
    return f"""# Board

{len(board.runs)} complete runs, without their images. They were made, in a folder of their own, by

```
python -m harness -m experiment={experiment} results=FOLDER
python -m harness.board pack FOLDER results/board
```

at {commits}. The tables here follow from the journals alone; this writes them again, byte for byte:

```
python -m harness 'stages=[report]' results=results/board
```

`leaderboard.csv` has a row for each run, `metrics.csv` one for each run and metric, `curves.csv` one for each method
and currency; `export/` holds Markdown, LaTeX, the hub's format, and what papers claim.

Seconds were measured on a shared machine, whose load differed between runs: compare tokens and passes.

{chr(10).join(f"![{name}](figures/{name}.svg)" for name in plots)}

{to_markdown(board)}"""


if __name__ == "__main__":
    sys.exit(main())
