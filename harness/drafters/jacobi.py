"""Jacobi drafting: the target's own laws of the last verification are the next draft (no draft
model, no training).

After a rejection, the laws behind the rejected token saw it and are stale; tokens drawn from them
are still proper drafts, because what they were drawn from is known (Speculative Jacobi Decoding,
arXiv 2410.01699). Shapes: R rows, G window places, N image tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.engine.acceptance import Draft, residual_probs
from harness.engine.canvas import Canvas
from harness.engine.sampler import Sampler
from harness.kernels.noise import ACCEPT, DRAFT, DRAW, RESIDUAL, Noise
from harness.records import UserError

INITS = ("random", "uniform", "repeat_horizon", "repeat_vertical", "sample_horizon")
COUPLINGS = ("none", "maximal", "gumbel")


@dataclass(frozen=True, slots=True)
class Past:
    """What the last verification left of the next places of R canvases."""

    probs_RGV: Tensor  # the target's laws, stale behind a rejected token; zero from `left_R` on
    left_R: Tensor  # places that have a law
    old_RG: Tensor  # tokens last drafted there
    old_probs_RGV: Tensor  # and what they were drawn from; zero where nothing was drafted
    known_RN: Tensor  # tokens of the image as far as they are committed
    likeliest_R: Tensor  # by the law at the last place that has one, or had


class Jacobi:
    """Drafts a token from every law that the last verification left over, and makes up the rest of
    the window.

    `init` makes up tokens: `random` ones; `uniform`, the same known to be drawn from the uniform
    law, so that more of them pass; the token to the left in the row or above it (`repeat_horizon`,
    `repeat_vertical`), or the likeliest token at the last place that has a law (`sample_horizon`);
    rows that begin in the dark begin with a random token.

    `coupling` ties a place's next draft to its last one: `none` draws anew (SJD); `maximal` puts
    all old tokens to the test of acceptance, behind the rejected one too, and keeps those that pass
    (MC-SJD, arXiv 2510.24211; as we read it also SJD-PAC's adaptive continuation, arXiv
    2603.18599); `gumbel` draws with the noise that plain sampling has at that place (GS-SJD), so
    that its drafts agree with the rule `coupled` as often as they can. The recorded law is always
    the one that the token now follows, never an older one: else the target's law would be lost.

    It keeps no state: everything is in `Sampler.verdict`, which is gone when a canvas is forked
    over, truncated, committed to or conditioned anew; then the whole window is made up. Raises
    UserError for unknown options.
    """

    def __init__(self, init: str = "random", coupling: str = "none") -> None:
        if init not in INITS:
            raise UserError(f"drafter.init={init}: choose from {', '.join(INITS)}")
        if coupling not in COUPLINGS:
            raise UserError(f"drafter.coupling={coupling}: choose from {', '.join(COUPLINGS)}")
        self.init = init
        self.coupling = coupling

    @torch.no_grad()
    def propose(
        self, sampler: Sampler, rows: Sequence[Canvas], n: int, sibling: int = 0
    ) -> list[Draft | None]:
        """Chains of up to `n` tokens, shorter at the image's end so that one more token fits; None
        where none fits.

        Siblings are drawn from the same laws, independently.
        """
        room = [max(0, min(n, sampler.model.num_tokens - canvas.length - 1)) for canvas in rows]
        if not any(room):
            return [None for _ in rows]
        with sampler.working(rows, "draft"):
            noise = sampler.noise(rows, max(room))
            token_RG, probs_RGV = self.fill(
                _past(sampler, rows, max(room)), noise, sampler.model.grid[1], sibling
            )
        drafts = zip(token_RG, probs_RGV, room, strict=True)
        return [
            Draft(token[:m], probs[:m], followed=True) if m else None for token, probs, m in drafts
        ]

    def fill(self, past: Past, noise: Noise, wide: int, sibling: int = 0) -> tuple[Tensor, Tensor]:
        """Tokens [R, G] and the laws they follow [R, G, V]; `wide` is the grid's width.

        Noise is salted with the place where the window begins: it begins nowhere twice, so no draft
        shares noise with an earlier one, nor with its acceptance.
        """
        fresh = noise.salted(noise.position_RT[:, 0])
        vocab = past.probs_RGV.shape[-1]
        new_RG = (
            torch.arange(past.probs_RGV.shape[1], device=past.left_R.device) >= past.left_R[:, None]
        )
        probs_RGV = past.probs_RGV
        if self.init == "uniform":
            probs_RGV = torch.where(new_RG.unsqueeze(-1), 1 / vocab, probs_RGV)
        if self.coupling == "none" or sibling:
            token_RG = fresh.race(DRAFT + sibling, probs_RGV)
        elif self.coupling == "gumbel":
            token_RG = noise.race(DRAW, probs_RGV)
        else:
            token_RG = keep_or_redraw(past.old_RG, past.old_probs_RGV, probs_RGV, fresh)
        if self.init != "uniform":
            token_RG = torch.where(
                new_RG, self._made_up(past, token_RG, fresh, wide, sibling), token_RG
            )
            point_RGV = F.one_hot(token_RG, vocab).to(probs_RGV.dtype)
            probs_RGV = torch.where(new_RG.unsqueeze(-1), point_RGV, probs_RGV)
        return token_RG, probs_RGV

    def _made_up(
        self, past: Past, token_RG: Tensor, fresh: Noise, wide: int, sibling: int
    ) -> Tensor:
        """Tokens for the places without a law, [R, G]; the other columns mean nothing.

        Each copies the place where it is anchored; if nothing is known there, it is the random
        token of that place.
        """
        place_RG = fresh.position_RT
        end = past.known_RN.shape[1] - 1
        last_R1 = (place_RG[:, 0] + past.left_R - 1).unsqueeze(
            1
        )  # the last place with a token, -1 if there is none
        if self.init == "random":
            anchor_RG = place_RG
        elif self.init == "repeat_vertical":
            rows_RG = ((place_RG - last_R1).clamp(min=0) + wide - 1).div(
                wide, rounding_mode="floor"
            )
            anchor_RG = place_RG - wide * rows_RG
            anchor_RG = torch.where(anchor_RG < 0, place_RG % wide, anchor_RG)
        else:
            anchor_RG = torch.maximum(last_R1, place_RG - place_RG % wide)
        known_RN = past.known_RN.scatter(1, place_RG.clamp(max=end), token_RG)
        if self.init == "sample_horizon":
            known_RN = known_RN.scatter(1, last_R1.clamp(min=0), past.likeliest_R.unsqueeze(1))
        chance_RG = Noise(fresh.key_R2, anchor_RG).uniform(DRAFT + sibling, 1)[..., 0]
        random_RG = (chance_RG * past.probs_RGV.shape[-1]).long()
        return torch.where(
            anchor_RG <= last_R1, known_RN.gather(1, anchor_RG.clamp(max=end)), random_RG
        )


def keep_or_redraw(
    old_RG: Tensor, old_probs_RGV: Tensor, probs_RGV: Tensor, fresh: Noise
) -> Tensor:
    """The maximal coupling: tokens that follow `law`, as many of the old ones among them as there
    can be.

    Places whose old law is zero are drawn from the new one.
    """
    was_RG, is_RG = (
        probs.gather(-1, old_RG.unsqueeze(-1))[..., 0] for probs in (old_probs_RGV, probs_RGV)
    )
    kept_RG = (fresh.uniform(ACCEPT, 1)[..., 0] * was_RG < is_RG) & (was_RG > 0)
    left_nV = residual_probs(probs_RGV.flatten(0, 1), old_probs_RGV.flatten(0, 1), old_RG.flatten())
    return torch.where(kept_RG, old_RG, fresh.race(RESIDUAL, left_nV.view_as(probs_RGV)))


def _past(sampler: Sampler, rows: Sequence[Canvas], columns: int) -> Past:
    """What is known of the next `columns` places; without a verdict, nothing but the canvas."""
    verdicts = [sampler.verdict(canvas) for canvas in rows]
    known_RN = sampler.tokens(rows)
    dtype = torch.promote_types(
        sampler.model.dtype, torch.float32
    )  # that of laws, whoever else is in the batch
    probs_RGV = torch.zeros(
        (len(rows), columns, sampler.model.vocab), dtype=dtype, device=known_RN.device
    )
    old_probs_RGV = torch.zeros_like(probs_RGV)
    old_RG = torch.zeros_like(probs_RGV[..., 0], dtype=torch.int64)
    likeliest_R = known_RN.gather(1, sampler.noise(rows, 1).position_RT.sub(1).clamp(min=0))[:, 0]
    left = [0] * len(rows)
    for r, verdict in enumerate(verdicts):
        if verdict is not None:
            assert verdict.draft.probs is not None, "a followed draft says what it was drawn from"
            behind = slice(
                verdict.accepted + 1, verdict.accepted + 1 + columns
            )  # of the last committed token
            probs, old, old_probs = (
                x[behind] for x in (verdict.probs_TV, verdict.draft.tokens, verdict.draft.probs)
            )
            probs_RGV[r, : len(probs)] = probs
            old_RG[r, : len(old)] = old
            old_probs_RGV[r, : len(old)] = old_probs
            left[r] = len(probs)
            likeliest_R[r] = verdict.probs_TV[-1].argmax()
    return Past(
        probs_RGV,
        torch.tensor(left, device=known_RN.device),
        old_RG,
        old_probs_RGV,
        known_RN,
        likeliest_R,
    )
