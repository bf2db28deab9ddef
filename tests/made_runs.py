"""Run folders made without drawing: journals, scores and small images, the same ones every time."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from written_runs import STAMP, write_lines

from harness import pack_picture, pack_series
from harness.records import SampleRecord, Score, Usage, digest
from harness.runs.folder import encode_png

JUDGE = "judge@1"
TASKS = ("colors", "counting", "position")
BUDGETS = {"plain": 1, "best_of_n": 4, "gridar": 4, "scalingar": 3, "speculative": 1}
"""Plain images that an image of each method costs."""
SKILL = {"plain": 0.4, "best_of_n": 0.8, "gridar": 0.8, "scalingar": 0.6, "speculative": 0.4}
"""Chance that an image of each method is right."""


def make_run(
    results: Path,
    method: str = "plain",
    *,
    params: str = "",
    n: int | None = None,
    prompts: int = 12,
    images: int = 2,
    texts: Mapping[int, str] | None = None,
    drop: Sequence[int] = (),
    pictures: bool = True,
    pixels: int = 16,
    benchmark: str = "made",
    **about: Any,
) -> Path:
    """Make a run of `prompts` prompts over three tasks; returns its folder.

    Images are numbered prompt by prompt; those in `drop` were not drawn.
    """
    named = f"{benchmark} {method} {params} {n} {prompts} {images} {sorted(about)}"
    fingerprint = digest(named.encode(), 8)
    folder = results / benchmark / "small" / f"{method}-{fingerprint}"
    folder.mkdir(parents=True)
    run = {
        "benchmark": benchmark,
        "model": "small",
        "method": method,
        "params": params,
        "seed": 0,
        "planned": prompts * images,
        "images_per_prompt": images,
        "fingerprint": fingerprint,
        "judge": JUDGE,
        "numerics": "constant",
        "memory_gb": 0.01 * (1 + BUDGETS[method]),
        **about,
    }
    options = {"_target_": "x", **({} if n is None else {"n": n})}
    config = {"method": options, "sampler": {"concurrency": None}, "run": run}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))

    chance = random.Random(f"{method} {n}")
    skill = SKILL[method] * (1 if n is None else min(1.0, 0.6 + n / 10))
    jobs = []
    records = []
    scores = []
    for p in range(prompts):
        job = {
            "prompt_id": f"made/{p:05d}",
            "category": TASKS[p % len(TASKS)],
            "images": images,
            "text": (texts or {}).get(p, f"a photo of {p} things"),
        }
        jobs.append(json.dumps(job))
        for image in range(images):
            right = chance.random() < skill
            if p * images + image in drop:
                continue
            pixel = _pixels(method, p, image, pixels, right=right)
            record = _record(job, image, method, n, pixel, chance)
            if pictures:
                file = folder / record.path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encode_png(pixel))
            records.append(record.to_json())
            scores.append(_score(record, right=right).to_json())
    write_lines(folder / "jobs.jsonl", jobs)
    write_lines(folder / "records-0.jsonl", records)
    write_lines(folder / "scores.jsonl", scores)
    return folder


def make_board(results: Path, **options: Any) -> list[Path]:
    """Make one run of every kind that the report shows in a way of its own."""
    return [
        make_run(results, "plain", **options),
        make_run(results, "best_of_n", n=2, params="n=2", **options),
        make_run(results, "best_of_n", n=4, **options),
        make_run(results, "scalingar", n=3, params="n=3", **options),
        make_run(results, "gridar", n=4, **options),
        make_run(results, "speculative", **options),
    ]


def _pixels(method: str, p: int, image: int, side: int, *, right: bool) -> np.ndarray:
    """Return an image [side, side, 3] that no other prompt, image or method has."""
    pixel = np.full((side, side, 3), (17 * p % 256, 90, 200 if right else 40), np.uint8)
    pixel[image, p % side] = 255 - 10 * len(method)
    return pixel


def _record(
    job: Mapping[str, Any],
    image: int,
    method: str,
    n: int | None,
    pixel: np.ndarray,
    chance: random.Random,
) -> SampleRecord:
    """Return the record of a delivered image."""
    budget = BUDGETS[method] if n is None else n
    device_s = 0.1 * budget + 0.001 * chance.random()
    usage = Usage(
        sampled=144 * budget,
        target_passes=145,
        device_s=device_s,
        prefill_s=0.1 * device_s,
        decode_s=0.8 * device_s,
        render_s=0.1 * device_s,
        save_s=0.002,
    )
    number = job["prompt_id"].removeprefix("made/")
    return SampleRecord(
        job["prompt_id"],
        image,
        job["category"],
        "done",
        usage,
        tokens_sha="t",
        image_sha=digest(encode_png(pixel)),
        path=f"images/{number}/{image}.png",
        notes=_notes(method, n, pixel, chance),
        stamp=STAMP,
    )


def _score(record: SampleRecord, *, right: bool) -> Score:
    kept = {"thing": [[2.0, 3.0, 9.0, 12.0, 0.9, "red"]]}
    reasons = [] if right else ["expected thing>=2, found 1"]
    detail = {"kept": kept, "reasons": reasons}
    return Score(record.prompt_id, record.image, JUDGE, float(right), detail)


def _notes(method: str, n: int | None, pixel: np.ndarray, chance: random.Random) -> dict[str, Any]:
    """Return what a method notes about an image."""
    if method == "speculative":
        return {"accepted": [30, 10, 5, 0]}
    if method == "best_of_n":
        return {"scores": [round(chance.random(), 3) for _ in range(n or 4)], "chosen": 1}
    if method == "scalingar":
        return _scalingar_notes()
    if method == "gridar":
        quarter = {
            "stage": "quarter",
            "pictures": [pack_picture(pixel)],
            "replies": ["x"],
            "texts": ["a", "b", "c", "d"],
            "possible": [True, False, True, True],
            "source": [0, 0, 2, 3],
        }
        return {"stages": [quarter]}
    return {}


def _scalingar_notes() -> dict[str, Any]:
    """Return the trace of three candidates over 16 steps, two of which were terminated."""
    terminated_at = [None, 5, 8]
    confidence = []
    for step in range(16):
        for i, last in enumerate(terminated_at):
            if last is None or step <= last:
                confidence.append(0.5 + 0.01 * step + 0.1 * i)
    trace = {
        "confidence": pack_series(np.array(confidence)),
        "threshold": pack_series(np.full(16, 0.5)),
    }
    return {"chosen": 0, "terminated_at": terminated_at, "trace": trace}
