"""Build the parts of a run from its configuration, and check them against each other.

A `RunSpec` is a value: nothing in it changes while images are drawn. `execute` draws them.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from harness.engine.guidance import Sampling
from harness.engine.memory import choose_slots, is_taken_at_its_word
from harness.engine.memory_need import GB, MemoryNeed, SamplerShape, estimate_need, need_beside
from harness.engine.method_spec import MethodSpec
from harness.engine.session import Method
from harness.engine.watchdog import STUCK_AFTER_S
from harness.models import EditsImages, ImageModel
from harness.models.devices import choose_device
from harness.models.raster import raster_of
from harness.records import Prompt, UserError, dump
from harness.runs.fingerprint import (
    PLACES_OF_JUDGES,
    default_places,
    fingerprint,
    name_paths_by_content,
    restore_size_names,
)
from harness.runs.instantiate import (
    COMMAND_OPTIONS,
    METRICS,
    build_object,
    drop_titles,
    read_title,
    resolve_config,
)
from harness.runs.options import expect_result_options
from harness.runs.plan import Plan
from harness.runs.plugins import hash_plugins


@dataclass(frozen=True)
class DrawingSpec:
    """The parts that draw images of any prompts, built by `build_drawing_spec`."""

    model: ImageModel
    method: Method
    method_spec: MethodSpec
    sampling: Sampling
    sampler_sizes: Mapping[str, Any]  # arguments of `Sampler`, and `concurrency`
    warm_up: int  # images that are drawn at most before seconds count
    seed: int
    numerics: str
    stuck_after_s: float | None  # an image fails whose method makes no progress so long


@dataclass(frozen=True)
class RunSpec(DrawingSpec):
    """The parts of a run whose images a method draws, built by `build_run_spec`."""

    config: DictConfig
    choices: Mapping[str, str]  # the option that was chosen in each group of configurations
    plan: Plan
    plugins: Mapping[str, str]  # modules of a user's own -> hash of their source
    fingerprint: str

    def folder(self, results: Path) -> Path:
        """Return where the run's folder is below a results folder."""
        name = f"{self.choices['method']}-{self.fingerprint}"
        return results / self.choices["benchmark"] / self.model.name / name

    def describe(self) -> dict[str, Any]:
        """Return what config.yaml says.

        That is the resolved configuration, and under `run` what the leaderboard reads.
        """
        config = resolve_config(self.config)
        for option in (*COMMAND_OPTIONS, METRICS):
            config.pop(option, None)
        config["sampler"]["slots"] = self.sampler_sizes["slots"]
        title = read_title(config["method"])
        config["method"] = drop_titles(config["method"])
        made = {
            "model": self.model.name,
            "method": self.choices["method"],
            "params": _changed_options(self.config.method, self.choices["method"]),
            "seed": self.seed,
            "numerics": self.numerics,
            "asked": self.method_spec.part_ids,
            "memory_gb": self._memory_gb(),
            "plugins": dict(self.plugins),
        }
        if title:
            made["title"] = title
        described = self.plan.describe(
            made, benchmark=self.choices["benchmark"], fingerprint=self.fingerprint
        )
        return {**config, "run": described}

    def _memory_gb(self) -> float:
        """Compute what the target and the slots of one image need, without judges and drafters."""
        need = estimate_need(
            self.model,
            tokens_per_step=self.method_spec.tokens_per_step,
            prefill=tuple(self.sampler_sizes["prefill"]),
            render_batch=1,
        )
        return round(need.total(self.method_spec.slots) / GB, 6)


def build_run_spec(config: DictConfig, choices: Mapping[str, str]) -> RunSpec:
    """Build the parts that a configuration names, before anything is computed.

    `choices` are the options chosen in each group (of "method" and "benchmark" the names are
    recorded). Raises UserError for parts that cannot be had, or that do not fit each other.
    """
    expect_result_options(config)

    # 1. How tokens are drawn, the method and what it declares: checks that cost nothing.
    sampling = Sampling(**resolve_config(config.model.sampling))
    method = build_object(config.method, place="method")
    method_spec = MethodSpec.of(method).under(sampling)

    # 2. The benchmark, which may lack files, before gigabytes of the model are downloaded.
    benchmark = None
    if not _asks_model(config.benchmark):
        benchmark = build_object(config.benchmark, place="benchmark")

    # 3. The model, and the images that are asked of it.
    model = load_configured_model(config)
    if benchmark is None:
        benchmark = build_benchmark(config.benchmark, model)
    plan = Plan.of(benchmark, config.benchmark)
    expect_sources(model, plan.benchmark.prompts)

    # 4. The sampler's sizes, as far as memory allows.
    asking = Asking(model, method_spec, benchmark)
    drawing = build_drawing_spec(config, method, sampling, asking, images=len(plan.jobs))

    # 5. The name of all that results depend on.
    model_config = _model_options(config)
    method_config = drop_titles(resolve_config(config.method))
    identity = {
        "model": [
            model.name,
            model.revision,
            str(model.dtype),
            name_paths_by_content(model_config),
        ],
        "sampling": resolve_config(config.model.sampling),
        "method": [
            choices["method"],
            name_paths_by_content(default_places(method_config)),
            method_spec.part_ids,
        ],
        "benchmark": plan.identify(),
        "sampler": restore_size_names(drawing.sampler_sizes),
        "numerics": config.numerics,
        "seed": config.seed,
    }
    plugins = hash_plugins([model_config, method_config, resolve_config(config.benchmark)])
    if plugins:
        identity["plugins"] = plugins
    return RunSpec(
        **_fields_of(drawing),
        config=config,
        choices=choices,
        plan=plan,
        plugins=plugins,
        fingerprint=fingerprint(identity),
    )


