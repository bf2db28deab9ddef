"""Speculative decoding: a drafter proposes a chain, one target forward verifies it."""

from __future__ import annotations

from harness import Canvas, Drafter, Rule, Session, UserError, exact


class Speculative:
    """Draft up to `gamma` tokens, verify them by `rule`, draw one more; until the image is done.

    With `exact` (Leviathan et al. 2023, Algorithm 1) the image has the target's law whatever the drafter proposes;
    other rules trade that for longer acceptances. Notes `accepted`: how many rounds accepted 0, 1, ..., gamma draft
    tokens. Raises UserError unless gamma is at least 1.
    """

    rows = 1
    streams = 2

    def __init__(self, drafter: Drafter, gamma: int = 4, rule: Rule = exact) -> None:
        if gamma < 1:
            raise UserError(f"method.gamma={gamma}: draft at least one token")
        self.drafter, self.gamma, self.rule = drafter, gamma, rule
        self.width = 1 + gamma

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        accepted = [0] * (1 + self.gamma)
        while not canvas.done:
            drafts = await s.draft(self.drafter, [canvas], self.gamma)
            (count,) = await s.step([canvas], drafts, rule=self.rule)
            accepted[count] += 1
        s.note(accepted=accepted)
        return canvas
