"""Runs a conformance file for Cool-SD through the rule that methods run with.

Inputs are schedules, distributions, drafts and uniforms; results are weights, acceptances, residual
distributions and defects (`methods/cool_sd.py`). Shapes: G draft length, V vocabulary; a case is
one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from harness import Draft, Drafts, Noise, list_tests, token_prob, without_replacement
from methods.conformance.acceptance import DRAW_LANE, RESIDUAL_LANE, GivenNoise, find_differences
from methods.conformance.cases import Rule, check_cases
from methods.cool_sd import CoolSD, WeightedAcceptance, measure_defects


def conformance(path: Path | str) -> tuple[int, int, list[str]]:
    """Run a file; return the numbers of passed and failed cases, and a message per failed case.

    Raises UserError that names the line of a malformed case.
    """
    return check_cases(path, RULES, find_differences)


class GivenWeights(WeightedAcceptance):
    """The rule with weights that are listed by depth."""

    def __init__(self, weights: list[float]) -> None:
        self.weight_D = torch.tensor(weights, dtype=torch.float64)

    def weights(self, probs_RV: Tensor, depth_R: Tensor) -> Tensor:
        # Behind a whole accepted chain nothing is tested, and any weight will do.
        return self.weight_D[(depth_R - 1).clamp(max=len(self.weight_D) - 1)]


def _schedule(given: Mapping[str, Any]) -> dict[str, Any]:
    rule = CoolSD(**given)
    depth_D = torch.arange(1, 1 + given["length"])
    return {"w": rule.weights(depth_D[:, None], depth_D).tolist()}


# ------------------------------------------------------------------ one draft


def _chain(given: Mapping[str, Any]) -> dict[str, Any]:
    probs_TV = torch.tensor(given["p"])
    draft_probs_GV = torch.tensor(given["q"])
    token_G = torch.tensor(given["draft"])
    length = len(token_G)
    noise = GivenNoise([[chance] for chance in given["uniforms"]])
    drafts = Drafts(token_G[None], draft_probs_GV[None], torch.tensor([length]))
    rule = GivenWeights(given["w"])
    path_RG, _ = rule(probs_TV[None], drafts, cast(Noise, noise))

    accepted = int((path_RG >= 0).sum())
    was_rejected = accepted < length
    lane = RESIDUAL_LANE if was_rejected else DRAW_LANE
    chance_G = _acceptance_chances(rule, probs_TV[:length], draft_probs_GV, token_G)
    return {
        "accepted": accepted,
        "accept_probs": chance_G.tolist(),
        "next_law_kind": "residual" if was_rejected else "bonus",
        "next_law": noise.probs_by_lane[lane].tolist(),
        "residuals": _residuals(rule, probs_TV[:length], draft_probs_GV, token_G),
        "defects": measure_defects(probs_TV[:length], draft_probs_GV, rule.weight_D).tolist(),
    }


def _acceptance_chances(
    rule: WeightedAcceptance, probs_GV: Tensor, draft_probs_GV: Tensor, token_G: Tensor
) -> Tensor:
    """Return the chance that each token of a chain is accepted, were it tested, [G]."""
    granted_G = rule.test_at(_depths(token_G)).acceptance_prob(probs_GV, token_G)
    return (granted_G / token_prob(draft_probs_GV, token_G)).clamp(max=1)


def _residuals(
    rule: WeightedAcceptance, probs_GV: Tensor, draft_probs_GV: Tensor, token_G: Tensor
) -> list[list[float]]:
    """Return what a rejection of each token of a chain leaves."""
    left_GV = rule.test_at(_depths(token_G)).residual(probs_GV, draft_probs_GV, token_G)
    return (left_GV / left_GV.sum(1, keepdim=True)).tolist()


def _depths(token_G: Tensor) -> Tensor:
    return torch.arange(1, 1 + len(token_G))


def _node(given: Mapping[str, Any]) -> dict[str, Any]:
    """Verify siblings at one place, and list their tests."""
    # 1. Walk.
    token_G = torch.tensor(given["candidates"])
    stage_probs_GV = without_replacement(torch.tensor([given["q"]]), token_G[None])[0]
    count = len(token_G)
    probs_RTV = torch.tensor(given["p"]).expand(1, 1 + count, -1)
    siblings = Draft(token_G, stage_probs_GV, (-1,) * count)
    drafts = Drafts.stack([siblings], probs_RTV)
    noise = GivenNoise([given["uniforms"]] * 2)
    rule = GivenWeights([given["w"]])
    path_RG, _ = rule(probs_RTV, drafts, cast(Noise, noise))

    # 2. One stage per sibling, up to the accepted one.
    stages: list[dict[str, Any]] = []
    accepted = None
    given_noise = cast(Noise, noise)
    for rank, test in enumerate(list_tests(probs_RTV, drafts, given_noise, path_RG, rule.test_at)):
        tested = bool(test.tested_R)
        draft_prob = token_prob(test.draft_probs_RV, test.token_R)
        granted = rule.test_at(torch.tensor([1])).acceptance_prob(test.probs_RV, test.token_R)
        stage = {
            "p": test.probs_RV[0].tolist(),
            "q": test.draft_probs_RV[0].tolist(),
            "q_stage": float(draft_prob),
            "accept_prob": float((granted / draft_prob).clamp(max=1)) if tested else 0.0,
            "skipped": not tested,
        }
        stages.append(stage)
        if bool(test.accepted_R):
            accepted = rank
            break

    # 3. What is drawn from where none was accepted.
    if accepted is not None:
        return {"accepted": accepted, "stages": stages, "final_law": None}
    was_rejected = any(not stage["skipped"] for stage in stages)
    final_V = noise.probs_by_lane[RESIDUAL_LANE if was_rejected else DRAW_LANE]
    return {"accepted": None, "stages": stages, "final_law": final_V.tolist()}


# ------------------------------------------------------------------ all drafts


def _bound(given: Mapping[str, Any]) -> dict[str, Any]:
    """Enumerate one round: its bound, the accepted tokens, and the distance that it attains."""
    places = len(given["w"])
    probs = {prefix: torch.tensor(values).double() for prefix, values in given["p"].items()}
    draft_probs = {prefix: torch.tensor(values).double() for prefix, values in given["q"].items()}
    rule = GivenWeights(given["w"])
    vocab = len(probs[""])
    bound = 0.0
    expected_accepted = 0.0
    accepted_by_prefix = {"": 1.0}  # chance that the tokens of a prefix are drafted and accepted
    output: dict[str, float] = {}

    for depth in range(places):
        reached = accepted_by_prefix
        accepted_by_prefix = {}
        for prefix, chance in reached.items():
            # 1. Test every token at this place.
            token_V = torch.arange(vocab)
            target_VV = probs[prefix].expand(vocab, -1)
            draft_VV = draft_probs[prefix].expand(vocab, -1)
            test = rule.test_at(torch.full_like(token_V, depth + 1))
            granted_V = test.acceptance_prob(target_VV, token_V)
            passed_V = torch.minimum(draft_probs[prefix], granted_V)
            weight_R = rule.weight_D[depth : depth + 1]
            bound += chance * float(measure_defects(target_VV[:1], draft_VV[:1], weight_R))
            expected_accepted += chance * float(passed_V.sum())

            # 2. Accepted tokens go on; a rejection is drawn from the residual.
            left_V = test.residual(target_VV[:1], draft_VV[:1], token_V[:1])[0]
            rejected_V = chance * (1 - passed_V.sum()) * left_V / left_V.sum()
            for token in range(vocab):
                longer = prefix + str(token)
                accepted_by_prefix[longer] = chance * float(passed_V[token])
                output[longer] = float(rejected_V[token])

    distance = 0.0
    for tokens in product(map(str, range(vocab)), repeat=places):
        whole = "".join(tokens)
        drawn = accepted_by_prefix[whole]
        for length in range(1, 1 + places):
            drawn += output[whole[:length]] * _rest(probs, whole, length)
        distance += abs(drawn - _rest(probs, whole, 0)) / 2
    return {"bound": bound, "expected_accepted": expected_accepted, "tv": distance}


def _rest(probs: Mapping[str, Tensor], tokens: str, first: int) -> float:
    """Return the target's chance of the tokens from `first` on, given those before."""
    chance = 1.0
    for place in range(first, len(tokens)):
        chance *= float(probs[tokens[:place]][int(tokens[place])])
    return chance


RULES: dict[str, Rule] = {
    "cool_schedule": _schedule,
    "cool_chain": _chain,
    "cool_node": _node,
    "cool_bound": _bound,
}
