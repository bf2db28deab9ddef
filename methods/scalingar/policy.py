"""What the confidence decides: the guidance scale of the next draw, and which candidates end (Sec.
4.2).

R live candidates, N candidates of one prompt; t is the step, counted from 0.
"""

from __future__ import annotations

import math

import numpy as np

from methods.scalingar.profile import Array, quantile, rebound, whole
from methods.scalingar.settings import RecoverySettings, SchedulerSettings, TerminationSettings

NO_FLAG = -1


def guidance(
    settings: SchedulerSettings, base: float, drift_R: Array, variance_R: Array, rebound_R: Array
) -> tuple[Array, Array]:
    """Guidance scales (Eq. 10, Alg. 1 line 12), and which of them the limits changed.

    More where the prompt loses influence or the intrinsic score wavers, less where confidence has
    rebounded.
    """
    correction_R = (
        settings.drift * drift_R + settings.volatility * variance_R - settings.rebound * rebound_R
    )
    target_R = base * (1 + correction_R) if settings.form == "relative" else base + correction_R
    scale_R = np.clip(target_R, settings.lowest_scale, settings.highest_factor * base)
    return scale_R, scale_R != target_R


class Termination:
    """Which candidates of one prompt end after a step: a moving threshold and a chance to recover
    (Alg. 1, 15-18).

    `threshold` is NaN before the warm-up ends. `flag_N` holds the step at which a candidate fell
    below it, -1 for none. `protected` counts candidates that only `min_alive` kept, `recovered` the
    flags a rebound has cleared.
    """

    def __init__(
        self,
        settings: TerminationSettings,
        recovery: RecoverySettings,
        n: int,
        steps: int,
        epsilon: float,
    ) -> None:
        self._settings = settings
        self._recovery = recovery
        self._epsilon = epsilon
        self._warmup = whole(settings.warmup_share * steps)
        self._doomed = {
            "window_end": self._window_end,
            "window_any": self._window_any,
            "alg1_immediate": self._immediate,
        }[recovery.mode]
        self.threshold = math.nan
        self.flag_N = np.full(n, NO_FLAG)
        self._lowest_N = np.full(
            n, np.inf
        )  # since the flag; since the warm-up where there are no flags
        self.protected = self.recovered = 0

    def rests(self, t: int, live: Array) -> bool:
        """Whether nothing is decided at this step: in the warm-up, and for a single survivor."""
        return t < self._warmup or len(live) < 2

    def update(
        self, t: int, live: Array, confidence_R: Array, rebound_R: Array, unclear_R: Array
    ) -> Array:
        """The candidates that end after step t. An `unclear` one (a signal was not a number) is
        left alone.
        """
        if self.rests(t, live):
            return live[:0]
        current = quantile(confidence_R, self._settings.quantile)
        weight = self._settings.smoothing
        self.threshold = (
            current
            if math.isnan(self.threshold)
            else (1 - weight) * self.threshold + weight * current
        )
        below_R = (confidence_R < self.threshold) & ~unclear_R
        doomed_R = (
            self._doomed(t, live, confidence_R, rebound_R, below_R)
            if self._recovery.enabled
            else below_R
        )
        return self._protect(live, doomed_R & ~unclear_R, confidence_R)

    def _protect(self, live: Array, doomed_R: Array, confidence_R: Array) -> Array:
        """Spare the most confident of the doomed where fewer than `min_alive` would be left; ties:
        the lowest index.
        """
        lacking = self._settings.min_alive - int((~doomed_R).sum())
        doomed = np.flatnonzero(doomed_R)
        spared = doomed[np.argsort(-confidence_R[doomed], kind="stable")[: max(0, lacking)]]
        self.flag_N[live[spared]] = NO_FLAG
        self.protected += len(spared)
        return live[np.setdiff1d(doomed, spared)]

    # ------------------------------------------------------------------ recovery modes: who has use

    def _immediate(
        self, t: int, live: Array, confidence_R: Array, rebound_R: Array, below_R: Array
    ) -> Array:
        self._lowest_N[live] = np.minimum(self._lowest_N[live], confidence_R)
        return below_R & (self._rebound(live, confidence_R, rebound_R) < self._recovery.rebound)

    def _window_any(
        self, t: int, live: Array, confidence_R: Array, rebound_R: Array, below_R: Array
    ) -> Array:
        flagged_R = self._flag(t, live, confidence_R, below_R)
        saved_R = flagged_R & (
            self._rebound(live, confidence_R, rebound_R) >= self._recovery.rebound
        )
        over_R = flagged_R & (t - self.flag_N[live] >= self._recovery.window_steps)
        self._clear(live[saved_R])
        return over_R & ~saved_R

    def _window_end(
        self, t: int, live: Array, confidence_R: Array, rebound_R: Array, below_R: Array
    ) -> Array:
        flagged_R = self._flag(t, live, confidence_R, below_R)
        over_R = flagged_R & (t - self.flag_N[live] >= self._recovery.window_steps)
        lost_R = below_R | (self._rebound(live, confidence_R, rebound_R) < self._recovery.rebound)
        self._clear(live[over_R & ~lost_R])
        return over_R & lost_R

    def _flag(self, t: int, live: Array, confidence_R: Array, below_R: Array) -> Array:
        """Open windows for those newly below the threshold and follow the minimum of the others;
        who has one.
        """
        fresh_R = below_R & (self.flag_N[live] == NO_FLAG)
        self.flag_N[live[fresh_R]] = t
        self._lowest_N[live] = np.where(
            fresh_R, confidence_R, np.minimum(self._lowest_N[live], confidence_R)
        )
        return self.flag_N[live] != NO_FLAG

    def _clear(self, candidates: Array) -> None:
        self.flag_N[candidates] = NO_FLAG
        self.recovered += len(candidates)

    def _rebound(self, live: Array, confidence_R: Array, rebound_R: Array) -> Array:
        if self._recovery.reference == "running_min":
            return rebound_R
        return rebound(confidence_R, self._lowest_N[live], self._epsilon)
