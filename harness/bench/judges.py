"""Measure how many images a second judges answer about."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig

from harness.bench.outcome import Outcome
from harness.bench.sampler import TEXTS, expect_names, expect_plan, random_model
from harness.bench.timing import interleave
from harness.records import Answer, UserError, describe_silence
from harness.results.columns import BENCH_JUDGES
from harness.runs.instantiate import build_object


def run(config: DictConfig) -> bool:
    """Ask every judge about random images of the model's size, in batches. There are no bars."""
    batches, blocks, warm_up = expect_plan(config)
    judges = {name: _build_judge(name) for name in expect_names(config, "judges")}
    model, _ = random_model(config)
    heading = ", ".join(judge.id for judge in judges.values())
    outcome = Outcome(BENCH_JUDGES, model, heading, {"model": model.name})

    generator = np.random.default_rng(0)
    no_tokens = model.codebook.new_zeros((1, model.num_tokens)).long()
    size = model.decode(no_tokens).shape[1:]
    for images in batches:
        pictures = [generator.integers(0, 256, size, dtype=np.uint8) for _ in range(images)]
        texts = [TEXTS[i % len(TEXTS)] for i in range(images)]
        subjects = {name: partial(_ask, judge, texts, pictures) for name, judge in judges.items()}
        times = interleave(subjects, blocks, model.device, warm_up=warm_up)
        for name in judges:
            outcome.add(
                batch=images,
                judge=name,
                images_per_s=images / times.median(name),
                first_s=times.first.get(name, math.nan),
                spread=times.spread(name),
                blocks=blocks,
                warm=times.is_warm(name),
            )
        outcome.write(plot=("batch", "images_per_s", "judge"))
    return True


def _build_judge(name: str) -> Any:
    try:
        return build_object(hydra.compose("config", overrides=[f"+judge@judge={name}"]).judge)
    except hydra.errors.HydraException as error:
        raise UserError(f"judges={name}: {error}") from None


def _ask(judge: Any, texts: list[str], pictures: list[np.ndarray], _block: int) -> None:
    """Ask a judge. Raises UserError where it is unreachable: that is no speed."""
    if hasattr(judge, "detect"):
        judge.detect(pictures)
        return
    answers = [Answer.of(said) for said in judge(texts, pictures)]
    if any(answer.kind == "unreachable" for answer in answers):
        raise UserError(describe_silence(judge.id, answers))
