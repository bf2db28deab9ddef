"""Measure whole sets of images: distances to a reference, and to plain sampling's own images.

A distance between sets is no mean over prompts, but the mean of its pseudo-values (`distances`): so
whatever pairs, resamples and ranks means of prompts serves it, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from harness.records import STRICT, SetMetric, UserError, dump, parse_row
from harness.results.stats import distances
from harness.results.stats.comparison import ALPHA

DIGITS = 9
"""Significant digits that are kept: sums differ behind them between machines."""
FEWEST_PROMPTS = 3
"""Prompts that are needed to leave pairs of one prompt out, and a picture besides."""
DISTANCES = ("fid", "kid")
"""Distances of a set to reference images: Fréchet's and the kernel's."""
NEIGHBOURHOODS = ("precision", "recall")
"""Shares of images, of the set and of the reference, that lie near some of the other."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What a set of images is compared with: moments, and features [M, D] where there are any.

    `id` names the images and how they were cropped; `count` is None where nobody says how many they
    are. `prompt_ids` say of which prompt each image is, where they are images of the run's prompts.
    """

    id: str
    moments: distances.Moments
    count: int | None
    features_MD: np.ndarray | None = None
    prompt_ids: Sequence[str] | None = None

    @classmethod
    def of_features(
        cls, name: str, features_MD: np.ndarray, prompt_ids: Sequence[str] | None = None
    ) -> Self:
        """Make a reference of the features of images. Raises UserError for less than two."""
        (features_MD,) = distances.check_features(features_MD)
        moments = distances.measure_moments(features_MD)
        return cls(name, moments, len(features_MD), features_MD, prompt_ids)


def measure_sets(
    features_ND: np.ndarray,
    prompt_ids: Sequence[str],
    extractor: str,
    reference: Reference,
    wanted: Sequence[str] = (*DISTANCES, *NEIGHBOURHOODS),
) -> dict[str, SetMetric]:
    """Measure a complete set of images beside a reference.

    Row i of the features is an image of the prompt `prompt_ids[i]`. All but the Fréchet distance
    need the features of the reference, and are left out without them; so are precision and recall
    of fewer images than have neighbours.
    """
    (features_ND,) = distances.check_features(features_ND)
    named: dict[str, Any] = {
        "n": len(features_ND),
        "m": reference.count,
        "extractor": extractor,
        "reference": reference.id,
    }
    found = {}
    if "fid" in wanted:
        found["fid"] = SetMetric(**named, **_measure_frechet(features_ND, prompt_ids, reference))
    if "kid" in wanted and reference.features_MD is not None:
        found["kid"] = SetMetric(**named, **_measure_kernel(features_ND, prompt_ids, reference))
    if set(wanted) & set(NEIGHBOURHOODS) and _have_neighbours(features_ND, reference):
        assert reference.features_MD is not None
        shares = distances.estimate_precision_recall(reference.features_MD, features_ND)
        for name, estimate in zip(NEIGHBOURHOODS, shares, strict=True):
            described = _describe_estimate(estimate, prompt_ids)
            found[name] = SetMetric(**named, **described, unit="share", better="higher")
    return found


def _have_neighbours(features_ND: np.ndarray, reference: Reference) -> bool:
    """Tell whether both sets have images enough for precision and recall."""
    others = 0 if reference.features_MD is None else len(reference.features_MD)
    return min(len(features_ND) - 1, others) > distances.NEIGHBOURS


def _measure_kernel(
    features_ND: np.ndarray, prompt_ids: Sequence[str], reference: Reference
) -> dict[str, Any]:
    """Return the kernel distance and its error; without error where none can be left out.

    Pairs of one prompt are left out where there are enough prompts.
    """
    assert reference.features_MD is not None
    if len(features_ND) < FEWEST_PROMPTS:
        value = distances.kernel_distance(features_ND, reference.features_MD)
        note = f"no interval: it takes {FEWEST_PROMPTS} images or more"
        return {"value": _round(value), "note": note}
    groups: dict[str, np.ndarray] = {}
    if len(set(prompt_ids)) >= FEWEST_PROMPTS:
        groups["group_N"] = np.array(prompt_ids)
        if reference.prompt_ids is not None:
            groups["group_M"] = np.array(reference.prompt_ids)
    estimate = distances.estimate_kernel_distance(features_ND, reference.features_MD, **groups)
    return _describe_estimate(estimate, prompt_ids)


def _measure_frechet(
    features_ND: np.ndarray, prompt_ids: Sequence[str], reference: Reference
) -> dict[str, Any]:
    """Return the Fréchet distance, its error and its bias; without error up to D images."""
    count, dim = features_ND.shape
    own = distances.measure_moments(features_ND)
    bias = None
    if reference.count is not None:
        pooled_DD = (own.covariance + reference.moments.covariance) / 2
        eigenvalue_D = np.linalg.eigvalsh(pooled_DD)
        bias = _round(distances.frechet_of_equals(eigenvalue_D, count, reference.count))
    if count > dim:
        estimate = distances.estimate_frechet(features_ND, reference.moments)
        return {**_describe_estimate(estimate, prompt_ids), "bias": bias}
    if reference.features_MD is None:
        value = distances.frechet_of_moments(reference.moments, own).value
    else:
        value = distances.frechet(features_ND, reference.features_MD).value
    note = f"no interval: {count} images of {dim} features, it takes {dim + 1} or more"
    return {"value": _round(value), "bias": bias, "note": note}


def _describe_estimate(estimate: distances.Estimate, prompt_ids: Sequence[str]) -> dict[str, Any]:
    """Return a distance with the means of its pseudo-values by prompt, and their standard error.

    The images of a prompt depend on each other, so the prompt is the unit of the error.
    """
    by_prompt: dict[str, list[float]] = {}
    for prompt_id, pseudo in zip(prompt_ids, estimate.pseudo_N.tolist(), strict=True):
        by_prompt.setdefault(prompt_id, []).append(pseudo)
    means = {prompt_id: math.fsum(some) / len(some) for prompt_id, some in by_prompt.items()}
    error = None
    note = "no interval: a single prompt"
    if len(means) > 1:
        error = _round(distances.jackknife_error(np.array(list(means.values()))))
        note = ""
    pseudo = {prompt_id: _round(mean) for prompt_id, mean in sorted(means.items())}
    return {"value": _round(estimate.value), "error": error, "note": note, "pseudo": pseudo}


def _round(value: float) -> float:
    """Round to the digits that are kept. Raises UserError for a value that is no number."""
    if not math.isfinite(value):
        raise UserError("a distance that is no finite number: the features are out of range")
    return float(f"{value:.{DIGITS}g}")


# ------------------------------------------------------------------ distance to plain sampling


@dataclass(frozen=True, slots=True)
class PlainDistance:
    """How far a method's images are from plain sampling's, and whether chance explains it.

    `null` is how far another plain run is from the same one. `p` is that of exchanging the images
    of each prompt between the two runs, by the kernel distance; None without independent seeds.
    """

    __pydantic_config__: ClassVar = STRICT

    plain: str
    """Fingerprint of the plain run."""
    other_plain: str
    """That of the other plain run; "" without one."""
    extractor: str
    made_of: Mapping[str, str]
    """Digest of the features of each run, by its fingerprint."""
    n: int
    prompts: int
    value: float
    scale: str = ""
    """Name of the rule by which features were scaled; "" in files of a time without names."""
    null: float | None = None
    p: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Say what was found; never that a method is lossless."""
        if self.p is None:
            return self.note
        if self.value == 0:
            return "identical images"
        if self.p < ALPHA:
            return f"differs (p = {self.p:.2g})"
        return f"no difference found with n = {self.n} (p = {self.p:.2g})"

    def to_json(self) -> str:
        """Write the cache's text."""
        return dump(dataclasses.asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read the cache's text. Raises ValueError that names the field and its value."""
        return parse_row(cls, text)


def needs_scaling(extractor: str) -> bool:
    """Tell whether features are divided by their deviation before they are compared.

    Without it the cubic kernel would see little but the largest ones. Inception's and CLIP's are
    compared as they are, as papers do.
    """
    return not extractor.startswith(("inception", "clip"))


def name_scale(extractor: str) -> str:
    """Name the rule by which features of an extractor are scaled for a `PlainDistance`.

    Distances by other rules are not put side by side: a change of `check_plain` needs a new name.
    """
    if not needs_scaling(extractor):
        return "none"
    return "deviation over the plain runs; for the test over its own two runs"


def scale_features(
    sets_ND: Sequence[np.ndarray], by: Sequence[np.ndarray] | None = None
) -> list[np.ndarray]:
    """Divide features by their deviation over the sets `by` (None: over all that are given).

    Features that do not vary there are left out.
    """
    deviation_D = np.concatenate(sets_ND if by is None else by).std(0)
    varies_D = deviation_D > 0
    return [features_ND[:, varies_D] / deviation_D[varies_D] for features_ND in sets_ND]


def check_plain(
    method_ND: np.ndarray,
    plain_ND: np.ndarray,
    other_plain_ND: np.ndarray | None,
    group_N: np.ndarray,
    *,
    are_independent: bool,
    scale_by: Sequence[np.ndarray] | None = None,
) -> dict[str, Any]:
    """Return `value`, `null`, `p` and `note` of a `PlainDistance`.

    Row i of all sets is of one image of one prompt; `group_N` numbers the prompts. Distances are of
    features scaled by the sets `scale_by` (None: as they are), such as the plain runs of a board,
    so that they can be put side by side. The test is of features scaled by its own two runs: an
    exchange must not change the scale.
    """
    found: dict[str, Any] = {"value": 0.0, "null": None, "p": None, "note": ""}
    tested = [method_ND, plain_ND]
    if scale_by is not None:
        tested = scale_features(tested)
        method_ND, plain_ND = scale_features([method_ND, plain_ND], by=scale_by)
        if other_plain_ND is not None:
            (other_plain_ND,) = scale_features([other_plain_ND], by=scale_by)
    if other_plain_ND is not None:
        found["null"] = _round(distances.frechet(other_plain_ND, plain_ND).value)
    if np.array_equal(method_ND, plain_ND):
        return {**found, "p": 1.0}
    found["value"] = _round(distances.frechet(method_ND, plain_ND).value)
    if not are_independent:
        note = "no test: of the same seed, and images of common noise are not independent"
        return {**found, "note": note}
    found["p"] = _round(distances.swap_test(*tested, group_N=group_N).p)
    return found
