"""On a CUDA machine, every method draws what it draws on the CPU, and no rule of CUDA is broken.

The machine is simulated (`simulated_cuda`), so that this holds in every test run. Quick are as many
cases as let every model meet every state of the machine and both samplers, and every kind of draft,
rule and search occur; all combinations are long.
"""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from combinations import (
    CFG,
    DRAFTED,
    SEARCHES,
    SETTINGS,
    SUBJECTS,
    THROUGHPUT,
    Drawn,
    Family,
    Setting,
    Subject,
    draw_on,
    make_sampler,
    tokens_of,
)
from simulated_cuda import simulated_cuda
from test_lantern import own_cache as own_cache

from harness.engine import cuda_graphs
from harness.kernels import why_unused
from harness.models import ImageModel
from harness.models.devices import choose_device
from methods.plain import Plain

pytestmark = pytest.mark.usefixtures("own_cache")

SIDE_BY_SIDE = {"throughput": 2, "latency": 1}
"""Images that a case draws."""


@dataclass(frozen=True, slots=True)
class State:
    """What of CUDA is used beside its tensors."""

    name: str
    use_graphs: bool
    use_kernels: bool


GRAPHS = State("graphs", use_graphs=True, use_kernels=True)
NO_GRAPHS = State("no graphs", use_graphs=False, use_kernels=True)
NO_KERNELS = State("no kernels", use_graphs=True, use_kernels=False)
STATES = (GRAPHS, NO_GRAPHS, NO_KERNELS)
FAMILIES = [*SEARCHES, *DRAFTED]

QUICK_BESIDE_CENTRAL = {
    "model relaxed static tree",
    "model coupled dynamic tree",
    "model rejecting chain",
    "eagle coupled static tree",
    "eagle look-alike chains",
    "eagle skipping tree",
}
"""Ways of drafting whose rule or schedule the central ones do not have."""

Case = tuple[Subject, Family, State, Setting]


# ------------------------------------------------------------------ which cases


def list_all_cases() -> list[Case]:
    """Every model, way of drawing, state of the machine and sampler."""
    cases = []
    for subject, family in product(SUBJECTS.values(), FAMILIES):
        if family.fits(subject):
            cases += [(subject, family, *rest) for rest in product(STATES, SETTINGS)]
    return cases


def list_quick_families() -> list[Family]:
    """All searches, and one way of drafting of each kind."""
    drafted = [f for f in DRAFTED if f.central or f.name in QUICK_BESIDE_CENTRAL]
    return [*SEARCHES, *drafted]


def pairs_of(case: Case) -> set[tuple[str, str]]:
    """List which model, state of the machine and sampler meet in a case."""
    subject, _, state, setting = case
    return set(combinations((subject.name, state.name, setting.name), 2))


def choose_quick_cases() -> list[Case]:
    """Each of the quick ways once, where it adds most pairs, or what is seldom met."""
    met: Counter[tuple[str, str]] = Counter()
    chosen = []
    for family in list_quick_families():
        candidates = []
        for subject in SUBJECTS.values():
            if family.fits(subject):
                candidates += [(subject, family, *rest) for rest in product(STATES, SETTINGS)]
        case = min(candidates, key=lambda case: sum(1 - 0.5 ** met[p] for p in pairs_of(case)))
        met.update(pairs_of(case))
        chosen.append(case)
    return chosen


def name_of(case: Case) -> str:
    subject, family, state, setting = case
    return f"{subject.name}: {family.name}, {state.name}, {setting.name}"


def parameters() -> list[Any]:
    """All cases, those that are not quick marked as long."""
    quick = {name_of(case) for case in choose_quick_cases()}
    some = []
    for case in list_all_cases():
        name = name_of(case)
        some.append(pytest.param(case, id=name, marks=[] if name in quick else [pytest.mark.long]))
    return some


def test_the_quick_cases_leave_no_pair_out() -> None:
    cases = choose_quick_cases()
    met = set[tuple[str, str]]().union(*map(pairs_of, cases))
    states = [state.name for state in STATES]
    settings = [setting.name for setting in SETTINGS]
    assert met == {
        *product(SUBJECTS, states),
        *product(SUBJECTS, settings),
        *product(states, settings),
    }
    assert {family.name for family in DRAFTED} >= QUICK_BESIDE_CENTRAL


# ------------------------------------------------------------------ the guard


@lru_cache
def model_on_cpu(subject: Subject) -> ImageModel:
    return subject.make("cpu")


@lru_cache
def drawn_on_cpu(subject: Subject, family: Family, setting: Setting) -> Drawn:
    """What the CPU draws."""
    method = family.build(subject)
    sampler = make_sampler(method, model_on_cpu(subject), family.sampling, setting)
    return draw_on(sampler, method, subject.jobs(SIDE_BY_SIDE[setting.name]), setting)


