"""Percentiles of latencies, stated only where there are enough samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.99


def latency_percentile(seconds: Sequence[float], q: float) -> float:
    """Return the q-quantile of latencies; nan where there are too few (see `samples_for`)."""
    if len(seconds) < samples_for(q):
        return math.nan
    return float(np.quantile(seconds, q))


def samples_for(q: float, confidence: float = CONFIDENCE) -> int:
    """Return the fewest samples that support a statement about the q-quantile.

    The smallest n for which at least two samples lie above the true quantile with that confidence:
    q^n + n (1 - q) q^(n - 1) <= 1 - confidence. This is MLPerf's early-stopping rule (LoadGen,
    `early_stopping.cc`): 11 for p50, 64 for p90, 130 for p95, 662 for p99.
    """
    n = 2
    while q**n + n * (1 - q) * q ** (n - 1) > 1 - confidence:
        n += 1
    return n
