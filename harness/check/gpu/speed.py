"""Step 8: seconds for all tokens of a batch, against what memory bandwidth allows and plain loops.

Images are not decoded on any side. The loop computes the same images from the same weights as the
sampler, the way LlamaGen's own code does; `--peer` times that code itself beside it.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from harness.bench.reference import StaticLoop
from harness.bench.roof import (
    bars_by_images,
    count_reads,
    measure_copy_bandwidth,
    seconds_allowed,
)
from harness.bench.sampler import TEXTS, Drawing
from harness.bench.timing import Times, interleave, time_call
from harness.bench.upstream import Checkout, UpstreamLlamaGen
from harness.check.gpu.configured import MODELS, read_configured
from harness.check.gpu.finding import Finding, NotRunError, Part, Setting
from harness.check.gpu.subjects import build_subject, draw_tokens, open_canvases
from harness.engine.guidance import Sampling
from harness.engine.memory import short_of_memory
from harness.engine.sampler import Sampler
from harness.models.llamagen import LlamaGen
from harness.models.trunk import TrunkSpec
from harness.records import UserError

IMAGES = (1, 16, 8, 64)
"""Batch sizes; those with bars first."""
BESIDE_LOOPS = (1, 16)
"""Batch sizes that the loops are timed at: one call of theirs takes up to a minute."""
BLOCKS = 3
WARM_UP = 5
STEPS = 8
"""Decode steps whose launches are counted."""
AGREE = 3e-2
"""Largest distance of the loop's last logits from the sampler's: what bfloat16 does to them."""
HOST_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync")


def list_parts(setting: Setting) -> Sequence[Part]:
    """List a part for each model and batch size."""
    sizes = IMAGES if setting.is_full else IMAGES[:1]
    return [
        Part(f"{name}, {images} image{'s' * (images > 1)}", partial(time_model, name, images), 150)
        for images in sizes
        for name in MODELS
    ]


def time_model(name: str, images: int, setting: Setting) -> Finding:
    """Time the sampler at one batch size, and the loops beside it; hold the bar if there is one."""
    model, sampling = build_subject(name, setting)
    texts = tuple(TEXTS[i % len(TEXTS)] for i in range(images))
    try:
        drawing = Drawing(model, sampling, texts)
    except UserError as error:
        raise NotRunError(str(error)) from error
    times = interleave({"ours": drawing}, BLOCKS, model.device, warm_up=WARM_UP)
    figures = _sum_up(model, sampling, texts, times)
    failures = _hold_bar(name, images, model, figures)
    if images in BESIDE_LOOPS:
        failures += _add_loop(model, sampling, texts, drawing, figures)
        _add_peer(setting, model, sampling, texts, figures)
    del drawing
    _release(model.device)
    figures |= count_launches(model, sampling, images)
    return Finding(_headline(figures), figures, failures)


def _sum_up(model: Any, sampling: Sampling, texts: Sequence[str], times: Times) -> dict[str, Any]:
    """Put seconds beside the floor: weights and mean context, read once a step."""
    branches = len(texts) * (1 if sampling.scale == 1 else 2)
    read = count_reads(model, texts)
    bandwidth = measure_copy_bandwidth(model.device)
    seconds = times.median("ours")
    floor_s = read.floor_s(branches, bandwidth)
    return {
        "images": len(texts),
        "seconds": seconds,
        "ms_per_step": 1000 * seconds / read.tokens,
        "images_per_s": len(texts) / seconds,
        "spread": times.spread("ours"),
        "first_s": times.first["ours"],
        "warm": times.is_warm("ours"),
        "copy_gb_per_s": bandwidth / 1e9,
        "floor_s": floor_s,
        "share_of_floor": floor_s / seconds,
    }


def _hold_bar(name: str, images: int, model: Any, figures: dict[str, Any]) -> list[str]:
    """Compare with the bar of an H100, or with the same share of another GPU's floor."""
    bar_s = bars_by_images(read_configured()["bench"]["gpu_bars"].get(name)).get(images)
    if bar_s is None or model.device.type != "cuda":
        return []
    texts = [TEXTS[i % len(TEXTS)] for i in range(images)]
    device_name = torch.cuda.get_device_name(model.device)
    bandwidth = 1e9 * figures["copy_gb_per_s"]
    allowed_s = seconds_allowed(
        bar_s, count_reads(model, texts), 2 * images, device_name, bandwidth
    )
    figures["allowed_s"] = allowed_s
    if figures["seconds"] <= allowed_s:
        return []
    return [f"{figures['seconds']:.3g} s, the bar is {allowed_s:.3g} s"]


