"""What the journal keeps of a group, and back: the decisions as plain values, the series as short
text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from harness import pack_series, unpack_series
from methods.scalingar.group import Group


def notes(group: Group) -> dict[str, Any]:
    """Facts for the journal line. `terminated_at` is the last step of each candidate, None for
    survivors.
    """
    profile = group.profile
    decided = group.termination
    series = {
        "confidence": profile.confidence,
        "intrinsic": profile.intrinsic,
        "influence": profile.influence,
        "entropy": profile.entropy,
        "rebound": profile.rebound,
        "scale": group.scale_TN,
    }
    return {
        "chosen": group.winner(),
        "terminated_at": group.terminated_at,
        "clamped": group.clamped,
        "protected": decided.protected,
        "recovered": decided.recovered,
        "unclear": profile.unclear,
        "trace": {
            name: pack_series(values_TN[_lived(group.terminated_at, values_TN)])
            for name, values_TN in series.items()
        }
        | {"threshold": pack_series(group.threshold_T)},
    }


def read_trace(notes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The series of a record's notes: [T, N], NaN where a candidate was not alive; `threshold` is
    [T].
    """
    packed = dict(notes["trace"])
    trace = {"threshold": unpack_series(packed.pop("threshold"))}
    for name, text in packed.items():
        trace[name] = np.full((len(trace["threshold"]), len(notes["terminated_at"])), np.nan)
        trace[name][_lived(notes["terminated_at"], trace[name])] = unpack_series(text)
    return trace


def _lived(terminated_at: list[int | None], values_TN: np.ndarray) -> np.ndarray:
    """Which steps each candidate lived, bool [T, N]."""
    steps = len(values_TN)
    last_N = np.array([steps - 1 if last is None else last for last in terminated_at])
    return np.arange(steps)[:, None] <= last_N
