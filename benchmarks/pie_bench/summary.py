"""Sum up a run: each metric's mean with an interval, per edit type, and against another run.

Published numbers are plain means over all images that have a value. Structure distance, PSNR and
CLIP are in scales of their own, so nothing sums them up.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from benchmarks.pie_bench.metrics import (
    FACTORS,
    KNOWN,
    METRICS,
    NO_VALUE,
    SOURCE_SIMILARITY,
    Metric,
    average,
)
from harness.records import Score, UserError, one_line

RESULTS = "pie_bench-results.csv"
"""The file of a run folder with a row for each image."""
RESULT_FILES = (RESULTS, "edit_pictogram-results.csv")
"""Such files of all benchmarks of edits."""
INFINITE = "infinite"
"""Entry of a score's detail: metrics that are infinite, which JSON has no number for."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean in the printed scale, its 95 % interval, and the images that it is of."""

    value: float
    low: float
    high: float
    images: int


def read_value(score: Score, name: str) -> float | None:
    """Return a metric of a score, infinite where it was; None without a value."""
    if name in score.detail.get(INFINITE, ()):
        return math.inf
    value: float | None = score.detail.get("metrics", {}).get(name)
    return value


def average_metric(scores: Sequence[Score], categories: Mapping[str, str], metric: Metric) -> Mean:
    """Average a metric over the images that have it; `categories` are those of the prompts."""
    values = [read_value(score, metric.name) for score in scores]
    mean, number = average(values)
    low, high = _find_interval(_tabulate(scores, categories, metric))
    factor = metric.factor
    return Mean(factor * mean, factor * low, factor * high, number)


def _tabulate(
    scores: Sequence[Score], categories: Mapping[str, str], metric: Metric
) -> pd.DataFrame:
    """Tabulate the finite values of a metric, as statistics read them."""
    rows = []
    for score in scores:
        value = read_value(score, metric.name)
        if value is not None and math.isfinite(value):
            rows.append((categories[score.prompt_id], score.prompt_id, score.image, value))
    return pd.DataFrame(rows, columns=["category", "prompt_id", "image", "value"])


def _find_interval(table: pd.DataFrame) -> tuple[float, float]:
    """Return the bootstrap interval of the plain mean; nan where an edit type has one image."""
    from harness.results.stats import Design, percentile_interval, stack_prompt_means

    if table.empty:
        return math.nan, math.nan
    design = Design(table)
    if not design.error_is_known:
        return math.nan, math.nan
    value_1P = stack_prompt_means([table])
    draws_DC = design.bootstrap(value_1P)[:, 0]
    return percentile_interval(draws_DC @ design.micro_weights())


# --- one run --------------------------------------------------------------------------------------


def summarise_metrics(
    scores: Sequence[Score], categories: Mapping[str, str], metrics: Sequence[Metric] = METRICS
) -> Iterator[str]:
    """Format a line for each metric, then a table of the edit types."""
    if not scores:
        yield "no image was scored"
        return
    for metric in metrics:
        mean = average_metric(scores, categories, metric)
        better = "larger" if metric.larger_is_better else "smaller"
        yield (
            f"{metric.title:<26} {mean.value:8.2f} {_format_interval(mean)}, "
            f"{mean.images} images, {better} is better"
        )
    untouched = sum("psnr_unedit_part" in score.detail.get(INFINITE, ()) for score in scores)
    if untouched:
        yield (
            f"{untouched} outputs equal their source outside the mask: their infinite PSNR is in "
            "no mean"
        )
    yield from _format_types(scores, categories, metrics)


def _format_interval(mean: Mean) -> str:
    if math.isnan(mean.low):
        return "(no interval: an edit type has a single image)"
    return f"[{mean.low:.2f}, {mean.high:.2f}]"


def _format_types(
    scores: Sequence[Score], categories: Mapping[str, str], metrics: Sequence[Metric]
) -> Iterator[str]:
    heads = " ".join(f"{metric.head:>9}" for metric in metrics)
    yield f"{'by edit type':<18} {'images':>6} {heads}"
    for category in dict.fromkeys(categories.values()):
        own = [score for score in scores if categories[score.prompt_id] == category]
        if not own:
            continue
        shown = []
        for metric in metrics:
            mean, _ = average([read_value(score, metric.name) for score in own])
            shown.append(f"{metric.factor * mean:9.2f}")
        yield f"{category:<18} {len(own):>6} " + " ".join(shown)


def take_number(prompt_id: str) -> str:
    """Return what follows the benchmark's name in the id of a prompt."""
    return prompt_id.rpartition("/")[2]


