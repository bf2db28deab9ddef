"""GSD: a draft token is accepted for its group, the tokens that are about as likely and look alike.

The paper is arXiv 2508.07747. The rule plugs into any speculative method (`rule:` in its YAML); its
authors run it over Jacobi drafts.

p is the target's distribution after temperature, top-k and top-p, q the one that the draft token x
was drawn from, C the group of x. Shapes: R rows, G draft length, n = R * G draft tokens, C group
size, V codes, d code width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import (
    Count,
    Drafts,
    ImageModel,
    Noise,
    NotNegative,
    UserError,
    exact,
    residual_probs,
    token_prob,
    verify_chain,
)


class Grouped:
    """Accept x with chance p(C) / q(C) instead of p(x) / q(x).

    After a rejection the token is drawn from max(p - q, 0). The images do not have the target's
    distribution; with `size` 1 the rule is `exact`.

    C holds x and its neighbours among the tokens in order of p: half of the other `size` - 1 below
    x (the odd one too), half above, fewer where the order ends. A token leaves C if its p differs
    from p(x) by `law_gap` or more, or if its normalised code lies at a squared distance of
    `code_gap` or more (junhyukso/GSD; the codebook in place of the language model's embedding, and
    groups cut short at both ends of the order, are our choices).

    Raises UserError for values out of range.
    """

    def __init__(
        self,
        size: Count = 14,
        law_gap: NotNegative = 0.15,
        code_gap: NotNegative = 0.5,
    ) -> None:
        if size < 1:
            raise UserError(f"rule.size={size}: a group holds at least the token itself")
        for name, value in (("law_gap", law_gap), ("code_gap", code_gap)):
            if value < 0:
                raise UserError(
                    f"rule.{name}={value}: must not be negative; "
                    "0 leaves the token alone in its group"
                )
        self.size = size
        self.probs_gap = law_gap
        self.code_gap = code_gap
        self.code_Vd: Tensor | None = None

    def expect_target(self, model: ImageModel) -> None:
        """Take the model's codes, normalised."""
        self.code_Vd = F.normalize(model.codebook.float(), dim=-1)

    def __call__(
        self,
        probs_RTV: Tensor,
        drafts: Drafts,
        noise: Noise,
    ) -> tuple[Tensor, Tensor]:
        """Verify drafts as a `Rule` does: return accepted paths [R, G] and next tokens [R]."""
        if drafts.forest is not None:
            raise UserError(
                "method.rule is GSD's, which tests chains: "
                "give a number of draft tokens, not a tree"
            )
        length = drafts.token_RG.shape[1]
        if length == 0:
            return exact(probs_RTV, drafts, noise)

        acceptance_prob_n = self.acceptance_prob(
            probs_RTV[:, :length].flatten(0, 1),
            drafts.probs_RGV.flatten(0, 1),
            drafts.token_RG.flatten(),
        )
        acceptance_prob_RG = acceptance_prob_n.unflatten(0, (-1, length))
        return verify_chain(probs_RTV, drafts, noise, acceptance_prob_RG, residual_probs)

    def acceptance_prob(
        self,
        probs_RV: Tensor,
        draft_probs_RV: Tensor,
        token_R: Tensor,
    ) -> Tensor:
        """Return q(x) p(C) / q(C), float64 [R]; p(x) where x is alone in its group.

        Tested against u q(x), this accepts x with chance p(C) / q(C).
        """
        group_RC, member_RC = self.group(probs_RV, token_R)
        group_prob_R = _sum_members(probs_RV, group_RC, member_RC)
        draft_group_prob_R = _sum_members(draft_probs_RV, group_RC, member_RC)
        token_prob_R = token_prob(probs_RV, token_R).double()
        draft_prob_R = token_prob(draft_probs_RV, token_R).double()

        alone_R = (member_RC.sum(1) == 1) | (draft_group_prob_R == 0)
        grouped_R = draft_prob_R * group_prob_R / draft_group_prob_R
        return torch.where(alone_R, token_prob_R, grouped_R)

    def group(self, probs_RV: Tensor, token_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens around x in ascending order of p, and which of them belong to C.

        Both are [R, size]; ties in the order go by index. Raises RuntimeError before
        `expect_target`.
        """
        if self.code_Vd is None:
            raise RuntimeError("the rule has no codes yet: expect_target takes them")
        # 1. Take the places around x in the order of p. Those outside of it are no members.
        vocab = probs_RV.shape[1]
        order_RV = probs_RV.argsort(dim=1, stable=True)
        rank_R1 = (order_RV == token_R[:, None]).long().argmax(1, keepdim=True)
        place_RC = rank_R1 - self.size // 2 + torch.arange(self.size, device=probs_RV.device)
        group_RC = order_RV.gather(1, place_RC.clamp(0, vocab - 1))
        inside_RC = (place_RC >= 0) & (place_RC < vocab)

        # 2. Members are about as likely as x and look like it; x is always a member.
        token_prob_R1 = probs_RV.gather(1, token_R[:, None])
        probs_gap_RC = (probs_RV.gather(1, group_RC) - token_prob_R1).abs()
        code_R1d = self.code_Vd[token_R].unsqueeze(1)
        code_gap_RC = (self.code_Vd[group_RC] - code_R1d).square().sum(-1)
        near_RC = (probs_gap_RC < self.probs_gap) & (code_gap_RC < self.code_gap)
        return group_RC, (inside_RC & near_RC) | (place_RC == rank_R1)


def _sum_members(probs_RV: Tensor, group_RC: Tensor, member_RC: Tensor) -> Tensor:
    """Add up the probability of each group's members, float64 [R]."""
    return (probs_RV.gather(1, group_RC).double() * member_RC).sum(1)
