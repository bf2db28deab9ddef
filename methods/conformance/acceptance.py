"""Runs a conformance file for acceptance rules: laws, drafts and uniforms in; acceptances and
residual laws out.

The rules that are checked are the ones methods run with (`harness.exact`, `harness.verify`,
`methods/lantern.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from harness import (
    Draft,
    Drafts,
    Noise,
    UserError,
    exact,
    residual_probs,
    token_prob,
    verify,
    without_replacement,
)
from methods.lantern import RESIDUALS, Lantern

TOLERANCE = 1e-5
RESIDUAL_LANE = 2


def conformance(path: Path | str) -> tuple[int, int, list[str]]:
    """Passed, failed, a message per failed case. Raises UserError naming the line of a malformed
    case.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    failures = []
    for number, line in enumerate(lines, start=1):
        try:
            case = json.loads(line)
            differences = list(_differences(RULES[case["kind"]](case["input"]), case["expected"]))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"{path}, line {number}: not a conformance case ({what})") from None
        if differences:
            failures.append(
                f"{case.get('id', f'line {number}')} ({case.get('name', '')}): {differences[0]}"
            )
    return len(lines) - len(failures), len(failures), failures


class _Given:
    """Noise with given uniforms [T, siblings], which notes the law that is drawn from in each
    lane.
    """

    def __init__(self, uniforms: list[list[float]]) -> None:
        self._uniforms = torch.tensor(uniforms)
        self.probs: dict[int, Tensor] = {}

    def uniform(self, _lane: int, count: int) -> Tensor:
        return self._uniforms[None, :, :count]

    def at(self, _offset_R: Tensor) -> _Given:
        return self

    def race(self, lane: int, weight_RTV: Tensor) -> Tensor:
        self.probs[lane] = weight_RTV[0, 0] / weight_RTV[0, 0].sum()
        return weight_RTV.argmax(-1)


def _exact_chain(given: Mapping[str, Any]) -> dict[str, Any]:
    probs = torch.tensor(given["p"])
    draft_probs = torch.tensor(given["q"])
    token = torch.tensor(given["draft"])
    noise = _Given([[chance] for chance in given["uniforms"]])
    drafts = Drafts(token[None], draft_probs[None], torch.tensor([len(token)]))
    path, _ = exact(probs[None], drafts, cast(Noise, noise))
    accepted = int((path >= 0).sum())
    rejected = accepted < len(token)
    column = torch.arange(len(token))
    ratio = probs[column, token] / draft_probs[column, token]
    return {
        "accepted": accepted,
        "next_law_kind": "residual" if rejected else "bonus",
        "next_law": noise.probs[RESIDUAL_LANE if rejected else 0].tolist(),
        "accept_probs": ratio.clamp(max=1).tolist(),
    }


def _tree_sampled(given: Mapping[str, Any]) -> dict[str, Any]:
    token = torch.tensor(given["candidates"])
    return _one_place(
        given, Draft(token, without_replacement(torch.tensor([given["q"]]), token[None])[0], ())
    )


def _tree_topk(given: Mapping[str, Any]) -> dict[str, Any]:
    return _one_place(given, Draft(torch.tensor(given["candidates"]), None, ()))


def _one_place(given: Mapping[str, Any], draft: Draft) -> dict[str, Any]:
    """The walk over one place with some children, watched through what it asks of the rule."""
    probs = torch.tensor(given["p"])
    noise = _Given([given["uniforms"]] * 2)
    count = len(draft)
    reached: list[Tensor] = []

    def acceptance_prob(probs_RV: Tensor, token_R: Tensor) -> Tensor:
        reached.append(probs_RV[0])
        return token_prob(probs_RV, token_R)

    siblings = Draft(draft.tokens, draft.probs, (-1,) * count)
    drafts = Drafts.stack([siblings], probs.expand(1, 1 + count, -1))
    path, _ = verify(
        probs.expand(1, 1 + count, -1), drafts, cast(Noise, noise), acceptance_prob, residual_probs
    )
    accepted = next((int(node) for node in path[0] if node >= 0), None)
    stages = []
    for probs_V, token, draft_probs_V in zip(
        reached, draft.tokens, drafts.probs_RGV[0], strict=True
    ):
        chance = float(draft_probs_V[token])
        stage = {"p": probs_V.tolist(), "skipped": chance == 0}
        stage["accept_prob"] = min(1.0, float(probs_V[token]) / chance) if chance else 0.0
        if draft.probs is not None:
            stage |= {"q": draft_probs_V.tolist(), "q_stage": chance}
        stages.append(stage)
    rejected = any(not stage["skipped"] for stage in stages)
    final = None if accepted is not None else noise.probs[RESIDUAL_LANE if rejected else 0].tolist()
    return {
        "accepted": accepted,
        "stages": stages if accepted is None else stages[: accepted + 1],
        "final_law": final,
    }


