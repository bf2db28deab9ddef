"""Print a result file as Markdown tables, as the README and docs/results.md show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.check.gpu.finding import Status
from harness.check.gpu.journal import Journal, Line
from harness.check.gpu.plan import STEPS

FACTS = ("driver", "cuda", "torch", "triton", "python", "commit", "date")
"""Facts of the header that are printed above the tables, besides the device."""


def format_tables(journal: Journal) -> str:
    """Format the machine, a row for each step, and what failed or was not run."""
    blocks = [_format_header(journal), _format_steps(journal.lines)]
    speed = [
        line for line in journal.lines if line.step == "speed" and "ms_per_step" in line.figures
    ]
    if speed:
        blocks.append(_format_speed(speed))
    others = [line for line in journal.lines if line.status != "passed"]
    if others:
        blocks.append(format_lines(others))
    return "\n\n".join(blocks)


def format_lines(lines: Sequence[Line]) -> str:
    """Format lines one below the other: step, part, status, headline, seconds."""
    rows = []
    for line in lines:
        what = line.reason or line.headline
        rows.append(f"- {line.step}, {line.part}: {line.status} ({line.seconds:.1f} s) {what}")
    return "\n".join(rows)


def _format_header(journal: Journal) -> str:
    header = journal.header
    facts = [f"{fact} {header[fact]}" for fact in FACTS if header.get(fact)]
    dirty = " (with changes that are not committed)" if header.get("dirty") else ""
    return f"{header['device']}: {', '.join(facts)}{dirty}"


def _format_steps(lines: Sequence[Line]) -> str:
    rows = ["| step | what | verdict | figures | min |", "|---|---|---|---|---|"]
    for number, step in enumerate(STEPS, 1):
        own = [line for line in lines if line.step == step.name]
        minutes = sum(line.seconds for line in own) / 60
        cells = [f"{number} {step.name}", step.about, _sum_up(own), _join(own), f"{minutes:.1f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _sum_up(lines: Sequence[Line]) -> str:
    """Sum up the verdicts of a step's parts: "passed", or how many of them did what."""
    counts: dict[Status, int] = {}
    for line in lines:
        counts[line.status] = counts.get(line.status, 0) + 1
    if not counts:
        return "not run"
    if len(counts) == 1:
        return next(iter(counts))
    order: tuple[Status, ...] = ("failed", "passed", "not run")
    return ", ".join(f"{counts[status]} {status}" for status in order if status in counts)


def _join(lines: Sequence[Line]) -> str:
    """Join the headlines of a step's parts; parts of many lines show the first and the number."""
    return "; ".join(_headlines(lines))


def _headlines(lines: Sequence[Line]) -> Iterator[str]:
    shown = [line for line in lines if line.headline]
    for line in shown[:MOST_HEADLINES]:
        yield f"{line.part}: {line.headline}"
    if len(shown) > MOST_HEADLINES:
        yield f"and {len(shown) - MOST_HEADLINES} more"


MOST_HEADLINES = 8
"""Parts of a step whose figures are shown in its row."""


def _format_speed(lines: Sequence[Line]) -> str:
    rows = [
        "| model, images | s | ms a step | share of the floor | times the loop | times the peer "
        "| launches a step |",
        "|---|---|---|---|---|---|---|",
    ]
    names = ("seconds", "ms_per_step", "share_of_floor", "over_loop", "over_peer", "launches")
    for line in lines:
        cells = [_number(line.figures.get(name)) for name in names]
        rows.append(f"| {line.part} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else ""