def write_results(
    scores: Sequence[Score],
    method: str,
    metrics: Sequence[Metric] = METRICS,
    name_file: Callable[[str], str] = take_number,
) -> str:
    """Write a row for each image as the reference does: `file_id`, then `method|metric`.

    `name_file` makes the file id of a prompt id: it begins with the number of the edit type.
    """
    names = [metric.name for metric in metrics]
    if any(SOURCE_SIMILARITY in score.detail.get("metrics", {}) for score in scores):
        names.append(SOURCE_SIMILARITY)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_id", *(f"{method}|{name}" for name in names)])
    for score in sorted(scores, key=lambda score: (score.prompt_id, score.image)):
        values = [read_value(score, name) for name in names]
        shown = [NO_VALUE if value is None else value for value in values]
        file_id = name_file(score.prompt_id)
        writer.writerow([file_id if score.image == 0 else f"{file_id}-{score.image}", *shown])
    return text.getvalue()


# --- two result files -----------------------------------------------------------------------------


def compare_results(one: Path, other: Path) -> Iterator[str]:
    """Compare two result files in all their metrics, paired by image.

    Images that one lacks are left out; images of one edit depend on each other.

    Each is a run folder, or a file as the reference writes it. Raises UserError for files that
    cannot be read, and for runs that were scored under different protocols.
    """
    protocols = [_read_protocol(path) for path in (one, other)]
    if all(protocols) and protocols[0] != protocols[1]:
        raise UserError(
            f"{one} and {other} were scored under different protocols: {protocols[0]}, and "
            f"{protocols[1]}"
        )
    tables = [_read_results(path) for path in (one, other)]
    yield f"A = {one.name}    B = {other.name}    paired by image, A - B"
    present = set(tables[0]["metric"]) | set(tables[1]["metric"])
    for metric in KNOWN:
        if metric.name in present:
            yield _compare_metric(tables[0], tables[1], metric)


def _read_protocol(path: Path) -> str:
    """Name the version and judge of a run folder; "" where they are not known."""
    config = path / "config.yaml"
    if not config.is_file():
        return ""
    run = yaml.safe_load(config.read_text(encoding="utf-8"))["run"]
    return f"{run['version']} by {run['judge']}"


def _read_results(path: Path) -> pd.DataFrame:
    """Read a value of each image and metric.

    The columns are category, prompt_id, file_id, metric and value. A file id begins with the number
    of its edit type, and ends with the image's number where an edit has several images.
    """
    file = _find_results(path)
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            lines = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read ({one_line(error)})") from None
    rows = []
    for number, line in enumerate(lines, start=2):
        for column, text in line.items():
            metric = str(column).rpartition("|")[2]
            if metric not in FACTORS or text in (None, "", NO_VALUE):
                continue
            try:
                value = float(str(text))
            except ValueError:
                raise UserError(f"{file}, line {number}: {column} {text!r} is no number") from None
            if math.isfinite(value):
                file_id = line["file_id"]
                rows.append((file_id[:1], file_id.partition("-")[0], file_id, metric, value))
    if not rows:
        raise UserError(f"{file}: no metrics: it is no result file of PIE-Bench")
    return pd.DataFrame(rows, columns=["category", "prompt_id", "file_id", "metric", "value"])


def _find_results(path: Path) -> Path:
    """Return the result file of a run folder, or the file that a path names itself."""
    if not path.is_dir():
        return path
    found = [path / name for name in RESULT_FILES if (path / name).is_file()]
    return found[0] if found else path / RESULTS


def _compare_metric(one: pd.DataFrame, other: pd.DataFrame, metric: Metric) -> str:
    from harness.results.stats import Design, compare_paired, stack_prompt_means

    tables = [table[table["metric"] == metric.name] for table in (one, other)]
    both = set(tables[0]["file_id"]) & set(tables[1]["file_id"])
    if not both:
        return f"{metric.title:<26} no image has a value in both"
    of_both = [table[table["file_id"].isin(both)] for table in tables]
    design = Design(of_both[0])
    value_RP: np.ndarray = stack_prompt_means(of_both)
    found = compare_paired(design, value_RP[0], value_RP[1], design.micro_weights())
    factor = metric.factor
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    means = value_RP.mean(axis=1) * factor
    return (
        f"{metric.title:<26} {means[0]:8.2f} {means[1]:8.2f}  {factor * found.value:+.2f} "
        f"[{factor * found.low:+.2f}, {factor * found.high:+.2f}], {p}, {len(both)} images"
    )
