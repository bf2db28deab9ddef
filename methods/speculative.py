"""Speculative decoding: a drafter proposes a chain or a tree, one target forward verifies it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness import Canvas, Count, Drafter, Rule, Session, Tree, UserError, exact


class Speculative:
    """Draft `gamma` tokens, or a tree of that shape; verify them by `rule`; draw one more token.

    This repeats until the image is done. With the rule `exact` (Leviathan et al. 2023, Algorithm 1)
    the image has the target's distribution, whatever the drafter proposes; other rules give that up
    and accept more tokens.

    Notes `accepted`, which counts the verifications that accepted 0, 1, 2, ... draft tokens, and
    the rule's facts and signals. A rule whose tests depend on depth has `expect_depth(depth)`,
    which is told the longest path of a draft. The class is also a decoding: other methods finish
    their candidates with it. Raises UserError unless gamma is at least 1, and for a tree where the
    drafter grows none.
    """

    rows = 1
    branches = 2

    def __init__(
        self,
        drafter: Drafter,
        gamma: Count | Tree = 4,
        rule: Rule = exact,
    ) -> None:
        self.drafter = drafter
        self.gamma = gamma
        self.rule = rule
        if isinstance(gamma, int):
            if gamma < 1:
                raise UserError(f"method.gamma={gamma}: draft at least one token")
            self.depth = gamma
            self.tree_capacity = 0
            self.tokens_per_step = 1 + gamma
        else:
            if not grows_trees(drafter):
                raise UserError(
                    "method.gamma is a tree, and the drafter drafts chains: give a number instead"
                )
            expect_tree = getattr(drafter, "expect_tree", None)
            if expect_tree is not None:
                expect_tree(gamma)
            self.depth = gamma.depth
            self.tree_capacity = gamma.nodes
            self.tokens_per_step = 1 + gamma.nodes
        expect_depth = getattr(rule, "expect_depth", None)
        if expect_depth is not None:
            expect_depth(self.depth)

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        await self.finish([canvas], s)
        return canvas

    async def finish(self, rows: Sequence[Canvas], s: Session) -> None:
        """Draw the canvases to their end, each at its own pace."""
        accepted = [0] * (1 + self.depth)
        while live := [canvas for canvas in rows if not canvas.done]:
            # 1. Draft: a chain or a tree for each canvas.
            drafts = await s.draft(self.drafter, live, self.gamma)

            # 2. Verify all drafts in one target forward, and draw one more token for each canvas.
            for count in await s.step(live, drafts, rule=self.rule):
                accepted[count] += 1
        s.note(accepted=accepted, **rule_facts(self.rule), **sum_signals(rows))


def grows_trees(drafter: Drafter) -> bool:
    """Tell whether a drafter can propose trees.

    Such a drafter says so by the class attribute `trees = True`; others need not declare anything.
    """
    return getattr(drafter, "trees", False)


def rule_facts(rule: Rule) -> dict[str, Any]:
    """Return what a rule says of itself for the journal, in its attribute `facts`."""
    return getattr(rule, "facts", {})


def sum_signals(rows: Sequence[Canvas]) -> dict[str, float]:
    """Add up what the rule reported of its verifications over the canvases, to six digits."""
    values: dict[str, list[float]] = {}
    for canvas in rows:
        for name, value in canvas.signals.items():
            values.setdefault(name, []).append(value)
    return {name: round(math.fsum(numbers), 6) for name, numbers in values.items()}
