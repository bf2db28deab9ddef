"""The steps of the check, in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from harness.check.gpu.finding import Part, Setting, Step
from harness.records import UserError


def _parts_of(module: str) -> Callable[[Setting], Sequence[Part]]:
    """Return `list_parts` of a module, which is imported when it is called."""

    def list_parts(setting: Setting) -> Sequence[Part]:
        return import_module(f"harness.check.gpu.{module}").list_parts(setting)

    return list_parts


STEPS = (
    Step("device", "facts, kernels usable, a captured graph", _parts_of("device")),
    Step("kernels", "kernels against torch at real shapes", _parts_of("kernels")),
    Step("methods", "every method: graphs and kernels change no token", _parts_of("methods")),
    Step("parity", "arrays that the original code returned", _parts_of("parity")),
    Step("models", "full-size models: graph = eager, bfloat16 near float32", _parts_of("models")),
    Step("rows", "full-size models: no row depends on the others", _parts_of("rows")),
    Step("memory", "estimate against the allocator; going on where it ends", _parts_of("memory")),
    Step("speed", "throughput against roofline and plain loops", _parts_of("speed")),
    Step("overhead", "methods' bookkeeping, and early termination", _parts_of("overhead")),
    Step("resume", "SIGTERM in a burst, resumed: equal journals", _parts_of("resume")),
    Step("sanitizer", "compute-sanitizer on captured rounds", _parts_of("sanitizer")),
)


def choose_steps(only: str | None) -> list[Step]:
    """Return the steps that `--only` names, by number or name; all without it.

    Raises UserError for a step that there is not.
    """
    if only is None:
        return list(STEPS)
    named = {step.name: step for step in STEPS}
    named |= {str(number): step for number, step in enumerate(STEPS, 1)}
    chosen = []
    for name in only.split(","):
        if name.strip() not in named:
            known = ", ".join(f"{number} {step.name}" for number, step in enumerate(STEPS, 1))
            raise UserError(f"--only {name.strip()}: there is no such step, there are {known}")
        chosen.append(named[name.strip()])
    return [step for step in STEPS if step in chosen]


def step_named(name: str) -> Step:
    """Return the step of a name."""
    return next(step for step in STEPS if step.name == name)
