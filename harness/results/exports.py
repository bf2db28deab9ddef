"""The leaderboard in the forms that papers, repositories and the hub take.

    export/leaderboard.md    Markdown, a table for each protocol
    export/leaderboard.tex   LaTeX with booktabs; best bold, ties with the best marked
    export/claimed.csv, .md  what papers claim beside what was measured, never mixed with it
    export/eval_results/     one file a run in the hub's `.eval_results` format

The hub takes the last ones into a model repository's `.eval_results/` once the benchmark is a data
set there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from harness.results import claims
from harness.results.leaderboard import Board, excluded_line, heading, protocols, resolved, to_csv
from harness.runs.journal import write_atomic
from harness.runs.read import format_options

LEGEND = (
    "Score: mean over categories of prompt means, with its 95 % interval (cluster bootstrap over prompts). Tie: runs "
    "of one group cannot be told apart from its best. Differences are paired by prompt; in brackets: not resolved. "
    "Best-of-N: at equal visual tokens. At worst: with 95 % confidence no further below plain, for methods that draw "
    "one image's tokens."
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


def write_exports(board: Board, folder: Path) -> None:
    """Write all of them below `folder`; files of runs that are no longer there are removed."""
    published = claims.beside(board)
    write_atomic(folder / "leaderboard.md", markdown(board).encode())
    write_atomic(folder / "leaderboard.tex", latex(board).encode())
    write_atomic(folder / "claimed.csv", to_csv(published))
    write_atomic(folder / "claimed.md", claimed_markdown(published).encode())
    results = {
        f"{run.about['method']}-{run.fingerprint}.yaml": i for i, run in enumerate(board.runs)
    }
    for old in (folder / "eval_results").glob("*.yaml"):
        if old.name not in results:
            old.unlink()
    for name, i in results.items():
        write_atomic(folder / "eval_results" / name, eval_results(board, i).encode())


def markdown(board: Board) -> str:
    """The board as Markdown; the best run of a protocol is bold, ties with it carry a dagger."""
    if board.frame.empty:
        return "No run.\n"
    parts = []
    for runs in protocols(board.frame):
        lines = [_pipe(HEADS), _pipe(["---"] * len(HEADS))]
        for _, row in runs.iterrows():
            method, score, *cells = _cells(row)
            mark = {"best": f"**{score}**", "tied": f"{score} †"}.get(_standing(row, runs), score)
            lines.append(_pipe([_escape_pipe(method), mark, *cells]))
        parts.append("\n".join([f"### {heading(runs)}", "", *lines]))
    if board.excluded:
        parts.append(excluded_line(board))
    return "\n\n".join([*parts, f"† tied with the best. {LEGEND}"]) + "\n"


def latex(board: Board) -> str:
    """The board as LaTeX tables; they need the package booktabs."""
    if board.frame.empty:
        return "% no run\n"
    tables = []
    for runs in protocols(board.frame):
        lines = []
        for _, row in runs.iterrows():
            method, score, *cells = (_tex(cell) for cell in _cells(row))
            mark = {"best": rf"\textbf{{{score}}}", "tied": rf"{score}$^{{\dagger}}$"}.get(
                _standing(row, runs), score
            )
            lines.append(" & ".join([method, mark, *cells]) + r" \\")
        tables.append(
            "\n".join(
                [
                    rf"% {heading(runs)}, protocol {runs['protocol'].iloc[0]}",
                    rf"\begin{{tabular}}{{ll{'r' * (len(HEADS) - 2)}}}",
                    r"\toprule",
                    " & ".join(map(_tex, HEADS)) + r" \\",
                    r"\midrule",
                    *lines,
                    r"\bottomrule",
                    r"\end{tabular}",
                ]
            )
        )
    note = rf"% $^{{\dagger}}$ tied with the best. {LEGEND}"
    return "\n\n".join(["% needs \\usepackage{booktabs}", *tables, note]) + "\n"


def claimed_markdown(published: pd.DataFrame) -> str:
    """Published numbers as Markdown, marked as claimed, with what was measured beside them."""
    heads = (
        "claimed by",
        "benchmark",
        "model",
        "method",
        "metric",
        "claimed",
        "measured here",
        "verdict",
    )
    lines = [_pipe(heads), _pipe(["---"] * len(heads))]
    for _, row in published.iterrows():
        method = f"{row['method']} n={row['n']}" if row["n"] is not None else str(row["method"])
        measured = f"{row['measured']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
        cells = (
            row["source"],
            row["benchmark"] or "any",
            row["model"] or "not stated",
            method,
            row["metric"],
        )
        numbers = (
            f"{row['claimed']:.4g} (claimed)",
            "" if pd.isna(row["measured"]) else measured,
            row["verdict"],
        )
        lines.append(_pipe([_escape_pipe(str(cell)) for cell in (*cells, *numbers)]))
    return "\n".join(["# Claimed, not measured here", "", *lines]) + "\n"


def eval_results(board: Board, i: int) -> str:
    """A run in the hub's `.eval_results` format: its score and the mean of every category."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    run = board.runs[i]
    row = board.frame.iloc[i]
    about = f"{run.name}; {len(run.prompts)} prompts x {row['images_per_prompt']} images; judge {run.judge}"
    quality = board.metrics[
        (board.metrics["fingerprint"] == run.fingerprint)
        & board.metrics["metric"].str.startswith("quality/")
    ]
    entries = [
        EvalResultEntry(
            dataset_id=str(row["benchmark"]),
            task_id=str(one.metric).removeprefix("quality/"),
            value=round(float(one.value), 4),  # type: ignore[arg-type]
            notes=f"{about}; 95 % interval {one.ci_low:.4f} to {one.ci_high:.4f}; run {run.fingerprint}",
        )
        for one in quality.itertuples()
    ]
    return str(
        yaml.safe_dump(
            eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True, width=1000
        )
    )