def _lantern(given: Mapping[str, Any]) -> dict[str, Any]:
    probs = torch.tensor([given["p"]])
    token = torch.tensor([given["candidate"]])
    point = torch.nn.functional.one_hot(token, probs.shape[1]).to(probs.dtype)
    draft_probs = point if given["q"] is None else torch.tensor([given["q"]])
    rule = _rule(given, "optimal")
    borrowed = rule.borrow(probs, token)
    acceptance_prob = rule.acceptance_prob(probs, token)
    count = int(borrowed.count_R)
    chance = float((acceptance_prob / draft_probs.gather(1, token[:, None])[0]).clamp(max=1))
    kinds = (
        ("code_dynamic", "aggregated", "optimal")
        if given["q"] is None
        else (*RESIDUALS.keys() - {"code_dynamic"},)
    )
    residuals = {kind: _rule(given, kind).residual(probs, draft_probs, token)[0] for kind in kinds}
    if given["q"] is None:
        residuals["code_lumina_dynamic"] = residuals[
            "code_dynamic"
        ]  # Lumina's dynamic tree does the same
    return {
        "bound": float(borrowed.bound_R),
        "c": borrowed.sum_Rk[0].tolist(),
        "m_star": count,
        "m_star_code": int(borrowed.prefix_R),
        "kept": [int(token), *borrowed.neighbour_Rk[0, :count].tolist()],
        "borrowed": float(borrowed.mass_R),
        "p_relaxed": float(acceptance_prob),
        "accept_prob": chance,
        "residual": {kind: (left / left.sum()).tolist() for kind, left in residuals.items()}
        if chance < 1
        else None,
    }


def _rule(given: Mapping[str, Any], residual: str) -> Lantern:
    rule = Lantern(given["k"], given["bound"].get("delta"), given["bound"].get("lambda"), residual)
    table = torch.zeros(
        (len(given["p"]), min(given["k"] + 1, len(given["neighbours"]))), dtype=torch.int64
    )
    table[given["candidate"]] = torch.tensor(given["neighbours"][: table.shape[1]])
    rule.table = table
    return rule


RULES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "exact_chain": _exact_chain,
    "tree_sampled": _tree_sampled,
    "tree_topk": _tree_topk,
    "lantern": _lantern,
}
MEANT = ("accepted", "final_law")
"""Where an expected null is a value."""


def _differences(got: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Where two answers differ; an expected null is not compared, except where it is a value."""
    if expected is None:
        if where in MEANT and got is not None:
            yield f"{where}: expected {expected}, got {got}"
        return
    if isinstance(expected, dict):
        for name, value in expected.items():
            yield from _differences(
                None if got is None else got.get(name), value, f"{where}.{name}".strip(".")
            )
    elif isinstance(expected, list):
        if got is None or len(got) != len(expected):
            yield f"{where}: expected {expected}, got {got}"
            return
        for place, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
            yield from _differences(mine, theirs, f"{where}[{place}]")
    elif isinstance(expected, float) and got is not None:
        if not abs(got - expected) <= TOLERANCE * max(1.0, abs(expected)):
            yield f"{where}: expected {expected}, got {got}"
    elif got != expected:
        yield f"{where}: expected {expected}, got {got}"
