"""ScalingAR: many candidates, judged while they are drawn by the model's own confidence."""

from __future__ import annotations

from harness import Canvas, Session, UserError
from methods.scalingar.group import Group
from methods.scalingar.profile import PROBES
from methods.scalingar.settings import (
    PAPER,
    Channel,
    Policy,
    ProfileSettings,
    RecoverySettings,
    SchedulerSettings,
    Settings,
    TerminationSettings,
)
from methods.scalingar.trace import notes

__all__ = [
    "Channel", "Policy", "ProfileSettings", "RecoverySettings", "ScalingAR", "SchedulerSettings", "TerminationSettings",
]  # fmt: skip


class ScalingAR:
    """N candidates side by side; the weak end early, the others are guided by their confidence
    (arXiv 2509.26376v3).

    Before every draw the confidence of each candidate is read off its two branches; it sets the
    guidance scale of that same draw, and decides which candidates end after it. Delivered is the
    survivor with the highest confidence at the last token; no reward and no partial image is looked
    at.

    `entropy_source` names the distribution of entropy and margin: `cond`, the text branch's, or
    `guided_prev`, the law under the previous step's scale (temperature, top-k and top-p included).
    Where the model's guidance ends early (`sampling.interval`), the scheduler's effect ends with
    it. Raises UserError for options out of range.
    """

    branches = 2
    tokens_per_step = 1

    def __init__(
        self,
        n: int = 8,
        *,
        entropy_source: str = "cond",
        channel: Channel = PAPER.channel,
        policy: Policy = PAPER.policy,
        profile: ProfileSettings = PAPER.profile,
        termination: TerminationSettings = PAPER.termination,
        recovery: RecoverySettings = PAPER.recovery,
        scheduler: SchedulerSettings = PAPER.scheduler,
    ) -> None:
        if n < 1:
            raise UserError(f"method.n={n}: ScalingAR needs at least one candidate")
        if entropy_source not in PROBES:
            raise UserError(
                f"method.entropy_source={entropy_source}: choose one of {', '.join(PROBES)}"
            )
        self.rows = self.n = n
        self.probe = PROBES[entropy_source]
        self.settings = Settings(channel, policy, profile, termination, recovery, scheduler)
        self.needs_guidance = self.settings.channel.cond or self.settings.policy.scheduler

    async def generate(self, prompt: str, s: Session) -> Canvas:
        candidates = s.open(self.n)
        group = Group(self.settings, self.n, s.grid, base=candidates[0].scale)
        for _ in range(s.num_tokens):
            alive = [candidates[i] for i in group.live]
            scales = group.observe(await s.look(alive, self.probe))
            for canvas, scale in zip(alive, scales, strict=True):
                canvas.scale = scale
            await s.step(alive)
            for i in group.terminate():
                s.close(candidates[i])
        s.note(**notes(group))
        return candidates[group.winner()]