def _headline(figures: dict[str, Any]) -> str:
    parts = [
        f"{figures['seconds']:.3g} s",
        f"{figures['ms_per_step']:.3g} ms a step",
        f"{figures['share_of_floor']:.0%} of the floor",
    ]
    for name, what in (("over_loop", "the loop"), ("over_peer", "upstream")):
        if isinstance(figures.get(name), float):
            parts.append(f"{figures[name]:.2f} times {what}")
    return ", ".join(parts)


# ------------------------------------------------------------------ beside it


def _add_loop(
    model: Any,
    sampling: Sampling,
    texts: Sequence[str],
    drawing: Drawing,
    figures: dict[str, Any],
) -> list[str]:
    """Time one call of the static loop, which must end in the sampler's logits."""
    try:
        loop = StaticLoop(model, sampling, texts)
        kept: list[torch.Tensor] = []
        seconds = time_call(lambda _: kept.append(loop(drawing.token_BN)), 0, model.device)
    except RuntimeError as error:
        if not short_of_memory(error):
            raise
        figures["loop"] = "does not fit beside the sampler"
        return []
    figures["loop_s"] = seconds
    figures["over_loop"] = seconds / figures["seconds"]
    ours_QV = torch.cat(drawing.last_logits().unbind(1)[::-1])  # the loop has the texts first
    distance = float((ours_QV - kept[0]).norm() / ours_QV.norm())
    figures["distance_from_loop"] = distance
    if distance <= AGREE:
        return []
    return [f"the loop's last logits are {distance:.2g} away, {AGREE:g} is allowed"]


def _add_peer(
    setting: Setting,
    model: Any,
    sampling: Sampling,
    texts: tuple[str, ...],
    figures: dict[str, Any],
) -> None:
    """Time upstream's own code, where a checkout was named and the model is LlamaGen."""
    if setting.peer is None or not isinstance(model, LlamaGen):
        return
    try:
        peer = UpstreamLlamaGen(Checkout.load(setting.peer), model, sampling, texts)
        seconds = time_call(peer, 0, model.device)
    except RuntimeError as error:
        if not short_of_memory(error):
            raise
        figures["peer"] = "does not fit beside the sampler"
        return
    figures["peer_s"] = seconds
    figures["over_peer"] = seconds / figures["seconds"]


# ------------------------------------------------------------------ launches


@torch.no_grad()
def count_launches(model: Any, sampling: Sampling, images: int) -> dict[str, Any]:
    """Count what a decode step of a burst launches: kernels on the device, calls of the host.

    Nothing on a CPU, and where the driver does not let a process be profiled.
    """
    if model.device.type != "cuda":
        return {}
    branches = 1 if sampling.scale == 1 else 2
    sampler = Sampler(
        model, sampling, slots=branches * images, prefill=(min(16, branches * images), 32)
    )
    canvases = open_canvases(sampler, range(images))
    draw_tokens(sampler, canvases, 4)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize(model.device)
    with torch.profiler.profile(activities=activities) as profile:
        sampler.burst(canvases, STEPS)
        torch.cuda.synchronize(model.device)
    return sum_up_launches(list(profile.events() or []), STEPS, _trunk_spec(model).layers)


def sum_up_launches(events: Sequence[Any], steps: int, layers: int) -> dict[str, Any]:
    """Count a profile's kernels and the host's launches, by decode step and by layer."""
    kernels: Counter[str] = Counter()
    launches = 0
    for event in events:
        is_on_device = str(event.device_type).endswith("CUDA")
        is_copy = event.name.startswith(("Memcpy", "Memset"))
        if is_on_device and not is_copy:
            kernels[event.name[:80]] += 1
        launches += event.name.startswith(HOST_LAUNCHES)
    if not kernels:
        return {"launches": None, "why_uncounted": "the profiler saw no kernel"}
    total = sum(kernels.values())
    return {
        "launches": launches / steps,
        "kernels_per_step": total / steps,
        "kernels_per_layer": total / steps / layers,
        "commonest_kernels": {name: count / steps for name, count in kernels.most_common(12)},
    }


def _trunk_spec(model: Any) -> TrunkSpec:
    return model.gpt.spec.trunk if isinstance(model, LlamaGen) else model.spec.trunk


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
