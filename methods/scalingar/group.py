"""The candidates of one prompt, step by step: profile, guidance, termination, winner (Alg. 1).

R live candidates, N candidates of the prompt, T steps (image tokens), W steps of a window; t is the
step, counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from methods.scalingar.policy import Termination, guidance_scales
from methods.scalingar.profile import Observation, Profile
from methods.scalingar.settings import Settings


class CandidateGroup:
    """N candidates on a grid of T tokens, drawn in raster order under the guidance scale `base`.

    Call `observe` before a step's draw and `terminate` after it. `live` are the candidates that are
    still drawn, `terminated_at` the last step of each other one. `scale_TN`, `variance_TN` and the
    profile's series are [T, N], NaN where a candidate was not alive; `threshold_T` is NaN where
    nothing was decided.
    """

    def __init__(
        self,
        settings: Settings,
        n: int,
        grid: tuple[int, int],
        base: float,
    ) -> None:
        steps = grid[0] * grid[1]
        self._settings = settings
        self._base = base
        self._t = 0
        self.profile = Profile(settings.profile, settings.channel, n, grid)
        self.termination = Termination(
            settings.termination, settings.recovery, n, steps, settings.profile.epsilon
        )
        self.live = np.arange(n)
        self.terminated_at: list[int | None] = [None] * n
        self.scale_TN = np.full((steps, n), np.nan)
        self.variance_TN = np.full((steps, n), np.nan)
        self.threshold_T = np.full(steps, np.nan)
        self.clamped = 0  # scales that the limits changed

    def observe(self, signals: Sequence[Mapping[str, float]]) -> list[float]:
        """Take in the probe's signals, and return the guidance scales of this step.

        Both have one row per live candidate, in the order of `live`.
        """
        t = self._t
        live = self.live

        # 1. Confidence, and the variance of the intrinsic score.
        self.profile.update(t, live, signals)
        first = max(0, t + 1 - self._settings.scheduler.variance_steps)
        recent_WR = self.profile.intrinsic[first : t + 1, live]
        self.variance_TN[t, live] = recent_WR.var(0)

        # 2. Guidance scale.
        self.scale_TN[t, live] = self._base
        if self._settings.policy.scheduler:
            self._schedule_guidance(t, live)
        return [float(scale) for scale in self.scale_TN[t, live]]

    def _schedule_guidance(self, t: int, live: np.ndarray) -> None:
        """Set the scales of step t; without the conditional channel nothing counts as drift."""
        if self._settings.channel.cond:
            drift_R = 1 - self.profile.influence[t, live]
        else:
            drift_R = np.zeros(len(live))
        scale_R, clamped_R = guidance_scales(
            self._settings.scheduler,
            self._base,
            drift_R,
            self.variance_TN[t, live],
            self.profile.rebound[t, live],
        )
        self.scale_TN[t, live] = scale_R
        self.clamped += int(clamped_R.sum())

    def terminate(self) -> list[int]:
        """Return the candidates that end after this step's token, which counts as theirs."""
        t = self._t
        self._t += 1
        policy_is_on = self._settings.policy.termination
        if not policy_is_on or not self.termination.is_active(t, self.live):
            return []

        ended = self.termination.update(self._observation(t)).tolist()
        self.threshold_T[t] = self.termination.threshold
        self.live = np.setdiff1d(self.live, ended)
        for i in ended:
            self.terminated_at[i] = t
        return ended

    def _observation(self, t: int) -> Observation:
        """Gather what the termination sees of step t."""
        live = self.live
        return Observation(
            t,
            live,
            self.profile.confidence[t, live],
            self.profile.rebound[t, live],
            self.profile.unclear_N[live],
        )

    def winner(self) -> int:
        """Return the survivor with the highest last confidence, the lowest index among equals."""
        return int(self.live[self.profile.confidence[-1, self.live].argmax()])