def _cells(row: pd.Series) -> list[str]:
    return [
        f"{row['method']} {format_options(row['params'], row['candidates'])}".strip()
        + (", one at a time" if row["concurrency"] == 1 else "")
        + (
            f" ({row['missing'] + row['failed']} images missing)"
            if row["missing"] + row["failed"]
            else ""
        ),
        f"{row['score']:.3f} [{_or_dash(row['ci_low'])}, {_or_dash(row['ci_high'])}]",
        "" if pd.isna(row["tie_group"]) else f"{row['tie_group']:.0f}",
        "" if pd.isna(row["rank_low"]) else f"{row['rank_low']:.0f}-{row['rank_high']:.0f}",
        _difference(row, "vs_plain"),
        _difference(row, "vs_bon"),
        "" if pd.isna(row["worse_at_most"]) else f"{row['worse_at_most']:+.3f}",
        _or_dash(row["visual_tokens"], 0),
        _or_dash(row["target_passes"], 1),
        _or_dash(row["device_s"] + row["judge_s"]),
    ]


def _difference(row: pd.Series, name: str) -> str:
    if pd.isna(row[name]):
        return ""
    text = f"{row[name]:+.3f} [{_or_dash(row[f'{name}_low'])}, {_or_dash(row[f'{name}_high'])}]"
    return text if resolved(row, name) else f"({text})"


def _standing(row: pd.Series, runs: pd.DataFrame) -> str:
    if row["score"] == runs["score"].max() and len(runs) > 1:
        return "best"
    return "tied" if row["tie_group"] == 1 else ""


def _or_dash(value: float, digits: int = 3) -> str:
    return "-" if pd.isna(value) else f"{value:.{digits}f}"


def _pipe(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape_pipe(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _tex(text: str) -> str:
    """Text with what LaTeX reads as commands made harmless."""
    special = {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
    }
    return "".join({**special, "^": r"\textasciicircum{}"}.get(c, c) for c in text)
