"""GSD: a draft token is accepted for the group of tokens that are about as likely and look alike
(arXiv 2508.07747).

The rule plugs into any speculative method; its authors run it over Jacobi drafts. p is the
processed target law, q what the draft token x was drawn from, C the group of x. Shapes: R rows, G
draft length, C group size, V codes, d code width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import Drafts, ImageModel, Noise, UserError, exact, residual_probs, verify_chain


class Grouped:
    """Accepts x with chance p(C) / q(C) instead of p(x) / q(x); a rejected place is drawn from
    max(p - q, 0).

    C holds x and its neighbours among the tokens in order of p: half of the other `size` - 1 below
    it (the odd one too), half above, fewer where the order ends. Tokens leave it whose p differs
    from p(x) by `law_gap` or more, or whose normalised code lies at a squared distance of
    `code_gap` or more (junhyukso/GSD; the codebook in place of the language model's embedding, and
    groups cut short at both ends of the order, are our choices). The output law is not the
    target's; with `size` 1 the rule is `exact`. Raises UserError for values out of range.
    """

    def __init__(self, size: int = 14, law_gap: float = 0.15, code_gap: float = 0.5) -> None:
        if size < 1:
            raise UserError(f"rule.size={size}: a group holds at least the token itself")
        for name, value in (("law_gap", law_gap), ("code_gap", code_gap)):
            if value < 0:
                raise UserError(
                    f"rule.{name}={value}: must not be negative; 0 leaves the token alone in its group"
                )
        self.size = size
        self.law_gap = law_gap
        self.code_gap = code_gap
        self.code_Vd: Tensor | None = None

    def expect_target(self, model: ImageModel) -> None:
        """Take the model's codes."""
        self.code_Vd = F.normalize(model.codebook.float(), dim=-1)

    def __call__(self, probs_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
        columns = drafts.token_RG.shape[1]
        if drafts.forest is not None:
            raise UserError(
                "method.rule is GSD's, which tests chains: give a number of draft tokens, not a tree"
            )
        if columns == 0:
            return exact(probs_RTV, drafts, noise)
        probs_nV = probs_RTV[:, :columns].flatten(0, 1)
        draft_probs_nV = drafts.probs_RGV.flatten(0, 1)
        acceptance_prob_n = self.acceptance_prob(
            probs_nV, draft_probs_nV, drafts.token_RG.flatten()
        )
        return verify_chain(
            probs_RTV, drafts, noise, acceptance_prob_n.unflatten(0, (-1, columns)), residual_probs
        )

    def acceptance_prob(self, probs_RV: Tensor, draft_probs_RV: Tensor, token_R: Tensor) -> Tensor:
        """q(x) p(C) / q(C), float64 [R]; p(x) where x is alone."""
        group_RC, member_RC = self.group(probs_RV, token_R)
        mass_R, draft_mass_R = (
            (probs.gather(1, group_RC).double() * member_RC).sum(1)
            for probs in (probs_RV, draft_probs_RV)
        )
        own_R, draft_R = (
            probs.gather(1, token_R[:, None])[:, 0].double() for probs in (probs_RV, draft_probs_RV)
        )
        alone_R = (member_RC.sum(1) == 1) | (draft_mass_R == 0)
        return torch.where(alone_R, own_R, draft_R * mass_R / draft_mass_R)

    def group(self, probs_RV: Tensor, token_R: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens around x in ascending order of p, ties by index, and which of them belong to C;
        both [R, size].
        """
        if self.code_Vd is None:
            raise RuntimeError("the rule has no codes yet: expect_target takes them")
        order_RV = probs_RV.argsort(dim=1, stable=True)
        rank_R1 = (order_RV == token_R[:, None]).long().argmax(1, keepdim=True)
        place_RC = rank_R1 - self.size // 2 + torch.arange(self.size, device=probs_RV.device)
        group_RC = order_RV.gather(1, place_RC.clamp(0, probs_RV.shape[1] - 1))
        law_gap_RC = (probs_RV.gather(1, group_RC) - probs_RV.gather(1, token_R[:, None])).abs()
        code_gap_RC = (self.code_Vd[group_RC] - self.code_Vd[token_R].unsqueeze(1)).square().sum(-1)
        near_RC = (law_gap_RC < self.law_gap) & (code_gap_RC < self.code_gap)
        inside_RC = (place_RC >= 0) & (place_RC < probs_RV.shape[1])
        return group_RC, (inside_RC & near_RC) | (place_RC == rank_R1)
