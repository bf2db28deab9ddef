"""The confidence profile: from the model's own logits to one number per candidate and step (Sec.
4.1).

R live candidates, N candidates, T steps (image tokens), B blocks of the grid, K branches, V
vocabulary. Probes are batched on the device over all prompts; a `Profile` is host arithmetic about
the few candidates of one prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from harness import confidence
from methods.scalingar.settings import Channel, ProfileSettings

NEUTRAL = 0.5
"""Influence and stability where nothing can be told: no spread yet, or a signal that is not a
number.
"""

FLAT = 1e-6
"""Spread below which a pool of values cannot order a new one."""

Array = np.ndarray


def conditional(logits_RKTV: Tensor, _probs: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Entropy and margin of the text branch's distribution at temperature 1, and its divergence
    from the null one's.
    """
    return confidence(logits_RKTV)


def guided(logits_RKTV: Tensor, probs: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The same, with entropy and margin of the law under the previous step's guidance scale
    (`guided_prev`).
    """
    return confidence(logits_RKTV, probs()[:, 0])


PROBES = {"cond": conditional, "guided_prev": guided}
"""By the name of the distribution that entropy and margin are read from."""


class Profile:
    """Confidence of one prompt's N candidates. Every series is an array [T, N], NaN where a
    candidate was not alive.

    `entropy` (normalised), `margin` and `kl` come from the probe; `token` and `stability` make up
    `intrinsic`, `kl` becomes `influence`, both together are `confidence`; `rebound` says how far
    that is above its lowest value. A signal that is not finite counts as neutral, adds to
    `unclear`, and marks its candidate in `unclear_N`.
    """

    def __init__(
        self, settings: ProfileSettings, channel: Channel, n: int, grid: tuple[int, int]
    ) -> None:
        self._settings = settings
        self._cond = channel.cond
        both = channel.token and channel.block
        self._weights = (
            (settings.token_weight, settings.block_weight)
            if both
            else (channel.token, channel.block)
        )
        self._block_T = blocks(grid, settings.block_side)
        self._worst_T = [
            _worst(settings.worst_share, begun) for begun in _running_count(self._block_T)
        ]
        steps = len(self._block_T)
        self.entropy, self.margin, self.kl, self.token, self.trouble = np.full(
            (5, steps, n), np.nan
        )
        self.stability, self.intrinsic, self.influence = np.full((3, steps, n), np.nan)
        self.confidence, self.rebound = np.full((2, steps, n), np.nan)
        self._sum_NB = np.zeros((n, self._block_T.max() + 1))
        self._count_NB = np.zeros_like(self._sum_NB)
        self._token_N, self._intrinsic_N, self._lowest_N = np.full((3, n), np.nan)
        self.unclear_N = np.zeros(n, dtype=bool)
        self.unclear = 0

    def update(self, t: int, live: Array, signals: Sequence[Mapping[str, float]]) -> None:
        """Take in the probe's signals of step t, one row per live candidate."""
        for name, series_TN in (
            ("entropy", self.entropy),
            ("margin", self.margin),
            ("kl", self.kl),
        ):
            values_R = np.array([row[name] for row in signals])
            series_TN[t, live] = np.where(np.isfinite(values_R), values_R, np.nan)
        self._update_token(t, live)
        self._update_stability(t, live)
        self._update_intrinsic(t, live)
        self._update_influence(t, live)
        self._update_confidence(t, live)
        unclear_R = np.isnan(self.entropy[t, live] + self.margin[t, live])
        self.unclear_N[live] = unclear_R | np.isnan(self.kl[t, live]) if self._cond else unclear_R
        self.unclear += int(self.unclear_N[live].sum())

    def _update_token(self, t: int, live: Array) -> None:
        """Smoothed token confidence (Eq. 5)."""
        settings = self._settings
        uncertainty_R = settings.entropy_weight * self.entropy[t, live]
        uncertainty_R = uncertainty_R + settings.margin_weight * (1 - self.margin[t, live])
        token_R = smooth(self._token_N[live], 1 - uncertainty_R, settings.token_smoothing)
        self._token_N[live] = token_R
        self.token[t, live] = np.where(np.isnan(token_R), NEUTRAL, token_R)

    def _update_stability(self, t: int, live: Array) -> None:
        """Worst-block stability (Eq. 6): mean entropy of the worst blocks begun, normalised within
        the group's pool.
        """
        settings = self._settings
        block = self._block_T[t]
        entropy_R = self.entropy[t, live]
        known_R = ~np.isnan(entropy_R)
        self._sum_NB[live, block] += np.where(known_R, entropy_R, 0.0)
        self._count_NB[live, block] += known_R
        count_RB = self._count_NB[live]
        mean_RB = np.where(count_RB > 0, self._sum_NB[live] / np.maximum(count_RB, 1), -np.inf)
        trouble_R = np.sort(mean_RB, axis=1)[:, -self._worst_T[t] :].mean(1)
        trouble_R = np.where(known_R & np.isfinite(trouble_R), trouble_R, np.nan)
        self.trouble[t, live] = trouble_R
        pool = self._pool(self.trouble, t, live)
        low, high = (
            quantile(pool, share / 100)
            for share in (settings.low_percentile, settings.high_percentile)
        )
        if len(pool) < 2 or high - low < FLAT:
            self.stability[t, live] = NEUTRAL
        else:
            stability_R = 1 - np.clip((trouble_R - low) / (high - low), 0, 1)
            self.stability[t, live] = np.where(np.isnan(stability_R), NEUTRAL, stability_R)

    def _update_intrinsic(self, t: int, live: Array) -> None:
        token, block = self._weights
        score_R = token * self.token[t, live] + block * self.stability[t, live]
        self._intrinsic_N[live] = smooth(
            self._intrinsic_N[live], score_R, self._settings.intrinsic_smoothing
        )
        self.intrinsic[t, live] = self._intrinsic_N[live]

    def _update_influence(self, t: int, live: Array) -> None:
        """Influence of the prompt (Eq. 7): the divergence's z-score within the group's pool,
        squashed to 0..1.
        """
        pool = self._pool(self.kl, t, live)
        kl_R = self.kl[t, live]
        deviation = pool.std() if len(pool) > 1 else 0.0
        if deviation < FLAT or not self._cond:
            self.influence[t, live] = NEUTRAL
            return
        z_R = np.clip((kl_R - pool.mean()) / (deviation + self._settings.epsilon), -10, 10)
        self.influence[t, live] = np.where(np.isnan(z_R), NEUTRAL, 1 / (1 + np.exp(-z_R)))

    def _update_confidence(self, t: int, live: Array) -> None:
        """Unified confidence and its rebound above the lowest so far (Eq. 8)."""
        settings = self._settings
        confidence_R = self.intrinsic[t, live]
        if self._cond:
            confidence_R = (
                settings.intrinsic_weight * confidence_R
                + settings.cond_weight * self.influence[t, live]
            )
        self._lowest_N[live] = np.fmin(self._lowest_N[live], confidence_R)
        self.confidence[t, live] = confidence_R
        self.rebound[t, live] = rebound(confidence_R, self._lowest_N[live], settings.epsilon)

    def _pool(self, series_TN: Array, t: int, live: Array) -> Array:
        """Known values of the last steps of the candidates alive now."""
        values = series_TN[max(0, t + 1 - self._settings.rolling_steps) : t + 1, live].ravel()
        return values[~np.isnan(values)]


def blocks(grid: tuple[int, int], side: int) -> Array:
    """Block number of every token in raster order; blocks at the right and lower edge may be
    smaller.
    """
    row_T, column_T = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    return row_T // side * math.ceil(grid[1] / side) + column_T // side


def _running_count(block_T: Array) -> list[int]:
    """How many blocks have been begun after each step."""
    return [len(set(block_T[: t + 1].tolist())) for t in range(len(block_T))]


def _worst(share: float, begun: int) -> int:
    return max(1, whole(share * begun))


def whole(number: float) -> int:
    """The smallest integer not below a product of decimal fractions, rounding errors forgiven: 0.1
    * 70 is 7.
    """
    return math.ceil(round(number, 9))


def smooth(before: Array, new: Array, weight: float) -> Array:
    """Exponential moving average with `weight` on the new value; starts at the first, keeps still
    where new is NaN.
    """
    mixed = np.where(np.isnan(before), new, (1 - weight) * before + weight * new)
    return np.where(np.isnan(new), before, mixed)


def quantile(values: Array, share: float) -> float:
    """Linear between order statistics, and exactly one of them at a whole rank. NaN for no
    values.
    """
    if not len(values):
        return math.nan
    ordered = np.sort(values)
    rank = round(share * (len(values) - 1), 9)
    low = int(rank)
    if rank == low:
        return float(ordered[low])
    return float(ordered[low] + (rank - low) * (ordered[low + 1] - ordered[low]))


def rebound(confidence: Array, lowest: Array, epsilon: float) -> Array:
    """How far a confidence is above the lowest one, relative to that (Eq. 8)."""
    return (confidence - lowest) / (np.abs(lowest) + epsilon)
