"""Tell whether two rankings of the same methods agree: of two seeds, or of two results folders.

Kendall's tau says how alike the orders of the scores are. Chance exchanges methods that lie close
together; two rankings contradict each other only where a pair of methods is resolved in both, the
other way round. Exact methods have one true score, so that their order is chance in any number of
images: tau of the pairs that at least one ranking resolves leaves such pairs out.

Legend of suffixes: R runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from harness.records import UserError
from harness.results.labels import label_runs
from harness.results.ranking import RankedGroup, drop_budget, find_misfits
from harness.runs.read import RankingProtocol, Run

LEAST_TAU = 0.95
"""Kendall's tau of two rankings that count as the same."""


class Identity(NamedTuple):
    """What two runs of one method share."""

    protocol: RankingProtocol
    method: str
    params: str  # options that differ from the preset, the number of candidates apart
    candidates: int | None
    concurrency: int | None  # images in flight


class Pair(NamedTuple):
    """Two methods, and by how much the first scored above the second in each ranking."""

    first: str
    second: str
    difference_a: float
    difference_b: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two rankings of one protocol's methods compare."""

    heading: str
    methods: tuple[str, ...]
    score_a: tuple[float, ...]
    score_b: tuple[float, ...]
    tau: float  # Kendall's, variant b; nan where one ranking has ties only
    tau_resolved: float  # of the pairs that at least one ranking resolves; nan without one
    p: float  # of the hypothesis that the orders have nothing to do with each other
    contradicting: tuple[Pair, ...]  # resolved in both, the other way round
    alike: int  # pairs that are resolved in both, in the same way
    once: int  # resolved in one of them only
    exchanged: tuple[Pair, ...]  # in the other order, and not resolved in both

    @property
    def is_long(self) -> bool:
        """Tell whether tau stays large enough where two neighbours alone are exchanged."""
        count = len(self.methods)
        return 1 - 4 / (count * (count - 1)) >= LEAST_TAU

    @property
    def holds(self) -> bool:
        """Tell whether no pair contradicts another, and tau of a long ranking is large enough."""
        return not self.contradicting and (self.tau >= LEAST_TAU or not self.is_long)


def compare_rankings(a: Sequence[Run], b: Sequence[Run]) -> list[Agreement]:
    """Compare two sets of runs, protocol by protocol; runs that only one of them has are left out.

    A protocol with fewer than two common methods has no ranking. Raises UserError where a set has
    two runs of one method, and where no protocol can be compared.
    """
    of_a = index_runs(a)
    of_b = index_runs(b)
    common = [identity for identity in of_a if identity in of_b]
    found = []
    for protocol in dict.fromkeys(identity.protocol for identity in common):
        identities = [identity for identity in common if identity.protocol == protocol]
        if len(identities) > 1:
            pairs = [(of_a[identity], of_b[identity]) for identity in identities]
            found.append(compare_protocol([one for one, _ in pairs], [other for _, other in pairs]))
    if not found:
        raise UserError(
            f"of {len(of_a)} and {len(of_b)} complete and scored runs no two methods are in both "
            "under the same protocol: name results of the same prompts, model and judge"
        )
    return found


def index_runs(runs: Sequence[Run]) -> dict[Identity, Run]:
    """Return the runs that can be ranked, by what they share with runs of another seed.

    Raises UserError where two of them are the same but for their seeds.
    """
    may_be_ranked = [run for run in runs if run.complete and run.is_scored and not run.excluded]
    misfits = find_misfits(may_be_ranked)
    found: dict[Identity, Run] = {}
    for run in may_be_ranked:
        if run.path in misfits:
            continue
        identity = Identity(
            run.protocol,
            str(run.about["method"]),
            drop_budget(str(run.about["params"])),
            run.candidates,
            run.concurrency,
        )
        if identity in found:
            seeds = f"{found[identity].about['seed']} and {run.about['seed']}"
            raise UserError(
                f"{found[identity].path} and {run.path} are runs of one method, of seeds {seeds}: "
                "choose two seeds by --seeds A B"
            )
        found[identity] = run
    return found


