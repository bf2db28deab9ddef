"""Measure whether the embedded world behaves like natural images.

Relaxed methods rest on three properties of them: many codes are right at a place, look-alikes do
little harm, and a draft errs among look-alikes. The gates say whether a weight set has these, and
what the methods then gain and lose at their presets' settings. Losses are against all images of
exact rules, which have plain sampling's distribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pandas as pd

from harness.results.gates import Gate, with_interval
from harness.results.relaxed import MOST_LOSS
from harness.results.stats import auc, macro_mean, paired_difference
from harness.runs.instantiate import build_object
from harness.training.measure_draft import GAMMA, METHODS, drawn_counts, new_drafter
from harness.training.samples import Bench, Drawn, Signals, picked, table

SWAPPED = 0.15
"""Share of the tokens that become near codes while an image is drawn."""
ZIPAR = {"_target_": "methods.zipar.ZipAR", "window": 4, "parallel": 4}
DRAFTED = ("exact", "lantern", "lantern_plus", "vvs_3", "vvs_3_cap_2")
"""The methods with a draft that are measured."""


class Samples(Protocol):
    """What the gates are computed from: `samples.Study`."""

    @property
    def bench(self) -> Bench: ...
    @property
    def drawn(self) -> Drawn: ...
    @property
    def signals(self) -> Signals: ...
    @property
    def agreement(self) -> float: ...
    def draw_by(self, method: Any) -> Drawn: ...
    def draw_swapped(self, share: float) -> np.ndarray: ...


def natural_gates(samples: Samples) -> Iterator[Gate]:
    """Measure all of them."""
    yield from sharpness_gates(samples.signals)
    yield swap_gate(samples)
    yield Gate("natural: draft acceptance per token", samples.signals.acceptance, least=0.70)
    yield from method_gates(samples)
    yield from headroom_gates(samples)


def sharpness_gates(signals: Signals) -> Iterator[Gate]:
    """Tell how sharp the guided probabilities are, on plain sampling's own images."""
    yield Gate("natural: mean top-1 probability", float(signals.top_1.mean()), most=0.65)
    yield Gate("natural: mean entropy, nats", float(signals.entropy.mean()))


def swap_gate(samples: Samples) -> Gate:
    """Measure what is lost when tokens become look-alikes while the image is drawn."""
    rows = samples.drawn.rows
    untouched = table(rows, samples.draw_swapped(0.0))
    swapped = table(rows, samples.draw_swapped(SWAPPED))
    loss = paired_difference(untouched, swapped)
    return with_interval("natural: loss by near codes, 15 % while drawing", loss, most=0.05)


def method_gates(samples: Samples) -> Iterator[Gate]:
    """Measure what decoding methods gain in passes, and lose."""
    # 1. Draw, and join the images of exact rules.
    drafter = new_drafter("draft", samples.bench)
    drawn: dict[str, Drawn] = {}
    for name in DRAFTED:
        method = build_object(METHODS[name], drafter=drafter, gamma=GAMMA)
        drawn[name] = samples.draw_by(method)
    zipar = samples.draw_by(build_object(ZIPAR))
    exact_PI = np.concatenate([samples.drawn.right, drawn["exact"].right], 1)
    pool = table(samples.drawn.rows, exact_PI)

    # 2. LANTERN: k = 10, delta = .2; LANTERN++: k = 10, multiplier 3.
    more = accepted_a_round(drawn["lantern"]) / accepted_a_round(drawn["exact"]) - 1
    yield Gate("natural: LANTERN accepts above exact, share", more, least=0.20)
    yield loss_gate("natural: LANTERN, loss", pool, drawn["lantern"], most=MOST_LOSS["lantern"])
    yield loss_gate(
        "natural: LANTERN++, loss", pool, drawn["lantern_plus"], most=MOST_LOSS["lantern_plus"]
    )

    # 3. VVS, with whole chains and with at most two tokens a skip. With one token it could not be
    #    1.3 times faster than LANTERN, whose rounds commit about three.
    for key, name in (("vvs_3", "VVS, interval 3"), ("vvs_3_cap_2", "VVS, interval 3, cap 2")):
        ratio = mean_passes(drawn["lantern"]) / mean_passes(drawn[key])
        yield Gate(f"natural: {name}, LANTERN's passes over its", ratio, least=1.3)
        yield loss_gate(f"natural: {name}, loss", pool, drawn[key], most=MOST_LOSS["vvs"])

    # 4. ZipAR, which has no draft.
    yield loss_gate("natural: ZipAR, window 4, loss", pool, zipar, most=MOST_LOSS["zipar"])


def accepted_a_round(drawn: Drawn) -> float:
    """Return the mean number of draft tokens that a verification accepts."""
    counts = [drawn_counts(note) for note in drawn.notes]
    accepted = sum(count["accepted"] for count in counts)
    return accepted / sum(count["verifications"] for count in counts)


def mean_passes(drawn: Drawn) -> float:
    """Return the mean number of target passes of an image."""
    return float(np.mean([usage.target_passes for usage in drawn.usages]))


def loss_gate(name: str, pool: pd.DataFrame, drawn: Drawn, *, most: float) -> Gate:
    """Measure the loss of a method against the images of exact rules, paired by prompt."""
    loss = paired_difference(pool, table(drawn.rows, drawn.right))
    return with_interval(name, loss, most=most)


def headroom_gates(samples: Samples) -> Iterator[Gate]:
    """Measure what plain sampling leaves to gain, and how well it can be chosen by."""
    drawn = samples.drawn
    plain = table(drawn.rows, drawn.right)
    bound = plain[plain["category"] == "color_attr"]["value"]
    yield Gate("natural: plain", macro_mean(plain), least=0.35, most=0.70)
    yield Gate("natural: plain, color_attr", float(bound.mean()), least=0.15)

    gain = paired_difference(picked(drawn, samples.signals.reward, 4), plain)
    yield with_interval("natural: best of 4 by reward, gain", gain, least=0.15)
    sure = -samples.signals.entropy.reshape(-1)
    yield Gate("natural: entropy AUC", auc(sure, drawn.right.reshape(-1)), least=0.68)
    yield Gate("natural: reward and judge agree", samples.agreement, least=0.85, most=0.95)
