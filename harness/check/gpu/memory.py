"""Step 7: memory. The estimate is held to the allocator, and memory is made to run out.

The estimate decides how many slots a run gets, so it must not be below what is taken; a run whose
memory ends must go on with half the slots, drafters and captured graphs included.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch

from harness.check.gpu.configured import build_method
from harness.check.gpu.drawing import draw, make_jobs
from harness.check.gpu.finding import Finding, NotRunError, Part, Setting
from harness.check.gpu.subjects import build_subject
from harness.drafters.eagle import Eagle, Layer, LayerWeights, target_spec
from harness.drafters.model import DraftModel
from harness.engine.guidance import Sampling
from harness.engine.memory import short_of_memory
from harness.engine.method_spec import MethodSpec
from harness.engine.scheduler import Delivery
from harness.engine.session import Method
from harness.models.janus import Janus
from harness.records import Job, UserError
from harness.runs.execute import Executor

GB = 1e9
MOST_BELOW = 1.02
"""How many times the estimate may be taken: it must not be below."""
MOST_ABOVE = 2.0
"""How many times what is taken the estimate may be."""
RENDER_BATCH = 4


@dataclass(frozen=True, slots=True)
class Case:
    """A method over a full-size model: how it is built, and how many images are drawn at once."""

    name: str
    model: str
    build: Callable[[Any, Setting], Method]
    images: int
    options: Mapping[str, Any]  # of the model


def _plain(_model: Any, _setting: Setting) -> Method:
    return build_method("plain")


def _with_eagle(model: Any, _setting: Setting) -> Method:
    """EAGLE's dynamic tree, with a layer of random weights."""
    return build_method("eagle", drafter=Eagle(partial(_random_layer, model)))


def _with_draft_model(
    name: str, options: Mapping[str, Any], model: Any, setting: Setting
) -> Method:
    """A chain that another model drafts."""
    make = partial(_make_draft, model, name, options, setting)
    return build_method("speculative", drafter=DraftModel(make))


WHOLE_PROMPT = {"collapse": False}
"""What EAGLE needs of LlamaGen: every position of the prompt has features."""
CASES = (
    Case("llamagen_xl_256", "llamagen_xl_256", _plain, 16, {}),
    Case("llamagen_xl_512 with EAGLE", "llamagen_xl_512", _with_eagle, 2, WHOLE_PROMPT),
    Case(
        "janus_pro_7b with Janus-1B",
        "janus_pro_7b",
        partial(_with_draft_model, "janus_pro_1b", {}),
        4,
        {},
    ),
)
SMALLER = {"size": "B"}
SHORTAGES = (
    Case("plain", "llamagen_xl_256", _plain, 32, {}),
    Case("EAGLE", "llamagen_xl_256", _with_eagle, 16, WHOLE_PROMPT),
    Case(
        "a draft model",
        "llamagen_xl_256",
        partial(_with_draft_model, "llamagen_xl_256", SMALLER),
        32,
        {},
    ),
)


def list_parts(_setting: Setting) -> Sequence[Part]:
    """List the parts of the step: estimates, then runs whose memory ends."""
    estimates = [
        Part(f"estimate, {case.name}", partial(compare_estimate, case), 120) for case in CASES
    ]
    shortages = [
        Part(f"out of memory, {case.name}", partial(run_out_of_memory, case), 120)
        for case in SHORTAGES
    ]
    return [*estimates, *shortages]


# ------------------------------------------------------------------ the estimate


def compare_estimate(case: Case, setting: Setting) -> Finding:
    """Draw whole images, and compare what was reserved with what was estimated before."""
    device = setting.torch_device
    if device.type != "cuda":
        raise NotRunError(f"{device.type} has no allocator that counts")
    model, sampling, method = _build(case, setting)
    spec = MethodSpec.of(method)
    jobs = make_jobs(case.images, texts=["a photo of two dogs"])
    slots = spec.slots * len(jobs)
    need = _estimate(model, spec, slots)
    try:
        _expect_room(need.total(slots), device)
        torch.cuda.reset_peak_memory_stats(device)
        draw(model, sampling, method, jobs)
    except UserError as error:
        raise NotRunError(str(error)) from error
    taken = torch.cuda.max_memory_reserved(device)
    return judge_estimate(need.total(slots), taken, need.describe(slots))


def judge_estimate(estimated: int, taken: int, arithmetic: str) -> Finding:
    """Compare bytes that were estimated with bytes that were reserved at most."""
    failures = []
    if taken > MOST_BELOW * estimated:
        failures.append("more was taken than estimated")
    if estimated > MOST_ABOVE * taken:
        failures.append(f"more than {MOST_ABOVE:g} times what was taken was estimated")
    figures = {
        "estimated_gb": round(estimated / GB, 3),
        "taken_gb": round(taken / GB, 3),
        "taken_of_estimate": round(taken / estimated, 3),
        "arithmetic": arithmetic,
    }
    headline = (
        f"{taken / GB:.2f} GB reserved of {estimated / GB:.2f} GB estimated "
        f"({taken / estimated:.0%})"
    )
    return Finding(headline, figures, failures)


