"""What a run takes of a GPU's memory, and how many images it draws there at once.

Nothing is allocated: models are built on torch's `meta` device, with the sizes of their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hydra
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from harness.cli import enable_plugins
from harness.engine.guidance import Sampling
from harness.engine.memory import SHARE, count_fitting_slots
from harness.engine.memory_need import GB, MemoryNeed
from harness.engine.method_spec import MethodSpec
from harness.records import UserError, dump
from harness.runs.instantiate import build_object, resolve_config
from harness.runs.options import expect_options
from harness.runs.spec import Asking, build_benchmark, build_model, count_asked_slots
from harness.runs.unknown_names import explain_compose_error


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one run takes of a GPU."""

    title: str
    need: MemoryNeed
    one_job: int  # slots of one image
    most: int | None  # slots that are asked for; None takes as many as fit
    memory_gb: float | None  # sampler.memory_gb

    def budget_gb(self, card_gb: float) -> float:
        """Return what a run may take of a card: `sampler.memory_gb`, or a share of what is free."""
        if self.memory_gb is not None:
            return min(self.memory_gb, card_gb)
        return SHARE * card_gb

    def fitting(self, card_gb: float) -> int:
        """Return the slots that a run takes of a card with nothing else on it; 0 if none fits."""
        return count_fitting_slots(self.need, self.budget_gb(card_gb) * GB, self.one_job, self.most)

    def describe(self, card_gb: float) -> str:
        """Write a table of the parts, and what follows for a card."""
        source = f"{SHARE:g} of a card" if self.memory_gb is None else "sampler.memory_gb on a card"
        lines = [f"{self.title}: {source} of {card_gb:g} GB, {self.budget_gb(card_gb):.3g} GB"]
        width = max(len(part.name) for part in self.need.parts)
        lines.append(f"  {'':{width}}  GB fixed  GB a slot")
        for part in self.need.parts:
            fixed = f"{part.fixed / GB:8.3f}" if part.fixed else " " * 8
            by_slot = f"  {part.per_slot / GB:9.4f}" if part.per_slot else ""
            if not part.is_declared:
                fixed = "not declared"
            lines.append(f"  {part.name:{width}}  {fixed}{by_slot}".rstrip())
        lines.append(
            f"  {'sum':{width}}  {self.need.fixed / GB:8.3f}  {self.need.per_slot / GB:9.4f}"
        )
        lines.append(f"  {self._conclude(card_gb)}")
        return "\n".join(lines)

    def _conclude(self, card_gb: float) -> str:
        slots = self.fitting(card_gb)
        if not slots:
            least_gb = self.need.total(self.one_job) / GB
            enough = f"on a card of {least_gb / SHARE:.3g} GB or more"
            if self.memory_gb is not None:
                enough = f"with sampler.memory_gb={least_gb * 1.01:.3g} or more"
            return f"one image needs {self.one_job} slots, {least_gb:.3g} GB: it fits {enough}"
        images = slots // self.one_job
        asked = f" of {self.most} that are asked for" if self.most and slots < self.most else ""
        used = self.need.total(slots) / GB
        return f"{slots} slots{asked}, {images} image{'s' * (images > 1)} at once: {used:.3g} GB"


def measure_capacity(options: Sequence[str]) -> Capacity:
    """Sum up what the run of some options takes of a GPU, with weights of the configured sizes.

    Raises UserError, or Hydra's own errors, for options that make no run.
    """
    enable_plugins()
    with hydra.initialize_config_module("conf", version_base="1.3"):
        config = hydra.compose("config", list(options), return_hydra_config=True)
        choices = config.hydra.runtime.choices
        with open_dict(config):
            del config["hydra"]
        expect_options(config)

        # 1. The parts of the run; its models have no memory.
        sampling = Sampling(**resolve_config(config.model.sampling))
        settings = _with_random_weights(resolve_config(config.model))
        del settings["sampling"]
        model = build_model(dump(settings), torch.device("meta"))
        method = OmegaConf.create(_with_random_weights(resolve_config(config.method)))
        spec = MethodSpec.of(build_object(method)).under(sampling)
        benchmark = build_benchmark(config.benchmark, model)
        asking = Asking(model, spec, benchmark)

        # 2. What they take.
        sampler = resolve_config(config.sampler)
        need = asking.estimate_need(sampler, torch.device("cuda"))
    title = f"{model.name}, method={choices['method']}"
    asked = count_asked_slots(sampler, spec)
    return Capacity(title, need, spec.slots, asked, sampler.get("memory_gb"))


def _with_random_weights(value: Any) -> Any:
    """Make random weights of whatever names published ones: of the same size, without a file."""
    if isinstance(value, list):
        return [_with_random_weights(one) for one in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _with_random_weights(one) for key, one in value.items()}
    if changed.get("weights") == "published":
        changed["weights"] = "random"
    return changed


def print_capacities(options: Sequence[str], cards: Sequence[float]) -> int:
    """Print what a run takes of each card; the exit code is 1 if it does not fit on one of them."""
    try:
        capacity = measure_capacity(options)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain_compose_error(error, options)) from None
    for card_gb in cards:
        print(capacity.describe(card_gb), flush=True)
    return 0 if all(capacity.fitting(card_gb) for card_gb in cards) else 1
