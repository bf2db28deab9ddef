"""What the journal keeps of a group, and back: decisions as plain values, series as short text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness import pack_series, unpack_series
from methods.scalingar.group import CandidateGroup


def journal_facts(group: CandidateGroup) -> dict[str, Any]:
    """Describe a finished group for the journal.

    `terminated_at` is the last step of each candidate, None for survivors. The series of `trace`
    hold the steps at which a candidate was alive.
    """
    profile = group.profile
    decided = group.termination
    return {
        "chosen": group.winner(),
        "terminated_at": group.terminated_at,
        "clamped": group.clamped,
        "protected": decided.protected,
        "recovered": decided.recovered,
        "unclear": profile.unclear,
        "trace": _pack_trace(group),
    }


def _pack_trace(group: CandidateGroup) -> dict[str, str]:
    profile = group.profile
    series = {
        "confidence": profile.confidence,
        "intrinsic": profile.intrinsic,
        "influence": profile.influence,
        "entropy": profile.entropy,
        "rebound": profile.rebound,
        "scale": group.scale_TN,
    }
    alive_TN = _alive_steps(group.terminated_at, len(group.threshold_T))
    trace = {name: pack_series(values_TN[alive_TN]) for name, values_TN in series.items()}
    trace["threshold"] = pack_series(group.threshold_T)
    return trace


def read_trace(notes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Read the series from a record's notes: [T, N], NaN where a candidate was not alive.

    `threshold` is [T].
    """
    packed = dict(notes["trace"])
    threshold_T = unpack_series(packed.pop("threshold"))
    alive_TN = _alive_steps(notes["terminated_at"], len(threshold_T))
    trace = {"threshold": threshold_T}
    for name, text in packed.items():
        values_TN = np.full(alive_TN.shape, np.nan)
        values_TN[alive_TN] = unpack_series(text)
        trace[name] = values_TN
    return trace


def _alive_steps(terminated_at: Sequence[int | None], steps: int) -> np.ndarray:
    """Mark the steps at which each candidate was alive, bool [T, N]."""
    last_N = np.array([steps - 1 if last is None else last for last in terminated_at])
    return np.arange(steps)[:, None] <= last_N
