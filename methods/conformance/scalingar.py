"""Runs a conformance file for ScalingAR through the functions that the method runs with.

Inputs are the logits of every step; results are signals, guidance scales, terminations and the
winner. Shapes: T steps, N candidates, R live candidates, K = 2 branches, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import UserError
from methods.scalingar import (
    Channel,
    Policy,
    ProfileSettings,
    RecoverySettings,
    SchedulerSettings,
    TerminationSettings,
)
from methods.scalingar.group import CandidateGroup
from methods.scalingar.profile import PROBES
from methods.scalingar.settings import Settings

TOLERANCE = 1e-5
"""Of expected numbers, times the larger of 1 and their size."""

NOT_COMPARED = -2
"""Flag step of a candidate that is no longer alive, or of a step at which nothing was decided."""

MALFORMED = (UserError, KeyError, ValueError, TypeError, IndexError, RuntimeError, OSError)
"""What a case raises if it does not have the form of a case."""


def conformance(path: Path | str) -> tuple[int, int, list[str]]:
    """Run a file; return the numbers of passed and failed cases, and a message per failed case.

    Raises UserError that names the line of a malformed case.
    """
    path = Path(path)
    failures = []
    cases = list(_read_cases(path))
    for number, case in cases:
        try:
            first = next(_differences(case, path.parent), None)
            if first is not None:
                failures.append(f"{case['id']} ({case['name']}): {first}")
        except MALFORMED as error:
            raise UserError(f"{path}, line {number}: not a conformance case: {error!r}") from None
    return len(cases) - len(failures), len(failures), failures


def _read_cases(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the cases of a file with their line numbers."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    for number, line in enumerate(lines, start=1):
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error})") from None


def settings_of(options: Mapping[str, Any]) -> Settings:
    """Make our settings of a case's options."""
    o = options
    return Settings(
        channel=Channel(o["channel_token"], o["channel_block"], o["channel_cond"]),
        policy=Policy(o["policy_termination"], o["policy_scheduler"]),
        profile=ProfileSettings(
            entropy_weight=o["alpha_H"],
            margin_weight=o["alpha_M"],
            token_smoothing=o["lambda_tok"],
            token_weight=o["w_tok"],
            block_weight=o["w_blk"],
            block_side=o["b"],
            worst_share=o["q"],
            intrinsic_smoothing=o["lambda_I"],
            intrinsic_weight=o["w_I"],
            cond_weight=o["w_D"],
            rolling_steps=o["W_roll"],
            low_percentile=o["pct_lo"],
            high_percentile=o["pct_hi"],
            epsilon=o["eps"],
        ),
        termination=TerminationSettings(
            quantile=o["p"],
            smoothing=o["lambda_theta"],
            warmup_share=o["W0"],
            min_alive=o["min_alive"],
        ),
        recovery=RecoverySettings(
            enabled=o["recovery_enabled"],
            mode=o["recovery_mode"],
            reference=o["rebound_ref"],
            window_steps=o["delta_steps"],
            rebound=o["delta_rec"],
        ),
        scheduler=SchedulerSettings(
            form=o["scheduler_form"],
            drift=o["alpha"],
            volatility=o["beta"],
            rebound=o["gamma"],
            variance_steps=o["W_var"],
        ),
    )


# ------------------------------------------------------------------ a case


