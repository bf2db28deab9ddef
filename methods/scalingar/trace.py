"""What the journal keeps of a group, and back: the decisions as plain values, the series as short text.

Series are kept in thousandths as 16-bit numbers, compressed, in base64: about 1.5 characters a value.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from methods.scalingar.group import Group

_MISSING = 2**16 - 1


def notes(group: Group) -> dict[str, Any]:
    """Facts for the journal line. `terminated_at` is the last step of each candidate, None for survivors."""
    profile, decided = group.profile, group.termination
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
        "trace": {name: _pack(values_TN[_lived(group.terminated_at, values_TN)]) for name, values_TN in series.items()}
        | {"threshold": _pack(group.threshold_T)},
    }


def read_trace(notes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The series of a record's notes: [T, N], NaN where a candidate was not alive; `threshold` is [T]."""
    packed = dict(notes["trace"])
    trace = {"threshold": _unpack(packed.pop("threshold"))}
    for name, text in packed.items():
        trace[name] = np.full((len(trace["threshold"]), len(notes["terminated_at"])), np.nan)
        trace[name][_lived(notes["terminated_at"], trace[name])] = _unpack(text)
    return trace


def _lived(terminated_at: list[int | None], values_TN: np.ndarray) -> np.ndarray:
    """Which steps each candidate lived, bool [T, N]."""
    steps = len(values_TN)
    last_N = np.array([steps - 1 if last is None else last for last in terminated_at])
    return np.arange(steps)[:, None] <= last_N


def _pack(values: np.ndarray) -> str:
    """Numbers from 0 to 65.534, others are cut off; NaN is kept."""
    number = np.clip(values * 1000, 0, _MISSING - 1).round()
    number = np.where(np.isnan(number), _MISSING, number).astype("<u2")
    planes = number.reshape(-1, 1).view(np.uint8).T  # high bytes hardly change: apart they compress well
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode()


def _unpack(text: str) -> np.ndarray:
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).reshape(2, -1)
    number = np.ascontiguousarray(planes.T).view("<u2").ravel()
    return np.where(number == _MISSING, np.nan, number / 1000)
