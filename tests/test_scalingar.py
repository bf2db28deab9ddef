"""ScalingAR: worked values, an independent reference, and the laws of pruning and guidance."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from toy import DEVICES, TEXTS, ToyModel, draw, jobs

from harness.drafters.jacobi import Jacobi
from harness.engine.canvas import Canvas
from harness.engine.guidance import Sampling, cfg
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.engine.session import Session
from harness.records import TIMES, UserError
from harness.runs.instantiate import build_object
from methods.conformance.scalingar import conformance, settings_of
from methods.plain import Plain
from methods.scalingar import (
    Channel,
    Policy,
    ProfileSettings,
    RecoverySettings,
    ScalingAR,
    SchedulerSettings,
    TerminationSettings,
)
from methods.scalingar.group import CandidateGroup
from methods.scalingar.policy import Termination, guidance_scales
from methods.scalingar.profile import (
    Observation,
    probe_conditional,
    probe_guided,
    quantile,
    rebound,
    smooth,
)
from methods.scalingar.settings import PAPER
from methods.scalingar.trace import read_trace

SHARED = Path(__file__).parents[2] / "shared" / "data" / "methods" / "scalingar.jsonl"
needs_shared = pytest.mark.skipif(
    not SHARED.is_file(), reason="the conformance files are not beside the repository"
)
CONF = Path(__file__).parent.parent / "conf" / "method"
MODES = ["window_end", "window_any", "alg1_immediate"]
SHORT = RecoverySettings(window_steps=3)  # for the toy's 16 tokens
OFF = Policy(termination=False, scheduler=False)


# ------------------------------------------------------------------ an independent reference

PAPER_OPTIONS: dict[str, Any] = {
    "alpha_H": 0.5,
    "alpha_M": 0.5,
    "lambda_tok": 0.2,
    "lambda_I": 0.2,
    "w_tok": 0.65,
    "w_blk": 0.35,
    "b": 4,
    "q": 0.1,
    "w_I": 0.75,
    "w_D": 0.25,
    "p": 0.2,
    "lambda_theta": 0.2,
    "W0": 0.125,
    "delta_steps": 32,
    "delta_rec": 0.05,
    "alpha": 0.3,
    "beta": 0.4,
    "gamma": 0.4,
    "W_roll": 64,
    "W_var": 32,
    "pct_lo": 5,
    "pct_hi": 95,
    "eps": 1e-6,
    "min_alive": 1,
    "recovery_mode": "window_end",
    "rebound_ref": "since_flag",
    "recovery_enabled": True,
    "channel_token": True,
    "channel_block": True,
    "channel_cond": True,
    "policy_termination": True,
    "policy_scheduler": True,
    "scheduler_form": "additive",
}


class Reference:
    """The specification's equations for one prompt, a candidate at a time, in its own symbols.

    No arithmetic is shared with the method.
    """

    def __init__(self, n: int, h: int, w: int, s_base: float, **options: Any) -> None:
        self.o = SimpleNamespace(**{**PAPER_OPTIONS, **options})
        self.n = n
        self.h = h
        self.w = w
        self.s_base = s_base
        self.t = 0
        self.rows: list[dict[int, dict[str, float]]] = []  # per step: live candidate -> its signals
        self.live = list(range(n))
        self.terminated_at: list[int | None] = [None] * n
        self.flag: dict[int, int] = {}
        self.low: dict[int, float] = {}
        self.theta: float | None = None

    def history(self, i: int, name: str, window: int | None = None) -> list[float]:
        """A candidate's values of the last `window` steps, or of all."""
        values = [row[i][name] for row in self.rows if i in row]
        return values if window is None else values[-window:]

    def pool(self, name: str) -> list[float]:
        """The last values of all live candidates."""
        values = []
        for i in self.live:
            values += self.history(i, name, self.o.W_roll)
        return values

    def average(self, i: int, name: str, weight: float, value: float) -> float:
        """The exponential moving average of `name` with its new value."""
        before = [row[i][name] for row in self.rows[:-1]]
        return value if not before else (1 - weight) * before[-1] + weight * value

    def observe(
        self, cond: dict[int, np.ndarray], uncond: dict[int, np.ndarray]
    ) -> dict[int, float]:
        """Take in the logits of a step, and return the guidance scales of the live candidates."""
        self.rows.append({i: {} for i in self.live})
        now = self.rows[-1]
        for i in self.live:
            self.read_logits(i, now[i], cond[i], uncond[i])
        e = self.pool("e")
        K = self.pool("K")
        for i in self.live:
            self.unify(i, now[i], e, K)
            now[i]["scale"] = self.scale(i, now[i])
        return {i: now[i]["scale"] for i in self.live}

    def read_logits(
        self, i: int, row: dict[str, float], cond: np.ndarray, uncond: np.ndarray
    ) -> None:
        """Signals that depend on one candidate alone."""
        o = self.o
        p = np.exp(cond - cond.max()) / np.exp(cond - cond.max()).sum()
        p_u = np.exp(uncond - uncond.max()) / np.exp(uncond - uncond.max()).sum()
        row["Hn"] = -sum(v * math.log(v) for v in p if v > 0) / math.log(len(p))
        row["m"] = sorted(p)[-1] - sorted(p)[-2]
        row["K"] = sum(a * math.log(a / b) for a, b in zip(p, p_u, strict=True))
        u = o.alpha_H * row["Hn"] + o.alpha_M * (1 - row["m"])
        row["s_tok"] = self.average(i, "s_tok", o.lambda_tok, 1 - u)
        row["e"] = self.worst_blocks(i)

    def worst_blocks(self, i: int) -> float:
        """Mean entropy of the worst blocks begun (Eq. 6)."""
        begun: dict[tuple[int, int], list[float]] = {}
        for place, entropy in enumerate(self.history(i, "Hn")):
            row, column = divmod(place, self.w)
            block = (row // self.o.b, column // self.o.b)
            begun.setdefault(block, []).append(entropy)
        means = sorted((sum(block) / len(block) for block in begun.values()), reverse=True)
        count = max(1, math.ceil(self.o.q * len(means)))
        return float(np.mean(means[:count]))

    def unify(self, i: int, row: dict[str, float], e: list[float], K: list[float]) -> None:
        """Normalise within the group's pools, and unify (Eq. 6 to 8)."""
        o = self.o
        lo, hi = np.percentile(e, [o.pct_lo, o.pct_hi])
        row["B"] = 0.5
        if len(e) >= 2 and hi - lo >= 1e-6:
            row["B"] = 1 - min(1.0, max(0.0, (row["e"] - lo) / (hi - lo)))

        sigma = np.std(K)
        row["D"] = 0.5
        if len(K) >= 2 and sigma >= 1e-6 and o.channel_cond:
            z = min(10, max(-10, (row["K"] - np.mean(K)) / (sigma + o.eps)))
            row["D"] = 1 / (1 + math.exp(-z))

        w_tok, w_blk = self.intrinsic_weights()
        row["I"] = self.average(i, "I", o.lambda_I, w_tok * row["s_tok"] + w_blk * row["B"])
        row["C"] = o.w_I * row["I"] + o.w_D * row["D"] if o.channel_cond else row["I"]
        lowest = min(self.history(i, "C"))
        row["R"] = (row["C"] - lowest) / (abs(lowest) + o.eps)
        row["var_I"] = float(np.var(self.history(i, "I", o.W_var)))

    def intrinsic_weights(self) -> tuple[float, float]:
        if not self.o.channel_token:
            return 0, 1
        if not self.o.channel_block:
            return 1, 0
        return self.o.w_tok, self.o.w_blk

    def scale(self, i: int, row: dict[str, float]) -> float:
        """Guidance scale (Eq. 10)."""
        o = self.o
        if not o.policy_scheduler:
            return self.s_base
        alpha = o.alpha if o.channel_cond else 0
        correction = alpha * (1 - row["D"]) + o.beta * row["var_I"] - o.gamma * row["R"]
        wanted = self.s_base + correction
        if o.scheduler_form == "relative":
            wanted = self.s_base * (1 + correction)
        return min(2 * self.s_base, max(1.0, wanted))

    def terminate(self) -> list[int]:
        """End candidates after a step (Alg. 1, lines 15 to 18)."""
        o = self.o
        t = self.t
        row = self.rows[-1]
        self.t += 1
        if not o.policy_termination or t < math.ceil(o.W0 * self.h * self.w) or len(self.live) == 1:
            return []
        level = float(np.quantile([row[i]["C"] for i in self.live], o.p))
        if self.theta is None:
            self.theta = level
        else:
            self.theta = (1 - o.lambda_theta) * self.theta + o.lambda_theta * level

        doomed = []
        for i in self.live:
            if self.has_to_go(i, t, row[i]["C"], row[i]["R"], self.theta):
                doomed.append(i)
        while doomed and len(self.live) - len(doomed) < o.min_alive:
            spared = max(doomed, key=lambda i: (row[i]["C"], -i))
            doomed.remove(spared)
            self.flag.pop(spared, None)
        for i in doomed:
            self.terminated_at[i] = t
            self.live.remove(i)
        return doomed

    def has_to_go(self, i: int, t: int, c: float, r: float, theta: float) -> bool:
        """Whether a candidate is below the threshold and may not recover any more."""
        o = self.o
        if not o.recovery_enabled:
            return c < theta
        if o.recovery_mode == "alg1_immediate":
            self.low[i] = min(self.low.get(i, c), c)
        elif i not in self.flag and c < theta:
            self.flag[i] = t
            self.low[i] = c
        elif i in self.flag:
            self.low[i] = min(self.low[i], c)
        low = self.low.get(i, c)
        rise = r if o.rebound_ref == "running_min" else (c - low) / (abs(low) + o.eps)
        if o.recovery_mode == "alg1_immediate":
            return c < theta and rise < o.delta_rec
        if i not in self.flag:
            return False

        over = t - self.flag[i] >= o.delta_steps
        if o.recovery_mode == "window_any":
            recovered = rise >= o.delta_rec
        else:
            recovered = over and c >= theta and rise >= o.delta_rec
        if recovered:
            del self.flag[i]
        return over and not recovered

    def winner(self) -> int:
        return max(self.live, key=lambda i: (self.rows[-1][i]["C"], -i))


OURS = {
    "Hn": "entropy",
    "m": "margin",
    "K": "kl",
    "s_tok": "token",
    "e": "trouble",
    "B": "stability",
    "I": "intrinsic",
    "D": "influence",
    "C": "confidence",
    "R": "rebound",
}
"""The profile's series by the specification's symbols."""


def ours(n: int, h: int, w: int, s_base: float, **options: Any) -> CandidateGroup:
    return CandidateGroup(settings_of({**PAPER_OPTIONS, **options}), n, (h, w), s_base)


def no_probs() -> torch.Tensor:
    raise AssertionError("the text branch's own distribution is enough")


def signals(cond_NV: np.ndarray, uncond_NV: np.ndarray) -> list[dict[str, float]]:
    """What the sampler's `look` would answer."""
    logits_NKTV = torch.from_numpy(np.stack((uncond_NV, cond_NV), 1))[:, :, None]
    named = probe_conditional(logits_NKTV, no_probs)
    rows = torch.stack(list(named.values()), 1).tolist()
    return [dict(zip(named, row, strict=True)) for row in rows]


def random_logits(n: int, steps: int, seed: int, vocab: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Logits [steps, n, vocab] of text and null branch; step 0 is common to all candidates.

    Difficulty and obedience of the candidates drift, so that their signals rise and fall.
    """
    rng = np.random.default_rng(seed)
    drift = np.cumsum(rng.normal(0, 0.35, (2, steps, n)), 1)
    sharp, obey = np.exp(np.clip(drift, -1.5, 1.5))[..., None]
    uncond = rng.normal(0, 1.5, (steps, n, vocab)) * sharp
    cond = uncond + rng.normal(0, 0.7, (steps, n, vocab)) * obey
    uncond[0] = uncond[0, :1]
    cond[0] = cond[0, :1]
    return cond, uncond


def expect_agreement(group: CandidateGroup, reference: Reference, t: int) -> None:
    """Assert that all signals, scales and flags of step t are equal."""
    assert group.live.tolist() == reference.live
    for i, row in reference.rows[t].items():
        for symbol, name in OURS.items():
            got = getattr(group.profile, name)[t, i]
            assert got == pytest.approx(row[symbol], abs=1e-9), (t, i, name)
        assert group.variance_TN[t, i] == pytest.approx(row["var_I"], abs=1e-9)
        assert group.scale_TN[t, i] == pytest.approx(row["scale"], abs=1e-9)
    for i in reference.live:
        assert group.termination.flag_N[i] == reference.flag.get(i, -1)


def replay(n: int, h: int, w: int, seed: int, **options: Any) -> tuple[CandidateGroup, Reference]:
    """Run ours and the reference over the same logits, comparing them after every step."""
    cond, uncond = random_logits(n, h * w, seed)
    group = ours(n, h, w, 7.5, **options)
    reference = Reference(n, h, w, 7.5, **options)
    for t in range(h * w):
        live = list(reference.live)
        scales = group.observe(signals(cond[t, live], uncond[t, live]))
        wanted = reference.observe(dict(enumerate(cond[t])), dict(enumerate(uncond[t])))
        assert scales == pytest.approx(list(wanted.values()), abs=1e-9)
        assert sorted(group.terminate()) == sorted(reference.terminate())
        if reference.theta is not None and not math.isnan(group.threshold_T[t]):
            assert group.threshold_T[t] == pytest.approx(reference.theta, abs=1e-9)
        expect_agreement(group, reference, t)
    assert group.terminated_at == reference.terminated_at
    assert group.winner() == reference.winner()
    return group, reference


@pytest.mark.parametrize("reference", ["since_flag", "running_min"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n", "h", "w"), [(1, 4, 4), (2, 6, 6), (5, 5, 7), (8, 8, 6)])
def test_profile_and_policy_agree_with_the_reference_step_by_step(
    n: int, h: int, w: int, mode: str, reference: str
) -> None:
    options = {
        "recovery_mode": mode,
        "rebound_ref": reference,
        "delta_steps": 3,
        "W_roll": 10,
        "W_var": 6,
    }
    group, _ = replay(n, h, w, seed=n, **options)
    if n == 8 and reference == "since_flag":
        assert len(group.live) < 8, "nothing was terminated: the comparison shows little"


SWITCHES: list[dict[str, Any]] = [
    {"channel_token": False},
    {"channel_block": False},
    {"channel_cond": False},
    {"channel_cond": False, "policy_scheduler": False},
    {"policy_termination": False},
    {"policy_scheduler": False},
    {"recovery_enabled": False},
    {"scheduler_form": "relative"},
    {"scheduler_form": "relative", "gamma": 3.0},
    {"min_alive": 3, "recovery_mode": "alg1_immediate"},
    {"min_alive": 3, "recovery_mode": "window_any", "delta_rec": 0.5},
    {"b": 2, "q": 0.3, "pct_lo": 20, "pct_hi": 60},
]


@pytest.mark.parametrize(
    "switch", SWITCHES, ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items())
)
def test_every_switch_agrees_with_the_reference_and_changes_something(
    switch: dict[str, Any],
) -> None:
    short = {"delta_steps": 3, "W_roll": 10, "W_var": 6}
    group, _ = replay(6, 6, 6, 1, **short, **switch)
    full, _ = replay(6, 6, 6, 1, **short)
    same_ends = group.terminated_at == full.terminated_at
    same_scales = np.array_equal(group.scale_TN, full.scale_TN, equal_nan=True)
    assert not (same_ends and same_scales)


# ------------------------------------------------------------------ worked values


def test_worked_signals() -> None:
    pi = np.array([[0.5, 0.25, 0.125, 0.125]])
    (seen,) = signals(np.log(pi), np.zeros((1, 4)))
    assert seen["entropy"] * math.log(4) == pytest.approx(1.21301, abs=1e-5)
    assert (seen["entropy"], seen["margin"]) == pytest.approx((0.875, 0.25))
    group = ours(1, 4, 4, 7.5)
    group.observe([seen])
    assert group.profile.token[0, 0] == pytest.approx(0.1875)
    assert smooth(np.array([0.1875]), np.array([0.6]), 0.2) == pytest.approx(0.27)


def test_worked_threshold() -> None:
    confidence = np.array([0.7, 0.2, 0.5, 0.6, 0.4])
    assert quantile(confidence, 0.2) == pytest.approx(0.36)
    stage = Termination(TerminationSettings(warmup_share=0), RecoverySettings(), 5, 16, 1e-6)
    for shift in (0.0, 0.05):
        seen = Observation(
            t=0,
            live=np.arange(5),
            confidence_R=confidence + shift,
            rebound_R=np.zeros(5),
            unclear_R=np.zeros(5, bool),
        )
        stage.update(seen)
    assert stage.threshold == pytest.approx(0.8 * 0.36 + 0.2 * 0.41)
    assert stage.threshold == pytest.approx(0.37)


def test_worked_rebound_and_guidance() -> None:
    assert rebound(np.array(0.33), np.array(0.30), 1e-6) == pytest.approx(0.1, abs=1e-5)
    scale, clamped = guidance_scales(
        SchedulerSettings(),
        base=7.5,
        drift_R=np.array([1 - 0.4]),
        variance_R=np.array([0.01]),
        rebound_R=np.array([0.1]),
    )
    assert scale == pytest.approx(7.644)
    assert not clamped.any()


@pytest.mark.parametrize(
    ("logits", "trust"), [(np.zeros(8), 0.0), (np.r_[1000.0, np.zeros(7)], 1.0)]
)
def test_uniform_probs_are_trusted_not_at_all_and_one_hot_ones_fully(
    logits: np.ndarray, trust: float
) -> None:
    (seen,) = signals(logits[None], logits[None])
    assert (seen["entropy"], seen["margin"], seen["kl"]) == pytest.approx((1 - trust, trust, 0.0))
    group = ours(1, 4, 4, 7.5)
    group.observe([seen])
    assert group.profile.token[0, 0] == pytest.approx(trust)


def test_equal_branches_have_no_divergence_and_no_use_for_a_scale() -> None:
    logits = torch.randn(3, 1, 1, 16, generator=torch.Generator().manual_seed(0))
    logits = logits.expand(-1, 2, -1, -1)
    weak = torch.full((3,), 1.5)
    strong = torch.full((3,), 9.0)
    assert probe_conditional(logits, no_probs)["kl"].abs().max() == 0
    assert torch.equal(cfg(logits, weak), cfg(logits, strong))


def test_masked_ids_count_nowhere() -> None:
    logits = torch.randn(2, 2, 1, 10, generator=torch.Generator().manual_seed(0))
    masked = torch.cat((logits, torch.full((2, 2, 1, 5), -torch.inf)), -1)
    seen = probe_conditional(masked, no_probs)
    for name, value in probe_conditional(logits, no_probs).items():
        assert torch.allclose(seen[name], value)


def test_step_zero_is_neutral() -> None:
    cond, uncond = random_logits(4, 1, 0)
    group = ours(4, 4, 4, 5.0)
    scales = group.observe(signals(cond[0], uncond[0]))
    assert set(group.profile.stability[0]) == set(group.profile.influence[0]) == {0.5}
    assert set(scales) == {5.0 + 0.3 * 0.5}


def test_a_signal_that_is_no_number_is_neutral_counted_and_no_reason_to_end() -> None:
    cond, uncond = random_logits(4, 36, 3)
    group = ours(4, 6, 6, 5.0, recovery_mode="alg1_immediate", delta_rec=9.0)
    for t in range(36):
        seen = signals(cond[t, group.live], uncond[t, group.live])
        sick = list(group.live).index(2)
        seen[sick] = {"entropy": math.nan, "margin": 0.1, "kl": math.inf}
        assert np.isfinite(group.observe(seen)).all()
        group.terminate()
        assert 2 in group.live
    assert group.profile.unclear == 36
    assert set(group.profile.influence[:, 2]) == set(group.profile.stability[:, 2]) == {0.5}


# ------------------------------------------------------------------ on the sampler


class Opening:
    """A session that keeps the canvases it opens; all else is done by the real one."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.canvases: list[Canvas] = []

    def open(self, n: int = 1) -> list[Canvas]:
        self.canvases = self.session.open(n)
        return self.canvases

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


class Watched(ScalingAR):
    """Keeps every canvas of every prompt, ended ones included."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.opened: dict[str, list[Canvas]] = {}

    async def generate(self, prompt: str, s: Session) -> Canvas:
        opening = Opening(s)
        chosen = await super().generate(prompt, cast(Session, opening))
        self.opened[prompt] = opening.canvases
        return chosen


Deliveries = dict[tuple[str, int], Delivery]


def drawn(method: ScalingAR, **options: Any) -> Deliveries:
    return draw(method, jobs(TEXTS), slots=4 * method.rows, **options)


def test_one_candidate_without_policies_is_plain() -> None:
    plain = draw(Plain(), jobs(TEXTS))
    for key, delivery in drawn(ScalingAR(1, policy=OFF)).items():
        assert delivery.tokens == plain[key].tokens
        for name in ("sampled", "discarded", "target_passes", "target_positions", "text_positions"):
            assert getattr(delivery.usage, name) == getattr(plain[key].usage, name)


@pytest.mark.parametrize(
    "method", [ScalingAR(4), ScalingAR(4, policy=OFF), ScalingAR(4, channel=Channel(cond=False))]
)
def test_without_guidance_it_is_refused_where_two_branches_are_needed(method: ScalingAR) -> None:
    model = ToyModel()
    sampler = Sampler(model, Sampling(scale=1.0), slots=8)
    with pytest.raises(UserError, match="the method needs it"):
        Scheduler(method, sampler, seed=0)
    assert model.forwards == 0


def test_the_intrinsic_channel_alone_needs_no_guidance() -> None:
    unguided = Sampling(scale=1.0)
    intrinsic = ScalingAR(1, channel=Channel(cond=False), policy=OFF)
    plain = draw(Plain(), jobs(TEXTS), sampling=unguided)
    for key, delivery in drawn(intrinsic, sampling=unguided).items():
        assert delivery.tokens == plain[key].tokens


@pytest.mark.parametrize("mode", MODES)
def test_pruning_a_candidate_changes_no_tokens_of_the_others(mode: str) -> None:
    """This holds at a fixed guidance scale: the scheduler's statistics are those of the group."""
    recovery = replace(SHORT, mode=mode, rebound=0.3)
    method = Watched(6, recovery=recovery, policy=Policy(scheduler=False))
    unpruned = Watched(6, policy=OFF)
    deliveries = drawn(method)
    drawn(unpruned)
    ended = 0
    for delivery in deliveries.values():
        text = delivery.job.prompt.text
        canvases = method.opened[text]
        for pruned, whole in zip(canvases, unpruned.opened[text], strict=True):
            assert pruned.tokens == whole.tokens[: pruned.length]
            ended += pruned.length < 16
        chosen = cast(int, delivery.notes["chosen"])
        assert delivery.tokens == canvases[chosen].tokens
    assert ended > 0


@pytest.mark.parametrize("mode", MODES)
def test_tokens_sampled_are_the_steps_that_candidates_lived(mode: str) -> None:
    n = 6
    steps = 16
    warmup = 2
    method = Watched(n, recovery=replace(SHORT, mode=mode))
    for delivery in drawn(method).values():
        ended = cast(list[int | None], delivery.notes["terminated_at"])
        lived = [steps if last is None else last + 1 for last in ended]
        canvases = method.opened[delivery.job.prompt.text]
        assert lived == [canvas.length for canvas in canvases]
        assert delivery.usage.sampled == delivery.usage.visual_tokens == sum(lived)
        assert delivery.usage.discarded == sum(lived) - steps
        assert steps + (n - 1) * warmup <= sum(lived) <= n * steps


def test_without_termination_all_candidates_are_drawn_to_their_end() -> None:
    for delivery in drawn(ScalingAR(6, policy=Policy(termination=False))).values():
        assert delivery.usage.sampled == 6 * 16


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_else_is_in_the_batch_changes_neither_tokens_nor_trace(
    dtype: torch.dtype, device: str
) -> None:
    method = ScalingAR(5, recovery=SHORT)
    some = jobs(TEXTS, images=2)
    model = ToyModel(dtype=dtype, device=device)
    together = draw(method, some, model=model, slots=20)
    shuffled = random.Random(1).sample(some, len(some))
    alone = draw(method, shuffled[:2], model=model, slots=20, concurrency=1)
    # The shape of a forward shows in the last bits of float32.
    slots = 34 if dtype == torch.float64 else 20
    in_another_order = draw(method, shuffled, model=model, slots=slots)
    same_times = dict.fromkeys(TIMES, 0.0)
    for key, delivery in (*in_another_order.items(), *alone.items()):
        expected = together[key]
        assert not delivery.error
        assert (delivery.tokens, delivery.notes) == (expected.tokens, expected.notes)
        assert replace(delivery.usage, **same_times) == replace(expected.usage, **same_times)


def decode_steps(policy: Policy) -> int:
    """Decode steps of a whole run under a policy, with slots for two prompts."""
    sampler = Sampler(ToyModel(), Sampling(scale=2.0), slots=24)
    method = ScalingAR(6, policy=policy, recovery=RecoverySettings(enabled=False))
    Scheduler(method, sampler, seed=0).run(jobs(TEXTS, images=2), lambda delivery: None)
    return sampler.decode_steps


class Kept(ScalingAR):
    """Keeps the tokens of all candidates, as far as each had got when the winner was chosen."""

    def __init__(self, **options: Any) -> None:
        super().__init__(4, **options)
        self.tokens: dict[str, list[tuple[int, ...]]] = {}

    async def generate(self, prompt: str, s: Session) -> Canvas:
        opened: list[Canvas] = []
        session = SimpleNamespace(
            grid=s.grid,
            num_tokens=s.num_tokens,
            raster=s.raster,
            open=lambda n: opened.extend(s.open(n)) or opened,
            **{name: getattr(s, name) for name in ("close", "draft", "look", "look_along")},
            note=s.note,
            step=s.step,
        )
        canvas = await super().generate(prompt, cast(Session, session))
        self.tokens[prompt] = [candidate.tokens for candidate in opened]
        return canvas


@pytest.mark.parametrize("source", ["cond", "guided_prev"])
@pytest.mark.parametrize("mode", MODES)
def test_drafts_change_no_candidate_no_termination_and_no_winner(mode: str, source: str) -> None:
    options = {
        "entropy_source": source,
        "recovery": replace(SHORT, mode=mode),
        "policy": Policy(scheduler=False),
    }
    by_token = Kept(**options)
    by_draft = Kept(**options, drafter=Jacobi("random", "gumbel"), window=6)
    expected = draw(by_token, jobs(TEXTS))
    ended = 0
    for key, delivery in draw(by_draft, jobs(TEXTS)).items():
        assert not delivery.error
        assert delivery.tokens == expected[key].tokens
        for fact in ("chosen", "terminated_at", "protected", "recovered"):
            assert delivery.notes[fact] == expected[key].notes[fact]
        assert delivery.usage.target_passes < expected[key].usage.target_passes
        ended += sum(last is not None for last in delivery.notes["terminated_at"])
        traces = read_trace(delivery.notes), read_trace(expected[key].notes)
        assert np.allclose(traces[0]["confidence"], traces[1]["confidence"], equal_nan=True)
    assert ended
    for prompt, candidates in by_token.tokens.items():
        for mine, theirs in zip(by_draft.tokens[prompt], candidates, strict=True):
            assert mine[: len(theirs)] == theirs


def test_drafts_and_a_guidance_of_every_token_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"set method\.policy\.scheduler=false"):
        ScalingAR(drafter=Jacobi())
    with pytest.raises(UserError, match=r"method\.window=1: must be at least 2"):
        ScalingAR(window=1)


def test_slots_of_ended_candidates_serve_other_prompts_in_the_same_run() -> None:
    without_termination = decode_steps(Policy(termination=False))
    assert without_termination == 6 * 16
    assert decode_steps(Policy()) < without_termination


class Recorded(Watched):
    """Keeps the logits it is shown; one prompt at a time, so that rows are the live candidates."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.shown: list[torch.Tensor] = []
        signals_of = self.probe

        def record(
            logits_RKTV: torch.Tensor, probs: Callable[[], torch.Tensor]
        ) -> dict[str, torch.Tensor]:
            self.shown.append(logits_RKTV.clone())
            return signals_of(logits_RKTV, probs)

        self.probe = record


def expect_guided_draws(
    canvases: Sequence[Canvas],
    t: int,
    text: dict[int, np.ndarray],
    null: dict[int, np.ndarray],
    scales: dict[int, float],
) -> None:
    """Assert that tokens of step t were drawn under that step's scales."""
    for i, scale in scales.items():
        logits = torch.from_numpy(null[i] + scale * (text[i] - null[i]))
        token = canvases[i].tokens[t]
        expected = float(logits.log_softmax(-1)[token])
        assert canvases[i].log_probs[t] == pytest.approx(expected, abs=1e-9)


def expect_trace(trace: dict[str, np.ndarray], reference: Reference) -> None:
    """Assert that a journal's series are the reference's, to the precision they are kept in."""
    names = {
        "C": "confidence",
        "I": "intrinsic",
        "D": "influence",
        "Hn": "entropy",
        "R": "rebound",
        "scale": "scale",
    }
    for symbol, name in names.items():
        for i in range(reference.n):
            values = [row[i][symbol] for row in reference.rows if i in row]
            values += [math.nan] * (16 - len(values))
            assert trace[name][:, i] == pytest.approx(values, abs=6e-4, nan_ok=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_whole_run_is_the_reference_and_each_scale_guides_its_own_step(mode: str) -> None:
    method = Recorded(6, recovery=replace(SHORT, mode=mode), scheduler=SchedulerSettings(drift=2.0))
    (delivery,) = draw(method, jobs(TEXTS[:1]), slots=12, sampling=Sampling(scale=3.0)).values()
    reference = Reference(6, 4, 4, 3.0, recovery_mode=mode, delta_steps=3, alpha=2.0)
    (canvases,) = method.opened.values()
    for t, logits_RKTV in enumerate(method.shown):
        live = list(reference.live)
        null = {i: logits_RKTV[r, 0, 0].numpy() for r, i in enumerate(live)}
        text = {i: logits_RKTV[r, 1, 0].numpy() for r, i in enumerate(live)}
        scales = reference.observe(text, null)
        expect_guided_draws(canvases, t, text, null, scales)
        reference.terminate()
    assert delivery.notes["terminated_at"] == reference.terminated_at
    assert delivery.notes["chosen"] == reference.winner()
    assert delivery.tokens == canvases[reference.winner()].tokens
    expect_trace(read_trace(delivery.notes), reference)
    assert len(json.dumps(delivery.notes)) < 2000


def test_guided_prev_reads_the_distribution_under_the_previous_scale() -> None:
    scheduler = SchedulerSettings(drift=2.0)
    sampling = Sampling(scale=3.0)
    method = Recorded(1, entropy_source="guided_prev", scheduler=scheduler)
    (delivery,) = draw(method, jobs(TEXTS[:1]), slots=2, sampling=sampling).values()
    trace = read_trace(delivery.notes)
    scale = 3.0
    for t, logits_RKTV in enumerate(method.shown):
        null, text = logits_RKTV[0, :, 0]
        probs = (null + scale * (text - null)).softmax(-1)
        entropy = torch.special.entr(probs).sum() / math.log(32)
        assert trace["entropy"][t, 0] == pytest.approx(float(entropy), abs=2e-3)
        scale = trace["scale"][t, 0]

    plain = ScalingAR(1, scheduler=scheduler)
    (other,) = draw(plain, jobs(TEXTS[:1]), slots=2, sampling=sampling).values()
    assert (
        cast(Any, other.notes)["trace"]["entropy"] != cast(Any, delivery.notes)["trace"]["entropy"]
    )


def test_the_guided_probe_reads_the_probs_it_is_given() -> None:
    probs = torch.full((1, 1, 4), 0.25)
    seen = probe_guided(torch.randn(1, 2, 1, 4), lambda: probs)
    assert seen["entropy"].item() == pytest.approx(1)


# ------------------------------------------------------------------ configuration and conformance


def configured(name: str) -> ScalingAR:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    if "defaults" in config:
        config.pop("defaults")
        config = OmegaConf.merge(OmegaConf.load(CONF / "scalingar.yaml"), config)
    return build_object(config)


def test_the_configurations_are_the_papers_with_windows_scaled_to_the_embedded_grid() -> None:
    paper = configured("scalingar_paper")
    embedded = configured("scalingar")
    assert paper.n == embedded.n == 8
    assert paper.settings == PAPER == settings_of(PAPER_OPTIONS)
    assert embedded.settings == replace(
        PAPER,
        profile=replace(PAPER.profile, rolling_steps=16),
        recovery=replace(PAPER.recovery, window_steps=8),
        scheduler=replace(PAPER.scheduler, variance_steps=8),
    )


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: ScalingAR(0), r"method\.n=0"),
        (lambda: ScalingAR(entropy_source="uncond"), "cond, guided_prev"),
        (lambda: Channel(token=False, block=False), "leave one of them on"),
        (
            lambda: RecoverySettings(mode="window"),
            r"recovery\.mode=window.*window_end, window_any, alg1_immediate",
        ),
        (lambda: RecoverySettings(reference="flag"), r"recovery\.reference=flag"),
        (lambda: SchedulerSettings(form="factor"), r"scheduler\.form=factor.*additive, relative"),
        (lambda: TerminationSettings(quantile=20), r"termination\.quantile=20: is a share"),
        (lambda: TerminationSettings(min_alive=0), r"termination\.min_alive=0"),
        (lambda: ProfileSettings(low_percentile=95, high_percentile=5), "must rise"),
        (lambda: ProfileSettings(block_side=0), r"profile\.block_side=0"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        make()


@needs_shared
def test_every_conformance_case_passes() -> None:
    passed, failed, messages = conformance(SHARED)
    assert (failed, messages) == (0, [])
    assert passed == 39


def first_case(folder: Path) -> dict[str, Any]:
    """The first case of the conformance file, with its arrays at hand in `folder`."""
    case = json.loads(SHARED.read_text().splitlines()[0])
    (folder / case["inputs"]).symlink_to(SHARED.with_name(case["inputs"]))
    return case


def check_case(folder: Path, case: dict[str, Any]) -> tuple[int, int, list[str]]:
    (folder / "cases.jsonl").write_text(json.dumps(case) + "\n")
    return conformance(folder / "cases.jsonl")


@needs_shared
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("winner", 0, "winner: expected 0, got 3"), ("tokens", 7, "tokens: expected 7, got 321")],
)
def test_a_wrong_expectation_is_reported(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    case = first_case(tmp_path)
    assert check_case(tmp_path, case) == (1, 0, [])
    case["expected"][field] = value
    assert check_case(tmp_path, case) == (
        0,
        1,
        [f"sar-001 (defaults with a short window): {message}"],
    )


@needs_shared
def test_other_options_do_not_meet_the_expectations(tmp_path: Path) -> None:
    case = first_case(tmp_path)
    case["options"]["q"] = 0.7
    case["options"]["p"] = 0.7
    assert check_case(tmp_path, case)[1] == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"id": "x"}'])
def test_a_malformed_conformance_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "cases.jsonl").write_text(text + "\n")
    with pytest.raises(UserError, match=r"cases\.jsonl, line 1: not"):
        conformance(tmp_path / "cases.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        conformance(tmp_path / "none.jsonl")
