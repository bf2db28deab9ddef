"""Speculative Jacobi Decoding: the target drafts for itself.

SJD is arXiv 2410.01699; its coupled form, GS-SJD, is arXiv 2510.24211.
"""

from __future__ import annotations

from harness import Count, Drafter, Rule, UserError, exact
from methods.speculative import Speculative


class SJD(Speculative):
    """Speculative decoding with `window` positions per forward: the last token and its draft.

    The drafter is `harness.drafters.jacobi.Jacobi`. With the rule `exact` the image has the
    target's distribution. Raises UserError for a window below 2, which is plain sampling, and for a
    window larger than the image.
    """

    def __init__(
        self,
        drafter: Drafter,
        window: Count = 16,
        rule: Rule = exact,
    ) -> None:
        if window < 2:
            raise UserError(
                f"method.window={window}: must be at least 2; a window of 1 is method=plain"
            )
        super().__init__(drafter, window - 1, rule)

    def expect_grid(self, grid: tuple[int, int]) -> None:
        """Raise UserError if the window is larger than the image."""
        tokens = grid[0] * grid[1]
        if self.tokens_per_step > tokens:
            raise UserError(
                f"method.window={self.tokens_per_step}: the image has {tokens} tokens; "
                f"set method.window={tokens}"
            )
