"""Every column of every CSV file, with its unit and meaning; docs/columns.md is made from it.

    python -m harness.results.columns > docs/columns.md

The writers of the tables take their headers from here, so no column is without a description.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from harness.results.stats import BUDGETS

Group = Literal[
    "what was run",
    "quality",
    "cost",
    "time by stage",
    "throughput",
    "latency",
    "comparison",
    "provenance",
]
GROUPS: tuple[Group, ...] = get_args(Group)

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's tasks. They have columns among the fixed ones, where a run was asked them."""
TEXT = "text"
YES = ("yes or no", "yes or empty")
SHARE = "0 to 1"
SCORE = "difference of scores"
PLAIN_IMAGES = "plain images"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a CSV file. Raises ValueError where name, unit or meaning is empty."""

    name: str
    unit: str
    meaning: str
    group: Group
    digits: int = 4  # after the decimal point
    timed: bool = False  # follows from clocks, so it differs between two runs of the same jobs

    def __post_init__(self) -> None:
        for field in ("name", "unit", "meaning"):
            if not getattr(self, field):
                raise ValueError(f"column {self.name!r}: its {field} is empty")


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file: where it lies below the results folder, what its rows are, and its columns."""

    file: str
    rows: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the header."""
        return tuple(column.name for column in self.columns)

    def names_in(self, group: Group) -> tuple[str, ...]:
        """Return the columns of one group, in the order of the header."""
        return tuple(column.name for column in self.columns if column.group == group)

    def select(self, *names: str) -> tuple[Column, ...]:
        """Return some of the columns, in the order of `names`."""
        by_name = {column.name: column for column in self.columns}
        return tuple(by_name[name] for name in names)


def own_column(name: str) -> str:
    """Name the leaderboard's column of a benchmark's category or aggregate.

    It is called as the category is, unless a column that every board may have is called so.
    """
    taken = {*LEADERBOARD.names} - {"score", *TASKS}
    return f"category_{name}" if name in taken else name


def benchmark_column(name: str) -> Column:
    """Describe the column of a benchmark's own category or aggregate; it follows the fixed ones."""
    meaning = f"Mean of the benchmark's category or aggregate {name!r}."
    return Column(name, SHARE, meaning, "quality")


def _interval(
    of: str, unit: str, group: Group, *, prefix: str = "", timed: bool = False
) -> Iterator[Column]:
    """Yield the columns of both ends of a 95 % interval: `prefix`_low and `prefix`_high."""
    for end, word in (("low", "Lower"), ("high", "Upper")):
        meaning = f"{word} end of the 95 % interval of `{of}`."
        yield Column(f"{prefix or of}_{end}", unit, meaning, group, timed=timed)


def metric_columns(name: str, unit: str, better: str, digits: int) -> list[Column]:
    """Describe the columns of a metric of images; they follow those of benchmarks."""
    mean = f"Mean of the metric over prompts, {better} is better; empty unless all images have it."
    columns = [
        Column(name, unit, mean, "quality"),
        *_interval(name, unit, "quality"),
        Column(f"{name}_images", "images", f"Images that {name!r} has a number for.", "quality"),
        Column(f"{name}_by", TEXT, "Id of what measured them.", "quality"),
        Column(
            f"{name}_is_reward",
            "same, family or empty",
            "Overlap of the method's reward or verifier with what measured the images, as "
            "`reward_is_judge`.",
            "quality",
        ),
        *_tested_difference(
            f"{name}_vs_plain",
            "plain sampling",
            "a sign-flip permutation test over clusters of prompts",
            unit=f"difference of {unit}",
            of=f"`{name}`",
        ),
    ]
    numbers = ("images", TEXT, "same, family or empty", "p value")
    return [
        column if column.unit in numbers else replace(column, digits=digits) for column in columns
    ]


def _difference(
    name: str, against: str, *, unit: str = SCORE, of: str = "Score", timed: bool = False
) -> Iterator[Column]:
    """Yield the columns of a paired difference of scores, or of `of`, and its interval."""
    meaning = f"{of} minus that of {against}, paired by prompt."
    yield Column(name, unit, meaning, "comparison", timed=timed)
    yield from _interval(name, unit, "comparison", timed=timed)


