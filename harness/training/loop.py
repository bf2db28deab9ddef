"""What the training scripts share: a budget of CPU time, checkpoints that continue, schedules, and
the Muon optimiser.

Every script runs on one thread (two threads on contended cores are ten times slower: they wait for
each other) and measures its budget in CPU time of the process, so that a busy machine trains as
long as an idle one. Matrix products run under bfloat16 autocast, which current CPUs execute ten
times faster than float32.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from harness.models.pictogram import weights as files
from harness.models.pictogram.grammar import CLASS_SETS

Encode = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class Options:
    """The options every training script has."""

    set: str
    cpu_minutes: float
    seed: int
    work: Path
    warm: str | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return CLASS_SETS[self.set]

    def checkpoint(self, part: str) -> Path:
        return self.work / self.set / f"{part}.pt"


def parser(description: str, *, cpu_minutes: float) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument(
        "--set",
        default="pictogram_16",
        choices=sorted(CLASS_SETS),
        help="class set, names the checkpoints",
    )
    made.add_argument(
        "--cpu-minutes",
        type=float,
        default=cpu_minutes,
        help="CPU time of the whole training, earlier runs included",
    )
    made.add_argument("--seed", type=int, default=0)
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


def options(arguments: argparse.Namespace) -> Options:
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    return Options(
        arguments.set, arguments.cpu_minutes, arguments.seed, arguments.work, arguments.warm
    )


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def stream(seed: int, part: str, step: int) -> random.Random:
    """The randomness of one step's data: a function of the step, so that a continued training sees
    the same data.
    """
    return random.Random(f"{seed}/{part}/{step}")


@dataclass(slots=True)
class Progress:
    """How far a training is: steps, samples, CPU seconds (earlier runs included) and the curve for
    the card.
    """

    step: int = 0
    samples: int = 0
    cpu_s: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    _since: float = field(default_factory=time.process_time)

    def tick(self, samples: int) -> None:
        now = time.process_time()
        self.cpu_s += now - self._since
        self._since = now
        self.step += 1
        self.samples += samples

    def share(self, cpu_minutes: float) -> float:
        return min(1.0, self.cpu_s / (60 * cpu_minutes))

    def note(self, **numbers: float) -> None:
        rounded = {key: round(value, 4) for key, value in numbers.items()}
        self.curve.append({"step": self.step, "cpu_min": round(self.cpu_s / 60, 2), **rounded})
        print(" ".join(f"{key} {value}" for key, value in self.curve[-1].items()), flush=True)

    def state(self) -> dict[str, object]:
        return {
            "step": self.step,
            "samples": self.samples,
            "cpu_s": self.cpu_s,
            "curve": self.curve,
        }


def save(
    path: Path,
    progress: Progress,
    module: nn.Module,
    optimisers: Iterable[torch.optim.Optimizer],
    **more: object,
) -> None:
    """Write a checkpoint."""
    states = {
        "model": module.state_dict(),
        "optimisers": [o.state_dict() for o in optimisers],
        "seed": torch.initial_seed(),
        **more,
    }
    write(path, {"progress": progress.state(), **states})


def write(path: Path, saved: dict[str, Any]) -> None:
    """Write a file of tensors atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    torch.save(saved, draft)
    os.replace(draft, path)


def resume(path: Path) -> tuple[Progress, dict[str, Any]]:
    """Progress and states of a checkpoint, or a fresh start."""
    if not path.is_file():
        return Progress(), {}
    saved = torch.load(path, map_location="cpu", weights_only=True)
    return Progress(**saved.pop("progress")), saved


def restore(optimisers: Sequence[torch.optim.Optimizer], states: Sequence[dict[str, Any]]) -> None:
    """Optimisers as a checkpoint left them; one unpacked from shipped weights has none, and they
    start anew.
    """
    for optimiser, state in zip(optimisers, states, strict=bool(states)):
        optimiser.load_state_dict(state)


