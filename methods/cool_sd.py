"""Cool-SD: a draft token is accepted with w times the exact chance, and w falls along the draft.

The paper is arXiv 2601.09212; its authors had released no code when this was written, so that the
rule follows the paper's equations as far as they could be read, and the bound is derived here. The
rules plug into any speculative method (`rule:` in its YAML). `EntropyAcceptance` is the same rule
with a weight that depends on the place's entropy instead (arXiv 2510.09012).

p is the target's distribution after temperature, top-k and top-p, q the one that the draft token x
was drawn from, w > 0 the weight of its test. Shapes: R rows, V codes.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from harness import (
    Count,
    Drafts,
    DraftTest,
    Noise,
    NotNegative,
    Positive,
    UserError,
    list_tests,
    residual_probs,
    token_prob,
    verify_by_depth,
)

SMALLEST_SCALE = 1e-9
"""Stands in for a scale of 0, whose weight would be infinite."""
LONGEST_MEAN = 16
"""Draft tokens over which a schedule of mean weight delta is still sensible."""


class WeightedAcceptance:
    """Accept x if u q(x) < w p(x); after a rejection, draw from max(p - q, (1 - w) p, 0).

    Of all distributions to draw from after a rejection, that one keeps the output nearest to p: its
    total-variation distance from p is the *defect* sum min(max(q - p, 0), max(w - 1, 0) p), which
    is zero for w <= 1. With w = 1 the rule is `exact`. A kind of rule says how large w is.
    """

    def weights(self, probs_RV: Tensor, depth_R: Tensor) -> Tensor:
        """Return w of tests against `probs_RV` at these depths of a draft, float64 [R]."""
        raise NotImplementedError

    def __call__(
        self,
        probs_RTV: Tensor,
        drafts: Drafts,
        noise: Noise,
    ) -> tuple[Tensor, Tensor]:
        """Verify drafts as a `Rule` does: return accepted paths [R, G] and next tokens [R]."""
        return verify_by_depth(probs_RTV, drafts, noise, self.test_at)

    def signals(
        self,
        probs_RTV: Tensor,
        drafts: Drafts,
        noise: Noise,
        path_RG: Tensor,
    ) -> dict[str, Tensor]:
        """Report what the relaxation did in each row, [R].

        `relaxed` counts the accepted tokens that `exact` would have rejected. `defect` is the sum
        of the defects of all tests, accepted or rejected: the mean over images of their sums
        bounds the total-variation distance of the images' distribution from the target's.
        """
        relaxed_R = torch.zeros(len(path_RG), dtype=torch.float64, device=probs_RTV.device)
        defect_R = torch.zeros_like(relaxed_R)
        for test in list_tests(probs_RTV, drafts, noise, path_RG, self.test_at):
            is_exact_R = test.threshold_R < token_prob(test.probs_RV, test.token_R)
            relaxed_R += test.accepted_R & ~is_exact_R
            weight_R = self.weights(test.probs_RV, torch.full_like(test.token_R, test.depth))
            lost_R = measure_defects(test.probs_RV, test.draft_probs_RV, weight_R)
            defect_R += torch.where(test.tested_R, lost_R, 0)
        return {"relaxed": relaxed_R, "defect": defect_R}

    def test_at(self, depth_R: Tensor) -> DraftTest:
        """Return the test of draft tokens at these depths."""
        return DraftTest(partial(self._acceptance_prob, depth_R), partial(self._residual, depth_R))

    def _acceptance_prob(self, depth_R: Tensor, probs_RV: Tensor, token_R: Tensor) -> Tensor:
        """Return w p(x), float64 [R]; it may exceed 1."""
        return self.weights(probs_RV, depth_R) * token_prob(probs_RV, token_R)

    def _residual(
        self, depth_R: Tensor, probs_RV: Tensor, draft_probs_RV: Tensor, token_R: Tensor
    ) -> Tensor:
        """Return max(p - q, (1 - w) p, 0), or p where that is zero, [R, V]."""
        left_RV = residual_probs(probs_RV, draft_probs_RV, token_R)
        kept_R = (1 - self.weights(probs_RV, depth_R)).clamp(min=0).to(probs_RV.dtype)
        return torch.maximum(left_RV, kept_R[:, None] * probs_RV)


def measure_defects(probs_RV: Tensor, draft_probs_RV: Tensor, weight_R: Tensor) -> Tensor:
    """Return how far tests with these weights move the output from p at most, float64 [R].

    It is the total-variation distance of one tested place, which the residual attains.
    """
    target_RV = probs_RV.double()
    excess_RV = (draft_probs_RV.double() - target_RV).clamp(min=0)
    granted_RV = (weight_R - 1).clamp(min=0)[:, None] * target_RV
    return torch.minimum(excess_RV, granted_RV).sum(1)


# ------------------------------------------------------------------ weights by depth


class CoolSD(WeightedAcceptance):
    """Relax the first tokens of a draft most: w_i = delta exp(-nu i - mu) at depth i = 1, 2, ...

    `mu` is not defined where we could read the paper. `mean`, the default and our reading, makes
    the mean of w over the draft `delta`; `first` makes w_1 `delta`; or it is a number. `floor`
    raises smaller weights, which costs nothing up to 1: such tests are lossless either way.
    `length` is the number of tokens that the mean goes over, and behind which w is the floor (or
    falls on, with floor 0); None takes the draft's depth. In a tree, siblings share a weight.

    Raises UserError for values out of range, for a `mean` over a draft deeper than 16, whose first
    weight would accept nearly everything, and for a draft deeper than `length` with a floor
    below 1.
    """

    def __init__(
        self,
        delta: Positive = 1.1,
        nu: NotNegative = 0.7,
        mu: str | float = "mean",
        floor: NotNegative = 0.0,
        length: Count | None = None,
    ) -> None:
        if not 0 < delta < math.inf:
            raise UserError(f"rule.delta={delta}: must be positive; 1 with nu=0 is exact")
        if not 0 <= nu < math.inf:
            raise UserError(f"rule.nu={nu}: must be 0 (the same weight at all depths) or positive")
        if mu not in ("mean", "first") and not _is_number(mu):
            raise UserError(f"rule.mu={mu}: give mean, first or a number")
        if not 0 <= floor < math.inf:
            raise UserError(f"rule.floor={floor}: must be 0 (none) or positive; 1 costs nothing")
        if length is not None and length < 1:
            raise UserError(f"rule.length={length}: must be at least 1, or null")
        self.delta = delta
        self.nu = nu
        self.mu = mu
        self.floor = floor
        self.length = length
        self._depth = length

    def expect_depth(self, depth: int) -> None:
        """Learn how deep drafts are. Raises UserError for a schedule that does not suit them."""
        if self.length is not None and self.length < depth and self.floor < 1:
            raise UserError(
                f"rule.length={self.length}: drafts are {depth} tokens deep, and those behind "
                f"the length take rule.floor={self.floor:g}: set rule.floor=1"
            )
        if self.length is None:
            if self.mu == "mean" and depth > LONGEST_MEAN:
                raise UserError(
                    f"rule.mu=mean over drafts {depth} tokens deep would accept almost every "
                    "first token: set rule.length=5 and rule.floor=1"
                )
            self._depth = depth

    def weights(self, probs_RV: Tensor, depth_R: Tensor) -> Tensor:
        """Return w of each depth, float64 [R]: see the class."""
        weight_R = self.delta * torch.exp(-self.nu * depth_R.double() - self._offset())
        if self.floor == 0:
            return weight_R
        is_behind_R = depth_R > self._known_depth()
        return torch.where(is_behind_R, self.floor, weight_R.clamp(min=self.floor))

    @property
    def facts(self) -> dict[str, list[float]]:
        """Return the weights by depth, for the journal."""
        depth_D = torch.arange(1, 1 + self._known_depth())
        weight_D = self.weights(depth_D[:, None], depth_D)
        return {"weights": [round(weight, 6) for weight in weight_D.tolist()]}

    def _offset(self) -> float:
        """Return mu."""
        if self.mu == "first":
            return -self.nu
        if self.mu == "mean":
            depth = self._known_depth()
            decays = [math.exp(-self.nu * i) for i in range(1, 1 + depth)]
            return math.log(math.fsum(decays) / depth)
        return float(self.mu)

    def _known_depth(self) -> int:
        if self._depth is None:
            raise RuntimeError("the rule does not know the drafts' depth: expect_depth tells it")
        return self._depth


def _is_number(value: object) -> bool:
    """Tell whether a value is a finite number, and no boolean."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


