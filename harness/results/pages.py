"""Write what a board says into pages, so that nobody types a number.

A page marks the places; between its words it may look so:

    <!-- board: decoding --> ... <!-- /board -->                 a whole table
    agree in <!-- board: agreement -->96 %<!-- /board --> of    a number in a sentence
    <!-- board: benchmark NAME score spatial --> ...             the runs of another benchmark
    <!-- board: gates natural: --> ...                           gates of the model card

and a table whose words are the page's own names the run of a row in a comment, and the columns in
its mark; the cells behind the comment are written:

    <!-- board: rows score visual_tokens -->
    | `best_of_n` | the reward's favourite of four <!-- best_of_n n=4 --> | 0.745 [...] | 576 |
    <!-- /board -->

and so does one of statements, whose comments say what is compared (see `CLAIM`):

    <!-- board: claims -->
    | four beat eight <!-- gridar n=4 above best_of_n n=8 on NAME --> | -0.105 [...] | ... |
    <!-- /board -->

Runs are called METHOD, then the options that differ from the preset: "best_of_n n=8". They are of
the board's lowest seed, and of its largest protocol unless a mark names a benchmark: NAME, or
NAME/1 for its protocol of one image a prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from harness.records import UserError
from harness.results.agreement import Agreement, compare_rankings
from harness.results.exports import write_difference, write_score
from harness.results.gates import Gate, to_markdown
from harness.results.leaderboard import Board, heading, protocols
from harness.results.ranking import ONE_IMAGE, RankedGroup, drop_budget
from harness.results.relaxed import MOST_LOSS
from harness.results.stats import Difference
from harness.runs.read import Run

PAGES = (
    "README.md",
    "docs/benchmarks.md",
    "docs/methods.md",
    "docs/models.md",
    "docs/results.md",
)
"""The pages that may have marks, below the repository's root."""
MARK = re.compile(r"<!-- board: (?P<name>[^>]+?) -->(?P<old>.*?)<!-- /board -->", re.DOTALL)
RUN_OF_ROW = re.compile(r"^(?P<words>\|.*<!-- (?P<run>[^>]+?) --> \|)(?P<cells>.*)$")
CLAIM = re.compile(
    r"(?P<run>.+?) (?:(?P<above>above)|within (?P<most>[0-9.]+) of) (?P<other>.+?)"
    r"(?: on (?P<benchmark>\S+))?"
)
"""RUN above OTHER: its score is; RUN within 0.03 of OTHER: it loses at most so much."""
BENCHES = Path("results/bench")
BENCH = "methods-pictogram_80-cpu"
MACHINE = ("device", "machine")
"""Columns of a bench that say where a line was measured."""
CARD = Path("harness/models/pictogram/weights/pictogram_80/card.json")
Row = pd.Series