def _tested_difference(
    name: str, against: str, test: str, *, unit: str = SCORE, of: str = "Score"
) -> Iterator[Column]:
    """Yield the columns of a paired difference with its interval, test and detectable size."""
    yield from _difference(name, against, unit=unit, of=of)
    yield Column(
        f"{name}_p",
        "p value",
        f"Two-sided p of `{name}`: {test}.",
        "comparison",
    )
    yield Column(
        f"{name}_p_holm",
        "p value",
        f"`{name}_p` adjusted by Holm's method for all runs of the protocol.",
        "comparison",
    )
    yield Column(
        f"{name}_detectable",
        unit,
        "True difference that this comparison finds with 80 % power at a level of 5 %. "
        f"`{name}` is called resolved if it is at least this large and `{name}_p_holm` < 0.05.",
        "comparison",
    )
    yield Column(
        f"{name}_verdict",
        TEXT,
        f"`resolved`, or why `{name}` is not.",
        "comparison",
    )


LEADERBOARD = Table(
    "leaderboard.csv",
    "A row for each run, in the order of benchmark, model, method and number of candidates. Costs "
    "are means over delivered images and include candidates that were thrown away. Scores count "
    "images that are missing, failed or unjudged as wrong. A column for each further category or "
    "aggregate of a benchmark follows the fixed ones, as `category_model` where it is called as "
    "one of them; tasks of GenEval that no run was asked, and distances of sets of images where no "
    "run has any, have none. For each metric of images, such "
    "as `metrics=[clip]`, follow `clip`, its mean over prompts, empty unless every planned image "
    "has a number; `clip_low` and `clip_high`, the 95 % interval; `clip_images`, those that have a "
    "number; `clip_by`, the id of what measured them; `clip_is_reward`, as `reward_is_judge`; and "
    "`clip_vs_plain` with the columns of `vs_plain`, against a plain run that the same scorer "
    "measured. Holm's family are all runs of the protocol with that metric. `fid`, `kid`, "
    "`precision` and `recall` are such metrics: of all images of a run beside the reference images "
    "of its benchmark, by the features that `fid_by` names. They are means of pseudo-values of "
    "prompts, so that they are paired and resampled as the others are.",
    (
        Column("benchmark", TEXT, "Benchmark that gave the prompts.", "what was run"),
        Column("model", TEXT, "Model that drew the images.", "what was run"),
        Column("method", TEXT, "Method, as in `conf/method/`.", "what was run"),
        Column(
            "params",
            TEXT,
            "Method options, as `n=8, reward=other`: the number of candidates, those that differ "
            "from the configuration file, and those that differ between runs of the method under "
            "one protocol.",
            "what was run",
        ),
        Column("images", "images", "Images delivered.", "what was run"),
        Column(
            "score",
            SHARE,
            "Score of the benchmark: its aggregate `score`, else the macro mean over categories of "
            "prompt means.",
            "quality",
        ),
        Column(
            "ci_low",
            SHARE,
            "Lower end of the 95 % interval of `score`: cluster bootstrap over prompts.",
            "quality",
        ),
        Column("ci_high", SHARE, "Upper end of the 95 % interval of `score`.", "quality"),
        *(
            Column(task, SHARE, f"Mean of GenEval's task `{task}` over its prompts.", "quality")
            for task in TASKS
        ),
        Column(
            "visual_tokens",
            "tokens",
            "Image tokens committed, of all candidates, `skipped` ones included. Guidance does not "
            "double them.",
            "cost",
            digits=2,
        ),
        Column(
            "target_passes",
            "forwards",
            "Sequential forwards of the target model that the image took part in: its depth.",
            "cost",
            digits=2,
        ),
        Column(
            "target_positions",
            "positions",
            "Image positions computed by the target model over all branches: drafts, repeated "
            "prefill and guidance included.",
            "cost",
            digits=2,
        ),
        Column(
            "drafted_positions",
            "positions",
            "Positions computed by a drafter.",
            "cost",
            digits=2,
        ),
        Column("renders", "decodes", "VQ decodes, of partial images too.", "cost", digits=2),
        Column(
            "judge_calls",
            "images",
            "Images put to a judge while the image was drawn (a reward or a verifier).",
            "cost",
            digits=2,
        ),
        Column("judge_s", "s", "Seconds inside those judges.", "cost", timed=True),
        Column(
            "device_s",
            "s",
            "Device seconds: the image's share of every forward, render and draft.",
            "cost",
            timed=True,
        ),
        Column(
            "wall_s",
            "s",
            "From admission until the image is safely on disk. A latency where `concurrency` is 1; "
            "otherwise other images are drawn meanwhile.",
            "cost",
            timed=True,
        ),
        Column("failed", "images", "Planned images whose last attempt failed.", "what was run"),
        Column("unjudged", "images", "Delivered images without a judged value.", "what was run"),
        Column("seed", "integer", "Seed of the run.", "what was run"),
        Column(
            "fingerprint",
            "8 hex digits",
            "Digest of everything that the result depends on: weights, options, prompts, judge, "
            "shapes and seed. It ends the name of the run folder.",
            "provenance",
        ),
        Column("device", TEXT, "What drew the images; several joined by `+`.", "provenance"),
        Column(
            "commit",
            TEXT,
            "Commit of the code that drew them, `-dirty` if it differed; several joined by `+`.",
            "provenance",
        ),
        Column(
            "missing",
            "images",
            "Planned images that were neither delivered nor failed.",
            "what was run",
        ),
        Column(
            "judge",
            TEXT,
            "Judge that scored the images, with its revision; empty before the first score.",
            "what was run",
        ),
        Column(
            "numerics",
            TEXT,
            "`constant`: an image depends on its own job alone. `fast`: also on what else is in "
            "the batch. Empty for imported images.",
            "what was run",
        ),
        Column("version", TEXT, "Version of the benchmark.", "what was run"),
        Column("prompts_sha", "16 hex digits", "Digest of the prompts.", "provenance"),
        Column("prompts", "prompts", "Prompts planned.", "what was run"),
        Column("images_per_prompt", "images", "Images planned for each prompt.", "what was run"),
        Column(
            "concurrency",
            "images",
            "Images in flight; empty: as many as fit.",
            "what was run",
            digits=0,
        ),
        Column(
            "candidates",
            "candidates",
            "Candidates of an image (option `n`), for methods that have a number of them.",
            "what was run",
            digits=0,
        ),
        Column(
            "protocol",
            "8 hex digits",
            "Digest of benchmark, version, prompts, judge, images per prompt, numerics and model. "
            "Runs are ranked together only where it is equal.",
            "provenance",
        ),
        Column(
            "reward_is_judge",
            "same, family or empty",
            "Overlap of the method's reward or verifier with the benchmark's judge: the same "
            "model, or one of its family, which shares its blind spots.",
            "quality",
        ),
        Column(
            "skipped",
            "tokens",
            "Image tokens committed without the target model having seen them.",
            "cost",
            digits=2,
        ),
        Column(
            "discarded",
            "tokens",
            "Image tokens committed and thrown away later: candidates that were cut back, replaced "
            "or ended.",
            "cost",
            digits=2,
        ),
        Column(
            "text_positions",
            "positions",
            "Prompt positions computed by the target model over all branches, as if no branch "
            "shared another's.",
            "cost",
            digits=2,
        ),
        Column(
            "judge_tokens",
            "tokens",
            "Tokens read and written by language-model judges while the image was drawn.",
            "cost",
            digits=2,
        ),
        Column(
            "budget",
            PLAIN_IMAGES,
            "`visual_tokens` over those of the plain run that it is compared with; empty without "
            "one.",
            "comparison",
        ),
        Column(
            "budget_s",
            PLAIN_IMAGES,
            "The same in seconds: `device_s + judge_s`, or `wall_s` where `concurrency` is 1. "
            "Only against a plain run on the same device at the same concurrency.",
            "comparison",
            timed=True,
        ),
        Column(
            "accepted",
            "tokens per verification",
            "Mean number of draft tokens accepted in a verification, for speculative methods.",
            "comparison",
        ),
        Column(
            "latency_p50_s",
            "s",
            "Median of `wall_s`. Percentiles are for `concurrency` 1 only, and empty below 11 "
            "(p50), 64 (p90), 130 (p95) or 662 (p99) images: MLPerf's early-stopping rule.",
            "latency",
            timed=True,
        ),
        Column("latency_p90_s", "s", "90th percentile of `wall_s`.", "latency", timed=True),
        Column(
            "speedup",
            "ratio",
            "Geometric mean over prompts of plain sampling's seconds over the run's. Only against "
            "a plain run on the same device at the same concurrency.",
            "comparison",
            timed=True,
        ),
        *_interval("speedup", "ratio", "comparison", timed=True),
        Column(
            "pass_saving",
            "ratio",
            "Geometric mean over prompts of plain sampling's `target_passes` over the run's.",
            "comparison",
        ),
        *_interval("pass_saving", "ratio", "comparison"),
        Column(
            "tie_group",
            "number",
            "1 for the runs of the protocol that no other is resolved to be better than (each "
            "pair by itself, p < 0.05 and of detectable size); 2 for those of the others, etc. "
            "No two runs of a group are resolved from each other.",
            "comparison",
            digits=0,
        ),
        Column(
            "rank_low",
            "rank",
            "Best rank that a run may have: 1 and the runs that are resolved to be better, as for "
            "`tie_group`.",
            "comparison",
            digits=0,
        ),
        Column(
            "rank_high",
            "rank",
            "Worst rank that it may have: the runs of the protocol without those that are resolved "
            "to be worse.",
            "comparison",
            digits=0,
        ),
        *_tested_difference(
            "vs_plain",
            "plain sampling",
            "McNemar's test for one binary image per prompt, else a sign-flip permutation test "
            "over clusters of prompts",
        ),
        *_tested_difference(
            "vs_bon",
            "Best-of-N at the same visual tokens, interpolated between two N on log2 of the budget",
            "a sign-flip permutation test over clusters of prompts",
        ),
        *_difference("vs_bon_s", "Best-of-N at the same seconds, interpolated alike", timed=True),
        Column(
            "worse_at_most",
            SCORE,
            "One-sided 95 % bound of `vs_plain`: the true difference is above it. Only for methods "
            "that draw one image's tokens (budget 1).",
            "comparison",
        ),
        Column(
            "worst_task",
            TEXT,
            "Category in which the one-sided 95 % bound of the difference from plain is lowest.",
            "comparison",
        ),
        Column("worst_task_bound", SCORE, "That bound.", "comparison"),
        Column(
            "non_inferior",
            "yes or no",
            "`yes` if `worse_at_most` is at least -0.01 and `worst_task_bound` at least -0.02.",
            "comparison",
        ),
        Column(
            "oracle",
            SHARE,
            "Score of always choosing the best of `candidates` images, estimated from a plain run "
            "of the same seed with at least as many images per prompt.",
            "comparison",
        ),
        Column(
            "selection_efficiency",
            "share",
            "Share of the gain from a single image to `oracle` that the run made: 1 is always the "
            "best. The oracle's images are others than the run's, so it can exceed 1.",
            "comparison",
        ),
        *_interval("selection_efficiency", "share", "comparison", prefix="selection"),
        Column(
            "front_tokens",
            "yes or empty",
            "`yes` if the run is on the Pareto front of its protocol: no other run has at most its "
            "visual tokens and at least its score, one of the two strictly better.",
            "comparison",
        ),
        Column(
            "front_seconds",
            "yes or empty",
            "The same for seconds (`budget_s`) and score.",
            "comparison",
            timed=True,
        ),
        Column(
            "scenario",
            TEXT,
            "How seconds were measured, in MLPerf's words: `SingleStream` (one image at a time) or "
            "`Offline` (as many as fit).",
            "latency",
        ),
        Column("latency_p95_s", "s", "95th percentile of `wall_s`.", "latency", timed=True),
        Column(
            "latency_p99_s",
            "s",
            "99th percentile of `wall_s`.",
            "latency",
            timed=True,
        ),
        Column(
            "text_s", "s", "Of `device_s`: prompts into embeddings.", "time by stage", timed=True
        ),
        Column(
            "prefill_s",
            "s",
            "Of `device_s`: prompts, and tokens that were not drawn one by one, into the cache.",
            "time by stage",
            timed=True,
        ),
        Column(
            "decode_s",
            "s",
            "Of `device_s`: decoding forwards, probabilities and draws.",
            "time by stage",
            timed=True,
        ),
        Column("draft_s", "s", "Of `device_s`: drafters.", "time by stage", timed=True),
        Column("render_s", "s", "Of `device_s`: VQ decodes.", "time by stage", timed=True),
        Column("save_s", "s", "Writing the image safely to disk.", "time by stage", timed=True),
        Column(
            "images_per_s",
            "images/s",
            "Images per second of the processes that drew to their end; their seconds add up. "
            "Scoring and warm-up do not count.",
            "throughput",
            timed=True,
        ),
        Column(
            "utilisation",
            SHARE,
            "Share of slots that held an active branch, over all decode steps.",
            "throughput",
            timed=True,
        ),
        Column(
            "joules",
            "J per image",
            "Energy of the whole GPU for a delivered image; empty without a GPU.",
            "throughput",
            timed=True,
        ),
        Column(
            "peak_memory_gb",
            "GB",
            "Highest memory of any of those processes: reserved on the GPU, or of the process on a "
            "CPU.",
            "throughput",
            timed=True,
        ),
        Column(
            "unanswered",
            "questions",
            "Questions that the method's judges left without an answer (refused, unreadable, or "
            "reaching nobody): in failed images, and in delivered ones by a method's fallback.",
            "what was run",
        ),
        Column(
            "cut_prompts",
            "prompts",
            "Prompts that are longer than the model reads, and were drawn from their beginnings.",
            "what was run",
        ),
        Column(
            "label",
            TEXT,
            "What the run is called in tables and figures: the method's title with its number of "
            "candidates, and in brackets the options in `params`, and what else tells it from the "
            "other runs of its protocol. No two of them are called the same.",
            "what was run",
        ),
        Column(
            "fid_bias",
            "squared distance",
            "What two sets of as many images of one normal distribution are apart on average: the "
            "part of `fid` that says nothing about the images. It falls with their number.",
            "quality",
        ),
        Column(
            "set_note",
            TEXT,
            "Why distances of the images to the reference are not there (`incomplete 498/500`), or "
            "have no interval, and so no columns.",
            "quality",
        ),
        Column(
            "fd_plain",
            "squared distance",
            "Fréchet distance of the run's images to a plain run's of the same prompts, of another "
            "seed where there is one; lower is better. It is not 0 for a method that keeps the "
            "model's distribution: read it beside `fd_plain_null`.",
            "comparison",
        ),
        Column(
            "fd_plain_null",
            "squared distance",
            "The same distance of another plain run to that one: how far apart equals are.",
            "comparison",
        ),
        Column(
            "fd_plain_p",
            "p value",
            "How often exchanging the images of each prompt between the two runs puts them as far "
            "apart, by the kernel distance; empty for runs of one seed.",
            "comparison",
        ),
        Column(
            "fd_plain_verdict",
            TEXT,
            "What follows: that the images differ, that no difference was found with so many "
            "images, or why there is no test.",
            "comparison",
        ),
        Column(
            "inside_window",
            TEXT,
            "`yes` if the 95 % interval of each `NAME_vs_plain` lies in a window about plain "
            "sampling, whose ends are 0.2 % of plain's `clip`, 2 % of its `fid`, `kid_vs_plain_"
            "detectable`, and a tenth of the deviation among plain's images of one prompt for "
            "other metrics of images; better is outside, too. Else what is not "
            "inside, such as `cannot be shown with this n (fid)` where the margin is smaller than "
            "`fid_vs_plain_detectable`.",
            "comparison",
        ),
    ),
)

