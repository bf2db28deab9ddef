"""Share what training scripts need: budgets, checkpoints, schedules and the Muon optimiser.

Every script runs on one thread: two threads on contended cores are ten times slower, because they
wait for each other. It measures its budget in CPU time of the process, so that a busy machine
trains as long as an idle one. Matrix products run under bfloat16 autocast, which current CPUs
execute ten times faster than float32.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from harness.arguments import count, natural, not_negative
from harness.models.pictogram import weights as files
from harness.models.pictogram.grammar import CLASS_SETS
from harness.records import UserError

Encode = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class Options:
    """The options that every training script has."""

    set: str
    cpu_minutes: float
    seed: int
    work: Path
    warm: str | None = None
    samples: int | None = None  # ends a training in place of the minutes

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the classes of objects of the set."""
        return CLASS_SETS[self.set]

    def checkpoint(self, part: str) -> Path:
        """Return the file that a part's training continues from."""
        return self.work / self.set / f"{part}.pt"


def parser(script: str, description: str, *, cpu_minutes: float) -> argparse.ArgumentParser:
    """Make a parser with the options that every script has; `cpu_minutes` is a default."""
    made = argparse.ArgumentParser(
        prog=f"python -m harness.training.{script}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--set",
        default="pictogram_16",
        choices=sorted(CLASS_SETS),
        help="class set, names the checkpoints",
    )
    made.add_argument(
        "--cpu-minutes",
        type=not_negative,
        default=cpu_minutes,
        help="CPU time of the whole training, earlier runs included",
    )
    made.add_argument("--seed", type=natural, default=0)
    made.add_argument(
        "--work",
        type=Path,
        default=Path(".train"),
        help="folder of checkpoints; running again continues there",
    )
    made.add_argument(
        "--warm",
        help="a shipped set to begin with, where its tensors fit, instead of random weights",
    )
    return made


def add_samples(made: argparse.ArgumentParser) -> None:
    """Add the option that ends a training after a number of samples: see `Progress.share`."""
    made.add_argument(
        "--samples",
        type=count,
        help="end after so many samples, earlier runs included, whatever CPU time they take",
    )


def options(arguments: argparse.Namespace) -> Options:
    """Collect the common options of a command, and set the threads and the seed of torch."""
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    return Options(
        arguments.set,
        arguments.cpu_minutes,
        arguments.seed,
        arguments.work,
        arguments.warm,
        getattr(arguments, "samples", None),
    )


def autocast() -> torch.autocast:
    """Return a context in which matrix products are computed in bfloat16."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def step_rng(seed: int, part: str, step: int) -> random.Random:
    """Return the random generator of one step's data.

    It is a function of the step, so that a training that was continued sees the same data.
    """
    return random.Random(f"{seed}/{part}/{step}")


@dataclass(slots=True)
class Progress:
    """How far a training has come, earlier runs included, and its curve for the card."""

    step: int = 0
    samples: int = 0
    cpu_s: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    _since: float = field(default_factory=time.process_time)

    def tick(self, samples: int) -> None:
        """Count a step and the CPU time since the last one."""
        now = time.process_time()
        self.cpu_s += now - self._since
        self._since = now
        self.step += 1
        self.samples += samples

    def share(self, cpu_minutes: float, samples: int | None = None) -> float:
        """Return the share of a budget that is spent, at most 1.

        The budget is a number of samples where one is given, else CPU time.
        """
        if samples is not None:
            return min(1.0, self.samples / samples)
        return min(1.0, self.cpu_s / (60 * cpu_minutes)) if cpu_minutes else 1.0

    def note(self, **numbers: float) -> None:
        """Add a point to the curve and print it."""
        rounded = {key: round(value, 4) for key, value in numbers.items()}
        self.curve.append({"step": self.step, "cpu_min": round(self.cpu_s / 60, 2), **rounded})
        print(" ".join(f"{key} {value}" for key, value in self.curve[-1].items()), flush=True)

    def state(self) -> dict[str, object]:
        """Return what a checkpoint keeps."""
        return {
            "step": self.step,
            "samples": self.samples,
            "cpu_s": self.cpu_s,
            "curve": self.curve,
        }


@dataclass(slots=True)
class Alarm:
    """Tell when so many seconds of wall time have passed since it last went off, or was set.

    A training saves by it: killed on a busy machine, it loses minutes and not a hundred slow steps.
    """

    every_s: float = 120.0
    _since: float = field(default_factory=time.monotonic)

    def rings(self) -> bool:
        """Tell whether it goes off now."""
        now = time.monotonic()
        if now - self._since < self.every_s:
            return False
        self._since = now
        return True


def save(
    path: Path,
    progress: Progress,
    module: nn.Module,
    optimisers: Iterable[torch.optim.Optimizer],
    **more: object,
) -> None:
    """Write a checkpoint; `more` are further states of the part."""
    saved = {
        "progress": progress.state(),
        "model": module.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        "seed": torch.initial_seed(),
        **more,
    }
    write(path, saved)


def write(path: Path, saved: dict[str, Any]) -> None:
    """Write a file of tensors atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    torch.save(saved, draft)
    os.replace(draft, path)


def resume(path: Path) -> tuple[Progress, dict[str, Any]]:
    """Return the progress and the states of a checkpoint; both are empty where there is none."""
    if not path.is_file():
        return Progress(), {}
    saved = torch.load(path, map_location="cpu", weights_only=True)
    return Progress(**saved.pop("progress")), saved