@dataclass(frozen=True)
class Shown:
    """A board, and the repository whose pages show it."""

    board: Board
    root: Path

    @cached_property
    def main(self) -> pd.DataFrame:
        """The rows of the protocol with the most images, of its lowest seed."""
        return self._largest(protocols(self.board.frame))

    @cached_property
    def others(self) -> list[pd.DataFrame]:
        """The rows of every other protocol."""
        main = str(self.main["protocol"].iloc[0])
        groups = [self._of_lowest_seed(runs) for runs in protocols(self.board.frame)]
        return [runs for runs in groups if str(runs["protocol"].iloc[0]) != main]

    @cached_property
    def seeds(self) -> Agreement:
        """How the rankings of the main table's two lowest seeds compare.

        Raises UserError where the board has one seed alone.
        """
        main = self.run_of(self.main.iloc[0]).protocol
        runs = [run for run in self.board.runs if run.protocol == main]
        seeds = sorted({int(run.about["seed"]) for run in runs})
        if len(seeds) < 2:
            raise UserError("the board's main table has one seed")
        first, second = ([run for run in runs if run.about["seed"] == seed] for seed in seeds[:2])
        (found,) = compare_rankings(first, second)
        return found

    def _largest(self, groups: Sequence[pd.DataFrame]) -> pd.DataFrame:
        seeds = [self._of_lowest_seed(runs) for runs in groups]
        return max(seeds, key=lambda runs: int(runs["prompts"].iloc[0] * _images(runs)))

    @staticmethod
    def _of_lowest_seed(runs: pd.DataFrame) -> pd.DataFrame:
        return runs[runs["seed"] == runs["seed"].min()]

    def of_benchmark(self, words: str) -> pd.DataFrame:
        """Return the rows of a benchmark's largest protocol, of its lowest seed.

        "NAME/1" asks for that of one image a prompt. Raises UserError where the board has no run.
        """
        name, _, images = words.partition("/")
        groups = []
        for runs in protocols(self.board.frame):
            is_asked = images in ("", str(_images(runs)))
            if is_asked and runs["benchmark"].iloc[0] == name:
                groups.append(runs)
        if not groups:
            raise UserError(f"{words}: no run of the board is of this benchmark")
        return self._largest(groups)

    def find(self, name: str, among: pd.DataFrame | None = None) -> Row:
        """Return the row of a run, "METHOD", "METHOD n=4" or "METHOD cap=2".

        It is among these rows, or those of the main protocol. Raises UserError unless there is
        exactly one.
        """
        method, *options = name.split()
        budget = [option for option in options if re.fullmatch(r"n=\d+", option)]
        params = ", ".join(option for option in options if option not in budget)
        found = many_at_a_time(self.main if among is None else among)
        found = found[found["method"] == method]
        found = found[found["params"].map(drop_budget) == params]
        for option in budget:
            found = found[found["candidates"] == int(option.removeprefix("n="))]
        if len(found) != 1:
            where = "main table" if among is None else f"{among['benchmark'].iloc[0]} table"
            raise UserError(f"{name}: {len(found)} runs of the board's {where} are called so")
        return found.iloc[0]

    def run_of(self, row: Row) -> Run:
        """Return the run of a row."""
        (run,) = (run for run in self.board.runs if run.fingerprint == row["fingerprint"])
        return run

    def difference(self, row: Row, other: Row) -> Difference:
        """Return the score of one row's run minus that of another's, paired by prompt."""
        a = self.run_of(row)
        b = self.run_of(other)
        return RankedGroup([a, b]).difference(a, b)


Fragment = Callable[[Shown, Sequence[str], str], str]
"""Writes a place anew, given the mark's further words and what stands there."""


def _images(runs: pd.DataFrame) -> int:
    return int(runs["images_per_prompt"].iloc[0])


# --- numbers in sentences -------------------------------------------------------------------------


