"""LANTERN: a draft token may borrow the target probability of codes that look like it.

LANTERN is arXiv 2410.03355, LANTERN++ arXiv 2502.06352. The rule plugs into any speculative method
(`rule:` in its YAML).

p is the target's distribution after temperature, top-k and top-p, q the one that the draft token x
was drawn from, n_1, n_2, ... are the other codes by their distance from x in the codebook, and c_m
is the probability of the first m of them together. Shapes: R rows, G draft length, n = R * G draft
tokens, k neighbours, V codes, d code width.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import (
    Drafts,
    ImageModel,
    Natural,
    Noise,
    Positive,
    Share,
    UserError,
    cache_folder,
    residual_probs,
    tested_against,
    token_prob,
    verify,
)


@dataclass(frozen=True, slots=True)
class Borrowed:
    """The probability that R tokens borrow from their neighbours, in float64."""

    neighbour_Rk: Tensor  # codes, nearest first
    sum_Rk: Tensor  # c_1 .. c_k
    bound_R: Tensor  # the most that may be borrowed
    prefix_R: Tensor  # the most neighbours whose sum is within the bound (the released code's m)
    count_R: Tensor  # m*: the same, but 0 where nothing may be borrowed
    mass_R: Tensor  # c_m*


class Lantern:
    """Test a draft token x with the relaxed probability p(x) + c_m* instead of p(x).

    m* is the largest number of neighbours whose probability stays within a bound. Give one bound:
    `delta` is additive, and bounds the total-variation distance of the surrogate distribution
    (LANTERN); `multiplier` bounds the relaxed probability by that times p(x) (LANTERN++). `k` is
    the number of neighbours besides x, `metric` their distance: `l2` or `cosine`.

    `residual` is what is drawn from after a rejection: `optimal` is max(p - q, 0); `aggregated` the
    same of the surrogate distribution; `code_static`, `code_dynamic` and `code_lumina_static` are
    what the released code does (jadohu/LANTERN: evaluate_posterior_v1, evaluate_posterior, and
    ea_model_lumina_mgpt).

    `require_support` never accepts what the target's filters left no probability. At temperature 0
    one token has all the probability, so nothing can be borrowed and the rule is exact. Raises
    UserError for values out of range.
    """

    def __init__(
        self,
        k: Natural,
        delta: Share | None = None,
        multiplier: Positive | None = None,
        residual: str = "optimal",
        metric: str = "l2",
        require_support: bool = False,
    ) -> None:
        if k < 0:
            raise UserError(f"rule.k={k}: the number of neighbours cannot be negative")
        _expect_bound(delta, multiplier)
        if residual not in RESIDUALS:
            raise UserError(f"rule.residual={residual}: choose from {', '.join(RESIDUALS)}")
        if metric not in METRICS:
            raise UserError(f"rule.metric={metric}: choose from {', '.join(METRICS)}")
        self.k = k
        self.delta = delta
        self.multiplier = multiplier
        self.require_support = require_support
        self.metric = metric
        self._residual = RESIDUALS[residual]
        # int64 [V, k + 1]: the released code clears one neighbour more than it sums.
        self.table: Tensor | None = None

    def expect_target(self, model: ImageModel) -> None:
        """Make or load the neighbour table of the model's codebook."""
        self.table = neighbours(model.codebook, self.k + 1, self.metric)

    def __call__(
        self,
        probs_RTV: Tensor,
        drafts: Drafts,
        noise: Noise,
    ) -> tuple[Tensor, Tensor]:
        """Verify drafts as a `Rule` does: return accepted paths [R, G] and next tokens [R]."""
        return verify(probs_RTV, drafts, noise, self.acceptance_prob, self.residual)

    def signals(
        self,
        probs_RTV: Tensor,
        drafts: Drafts,
        noise: Noise,
        path_RG: Tensor,
    ) -> dict[str, Tensor]:
        """Report what the accepted draft tokens borrowed, summed over each row, [R].

        `lent` counts the neighbours (m*), `lent_mass` is their probability (c_m*), and `rescued`
        counts the tokens that the rule `exact` would have rejected.
        """
        probs_RGV, token_RG, threshold_RG = tested_against(
            probs_RTV, drafts, noise, path_RG, self.residual
        )
        probs_nV = probs_RGV.flatten(0, 1)
        token_n = token_RG.flatten()
        borrowed = self.borrow(probs_nV, token_n)
        rescued_n = threshold_RG.flatten() >= _token_prob(probs_nV, token_n)
        accepted_RG = path_RG[:, : token_RG.shape[1]] >= 0

        def sum_accepted(value_n: Tensor) -> Tensor:
            return (value_n.view_as(accepted_RG) * accepted_RG).sum(1)

        return {
            "lent": sum_accepted(borrowed.count_R),
            "lent_mass": sum_accepted(borrowed.mass_R),
            "rescued": sum_accepted(rescued_n),
        }

    def acceptance_prob(self, probs_RV: Tensor, token_R: Tensor) -> Tensor:
        """Return the relaxed probability p(x) + c_m*, float64 [R]."""
        token_prob_R = _token_prob(probs_RV, token_R)
        relaxed_R = token_prob_R + self.borrow(probs_RV, token_R).mass_R
        if self.require_support:
            return torch.where(token_prob_R > 0, relaxed_R, 0)
        return relaxed_R

    def borrow(self, probs_RV: Tensor, token_R: Tensor) -> Borrowed:
        """Sum neighbours in order of distance for as long as the sum is within the bound.

        Neighbours after the first one that breaks the bound are not tried.
        """
        # 1. c_1 .. c_k, and the bound.
        neighbour_Rk = self._nearest(token_R)[:, : self.k]
        sum_Rk = probs_RV.gather(1, neighbour_Rk).double().cumsum(1)
        bound_R = self._bound(_token_prob(probs_RV, token_R))

        # 2. m* and c_m*, where c_0 = 0.
        prefix_R = (sum_Rk <= bound_R[:, None]).sum(1)
        count_R = torch.where(bound_R > 0, prefix_R, 0)
        mass_R = F.pad(sum_Rk, (1, 0)).gather(1, count_R[:, None])[:, 0]
        return Borrowed(neighbour_Rk, sum_Rk, bound_R, prefix_R, count_R, mass_R)

    def residual(
        self,
        probs_RV: Tensor,
        draft_probs_RV: Tensor,
        token_R: Tensor,
    ) -> Tensor:
        """Return what to draw from, up to a factor, after x was rejected, [R, V]."""
        return self._residual(self, probs_RV, draft_probs_RV, token_R)

    def surrogate(self, probs_RV: Tensor, token_R: Tensor) -> Tensor:
        """Return p with the probability of the borrowed neighbours moved onto x, [R, V].

        Its total-variation distance from p is c_m*.
        """
        borrowed = self.borrow(probs_RV, token_R)
        rank_k = torch.arange(borrowed.neighbour_Rk.shape[1], device=probs_RV.device)
        lent_Rk = rank_k < borrowed.count_R[:, None]
        remaining_Rk = torch.where(lent_Rk, 0, probs_RV.gather(1, borrowed.neighbour_Rk))
        without_RV = probs_RV.scatter(1, borrowed.neighbour_Rk, remaining_Rk)
        mass_R1 = borrowed.mass_R[:, None].to(probs_RV.dtype)
        return without_RV.scatter_add(1, token_R[:, None], mass_R1)

    def cleared(self, probs_RV: Tensor, token_R: Tensor) -> Tensor:
        """Return which codes the released code sets to zero after a rejection, bool [R, V].

        These are the k + 1 nearest codes, if at least one neighbour is within the bound.
        """
        nowhere_RV = torch.zeros_like(probs_RV, dtype=torch.bool)
        nearest_RV = nowhere_RV.scatter(1, self._nearest(token_R), True)
        return nearest_RV & (self.borrow(probs_RV, token_R).prefix_R > 0)[:, None]

    def _bound(self, token_prob_R: Tensor) -> Tensor:
        """Return the most that tokens of these probabilities may borrow, float64 [R]."""
        if self.multiplier is not None:
            return (self.multiplier - 1) * token_prob_R
        return torch.full_like(token_prob_R, 0.0 if self.delta is None else self.delta)

    def _nearest(self, token_R: Tensor) -> Tensor:
        if self.table is None:
            raise RuntimeError("the rule has no neighbour table yet: expect_target makes it")
        return self.table[token_R]