SET_METRICS = (
    Column(
        "fid",
        "squared distance",
        "Fréchet distance of all images of the run to the reference images of its benchmark; "
        "lower is better. Too large by `fid_bias`, so never read alone; only of more images than "
        "features, as `set_note` says.",
        "quality",
    ),
    Column(
        "kid",
        "squared distance",
        "Unbiased kernel distance (cubic kernel) of the same images, about 0 for equals and "
        "possibly below; lower is better. Only where the reference has features, not moments "
        "alone. Pairs of one prompt are left out.",
        "quality",
    ),
    Column(
        "precision",
        "share",
        "Share of the images that lie nearer to some reference image than its third neighbour; "
        "higher is better. It falls as images get worse, and says nothing about variety.",
        "quality",
    ),
    Column(
        "recall",
        "share",
        "Share of the reference images that lie nearer to some image than that one's third "
        "neighbour; higher is better. Its interval is by leaving images out, rather too wide than "
        "too narrow.",
        "quality",
    ),
)
"""Metrics of all images of a run, where its benchmark compares them with a reference."""
COSTS = LEADERBOARD.names_in("cost")
"""Fields of `records.Usage` that every journal has."""
STAGE_SECONDS = LEADERBOARD.names_in("time by stage")
"""Fields of `records.Usage` that say where `device_s` and `wall_s` went; old journals lack them."""
THROUGHPUT = LEADERBOARD.names_in("throughput")
"""Columns from a run's timings; empty where no process drew to its end."""
DISTANCE_TO_PLAIN = ("fd_plain", "fd_plain_null", "fd_plain_p", "fd_plain_verdict")
OCCASIONAL = frozenset({*TASKS, "fid_bias", "set_note", *DISTANCE_TO_PLAIN, "inside_window"})
"""Columns that a table has only where one of its runs was asked the task, or has a value."""
TIMED = tuple(column.name for column in LEADERBOARD.columns if column.timed)
"""Columns that follow from clocks, so they differ between two runs of the same jobs."""

