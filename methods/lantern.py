"""LANTERN: a draft token may borrow the target probability of codes that look like it (arXiv
2410.03355, 2502.06352).

The rule here plugs into any speculative method (`rule:` in its YAML). p is the processed target
law, x the draft token, n_1, n_2, ... the other codes by distance from x in the codebook. Shapes: R
rows, G draft length, k neighbours, V codes, d code width.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import (
    Drafts,
    ImageModel,
    Noise,
    UserError,
    cache_folder,
    residual_probs,
    tested_against,
    verify,
)


@dataclass(frozen=True, slots=True)
class Borrowed:
    """What tokens borrow, row by row: the mass of their first `count` neighbours, in float64."""

    neighbour_Rk: Tensor  # codes, nearest first
    sum_Rk: Tensor  # c_1 .. c_k: mass of the first m neighbours
    bound_R: Tensor  # the most that may be borrowed
    count_R: Tensor  # m*: the longest prefix within the bound; 0 where nothing may be borrowed
    prefix_R: (
        Tensor  # the same without that zero: what the released code looks at after a rejection
    )
    mass_R: Tensor  # c_m*


class Lantern:
    """A relaxed acceptance rule: x is tested with p(x) + c_m*, where m* is the longest prefix of
    neighbours in a bound.

    Give one bound. `delta` is additive, and bounds the total-variation distance of the surrogate
    law (LANTERN); `multiplier` bounds the relaxed probability by that times p(x) (LANTERN++). `k`
    counts neighbours besides x. `residual` is what is drawn from after a rejection: `optimal` max(p
    - q, 0); `aggregated` the same of the surrogate law; or what the released code does
    (jadohu/LANTERN: `code_static` evaluate_posterior_v1, `code_dynamic` evaluate_posterior,
    `code_lumina_static` ea_model_lumina_mgpt). `metric` is the neighbours' distance, `l2` or
    `cosine`. `require_support` never accepts what the target's filters left no probability. At
    temperature 0 a law has one token, so nothing can be borrowed and the rule is exact. Raises
    UserError for values out of range.
    """

    def __init__(
        self,
        k: int,
        delta: float | None = None,
        multiplier: float | None = None,
        residual: str = "optimal",
        metric: str = "l2",
        require_support: bool = False,
    ) -> None:
        if k < 0:
            raise UserError(f"rule.k={k}: the number of neighbours cannot be negative")
        if (delta is None) == (multiplier is None):
            raise UserError(
                f"rule.delta={delta}, rule.multiplier={multiplier}: give one of the two bounds"
            )
        if delta is not None and not 0 <= delta <= 1:
            raise UserError(
                f"rule.delta={delta}: must lie in [0, 1]; LANTERN++'s factor is rule.multiplier"
            )
        if multiplier is not None and multiplier < 1:
            raise UserError(
                f"rule.multiplier={multiplier}: must be at least 1, which borrows nothing"
            )
        if residual not in RESIDUALS:
            raise UserError(f"rule.residual={residual}: choose from {', '.join(RESIDUALS)}")
        if metric not in METRICS:
            raise UserError(f"rule.metric={metric}: choose from {', '.join(METRICS)}")
        self.k = k
        self.delta = delta
        self.multiplier = multiplier
        self.require_support = require_support
        self.metric = metric
        self._left = RESIDUALS[residual]
        self.table: Tensor | None = (
            None  # int64 [V, k + 1]: the released code clears one more than it sums
        )

    def expect_target(self, model: ImageModel) -> None:
        """Make or load the neighbour table of the model's codebook."""
        self.table = neighbours(model.codebook, self.k + 1, self.metric)

    def __call__(self, probs_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
        return verify(probs_RTV, drafts, noise, self.acceptance_prob, self.residual)

    def signals(
        self, probs_RTV: Tensor, drafts: Drafts, noise: Noise, path_RG: Tensor
    ) -> dict[str, Tensor]:
        """Of the accepted draft tokens: neighbours lent (m*), mass (c_m*), and how many `exact`
        would have rejected.
        """
        probs_RGV, token_RG, threshold_RG = tested_against(
            probs_RTV, drafts, noise, path_RG, self.residual
        )
        probs_nV = probs_RGV.flatten(0, 1)
        token_n = token_RG.flatten()
        borrowed = self.borrow(probs_nV, token_n)
        rejected_n = threshold_RG.flatten() >= _own(probs_nV, token_n)
        measured = {"lent": borrowed.count_R, "lent_mass": borrowed.mass_R, "rescued": rejected_n}
        taken_RG = path_RG[:, : token_RG.shape[1]] >= 0
        return {
            name: (value.view_as(taken_RG) * taken_RG).sum(1) for name, value in measured.items()
        }

    def acceptance_prob(self, probs_RV: Tensor, token_R: Tensor) -> Tensor:
        """The relaxed probability p(x) + c_m*, float64 [R]."""
        own_R = _own(probs_RV, token_R)
        acceptance_prob_R = own_R + self.borrow(probs_RV, token_R).mass_R
        return (
            torch.where(own_R > 0, acceptance_prob_R, 0)
            if self.require_support
            else acceptance_prob_R
        )

    def borrow(self, probs_RV: Tensor, token_R: Tensor) -> Borrowed:
        """Sum neighbours in order of distance until the next would break the bound; those beyond it
        are not tried.
        """
        neighbour_Rk = self._nearest(token_R)[:, : self.k]
        own_R = _own(probs_RV, token_R)
        sum_Rk = probs_RV.gather(1, neighbour_Rk).double().cumsum(1)
        if self.multiplier is None:
            bound_R = torch.full_like(own_R, 0.0 if self.delta is None else self.delta)
        else:
            bound_R = (self.multiplier - 1) * own_R
        prefix_R = (sum_Rk <= bound_R[:, None]).sum(1)
        count_R = torch.where(bound_R > 0, prefix_R, 0)
        mass_R = F.pad(sum_Rk, (1, 0)).gather(1, count_R[:, None])[:, 0]
        return Borrowed(neighbour_Rk, sum_Rk, bound_R, count_R, prefix_R, mass_R)

    def residual(self, probs_RV: Tensor, draft_probs_RV: Tensor, token_R: Tensor) -> Tensor:
        """What to draw from, up to a factor, after x was rejected, [R, V]."""
        return self._left(self, probs_RV, draft_probs_RV, token_R)

    def surrogate(self, probs_RV: Tensor, token_R: Tensor) -> Tensor:
        """p with the mass of the borrowed neighbours moved onto x; its total-variation distance
        from p is c_m*.
        """
        borrowed = self.borrow(probs_RV, token_R)
        lent_Rk = (
            torch.arange(borrowed.neighbour_Rk.shape[1], device=probs_RV.device)
            < borrowed.count_R[:, None]
        )
        kept_Rk = torch.where(lent_Rk, 0, probs_RV.gather(1, borrowed.neighbour_Rk))
        moved_RV = probs_RV.scatter(1, borrowed.neighbour_Rk, kept_Rk)
        return moved_RV.scatter_add(
            1, token_R[:, None], borrowed.mass_R[:, None].to(probs_RV.dtype)
        )

    def cleared(self, probs_RV: Tensor, token_R: Tensor) -> Tensor:
        """Where the released code clears a law: the k + 1 nearest codes, if the prefix is not
        empty; bool [R, V].
        """
        nearest_RV = torch.zeros_like(probs_RV, dtype=torch.bool).scatter(
            1, self._nearest(token_R), True
        )
        return nearest_RV & (self.borrow(probs_RV, token_R).prefix_R > 0)[:, None]

    def _nearest(self, token_R: Tensor) -> Tensor:
        if self.table is None:
            raise RuntimeError("the rule has no neighbour table yet: expect_target makes it")
        return self.table[token_R]


def _own(probs_RV: Tensor, token_R: Tensor) -> Tensor:
    return probs_RV.gather(1, token_R[:, None])[:, 0].double()


# --- residuals ------------------------------------------------------------------------------------


def _optimal(_rule: Lantern, probs_RV: Tensor, draft_probs_RV: Tensor, token_R: Tensor) -> Tensor:
    """The ordinary residual: relaxed acceptance is never below the exact one, so this is the
    nearest to p (Cool-SD).
    """
    return residual_probs(probs_RV, draft_probs_RV, token_R)


def _aggregated(rule: Lantern, probs_RV: Tensor, draft_probs_RV: Tensor, token_R: Tensor) -> Tensor:
    left_RV = (rule.surrogate(probs_RV, token_R) - draft_probs_RV).clamp(min=0)
    return torch.where(left_RV.amax(1, keepdim=True) == 0, probs_RV, left_RV)


def _code_dynamic(
    rule: Lantern, probs_RV: Tensor, _draft_probs_RV: Tensor, token_R: Tensor
) -> Tensor:
    return _or_uniform(
        probs_RV.masked_fill(rule.cleared(probs_RV, token_R), 0).scatter(1, token_R[:, None], 0)
    )


def _code_static(
    rule: Lantern, probs_RV: Tensor, draft_probs_RV: Tensor, token_R: Tensor
) -> Tensor:
    return _or_uniform(
        (probs_RV - draft_probs_RV.masked_fill(rule.cleared(probs_RV, token_R), 0)).clamp(min=0)
    )


def _code_lumina_static(
    rule: Lantern, probs_RV: Tensor, draft_probs_RV: Tensor, token_R: Tensor
) -> Tensor:
    return _or_uniform(
        (probs_RV.masked_fill(rule.cleared(probs_RV, token_R), 0) - draft_probs_RV).clamp(min=0)
    )


def _or_uniform(left_RV: Tensor) -> Tensor:
    """The released code's fallback when nothing is left."""
    return torch.where(left_RV.amax(1, keepdim=True) == 0, 1.0, left_RV)


RESIDUALS: dict[str, Callable[[Lantern, Tensor, Tensor, Tensor], Tensor]] = {
    "optimal": _optimal,
    "aggregated": _aggregated,
    "code_static": _code_static,
    "code_dynamic": _code_dynamic,
    "code_lumina_static": _code_lumina_static,
}

# --- neighbours -----------------------------------------------------------------------------------

METRICS = ("l2", "cosine")
BLOCK = 1024
"""Codes whose distances to all others are held at a time."""


def neighbours(codebook_Vd: Tensor, k: int, metric: str) -> Tensor:
    """The `k` nearest other codes of every code, nearest first, ties by index; int64 [V, min(k, V -
    1)].

    Computed once per codebook and kept in the user's cache folder, named by the codebook's hash
    (LANTERN's generate_codebook). Raises UserError for a cached table that belongs to another
    codebook.
    """
    codebook = codebook_Vd.detach().float().cpu().contiguous()
    k = min(k, len(codebook) - 1)
    name = hashlib.sha256(codebook.numpy().tobytes()).hexdigest()[:16]
    path = cache_folder() / f"neighbours-{name}-{metric}-{k}.npz"
    if path.is_file():
        try:
            stored = np.load(path, allow_pickle=False)
            owner = str(stored["codebook"])
            table = stored["table"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is no neighbour table ({error}): delete it") from None
        if owner != name or table.shape != (len(codebook), k):
            raise UserError(f"{path} belongs to codebook {owner}, not {name}: delete it")
    else:
        table = _nearest_codes(codebook, k, metric).numpy().astype(np.int32)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            np.savez(file, codebook=np.array(name), table=table)
        os.replace(temporary, path)
    return torch.from_numpy(table.astype(np.int64)).to(codebook_Vd.device)


def _nearest_codes(codebook_Vd: Tensor, k: int, metric: str) -> Tensor:
    rows = (F.normalize(codebook_Vd, dim=-1) if metric == "cosine" else codebook_Vd).double()
    nearest = []
    for first in range(0, len(rows), BLOCK):
        distance = torch.cdist(
            rows[first : first + BLOCK], rows, compute_mode="donot_use_mm_for_euclid_dist"
        )
        own = torch.arange(len(distance))
        distance[own, first + own] = torch.inf
        nearest.append(distance.sort(dim=1, stable=True).indices[:, :k])
    return torch.cat(nearest)