def _expect_bound(delta: float | None, multiplier: float | None) -> None:
    """Raise UserError unless exactly one bound is given, and in its range."""
    if (delta is None) == (multiplier is None):
        raise UserError(
            f"rule.delta={delta}, rule.multiplier={multiplier}: give one of the two bounds"
        )
    if delta is not None and not 0 <= delta <= 1:
        raise UserError(
            f"rule.delta={delta}: must lie in [0, 1]; LANTERN++'s factor is rule.multiplier"
        )
    if multiplier is not None and multiplier < 1:
        raise UserError(f"rule.multiplier={multiplier}: must be at least 1, which borrows nothing")


def _token_prob(probs_RV: Tensor, token_R: Tensor) -> Tensor:
    """Return p(x), float64 [R]."""
    return token_prob(probs_RV, token_R).double()


# --- residuals ------------------------------------------------------------------------------------


def _optimal(
    _rule: Lantern,
    probs_RV: Tensor,
    draft_probs_RV: Tensor,
    token_R: Tensor,
) -> Tensor:
    """Return the ordinary residual max(p - q, 0).

    Relaxed acceptance is never below the exact one, so this brings the output nearest to p
    (Cool-SD).
    """
    return residual_probs(probs_RV, draft_probs_RV, token_R)


def _aggregated(
    rule: Lantern,
    probs_RV: Tensor,
    draft_probs_RV: Tensor,
    token_R: Tensor,
) -> Tensor:
    """Return max(surrogate - q, 0), or p where that is zero."""
    residual_RV = (rule.surrogate(probs_RV, token_R) - draft_probs_RV).clamp(min=0)
    return torch.where(residual_RV.amax(1, keepdim=True) == 0, probs_RV, residual_RV)