# ------------------------------------------------------------------ weights by entropy


class EntropyAcceptance(WeightedAcceptance):
    """Relax where the target is sure: w = 1 / s, s = slope H + offset, at most `cap`.

    H is the entropy, in nats, of what a token is tested against (arXiv 2510.09012, over Jacobi
    drafts). Published: slope 1/9, offset 0.05, cap 1 (Lumina-mGPT); slope 1/8, offset 0, no cap for
    LlamaGen, whose released file then takes w = `constant` 2 instead. The released code draws from
    max(p - q, 0) also where s exceeds 1; the residual here keeps such places lossless.

    Raises UserError for values out of range.
    """

    def __init__(
        self,
        slope: NotNegative = 1 / 9,
        offset: NotNegative = 0.05,
        cap: Positive | None = 1.0,
        constant: Positive | None = None,
    ) -> None:
        for name, value in (("slope", slope), ("offset", offset)):
            if not 0 <= value < math.inf:
                raise UserError(f"rule.{name}={value}: must be 0 or positive")
        for name, bound in (("cap", cap), ("constant", constant)):
            if bound is not None and not 0 < bound < math.inf:
                raise UserError(f"rule.{name}={bound}: must be positive, or null")
        if slope == offset == 0 and constant is None:
            raise UserError(
                "rule.slope=0, rule.offset=0: would accept every draft token; set one of them, or "
                "rule.constant"
            )
        self.slope = slope
        self.offset = offset
        self.cap = cap
        self.constant = constant

    def weights(self, probs_RV: Tensor, depth_R: Tensor) -> Tensor:
        """Return w of each row's distribution, float64 [R]."""
        if self.constant is not None:
            return torch.full_like(depth_R, self.constant, dtype=torch.float64)
        entropy_R = torch.special.entr(probs_RV.double()).sum(1)
        scale_R = (self.slope * entropy_R + self.offset).clamp(min=SMALLEST_SCALE, max=self.cap)
        return 1 / scale_R
