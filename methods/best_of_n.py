"""Best-of-N: draw N candidates and deliver the one with the best score."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness import Canvas, Count, Decoding, DecodingSizes, Judge, Session, UserError


class BestOfN:
    """Draw N candidates of a prompt to their end, and deliver the one with the best score.

    `reward` scores a candidate from the prompt's text and its image; None takes the model's own
    mean log-likelihood per token. Among equals the lowest index wins (spec of Best-of-N in
    ScalingAR, arXiv 2509.26376, App. D.1, and GridAR, arXiv 2511.21185). Where the reward leaves a
    candidate without a score, nothing is chosen and the image fails.

    `decoding` draws the candidates, for example speculatively; None draws them token by token.
    Nobody has published this combination. Raises UserError unless n is at least 1.
    """

    branches = 2

    def __init__(
        self,
        n: Count,
        reward: Judge | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        if n < 1:
            raise UserError(f"method.n={n}: Best-of-N needs at least one candidate")
        self.n = n
        self.rows = n
        self.reward = reward
        self.decoding = decoding
        sizes = DecodingSizes.of(decoding)
        self.tokens_per_step = sizes.tokens_per_step
        self.tree_capacity = sizes.tree_capacity

    async def generate(self, prompt: str, s: Session) -> Canvas:
        # 1. Draw N candidates.
        candidates = s.open(self.n)
        if self.decoding is None:
            await s.run(candidates)
        else:
            await self.decoding.finish(candidates, s)
        if self.n == 1:
            return candidates[0]

        # 2. Score them.
        if self.reward is None:
            scores = mean_log_likelihoods(candidates, s.raster.codes)
        else:
            scores = await s.ask(self.reward, prompt, await s.render(candidates))

        # 3. Deliver the best.
        chosen = index_of_best(scores)
        s.note(scores=scores, chosen=chosen)
        return candidates[chosen]


def mean_log_likelihoods(candidates: Sequence[Canvas], codes: int) -> list[float | None]:
    """Return the model's own mean log-probability of each candidate's codes, in nats.

    Forced places add 0 to the sum, and do not count among the codes.
    """
    return without_nan([math.fsum(c.log_probs) / codes for c in candidates])


def without_nan(scores: Sequence[float | None]) -> list[float | None]:
    """Return the scores with None in place of NaN."""
    return [None if is_missing(score) else score for score in scores]


def is_missing(score: float | None) -> bool:
    """Tell whether a judge gave no score, or one that is not a number."""
    return score is None or math.isnan(score)


def index_of_best(scores: Sequence[float | None]) -> int:
    """Find the largest score, the lowest index among equals; a missing score loses to every other.

    If all scores are missing, the answer is 0.
    """
    keys = [_sort_key(score) for score in scores]
    return keys.index(max(keys))


def _sort_key(score: float | None) -> tuple[bool, float]:
    """Order missing scores below every number, and alike among themselves."""
    if score is None or math.isnan(score):
        return False, 0.0
    return True, score
