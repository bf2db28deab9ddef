"""Runs a conformance file for GridAR through the functions that the method runs with.

Inputs are logits, verifier replies or scores; results are guided logits, sources of copies, prompts
or the chosen candidate (`methods/gridar.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from harness import UserError, cfg
from methods.conformance.cases import Rule, check_cases
from methods.gridar import (
    GridAR,
    StageOptions,
    choose_candidate,
    extract_prompt,
    orthogonal_part,
    select_sources,
    three_way_guidance,
)

TOLERANCE = 1e-4
"""Of logits, relative above 1: the projection cancels large terms."""

STRIPS = {1: 4, 2: 2}
"""Candidates per picture of the paper's two stages."""


def conformance(path: Path | str) -> tuple[int, int, list[str]]:
    """Run a file; return the numbers of passed and failed cases, and a message per failed case.

    Raises UserError that names the line of a malformed case.
    """
    return check_cases(path, RULES, _differences)


# ------------------------------------------------------------------ rules


def _two_way(given: Mapping[str, Any]) -> dict[str, Any]:
    branches_RKTV = _branches(given, "l_u", "l_o")
    return {"logits": cfg(branches_RKTV, _usual_scale(given)).flatten().tolist()}


def _three_way(given: Mapping[str, Any]) -> dict[str, Any]:
    branches_RKTV = _branches(given, "l_u", "l_o", "l_r")
    null, text, rewritten = branches_RKTV.unbind(1)
    logits = three_way_guidance(branches_RKTV, _usual_scale(given), given["w_r"])
    return {
        "d_perp": orthogonal_part(rewritten - null, text - null).flatten().tolist(),
        "logits": logits.flatten().tolist(),
    }


def _branches(given: Mapping[str, Any], *names: str) -> torch.Tensor:
    """Return logits [1, K, 1, V] in the precision that models compute in."""
    return torch.tensor([given[name] for name in names], dtype=torch.float32)[None, :, None]


def _usual_scale(given: Mapping[str, Any]) -> torch.Tensor:
    """Convert the specification's scale, which is what guidance adds to the conditional logits."""
    return torch.tensor([given["w"] + 1.0], dtype=torch.float64)


def _select(given: Mapping[str, Any]) -> dict[str, Any]:
    strips = STRIPS[given["stage"]]
    if not _is_possible_configuration(given["N"], strips, given["grouped_by_4"]):
        return {"error": True}
    found = select_sources(
        given["replies"],
        strips,
        grouped_by_4=given["grouped_by_4"],
        strict_parse=given["strict_parse"],
    )
    return {
        "flags": found.possible,
        "source": found.source,
        "n_possible": sum(found.possible),
        "n_all_impossible": found.all_impossible,
        "n_replaced": found.replaced,
        "n_verifier_failed": found.failed,
    }


def _is_possible_configuration(n: int, strips: int, grouped_by_4: bool) -> bool:
    stages = {"stage": StageOptions(share=1 / strips, strips=strips)}
    try:
        GridAR(n, stages, _Unasked(), _Unasked(), grouped_by_4=grouped_by_4)
    except UserError:
        return False
    return True


class _Unasked:
    """Stand in for a verifier and a reward that are never asked."""

    id = "unasked"

    @property
    def rewrite(self) -> _Unasked:
        return self

    def select(self, strips: int) -> _Unasked:
        return self

    def __call__(self, texts: Any, images: Any) -> list[Any]:
        raise AssertionError("nothing is drawn here")


def _rewrite_parse(given: Mapping[str, Any]) -> dict[str, Any]:
    prompt = extract_prompt(given["reply"], given["original"])
    return {"prompt": prompt, "is_original": prompt == given["original"]}


def _choose(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"index": choose_candidate(given["scores"], given["orm_fallback"])}


RULES: dict[str, Rule] = {
    "two_way": _two_way,
    "three_way": _three_way,
    "select": _select,
    "rewrite_parse": _rewrite_parse,
    "choose": _choose,
}


# ------------------------------------------------------------------ comparison


def _differences(got: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    """Compare results by name; an expected null is not compared."""
    for name, wanted in expected.items():
        found = got.get(name)
        if wanted is None:
            continue
        if name in ("logits", "d_perp"):
            yield from _far(name, found or [], wanted)
        elif found != wanted:
            yield f"{name}: expected {wanted}, got {found}"


def _far(name: str, got: Sequence[float], expected: Sequence[float]) -> Iterator[str]:
    """Report the first number off by more than the tolerance, or the first that is missing."""
    for i, (number, wanted) in enumerate(zip(got, expected, strict=False)):
        if not abs(number - wanted) <= TOLERANCE * max(1.0, abs(wanted)):
            yield f"{name}[{i}]: expected {wanted}, got {number}"
            return
    if len(got) < len(expected):
        yield f"{name}[{len(got)}]: expected {expected[len(got)]}, got nothing"
