"""ScalingAR: many candidates, judged while they are drawn by the model's own confidence.

The paper is arXiv 2509.26376v3.
"""

from __future__ import annotations

from harness import Canvas, Count, Session, UserError
from methods.scalingar.group import CandidateGroup
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
from methods.scalingar.trace import journal_facts

__all__ = [
    "Channel",
    "Policy",
    "ProfileSettings",
    "RecoverySettings",
    "ScalingAR",
    "SchedulerSettings",
    "TerminationSettings",
]


class ScalingAR:
    """N candidates side by side: weak ones end early, the others are guided by their confidence.

    Before every draw the confidence of each candidate is read off its two branches. It sets the
    guidance scale of that same draw, and decides which candidates end after it. The survivor with
    the highest confidence at the last token is delivered; no reward and no partial image is looked
    at (arXiv 2509.26376v3, Alg. 1).

    `entropy_source` names the distribution of entropy and margin: `cond` is the text branch's,
    `guided_prev` the one under the previous step's guidance scale, temperature, top-k and top-p
    included. Where the model's guidance ends early (`sampling.interval`), the scheduler's effect
    ends with it. Raises UserError for options out of range.
    """

    branches = 2
    tokens_per_step = 1
    tree_capacity = 0

    def __init__(
        self,
        n: Count = 8,
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
        self.n = n
        self.rows = n
        self.probe = PROBES[entropy_source]
        self.settings = Settings(channel, policy, profile, termination, recovery, scheduler)
        self.needs_guidance = channel.cond or policy.scheduler

    async def generate(self, prompt: str, s: Session) -> Canvas:
        candidates = s.open(self.n)
        group = CandidateGroup(self.settings, self.n, s.grid, base=candidates[0].scale)
        for place in range(s.num_tokens):
            # 0. At a forced place nothing is drawn, and there is nothing to be sure of.
            alive = [candidates[i] for i in group.live]
            if s.raster.is_forced(place):
                await s.step(alive)
                continue

            # 1. Read the confidence of every live candidate off its logits (Sec. 4.1).
            signals = await s.look(alive, self.probe)

            # 2. Set the guidance scale of this draw (Sec. 4.2.2), and draw.
            scales = group.observe(signals)
            for canvas, scale in zip(alive, scales, strict=True):
                canvas.scale = scale
            await s.step(alive)

            # 3. End candidates that are too weak (Sec. 4.2.1).
            for i in group.terminate():
                s.close(candidates[i])

        # 4. Deliver the survivor with the highest confidence.
        s.note(**journal_facts(group))
        return candidates[group.winner()]
