"""Run folders, read: what was planned, delivered, judged, and under which protocol. Compressed
journals read alike.

A folder holds `config.yaml` (with what the run is, under `run`), `jobs.jsonl` (the planned images),
`records-*.jsonl` (what was delivered or failed, one file per shard), `scores*.jsonl` and, where
seconds were measured, `timings-*.jsonl`; each may be packed (`.gz`). Images are not read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from harness.records import Prompt, SampleRecord, Score, Timing, UserError, digest, dump, one_line
from harness.runs.folder import SCHEMA
from harness.runs.journal import journals, read_lines

Key = tuple[str, int]


class Protocol(NamedTuple):
    """What two runs must share to be put into one ranking."""

    benchmark: str
    version: str
    prompts_sha: str
    judge: str
    images_per_prompt: int
    numerics: str
    model: str

    @property
    def id(self) -> str:
        """Eight hexadecimal digits that name it."""
        return digest(dump(list(self)).encode(), 8)


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    path: Path
    config: Mapping[str, Any]
    about: Mapping[str, Any]  # the `run` mapping of config.yaml
    prompts: Mapping[str, Prompt]  # by id, without answer keys
    planned: Mapping[Key, str]  # (prompt_id, image) -> category
    done: Mapping[Key, SampleRecord]
    failed: frozenset[Key]  # not done, and the last attempt failed
    scores: Mapping[Key, Score]
    judge: str  # "" before the first score
    timings: Sequence[Timing] = ()  # one for each process that drew to its end

    @property
    def name(self) -> str:
        """Method and options, for people."""
        return (
            f"{self.about['method']} {options(str(self.about['params']), self.candidates)}".strip()
        )

    @property
    def fingerprint(self) -> str:
        return str(self.about["fingerprint"])

    @property
    def excluded(self) -> str:
        """Why the run must not enter a leaderboard; "" if it may."""
        return str(self.about.get("excluded") or "")

    @property
    def complete(self) -> bool:
        """Whether every planned image was delivered: only such a run is a baseline for others."""
        return len(self.done) == len(self.planned)

    @property
    def concurrency(self) -> int | None:
        """Images in flight; 1 for a latency run, None for as many as fit."""
        return (self.config.get("sampler") or {}).get("concurrency")

    @property
    def scenario(self) -> str:
        """How seconds were measured, in MLPerf's words."""
        return "SingleStream" if self.concurrency == 1 else "Offline"

    @property
    def options(self) -> Mapping[str, Any]:
        """The method's options."""
        return self.config.get("method") or {}

    def image(self, record: SampleRecord) -> Path | None:
        """A delivered image's file, if it is still there; never one outside the run folder."""
        file = self.path / record.path
        inside = bool(record.path) and file.resolve().is_relative_to(self.path.resolve())
        return file if inside and file.is_file() else None

    @property
    def candidates(self) -> int | None:
        """Candidates of an image, for methods that have a number of them."""
        n = self.options.get("n")
        return n if isinstance(n, int) else None

    @cached_property
    def device(self) -> str:
        """What drew its images."""
        return self.stamped("device")

    def stamped(self, name: str) -> str:
        """What the images' stamps say of "device" or "commit", joined where they differ."""
        return "+".join(sorted({r.stamp[name] for r in self.done.values() if r.stamp.get(name)}))

    @cached_property
    def protocol(self) -> Protocol:
        about = self.about
        asked = [
            [p.id, p.text, p.category, p.extra_fields] for _, p in sorted(self.prompts.items())
        ]
        return Protocol(
            benchmark=str(about["benchmark"]),
            version=str(about.get("version") or ""),
            prompts_sha=str(about.get("prompts_sha") or digest(dump(asked).encode(), 16)),
            judge=self.judge,
            images_per_prompt=max(image for _, image in self.planned) + 1,
            numerics=str(about.get("numerics") or ""),
            model=str(about["model"]),
        )

    @cached_property
    def aggregates(self) -> dict[str, dict[str, float]]:
        """Named linear combinations of category means; "score" is the first."""
        named = dict(self.about.get("aggregates") or {})
        if "score" not in named:
            categories = sorted(set(self.planned.values()))
            named["score"] = dict.fromkeys(categories, 1 / len(categories))
        return {name: dict(named[name]) for name in ["score", *sorted(set(named) - {"score"})]}

    @cached_property
    def unjudged(self) -> frozenset[Key]:
        """Delivered images without a value."""
        return frozenset(
            key for key in self.done if key not in self.scores or self.scores[key].value is None
        )

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per planned image in sorted order (see stats); what was not delivered or not
        judged has value 0.
        """
        judged = {key: score.value for key, score in self.scores.items() if key in self.done}
        rows = [
            (
                p,
                i,
                self.planned[p, i],
                self.prompts[p].weight,
                self.prompts[p].cluster,
                judged.get((p, i)) or 0.0,
            )
            for p, i in sorted(self.planned)
        ]
        return pd.DataFrame(
            rows, columns=["prompt_id", "image", "category", "weight", "cluster", "value"]
        )


def options(params: str, candidates: float | None) -> str:
    """A method's changed options, and its number of candidates also where that is the
    configuration's own.
    """
    shown = params.split(", ") if params else []
    if (
        candidates is not None
        and not math.isnan(candidates)
        and not any(part.startswith("n=") for part in shown)
    ):
        shown.insert(0, f"n={candidates:.0f}")
    return ", ".join(shown)


def find_runs(results: Path) -> list[Path]:
    """Run folders below a results folder: benchmark/model/method-fingerprint. Raises UserError if
    it is not there.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such results folder")
    return sorted(path.parent for path in results.glob("[!.]*/*/*/config.yaml"))


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UserError naming it, and the line where there is one."""
    config, about = _config(folder)
    (jobs,) = journals(folder, "jobs.jsonl")
    prompts: dict[str, Prompt] = {}
    planned: dict[Key, str] = {}
    for prompt, images in read_lines(jobs, _job):
        prompts[prompt.id] = prompt
        planned |= {(prompt.id, image): prompt.category for image in range(images)}
    if not planned:
        raise UserError(f"{jobs}: no image is planned")
    if len(planned) != about["planned"]:
        raise UserError(
            f"{folder}: config.yaml plans {about['planned']} images, jobs.jsonl lists {len(planned)}"
        )
    done: dict[Key, SampleRecord] = {}
    failed: set[Key] = set()
    for journal in journals(folder, "records-*.jsonl"):
        for record in read_lines(journal, SampleRecord.from_json) if journal.exists() else ():
            if record.key not in planned:
                raise UserError(
                    f"{journal}: image {record.image} of {record.prompt_id} is not among the planned ones"
                )
            if record.status == "done":
                done[record.key] = record
            else:
                failed.add(record.key)
    judge, scores = _scores(folder, str(about.get("judge") or ""))
    paths = [path for path in journals(folder, "timings-*.jsonl") if path.exists()]
    timings = tuple(timing for path in paths for timing in read_lines(path, Timing.from_json))
    return Run(
        folder,
        config,
        about,
        prompts,
        planned,
        done,
        frozenset(failed - done.keys()),
        scores,
        judge,
        timings,
    )


def _config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        about = config.get("run")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from None
    if not isinstance(about, dict):
        raise UserError(f"{path}: no 'run' mapping, so {folder} is no run folder")
    if (schema := about.get("schema", 1)) > SCHEMA:
        raise UserError(
            f"{path}: written in schema {schema}, this version reads up to {SCHEMA}: update it"
        )
    needed = ("benchmark", "model", "method", "params", "fingerprint", "seed", "planned")
    if absent := [name for name in needed if name not in about]:
        raise UserError(f"{path}: run.{absent[0]} is missing")
    return config, about


def _scores(folder: Path, judge: str) -> tuple[str, dict[Key, Score]]:
    paths = [path for path in journals(folder, "scores*.jsonl") if path.exists()]
    lines = [score for path in paths for score in read_lines(path, Score.from_json)]
    judges = {judge} if judge else {score.judge for score in lines}
    if len(judges) > 1:
        names = ", ".join(sorted(judges))
        raise UserError(
            f"{paths[0]}: scores of several judges ({names}); one row needs one judge, named as run.judge"
        )
    return "".join(judges), {(s.prompt_id, s.image): s for s in lines if s.judge in judges}


def _job(line: str) -> tuple[Prompt, int]:
    row = json.loads(line)
    prompt = Prompt(
        row["prompt_id"],
        row.get("text", ""),
        row["category"],
        weight=float(row.get("weight", 1.0)),
        cluster=row.get("cluster", ""),
    )
    return prompt, int(row["images"])
