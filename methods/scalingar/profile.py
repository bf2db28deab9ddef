"""The confidence profile: from the model's own logits to one number per candidate and step.

This is Sec. 4.1 of the paper. R live candidates, N candidates, T steps (image tokens), B blocks of
the grid, K branches, V vocabulary. Probes run on the device, for the candidates of all prompts at
once; a `Profile` is host arithmetic about the few candidates of one prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from harness import confidence
from methods.scalingar.settings import Channel, ProfileSettings

NEUTRAL = 0.5
"""Influence and stability without a spread yet, or where a signal is not a number."""

FLAT = 1e-6
"""Spread below which a pool of values cannot order a new one."""

Z_LIMIT = 10
"""Largest z-score, up or down; larger ones count as this."""

Array = np.ndarray


# ------------------------------------------------------------------ probes


def probe_conditional(logits_RKTV: Tensor, _probs: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Measure entropy and margin of the text branch's distribution at temperature 1 (`cond`).

    `kl` is its divergence from the null branch's distribution, in nats.
    """
    return confidence(logits_RKTV)


def probe_guided(logits_RKTV: Tensor, probs: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Measure entropy and margin under the previous step's guidance scale (`guided_prev`).

    `kl` is as in `probe_conditional`.
    """
    return confidence(logits_RKTV, probs()[:, 0])


PROBES = {"cond": probe_conditional, "guided_prev": probe_guided}
"""By the name of the distribution that entropy and margin are read from."""


# ------------------------------------------------------------------ the profile


@dataclass(frozen=True, slots=True)
class Observation:
    """What one step shows of the live candidates."""

    t: int
    live: Array  # candidates, int64 [R]
    confidence_R: Array
    rebound_R: Array
    unclear_R: Array  # bool: a signal was not a number


class Profile:
    """Confidence of one prompt's N candidates, step by step.

    Every series is an array [T, N], NaN where a candidate was not alive. `entropy` (normalised),
    `margin` and `kl` come from the probe. `token` and `stability` make up `intrinsic`, `kl` becomes
    `influence`, and both together are `confidence`; `rebound` is how far that is above its lowest
    value. `trouble` is the mean entropy of the worst blocks.

    A signal that is not finite counts as neutral, adds to `unclear`, and marks its candidate in
    `unclear_N`.
    """

    def __init__(
        self,
        settings: ProfileSettings,
        channel: Channel,
        n: int,
        grid: tuple[int, int],
    ) -> None:
        self._settings = settings
        self._cond = channel.cond
        self._token_weight, self._block_weight = _intrinsic_weights(settings, channel)
        self._block_T = block_numbers(grid, settings.block_side)
        self._worst_T = _worst_counts(self._block_T, settings.worst_share)

        # Series.
        steps = grid[0] * grid[1]
        self.entropy = _empty_series(steps, n)
        self.margin = _empty_series(steps, n)
        self.kl = _empty_series(steps, n)
        self.token = _empty_series(steps, n)
        self.trouble = _empty_series(steps, n)
        self.stability = _empty_series(steps, n)
        self.intrinsic = _empty_series(steps, n)
        self.influence = _empty_series(steps, n)
        self.confidence = _empty_series(steps, n)
        self.rebound = _empty_series(steps, n)
        self.unclear_N = np.zeros(n, dtype=bool)
        self.unclear = 0

        # What is carried from step to step.
        self._entropy_sum_NB = np.zeros((n, self._block_T.max() + 1))
        self._entropy_count_NB = np.zeros_like(self._entropy_sum_NB)
        self._token_N = _empty_series(n)
        self._intrinsic_N = _empty_series(n)
        self._lowest_N = _empty_series(n)

    def update(
        self,
        t: int,
        live: Array,
        signals: Sequence[Mapping[str, float]],
    ) -> None:
        """Take in the probe's signals of step t, one row per live candidate."""
        now = (t, live)

        # 1. Raw signals.
        entropy_R = _finite_values(signals, "entropy")
        margin_R = _finite_values(signals, "margin")
        kl_R = _finite_values(signals, "kl")
        self.entropy[now] = entropy_R
        self.margin[now] = margin_R
        self.kl[now] = kl_R

        # 2. Intrinsic channel (Sec. 4.1.1).
        token_R = self._smooth_token(live, entropy_R, margin_R)
        trouble_R = self._worst_entropy(t, live, entropy_R)
        self.token[now] = token_R
        self.trouble[now] = trouble_R
        stability_R = self._rank_stability(t, live, trouble_R)
        intrinsic_R = self._smooth_intrinsic(live, token_R, stability_R)
        self.stability[now] = stability_R
        self.intrinsic[now] = intrinsic_R

        # 3. Conditional channel (Sec. 4.1.2).
        influence_R = self._score_influence(t, live, kl_R)
        self.influence[now] = influence_R

        # 4. Unified state (Sec. 4.1.3).
        confidence_R = self._unify(intrinsic_R, influence_R)
        self.confidence[now] = confidence_R
        self.rebound[now] = self._follow_rebound(live, confidence_R)

        # 5. Candidates with a signal that is not a number.
        unclear_R = np.isnan(entropy_R + margin_R)
        if self._cond:
            unclear_R = unclear_R | np.isnan(kl_R)
        self.unclear_N[live] = unclear_R
        self.unclear += int(unclear_R.sum())

    def _smooth_token(
        self,
        live: Array,
        entropy_R: Array,
        margin_R: Array,
    ) -> Array:
        """Return the smoothed token confidence (Eq. 5)."""
        settings = self._settings
        spread_R = settings.entropy_weight * entropy_R
        indecision_R = settings.margin_weight * (1 - margin_R)
        trust_R = 1 - (spread_R + indecision_R)
        token_R = smooth(self._token_N[live], trust_R, settings.token_smoothing)
        self._token_N[live] = token_R
        return _or_neutral(token_R)

    def _worst_entropy(
        self,
        t: int,
        live: Array,
        entropy_R: Array,
    ) -> Array:
        """Return the mean entropy of the worst blocks; NaN where this step's is unknown."""
        # 1. Mean entropy of every block that has begun.
        block = self._block_T[t]
        known_R = ~np.isnan(entropy_R)
        self._entropy_sum_NB[live, block] += np.where(known_R, entropy_R, 0.0)
        self._entropy_count_NB[live, block] += known_R
        sum_RB = self._entropy_sum_NB[live]
        count_RB = self._entropy_count_NB[live]
        mean_RB = sum_RB / np.maximum(count_RB, 1)
        mean_RB = np.where(count_RB > 0, mean_RB, -np.inf)

        # 2. Mean of the worst ones.
        worst = self._worst_T[t]
        trouble_R = np.sort(mean_RB, axis=1)[:, -worst:].mean(1)
        return np.where(known_R & np.isfinite(trouble_R), trouble_R, np.nan)

    def _rank_stability(
        self,
        t: int,
        live: Array,
        trouble_R: Array,
    ) -> Array:
        """Place the worst blocks' entropy between the pool's percentiles, upside down (Eq. 6)."""
        settings = self._settings
        pool = self._pool(self.trouble, t, live)
        low = quantile(pool, settings.low_percentile / 100)
        high = quantile(pool, settings.high_percentile / 100)
        if len(pool) < 2 or high - low < FLAT:
            return np.full(len(live), NEUTRAL)
        share_R = np.clip((trouble_R - low) / (high - low), 0, 1)
        return _or_neutral(1 - share_R)

    def _smooth_intrinsic(
        self,
        live: Array,
        token_R: Array,
        stability_R: Array,
    ) -> Array:
        """Return the smoothed, weighted sum of token confidence and stability."""
        score_R = self._token_weight * token_R + self._block_weight * stability_R
        weight = self._settings.intrinsic_smoothing
        intrinsic_R = smooth(self._intrinsic_N[live], score_R, weight)
        self._intrinsic_N[live] = intrinsic_R
        return intrinsic_R

    def _score_influence(
        self,
        t: int,
        live: Array,
        kl_R: Array,
    ) -> Array:
        """Return the divergence's z-score within the group's pool, squashed to 0..1 (Eq. 7)."""
        pool = self._pool(self.kl, t, live)
        deviation = pool.std() if len(pool) > 1 else 0.0
        if deviation < FLAT or not self._cond:
            return np.full(len(live), NEUTRAL)
        z_R = (kl_R - pool.mean()) / (deviation + self._settings.epsilon)
        z_R = np.clip(z_R, -Z_LIMIT, Z_LIMIT)
        return _or_neutral(1 / (1 + np.exp(-z_R)))

    def _unify(self, intrinsic_R: Array, influence_R: Array) -> Array:
        """Return the unified confidence, the intrinsic score alone without the other channel."""
        if not self._cond:
            return intrinsic_R
        settings = self._settings
        return settings.intrinsic_weight * intrinsic_R + settings.cond_weight * influence_R

    def _follow_rebound(self, live: Array, confidence_R: Array) -> Array:
        """Return the rebound above the lowest confidence so far (Eq. 8)."""
        lowest_R = np.fmin(self._lowest_N[live], confidence_R)
        self._lowest_N[live] = lowest_R
        return rebound(confidence_R, lowest_R, self._settings.epsilon)

    def _pool(
        self,
        series_TN: Array,
        t: int,
        live: Array,
    ) -> Array:
        """Return the known values of the last steps of the candidates alive now."""
        first = max(0, t + 1 - self._settings.rolling_steps)
        values = series_TN[first : t + 1, live].ravel()
        return values[~np.isnan(values)]


def _empty_series(*shape: int) -> Array:
    return np.full(shape, np.nan)


def _finite_values(signals: Sequence[Mapping[str, float]], name: str) -> Array:
    """Return a signal of each live candidate, NaN where it is not finite."""
    values_R = np.array([row[name] for row in signals])
    return np.where(np.isfinite(values_R), values_R, np.nan)


def _or_neutral(values: Array) -> Array:
    return np.where(np.isnan(values), NEUTRAL, values)


# ------------------------------------------------------------------ arithmetic


def _intrinsic_weights(settings: ProfileSettings, channel: Channel) -> tuple[float, float]:
    """Return the weights of token confidence and stability; one alone has all the weight."""
    if channel.token and channel.block:
        return settings.token_weight, settings.block_weight
    return float(channel.token), float(channel.block)


def block_numbers(grid: tuple[int, int], side: int) -> Array:
    """Return the block of every token in raster order, int64 [T].

    Blocks are `side` tokens wide and high, smaller at the right and lower edge.
    """
    height, width = grid
    row_T, column_T = np.divmod(np.arange(height * width), width)
    blocks_per_row = math.ceil(width / side)
    return row_T // side * blocks_per_row + column_T // side


def _worst_counts(block_T: Array, share: float) -> list[int]:
    """Return how many blocks are the worst ones after each step: a share of those begun."""
    begun: set[int] = set()
    counts = []
    for block in block_T.tolist():
        begun.add(block)
        counts.append(max(1, round_up(share * len(begun))))
    return counts


def round_up(number: float) -> int:
    """Return the smallest integer not below a product of decimal fractions.

    Rounding errors are forgiven: 0.1 * 70 is 7.
    """
    return math.ceil(round(number, 9))


def smooth(before: Array, new: Array, weight: float) -> Array:
    """Return the exponential moving average with `weight` on the new value.

    It starts at the first value, and stands still where the new one is NaN.
    """
    moved = (1 - weight) * before + weight * new
    started = np.where(np.isnan(before), new, moved)
    return np.where(np.isnan(new), before, started)


def quantile(values: Array, share: float) -> float:
    """Interpolate linearly between order statistics; return one of them at a whole rank.

    NaN for no values.
    """
    if not len(values):
        return math.nan
    ordered = np.sort(values)
    rank = round(share * (len(values) - 1), 9)
    whole_rank = int(rank)
    low = ordered[whole_rank]
    if rank == whole_rank:
        return float(low)
    high = ordered[whole_rank + 1]
    return float(low + (rank - whole_rank) * (high - low))


def rebound(confidence: Array, lowest: Array, epsilon: float) -> Array:
    """Return how far a confidence is above the lowest one, relative to that (Eq. 8)."""
    return (confidence - lowest) / (np.abs(lowest) + epsilon)
