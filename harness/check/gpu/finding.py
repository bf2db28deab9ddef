"""What a part of the check is told, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from harness.records import JSON

if TYPE_CHECKING:
    import torch

Status = Literal["passed", "failed", "not run"]
Size = Literal["full", "tiny"]
"""`full` is real models and shapes; `tiny` is what a CPU can carry out, for tests."""
OURS = ("harness", "methods", "benchmarks")
"""Our own packages: where one of their modules is missing, a part has failed."""


class NotRunError(Exception):
    """A part cannot be carried out here; the message says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the parts run, and what the user gave."""

    device: str = "cuda:0"
    size: Size = "full"
    fixtures: Path | None = None
    peer: Path | None = None

    @property
    def torch_device(self) -> torch.device:
        """Return the device."""
        import torch

        return torch.device(self.device)

    @property
    def is_full(self) -> bool:
        """Tell whether real models and shapes are asked for."""
        return self.size == "full"

    def to_json(self) -> dict[str, JSON]:
        """Convert to plain values."""
        return {
            "device": self.device,
            "size": self.size,
            "fixtures": str(self.fixtures) if self.fixtures else None,
            "peer": str(self.peer) if self.peer else None,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, str | None]) -> Self:
        """Convert from what `to_json` made."""
        fixtures = values["fixtures"]
        peer = values["peer"]
        return cls(
            device=str(values["device"]),
            size="tiny" if values["size"] == "tiny" else "full",
            fixtures=Path(fixtures) if fixtures else None,
            peer=Path(peer) if peer else None,
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """What a part found: a headline for tables, all figures, and what does not hold."""

    headline: str
    figures: Mapping[str, object] = field(default_factory=dict)
    failures: Sequence[str] = ()

    @property
    def status(self) -> Status:
        """Return the verdict."""
        return "failed" if self.failures else "passed"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a step that gets a line of its own, such as one model or one batch size.

    `limit_s` is how many seconds it may take on an H100; it is stopped after them.
    """

    name: str
    run: Callable[[Setting], Finding]
    limit_s: float = 240.0


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the check; `list_parts` imports what it needs, so that listing steps is light."""

    name: str
    about: str
    list_parts: Callable[[Setting], Sequence[Part]]
