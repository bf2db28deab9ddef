"""Run folders made without drawing: journals, scores and small images, the same ones every time."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from harness import pack_picture, pack_series
from harness.records import SampleRecord, Score, Usage, digest
from harness.runs.folder import encode_png

TASKS = ("colors", "counting", "position")
BUDGETS = {"plain": 1, "best_of_n": 4, "gridar": 4, "scalingar": 3, "speculative": 1}
SKILL = {"plain": 0.4, "best_of_n": 0.8, "gridar": 0.8, "scalingar": 0.6, "speculative": 0.4}


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
    """A run of `prompts` prompts over three tasks; the entries in `drop` were not drawn. Returns
    its folder.
    """
    fingerprint = digest(
        f"{benchmark} {method} {params} {n} {prompts} {images} {sorted(about)}".encode(), 8
    )
    folder = results / benchmark / "small" / f"{method}-{fingerprint}"
    folder.mkdir(parents=True)
    chance = random.Random(f"{method} {n}")
    run = {
        "benchmark": benchmark,
        "model": "small",
        "method": method,
        "params": params,
        "seed": 0,
        "planned": prompts * images,
        "images_per_prompt": images,
        "fingerprint": fingerprint,
        "judge": "judge@1",
        "numerics": "constant",
        "memory_gb": 0.01 * (1 + BUDGETS[method]),
        **about,
    }
    options = {"_target_": "x", **({} if n is None else {"n": n})}
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"method": options, "sampler": {"concurrency": None}, "run": run})
    )
    jobs = []
    records = []
    scores = []
    for p in range(prompts):
        prompt_id = f"made/{p:05d}"
        category = TASKS[p % len(TASKS)]
        text = (texts or {}).get(p, f"a photo of {p} things")
        jobs.append(
            json.dumps(
                {"prompt_id": prompt_id, "category": category, "images": images, "text": text}
            )
        )
        for image in range(images):
            right = chance.random() < SKILL[method] * (1 if n is None else min(1.0, 0.6 + n / 10))
            if p * images + image in drop:
                continue
            path = f"images/{p:05d}/{image}.png"
            pixel = np.full((pixels, pixels, 3), (17 * p % 256, 90, 200 if right else 40), np.uint8)
            pixel[image, p % pixels] = 255 - 10 * len(method)
            png = encode_png(pixel)
            if pictures:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(png)
            records.append(
                _record(
                    prompt_id, image, category, method, n, path, digest(png), pixel, chance
                ).to_json()
            )
            kept = {"thing": [[2.0, 3.0, 9.0, 12.0, 0.9, "red"]]}
            reasons = [] if right else ["expected thing>=2, found 1"]
            scores.append(
                Score(
                    prompt_id, image, "judge@1", float(right), {"kept": kept, "reasons": reasons}
                ).to_json()
            )
    for name, lines in (("jobs", jobs), ("records-0", records), ("scores", scores)):
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def make_board(results: Path, **options: Any) -> list[Path]:
    """One run of every kind that the report shows in a way of its own."""
    return [
        make_run(results, "plain", **options),
        make_run(results, "best_of_n", n=2, params="n=2", **options),
        make_run(results, "best_of_n", n=4, **options),
        make_run(results, "scalingar", n=3, params="n=3", **options),
        make_run(results, "gridar", n=4, **options),
        make_run(results, "speculative", **options),
    ]


def _record(
    prompt_id: str,
    image: int,
    category: str,
    method: str,
    n: int | None,
    path: str,
    sha: str,
    pixel: np.ndarray,
    chance: random.Random,
) -> SampleRecord:
    budget = BUDGETS[method] if n is None else n
    device_s = 0.1 * budget + 0.001 * chance.random()
    spent = {
        "prefill_s": 0.1 * device_s,
        "decode_s": 0.8 * device_s,
        "render_s": 0.1 * device_s,
        "save_s": 0.002,
    }
    usage = Usage(sampled=144 * budget, target_passes=145, device_s=device_s, **spent)
    return SampleRecord(
        prompt_id,
        image,
        category,
        "done",
        usage,
        tokens_sha="t",
        image_sha=sha,
        path=path,
        notes=_notes(method, n, pixel, chance),
        stamp={"commit": "abc1234", "device": "cpu"},
    )


def _notes(method: str, n: int | None, pixel: np.ndarray, chance: random.Random) -> dict[str, Any]:
    if method == "speculative":
        return {"accepted": [30, 10, 5, 0]}
    if method == "best_of_n":
        return {"scores": [round(chance.random(), 3) for _ in range(n or 4)], "chosen": 1}
    if method == "scalingar":
        last = [None, 5, 8]
        confidence = [
            0.5 + 0.01 * t + 0.1 * i
            for t in range(16)
            for i, end in enumerate(last)
            if end is None or t <= end
        ]
        trace = {
            "confidence": pack_series(np.array(confidence)),
            "threshold": pack_series(np.full(16, 0.5)),
        }
        return {"chosen": 0, "terminated_at": last, "trace": trace}
    if method == "gridar":
        quarter = {
            "stage": "quarter",
            "pictures": [pack_picture(pixel)],
            "replies": ["x"],
            "texts": ["a", "b", "c", "d"],
        }
        return {
            "stages": [{**quarter, "possible": [True, False, True, True], "source": [0, 0, 2, 3]}]
        }
    return {}
