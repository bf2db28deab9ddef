"""Runs a conformance file for acceptance rules through the functions that methods run with.

Inputs are distributions, drafts and uniforms; results are acceptances and residual distributions
(`harness.exact`, `harness.verify`, `methods/lantern.py`). Shapes: G draft length, V vocabulary; a
case is one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from harness import (
    Draft,
    Drafts,
    Noise,
    exact,
    residual_probs,
    token_prob,
    verify,
    without_replacement,
)
from methods.conformance.cases import Rule, check_cases
from methods.lantern import RESIDUALS, Lantern

TOLERANCE = 1e-5
"""Of expected numbers, times the larger of 1 and their size."""

DRAW_LANE = 0
RESIDUAL_LANE = 2


def conformance(path: Path | str) -> tuple[int, int, list[str]]:
    """Run a file; return the numbers of passed and failed cases, and a message per failed case.

    Raises UserError that names the line of a malformed case.
    """
    return check_cases(path, RULES, find_differences)


class GivenNoise:
    """Noise with given uniforms [G, siblings] that records what is drawn from in each lane."""

    def __init__(self, uniforms: list[list[float]]) -> None:
        self._uniforms = torch.tensor(uniforms)
        self.probs_by_lane: dict[int, Tensor] = {}

    def uniform(self, _lane: int, count: int) -> Tensor:
        return self._uniforms[None, :, :count]

    def at(self, _offset_R: Tensor) -> GivenNoise:
        return self

    def race(self, lane: int, weight_RTV: Tensor) -> Tensor:
        weight_V = weight_RTV[0, 0]
        self.probs_by_lane[lane] = weight_V / weight_V.sum()
        return weight_RTV.argmax(-1)


# ------------------------------------------------------------------ rules


def _exact_chain(given: Mapping[str, Any]) -> dict[str, Any]:
    probs_TV = torch.tensor(given["p"])
    draft_probs_GV = torch.tensor(given["q"])
    token_G = torch.tensor(given["draft"])
    length = len(token_G)
    noise = GivenNoise([[chance] for chance in given["uniforms"]])
    drafts = Drafts(token_G[None], draft_probs_GV[None], torch.tensor([length]))
    path_RG, _ = exact(probs_TV[None], drafts, cast(Noise, noise))

    accepted = int((path_RG >= 0).sum())
    was_rejected = accepted < length
    lane = RESIDUAL_LANE if was_rejected else DRAW_LANE
    ratio_G = token_prob(probs_TV[:length], token_G) / token_prob(draft_probs_GV, token_G)
    return {
        "accepted": accepted,
        "next_law_kind": "residual" if was_rejected else "bonus",
        "next_law": noise.probs_by_lane[lane].tolist(),
        "accept_probs": ratio_G.clamp(max=1).tolist(),
    }


def _tree_sampled(given: Mapping[str, Any]) -> dict[str, Any]:
    token_G = torch.tensor(given["candidates"])
    draft_probs_GV = without_replacement(torch.tensor([given["q"]]), token_G[None])[0]
    return _walk_one_place(given, token_G, draft_probs_GV)


def _tree_topk(given: Mapping[str, Any]) -> dict[str, Any]:
    return _walk_one_place(given, torch.tensor(given["candidates"]), None)


def _walk_one_place(
    given: Mapping[str, Any], token_G: Tensor, draft_probs_GV: Tensor | None
) -> dict[str, Any]:
    """Verify siblings at one place, and watch the walk by what it asks of the rule."""
    # 1. Walk; note the distribution that each sibling is tested against.
    tested_against: list[Tensor] = []

    def acceptance_prob(probs_RV: Tensor, token_R: Tensor) -> Tensor:
        tested_against.append(probs_RV[0])
        return token_prob(probs_RV, token_R)

    count = len(token_G)
    probs_RTV = torch.tensor(given["p"]).expand(1, 1 + count, -1)
    siblings = Draft(token_G, draft_probs_GV, (-1,) * count)
    drafts = Drafts.stack([siblings], probs_RTV)
    noise = GivenNoise([given["uniforms"]] * 2)
    path_RG, _ = verify(probs_RTV, drafts, cast(Noise, noise), acceptance_prob, residual_probs)

    # 2. One stage per sibling.
    stages = []
    stage_probs_GV = drafts.probs_RGV[0]
    for probs_V, token, stage_probs_V in zip(tested_against, token_G, stage_probs_GV, strict=True):
        stage = _stage(probs_V, stage_probs_V, token)
        if draft_probs_GV is not None:
            stage["q"] = stage_probs_V.tolist()
            stage["q_stage"] = float(stage_probs_V[token])
        stages.append(stage)

    # 3. The accepted sibling, or what is drawn from after all of them.
    accepted_nodes = path_RG[0][path_RG[0] >= 0].tolist()
    if accepted_nodes:
        accepted = accepted_nodes[0]
        return {"accepted": accepted, "stages": stages[: accepted + 1], "final_law": None}
    was_rejected = any(not stage["skipped"] for stage in stages)
    final_V = noise.probs_by_lane[RESIDUAL_LANE if was_rejected else DRAW_LANE]
    return {"accepted": None, "stages": stages, "final_law": final_V.tolist()}


def _stage(probs_V: Tensor, stage_probs_V: Tensor, token: Tensor) -> dict[str, Any]:
    """Describe the test of a sibling, which is skipped if it could not have been drafted."""
    draft_prob = float(stage_probs_V[token])
    accept_prob = min(1.0, float(probs_V[token]) / draft_prob) if draft_prob else 0.0
    return {"p": probs_V.tolist(), "skipped": draft_prob == 0, "accept_prob": accept_prob}


def _lantern(given: Mapping[str, Any]) -> dict[str, Any]:
    probs_RV = torch.tensor([given["p"]])
    token_R = torch.tensor([given["candidate"]])
    if given["q"] is None:
        one_hot_RV = torch.nn.functional.one_hot(token_R, probs_RV.shape[1])
        draft_probs_RV = one_hot_RV.to(probs_RV.dtype)
    else:
        draft_probs_RV = torch.tensor([given["q"]])
    rule = _lantern_rule(given, "optimal")
    borrowed = rule.borrow(probs_RV, token_R)
    acceptance_prob_R = rule.acceptance_prob(probs_RV, token_R)
    ratio_R = acceptance_prob_R / token_prob(draft_probs_RV, token_R)
    accept_prob = float(ratio_R.clamp(max=1))
    count = int(borrowed.count_R)
    residuals = None
    if accept_prob < 1:
        residuals = _lantern_residuals(given, probs_RV, draft_probs_RV, token_R)
    return {
        "bound": float(borrowed.bound_R),
        "c": borrowed.sum_Rk[0].tolist(),
        "m_star": count,
        "m_star_code": int(borrowed.prefix_R),
        "kept": [int(token_R), *borrowed.neighbour_Rk[0, :count].tolist()],
        "borrowed": float(borrowed.mass_R),
        "p_relaxed": float(acceptance_prob_R),
        "accept_prob": accept_prob,
        "residual": residuals,
    }


def _lantern_residuals(
    given: Mapping[str, Any],
    probs_RV: Tensor,
    draft_probs_RV: Tensor,
    token_R: Tensor,
) -> dict[str, list[float]]:
    """Return the residual distribution of every kind that goes with the draft."""
    was_chosen = given["q"] is None
    if was_chosen:
        kinds = ["code_dynamic", "aggregated", "optimal"]
    else:
        kinds = [kind for kind in RESIDUALS if kind != "code_dynamic"]
    residuals = {}
    for kind in kinds:
        rule = _lantern_rule(given, kind)
        residual_V = rule.residual(probs_RV, draft_probs_RV, token_R)[0]
        residuals[kind] = (residual_V / residual_V.sum()).tolist()
    if was_chosen:
        # Lumina's dynamic tree does the same.
        residuals["code_lumina_dynamic"] = residuals["code_dynamic"]
    return residuals


def _lantern_rule(given: Mapping[str, Any], residual: str) -> Lantern:
    """Build the rule of a case, with the neighbours that the case gives."""
    bound = given["bound"]
    rule = Lantern(given["k"], bound.get("delta"), bound.get("lambda"), residual)
    columns = min(given["k"] + 1, len(given["neighbours"]))
    rule.table = torch.zeros((len(given["p"]), columns), dtype=torch.int64)
    rule.table[given["candidate"]] = torch.tensor(given["neighbours"][:columns])
    return rule


RULES: dict[str, Rule] = {
    "exact_chain": _exact_chain,
    "tree_sampled": _tree_sampled,
    "tree_topk": _tree_topk,
    "lantern": _lantern,
}


# ------------------------------------------------------------------ comparison

NULL_IS_A_VALUE = ("accepted", "final_law")
"""Results for which an expected null is compared."""


def find_differences(got: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Compare results at any depth; an expected null is compared only where it is a value."""
    if expected is None:
        differs = where in NULL_IS_A_VALUE and got is not None
    elif isinstance(expected, dict):
        for name, value in expected.items():
            found = None if got is None else got.get(name)
            yield from find_differences(found, value, f"{where}.{name}".strip("."))
        return
    elif isinstance(expected, list) and got is not None and len(got) == len(expected):
        for place, (found, value) in enumerate(zip(got, expected, strict=True)):
            yield from find_differences(found, value, f"{where}[{place}]")
        return
    elif isinstance(expected, float) and got is not None:
        differs = not abs(got - expected) <= TOLERANCE * max(1.0, abs(expected))
    else:
        differs = got != expected
    if differs:
        yield f"{where}: expected {expected}, got {got}"