def build_drawing_spec(
    config: DictConfig, method: Method, sampling: Sampling, asking: Asking, *, images: int
) -> DrawingSpec:
    """Put together what draws `images` images: a model, a method, and a sampler that serves both.

    `asking` holds the model, the method's declarations, and the benchmark whose judge takes memory
    beside them, if there is one. Raises UserError for parts that do not fit each other.
    """
    sampler_config = resolve_config(config.sampler)
    warm_up = _choose_warm_up(sampler_config.pop("warm_up", 0), asking.model.device)
    sampler_sizes = _choose_sampler_sizes(sampler_config, config.numerics, asking, sampling, images)
    return DrawingSpec(
        model=asking.model,
        method=method,
        method_spec=asking.method_spec,
        sampling=sampling,
        sampler_sizes=sampler_sizes,
        warm_up=warm_up,
        seed=config.seed,
        numerics=config.numerics,
        stuck_after_s=config.get("stuck_after_s", STUCK_AFTER_S),  # a saved run has none
    )


def _fields_of(drawing: DrawingSpec) -> dict[str, Any]:
    """Return the fields of a drawing spec by name, as they are."""
    return {field.name: getattr(drawing, field.name) for field in dataclasses.fields(drawing)}


@dataclass(frozen=True)
class Asking:
    """Whoever asks for memory in a run: its model, the parts of its method, its judge."""

    model: ImageModel
    method_spec: MethodSpec
    benchmark: object = None  # where images are drawn without one

    def estimate_need(self, sampler: Mapping[str, Any], device: torch.device) -> MemoryNeed:
        """Estimate what a sampler with such options takes of a device, and all beside it.

        Drafters, judges and rules declare what they take, the benchmark's judge among them.
        """
        spec = self.method_spec
        shape = SamplerShape(
            device=device,
            prefill=tuple(sampler["prefill"]),
            render_batch=sampler["render_batch"],
            trees=spec.trees,
            rewrites_prompts=spec.rewrites_prompts,
            **spec.sampler_sizes(),
        )
        owners = [part for _, part in spec.parts]
        owners.append(getattr(self.benchmark, "judge", None))
        return need_beside(self.model, shape, owners)


def load_configured_model(config: DictConfig) -> Any:
    """Load the model of a composed configuration.

    Raises UserError for random weights, and for a model whose grid does not hold its tokens.
    """
    model_config = _model_options(config)
    _expect_trained_weights(model_config)
    model = load_model(dump(model_config), str(config.device))
    raster_of(model)  # raises if the grid does not hold its tokens
    return model


def _model_options(config: DictConfig) -> dict[str, Any]:
    """Return the options that a model is built from: all but how its tokens are drawn."""
    options = resolve_config(config.model)
    del options["sampling"]
    return options


def load_model(config: str, device: str) -> Any:
    """Load the model of a configuration in JSON, and make its device the current one.

    It is kept for the next run of a multirun.
    """
    target = choose_device(device)
    if target.type == "cpu":  # two threads that spin on one core are slower than one
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return build_model(config, target)


@lru_cache(maxsize=1)
def build_model(config: str, device: torch.device) -> Any:
    """Build the model of a configuration in JSON on a device, which may be torch's `meta`."""
    return build_object(OmegaConf.create(json.loads(config)), device=device)


# ------------------------------------------------------------------ model and benchmark


def _expect_trained_weights(model_config: Mapping[str, Any]) -> None:
    if model_config.get("weights") == "random":
        raise UserError(
            "model.weights=random is for measuring speed: its images must not enter a leaderboard; "
            "leave it out, or set model.weights=published and model.checkpoint=PATH"
        )


def build_benchmark(config: DictConfig, model: ImageModel) -> Any:
    """Build a benchmark; `classes=model` stands for the model's own classes."""
    return build_object(config, place="benchmark", **_classes_argument(config, model))


def _asks_model(benchmark: DictConfig) -> bool:
    """Tell whether a benchmark's classes are the model's own: it is built behind the model."""
    return bool(benchmark.get("classes") == "model")


