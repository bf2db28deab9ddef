"""Say what a measured number should be, whether it is, and what contradicts a model card."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Gate:
    """A measured number, and the least or most that it should be; None asks nothing."""

    name: str
    value: float
    least: float | None = None
    most: float | None = None
    low: float | None = None  # 95 % interval over prompts, where there is one
    high: float | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Gate:
        """Read what `to_row` returned, perhaps before gates had intervals."""
        return cls(**{name: value for name, value in row.items() if name != "holds"})

    def to_row(self) -> dict[str, Any]:
        """Return the gate as a card keeps it."""
        return {**asdict(self), "holds": self.holds}

    @property
    def holds(self) -> bool:
        """Tell whether the number is as it should be."""
        is_enough = self.least is None or self.value >= self.least
        is_little = self.most is None or self.value <= self.most
        return is_enough and is_little

    @property
    def verdict(self) -> str:
        """Say "pass", or by how much the number misses its bar; "" where nothing is asked."""
        if self.least is None and self.most is None:
            return ""
        if self.holds:
            return "pass"
        distances = []
        if self.least is not None:
            distances.append(self.least - self.value)
        if self.most is not None:
            distances.append(self.value - self.most)
        return f"missed by {max(distances):.2g}"

    @property
    def measured(self) -> str:
        """Return the number with its interval."""
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def describe_bar(self, least_sign: str = ">=", most_sign: str = "<=") -> str:
        """Return what is asked for: ">= 0.35 <= 0.7"; "" where nothing is."""
        bounds = ((least_sign, self.least), (most_sign, self.most))
        return " ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)

    def __str__(self) -> str:
        bar = self.describe_bar() or "report"
        return f"{self.name:<52} {self.measured:<22} {bar:<16} {self.verdict}".rstrip()


def with_interval(
    name: str,
    found: tuple[float, float, float],
    *,
    least: float | None = None,
    most: float | None = None,
) -> Gate:
    """Make a gate of a number and the ends of its interval, which are nan where it has none."""
    value, low, high = found
    if math.isnan(low) or math.isnan(high):
        return Gate(name, value, least, most)
    return Gate(name, value, least, most, low, high)


def summarise(gates: Sequence[Gate]) -> str:
    """Say in a line how many gates hold, and name those that do not."""
    asked = [gate for gate in gates if gate.verdict]
    missed = [gate for gate in asked if not gate.holds]
    held = f"{len(asked) - len(missed)} of {len(asked)} gates hold"
    names = "; ".join(f"{gate.name} ({gate.verdict})" for gate in missed)
    return f"{held}; missed: {names}" if missed else held


def to_markdown(gates: Iterable[Gate]) -> list[str]:
    """Return the lines of a Markdown table: what was measured, what is asked, and the verdict."""
    lines = ["| gate | measured | asked | |", "|---|---|---|---|"]
    for gate in gates:
        bar = gate.describe_bar("≥", "≤") or "reported"
        verdict = gate.verdict if gate.holds else f"**{gate.verdict}**"
        lines.append(f"| {gate.name} | {gate.measured} | {bar} | {verdict} |")
    return lines


def platform() -> str:
    """Name what decides how sums are rounded: the processor's instruction set and torch."""
    import torch

    return f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def objections(gates: Sequence[Gate], measured: dict[str, Any] | None) -> list[str]:
    """List what contradicts the card: other numbers, or a missed gate that the card does not admit.

    Where the card was measured on the same kind of processor and the same torch the numbers must be
    equal. On another one rounding leads to other samples, and only a large difference counts (0.1,
    or a decibel).
    """
    rows = measured["gates"] if measured else []
    stated = {row["name"]: row for row in rows}
    found = []
    for gate in gates:
        is_admitted = gate.name in stated and not stated[gate.name]["holds"]
        if not gate.holds and not is_admitted:
            found.append(f"{gate.name} is {gate.verdict} and the card does not say so")

    for gate in gates:
        if gate.name not in stated or not measured:
            continue
        value = stated[gate.name]["value"]
        allowed = 1.0 if "PSNR" in gate.name else 0.1
        if measured["on"] == platform():
            allowed = 1e-6
        if abs(gate.value - value) > allowed:
            found.append(f"{gate.name} is {gate.value:.3f}, the card says {value:.3f}")
    return found
