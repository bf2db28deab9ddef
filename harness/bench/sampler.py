"""The sampler's speed: tokens a second, share of what memory bandwidth allows, and ratios over plain loops.

Image decoding is left out on all sides. Ratios are paired by block; see timing.py for the clock.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn

from harness.bench.outcome import Outcome
from harness.bench.reference import LibraryJanus, StaticLoop
from harness.bench.timing import Times, interleave, timed
from harness.composed import container
from harness.hooks import Sampling, exact
from harness.memory import choose_slots
from harness.models.janus import Janus
from harness.models.llamagen import LlamaGen
from harness.noise import derive
from harness.point import load_model
from harness.records import Usage, UserError, dump
from harness.sampler import Sampler

log = logging.getLogger("harness")

TEXTS = (
    "a photo of a red apple",
    "a photo of two dogs",
    "a photo of a bench left of a bear",
    "a photo of a green clock",
)
"""Prompts of the drawn images, in turn."""


def run(config: DictConfig) -> bool:
    """Measure every batch size; returns whether the bars hold (always, where there are none for this device)."""
    model, sampling = random_model(config)
    outcome = Outcome("sampler", model, [f"{model.name}, {model.num_tokens} tokens, {str(model.dtype)[6:]}"])
    bandwidth = copy_bandwidth(model.device)
    held = True
    said: dict[str, list[str]] = {"loop": [], "library": []}
    for images in expect_batches(config.batch):
        texts = [TEXTS[i % len(TEXTS)] for i in range(images)]
        drawing = Drawing(model, sampling, texts)
        subjects: dict[str, Callable[[int], object]] = {"ours": drawing}
        if isinstance(model, LlamaGen):
            loop = StaticLoop(model, sampling, texts)
            expect_agreement(drawing, loop)
            subjects["loop"] = partial(_replay, loop, drawing)
        if isinstance(model, Janus):
            subjects["library"] = LibraryJanus(model, texts)
        times = interleave(subjects, config.blocks, model.device, warm_up=config.warm_up)
        _record(outcome, times, drawing, images, bandwidth)
        bar = dict(map(tuple, config.bars)).get(images) if model.device.type == "cpu" else None
        for other in subjects.keys() - {"ours"}:
            ratio = times.ratio(other, "ours")[0]
            held &= bar is None or other != "loop" or ratio >= bar
            said[other].append(f"{images} image{'s' * (images > 1)} {ratio:.2f}")
    outcome.write(plot=("batch", "tokens_per_s", "subject"))
    for other, ratios in said.items():
        if ratios:
            print(f"ratio over reference {other}: {', '.join(ratios)}")
    return held


def random_model(config: DictConfig) -> tuple[Any, Sampling]:
    """The model, with random weights where published ones would be downloaded: speed does not depend on them."""
    if config.model.get("weights") == "published":
        with open_dict(config):
            config.model.weights = "random"
    settings = container(config.model)
    sampling = Sampling(**settings.pop("sampling"))
    return load_model(dump(settings), str(config.device)), sampling


def expect_batches(batches: Sequence[int]) -> list[int]:
    if not batches or any(int(size) != size or size < 1 for size in batches):
        raise UserError(f"batch={list(batches)}: give numbers of images of at least 1, as 'batch=[1,8]'")
    return [int(size) for size in batches]


class Drawing:
    """The sampler drawing `texts` from beginning to end, without decoding them: what one timed call does."""

    def __init__(self, model: Any, sampling: Sampling, texts: Sequence[str]) -> None:
        slots = len(texts) * (1 if sampling.scale == 1 else 2)
        prefill = (min(16, slots), 32)
        choose_slots(
            model, asked=slots, one_job=slots, most=slots, memory_gb=None, width=1, prefill=prefill, render_batch=1
        )  # raises where they do not fit
        self.sampler = Sampler(model, sampling, slots=slots, prefill=prefill, render_batch=1)
        self.texts = list(texts)
        self.logits_BKV: Tensor | None = None  # of the last token
        self.token_BN: Tensor = torch.empty((0, model.num_tokens), dtype=torch.int64)

    def __call__(self, _block: int = 0) -> None:
        sampler, nothing = self.sampler, [None] * len(self.texts)
        rows = [sampler.open(*sampler.contexts(t), derive("bench", i), Usage()) for i, t in enumerate(self.texts)]
        while not rows[0].done:
            sampler.forward(rows, nothing)
            if rows[0].length == sampler.model.num_tokens - 1:
                sampler.probe(rows, self._keep)
            sampler.draw(rows, nothing, exact)
        self.token_BN = torch.tensor([canvas.tokens for canvas in rows], device=sampler.model.device)
        for canvas in rows:
            sampler.release(canvas)

    def _keep(self, logits_RKTV: Tensor, law_RTV: Tensor) -> dict[str, Tensor]:
        self.logits_BKV = logits_RKTV[:, :, 0]
        return {"kept": law_RTV[:, 0, 0]}


def _replay(loop: StaticLoop, drawing: Drawing, _block: int) -> None:
    loop(drawing.token_BN)


def expect_agreement(drawing: Drawing, loop: StaticLoop) -> None:
    """Draw once and let the loop compute the same images: its logits of the last token must be the sampler's.

    Raises RuntimeError where they differ by more than the type's rounding explains.
    """
    drawing()
    assert drawing.logits_BKV is not None
    null_BV, text_BV = drawing.logits_BKV.unbind(1)
    ours_QV, theirs_QV = torch.cat((text_BV, null_BV)), loop(drawing.token_BN)
    error = float((ours_QV - theirs_QV).norm() / ours_QV.norm())
    allowed = 1e-4 if drawing.sampler.model.dtype == torch.float32 else 3e-2
    if not error <= allowed:
        raise RuntimeError(
            f"the reference loop's logits are {error:.2g} away from the sampler's; {allowed:g} is allowed"
        )
    log.info("the reference loop's last logits agree with the sampler's to %.1e", error)


def copy_bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Bytes a second that a large copy reads and writes: the roof that decoding works under."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(timed(lambda _: target.copy_(source), 0, device) for _ in range(5))


def floor_seconds(drawing: Drawing, bandwidth: float) -> float:
    """Least seconds for all steps: every weight read once a step, and the keys and values of the mean context."""
    model, cache = drawing.sampler.model, drawing.sampler._cache
    modules = [part for name, part in vars(model).items() if isinstance(part, nn.Module) and name != "vq"]
    weights = sum(t.nbytes for module in modules for name, t in module.named_parameters() if _streamed(name))
    mean = drawing.sampler.slots * cache.slot_bytes * 0.5 * (1 + model.max_context / (cache.length + 1))
    return model.num_tokens * (weights + mean) / bandwidth


TABLES = ("vq.", "words.", "tok_embeddings", "cls_embedding", "gen_embed", "gen_aligner")
"""Parameters of the tokenizer, and of tables that a decoding step looks rows up in."""


def _streamed(name: str) -> bool:
    return not any(
        part in name for part in ("vq.", "words.", "tok_embeddings", "cls_embedding", "gen_embed", "gen_aligner")
    )


def _record(outcome: Outcome, times: Times, drawing: Drawing, images: int, bandwidth: float) -> None:
    tokens = drawing.sampler.model.num_tokens
    floor = floor_seconds(drawing, bandwidth)
    for name, seconds in times.seconds.items():
        ratio, low, high = times.ratio(name, "ours") if name != "ours" else (1.0, math.nan, math.nan)
        outcome.add(
            batch=images,
            subject=name,
            tokens_per_s=images * tokens / times.median(name),
            ms_per_step=1000 * times.median(name) / tokens,
            spread=times.spread(name),
            share_of_floor=floor / times.median(name),
            times_ours=ratio,
            ci_low=low,
            ci_high=high,
            blocks=len(seconds),
            warm=name not in times.unstable,
        )
