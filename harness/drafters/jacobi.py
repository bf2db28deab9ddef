"""Jacobi drafting: the target's own laws of the last verification are the next draft (no draft model, no training).

After a rejection, the laws behind the rejected token saw it and are stale; tokens drawn from them are still proper
drafts, because what they were drawn from is known (Speculative Jacobi Decoding, arXiv 2410.01699). Shapes: R rows, G
draft length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.hooks import Draft, Verdict, leftover
from harness.noise import ACCEPT, DRAFT, DRAW, RESIDUAL, Noise
from harness.records import UserError
from harness.sampler import Canvas, Sampler

INITS = ("random", "uniform", "repeat_horizon", "repeat_vertical", "sample_horizon")
COUPLINGS = ("none", "maximal", "gumbel")


class Jacobi:
    """Drafts a token from every law that the last verification left over, and makes up the rest of the window.

    `init` makes up tokens: `random` ones; `uniform`, the same known to be drawn from the uniform law, so that more of
    them pass; the token to the left in the row or above it (`repeat_horizon`, `repeat_vertical`), or the likeliest
    token at the last place that has a law (`sample_horizon`); rows that begin in the dark begin with a random token.

    `coupling` ties a place's new draft to its last one: `none` draws anew (SJD); `maximal` puts all old tokens to the
    test of acceptance, behind the rejected one too, and keeps those that pass (MC-SJD, arXiv 2510.24211; as we read it
    also SJD-PAC's adaptive continuation, arXiv 2603.18599); `gumbel` draws with the noise that plain sampling has at
    that place (GS-SJD), which makes the drafts agree with the rule `coupled` most often. The recorded law is always
    the one that the token now follows, never an older one, or the result would not keep the target's law.

    It keeps no state: everything is in `Sampler.verdict`, which is gone when a canvas is forked over, truncated,
    committed to or conditioned anew; then the whole window is made up. Raises UserError for unknown options.
    """

    def __init__(self, init: str = "random", coupling: str = "none") -> None:
        if init not in INITS:
            raise UserError(f"drafter.init={init}: choose from {', '.join(INITS)}")
        if coupling not in COUPLINGS:
            raise UserError(f"drafter.coupling={coupling}: choose from {', '.join(COUPLINGS)}")
        self.init, self.coupling = init, coupling

    @torch.no_grad()
    def propose(self, sampler: Sampler, rows: Sequence[Canvas], n: int, sibling: int = 0) -> list[Draft | None]:
        """Chains of up to `n` tokens, shorter at the image's end so that one more token fits; None where none fits.

        Siblings are drawn from the same laws, independently.
        """
        room = [max(0, min(n, sampler.model.num_tokens - canvas.length - 1)) for canvas in rows]
        if not any(room):
            return [None for _ in rows]
        with sampler.working(rows):
            token_RG, law_RGV = self._window(sampler, rows, max(room), sibling)
        drafts = zip(token_RG, law_RGV, room, strict=True)
        return [Draft(token[:m], law[:m], followed=True) if m else None for token, law, m in drafts]

    def _window(self, sampler: Sampler, rows: Sequence[Canvas], columns: int, sibling: int) -> tuple[Tensor, Tensor]:
        """Tokens and laws of the next `columns` places."""
        verdicts = [sampler.verdict(canvas) for canvas in rows]
        dtype = next((v.law_TV.dtype for v in verdicts if v is not None), torch.float32)
        none_V = torch.empty((0, sampler.model.vocab), dtype=dtype, device=sampler.model.device)
        left = [none_V if v is None else v.law_TV[v.accepted + 1 :][:columns] for v in verdicts]
        kept_R = torch.tensor([len(law) for law in left], device=none_V.device)
        law_RGV, noise = _padded(left, columns), sampler.noise(rows, columns)
        if self.init != "uniform":
            last_R = noise.position_RT[:, 0] + kept_R - 1
            known_RN = sampler.tokens(rows)
        if self.coupling == "maximal" and not sibling:
            old_token_RG, old_RGV = _old(verdicts, law_RGV)
            token_RG = keep_or_redraw
        return self.fill(...)

