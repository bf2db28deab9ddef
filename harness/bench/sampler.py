"""Measure the sampler: tokens a second, share of the memory bandwidth, ratios over others.

The other is LlamaGen's own code where a checkout of it is given (upstream.py), and else a loop of
our own (reference.py). Image decoding and text encoding are left out on all sides. Ratios are
paired by block; see timing.py for the clock and roof.py for floors and bars.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.bench.reference import LibraryJanus, LibraryQwen2, StaticLoop
from harness.bench.roof import (
    Bar,
    Reading,
    all_hold,
    bars_by_images,
    count_reads,
    measure_copy_bandwidth,
    measure_matvec_bandwidth,
    seconds_allowed,
)
from harness.bench.timing import Subject, Times, interleave
from harness.bench.upstream import Checkout, UpstreamLlamaGen
from harness.engine.canvas import Canvas
from harness.engine.guidance import Sampling
from harness.engine.memory import expect_memory
from harness.engine.memory_need import MemoryNeed, estimate_need
from harness.engine.probes import Probe
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.engine.session import Session
from harness.models.janus import Janus
from harness.records import Job, MemoryPart, Prompt, UserError, dump

if TYPE_CHECKING:
    from omegaconf import DictConfig

TITLES = {
    "library": "the transformers library",
    "own_loop": "a loop of our own",
    "upstream": "LlamaGen's own code",
}
"""What the sampler is compared with, the most telling last."""

Replay = Callable[[Tensor], Tensor]
"""Draw given tokens [B, N], and return the logits of the last step, [Q, V]."""

TEXTS = (
    "a photo of a red apple",
    "a photo of two dogs",
    "a photo of a bench left of a bear",
    "a photo of a green clock",
)
"""Prompts of the drawn images, in turn."""


def run(config: DictConfig) -> bool:
    """Measure every batch size; return whether the bars for this device hold, if it has any.

    Each batch size is judged as soon as it is measured. What the memory does not hold is left out,
    and said: a loop beside the sampler, or a batch size. Raises UserError if no batch size fits.
    """
    from harness.bench.outcome import Outcome
    from harness.results.columns import BENCH_SAMPLER

    batches, blocks, warm_up = expect_plan(config)
    checkout = Checkout.load(Path(str(config.peer))) if config.peer else None
    model, sampling = random_model(config)
    if checkout:
        checkout.expect_model(model)
    roof = Roof.measure(model)
    dtype = str(model.dtype)[6:]
    heading = f"{model.name}, {model.num_tokens} tokens, {dtype}"
    about = {"model": model.name, "dtype": dtype, **roof.columns}
    if checkout:
        about["upstream"] = checkout.version
    outcome = Outcome(BENCH_SAMPLER, model, heading, about)

    hold = True
    left_out: list[UserError] = []
    summaries: dict[str, list[str]] = {}
    for images in batches:
        # 1. Measure the sampler and its peers, as far as they fit; nothing of them stays.
        texts = [TEXTS[i % len(TEXTS)] for i in range(images)]
        try:
            peers = choose_peers(model, sampling, texts, checkout)
        except UserError as error:
            print(f"{count_images(images)} left out: {error}", flush=True)
            left_out.append(error)
            continue
        subjects = Subjects.make(model, sampling, texts, peers, checkout)
        times = interleave(subjects.by_name, blocks, model.device, warm_up=warm_up)
        errors = subjects.expect_agreement()
        del subjects
        release_memory(model.device)

        # 2. Rows, bars and a summary.
        branches = _count_branches(sampling, images)
        batch = Batch(images, branches, count_reads(model, texts), times, errors)
        for name in times.seconds:
            outcome.add(**batch.make_row(name, roof))
        hold &= all_hold(_list_bars(config, model, batch, roof))
        for other in times.seconds.keys() - {"ours"}:
            ratio = times.ratio(other, "ours")[0]
            summaries.setdefault(other, []).append(f"{count_images(images)} {ratio:.2f}")
        outcome.write(plot=("batch", "tokens_per_s", "subject"))

    if len(left_out) == len(batches):
        raise left_out[0]
    for other in sorted(summaries, key=list(TITLES).index):
        print(f"ratio over {TITLES[other]}: {', '.join(summaries[other])}")
    return hold


@dataclass(frozen=True, slots=True)
class Subjects:
    """What is timed at one batch size, by name, and who can be given the sampler's tokens."""

    drawing: Drawing
    by_name: dict[str, Subject]
    replays: dict[str, Replay]

    @classmethod
    def make(
        cls,
        model: Any,
        sampling: Sampling,
        texts: Sequence[str],
        peers: Sequence[str],
        checkout: Checkout | None,
    ) -> Subjects:
        """Make the sampler and its peers; `checkout` is that of the peer `upstream`."""
        drawing = Drawing(model, sampling, texts)
        by_name: dict[str, Subject] = {"ours": drawing}
        replays: dict[str, Replay] = {}
        if "own_loop" in peers:
            loop = StaticLoop(model, sampling, texts)
            by_name["own_loop"] = partial(_replay, loop, drawing)
            replays["own_loop"] = loop
        if "library" in peers:
            is_qwen2 = LibraryQwen2.serves(model)
            by_name["library"] = (
                LibraryQwen2(model, sampling, texts) if is_qwen2 else LibraryJanus(model, texts)
            )
        if "upstream" in peers:
            assert checkout is not None
            upstream = UpstreamLlamaGen(checkout, model, sampling, texts)
            by_name["upstream"] = upstream
            replays["upstream"] = upstream.replay
        return cls(drawing, by_name, replays)

    def expect_agreement(self) -> dict[str, float]:
        """Return how far the last logits of others are from the sampler's, by name.

        Raises RuntimeError where that is more than rounding.
        """
        return {
            name: expect_agreement(self.drawing, replay, TITLES[name])
            for name, replay in self.replays.items()
        }