METRICS = Table(
    "metrics.csv",
    "The numbers of leaderboard.csv in long form: a row for each run and metric, without those "
    "that are unknown. Metrics are `quality/...` (aggregates and categories), `cost/...`, "
    "`latency/...`, `throughput/...` and `compare/...`, named as the columns above "
    "(`latency/p50_s` is `latency_p50_s`).",
    (
        *LEADERBOARD.select("protocol", "benchmark", "model", "method", "params", "seed"),
        *LEADERBOARD.select("fingerprint"),
        Column("metric", TEXT, "Family and name, such as `quality/score`.", "quality"),
        Column("value", "that of the metric", "Its value.", "quality"),
        *_interval("value", "that of the metric", "quality", prefix="ci"),
        Column(
            "n",
            "count",
            "Sample size: clusters of prompts for `quality` and `compare`, images for the others.",
            "quality",
        ),
    ),
)

CURVES = Table(
    "curves.csv",
    "A row for each scaling curve: a method over its numbers of candidates, from plain sampling "
    "on, in one of two currencies. Curves are linear in log2 of the budget.",
    (
        *LEADERBOARD.select("protocol", "benchmark", "model", "method"),
        Column("params", TEXT, "Options of the method, without `n`.", "what was run"),
        *LEADERBOARD.select("seed"),
        Column(
            "currency",
            "visual_tokens or seconds",
            "What budgets are counted in.",
            "what was run",
        ),
        Column("budgets", PLAIN_IMAGES, "Budgets of the curve's runs, in rising order.", "cost"),
        Column("scores", SHARE, "Score at each of these budgets.", "quality"),
        *(
            Column(
                f"quality_at_{budget}",
                SHARE,
                f"Score at a budget of {budget}; empty outside of the curve.",
                "quality",
            )
            for budget in BUDGETS
        ),
        Column(
            "budget_for_best_of_8",
            PLAIN_IMAGES,
            "Smallest budget at which the curve reaches the score of Best-of-8; `inf` where it "
            "does not, or where there is no Best-of-8 to compare with.",
            "comparison",
        ),
        Column(
            "ausc",
            SHARE,
            "Area under the scaling curve over log2 of the budget, divided by its width: the mean "
            "height.",
            "comparison",
        ),
        *_interval("ausc", SHARE, "comparison"),
        Column(
            "hypervolume",
            "score x doublings",
            "Area that the curve's points dominate, up to plain sampling's score at a budget of "
            "16.",
            "comparison",
        ),
    ),
)