def expect_recipe(
    found: Mapping[str, float] | None,
    asked: Mapping[str, float],
    usual: Mapping[str, float],
    path: Path,
) -> None:
    """Raise UserError unless a checkpoint was trained by the recipe that is asked for.

    One that names none was trained by the usual one.
    """
    for name, want in asked.items():
        had = (found or usual)[name]
        if had != want:
            raise UserError(
                f"--{name} {want}: {path} was trained with {had}; "
                f"give --{name} {had}, or another --work"
            )


def restore(optimisers: Sequence[torch.optim.Optimizer], states: Sequence[dict[str, Any]]) -> None:
    """Put optimisers into the states of a checkpoint.

    A checkpoint that was unpacked from shipped weights has none: then they start anew.
    """
    for optimiser, state in zip(optimisers, states, strict=bool(states)):
        optimiser.load_state_dict(state)


def warm(options: Options, part: str, module: nn.Module, *, but: str = "") -> None:
    """Begin with the weights of another set, if the options ask for it.

    Each tensor fills the corner that it covers of the tensor with its name. Tensors whose name
    starts with `but` keep their random values: rows that stand for other classes are of no use.
    Output projections of the trunk are zero at the start, so that layers and hidden units outside
    the corner change nothing.
    """
    if options.warm is None:
        return
    state = files.read_part(options.warm, part)[0]
    targets = module.state_dict()
    for name, source in state.items():
        is_excluded = bool(but) and name.startswith(but)
        if name not in targets or is_excluded:
            continue
        corner = tuple(map(slice, source.shape))
        targets[name][corner].copy_(source)


def descend(loss: Tensor, module: nn.Module, optimisers: Iterable[torch.optim.Optimizer]) -> None:
    """Take one step downhill, with the gradient's norm clipped to 1."""
    module.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    for optimiser in optimisers:
        optimiser.step()


def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move a running average towards the weights."""
    with torch.no_grad():
        for mean, weight in zip(average.parameters(), module.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)


Compiled = TypeVar("Compiled", bound=Callable[..., Tensor])


def compile_if_possible(function: Compiled) -> Compiled:
    """Compile a function, which is 2.5 times faster, where there is a C++ compiler.

    Without one the function is returned as it is.
    """
    if shutil.which("g++") is None:
        return function
    return torch.compile(function)  # type: ignore[return-value]


def attend_causally(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend causally, written out.

    On a CPU in bfloat16 the backward pass is far faster than that of the fused kernel.
    """
    with torch.autocast("cpu", enabled=False):
        q, k, v = (x.bfloat16() for x in (q, k, v))
        length, dim = q.shape[-2:]
        future = torch.full((length, length), float("-inf"), dtype=q.dtype).triu(1)
        scores = (q * dim**-0.5) @ k.transpose(-1, -2) + future
        return torch.softmax(scores, -1) @ v


def decay(share: float, *, warm: float = 0.02) -> float:
    """Return the factor of the learning rate when a share of the budget is spent.

    After a short warm-up it is constant, and over the second half of the budget it falls linearly
    to 0.02.
    """
    rise = min(1.0, (share + 1e-3) / warm)
    fall = min(1.0, 0.02 + 0.98 * 2 * (1 - share))
    return rise * fall


def set_rate(optimisers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set learning rates to a factor of their peaks."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = factor * group["peak"]


def adamw(
    parameters: Iterable[nn.Parameter], peak: float, *, weight_decay: float = 0.01
) -> torch.optim.AdamW:
    """Make AdamW with a peak learning rate."""
    optimiser = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=weight_decay)
    for group in optimiser.param_groups:
        group["peak"] = peak
    return optimiser


def muon_adamw(module: nn.Module, muon: float, adam: float) -> list[torch.optim.Optimizer]:
    """Make the optimisers of a module, with their peak learning rates.

    Muon trains its inner matrices and kernels; AdamW trains embeddings, heads, and parameters of
    other shapes.
    """
    inner: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim >= 2 and parameter.shape[0] > 4
        is_inner = is_matrix and "embed" not in name and "head" not in name
        (inner if is_inner else others).append(parameter)
    return [Muon(inner, muon), adamw(others, adam)]


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix update is orthogonalised (Jordan et al., Muon, 2024).

    A quintic Newton-Schulz iteration does it. Convolution kernels are matrices of output channels
    by all other dimensions.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], peak: float, *, momentum: float = 0.95
    ) -> None:
        super().__init__(list(parameters), {"lr": peak, "peak": peak, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all weights that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group["lr"], group["momentum"])

    def _update(self, weight: Tensor, rate: float, momentum: float) -> None:
        assert weight.grad is not None
        velocity = self.state[weight].setdefault("velocity", torch.zeros_like(weight))
        velocity.lerp_(weight.grad, 1 - momentum)
        direction = weight.grad.lerp(velocity, momentum)
        rows = direction.flatten(1)
        size = max(1.0, rows.shape[0] / rows.shape[1]) ** 0.5
        weight.add_(orthogonalise(rows).view_as(weight), alpha=-rate * size)


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Find roughly the nearest matrix with equal singular values: they end in 0.7 .. 1.2."""
    x = matrix.bfloat16()
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if is_tall else x).to(matrix.dtype)
