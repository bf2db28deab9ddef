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
        empty = torch.empty((0, sampler.model.vocab), dtype=dtype, device=sampler.model.device)
        left = [empty if v is None else v.law_TV[v.accepted + 1 :][:columns] for v in verdicts]
        kept_R = torch.tensor([len(law) for law in left], device=empty.device)
        law_RGV = _padded(left, columns)
        noise = sampler.noise(rows, columns)
        fresh = noise.salted(noise.position_RT[:, 0])
        new_RG = torch.arange(columns, device=empty.device) >= kept_R[:, None]
        if self.init == "uniform":
            law_RGV = torch.where(new_RG.unsqueeze(-1), 1 / sampler.model.vocab, law_RGV)
        if self.coupling == "none" or sibling:
            token_RG = fresh.race(DRAFT + sibling, law_RGV)
        elif self.coupling == "gumbel":
            token_RG = noise.race(DRAW, law_RGV)
        else:
            token_RG = _kept_or_redrawn(verdicts, law_RGV, fresh)
        if self.init != "uniform":
            made_RG = self._made_up(sampler, rows, verdicts, kept_R, token_RG, fresh)
            token_RG = torch.where(new_RG, made_RG, token_RG)
            point_RGV = F.one_hot(made_RG, law_RGV.shape[-1]).to(law_RGV.dtype)
            law_RGV = torch.where(new_RG.unsqueeze(-1), point_RGV, law_RGV)
        return token_RG, law_RGV

    def _made_up(
        self,
        sampler: Sampler,
        rows: Sequence[Canvas],
        verdicts: Sequence[Verdict | None],
        kept_R: Tensor,
        token_RG: Tensor,
        fresh: Noise,
    ) -> Tensor:
        """Tokens for the places without a law, [R, G]; the other columns mean nothing.

        Each copies the place it is anchored at; if nothing is known there, a random token of that place.
        """
        place_RG, wide = fresh.position_RT, sampler.model.grid[1]
        last_R1 = (place_RG[:, 0] + kept_R - 1).unsqueeze(1)  # the last place whose token is known, -1 if none is
        if self.init == "random":
            anchor_RG = place_RG
        elif self.init == "repeat_vertical":
            above_RG = place_RG - wide * ((place_RG - last_R1).clamp(min=0) + wide - 1).div(wide, rounding_mode="floor")
            anchor_RG = torch.where(above_RG < 0, place_RG % wide, above_RG)
        else:
            anchor_RG = torch.maximum(last_R1, place_RG - place_RG % wide)
        last_place = sampler.model.num_tokens - 1
        known_RN = sampler.tokens(rows).scatter(1, place_RG.clamp(max=last_place), token_RG)
        if self.init == "sample_horizon":
            for r, verdict in enumerate(verdicts):
                if verdict is not None:
                    known_RN[r, last_R1[r]] = verdict.law_TV[-1].argmax()
        chance_RG = Noise(fresh.key_R2, anchor_RG).uniform(DRAFT, 1)[..., 0]
        random_RG = (chance_RG * sampler.model.vocab).long()
        copied_RG = known_RN.gather(1, anchor_RG.clamp(max=last_place))
        return torch.where(anchor_RG <= last_R1, copied_RG, random_RG)


def _kept_or_redrawn(verdicts: Sequence[Verdict | None], law_RGV: Tensor, fresh: Noise) -> Tensor:
    """The maximal coupling of every place's old token with its new law; places without an old token are drawn."""
    columns, vocab = law_RGV.shape[1:]
    token_RG = law_RGV.new_zeros(law_RGV.shape[:2], dtype=torch.int64)
    old_RGV = torch.zeros_like(law_RGV)
    for r, verdict in enumerate(verdicts):
        if verdict is not None and verdict.draft.law is not None:
            rest = slice(verdict.accepted + 1, verdict.accepted + 1 + columns)
            count = len(verdict.draft.tokens[rest])
            token_RG[r, :count], old_RGV[r, :count] = verdict.draft.tokens[rest], verdict.draft.law[rest]
    old_RG, new_RG = (law.gather(-1, token_RG.unsqueeze(-1))[..., 0] for law in (old_RGV, law_RGV))
    kept_RG = (fresh.uniform(ACCEPT, 1)[..., 0] * old_RG < new_RG) & (old_RG > 0)
    left_RGV = leftover(law_RGV.flatten(0, 1), old_RGV.flatten(0, 1), token_RG.flatten()).view(-1, columns, vocab)
    return torch.where(kept_RG, token_RG, fresh.race(RESIDUAL, left_RGV))


def _padded(parts: Sequence[Tensor], columns: int) -> Tensor:
    return torch.stack([F.pad(part, (0, 0, 0, columns - len(part))) for part in parts])