def _estimate(model: Any, spec: Any, slots: int) -> Any:
    """Estimate what a sampler takes, with its method's drafter."""
    from harness.engine.memory_need import SamplerShape, need_beside

    spec.expect_fit(model, Sampling(scale=2.0), slots=slots, **spec.sampler_sizes())
    shape = SamplerShape(
        device=model.device,
        prefill=(min(16, slots), 32),
        render_batch=RENDER_BATCH,
        trees=spec.trees,
        **spec.sampler_sizes(),
    )
    return need_beside(model, shape, [part for _, part in spec.parts])


def _expect_room(size: int, device: torch.device) -> None:
    """Raise NotRunError if the device is too small."""
    free, _ = torch.cuda.mem_get_info(device)
    room = free + torch.cuda.memory_reserved(device)
    if size > room:
        raise NotRunError(f"{size / GB:.1f} GB are needed, {room / GB:.1f} GB are there")


# ------------------------------------------------------------------ memory that runs out


def run_out_of_memory(case: Case, setting: Setting) -> Finding:
    """Draw with less memory than the slots need: the run goes on with fewer, and ends well."""
    if setting.torch_device.type != "cuda":
        raise NotRunError(f"{setting.device} has no limit of memory")
    try:
        model, sampling, method = _build(case, setting)
        jobs = make_jobs(case.images, texts=["a photo of two dogs"])
        whole = _measure(model, sampling, method, jobs)
        half = _measure(model, sampling, method, jobs[: len(jobs) // 2])
    except RuntimeError as error:
        if not short_of_memory(error):
            raise
        raise NotRunError("even the whole memory is too little") from error
    with limited_memory((whole + half) // 2, setting.torch_device):
        return draw_short_of_memory(model, sampling, method, jobs)


def draw_short_of_memory(
    model: Any, sampling: Sampling, method: Method, jobs: Sequence[Job]
) -> Finding:
    """Draw jobs by an executor whose memory ends, and say how it went on."""
    spec = MethodSpec.of(method)
    slots = spec.slots * len(jobs)
    delivered: list[Delivery] = []
    executor = Executor(cast(Any, _make_run(model, sampling, method, slots)))
    executor.draw(jobs, delivered.append)
    errors = [delivery.error for delivery in delivered if delivery.error]
    stamp = executor.stamp.get("slots", "")
    failures = [f"{len(errors)} jobs failed: {errors[0]}"] if errors else []
    if len(delivered) != len(jobs):
        failures.append(f"{len(delivered)} of {len(jobs)} images were delivered")
    if not stamp:
        failures.append("memory did not run out: nothing was tried")
    figures = {"images": len(delivered), "slots": slots, "went_on_with": stamp}
    return Finding(f"{len(delivered)} images, {slots} slots, then {stamp}", figures, failures)


def _make_run(model: Any, sampling: Sampling, method: Method, slots: int) -> SimpleNamespace:
    """Make what an executor reads of a run's spec."""
    spec = MethodSpec.of(method)
    sizes = {
        "slots": slots,
        "prefill": (min(16, spec.slots), 32),
        "render_batch": RENDER_BATCH,
        "concurrency": None,
        "compact": True,
        **spec.sampler_sizes(),
    }
    return SimpleNamespace(
        model=model,
        sampling=sampling,
        method=method,
        method_spec=spec,
        sampler_sizes=sizes,
        numerics="fast",
        seed=0,
        warm_up=0,
        stuck_after_s=None,
    )


@contextmanager
def limited_memory(size: int, device: torch.device) -> Iterator[None]:
    """Let this process have no more than so many bytes of the device."""
    gc.collect()
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, size / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _measure(model: Any, sampling: Sampling, method: Method, jobs: Sequence[Job]) -> int:
    """Measure the most bytes that are reserved while jobs are drawn."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(model.device)
    run = _make_run(model, sampling, method, MethodSpec.of(method).slots * len(jobs))
    Executor(cast(Any, run)).draw(jobs, lambda _: None)
    return torch.cuda.max_memory_reserved(model.device)


# ------------------------------------------------------------------ what is built


def _build(case: Case, setting: Setting) -> tuple[Any, Sampling, Method]:
    model, sampling = build_subject(case.model, setting, **case.options)
    return model, sampling, case.build(model, setting)


def _random_layer(model: Any) -> LayerWeights:
    """Return random weights of a feature drafter's layer."""
    torch.manual_seed(0)
    layer = Layer(target_spec(model)).requires_grad_(False)
    return LayerWeights(layer.state_dict(), "random layer", "random")


def _make_draft(
    target: Any,
    name: str,
    options: Mapping[str, Any],
    setting: Setting,
    device: str | torch.device | None = None,
) -> Any:
    """Build a draft model over the target's image tokens, on the target's device."""
    draft, _ = build_subject(name, setting, **(options if setting.is_full else {}))
    if isinstance(draft, Janus):
        draft.net.vq = target.net.vq
    else:
        draft.vq = target.vq
    return draft
