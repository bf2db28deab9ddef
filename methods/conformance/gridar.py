"""Runs a conformance file for GridAR: logits, verifier replies or scores in; guidance, lineage,
prompts, choice out.

The rules that are checked are the ones the method runs with (`methods/gridar.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from harness import UserError, cfg
from methods.gridar import GridAR, choose, orthogonal, rewriting, selection, three_way

TOLERANCE = 1e-4
"""Of logits, relative above 1: the projection cancels large terms."""
STRIPS = {1: 4, 2: 2}


def conformance(path: Path | str) -> tuple[int, int, list[str]]:
    """Passed, failed, and one message per failed case. Raises UserError naming the line of a case
    that is malformed.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    failures = []
    for number, line in enumerate(lines, start=1):
        try:
            case = json.loads(line)
            got = RULES[case["kind"]](case["input"])
            differences = list(_differences(got, case["expected"]))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"{path}, line {number}: not a conformance case ({what})") from None
        if differences:
            failures.append(
                f"{case.get('id', f'line {number}')} ({case.get('name', '')}): {differences[0]}"
            )
    return len(lines) - len(failures), len(failures), failures


def _two_way(given: Mapping[str, Any]) -> dict[str, Any]:
    branches = _branches(given, "l_u", "l_o")
    return {"logits": cfg(branches, _usual_scale(given)).flatten().tolist()}


def _three_way(given: Mapping[str, Any]) -> dict[str, Any]:
    branches = _branches(given, "l_u", "l_o", "l_r")
    null, text, rewritten = branches.unbind(1)
    logits = three_way(branches, _usual_scale(given), given["w_r"])
    return {
        "d_perp": orthogonal(rewritten - null, text - null).flatten().tolist(),
        "logits": logits.flatten().tolist(),
    }


def _branches(given: Mapping[str, Any], *names: str) -> torch.Tensor:
    """[1, K, 1, V], in the precision that models compute in."""
    return torch.tensor([given[name] for name in names], dtype=torch.float32)[None, :, None]


def _usual_scale(given: Mapping[str, Any]) -> torch.Tensor:
    """The specification's scale is what guidance adds to the conditional logits."""
    return torch.tensor([given["w"] + 1.0], dtype=torch.float64)


def _select(given: Mapping[str, Any]) -> dict[str, Any]:
    strips = STRIPS[given["stage"]]
    grouped = given["grouped_by_4"]
    try:
        GridAR(
            given["N"],
            {"stage": {"share": 1 / strips, "strips": strips}},
            _Silent(),
            _Silent(),
            grouped_by_4=grouped,
        )
    except UserError:
        return {"error": True}
    found = selection(
        given["replies"], strips, grouped_by_4=grouped, strict_parse=given["strict_parse"]
    )
    return {
        "flags": found.possible,
        "source": found.source,
        "n_possible": sum(found.possible),
        "n_all_impossible": found.all_impossible,
        "n_replaced": found.replaced,
        "n_verifier_failed": found.failed,
    }


class _Silent:
    """Stands where a verifier and a reward belong; is never asked."""

    id = "silent"

    @property
    def rewrite(self) -> _Silent:
        return self

    def select(self, strips: int) -> _Silent:
        return self

    def __call__(self, texts: Any, images: Any) -> list[Any]:
        raise AssertionError("nothing is drawn here")


def _rewrite_parse(given: Mapping[str, Any]) -> dict[str, Any]:
    prompt = rewriting(given["reply"], given["original"])
    return {"prompt": prompt, "is_original": prompt == given["original"]}


def _choose(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"index": choose(given["scores"], given["orm_fallback"])}


RULES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "two_way": _two_way,
    "three_way": _three_way,
    "select": _select,
    "rewrite_parse": _rewrite_parse,
    "choose": _choose,
}


def _differences(got: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    for name, wanted in expected.items():
        mine = got.get(name)
        if wanted is None:
            continue
        if name in ("logits", "d_perp"):
            pairs = list(zip(mine or [], wanted, strict=False))
            far = [
                i
                for i, (a, b) in enumerate(pairs)
                if not abs(a - b) <= TOLERANCE * max(1.0, abs(b))
            ]
            if far or len(pairs) != len(wanted):
                at = far[0] if far else len(pairs)
                yield f"{name}[{at}]: expected {wanted[at]}, got {pairs[at][0] if far else 'nothing'}"
        elif mine != wanted:
            yield f"{name}: expected {wanted}, got {mine}"
