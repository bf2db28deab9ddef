"""The sampler's speed: tokens a second, share of what memory bandwidth allows, and ratios over
plain loops.

Image decoding is left out on all sides. Ratios are paired by block; see timing.py for the clock and
roof.py for floors and bars.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, open_dict
from torch import Tensor

from harness.bench.outcome import Outcome
from harness.bench.reference import LibraryJanus, StaticLoop
from harness.bench.roof import (
    Bar,
    Reading,
    all_hold,
    copy_bandwidth,
    matvec_bandwidth,
    pairs,
    reading,
    seconds_allowed,
)
from harness.bench.timing import Times, interleave
from harness.engine.canvas import Canvas
from harness.engine.guidance import Sampling
from harness.engine.memory import estimate_need, expect_memory
from harness.engine.probes import Probe
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.engine.session import Session
from harness.models.janus import Janus
from harness.records import Job, Prompt, UserError, dump
from harness.runs.instantiate import resolve_config
from harness.runs.spec import load_model

log = logging.getLogger("harness")

TEXTS = (
    "a photo of a red apple",
    "a photo of two dogs",
    "a photo of a bench left of a bear",
    "a photo of a green clock",
)
"""Prompts of the drawn images, in turn."""


def run(config: DictConfig) -> bool:
    """Measure every batch size; returns whether the bars for this device hold (always, where there
    are none).
    """
    batches, blocks, warm_up = expect_plan(config)
    model, sampling = random_model(config)
    device = model.device
    branches = 1 if sampling.scale == 1 else 2
    copied = copy_bandwidth(device)
    multiplied = matvec_bandwidth(device, model.dtype)
    roofs = {"copy_gb_per_s": round(copied / 1e9, 1), "matvec_gb_per_s": round(multiplied / 1e9, 1)}
    heading = f"{model.name}, {model.num_tokens} tokens, {str(model.dtype)[6:]}"
    outcome = Outcome(
        "sampler", model, heading, {"model": model.name, "dtype": str(model.dtype)[6:], **roofs}
    )
    bars: list[Bar] = []
    said: dict[str, list[str]] = {}
    for images in batches:
        texts = [TEXTS[i % len(TEXTS)] for i in range(images)]
        drawing = Drawing(model, sampling, texts)
        loop = StaticLoop(model, sampling, texts)
        subjects: dict[str, Callable[[int], object]] = {
            "ours": drawing,
            "loop": partial(_replay, loop, drawing),
        }
        if isinstance(model, Janus):
            subjects["library"] = LibraryJanus(model, texts)
        times = interleave(subjects, blocks, device, warm_up=warm_up)
        expect_agreement(drawing, loop)
        read = reading(model, texts)
        _record(outcome, times, read, images, branches, copied, multiplied)
        bars += _bars(config, model, times, read, images, branches, copied)
        for other in subjects.keys() - {"ours"}:
            ratio = times.ratio(other, "ours")[0]
            said.setdefault(other, []).append(f"{images} image{'s' * (images > 1)} {ratio:.2f}")
        outcome.write(plot=("batch", "tokens_per_s", "subject"))
    held = all_hold(bars)
    for other in sorted(said, reverse=True):  # the loop's last
        print(f"ratio over reference {other}: {', '.join(said[other])}")
    return held


def _bars(
    config: DictConfig,
    model: Any,
    times: Times,
    read: Reading,
    images: int,
    branches: int,
    bandwidth: float,
) -> list[Bar]:
    """A ratio over the loop on a CPU; on a GPU seconds for all tokens of the batch."""
    if model.device.type == "cpu":
        least = pairs(config.bars).get(images)
        ratio = times.ratio("loop", "ours")[0]
        return (
            []
            if least is None
            else [Bar(f"{images} images, times the loop's speed", ratio, least=least)]
        )
    bar_s = pairs(config.gpu_bars.get(model.name)).get(images)
    if bar_s is None:
        return []
    name = torch.cuda.get_device_name(model.device)
    allowed_s = seconds_allowed(bar_s, read, images * branches, name, bandwidth)
    return [Bar(f"{images} images, seconds", times.median("ours"), most=allowed_s)]


def random_model(config: DictConfig) -> tuple[Any, Sampling]:
    """The model, with random weights where published ones would be downloaded: speed does not
    depend on them.
    """
    if config.model.get("weights") == "published":
        with open_dict(config):
            config.model.weights = "random"
    settings = resolve_config(config.model)
    sampling = Sampling(**settings.pop("sampling"))
    return load_model(dump(settings), str(config.device)), sampling


def expect_plan(config: DictConfig) -> tuple[list[int], int, int]:
    """Batch sizes, blocks and warm-up of a bench. Raises UserError for values that nothing can be
    timed with.
    """
    batches = list(config.batch) if isinstance(config.batch, ListConfig) else [config.batch]
    if not batches or not all(isinstance(size, int) and size >= 1 for size in batches):
        raise UserError(
            f"batch={config.batch}: give numbers of images of at least 1, as 'batch=[1,8]'"
        )
    for name, least in (("blocks", 1), ("warm_up", 0)):
        if not isinstance(config[name], int) or config[name] < least:
            raise UserError(f"{name}={config[name]}: give a whole number of at least {least}")
    return batches, config.blocks, config.warm_up


def expect_names(config: DictConfig, group: str) -> list[str]:
    """Names of methods or judges to time. Raises UserError unless they are texts."""
    names = list(config[group]) if isinstance(config[group], ListConfig) else [config[group]]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{group}={config[group]}: give names, as '{group}=[a,b]'")
    return names


class Drawing:
    """The sampler drawing `texts` from beginning to end, without decoding them: what one timed call
    does.
    """

    def __init__(self, model: Any, sampling: Sampling, texts: Sequence[str]) -> None:
        method = Whole(1 if sampling.scale == 1 else 2)
        slots = method.branches * len(texts)
        self.model = model
        shape: dict[str, Any] = {"prefill": (min(16, slots), 32), "render_batch": 1}
        expect_memory(estimate_need(model, tokens_per_step=1, **shape), model.device, slots)
        undecoded = copy.copy(model)
        undecoded.decode = lambda token_BN: torch.zeros((len(token_BN), 1, 1, 3), dtype=torch.uint8)
        self._method = method
        self._scheduler = Scheduler(
            method, Sampler(undecoded, sampling, slots=slots, **shape), seed=0
        )
        self._jobs = [Job(Prompt(f"bench/{i}", text, "any"), 0) for i, text in enumerate(texts)]
        self.token_BN: Tensor = torch.empty((0, model.num_tokens), dtype=torch.int64)

    def __call__(self, _block: int = 0) -> None:
        done: dict[tuple[str, int], Delivery] = {}
        self._scheduler.run(self._jobs, lambda delivery: done.update({delivery.job.key: delivery}))
        if broken := [delivery.error for delivery in done.values() if delivery.error]:
            raise RuntimeError(broken[0])
        self.token_BN = torch.tensor(
            [done[job.key].tokens for job in self._jobs], device=self.model.device
        )

    def last_logits(self) -> Tensor:
        """Draw once more: the logits that the last token of every image was drawn from, [B, K,
        V].
        """
        seen: list[Tensor] = []

        def keep(logits_RKTV: Tensor, _probs: Callable[[], Tensor]) -> dict[str, Tensor]:
            seen.append(logits_RKTV[:, :, 0])
            return {"kept": logits_RKTV[:, 0, 0, 0]}

        self._method.probe = keep
        self()
        self._method.probe = None
        return torch.cat(seen)


class Whole:
    """Draws an image; `probe` looks at its last token's law."""

    rows = 1
    tokens_per_step = 1

    def __init__(self, branches: int) -> None:
        self.branches = branches
        self.probe: Probe | None = None

    async def generate(self, _prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        if self.probe:
            await s.run([canvas], until=s.num_tokens - 1)
            await s.look([canvas], self.probe)
        await s.run([canvas])
        return canvas


def _replay(loop: StaticLoop, drawing: Drawing, _block: int) -> None:
    loop(drawing.token_BN)


def expect_agreement(drawing: Drawing, loop: StaticLoop) -> None:
    """Raise RuntimeError where the loop's logits of the last token are not the sampler's, but for
    rounding.
    """
    ours_QV = torch.cat(drawing.last_logits().unbind(1)[::-1])
    error = float((ours_QV - loop(drawing.token_BN)).norm() / ours_QV.norm())
    allowed = 1e-4 if drawing.model.dtype == torch.float32 else 3e-2
    if not error <= allowed:
        raise RuntimeError(
            f"the reference loop's logits are {error:.2g} away from the sampler's; {allowed:g} is allowed"
        )
    log.info("the reference loop's last logits agree with the sampler's to %.1e", error)


def _record(
    outcome: Outcome,
    times: Times,
    read: Reading,
    images: int,
    branches: int,
    copied: float,
    multiplied: float,
) -> None:
    for name, seconds in times.seconds.items():
        ratio, low, high = (
            times.ratio(name, "ours") if name != "ours" else (1.0, math.nan, math.nan)
        )
        outcome.add(
            batch=images,
            subject=name,
            tokens_per_s=images * read.tokens / times.median(name),
            ms_per_step=1000 * times.median(name) / read.tokens,
            seconds=times.median(name),
            spread=times.spread(name),
            floor_s=read.floor_s(images * branches, copied),
            share_of_floor=read.floor_s(images * branches, copied) / times.median(name),
            share_of_matvec=read.floor_s(images * branches, multiplied) / times.median(name),
            times_ours=ratio,
            ci_low=low,
            ci_high=high,
            first_s=times.first.get(name, math.nan),
            blocks=len(seconds),
            warm=name not in times.unstable,
        )