CLAIMED = Table(
    "export/claimed.csv",
    "A row for each published number and each run that measured the same thing. Published numbers "
    "were not measured here and enter no other table.",
    (
        Column("source", TEXT, "Paper and table that states the number.", "provenance"),
        Column("benchmark", TEXT, "Benchmark of the claim; empty: any prompts.", "what was run"),
        Column("model", TEXT, "Model of the claim.", "what was run"),
        Column("method", TEXT, "Method of the claim.", "what was run"),
        Column("n", "candidates", "Number of candidates; empty: none is stated.", "what was run"),
        Column("metric", TEXT, "What is claimed, named as the column that measures it.", "quality"),
        Column("claimed", "that of the metric", "The published number.", "quality"),
        Column("measured", "that of the metric", "The run's number.", "quality"),
        *_interval("measured", "that of the metric", "quality", prefix="ci"),
        Column(
            "verdict",
            TEXT,
            "`reproduced`, `refuted`, `not resolved` or `not measured`; the claim's own error is "
            "taken to be as large as the run's.",
            "comparison",
        ),
        Column("fingerprint", "8 hex digits", "The run.", "provenance"),
    ),
)

# --- benches --------------------------------------------------------------------------------------

BATCH = Column("batch", "prompts", "Prompts drawn, or images judged, at once.", "what was run")
FIRST = Column("first_s", "s", "First call, with compiling and graph capture.", "latency")
SPREAD = Column("spread", "share", "Half the interquartile range over the median.", "latency")
REPEATS = (
    Column("blocks", "count", "Timed calls, interleaved with those of the others.", "provenance"),
    Column("warm", "True or False", "Whether the warm-up settled before them.", "provenance"),
)
BENCH_MODEL = Column("model", TEXT, "Model, with random weights.", "what was run")
MACHINE = (
    Column("device", TEXT, "Device.", "provenance"),
    Column("driver", TEXT, "NVIDIA driver; on a GPU only.", "provenance"),
    Column("clocks", TEXT, "Highest clocks of cores and memory; on a GPU only.", "provenance"),
    Column("power_cap", TEXT, "Enforced power limit in W; on a GPU only.", "provenance"),
    Column("capability", TEXT, "CUDA version and compute capability, or CPU's.", "provenance"),
    Column("kernels", TEXT, "`Triton`, or why its kernels are not used.", "provenance"),
    Column("torch", TEXT, "Version of torch.", "provenance"),
    Column("python", TEXT, "Version of Python.", "provenance"),
    Column("date", "YYYY-MM-DD", "Day of the measurement.", "provenance"),
    Column(
        "commit", TEXT, "Commit of the code, or its version where it is installed.", "provenance"
    ),
    Column("machine", TEXT, "Host: processor, CPUs, memory and system.", "provenance"),
)

