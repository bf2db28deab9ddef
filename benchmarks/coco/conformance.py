"""Run a conformance file: inputs, and what the equations of captions, scores and distances give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import run_cases
from benchmarks.coco import captions, conventions
from harness.records import UserError
from harness.results.stats import distances, sign_flip_test

Case = Mapping[str, Any]


def conformance(path: Path | str) -> tuple[int, int, list[str]]:
    """Run the cases of a file; return passed, failed, and a message per failed case.

    Raises UserError naming the line of a malformed case.
    """
    return run_cases(Path(path), _run_case)


def _run_case(case: Case) -> Iterator[str]:
    if case["kind"] not in CASES:
        raise ValueError(f"unknown kind {case['kind']!r}")
    expected = case["expected"]
    must_fail = expected == {"error": True}
    try:
        found = CASES[case["kind"]](case)
    except UserError as error:
        if not must_fail:
            yield f"refused: {error}"
        return
    if must_fail:
        yield f"{found} where the input must be refused"
        return
    for key, wanted in expected.items():
        tolerance = 1e-12 if key == "p" else case["tol"]
        if not _agrees(found[key], wanted, tolerance):
            yield f"{key}: {found[key]} for {wanted}"


def _agrees(found: Any, wanted: Any, tolerance: float) -> bool:
    """Compare numbers within a tolerance, relative beyond 1; all else must be equal."""
    if isinstance(wanted, list):
        if len(found) != len(wanted):
            return False
        return all(_agrees(a, b, tolerance) for a, b in zip(found, wanted, strict=True))
    if wanted is None:
        return found is None or math.isnan(found)
    if isinstance(wanted, float):
        return bool(abs(found - wanted) <= tolerance * max(1.0, abs(wanted)))
    return bool(found == wanted)


# --- captions -------------------------------------------------------------------------------------


def _captions(case: Case) -> dict[str, Any]:
    chosen = captions.list_captions(case["data"], case["rule"])
    return {"list": [[caption.image, caption.annotation, caption.text] for caption in chosen]}


# --- distances ------------------------------------------------------------------------------------


def _array(rows: Sequence[Any]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


def _moments(mean: Sequence[float], covariance: Sequence[Sequence[float]]) -> distances.Moments:
    return distances.Moments(_array(mean), _array(covariance))


def _frechet(case: Case) -> dict[str, Any]:
    found = distances.frechet(_array(case["x"]), _array(case["y"]))
    return {
        "value": found.value,
        "mean_term": found.mean_term,
        "covariance_term": found.covariance_term,
    }


def _frechet_moments(case: Case) -> dict[str, Any]:
    one = _moments(case["mu1"], case["sigma1"])
    other = _moments(case["mu2"], case["sigma2"])
    return {"value": distances.frechet_of_moments(one, other).value}


def _frechet_null(case: Case) -> dict[str, Any]:
    return {"value": distances.frechet_of_equals(case["eigenvalues"], case["n"], case["m"])}


def _frechet_influence(case: Case) -> dict[str, Any]:
    reference = _moments(case["mu_ref"], case["sigma_ref"])
    found = distances.estimate_frechet(_array(case["x"]), reference)
    influence = (found.pseudo_N - found.value).tolist()
    return {"value": found.value, "influence": influence, "se": found.error}


def _kid(case: Case) -> dict[str, Any]:
    measure = {
        "unbiased": distances.kernel_distance,
        "paired": distances.paired_kernel_distance,
    }[case["estimator"]]
    return {"value": measure(_array(case["x"]), _array(case["y"]))}


def _kid_subsets(case: Case) -> dict[str, Any]:
    x, y = _array(case["x"]), _array(case["y"])
    mean, deviation = distances.kernel_distance_of_subsets(x, y, case["subsets"])
    return {"mean": mean, "std": deviation}


def _kid_jackknife(case: Case) -> dict[str, Any]:
    reference = _array(case["reference"])
    a = distances.estimate_kernel_distance(_array(case["a"]), reference)
    b = distances.estimate_kernel_distance(_array(case["b"]), reference)
    return {
        "a": a.value,
        "se_a": a.error,
        "b": b.value,
        "se_b": b.error,
        "difference": a.value - b.value,
        "se_difference": distances.jackknife_error(a.pseudo_N - b.pseudo_N),
    }


def _swap_test(case: Case) -> dict[str, Any]:
    test = {"kid": distances.swap_test, "frechet": distances.frechet_swap_test}[case["statistic"]]
    found = test(_array(case["x"]), _array(case["y"]))
    return {"statistic": found.statistic, "p": found.p}


def _precision_recall(case: Case) -> dict[str, Any]:
    precision, recall = distances.precision_recall(
        _array(case["reference"]), _array(case["generated"]), case["k"]
    )
    return {"precision": precision, "recall": recall}


def _paired(case: Case) -> dict[str, Any]:
    values = [*case["a"], *case["b"]]
    if len(case["a"]) != len(case["b"]) or any(value is None for value in values):
        raise UserError("a prompt without a value: runs are compared on the same prompts")
    delta = _array(case["a"]) - _array(case["b"])
    return {
        "difference": float(delta.mean()),
        "se": distances.jackknife_error(delta),
        "p": sign_flip_test(delta / len(delta)),
    }


# --- scores of single images ----------------------------------------------------------------------


def _clip(case: Case) -> dict[str, Any]:
    each, mean = conventions.clip_scores(
        _array(case["image"]), _array(case["text"]), case["convention"]
    )
    return {"each": each.tolist(), "mean": mean}


def _clip_prefix(case: Case) -> dict[str, Any]:
    return {"tokens": conventions.put_prefix(case["tokens"], case["prefix"])}


def _image_reward(case: Case) -> dict[str, Any]:
    if "raw" in case:
        raw = _array(case["raw"])
    else:
        layers = [(_array(weight), _array(bias)) for weight, bias in case["layers"]]
        raw = conventions.image_reward_head(_array(case["features"]), layers)
    reward = conventions.standardise_reward(raw)
    return {"raw": raw.tolist(), "reward": reward.tolist(), "mean": float(reward.mean())}


def _hps(case: Case) -> dict[str, Any]:
    each = conventions.cosine(_array(case["image"]), _array(case["text"]))
    return {"each": each.tolist(), "percent": (100 * each).tolist()}


def _pick(case: Case) -> dict[str, Any]:
    scores, probabilities = conventions.pick_scores(
        _array(case["image"]), _array(case["text"]), case["logit_scale"]
    )
    return {"scores": scores.tolist(), "probabilities": probabilities.tolist()}


def _mlperf_window(case: Case) -> dict[str, Any]:
    is_clip, is_fid = conventions.is_inside_mlperf(case["clip"], case["fid"])
    return {"clip": is_clip, "fid": is_fid}


CASES: dict[str, Callable[[Case], dict[str, Any]]] = {
    "captions": _captions,
    "frechet": _frechet,
    "frechet_moments": _frechet_moments,
    "frechet_null": _frechet_null,
    "frechet_influence": _frechet_influence,
    "kid": _kid,
    "kid_subsets": _kid_subsets,
    "kid_jackknife": _kid_jackknife,
    "swap_test": _swap_test,
    "clip": _clip,
    "clip_prefix": _clip_prefix,
    "image_reward": _image_reward,
    "hps": _hps,
    "pick": _pick,
    "paired": _paired,
    "mlperf_window": _mlperf_window,
    "precision_recall": _precision_recall,
}
"""What our code answers to a case, by its kind."""
