"""Run folders written by hand, with known scores and costs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from harness.records import Prompt, SampleRecord, Score, Usage

JUDGE = "judge-1"
PLAIN_COST = {"sampled": 100, "target_passes": 101, "device_s": 1.0, "wall_s": 1.0}
STAMP = {"commit": "abc1234", "device": "cpu"}
Values = Mapping[str, Sequence[float | None]]
"""Prompt id -> value of each image; None was delivered and not judged."""


def prompts_of(values: Values) -> list[Prompt]:
    """Make prompts whose category is what their id begins with: "colors/3" is of colors."""
    return [Prompt(name, f"text of {name}", name.partition("/")[0]) for name in values]


def write_run(
    results: Path,
    values: Values,
    method: str = "plain",
    *,
    fingerprint: str = "00000001",
    params: str = "",
    options: Mapping[str, object] | None = None,
    prompts: Sequence[Prompt] | None = None,
    usage: Mapping[str, float] | None = None,
    concurrency: int | None = None,
    notes: Mapping[str, object] | None = None,
    **about: object,
) -> Path:
    """Write a finished run of a benchmark `made` on the model `toy`; returns its folder.

    An image costs 100 tokens, 101 passes and 1 s, unless `usage` says otherwise.
    """
    prompts = prompts_of(values) if prompts is None else prompts
    images = len(next(iter(values.values())))
    folder = results / "made" / "toy" / f"{method}-{fingerprint}"
    folder.mkdir(parents=True)
    run = {
        "benchmark": "made",
        "model": "toy",
        "method": method,
        "params": params,
        "fingerprint": fingerprint,
        "seed": 0,
        "images_per_prompt": images,
        "planned": len(values) * images,
        "numerics": "constant",
        "judge": JUDGE,
        "version": "1",
        "prompts_sha": "a" * 16,
        "schema": 1,
        **about,
    }
    config = {
        "method": {"_target_": "x", **(options or {})},
        "sampler": {"concurrency": concurrency},
        "run": run,
    }
    text = yaml.safe_dump(config, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")

    cost = Usage(**{**PLAIN_COST, **(usage or {})})
    records = []
    scores = []
    for prompt in prompts:
        for image, value in enumerate(values[prompt.id]):
            record = SampleRecord(
                prompt.id, image, prompt.category, "done", cost, notes=notes or {}, stamp=STAMP
            )
            records.append(record.to_json())
            scores.append(Score(prompt.id, image, JUDGE, value).to_json())
    write_lines(folder / "jobs.jsonl", [_job(prompt, images) for prompt in prompts])
    write_lines(folder / "records-0.jsonl", records)
    write_lines(folder / "scores.jsonl", scores)
    return folder


def write_lines(file: Path, lines: Iterable[str]) -> None:
    """Write a journal."""
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _job(prompt: Prompt, images: int) -> str:
    """Return a prompt's line of jobs.jsonl: weight and cluster only where they are set."""
    job: dict[str, object] = {
        "prompt_id": prompt.id,
        "text": prompt.text,
        "category": prompt.category,
        "images": images,
    }
    if prompt.weight != 1:
        job["weight"] = prompt.weight
    if prompt.cluster:
        job["cluster"] = prompt.cluster
    return json.dumps(job, ensure_ascii=False)