BENCH_SAMPLER = Table(
    "bench/sampler-*.csv",
    "A row for each batch size and sampling loop (`python -m harness.bench sampler`). Image "
    "decoding is left out.",
    (
        BATCH,
        Column(
            "subject",
            TEXT,
            "`ours`; `upstream` (LlamaGen's own code), `own_loop` (a plain loop with a static "
            "cache that we wrote; earlier rows: `loop`), `library` (transformers).",
            "what was run",
        ),
        Column("tokens_per_s", "tokens/s", "Image tokens of the batch per second.", "throughput"),
        Column("ms_per_step", "ms", "Time of a decode step.", "latency"),
        Column("seconds", "s", "Median time of a call that draws the whole batch.", "latency"),
        SPREAD,
        Column(
            "floor_s",
            "s",
            "Time to read weights and cache once per token at `copy_gb_per_s`.",
            "comparison",
        ),
        Column("share_of_floor", "share", "`floor_s` over `seconds`.", "comparison"),
        Column("share_of_matvec", "share", "The same at `matvec_gb_per_s`.", "comparison"),
        Column("times_ours", "ratio", "Time over that of `ours`, paired by block.", "comparison"),
        *_interval("times_ours", "ratio", "comparison", prefix="ci"),
        Column(
            "logits_error",
            "share",
            "Distance of its last logits from those of `ours`, for the same weights and tokens.",
            "comparison",
        ),
        FIRST,
        *REPEATS,
        BENCH_MODEL,
        Column("dtype", TEXT, "Number format of the weights.", "what was run"),
        Column("copy_gb_per_s", "GB/s", "Memory bandwidth of a copy.", "provenance"),
        Column("matvec_gb_per_s", "GB/s", "Bandwidth of matrix-vector products.", "provenance"),
        Column(
            "upstream",
            "12 hex digits",
            "Digest of the files of LlamaGen's own code that were run.",
            "provenance",
        ),
        *MACHINE,
    ),
)

