"""Speculative decoding: a drafter proposes a chain or a tree, one target forward verifies it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness import Canvas, Drafter, Rule, Session, Tree, UserError, exact


class Speculative:
    """Draft `gamma` tokens, or a tree of that shape, verify them by `rule`, draw one more; until
    the image is done.

    With `exact` (Leviathan et al. 2023, Algorithm 1) the image has the target's law whatever the
    drafter proposes; other rules trade that for longer acceptances. Notes `accepted`: how many
    rounds accepted 0, 1, 2, ... draft tokens, and what the rule says of them. It also serves other
    methods as their `decoding`. Raises UserError unless gamma is at least 1, and for a tree where
    the drafter grows none.
    """

    rows = 1
    branches = 2

    def __init__(self, drafter: Drafter, gamma: int | Tree = 4, rule: Rule = exact) -> None:
        self.drafter = drafter
        self.gamma = gamma
        self.rule = rule
        if isinstance(gamma, int):
            if gamma < 1:
                raise UserError(f"method.gamma={gamma}: draft at least one token")
            self.depth = gamma
            self.tree_capacity = 0
            nodes = gamma
        else:
            if not getattr(drafter, "trees", False):
                raise UserError(
                    "method.gamma is a tree, and the drafter drafts chains: give a number instead"
                )
            self.depth = gamma.depth
            self.tree_capacity = gamma.nodes
            nodes = gamma.nodes
        self.tokens_per_step = 1 + nodes

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        await self.finish([canvas], s)
        return canvas

    async def finish(self, rows: Sequence[Canvas], s: Session) -> None:
        """Draw the rows to their end, each at its own pace."""
        accepted = [0] * (1 + self.depth)
        while live := [canvas for canvas in rows if not canvas.done]:
            drafts = await s.draft(self.drafter, live, self.gamma)
            for count in await s.step(live, drafts, rule=self.rule):
                accepted[count] += 1
        s.note(accepted=accepted, **signals(rows))


def signals(rows: Sequence[Canvas]) -> dict[str, float]:
    """What the rule said of the rows' rounds, summed up; six digits."""
    names = {name: None for canvas in rows for name in canvas.signals}
    return {
        name: round(math.fsum(canvas.signals.get(name, 0.0) for canvas in rows), 6)
        for name in names
    }