def choose_peers(
    model: Any, sampling: Sampling, texts: Sequence[str], checkout: Checkout | None = None
) -> list[str]:
    """Name the peers that fit into memory together with the sampler, and say which do not.

    With a checkout LlamaGen's own code takes the place of our loop. Raises UserError if the sampler
    alone does not fit.
    """
    branches = _count_branches(sampling, len(texts))
    sizes = {}
    if checkout:
        sizes["upstream"] = UpstreamLlamaGen.count_bytes(model, sampling, texts)
    else:
        sizes["own_loop"] = StaticLoop.count_bytes(model, sampling, texts)
    if isinstance(model, Janus):
        sizes["library"] = LibraryJanus.count_bytes(model, texts)
    elif LibraryQwen2.serves(model):
        sizes["library"] = LibraryQwen2.count_bytes(model, texts)

    need = estimate_need(model, tokens_per_step=1, **_sampler_sizes(branches))
    expect_memory(need, model.device, branches)
    peers = []
    for name, size in sizes.items():
        together = MemoryNeed((*need.parts, MemoryPart(TITLES[name], fixed=size)))
        try:
            expect_memory(together, model.device, branches)
        except UserError as error:
            print(f"{count_images(len(texts))}: {TITLES[name]} left out: {error}", flush=True)
            continue
        peers.append(name)
        need = together
    return peers


def count_images(images: int) -> str:
    """Write a number of images."""
    return f"{images} image{'s' * (images > 1)}"


def release_memory(device: torch.device) -> None:
    """Free what is not used any more, before something else is measured."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _count_branches(sampling: Sampling, images: int) -> int:
    return images * (1 if sampling.scale == 1 else 2)


def _sampler_sizes(branches: int) -> dict[str, Any]:
    """Return the sizes of a sampler that draws so many branches and shows no picture."""
    return {"prefill": (min(16, branches), 32), "render_batch": 1}


@dataclass(frozen=True, slots=True)
class Roof:
    """The memory bandwidths of the device, in bytes a second."""

    copied: float
    multiplied: float

    @classmethod
    def measure(cls, model: Any) -> Roof:
        """Measure them, matrix-vector products in the model's number format."""
        copied = measure_copy_bandwidth(model.device)
        return cls(copied, measure_matvec_bandwidth(model.device, model.dtype))

    @property
    def columns(self) -> dict[str, float]:
        """Return the columns of a row, in GB a second."""
        return {
            "copy_gb_per_s": round(self.copied / 1e9, 1),
            "matvec_gb_per_s": round(self.multiplied / 1e9, 1),
        }