def warm(options: Options, part: str, module: nn.Module, *, but: str = "") -> None:
    """Begin with the weights of another set: each tensor fills the corner of its namesake that it
    covers.

    Tensors whose name starts with `but` keep their random values: rows that stand for other classes
    are of no use.

    Output projections of the trunk are zero at the start, so layers and hidden units beyond the
    corner change nothing.
    """
    if options.warm is None:
        return
    state = files.read_part(options.warm, part)[0]
    own = module.state_dict()
    for name in own.keys() & {name for name in state if not but or not name.startswith(but)}:
        corner = tuple(map(slice, state[name].shape))
        own[name][corner].copy_(state[name])


def descend(loss: Tensor, module: nn.Module, optimisers: Iterable[torch.optim.Optimizer]) -> None:
    """One step downhill, the gradient's norm held to 1."""
    module.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    for optimiser in optimisers:
        optimiser.step()


def follow(average: nn.Module, module: nn.Module, keep: float) -> None:
    """Move a running average of the weights."""
    with torch.no_grad():
        for mean, now in zip(average.parameters(), module.parameters(), strict=True):
            mean.lerp_(now, 1 - keep)


Compiled = TypeVar("Compiled", bound=Callable[..., Tensor])


def compiled(function: Compiled) -> Compiled:
    """`function` with fused kernels where a C++ compiler is at hand (2.5 times faster), else as it
    is.
    """
    if shutil.which("g++") is None:
        return function
    return torch.compile(function)  # type: ignore[return-value]


def attend_causally(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention written out: on a CPU in bfloat16 its backward is far faster than the fused
    kernel's.
    """
    with torch.autocast("cpu", enabled=False):
        q, k, v = (x.bfloat16() for x in (q, k, v))
        future = torch.full((q.shape[-2], q.shape[-2]), float("-inf"), dtype=q.dtype).triu(1)
        return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + future, -1) @ v


def decay(share: float, *, warm: float = 0.02) -> float:
    """Learning-rate factor: short warm-up, constant, linear to 0.02 over the second half of the
    budget.
    """
    return min(1.0, (share + 1e-3) / warm) * min(1.0, 0.02 + 0.98 * 2 * (1 - share))


def set_rate(optimisers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = factor * group["peak"]


def adamw(
    parameters: Iterable[nn.Parameter], peak: float, *, weight_decay: float = 0.01
) -> torch.optim.AdamW:
    optimiser = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=weight_decay)
    for group in optimiser.param_groups:
        group["peak"] = peak
    return optimiser


def muon_adamw(module: nn.Module, muon: float, adam: float) -> list[torch.optim.Optimizer]:
    """Muon for the inner matrices and kernels of a module, AdamW for what has no such shape or
    reads embeddings.
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    inner = [
        p
        for name, p in trained
        if p.ndim >= 2 and p.shape[0] > 4 and "embed" not in name and "head" not in name
    ]
    chosen = set(map(id, inner))
    return [Muon(inner, muon), adamw([p for _, p in trained if id(p) not in chosen], adam)]


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix update is orthogonalised by a quintic Newton-Schulz iteration (Jordan
    et al., Muon, 2024).

    Convolution kernels count as matrices of output channels by everything else.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], peak: float, *, momentum: float = 0.95
    ) -> None:
        super().__init__(list(parameters), {"lr": peak, "peak": peak, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                velocity = self.state[weight].setdefault("velocity", torch.zeros_like(weight))
                velocity.lerp_(weight.grad, 1 - group["momentum"])
                direction = weight.grad.lerp(velocity, group["momentum"])
                rows = direction.flatten(1)
                size = max(1.0, rows.shape[0] / rows.shape[1]) ** 0.5
                weight.add_(orthogonal(rows).view_as(weight), alpha=-group["lr"] * size)


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """The nearest matrix with equal singular values, roughly (they land in 0.7 .. 1.2)."""
    x = matrix.bfloat16()
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
