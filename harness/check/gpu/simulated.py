"""What is done where there is no GPU: a short list of the parts on a simulated one.

The simulated device lies among the tests, which an installed wheel does not have. It enforces
CUDA's rules while a CPU computes; it knows nothing of speed, memory or rounding, so its lines are
printed and not kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from harness.check.gpu.facts import ROOT
from harness.check.gpu.finding import Setting
from harness.check.gpu.journal import Line
from harness.check.gpu.plan import step_named
from harness.check.gpu.table import format_lines
from harness.check.gpu.worker import carry_out

TESTS = ROOT / "tests"
SHORT_LIST: tuple[tuple[str, str], ...] = (
    ("device", "capture"),
    ("methods", "plain"),
    ("methods", "scalingar"),
    ("methods", "speculative"),
    ("methods", "zipar"),
    ("models", "llamagen_xl_256"),
    ("models", "janus_pro_1b"),
    ("rows", "llamagen_xl_256, W 5"),
)
"""Steps and parts that a simulated device can say something about."""


def check_simulated(short_list: Sequence[tuple[str, str]] = SHORT_LIST) -> int:
    """Carry out the short list on the simulated device; return 1 if a part has failed.

    Returns 2 where there is no simulated device either, and says so.
    """
    if not (TESTS / "simulated_cuda").is_dir():
        print(
            "There is no GPU here, and no simulated one: it lies in tests/ of a clone, "
            "and this is an installed wheel. Nothing was run."
        )
        return 2
    print(
        "There is no GPU here. What follows was carried out on a simulated device, with tiny "
        "models: it says nothing of speed, memory or rounding, and is not kept.",
        flush=True,
    )
    lines = [_carry_out(step, part) for step, part in short_list]
    failed = sum(line.status == "failed" for line in lines)
    print(f"{len(lines) - failed} of {len(lines)} passed on the simulated device")
    return int(failed > 0)


def _carry_out(step: str, name: str) -> Line:
    """Carry out a part inside a simulated machine, whose problems are failures."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    setting = Setting(device="cuda:0", size="tiny")
    (part,) = [part for part in step_named(step).list_parts(setting) if part.name == name]
    machine: Any
    with import_module("simulated_cuda").simulated_cuda() as machine:
        line = carry_out(step, part, setting)
        problems = list(machine.problems)
    if problems:
        reason = "; ".join(filter(None, [line.reason, *problems[:3]]))
        line = Line(step, name, "failed", line.seconds, line.headline, reason, line.figures)
    print(format_lines([line]), flush=True)
    return line
