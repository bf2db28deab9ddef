"""Best-of-N: draw N candidates, keep the one a reward likes best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness import Canvas, Decoding, Judge, Session, UserError


class BestOfN:
    """N finished candidates, one delivered.

    `reward` scores a candidate from the prompt's text and its image; None takes the model's own
    mean log-likelihood per token. Ties go to the lowest index; a candidate that cannot be scored
    loses to every one that can (spec of Best-of-N in ScalingAR, arXiv 2509.26376, App. D.1, and
    GridAR, arXiv 2511.21185). `decoding` draws the candidates, for example speculatively; None
    draws token by token. Nobody has published that composition. Raises UserError unless n is at
    least 1.
    """

    branches = 2

    def __init__(
        self, n: int, reward: Judge | None = None, decoding: Decoding | None = None
    ) -> None:
        if n < 1:
            raise UserError(f"method.n={n}: Best-of-N needs at least one candidate")
        self.rows = self.n = n
        self.reward = reward
        self.decoding = decoding
        self.tokens_per_step, self.tree_capacity = (
            (1, 0)
            if decoding is None
            else (decoding.tokens_per_step, getattr(decoding, "tree_capacity", 0))
        )

    async def generate(self, prompt: str, s: Session) -> Canvas:
        candidates = s.open(self.n)
        if self.decoding is None:
            await s.run(candidates)
        else:
            await self.decoding.finish(candidates, s)
        if self.n == 1:
            return candidates[0]
        if self.reward is None:
            scores: Sequence[float | None] = [
                math.fsum(c.log_probs) / s.num_tokens for c in candidates
            ]
        else:
            scores = await s.ask(self.reward, prompt, await s.render(candidates))
        chosen = best(scores)
        s.note(scores=[None if unscorable(score) else score for score in scores], chosen=chosen)
        return candidates[chosen]


def unscorable(score: float | None) -> bool:
    return score is None or math.isnan(score)


def best(scores: Sequence[float | None]) -> int:
    """Index of the largest score: the lowest index among equals; None and NaN lose to every
    number.
    """
    return max(
        range(len(scores)),
        key=lambda i: (not unscorable(scores[i]), 0 if unscorable(scores[i]) else scores[i]),
    )
