"""Write the leaderboard in the forms that papers, repositories and the model hub take.

    export/leaderboard.md    Markdown, a table for each protocol
    export/leaderboard.tex   LaTeX with booktabs; best bold, ties with the best marked
    export/claimed.csv, .md  published numbers beside measured ones, never mixed with them
    export/eval_results/     one file for each run in the hub's `.eval_results` format

The hub takes those files into a model repository's `.eval_results/` once the benchmark is a data
set there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import yaml

from harness.results.claims import compare_with_claims
from harness.results.labels import ONE_AT_A_TIME
from harness.results.leaderboard import (
    Board,
    excluded_line,
    heading,
    problems_line,
    protocols,
    resolved,
    to_csv,
)
from harness.results.set_words import DISTANCES, explain_sets, list_distances
from harness.runs.journal import write_atomic

LEGEND = (
    "Score: mean over categories of prompt means, with its 95 % interval (cluster bootstrap over "
    "prompts). Tie: runs of one group cannot be told apart from its best. Differences are paired "
    "by prompt; in brackets: not resolved. Best-of-N: at equal visual tokens. At worst: with 95 % "
    "confidence no further below plain, for methods that draw one image's tokens."
)
HEADS = (
    "method",
    "score",
    "tie",
    "ranks",
    "vs plain",
    "vs Best-of-N",
    "at worst",
    "tokens",
    "passes",
    "seconds",
)
CLAIM_HEADS = (
    "claimed by",
    "benchmark",
    "model",
    "method",
    "metric",
    "claimed",
    "measured here",
    "verdict",
)
LATEX_ESCAPES = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def write_exports(board: Board, folder: Path) -> None:
    """Write all exports below `folder`; files of runs that are no longer there are removed."""
    claims = compare_with_claims(board)
    write_atomic(folder / "leaderboard.md", to_markdown(board).encode())
    write_atomic(folder / "leaderboard.tex", to_latex(board).encode())
    write_atomic(folder / "claimed.csv", to_csv(claims))
    write_atomic(folder / "claimed.md", claims_to_markdown(claims).encode())

    results = {}
    for i, run in enumerate(board.runs):
        if not run.is_scored:
            continue
        name = f"{run.about['method']}-{run.fingerprint}.yaml"
        results[name] = to_eval_results(board, i)
    for former in (folder / "eval_results").glob("*.yaml"):
        if former.name not in results:
            former.unlink()
    for name, text in results.items():
        write_atomic(folder / "eval_results" / name, text.encode())


# --- Markdown -------------------------------------------------------------------------------------


def to_markdown(board: Board) -> str:
    """Render the board as Markdown: a protocol's best run is bold, ties with it have a dagger."""
    if board.frame.empty:
        return "No run.\n"
    parts = []
    for runs in protocols(board.frame):
        metrics = _list_metrics(runs, board)
        distances = list_distances(runs)
        heads = [*HEADS, *metrics, *(DISTANCES[name] for name in distances)]
        lines = [f"### {heading(runs)}", "", *_pipe_head(heads)]
        for _, row in runs.iterrows():
            method, score, *cells = [
                *_cells(row),
                *_metric_cells(row, metrics),
                *(_or_dash(row[name]) for name in distances),
            ]
            marked = {"best": f"**{score}**", "tied": f"{score} †", "": score}
            score = marked[_status(row, runs)]
            lines.append(_pipe_row([_escape_pipe(method), score, *cells]))
        parts.append("\n".join(lines))
        parts += [_escape_pipe(line) for line in explain_sets(runs)]
    parts += [line for line in (excluded_line(board), problems_line(board)) if line]
    parts.append(f"† tied with the best. {LEGEND}")
    return "\n\n".join(parts) + "\n"


def claims_to_markdown(claims: pd.DataFrame) -> str:
    """Render published numbers as Markdown, marked as claimed, beside what was measured."""
    lines = ["# Claimed, not measured here", "", *_pipe_head(CLAIM_HEADS)]
    for _, row in claims.iterrows():
        method = str(row["method"])
        if row["n"] is not None:
            method += f" n={row['n']}"
        interval = f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
        measured = f"{row['measured']:.3f} {interval}"
        cells = (
            row["source"],
            row["benchmark"] or "any",
            row["model"] or "not stated",
            method,
            row["metric"],
            f"{row['claimed']:.4g} (claimed)",
            "" if pd.isna(row["measured"]) else measured,
            row["verdict"],
        )
        lines.append(_pipe_row([_escape_pipe(str(cell)) for cell in cells]))
    return "\n".join(lines) + "\n"


def _pipe_head(heads: Sequence[str]) -> list[str]:
    return [_pipe_row(heads), _pipe_row(["---"] * len(heads))]