def _classes_argument(benchmark: DictConfig, model: ImageModel) -> dict[str, Sequence[str]]:
    """Return the argument that `benchmark.classes=model` stands for: the model's own classes."""
    if not _asks_model(benchmark):
        return {}
    classes = known_classes(model)
    if classes is None:
        raise UserError(
            f"benchmark.classes=model: {model.name} has no list of classes; leave it out"
        )
    return {"classes": list(classes)}


def expect_sources(model: ImageModel, prompts: Sequence[Prompt]) -> None:
    """Raise UserError if a model that edits nothing is asked to edit, or an editor to draw."""
    edits = [prompt.id for prompt in prompts if prompt.source is not None]
    is_embedded = known_classes(model) is not None
    if edits and not isinstance(model, EditsImages):
        editor = "pictogram_edit" if is_embedded else "editar"
        raise UserError(
            f"model {model.name} draws from texts and edits no image, as {len(edits)} prompts ask "
            f"for, such as {edits[0]}: choose a model that edits, such as model={editor}"
        )
    if len(edits) < len(prompts) and isinstance(model, EditsImages):
        benchmark = "edit_pictogram" if is_embedded else "pie_bench"
        raise UserError(
            f"model {model.name} edits images, and {len(prompts) - len(edits)} prompts have none: "
            f"choose benchmark={benchmark}, or give harness.draw an image"
        )


def known_classes(model: ImageModel) -> Sequence[str] | None:
    """List the classes of things that a model was taught to draw; None if it was taught all.

    Only models of a closed world, such as the embedded one, have such a list: an optional
    attribute `classes`.
    """
    return getattr(model, "classes", None)


# ------------------------------------------------------------------ the sampler's sizes


def _choose_warm_up(most: int | None, device: torch.device) -> int:
    """Choose how many images are drawn at most before seconds count.

    Without a wish it is one on a GPU, which compiles and captures graphs for it, else none.
    """
    if most is None:
        return int(device.type == "cuda")
    return most


def _choose_sampler_sizes(
    config: dict[str, Any],
    numerics: str,
    asking: Asking,
    sampling: Sampling,
    images: int,
) -> dict[str, Any]:
    """Return the sampler's sizes, with as many slots as memory allows, checked with the method.

    `memory_gb` is left out: only what it led to names a result.
    """
    sizes = dict(config)
    memory_gb = sizes.pop("memory_gb", None)
    model = asking.model
    method_spec = asking.method_spec
    needs = method_spec.sampler_sizes()

    # 1. Whether forwards skip idle slots.
    if _is_compact(sizes.pop("compact", False), numerics, sizes["concurrency"]):
        sizes["compact"] = True

    # 2. The number of slots: as asked for, or what fits.
    asked = count_asked_slots(sizes, method_spec)
    sizes["slots"] = asked
    if asked is None or not is_taken_at_its_word(model.device, memory_gb):
        method_spec.expect_target(model)  # drafters and rules load what they need
        sizes["slots"] = choose_slots(
            asking.estimate_need(sizes, model.device),
            model.device,
            asked=asked,
            one_job=method_spec.slots,
            most=method_spec.slots * max(1, images),
            memory_gb=memory_gb,
        )

    # 3. Whether the method can work with them.
    method_spec.expect_fit(model, sampling, slots=sizes["slots"], **needs)
    return {**sizes, **needs}


def count_asked_slots(sampler: Mapping[str, Any], method_spec: MethodSpec) -> int | None:
    """Return the slots that a sampler's options ask for; None for as many as fit."""
    slots: int | None = sampler["slots"]
    if slots is None and sampler["concurrency"] is not None:
        slots = method_spec.slots * sampler["concurrency"]
    return slots


def _is_compact(wanted: bool, numerics: str, concurrency: int | None) -> bool:
    """Whether forwards skip idle slots: faster, but shapes depend on what else is in the batch.

    Numerics `constant` promise results that no other job can change. They allow it for one job at
    a time, whose shapes depend on that job alone.
    """
    if numerics == "constant" and wanted and concurrency != 1:
        raise UserError(
            f"sampler.compact=true with sampler.concurrency={concurrency}: results would depend on "
            "which images are drawn together; set sampler.concurrency=1, or numerics=fast to have "
            "it recorded so"
        )
    return wanted or numerics == "fast"


# ------------------------------------------------------------------ the method's options


def _changed_options(method: DictConfig, name: str) -> str:
    """List a method's options that differ from its configuration file, "n=8, reward=other"."""
    default = hydra.compose("config", overrides=[f"method={name}"]).method
    mine = _flatten(drop_titles(resolve_config(method)))
    theirs = _flatten(drop_titles(resolve_config(default)))
    changed = [
        f"{key}={value}"
        for key, value in sorted(mine.items())
        if theirs.get(key, ...) != value and key.rpartition(".")[2] not in PLACES_OF_JUDGES
    ]
    return ", ".join(changed)


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested options under dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}" if prefix else key)
    return flat