BENCH_METHODS = Table(
    "bench/methods-*.csv",
    "A row for each batch size and method (`python -m harness.bench methods`).",
    (
        BATCH,
        Column("method", TEXT, "Method, as in `conf/method/`.", "what was run"),
        Column("speedup", "ratio", "Plain sampling's time over the method's.", "comparison"),
        *_interval("speedup", "ratio", "comparison", prefix="ci"),
        Column("seconds_per_image", "s", "Median time of a call over its images.", "latency"),
        Column("ms_per_round", "ms", "Median time of a call over its decode steps.", "latency"),
        Column(
            "ms_per_decode",
            "ms",
            "Time of a decode step, without prompts, prefills, drafts and judges.",
            "latency",
        ),
        Column(
            "bookkeeping",
            "share",
            "What a decode step takes longer than one of plain sampling of the same shape.",
            "comparison",
        ),
        *_interval("bookkeeping", "share", "comparison"),
        Column(
            "row_steps",
            "ratio",
            "Active branches over all decode steps, per image, over those of plain sampling.",
            "comparison",
        ),
        Column("passes", "forwards", "`target_passes` of an image.", "cost"),
        FIRST,
        SPREAD,
        *REPEATS,
        BENCH_MODEL,
        *MACHINE,
    ),
)

BENCH_TERMINATION = Table(
    "bench/termination-*.csv",
    "A row for each method that ends candidates early, against one that does not (written by "
    "`python -m harness.bench methods`).",
    (
        Column("batch", "prompts", "Prompts whose candidates fit the slots.", "what was run"),
        Column("queue", "prompts", "Prompts drawn through those slots.", "what was run"),
        Column("method", TEXT, "Method that ends candidates early.", "what was run"),
        Column("against", TEXT, "Method with as many candidates that does not.", "what was run"),
        Column("time_ratio", "ratio", "Time over that of `against`.", "comparison"),
        *_interval("time_ratio", "ratio", "comparison", prefix="ci"),
        Column(
            "row_step_ratio", "ratio", "Active branch steps over those of `against`.", "comparison"
        ),
        Column(
            "excess",
            "ratio",
            "`time_ratio` over `row_step_ratio`: 1 if all that was saved is saved in seconds.",
            "comparison",
        ),
        Column("round_ratio", "ratio", "Decode steps over those of `against`.", "comparison"),
        *REPEATS,
        BENCH_MODEL,
        *MACHINE,
    ),
)

