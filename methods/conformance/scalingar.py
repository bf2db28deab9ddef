"""Runs a ScalingAR conformance file: logits of every step in, signals, guidance, terminations and
winner out.

The logits go through the probe, the group and the decisions that the method itself runs with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
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
from methods.scalingar.group import Group
from methods.scalingar.profile import PROBES
from methods.scalingar.settings import Settings

TOLERANCE = 1e-5
"""Of expected numbers, times the larger of 1 and their size."""

NOT_COMPARED = -2
"""Flag step of a candidate that is no longer alive, or of a step at which nothing was decided."""


def conformance(path: Path | str) -> tuple[int, int, list[str]]:
    """Passed, failed, and one message per failed case. Raises UserError naming the line of a case
    that is malformed.
    """
    path = Path(path)
    failures = []
    cases = list(_cases(path))
    for number, case in cases:
        try:
            failures += [
                f"{case['id']} ({case['name']}): {text}"
                for text in islice(_differences(case, path.parent), 1)
            ]
        except (
            UserError,
            KeyError,
            ValueError,
            TypeError,
            IndexError,
            RuntimeError,
            OSError,
        ) as error:
            raise UserError(f"{path}, line {number}: not a conformance case: {error!r}") from None
    return len(cases) - len(failures), len(failures), failures


def _cases(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
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
    """Our settings from the file's names."""
    o = options
    return Settings(
        Channel(o["channel_token"], o["channel_block"], o["channel_cond"]),
        Policy(o["policy_termination"], o["policy_scheduler"]),
        ProfileSettings(
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
        TerminationSettings(o["p"], o["lambda_theta"], o["W0"], o["min_alive"]),
        RecoverySettings(
            o["recovery_enabled"],
            o["recovery_mode"],
            o["rebound_ref"],
            o["delta_steps"],
            o["delta_rec"],
        ),
        SchedulerSettings(o["scheduler_form"], o["alpha"], o["beta"], o["gamma"], o["W_var"]),
    )


def _differences(case: Mapping[str, Any], folder: Path) -> Iterator[str]:
    with np.load(folder / case["inputs"]) as arrays:
        inputs = {
            name.split(".", 1)[1]: arrays[name]
            for name in arrays.files
            if name.startswith(f"{case['id']}.")
        }
    group, flag_TN = _replay(case, inputs["cond"], inputs["uncond"])
    profile = group.profile
    expected = case["expected"]
    tokens = np.isfinite(group.scale_TN).sum()
    yield from _unequal("terminated_at", group.terminated_at, expected["terminated_at"])
    yield from _unequal("winner", group.winner(), expected["winner"])
    yield from _unequal("tokens", int(tokens), expected["tokens"])
    yield from _unequal("pruned", case["N"] - group.terminated_at.count(None), expected["pruned"])
    yield from _unequal("scale_clamped", group.clamped, expected["scale_clamped"])
    yield from _unequal("protected", group.termination.protected, expected["protected"])
    yield from _unequal("flags_cleared", group.termination.recovered, expected["flags_cleared"])
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
        yield from _far(name, got_TN, inputs[name])
    theta = np.array([np.nan if value is None else value for value in expected["theta"]])
    yield from _far("theta", group.threshold_T[:, None], theta[:, None])
    flags = np.where(inputs["flag_step"] == NOT_COMPARED, np.nan, inputs["flag_step"])
    yield from _far("flag_step", flag_TN, flags)


def _replay(
    case: Mapping[str, Any], cond_TNV: np.ndarray, uncond_TNV: np.ndarray
) -> tuple[Group, np.ndarray]:
    """The group after all steps, and the flags after each."""
    options = case["options"]
    group = Group(settings_of(options), case["N"], (case["h"], case["w"]), options["s_base"])
    probe = PROBES[options["entropy_source"]]
    flag_TN = np.full(cond_TNV.shape[:2], np.nan)
    for t, (cond_NV, uncond_NV) in enumerate(zip(cond_TNV, uncond_TNV, strict=True)):
        logits_RKTV = torch.from_numpy(
            np.stack((uncond_NV, cond_NV), 1)[group.live, :, None].astype(np.float32)
        )
        signals = probe(logits_RKTV, partial(logits_RKTV[:, 1].softmax, -1))
        group.observe(
            [
                dict(zip(signals, row, strict=True))
                for row in torch.stack(list(signals.values()), 1).tolist()
            ]
        )
        group.terminate()
        flag_TN[t] = group.termination.flag_N
    return group, flag_TN


def _unequal(what: str, got: object, expected: object) -> Iterator[str]:
    if got != expected:
        yield f"{what}: expected {expected}, got {got}"


def _far(what: str, got_TN: np.ndarray, expected_TN: np.ndarray) -> Iterator[str]:
    """The first number off by more than the tolerance; an expected NaN is not compared."""
    far_TN = ~(np.abs(got_TN - expected_TN) <= TOLERANCE * np.maximum(1, np.abs(expected_TN)))
    for step, candidate in np.argwhere(far_TN & ~np.isnan(expected_TN)):
        expected = expected_TN[step, candidate]
        got = got_TN[step, candidate]
        yield f"{what}, step {step}, candidate {candidate}: expected {expected:.10g}, got {got:.10g}"
