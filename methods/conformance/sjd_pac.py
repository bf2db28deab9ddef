"""Runs a conformance file for SJD-PAC's trees through the functions that methods run with.

Inputs are shapes, walks, distributions and uniforms; results are trees, what goes on behind a walk,
candidates of a place, and walks (`harness.Jacobi`, `harness.Proactive`, `harness.exact`). Shapes:
G nodes, T = 1 + G places, V vocabulary; a case is one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from harness import (
    Draft,
    Drafts,
    DraftTest,
    Jacobi,
    JacobiWindow,
    Noise,
    Proactive,
    SlotTest,
    continue_tree,
    exact,
    list_tests,
    residual_probs,
    token_prob,
)
from methods.conformance.acceptance import DRAW_LANE, RESIDUAL_LANE, GivenNoise, find_differences
from methods.conformance.cases import Rule, check_cases


def conformance(path: Path | str) -> tuple[int, int, list[str]]:
    """Run a file; return the numbers of passed and failed cases, and a message per failed case.

    Raises UserError that names the line of a malformed case.
    """
    return check_cases(path, RULES, find_differences)


# ------------------------------------------------------------------ shapes


def _shape(given: Mapping[str, Any]) -> dict[str, Any]:
    tree = Proactive(given["width"], given["levels"], given["window"])
    # Behind a walk that ended at the root, the branch of all first children goes on.
    main = [node for node in continue_tree(tree.parents).source_TG[0].tolist() if node >= 0]
    return {
        "nodes": tree.nodes,
        "depth": tree.depth,
        "parents": list(tree.parents),
        "main": main,
    }


def _onward(given: Mapping[str, Any]) -> dict[str, Any]:
    tree = Proactive(given["width"], given["levels"], given["window"])
    known = continue_tree(tree.parents)
    end = 1 + given["path"][-1] if given["path"] else 0
    old_nodes = [node for node in known.old_TG[end].tolist() if node >= 0]
    # The place behind the window has a distribution, too, but no old token: the file leaves it out.
    return {
        "law_nodes": known.source_TG[end].tolist()[: len(old_nodes)],
        "old_nodes": old_nodes,
    }


# ------------------------------------------------------------------ candidates of a place


class _PlaceNoise:
    """Noise of one place with a given chance for the coupling and given uniforms for its draws."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.position_RT = torch.zeros((1, 1), dtype=torch.int64)
        self._keep = 0.5 if given["keep"] is None else given["keep"]
        self._redraw_V = torch.tensor(given["redraw"], dtype=torch.float64)
        self._more_V = torch.tensor(given["more"], dtype=torch.float64)

    def salted(self, _salt_R: Tensor) -> _PlaceNoise:
        return self

    def at(self, _offset_R: Tensor) -> _PlaceNoise:
        return self

    def uniform(self, _lane: int, _count: int) -> Tensor:
        return torch.full((1, 1, 1), self._keep, dtype=torch.float64)

    def race(self, _lane: int, weight_RTV: Tensor) -> Tensor:
        return (weight_RTV / -self._redraw_V.log()).argmax(-1)

    def order(self, _lane: int, weight_RV: Tensor, count: int) -> Tensor:
        speed_RV = weight_RV / -self._more_V.log()
        return speed_RV.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def _place(given: Mapping[str, Any]) -> dict[str, Any]:
    """Draw the candidates of one place, as children of the root of a tree of one depth."""
    probs_V = torch.tensor(given["law"], dtype=torch.float64)
    has_old = given["old"] is not None
    old_probs_V = torch.zeros_like(probs_V)
    if has_old:
        old_probs_V = torch.tensor(given["old_law"], dtype=torch.float64)
    old_RG = torch.tensor([[given["old"] if has_old else 0]])
    window = JacobiWindow(
        probs_RGV=probs_V[None, None],
        verified_R=torch.tensor([1]),
        old_RG=old_RG,
        old_probs_RGV=old_probs_V[None, None],
        image_RN=old_RG,
        likeliest_R=old_RG[0],
    )
    tree = Proactive(given["count"], 2, 1 + given["count"])
    noise = cast(Noise, _PlaceNoise(given))
    token_RG, stage_RGV = Jacobi("uniform", "maximal").fill_tree(window, noise, 1, tree)

    tokens = []
    for token, stage_V in zip(token_RG[0].tolist(), stage_RGV[0], strict=True):
        tokens.append(token if stage_V.any() else None)
    return {
        "kept": has_old and tokens[0] == given["old"] and _passes(given),
        "tokens": tokens,
        "stages": stage_RGV[0].tolist(),
    }


def _passes(given: Mapping[str, Any]) -> bool:
    """Tell whether the old token passes the coupling's test; a redraw may give the same token."""
    old = given["old"]
    return bool(given["keep"] * given["old_law"][old] < given["law"][old])


# ------------------------------------------------------------------ walks


def _walk(given: Mapping[str, Any]) -> dict[str, Any]:
    token_G = torch.tensor([0 if token is None else token for token in given["tokens"]])
    probs_RTV = torch.tensor(given["laws"])[None]
    draft = Draft(token_G, torch.tensor(given["stages"]), tuple(given["parents"]))
    drafts = Drafts.stack([draft], probs_RTV)
    siblings = max(len(chances) for chances in given["uniforms"])
    padded = [chances + [0.5] * (siblings - len(chances)) for chances in given["uniforms"]]
    noise = GivenNoise(padded)
    path_RG, _ = exact(probs_RTV, drafts, cast(Noise, noise))
    path = [node for node in path_RG[0].tolist() if node >= 0]

    tested = []
    was_rejected = False
    test_of_all = DraftTest(token_prob, residual_probs)
    for test in list_tests(
        probs_RTV, drafts, cast(Noise, noise), path_RG, lambda _depth_R: test_of_all
    ):
        if not bool(test.waiting_R):
            continue
        accepted = bool(test.accepted_R)
        skipped = not bool(test.tested_R)
        was_rejected = not accepted and (was_rejected or not skipped)
        tested.append(
            {
                "node": int(test.node_R),
                "accept_prob": 0.0 if skipped else _acceptance_chance(test),
                "skipped": skipped,
                "accepted": accepted,
            }
        )
    lane = RESIDUAL_LANE if was_rejected else DRAW_LANE
    return {
        "path": path,
        "tested": tested,
        "next_law_kind": "residual" if was_rejected else "bonus",
        "next_law": noise.probs_by_lane[lane].tolist(),
    }


def _acceptance_chance(test: SlotTest) -> float:
    granted = token_prob(test.probs_RV, test.token_R)
    return float((granted / token_prob(test.draft_probs_RV, test.token_R)).clamp(max=1))


RULES: dict[str, Rule] = {
    "pac_shape": _shape,
    "pac_onward": _onward,
    "pac_place": _place,
    "pac_walk": _walk,
}