BENCH_JUDGES = Table(
    "bench/judges-*.csv",
    "A row for each batch size and judge (`python -m harness.bench judges`).",
    (
        BATCH,
        Column("judge", TEXT, "Judge, as in `conf/judge/`.", "what was run"),
        Column("images_per_s", "images/s", "Images judged per second.", "throughput"),
        FIRST,
        SPREAD,
        *REPEATS,
        BENCH_MODEL,
        *MACHINE,
    ),
)

# --- frames ---------------------------------------------------------------------------------------

IMAGES = Table(
    "images of harness.load",
    "A row for each planned image of each run. A column `metrics.NAME` for each metric, and one "
    "`notes.NAME` for each thing that methods noted, follow.",
    (
        *LEADERBOARD.select("benchmark", "model", "method", "label", "seed", "fingerprint"),
        Column("prompt_id", TEXT, "Prompt.", "what was run"),
        Column("image", "integer", "Number of the image of its prompt, from 0.", "what was run"),
        Column("category", TEXT, "Category of the prompt.", "what was run"),
        Column("prompt", TEXT, "Text of the prompt.", "what was run"),
        Column("status", TEXT, "`done`, `failed` or `missing`.", "what was run"),
        Column(
            "score",
            SHARE,
            "Value that the judge gave the image; missing where it was not judged, which counts "
            "as 0 in scores of runs.",
            "quality",
        ),
        Column("reason", TEXT, "Why it counts so, in words.", "quality"),
        Column("detail", "mapping", "All else that the judge said.", "quality"),
        *LEADERBOARD.select(*COSTS, *STAGE_SECONDS),
        Column("file", TEXT, "The image's file; empty where it is not there.", "provenance"),
    ),
)

PROMPTS = Table(
    "prompts of harness.load",
    "A row for each prompt of each benchmark.",
    (
        *LEADERBOARD.select("benchmark", "prompts_sha"),
        *IMAGES.select("prompt_id", "category", "prompt"),
        Column("weight", "ratio", "Weight of the prompt in its category's mean.", "what was run"),
        Column("cluster", TEXT, "Prompts of one cluster are resampled together.", "what was run"),
    ),
)

FRAMES = (IMAGES, PROMPTS)
"""Tables that are in no file: what `harness.load` returns beside the leaderboard's rows."""

TABLES = (
    LEADERBOARD,
    METRICS,
    CURVES,
    CLAIMED,
    BENCH_SAMPLER,
    BENCH_METHODS,
    BENCH_TERMINATION,
    BENCH_JUDGES,
)

# --- the documentation page -----------------------------------------------------------------------

INTRODUCTION = """\
# Columns of the tables

Made by `python -m harness.results.columns > docs/columns.md`; do not edit.

Files lie below the results folder. An empty cell is unknown or does not apply. Columns of
leaderboard.csv with a dagger (†) follow from clocks: they differ between two runs of the same jobs
on one machine with one version of the code, the others do not.

A bench appends its rows to its file and keeps those of earlier days, commits and machines. Their
cells are empty in columns that were added later.

In Python, `harness.load(folder)` has the same as pandas frames: `.runs` are the rows of
leaderboard.csv in the types of their columns, with the `folder` of each run and a column for each
option of its method (`method.n`) and sampling (`model.sampling.scale`); `.images` and `.prompts`
are described at the end.
"""


def to_markdown() -> str:
    """Render all tables as one Markdown page; the leaderboard's columns are sorted by group."""
    parts = [INTRODUCTION]
    for table in (*TABLES, *FRAMES):
        parts.append(f"## {table.file}\n\n{table.rows}\n")
        if table is LEADERBOARD:
            for group in GROUPS:
                members = table.select(*table.names_in(group))
                parts.append(f"### {group.capitalize()}\n\n{_markdown_table(members)}")
            parts.append(f"### Sets of images\n\n{_markdown_table(SET_METRICS)}")
        else:
            parts.append(_markdown_table(table.columns))
    return "\n".join(parts)


def _markdown_table(columns: tuple[Column, ...]) -> str:
    lines = ["| column | unit | meaning |", "|---|---|---|"]
    for column in columns:
        dagger = " †" if column.timed else ""
        lines.append(f"| `{column.name}`{dagger} | {column.unit} | {column.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(to_markdown(), end="")