@dataclass(frozen=True, slots=True)
class Batch:
    """The measurement of one batch size."""

    images: int
    branches: int  # of all images
    read: Reading
    times: Times
    errors: Mapping[str, float]  # how far last logits are from the sampler's, by subject

    def make_row(self, name: str, roof: Roof) -> dict[str, Any]:
        """Return the measured columns of one subject."""
        call_s = self.times.median(name)
        floor_s = self.read.floor_s(self.branches, roof.copied)
        matvec_floor_s = self.read.floor_s(self.branches, roof.multiplied)
        ratio, low, high = self._compare(name)
        return {
            "batch": self.images,
            "subject": name,
            "tokens_per_s": self.images * self.read.tokens / call_s,
            "ms_per_step": 1000 * call_s / self.read.tokens,
            "seconds": call_s,
            "spread": self.times.spread(name),
            "floor_s": floor_s,
            "share_of_floor": floor_s / call_s,
            "share_of_matvec": matvec_floor_s / call_s,
            "times_ours": ratio,
            "ci_low": low,
            "ci_high": high,
            "logits_error": self.errors.get(name, math.nan),
            "first_s": self.times.first.get(name, math.nan),
            "blocks": len(self.times.seconds[name]),
            "warm": self.times.is_warm(name),
        }

    def _compare(self, name: str) -> tuple[float, float, float]:
        """Return the time of a subject over the sampler's, and its interval."""
        return self.times.ratio(name, "ours") if name != "ours" else (1.0, math.nan, math.nan)


def _list_bars(config: DictConfig, model: Any, batch: Batch, roof: Roof) -> list[Bar]:
    """List the bar of a batch size, if it has one.

    On a CPU it is a ratio over the reference, on a GPU seconds for all tokens of the batch.
    """
    images = batch.images
    if model.device.type == "cpu":
        least = bars_by_images(config.bars).get(images)
        if least is None:
            return []
        reference = next(iter(batch.errors), "")
        if not reference:  # it did not fit into memory, which has been said
            return []
        ratio = batch.times.ratio(reference, "ours")[0]
        what = f"{images} images, times the speed of {TITLES[reference]}"
        return [Bar(what, ratio, least=least)]

    bar_s = bars_by_images(config.gpu_bars.get(model.name)).get(images)
    if bar_s is None:
        return []
    name = torch.cuda.get_device_name(model.device)
    allowed_s = seconds_allowed(bar_s, batch.read, batch.branches, name, roof.copied)
    return [Bar(f"{images} images, seconds", batch.times.median("ours"), most=allowed_s)]


def random_model(config: DictConfig) -> tuple[Any, Sampling]:
    """Load the configured model and return it with its sampling options.

    Weights are random where published ones would be downloaded: speed does not depend on them.
    """
    from omegaconf import open_dict

    from harness.runs.instantiate import resolve_config
    from harness.runs.spec import load_model

    if config.model.get("weights") == "published":
        with open_dict(config):
            config.model.weights = "random"
    settings = resolve_config(config.model)
    sampling = Sampling(**settings.pop("sampling"))
    return load_model(dump(settings), str(config.device)), sampling


def expect_plan(config: DictConfig) -> tuple[list[int], int, int]:
    """Return the batch sizes, blocks and warm-up calls of a bench.

    Raises UserError for no batch at all; other odd values were refused with all options.
    """
    from omegaconf import ListConfig

    batches = list(config.batch) if isinstance(config.batch, ListConfig) else [config.batch]
    if not batches:
        raise UserError("batch=[]: give numbers of images of at least 1, as 'batch=[1,8]'")
    return batches, config.blocks, config.warm_up


