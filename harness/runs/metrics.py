"""Read what metrics say of the images of a run, beside its benchmark's judge.

A metric is a reward under a name: what gives a number for a text and an image. A run folder has

    metrics.json       what each metric is: the id of its scorer, its unit and direction
    metrics.jsonl      one line for each measured image and metric; metrics-1.jsonl of another share

Metrics name no run: they are not in the fingerprint, so that a finished run is measured by another
one without being drawn again. Readers see the values as `detail.metrics` of an image's score.
`measure` writes these files.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self

from harness.records import STRICT, UserError, dump, one_line, parse_row
from harness.runs.journal import read_journals

Key = tuple[str, int]
"""Prompt id and number of an image."""
Better = Literal["higher", "lower"]

DESCRIPTION = "metrics.json"
JOURNALS = "metrics*.jsonl"
"""Files of a run folder that tell of metrics."""
NOT_FINITE = "no finite number"
"""How the reason begins for which an image is measured again by the next run."""


@dataclass(frozen=True, slots=True)
class MetricAbout:
    """What a reader must know of a metric. Values of scorers of different ids are not compared."""

    __pydantic_config__: ClassVar = STRICT

    id: str
    unit: str = "score"
    better: Better = "higher"
    digits: int = 4  # after the decimal point, in tables
    excluded: str = ""  # why its values must not enter a table


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of a run's metrics: what one metric says of an image."""

    __pydantic_config__: ClassVar = STRICT

    prompt_id: str
    image: int
    metric: str  # its name
    scorer: str  # id of what measured the image
    value: float | None  # None: there is no number, and `reason` says why
    reason: str = ""
    cut: int = 0  # tokens at the text's end that the scorer did not read

    @property
    def key(self) -> tuple[str, int, str, str]:
        """Identify the measurement in its run."""
        return self.prompt_id, self.image, self.metric, self.scorer

    @property
    def is_final(self) -> bool:
        """Tell whether the next run takes it as it is."""
        return not self.reason.startswith(NOT_FINITE)

    def to_json(self) -> str:
        """Write it as a line of JSON; fields without a word are left out."""
        row = dataclasses.asdict(self)
        for name in ("reason", "cut"):
            if not row[name]:
                del row[name]
        return dump(row)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read a line of JSON. Raises ValueError that names the field and its value."""
        found = parse_row(cls, line)
        if found.value is not None and not math.isfinite(found.value):
            raise ValueError(f"value {found.value}: no finite number")
        return found


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric of a run that is read: what it is, and its value of each image that has one."""

    about: MetricAbout
    values: Mapping[Key, float]
    reasons: Mapping[Key, str] = field(default_factory=dict)  # why others have none
    cut: int = 0  # images whose text was not read to its end


def read_descriptions(folder: Path) -> dict[str, MetricAbout]:
    """Read what the metrics of a run folder are, by name; {} without any.

    Raises UserError for a file that cannot be read.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): parse_row(MetricAbout, dump(row)) for name, row in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: cannot be read ({one_line(error)}); restore or delete it"
        ) from None


def read_metrics(folder: Path) -> dict[str, Measured]:
    """Read all metrics of a run folder, by name. Of several scorers of a name the last counts.

    Raises UserError for files that cannot be read.
    """
    described = read_descriptions(folder)
    if not described:
        return {}
    lines: dict[str, dict[Key, Measurement]] = {name: {} for name in described}
    for one in read_journals(folder, JOURNALS, Measurement.from_json):
        about = described.get(one.metric)
        if about is not None and about.id == one.scorer:
            lines[one.metric][one.prompt_id, one.image] = one
    return {name: _sum_up(described[name], lines[name]) for name in described}


def _sum_up(about: MetricAbout, lines: Mapping[Key, Measurement]) -> Measured:
    values = {key: one.value for key, one in lines.items() if one.value is not None}
    reasons = {key: one.reason for key, one in lines.items() if one.value is None}
    return Measured(about, values, reasons, cut=sum(one.cut > 0 for one in lines.values()))
