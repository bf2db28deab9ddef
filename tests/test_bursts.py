"""Burst law: rounds without the host in between draw the tokens of single rounds, and cost what
they cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from test_batch_invariance import Wanderer, costs
from torch import Tensor
from toy import TEXTS, PixelSum, ToyModel, draw, jobs

from harness.engine import bursts, cuda_graphs
from harness.engine.acceptance import exact
from harness.engine.guidance import Sampling, unguided
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.engine.session import Method
from harness.models.trunk import Attend
from harness.records import Usage
from methods.best_of_n import BestOfN
from methods.plain import Plain
from methods.scalingar import ScalingAR

Drawn = dict[tuple[str, int], Delivery]


def same(one: Drawn, other: Drawn) -> None:
    assert list(one) == list(other)  # delivered in the same order
    for key, delivery in one.items():
        assert (delivery.tokens, delivery.notes, delivery.error) == (
            other[key].tokens,
            other[key].notes,
            "",
        )
        assert costs(delivery.usage) == costs(other[key].usage)


class Recalled:
    """A captured graph's stand-in: what it does is done again when it is replayed."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The path of CUDA but for the capture itself: idle warm-up calls, static and padded tensors,
    replays.
    """
    seen: list[int] = []

    def capture(_graphs: cuda_graphs.Graphs, work: Callable[[], None]) -> Recalled:
        for _ in range(cuda_graphs.WARM_UPS):
            work()
        seen.append(1)
        return Recalled(work)

    plain = cuda_graphs.Graphs.__init__

    def switched_on(self: cuda_graphs.Graphs, device: torch.device) -> None:
        plain(self, device)
        self.state = "on"

    monkeypatch.setattr(cuda_graphs.Graphs, "__init__", switched_on)
    monkeypatch.setattr(cuda_graphs.Graphs, "_capture", capture)
    return seen


METHODS: list[tuple[Method, Sampling]] = [
    (Plain(), Sampling(scale=2.0)),
    (Plain(), Sampling(scale=1.0, top_k=3)),
    (BestOfN(3, PixelSum()), Sampling(scale=3.0, interval=5)),
    (ScalingAR(4), Sampling(scale=2.0)),
    (Wanderer(), Sampling(scale=2.0, top_p=0.9)),
]


@pytest.mark.parametrize(("method", "sampling"), METHODS)
@pytest.mark.parametrize("width", [None, 3])
def test_bursts_change_nothing(
    method: Method, sampling: Sampling, width: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ToyModel(dtype=torch.float32)
    some = jobs(TEXTS, images=2)
    in_bursts = draw(method, some, model=model, sampling=sampling, slots=16, tokens_per_step=width)
    for rounds_each in (0, 3):
        monkeypatch.setattr(bursts, "BURST", rounds_each)
        same(
            in_bursts,
            draw(method, some, model=model, sampling=sampling, slots=16, tokens_per_step=width),
        )


@pytest.mark.parametrize(("method", "sampling"), METHODS)
def test_static_and_padded_tensors_change_nothing(
    method: Method, sampling: Sampling, request: pytest.FixtureRequest
) -> None:
    model = ToyModel(dtype=torch.float32)
    some = jobs(TEXTS, images=2)
    eager = draw(method, some, model=model, sampling=sampling, slots=16)
    captures: list[int] = request.getfixturevalue("captured")
    same(eager, draw(method, some, model=model, sampling=sampling, slots=16))
    assert captures


def test_where_capturing_fails_rounds_are_called(
    captured: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_graphs: cuda_graphs.Graphs, work: Callable[[], None]) -> Recalled:
        work()
        raise RuntimeError("operation not permitted when branch is capturing\nmore of it")

    eager = draw(Plain(), jobs(TEXTS))
    monkeypatch.setattr(cuda_graphs.Graphs, "_capture", refuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    sampler = Sampler(ToyModel(), Sampling(scale=2.0), slots=12, prefill=(3, 4))
    done: Drawn = {}
    Scheduler(Plain(), sampler, seed=0).run(jobs(TEXTS), lambda d: done.update({d.job.key: d}))
    same(eager, done)
    assert sampler.graphs.state == "off (operation not permitted when branch is capturing)"
    assert caplog.text.count("CUDA graphs are off") == 1


def test_a_burst_reads_the_device_once_and_books_every_round() -> None:
    model = ToyModel()
    sampler = Sampler(model, Sampling(scale=2.0), slots=12, prefill=(3, 4))
    Scheduler(Plain(), sampler, seed=0).run(jobs(TEXTS[:1]), lambda _: None)
    assert (sampler.decode_steps, sampler.active_branch_steps) == (16, 32)


class Interrupted(ToyModel):
    """Stops the run at its n-th forward."""

    def __init__(self, stop: int) -> None:
        super().__init__()
        self.stop = stop

    def forward(self, x_BWD: Tensor, pos_BW: Tensor, start_B: Tensor, attend: Attend) -> Tensor:
        if self.forwards == self.stop:
            self.forwards += 1
            raise KeyboardInterrupt
        return super().forward(x_BWD, pos_BW, start_B, attend)


@pytest.mark.parametrize("stop", [1, 4, 11, 17, 18, 30])
def test_an_interrupted_burst_leaves_nothing_behind(stop: int) -> None:
    """The same sampler draws the same images afterwards, and all its slots are free."""
    whole = draw(BestOfN(2), jobs(TEXTS))
    sampler = Sampler(Interrupted(stop), Sampling(scale=2.0), slots=12, prefill=(3, 4))
    done: Drawn = {}
    with pytest.raises(KeyboardInterrupt):
        Scheduler(BestOfN(2), sampler, seed=0).run(
            jobs(TEXTS), lambda d: done.update({d.job.key: d})
        )
    assert sampler.free == 12
    rest = [job for job in jobs(TEXTS) if job.key not in done]
    Scheduler(BestOfN(2), sampler, seed=0).run(rest, lambda d: done.update({d.job.key: d}))
    assert {key: d.tokens for key, d in done.items()} == {key: d.tokens for key, d in whole.items()}
    assert [replace(costs(d.usage)) for d in done.values()] == [
        costs(whole[key].usage) for key in done
    ]


def test_an_order_of_guides_is_captured_once(captured: list[int]) -> None:
    """Rows with guidance and without it draw together, whichever comes first."""
    sampler = Sampler(ToyModel(), Sampling(scale=2.0), slots=6, prefill=(3, 4))
    contexts, guide = sampler.contexts(TEXTS[0])
    guided = sampler.open(contexts, guide, key=1, usage=Usage())
    plain = sampler.open(contexts[1:], unguided, key=2, usage=Usage())
    rows = [guided, plain]
    sampler.forward(rows, [None, None])
    sampler.draw(rows, [None, None], exact)
    captured.clear()  # of the forward

    assert sampler.burst(rows, 2) == 2
    assert sampler.burst(rows[::-1], 2) == 2
    assert len(captured) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are captured on CUDA only")
@pytest.mark.parametrize("width", [1, 3])
def test_graphs_draw_what_is_drawn_without_them(width: int) -> None:
    """On CUDA, with the embedded model: every round captured, against every round launched by the
    host.
    """
    from harness.models.pictogram.generator import Pictogram

    model = Pictogram(device="cuda")
    drawn = []
    for graphs in ("on", "off (test)"):
        sampler = Sampler(
            model, Sampling(scale=2.0), slots=8, tokens_per_step=width, prefill=(8, 32)
        )
        sampler.graphs.state = graphs
        done: Drawn = {}
        Scheduler(ScalingAR(2) if width == 3 else Plain(), sampler, seed=0).run(
            jobs(["a red circle", "two blue squares"]), lambda d, to=done: to.update({d.job.key: d})
        )
        assert sampler.graphs.state == graphs
        drawn.append(done)
    same(*drawn)
