"""Speculative Jacobi Decoding: the target drafts for itself (arXiv 2410.01699; coupled, arXiv
2510.24211).
"""

from __future__ import annotations

from harness import Drafter, Rule, UserError, exact
from methods.speculative import Speculative


class SJD(Speculative):
    """Speculative decoding with a window of `window` positions per forward: the last token, and a
    draft behind it.

    The drafter is `harness.drafters.jacobi.Jacobi`; with an `exact` rule the image keeps the
    target's law. Raises UserError for a window below 2 (which is plain sampling), and for one that
    is larger than the image.
    """

    def __init__(self, drafter: Drafter, window: int = 16, rule: Rule = exact) -> None:
        if window < 2:
            raise UserError(
                f"method.window={window}: must be at least 2; a window of 1 is method=plain"
            )
        super().__init__(drafter, window - 1, rule)

    def expect_grid(self, grid: tuple[int, int]) -> None:
        """Raise UserError for a window larger than the image."""
        tokens = grid[0] * grid[1]
        if self.tokens_per_step > tokens:
            raise UserError(
                f"method.window={self.tokens_per_step}: the image has {tokens} tokens; set method.window={tokens}"
            )