def _pipe_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape_pipe(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# --- LaTeX ----------------------------------------------------------------------------------------


def to_latex(board: Board) -> str:
    """Render the board as LaTeX tables; they need the package booktabs."""
    if board.frame.empty:
        return "% no run\n"
    tables = []
    for runs in protocols(board.frame):
        tables.append(_latex_table(runs, _list_metrics(runs, board)))
    note = rf"% $^{{\dagger}}$ tied with the best. {LEGEND}"
    return "\n\n".join(["% needs \\usepackage{booktabs}", *tables, note]) + "\n"


def _latex_table(runs: pd.DataFrame, metrics: Mapping[str, int]) -> str:
    """Render the rows of one protocol, with the metrics of its images."""
    distances = list_distances(runs)
    heads = [*HEADS, *metrics, *(DISTANCES[name] for name in distances)]
    lines = [
        rf"% {heading(runs)}, protocol {runs['protocol'].iloc[0]}",
        rf"\begin{{tabular}}{{ll{'r' * (len(heads) - 2)}}}",
        r"\toprule",
        _latex_row([_escape_latex(head) for head in heads]),
        r"\midrule",
    ]
    for _, row in runs.iterrows():
        written = [
            *_cells(row),
            *_metric_cells(row, metrics),
            *(_or_dash(row[name]) for name in distances),
        ]
        method, score, *cells = map(_escape_latex, written)
        marked = {
            "best": rf"\textbf{{{score}}}",
            "tied": rf"{score}$^{{\dagger}}$",
            "": score,
        }
        score = marked[_status(row, runs)]
        lines.append(_latex_row([method, score, *cells]))
    notes = [f"% {line}" for line in explain_sets(runs)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes])


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escape_latex(text: str) -> str:
    """Escape the characters that LaTeX reads as commands."""
    return "".join(LATEX_ESCAPES.get(character, character) for character in text)


# --- the hub's format -----------------------------------------------------------------------------


def to_eval_results(board: Board, i: int) -> str:
    """Render the board's i-th run in the hub's `.eval_results` format: score and categories."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    run = board.runs[i]
    row = board.frame.iloc[i]
    about = f"{board.labels[i]}; {len(run.prompts)} prompts x {row['images_per_prompt']} images"
    of_run = board.metrics["fingerprint"] == run.fingerprint
    of_quality = board.metrics["metric"].str.startswith("quality/")
    entries = []
    for _, metric in board.metrics[of_run & of_quality].iterrows():
        task = str(metric["metric"]).removeprefix("quality/")
        judge = run.metrics[task].about.id if task in run.metrics else run.judge
        interval = f"95 % interval {metric['ci_low']:.4f} to {metric['ci_high']:.4f}"
        entry = EvalResultEntry(
            dataset_id=str(row["benchmark"]),
            task_id=task,
            value=round(float(metric["value"]), 4),
            notes=f"{about}; judge {judge}; {interval}; run {run.fingerprint}",
        )
        entries.append(entry)
    document = eval_result_entries_to_yaml(entries)
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000))


# --- cells ----------------------------------------------------------------------------------------


def _cells(row: pd.Series) -> list[str]:
    """Return a run's cells in the order of HEADS."""
    method = str(row["label"])
    if row["concurrency"] == 1 and ONE_AT_A_TIME not in method:
        method += f", {ONE_AT_A_TIME}"
    if absent := row["missing"] + row["failed"]:
        method += f" ({absent} images missing)"
    return [
        method,
        write_score(row),
        "" if pd.isna(row["tie_group"]) else f"{row['tie_group']:.0f}",
        "" if pd.isna(row["rank_low"]) else f"{row['rank_low']:.0f}-{row['rank_high']:.0f}",
        write_difference(row, "vs_plain"),
        write_difference(row, "vs_bon"),
        "" if pd.isna(row["worse_at_most"]) else f"{row['worse_at_most']:+.3f}",
        _or_dash(row["visual_tokens"], digits=0),
        _or_dash(row["target_passes"], digits=1),
        _or_dash(row["device_s"] + row["judge_s"]),
    ]


def _list_metrics(runs: pd.DataFrame, board: Board) -> dict[str, int]:
    """List the metrics of images that some of the runs have, and the digits of each."""
    metrics = board.image_metrics
    return {name: metrics[name].digits for name in metrics if runs[name].notna().any()}


def _metric_cells(row: pd.Series, metrics: Mapping[str, int]) -> list[str]:
    """Return the means of a run's metrics with their intervals; "" for one that it lacks."""
    cells = []
    for name, digits in metrics.items():
        cell = ""
        if not pd.isna(row[name]):
            low = _or_dash(row[f"{name}_low"], digits)
            high = _or_dash(row[f"{name}_high"], digits)
            cell = f"{row[name]:.{digits}f} [{low}, {high}]"
        cells.append(cell)
    return cells


def write_score(row: pd.Series) -> str:
    """Return a run's score with its interval."""
    if pd.isna(row["score"]):
        return "not scored"
    return f"{row['score']:.3f} {_interval(row, 'ci')}"


def write_difference(row: pd.Series, name: str) -> str:
    """Return a difference with its interval: in brackets if it is not resolved, "" for none."""
    if pd.isna(row[name]):
        return ""
    text = f"{row[name]:+.3f} {_interval(row, name)}"
    return text if resolved(row, name) else f"({text})"


def _interval(row: pd.Series, name: str) -> str:
    low = _or_dash(row[f"{name}_low"])
    high = _or_dash(row[f"{name}_high"])
    return f"[{low}, {high}]"


def _or_dash(value: float, digits: int = 3) -> str:
    return "-" if pd.isna(value) else f"{value:.{digits}f}"


def _status(row: pd.Series, runs: pd.DataFrame) -> Literal["best", "tied", ""]:
    """Tell whether a run is the best of its protocol, or tied with it; a lone run is neither."""
    if row["score"] == runs["score"].max() and len(runs) > 1:
        return "best"
    return "tied" if row["tie_group"] == 1 else ""