def _differences(case: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Replay a case, and report what differs from its expectations."""
    arrays = _load_arrays(folder / case["inputs"], case["id"])
    group, flag_TN = _replay(case, arrays["cond"], arrays["uncond"])
    expected = case["expected"]
    yield from _compare_decisions(group, case["N"], expected)
    yield from _compare_series(group, arrays)

    theta_T = np.array([np.nan if value is None else value for value in expected["theta"]])
    yield from _far("theta", group.threshold_T[:, None], theta_T[:, None])
    flags_TN = np.where(arrays["flag_step"] == NOT_COMPARED, np.nan, arrays["flag_step"])
    yield from _far("flag_step", flag_TN, flags_TN)


def _load_arrays(path: Path, case_id: str) -> dict[str, np.ndarray]:
    """Load the arrays of a case, by the part of their names after the case's id."""
    prefix = f"{case_id}."
    with np.load(path) as arrays:
        names = [name for name in arrays.files if name.startswith(prefix)]
        return {name.split(".", 1)[1]: arrays[name] for name in names}


def _replay(
    case: Mapping[str, Any], cond_TNV: np.ndarray, uncond_TNV: np.ndarray
) -> tuple[CandidateGroup, np.ndarray]:
    """Return the group after all steps, and the flags after each of them."""
    options = case["options"]
    grid = (case["h"], case["w"])
    group = CandidateGroup(settings_of(options), case["N"], grid, options["s_base"])
    probe = PROBES[options["entropy_source"]]
    flag_TN = np.full(cond_TNV.shape[:2], np.nan)
    for t, (cond_NV, uncond_NV) in enumerate(zip(cond_TNV, uncond_TNV, strict=True)):
        logits_NKTV = np.stack((uncond_NV, cond_NV), 1)[:, :, None]
        logits_RKTV = torch.from_numpy(logits_NKTV[group.live].astype(np.float32))
        signals = probe(logits_RKTV, partial(logits_RKTV[:, 1].softmax, -1))
        group.observe(_rows(signals))
        group.terminate()
        flag_TN[t] = group.termination.flag_N
    return group, flag_TN


def _rows(signals: Mapping[str, torch.Tensor]) -> list[dict[str, float]]:
    """Turn signals [R] by name into one row per candidate."""
    columns = torch.stack(list(signals.values()), 1)
    return [dict(zip(signals, row, strict=True)) for row in columns.tolist()]


# ------------------------------------------------------------------ comparison


def _compare_decisions(group: CandidateGroup, n: int, expected: Mapping[str, Any]) -> Iterator[str]:
    pruned = n - group.terminated_at.count(None)
    tokens = int(np.isfinite(group.scale_TN).sum())
    yield from _unequal("terminated_at", group.terminated_at, expected["terminated_at"])
    yield from _unequal("winner", group.winner(), expected["winner"])
    yield from _unequal("tokens", tokens, expected["tokens"])
    yield from _unequal("pruned", pruned, expected["pruned"])
    yield from _unequal("scale_clamped", group.clamped, expected["scale_clamped"])
    yield from _unequal("protected", group.termination.protected, expected["protected"])
    yield from _unequal("flags_cleared", group.termination.recovered, expected["flags_cleared"])


def _compare_series(group: CandidateGroup, expected: Mapping[str, np.ndarray]) -> Iterator[str]:
    profile = group.profile
    series = {
        "Hn": profile.entropy,
        "m": profile.margin,
        "s_tok": profile.token,
        "e": profile.trouble,
        "B": profile.stability,
        "I": profile.intrinsic,
        "K": profile.kl,
        "D": profile.influence,
        "C": profile.confidence,
        "R": profile.rebound,
        "var_I": group.variance_TN,
        "scale": group.scale_TN,
    }
    for name, got_TN in series.items():
        yield from _far(name, got_TN, expected[name])


def _unequal(what: str, got: object, expected: object) -> Iterator[str]:
    if got != expected:
        yield f"{what}: expected {expected}, got {got}"


def _far(what: str, got_TN: np.ndarray, expected_TN: np.ndarray) -> Iterator[str]:
    """Report numbers off by more than the tolerance; an expected NaN is not compared."""
    tolerance_TN = TOLERANCE * np.maximum(1, np.abs(expected_TN))
    far_TN = ~(np.abs(got_TN - expected_TN) <= tolerance_TN) & ~np.isnan(expected_TN)
    for step, candidate in np.argwhere(far_TN):
        where = f"{what}, step {step}, candidate {candidate}"
        expected = expected_TN[step, candidate]
        got = got_TN[step, candidate]
        yield f"{where}: expected {expected:.10g}, got {got:.10g}"