def expect_names(config: DictConfig, group: str) -> list[str]:
    """Return the names of methods or judges to time. Raises UserError unless they are texts."""
    from omegaconf import ListConfig

    names = list(config[group]) if isinstance(config[group], ListConfig) else [config[group]]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{group}={config[group]}: give names, as '{group}=[a,b]'")
    return names


class Drawing:
    """The sampler, drawing images of `texts` from beginning to end in each call.

    The images are not decoded; the tokens of the latest call are in `token_BN`.
    """

    def __init__(self, model: Any, sampling: Sampling, texts: Sequence[str]) -> None:
        self.model = model
        self._method = WholeImage(1 if sampling.scale == 1 else 2)
        slots = self._method.branches * len(texts)
        undecoded = copy.copy(model)
        undecoded.decode = _decode_nothing
        sampler = Sampler(undecoded, sampling, slots=slots, **_sampler_sizes(slots))
        self._scheduler = Scheduler(self._method, sampler, seed=0)
        self._jobs = [Job(Prompt(f"bench/{i}", text, "any"), 0) for i, text in enumerate(texts)]
        self.token_BN: Tensor = torch.empty((0, model.num_tokens), dtype=torch.int64)

    def __call__(self, _block: int = 0) -> None:
        """Draw all images. Raises RuntimeError if one fails."""
        done: dict[tuple[str, int], Delivery] = {}
        self._scheduler.run(self._jobs, lambda delivery: done.update({delivery.job.key: delivery}))
        errors = [delivery.error for delivery in done.values() if delivery.error]
        if errors:
            raise RuntimeError(errors[0])
        tokens = [done[job.key].tokens for job in self._jobs]
        self.token_BN = torch.tensor(tokens, device=self.model.device)

    def last_logits(self) -> Tensor:
        """Draw once more, and return the logits of the last token of every image, [B, K, V]."""
        collected: list[Tensor] = []

        def collect_logits(logits_RKTV: Tensor, _probs: Callable[[], Tensor]) -> dict[str, Tensor]:
            collected.append(logits_RKTV[:, :, 0])
            return {"collected": logits_RKTV[:, 0, 0, 0]}

        self._method.probe = collect_logits
        self()
        self._method.probe = None
        return torch.cat(collected)


def _decode_nothing(token_BN: Tensor) -> Tensor:
    """Stand in for the image decoder: one black pixel for each image."""
    return torch.zeros((len(token_BN), 1, 1, 3), dtype=torch.uint8)


class WholeImage:
    """A method that draws an image; `probe` sees the logits of its last token."""

    rows = 1
    tokens_per_step = 1

    def __init__(self, branches: int) -> None:
        self.branches = branches
        self.probe: Probe | None = None

    async def generate(self, _prompt: str, s: Session) -> Canvas:
        """Draw one image, with one more call of the session where there is a probe."""
        (canvas,) = s.open()
        if self.probe:
            await s.run([canvas], until=s.num_tokens - 1)
            await s.look([canvas], self.probe)
        await s.run([canvas])
        return canvas


def _replay(loop: StaticLoop, drawing: Drawing, _block: int) -> None:
    loop(drawing.token_BN)


def expect_agreement(drawing: Drawing, replay: Replay, title: str) -> float:
    """Compare the logits of the last tokens: another's are the sampler's, but for rounding.

    `replay` draws given tokens [B, N] and returns its last logits [Q, V]. Returns how far they are
    away, relative. Raises RuntimeError where that is more than rounding.
    """
    # The others stack the text branches first.
    ours_QV = torch.cat(drawing.last_logits().unbind(1)[::-1])
    difference_QV = ours_QV - replay(drawing.token_BN)
    error = float(difference_QV.norm() / ours_QV.norm())
    allowed = 1e-4 if drawing.model.dtype == torch.float32 else 3e-2
    if not error <= allowed:
        raise RuntimeError(
            f"the last logits of {title} are {error:.2g} away from the sampler's; "
            f"{allowed:g} is allowed"
        )
    print(f"last logits of {title}: {error:.1e} away from the sampler's, same weights and tokens")
    return error