def compare_protocol(a: Sequence[Run], b: Sequence[Run]) -> Agreement:
    """Compare two rankings of the same methods, in the same order, under one protocol."""
    from scipy.stats import kendalltau

    # 1. The scores, and which pairs are resolved.
    group_a = RankedGroup(a)
    group_b = RankedGroup(b)
    score_a_R = np.array([group_a.score(run) for run in a])
    score_b_R = np.array([group_b.score(run) for run in b])
    better_a_RR = group_a.resolved_pairs()
    better_b_RR = group_b.resolved_pairs()
    labels = [str(label) for label in label_runs(a).values()]
    tau, p = kendalltau(score_a_R.round(9), score_b_R.round(9))

    # 2. The pairs.
    contradicting = []
    exchanged = []
    same_way = []  # of the pairs that are resolved: 1, or -1 where the orders differ, or 0
    alike = 0
    once = 0
    for i, j in combinations(range(len(labels)), 2):
        first, second = (i, j) if score_a_R[i] >= score_a_R[j] else (j, i)
        pair = Pair(
            labels[first],
            labels[second],
            float(score_a_R[first] - score_a_R[second]),
            float(score_b_R[first] - score_b_R[second]),
        )
        in_a = bool(better_a_RR[first, second])
        in_b = bool(better_b_RR[first, second])
        against = bool(better_b_RR[second, first])
        alike += in_a and in_b
        once += in_a != (in_b or against)
        if in_a or in_b or against:
            same_way.append(np.sign(pair.difference_a * pair.difference_b))
        if in_a and against:
            contradicting.append(pair)
        elif pair.difference_a * pair.difference_b < 0:
            exchanged.append(pair)

    protocol = group_a.protocol
    return Agreement(
        heading=f"{protocol.benchmark} on {protocol.model}, {len(a[0].prompts)} prompts x "
        f"{protocol.images_per_prompt} images",
        methods=tuple(labels),
        score_a=tuple(map(float, score_a_R)),
        score_b=tuple(map(float, score_b_R)),
        tau=float(tau),
        tau_resolved=float(np.mean(same_way)) if same_way else math.nan,
        p=float(p),
        contradicting=tuple(contradicting),
        alike=alike,
        once=once,
        exchanged=tuple(exchanged),
    )


def describe_agreement(found: Agreement, name_a: str, name_b: str) -> Iterator[str]:
    """Say in lines of text how two rankings compare, the best of the first one first."""
    yield f"{found.heading}: {len(found.methods)} methods, A = {name_a}, B = {name_b}"
    width = max(len(method) for method in found.methods)
    order = np.argsort(-np.array(found.score_a), kind="stable")
    for i in order:
        scores = f"A {found.score_a[i]:.3f}  B {found.score_b[i]:.3f}"
        yield f"  {found.methods[i]:<{width}}  {scores}"

    bar = f"at least {LEAST_TAU:g} is asked"
    if not found.is_long:
        p = "not defined" if math.isnan(found.tau) else f"{found.tau:.3f}"
        yield f"Kendall's tau {p}; nothing is asked of so few methods: one exchange weighs too much"
    elif math.isnan(found.tau):
        yield f"Kendall's tau is not defined: one ranking has ties only; {bar}: missed"
    else:
        verdict = "pass" if found.tau >= LEAST_TAU else f"missed by {LEAST_TAU - found.tau:.2g}"
        p = "< 0.001" if found.p < 0.001 else f"= {found.p:.3f}"
        yield f"Kendall's tau {found.tau:.3f} (p {p}); {bar}: {verdict}"
    if not math.isnan(found.tau_resolved):
        yield f"Kendall's tau of the pairs that A or B resolves: {found.tau_resolved:.3f}"
    count = len(found.contradicting)
    verdict = "pass" if not count else f"missed by {count}"
    yield (
        f"Pairs that are resolved in both, the other way round: {count}; none is asked: {verdict}"
    )
    for pair in found.contradicting:
        yield f"  {_describe_pair(pair)}"
    yield f"Pairs resolved in both alike: {found.alike}; in one of them only: {found.once}"
    if found.exchanged:
        yield "In the other order, and not resolved in both:"
        yield from (f"  {_describe_pair(pair)}" for pair in found.exchanged)


def _describe_pair(pair: Pair) -> str:
    differences = f"{pair.difference_a:+.3f} in A, {pair.difference_b:+.3f} in B"
    return f"{pair.first} - {pair.second}: {differences}"