def write_size(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return how much the main table rests on."""
    main = shown.main
    return f"{main['prompts'].iloc[0]} prompts x {_images(main)} images"


def write_mean(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return the score of a run."""
    return f"{shown.find(' '.join(words))['score']:.3f}"


def write_gain_share(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return which share of another run's gain over plain a run has: "RUN / OTHER"."""
    run, other = _two_runs(shown, words)
    return f"{100 * run['vs_plain'] / other['vs_plain']:.0f} %"


def write_token_share(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return which share of another run's visual tokens a run spends: "RUN / OTHER"."""
    run, other = _two_runs(shown, words)
    return f"{100 * run['visual_tokens'] / other['visual_tokens']:.0f} %"


def _two_runs(
    shown: Shown, words: Sequence[str], among: pd.DataFrame | None = None
) -> tuple[Row, Row]:
    first, separator, second = " ".join(words).partition(" / ")
    if not separator:
        raise UserError("name two runs, RUN / OTHER")
    return shown.find(first, among), shown.find(second, among)


def write_difference_of(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return by how much a run scores above another: "BENCHMARK RUN / OTHER"."""
    benchmark, *names = words or [""]
    rows = shown.of_benchmark(benchmark)
    found = shown.difference(*_two_runs(shown, names, rows))
    return _write(found) if found.resolved else f"({_write(found)})"


def _write(found: Difference) -> str:
    return f"{found.value:+.3f} [{found.low:.3f}, {found.high:.3f}]"


def write_tau(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return Kendall's tau of the main table's two lowest seeds; "resolved": see `Agreement`."""
    found = shown.seeds
    return f"{found.tau_resolved if words == ['resolved'] else found.tau:.3f}"


def write_contradictions(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return how many pairs two seeds of the main table resolve the other way round."""
    found = shown.seeds
    return f"{len(found.contradicting)} of {found.alike + found.once} resolved pairs"


def write_agreement(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return how often reward and judge agree on generated images, by the model card."""
    (gate,) = (gate for gate in _read_gates(shown) if gate.name == "judge and reward agree")
    return f"{100 * gate.value:.0f} %"


def write_gates(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return the table of the model card's gates whose names begin so: "natural:"."""
    beginning = " ".join(words)
    gates = [gate for gate in _read_gates(shown) if gate.name.startswith(beginning)]
    if not gates:
        raise UserError(f"no gate of {CARD} begins with {beginning!r}")
    return "\n".join(to_markdown(gates))


def _read_gates(shown: Shown) -> list[Gate]:
    """Read what `harness.training.verify` has written on the model's card.

    Raises UserError where there is no card.
    """
    if not (shown.root / CARD).is_file():
        raise UserError(f"there is no {CARD}")
    card = json.loads((shown.root / CARD).read_text(encoding="utf-8"))
    return [Gate.from_row(row) for row in card["measured"]["full official"]["gates"]]


def write_figure(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return the picture of scores over budgets, with what it shows in words."""
    plain = shown.find("plain")
    best = shown.main[shown.main["method"] == "best_of_n"].sort_values("candidates").iloc[-1]
    times = f"{best['visual_tokens'] / plain['visual_tokens']:.0f}"
    said = (
        f"Score over budget in visual tokens: Best-of-N rises from {plain['score']:.2f} to "
        f"{best['score']:.2f} at {times} times plain's tokens"
    )
    return f"\n![{said}](results/board/figures/0-scaling.svg)"


# --- tables ---------------------------------------------------------------------------------------


def _whole(row: Row, name: str) -> str:
    return f"{row[name]:,.0f}"


CELLS: dict[str, Callable[[Row], str]] = {
    "score": write_score,
    "against plain": lambda row: write_difference(row, "vs_plain"),
    "against Best-of-N of as many": lambda row: write_difference(row, "vs_bon"),
    "at worst": lambda row: "" if pd.isna(row["worse_at_most"]) else f"{row['worse_at_most']:+.3f}",
    "visual_tokens": lambda row: _whole(row, "visual_tokens"),
    "target_passes": lambda row: f"{row['target_passes']:.0f}",
    "visual tokens": lambda row: _whole(row, "visual_tokens"),
    "target passes": lambda row: f"{row['target_passes']:.1f}",
    "tokens a pass": lambda row: f"{row['visual_tokens'] / row['target_passes']:.2f}",
    "target positions": lambda row: _whole(row, "target_positions"),
    "seconds": lambda row: f"{row['device_s'] + row['judge_s']:.3f}",
    "median seconds": lambda row: f"{row['latency_p50_s']:.3f}",
    "p90": lambda row: f"{row['latency_p90_s']:.3f}",
    "speed over plain": lambda row: _write_ratio(row, "speedup"),
}
"""Heading of a column -> what it has of a run."""


def _write_ratio(row: Row, name: str) -> str:
    if pd.isna(row[name]):
        return ""
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _table(first: str, rows: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return a Markdown table of runs, each called by its label."""
    lines = [_pipe([first, *columns]), _pipe(["---"] * (1 + len(columns)))]
    for _, row in rows.iterrows():
        cells = [_cell(row, column) for column in columns]
        lines.append(_pipe([str(row["label"]).replace("|", "\\|"), *cells]))
    return "\n".join(lines)


def _cell(row: Row, column: str) -> str:
    """Write what a run has in a column of `CELLS`, or in one of the leaderboard."""
    if column in CELLS:
        return CELLS[column](row)
    if column not in row:
        raise UserError(f"the leaderboard has no column {column!r}")
    return "" if pd.isna(row[column]) else f"{row[column]:.{3 if abs(row[column]) < 10 else 1}f}"


def _pipe(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_rows(shown: Shown, words: Sequence[str], old: str) -> str:
    """Write the cells behind the comments that name the runs of rows; all else stays."""
    lines = []
    for line in old.strip().splitlines():
        row = RUN_OF_ROW.match(line)
        if row is None:
            lines.append(line)
            continue
        found = shown.find(row["run"])
        cells = [CELLS[column](found) for column in words]
        lines.append(f"{row['words']} {' | '.join(cells)} |")
    return "\n".join(lines)


def write_claims(shown: Shown, words: Sequence[str], old: str) -> str:
    """Judge each row's statement: the difference, shares of tokens and passes, and a verdict."""
    lines = []
    for line in old.strip().splitlines():
        row = RUN_OF_ROW.match(line)
        lines.append(f"{row['words']} {' | '.join(judge(row['run'], shown))} |" if row else line)
    return "\n".join(lines)


def judge(claim: str, shown: Shown) -> tuple[str, str, str, str]:
    """Return by how much a run differs from another, its share of the tokens and passes, a verdict.

    "holds" and "refuted" are what the board resolves. Raises UserError for other words than
    `CLAIM` has.
    """
    said = CLAIM.fullmatch(claim)
    if said is None:
        raise UserError(f"{claim!r}: write RUN above OTHER or RUN within 0.03 of OTHER")
    rows = shown.of_benchmark(said["benchmark"]) if said["benchmark"] else None
    run = shown.find(said["run"], rows)
    other = shown.find(said["other"], rows)
    found = shown.difference(run, other)
    if said["above"]:
        holds = found.resolved and found.value > 0
        refuted = found.resolved and found.value < 0
    else:
        most = float(said["most"])
        holds = found.bound >= -most  # with 95 % confidence it loses less
        refuted = found.high < -most
    verdict = "holds" if holds else "**refuted**" if refuted else "not resolved"
    tokens = f"{run['visual_tokens'] / other['visual_tokens']:.2f}"
    return _write(found), tokens, f"{run['target_passes'] / other['target_passes']:.2f}", verdict


CHOOSING = (
    "score",
    "against plain",
    "against Best-of-N of as many",
    "visual tokens",
    "target positions",
    "seconds",
)
DECODING = (
    "score",
    "against plain",
    "at worst",
    "target passes",
    "tokens a pass",
    "target positions",
    "seconds",
)
LATENCY = ("score", "median seconds", "p90", "speed over plain")


def write_choosing(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return the main table's methods that spend more than one image's tokens, and plain."""
    rows = many_at_a_time(shown.main)
    chosen = rows[(rows["budget"] > ONE_IMAGE) | _is_plain(rows)]
    return _table(f"{_images(rows)} images a prompt", _plain_first(chosen), CHOOSING)


def write_decoding(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return the main table's methods that spend one image's tokens."""
    rows = many_at_a_time(shown.main)
    chosen = rows[rows["budget"] <= ONE_IMAGE]
    return _table(f"{_images(rows)} images a prompt", _plain_first(chosen), DECODING)


def write_others(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return the tables of every other protocol: of methods that choose, and of the others."""
    tables = []
    for runs in shown.others:
        rows = many_at_a_time(runs)
        chooses = rows["budget"] > ONE_IMAGE
        for some, columns in ((chooses, CHOOSING), (~chooses, DECODING)):
            if (some & ~_is_plain(rows)).any():
                shown_rows = _plain_first(rows[some | _is_plain(rows)])
                tables.append(_table(heading(rows), shown_rows, columns))
    return "\n\n".join(tables) or "None.\n"


def write_benchmark(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return the runs of a benchmark's largest protocol, the best first: "NAME COLUMN ...".

    Columns are those of the leaderboard or of `CELLS`, with hyphens for spaces: "against-plain".
    """
    name, *columns = words or [""]
    rows = many_at_a_time(shown.of_benchmark(name)).sort_values(
        "score", ascending=False, kind="stable"
    )
    return _table(
        f"{_images(rows)} images a prompt", rows, [word.replace("-", " ") for word in columns]
    )


def write_latency(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return the runs of one image at a time."""
    frame = shown.board.frame
    rows = frame[frame["concurrency"] == 1]
    if not len(rows):
        raise UserError("the board has no run of one image at a time")
    return _table("one image at a time", _plain_first(rows), LATENCY)


def write_tuned(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return the relaxed methods at their presets' settings, and at those found by tuning."""
    columns = ("score", "against plain", "at worst", "target passes")
    rows = many_at_a_time(shown.main)
    lines = [_pipe(["method", "setting", *columns])]
    lines.append(_pipe(["---"] * (2 + len(columns))))
    for method in MOST_LOSS:
        own = rows[rows["method"] == method]
        published = own[own["params"] == ""]
        tuned = own[own["params"] != ""]
        for setting, some in (("published", published), ("tuned", tuned)):
            for _, row in some.iterrows():
                name = f"{setting}: {row['params']}" if row["params"] else setting
                cells = [CELLS[column](row) for column in columns]
                lines.append(_pipe([f"`{method}`", name, *cells]))
        if not len(tuned):
            lines.append(_pipe([f"`{method}`", "no other setting run", *[""] * len(columns)]))
    return "\n".join(lines)


def write_bench(shown: Shown, words: Sequence[str], old: str) -> str:
    """Return speeds over plain sampling by the images in flight, of a bench's file."""
    (name,) = words or [BENCH]
    path = shown.root / BENCHES / f"{name}.csv"
    if not path.is_file():
        raise UserError(f"{name}: there is no {path}")
    measured = keep_one_machine(pd.read_csv(path, dtype=dict.fromkeys(MACHINE, str)))
    table = measured.drop_duplicates(["batch", "method"], keep="last")
    batches = sorted(int(batch) for batch in table["batch"].unique())
    methods = list(dict.fromkeys(str(method) for method in table["method"]))
    lines = [_pipe(["", *map(str, batches)]), _pipe(["---"] * (1 + len(batches)))]
    plain = table[table["method"] == "plain"].set_index("batch")["seconds_per_image"]
    seconds = [f"{plain[batch]:.3f}" for batch in batches]
    lines.append(_pipe(["plain, processor seconds an image", *seconds]))
    for method in methods:
        if method != "plain":
            speed = table[table["method"] == method].set_index("batch")["speedup"]
            ratios = [f"{speed[batch]:.2f}" if batch in speed.index else "" for batch in batches]
            lines.append(_pipe([f"`{method}`", *ratios]))
    return "\n".join(lines)


def keep_one_machine(table: pd.DataFrame) -> pd.DataFrame:
    """Return a bench's lines of the device and machine of its last one: others do not compare."""
    known = [name for name in MACHINE if name in table]
    machines = table[known].fillna("")
    return table[(machines == machines.iloc[-1]).all(axis=1)]


def many_at_a_time(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of as many images in flight as fit."""
    return rows[rows["concurrency"].isna()]


def _is_plain(rows: pd.DataFrame) -> pd.Series:
    return (rows["method"] == "plain") & (rows["params"] == "")


def _plain_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows in their order, plain sampling in front."""
    is_plain = _is_plain(rows)
    return pd.concat([rows[is_plain], rows[~is_plain]])


FRAGMENTS: Mapping[str, Fragment] = {
    "agreement": write_agreement,
    "bench": write_bench,
    "benchmark": write_benchmark,
    "choosing": write_choosing,
    "claims": write_claims,
    "contradictions": write_contradictions,
    "decoding": write_decoding,
    "difference": write_difference_of,
    "figure": write_figure,
    "gates": write_gates,
    "gain-share": write_gain_share,
    "latency": write_latency,
    "others": write_others,
    "rows": write_rows,
    "score": write_mean,
    "size": write_size,
    "tau": write_tau,
    "token-share": write_token_share,
    "tuned": write_tuned,
}
"""What a mark may ask for."""


# --- pages ----------------------------------------------------------------------------------------


def render_pages(
    board: Board, root: Path, fragments: Mapping[str, Fragment] = FRAGMENTS
) -> dict[Path, str]:
    """Return the pages that have marks, with what the board says in them.

    Raises UserError for a mark that is unknown, or names a run that the board lacks.
    """
    shown = Shown(board, root)
    rendered = {}
    for name in PAGES:
        text = (root / name).read_text(encoding="utf-8")
        if MARK.search(text):
            rendered[root / name] = fill(text, shown, name, fragments)
    return rendered


def fill(text: str, shown: Shown, page: str, fragments: Mapping[str, Fragment] = FRAGMENTS) -> str:
    """Return a page's text with the places written anew."""

    def write(mark: re.Match[str]) -> str:
        name, *words = mark["name"].split()
        fragment = fragments.get(name)
        if fragment is None:
            known = ", ".join(sorted(fragments))
            raise UserError(f"{page}: unknown mark {name!r}; there are {known}")
        try:
            new = fragment(shown, words, mark["old"])
        except UserError as error:
            raise UserError(f"{page}, mark {mark['name']!r}: {error}") from None
        if "\n" in new:
            new = f"\n\n{new.strip()}\n\n"
        return f"<!-- board: {mark['name']} -->{new}<!-- /board -->"

    return MARK.sub(write, text)