def switch_graphs_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all samplers, those of drafters too, launch every round from the host."""
    begin = cuda_graphs.Graphs.__init__

    def switched_off(self: cuda_graphs.Graphs, device: torch.device) -> None:
        begin(self, device)
        self.state = "off (test)"

    monkeypatch.setattr(cuda_graphs.Graphs, "__init__", switched_off)


def expect_same(drawn: Drawn, expected: Drawn) -> None:
    """Assert that tokens and counts are the CPU's, and pixels but for a level of rounding."""
    assert tokens_of(drawn) == tokens_of(expected)
    for key, delivery in drawn.items():
        difference = delivery.image.astype(int) - expected[key].image.astype(int)
        assert np.abs(difference).max() <= 1  # the CPU decodes images one by one
        for counted in ("accepted", "skips"):
            assert delivery.notes.get(counted) == expected[key].notes.get(counted)


@pytest.mark.parametrize("case", parameters())
@torch.no_grad()
def test_a_simulated_gpu_draws_what_the_cpu_draws(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, family, state, setting = case
    expected = drawn_on_cpu(subject, family, setting)
    if not state.use_graphs:
        switch_graphs_off(monkeypatch)
    with simulated_cuda(use_kernels=state.use_kernels) as machine:
        model = subject.make("cuda:0")
        method = family.build(subject)
        sampler = make_sampler(method, model, family.sampling, setting)
        drawn = draw_on(sampler, method, subject.jobs(SIDE_BY_SIDE[setting.name]), setting)
        assert (why_unused(model.device) == "") == state.use_kernels
        assert sampler.graphs.state == ("on" if state.use_graphs else "off (test)")
    assert not machine.problems
    assert (machine.replays > 0) == (machine.captures > 0)
    assert state.use_graphs or machine.captures == 0
    expect_same(drawn, expected)


# ------------------------------------------------------------------ the second device


@pytest.mark.parametrize("name", ["plain", "scalingar", "model static tree", "eagle dynamic tree"])
@torch.no_grad()
def test_a_run_on_the_second_device_touches_no_other(name: str) -> None:
    """The run's device becomes the current one: graphs, events, kernels and memory are there."""
    subject = SUBJECTS["toy"]
    (family,) = [family for family in FAMILIES if family.name == name]
    expected = drawn_on_cpu(subject, family, THROUGHPUT)
    with simulated_cuda() as machine:
        device = choose_device("cuda:1")
        method = family.build(subject)
        sampler = make_sampler(method, subject.make(device), family.sampling, THROUGHPUT)
        drawn = draw_on(sampler, method, subject.jobs(2), THROUGHPUT)
        assert sampler.graphs.state == "on"
    assert not machine.problems
    first, second = machine.devices
    assert second.memory.most_allocated > 0
    assert first.memory.most_allocated == 0
    assert all(stream.launches == 0 for stream in first.streams)
    expect_same(drawn, expected)


@torch.no_grad()
def test_models_on_two_devices_take_turns() -> None:
    """One process may hold a model on each: whichever draws, its device is the current one."""
    subject = SUBJECTS["toy"]
    (family,) = [family for family in FAMILIES if family.name == "plain"]
    expected = drawn_on_cpu(subject, family, THROUGHPUT)
    with simulated_cuda() as machine:
        samplers = [
            make_sampler(Plain(), subject.make(f"cuda:{index}"), CFG, THROUGHPUT)
            for index in (0, 1)
        ]
        for sampler in (*samplers, *samplers):
            expect_same(draw_on(sampler, Plain(), subject.jobs(2), THROUGHPUT), expected)
            assert sampler.graphs.state == "on"
    assert not machine.problems


# ------------------------------------------------------------------ memory that runs out


def draw_plainly() -> Drawn:
    """Draw two images on the first device, and let go of all that it took."""
    subject = SUBJECTS["toy"]
    sampler = make_sampler(Plain(), subject.make("cuda:0"), CFG, THROUGHPUT)
    return draw_on(sampler, Plain(), subject.jobs(2), THROUGHPUT)


@torch.no_grad()
def test_a_failed_allocation_ends_the_run_and_keeps_nothing() -> None:
    """Wherever memory runs out, it is said to have, and afterwards all of it is free again."""
    subject = SUBJECTS["toy"]
    (family,) = [family for family in FAMILIES if family.name == "plain"]
    expected = drawn_on_cpu(subject, family, THROUGHPUT)
    with simulated_cuda() as machine:
        memory = machine.devices[0].memory
        for _ in range(2):  # before the first run, kernels are tried, which takes memory too
            torch.cuda.reset_peak_memory_stats()
            draw_plainly()
            gc.collect()
            assert memory.allocated == 0
        needed = memory.most_allocated
        for share in (0.5, 0.9):
            memory.limit = int(share * needed)
            with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
                draw_plainly()
            gc.collect()
            torch.cuda.empty_cache()
            assert memory.allocated == 0
            assert memory.reserved == 0
        memory.limit = 2 * needed
        expect_same(draw_plainly(), expected)
    assert not machine.problems
