"""What the confidence decides: the guidance scale of the next draw, and which candidates end.

This is Sec. 4.2 of the paper. R live candidates, N candidates of one prompt; t is the step, counted
from 0.
"""

from __future__ import annotations

import math

import numpy as np

from methods.scalingar.profile import Array, Observation, quantile, rebound, round_up
from methods.scalingar.settings import RecoverySettings, SchedulerSettings, TerminationSettings

NO_FLAG = -1


def guidance_scales(
    settings: SchedulerSettings,
    base: float,
    drift_R: Array,
    variance_R: Array,
    rebound_R: Array,
) -> tuple[Array, Array]:
    """Return guidance scales (Eq. 10, Alg. 1 line 12), and which of them the limits changed.

    They are higher where the prompt loses influence or the intrinsic score wavers, lower where the
    confidence has rebounded.
    """
    correction_R = (
        settings.drift * drift_R + settings.volatility * variance_R - settings.rebound * rebound_R
    )
    is_relative = settings.form == "relative"
    target_R = base * (1 + correction_R) if is_relative else base + correction_R
    scale_R = np.clip(target_R, settings.lowest_scale, settings.highest_factor * base)
    return scale_R, scale_R != target_R


class Termination:
    """Decide which candidates of one prompt end: a moving threshold and a chance to recover.

    This is Alg. 1, lines 15-18. `threshold` is NaN before the warm-up ends. `flag_N` is the step at
    which a candidate fell below it, -1 for none. `protected` counts candidates that only
    `min_alive` spared, `recovered` the flags that a rebound has cleared.
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
        self._warmup = round_up(settings.warmup_share * steps)
        self._doom_by_mode = {
            "window_end": self._doom_at_window_end,
            "window_any": self._doom_without_recovery,
            "alg1_immediate": self._doom_immediately,
        }[recovery.mode]
        # Lowest confidence since the flag; where there are no flags, since the warm-up.
        self._lowest_N = np.full(n, np.inf)
        self.threshold = math.nan
        self.flag_N = np.full(n, NO_FLAG)
        self.protected = 0
        self.recovered = 0

    def is_active(self, t: int, live: Array) -> bool:
        """Tell whether a step can end candidates: after the warm-up, with two or more left."""
        return t >= self._warmup and len(live) >= 2

    def update(self, seen: Observation) -> Array:
        """Return the candidates that end after a step.

        A candidate with an unclear signal is left alone.
        """
        if not self.is_active(seen.t, seen.live):
            return seen.live[:0]

        # 1. Move the threshold (Eq. 9).
        self._move_threshold(seen.confidence_R)
        below_R = (seen.confidence_R < self.threshold) & ~seen.unclear_R

        # 2. Give candidates below it a chance to recover.
        doomed_R = self._doom_by_mode(seen, below_R) if self._recovery.enabled else below_R

        # 3. Leave at least `min_alive`.
        return self._end(seen, doomed_R & ~seen.unclear_R)

    def _move_threshold(self, confidence_R: Array) -> None:
        """Follow the quantile of the live candidates' confidences; start at its first value."""
        current = quantile(confidence_R, self._settings.quantile)
        weight = self._settings.smoothing
        if math.isnan(self.threshold):
            self.threshold = current
        else:
            self.threshold = (1 - weight) * self.threshold + weight * current

    def _end(self, seen: Observation, doomed_R: Array) -> Array:
        """Return the doomed, without the most confident where too few would be left.

        Among equals the lowest index is spared.
        """
        lacking = self._settings.min_alive - int((~doomed_R).sum())
        doomed = np.flatnonzero(doomed_R)
        by_confidence = np.argsort(-seen.confidence_R[doomed], kind="stable")
        spared = doomed[by_confidence[: max(0, lacking)]]
        self.flag_N[seen.live[spared]] = NO_FLAG
        self.protected += len(spared)
        return seen.live[np.setdiff1d(doomed, spared)]

    # ------------------------------------------------------------------ recovery modes

    def _doom_immediately(self, seen: Observation, below_R: Array) -> Array:
        """Doom who is below the threshold and has not rebounded (Alg. 1, line 17)."""
        lowest_R = np.minimum(self._lowest_N[seen.live], seen.confidence_R)
        self._lowest_N[seen.live] = lowest_R
        return below_R & ~self._has_rebounded(seen)

    def _doom_without_recovery(self, seen: Observation, below_R: Array) -> Array:
        """Doom at the window's end who has not rebounded anywhere inside (Sec. 4.2.1)."""
        flagged_R = self._flag(seen, below_R)
        saved_R = flagged_R & self._has_rebounded(seen)
        over_R = flagged_R & self._window_is_over(seen)
        self._clear_flags(seen.live[saved_R])
        return over_R & ~saved_R

    def _doom_at_window_end(self, seen: Observation, below_R: Array) -> Array:
        """Doom at the window's end who is still below the threshold or has not rebounded."""
        flagged_R = self._flag(seen, below_R)
        over_R = flagged_R & self._window_is_over(seen)
        lost_R = below_R | ~self._has_rebounded(seen)
        self._clear_flags(seen.live[over_R & ~lost_R])
        return over_R & lost_R

    def _flag(self, seen: Observation, below_R: Array) -> Array:
        """Open windows for those newly below the threshold; return who has one.

        The lowest confidence starts anew with a window, and is followed in it.
        """
        fresh_R = below_R & (self.flag_N[seen.live] == NO_FLAG)
        self.flag_N[seen.live[fresh_R]] = seen.t
        lowest_R = np.minimum(self._lowest_N[seen.live], seen.confidence_R)
        self._lowest_N[seen.live] = np.where(fresh_R, seen.confidence_R, lowest_R)
        return self.flag_N[seen.live] != NO_FLAG

    def _clear_flags(self, candidates: Array) -> None:
        self.flag_N[candidates] = NO_FLAG
        self.recovered += len(candidates)

    def _window_is_over(self, seen: Observation) -> Array:
        """True for candidates whose flag is a window old; meaningless for those without one."""
        return seen.t - self.flag_N[seen.live] >= self._recovery.window_steps

    def _has_rebounded(self, seen: Observation) -> Array:
        """True for candidates that are far enough above their lowest confidence."""
        if self._recovery.reference == "running_min":
            rebound_R = seen.rebound_R
        else:
            rebound_R = rebound(seen.confidence_R, self._lowest_N[seen.live], self._epsilon)
        return rebound_R >= self._recovery.rebound