def _code_dynamic(
    rule: Lantern,
    probs_RV: Tensor,
    _draft_probs_RV: Tensor,
    token_R: Tensor,
) -> Tensor:
    """Return p without x and the cleared codes."""
    cleared_RV = probs_RV.masked_fill(rule.cleared(probs_RV, token_R), 0)
    return _or_uniform(cleared_RV.scatter(1, token_R[:, None], 0))


def _code_static(
    rule: Lantern,
    probs_RV: Tensor,
    draft_probs_RV: Tensor,
    token_R: Tensor,
) -> Tensor:
    """Return max(p - q, 0) with the codes cleared in q."""
    cleared_RV = draft_probs_RV.masked_fill(rule.cleared(probs_RV, token_R), 0)
    return _or_uniform((probs_RV - cleared_RV).clamp(min=0))


def _code_lumina_static(
    rule: Lantern,
    probs_RV: Tensor,
    draft_probs_RV: Tensor,
    token_R: Tensor,
) -> Tensor:
    """Return max(p - q, 0) with the codes cleared in p."""
    cleared_RV = probs_RV.masked_fill(rule.cleared(probs_RV, token_R), 0)
    return _or_uniform((cleared_RV - draft_probs_RV).clamp(min=0))


def _or_uniform(residual_RV: Tensor) -> Tensor:
    """Replace a residual that is zero everywhere by the uniform one, as the released code does."""
    return torch.where(residual_RV.amax(1, keepdim=True) == 0, 1.0, residual_RV)


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
"""Codes whose distances to all others are held in memory at a time."""


def neighbours(codebook_Vd: Tensor, k: int, metric: str) -> Tensor:
    """Return the `k` nearest other codes of every code, int64 [V, min(k, V - 1)].

    The nearest comes first, ties go by index. The table is computed once per codebook and kept in
    the user's cache folder, named by the codebook's hash (LANTERN's generate_codebook). Raises
    UserError for a cached table that cannot be read or belongs to another codebook.
    """
    codebook = codebook_Vd.detach().float().cpu().contiguous()
    k = min(k, len(codebook) - 1)
    name = hashlib.sha256(codebook.numpy().tobytes()).hexdigest()[:16]
    path = cache_folder() / f"neighbours-{name}-{metric}-{k}.npz"
    if path.is_file():
        table = _read_table(path, name, (len(codebook), k))
    else:
        table = _nearest_codes(codebook, k, metric).numpy().astype(np.int32)
        _write_table(path, name, table)
    return torch.from_numpy(table.astype(np.int64)).to(codebook_Vd.device)


def _read_table(path: Path, name: str, shape: tuple[int, int]) -> np.ndarray:
    """Read a cached table, and check that it is the one of codebook `name`."""
    try:
        stored = np.load(path, allow_pickle=False)
        stored_name = str(stored["codebook"])
        table = stored["table"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no neighbour table ({error}): delete it") from None
    if stored_name != name or table.shape != shape:
        raise UserError(f"{path} belongs to codebook {stored_name}, not {name}: delete it")
    return table


def _write_table(path: Path, name: str, table: np.ndarray) -> None:
    """Write a table to the cache, at once and whole: another process may look for it meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, codebook=np.array(name), table=table)
    os.replace(temporary, path)


def _nearest_codes(codebook_Vd: Tensor, k: int, metric: str) -> Tensor:
    """Compute the `k` nearest other codes of every code, int64 [V, k]."""
    code_Vd = F.normalize(codebook_Vd, dim=-1) if metric == "cosine" else codebook_Vd
    code_Vd = code_Vd.double()
    nearest = []
    for first in range(0, len(code_Vd), BLOCK):
        block_Bd = code_Vd[first : first + BLOCK]
        distance_BV = torch.cdist(block_Bd, code_Vd, compute_mode="donot_use_mm_for_euclid_dist")
        row_B = torch.arange(len(block_Bd))
        distance_BV[row_B, first + row_B] = torch.inf  # a code is not its own neighbour
        nearest.append(distance_BV.sort(dim=1, stable=True).indices[:, :k])
    return torch.cat(nearest)
