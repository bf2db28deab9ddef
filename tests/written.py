"""Run folders written by hand, with known scores and costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from harness.records import Prompt, SampleRecord, Score, Usage

JUDGE = "judge-1"
Values = Mapping[str, Sequence[float | None]]
"""Prompt id -> value of each image; None was delivered and not judged."""


def prompts_of(values: Values) -> list[Prompt]:
    """Prompts whose category is what their id begins with: "colors/3" is of colors."""
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
    """A finished run of a benchmark `made` on the model `toy`; plain costs 100 tokens, 101 passes
    and 1 s an image.
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
    (folder / "config.yaml").write_text(
        yaml.safe_dump(config, allow_unicode=True), encoding="utf-8"
    )
    cost = Usage(
        **{"sampled": 100, "target_passes": 101, "device_s": 1.0, "wall_s": 1.0, **(usage or {})}
    )
    stamp = {"commit": "abc1234", "device": "cpu"}
    jobs = []
    records = []
    scores = []
    for prompt in prompts:
        row = {
            "prompt_id": prompt.id,
            "text": prompt.text,
            "category": prompt.category,
            "images": images,
        }
        jobs.append(json.dumps({**row, **prompt.extra_fields}, ensure_ascii=False))
        for image, value in enumerate(values[prompt.id]):
            record = SampleRecord(
                prompt.id, image, prompt.category, "done", cost, notes=notes or {}, stamp=stamp
            )
            records.append(record.to_json())
            scores.append(Score(prompt.id, image, JUDGE, value).to_json())
    for name, lines in (("jobs", jobs), ("records-0", records), ("scores", scores)):
        (folder / f"{name}.jsonl").write_text(
            "".join(f"{line}\n" for line in lines), encoding="utf-8"
        )
    return folder
