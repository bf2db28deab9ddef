"""The candidates of one prompt, step by step: profile, guidance, termination, winner (Alg. 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from methods.scalingar.policy import Termination, guidance
from methods.scalingar.profile import Profile
from methods.scalingar.settings import Settings


class Group:
    """N candidates on a grid of T tokens, drawn in raster order under the guidance scale `base`.

    Call `observe` before a step's draw and `terminate` after it. `scale_TN`, `variance_TN` and the
    profile's series are [T, N], NaN where a candidate was not alive; `threshold_T` is NaN where
    nothing was decided.
    """

    def __init__(self, settings: Settings, n: int, grid: tuple[int, int], base: float) -> None:
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
        self.scale_TN, self.variance_TN = (np.full((steps, n), np.nan) for _ in range(2))
        self.threshold_T = np.full(steps, np.nan)
        self.clamped = 0  # scales that the limits changed

    def observe(self, signals: Sequence[Mapping[str, float]]) -> list[float]:
        """Take in the probe's signals, a row per live candidate; returns the guidance scales of
        this step.
        """
        t = self._t
        live = self.live
        profile = self.profile
        profile.update(t, live, signals)
        window = slice(max(0, t + 1 - self._settings.scheduler.variance_steps), t + 1)
        self.variance_TN[t, live] = profile.intrinsic[window, live].var(0)
        self.scale_TN[t, live] = self._base
        if self._settings.policy.scheduler:
            self._guide(t)
        return [float(scale) for scale in self.scale_TN[t, live]]

    def _guide(self, t: int) -> None:
        live = self.live
        profile = self.profile
        drift_R = (
            1 - profile.influence[t, live] if self._settings.channel.cond else np.zeros(len(live))
        )
        scale_R, clamped_R = guidance(
            self._settings.scheduler,
            self._base,
            drift_R,
            self.variance_TN[t, live],
            profile.rebound[t, live],
        )
        self.scale_TN[t, live] = scale_R
        self.clamped += int(clamped_R.sum())

    def terminate(self) -> list[int]:
        """The candidates that end after this step's token, which counts as theirs."""
        t = self._t
        live = self.live
        profile = self.profile
        stage = self.termination
        self._t += 1
        if not self._settings.policy.termination or stage.rests(t, live):
            return []
        ended = stage.update(
            t, live, profile.confidence[t, live], profile.rebound[t, live], profile.unclear_N[live]
        ).tolist()
        self.threshold_T[t] = stage.threshold
        self.live = np.setdiff1d(live, ended)
        for i in ended:
            self.terminated_at[i] = t
        return ended

    def winner(self) -> int:
        """The survivor with the highest confidence at the last step; the lowest index among
        equals.
        """
        return int(self.live[self.profile.confidence[-1, self.live].argmax()])
