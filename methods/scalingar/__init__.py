"""ScalingAR: many candidates, judged while they are drawn by the model's own confidence.

The paper is arXiv 2509.26376v3.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness import Canvas, Count, Drafter, Session, UserError, coupled
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

    With a `drafter` the candidates are drawn `window` positions at a time, by the rule `coupled`:
    each token is the one that would be drawn without drafts, so that candidates, terminations and
    winner are the same, up to rounding. The policy must be termination alone, as the scheduler sets
    the guidance scale of every token after it has seen the one before. Nobody has published this.

    `entropy_source` names the distribution of entropy and margin: `cond` is the text branch's,
    `guided_prev` the one under the previous step's guidance scale, temperature, top-k and top-p
    included. Where the model's guidance ends early (`sampling.interval`), the scheduler's effect
    ends with it. Raises UserError for options out of range, and for a drafter beside the scheduler.
    """

    branches = 2
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
        drafter: Drafter | None = None,
        window: Count = 16,
    ) -> None:
        if n < 1:
            raise UserError(f"method.n={n}: ScalingAR needs at least one candidate")
        if entropy_source not in PROBES:
            raise UserError(
                f"method.entropy_source={entropy_source}: choose one of {', '.join(PROBES)}"
            )
        if drafter is not None and policy.scheduler:
            raise UserError(
                "method.drafter: drafts are verified under one guidance scale, and the scheduler "
                "sets one for every token: set method.policy.scheduler=false"
            )
        if window < 2:
            raise UserError(f"method.window={window}: must be at least 2, a token and its draft")
        self.n = n
        self.rows = n
        self.drafter = drafter
        self.window = window
        self.tokens_per_step = 1 if drafter is None else window
        self.probe = PROBES[entropy_source]
        self.settings = Settings(channel, policy, profile, termination, recovery, scheduler)
        self.needs_guidance = channel.cond or policy.scheduler

    async def generate(self, prompt: str, s: Session) -> Canvas:
        candidates = s.open(self.n)
        group = CandidateGroup(self.settings, self.n, s.grid, base=candidates[0].scale)
        if self.drafter is None:
            await self._draw_by_token(candidates, group, s)
        else:
            await self._draw_by_draft(self.drafter, candidates, group, s)

        # Deliver the survivor with the highest confidence.
        s.note(**journal_facts(group))
        return candidates[group.winner()]

    async def _draw_by_token(
        self, candidates: Sequence[Canvas], group: CandidateGroup, s: Session
    ) -> None:
        """Draw the candidates side by side, token by token."""
        for place in range(s.num_tokens):
            # 0. At a forced place nothing is drawn, and there is nothing to be sure of.
            alive = [candidates[i] for i in group.live.tolist()]
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

    async def _draw_by_draft(
        self, drafter: Drafter, candidates: Sequence[Canvas], group: CandidateGroup, s: Session
    ) -> None:
        """Draw the candidates by drafts, each at its own pace; decide a step once all are past it.

        A candidate that ends may have drawn further than it would have without drafts.
        """
        seen: list[list[dict[str, float]]] = [[] for _ in candidates]  # signals of drawn tokens
        accepted = [0] * self.window
        for step in range(s.raster.codes):
            # 1. Draw on until every live candidate has the token of this step.
            live: list[int] = group.live.tolist()
            while min(len(seen[i]) for i in live) <= step:
                behind = [i for i in live if not candidates[i].done]
                alive = [candidates[i] for i in behind]
                first = [canvas.length for canvas in alive]
                drafts = await s.draft(drafter, alive, self.window - 1)
                signals = await s.look_along(alive, drafts, self.probe)
                counts = await s.step(alive, drafts, rule=coupled)
                for i, place, looks, count in zip(behind, first, signals, counts, strict=True):
                    for ahead, look in enumerate(looks[: count + 1]):
                        if not s.raster.is_forced(place + ahead):
                            seen[i].append(look)
                    accepted[count] += 1

            # 2. Read the confidence of all, and end candidates that are too weak (Sec. 4.2.1).
            group.observe([seen[i][step] for i in live])
            for i in group.terminate():
                s.close(candidates[i])
        s.note(accepted=accepted)
