"""What results may depend on: with numerics `constant` on the job alone, with `fast` also on what
else is in the batch; and compact forwards, which skip idle slots.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from runs import TOY, harness
from test_batch_invariance import Wanderer, costs
from test_eagle import eagle
from test_speculative import drafter
from torch import Tensor
from toy import TEXTS, PixelSum, ToyModel, draw, jobs

from harness.drafters.jacobi import Jacobi
from harness.engine.acceptance import Draft
from harness.engine.canvas import Canvas
from harness.engine.draft_trees import Proactive, Static
from harness.engine.guidance import Sampling
from harness.engine.method_spec import MethodSpec
from harness.engine.rendering import Image, Picture
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.engine.session import Method, Session
from harness.models.trunk import Attend
from harness.records import Job, UserError
from harness.runs.spec import RunSpec, build_run_spec
from methods.best_of_n import BestOfN
from methods.pjd import PJD
from methods.plain import Plain
from methods.scalingar import ScalingAR
from methods.sjd import SJD
from methods.speculative import Speculative
from methods.vvs import VVS, Uniform
from methods.zipar import ZipAR

Drawn = dict[tuple[str, int], Delivery]
"""The delivery of each job, by prompt id and number."""


NARROW = Static({"": 2, "1": 1, "10": 1})
"""A tree that feeds its drafter one node a depth."""


class Watched(ToyModel):
    """Remembers the shapes of its forwards."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(dtype=dtype)
        self.shapes: list[tuple[int, int]] = []

    def forward(self, x_BWD: Tensor, pos_BW: Tensor, start_B: Tensor, attend: Attend) -> Tensor:
        self.shapes.append((x_BWD.shape[0], x_BWD.shape[1]))
        return super().forward(x_BWD, pos_BW, start_B, attend)


def draw_compactly(
    method: Method, some: Sequence[Job], model: ToyModel, slots: int, concurrency: int | None = 1
) -> Drawn:
    """Draw jobs with forwards that skip idle slots; asserts that every slot is free afterwards."""
    sizes = MethodSpec.of(method).sampler_sizes()
    sampling = Sampling(scale=2.0)
    sampler = Sampler(model, sampling, slots=slots, prefill=(3, 4), compact=True, **sizes)
    scheduler = Scheduler(method, sampler, seed=0, concurrency=concurrency)
    drawn: Drawn = {}

    def keep(delivery: Delivery) -> None:
        assert not delivery.error
        drawn[delivery.job.key] = delivery

    scheduler.run(some, keep)
    assert sampler.free == slots
    return drawn


class Pruned:
    """Closes half of its candidates, and half of the rest."""

    rows = 4
    branches = 2
    tokens_per_step = 1

    async def generate(self, prompt: str, s: Session) -> Canvas:
        rows = s.open(4)
        for until, keep in ((4, 2), (8, 1)):
            await s.run(rows, until=until)
            for canvas in rows[:-keep]:  # the last ones stay: their branches move
                s.close(canvas)
            rows = rows[-keep:]
        await s.run(rows)
        return rows[0]


def first_logit(logits_RKTV: Tensor, make_probs: object) -> dict[str, Tensor]:
    """Read one number of the next token's distribution: a probe."""
    return {"logit": logits_RKTV[:, 0, 0, 0]}


class Looking:
    """Looks before each step, so that the step's forward is fed the draft alone."""

    rows = 1
    branches = 2
    tokens_per_step = 5

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        while not canvas.done:
            await s.look([canvas], first_logit)
            length = min(1, s.num_tokens - canvas.length - 1)
            await s.step([canvas], [Draft(torch.zeros(length, dtype=torch.int64))])
        return canvas


METHODS: dict[str, Callable[[ToyModel], Method]] = {
    "plain": lambda _: Plain(),
    "scalingar": lambda _: ScalingAR(4),
    "pruned": lambda _: Pruned(),
    "wanderer": lambda _: Wanderer(),
    "speculative": lambda target: Speculative(drafter(like=target), 3),
    "tree": lambda target: Speculative(drafter(like=target), NARROW),
    "eagle": lambda _: Speculative(eagle(), 2),
    "vvs": lambda target: VVS(drafter(like=target), Uniform(2), NARROW),
    "looking": lambda _: Looking(),
    "sjd": lambda _: SJD(Jacobi("random", "maximal"), 4),
    "sjd_pac": lambda _: Speculative(Jacobi("uniform", "maximal"), Proactive(2, 2, 6)),
    "zipar": lambda _: ZipAR(2),
    "pjd": lambda _: PJD(Jacobi("random", "maximal"), 2, 3, 3),
}


@pytest.mark.parametrize("name", METHODS)
def test_alone_a_job_is_drawn_again_in_every_bit(name: str) -> None:
    """Whatever ran before it over the same sampler: shapes depend on the job alone."""
    model = ToyModel(dtype=torch.float32)
    some = jobs(TEXTS[:3])
    method = METHODS[name](model)
    slots = method.rows * method.branches
    forth = draw_compactly(method, some, model, slots)
    back = draw_compactly(method, some[::-1], model, slots)
    for key, delivery in forth.items():
        again = back[key]
        assert (delivery.tokens, delivery.notes) == (again.tokens, again.notes)
        assert costs(delivery.usage) == costs(again.usage)


@pytest.mark.parametrize("name", METHODS)
def test_moving_branches_loses_nothing_of_them(name: str) -> None:
    """In float64 no shape is seen in a token: compact forwards draw what constant ones draw, at the
    same cost.
    """
    method = METHODS[name](ToyModel())
    some = jobs(TEXTS[:4])
    constant = draw(method, some, slots=16)
    compact = draw_compactly(method, some, ToyModel(), 16, concurrency=None)
    for key, delivery in compact.items():
        assert delivery.tokens == constant[key].tokens
        if name != "eagle":  # which makes its pairs again where a branch was moved
            assert costs(delivery.usage) == costs(constant[key].usage)


def test_closed_candidates_shorten_the_step() -> None:
    model = Watched()
    draw_compactly(Pruned(), jobs(TEXTS[:1]), model, 8)
    assert [rows for rows, columns in model.shapes if columns == 1] == [8] * 4 + [4] * 4 + [2] * 8


def test_columns_that_nobody_needs_are_not_fed() -> None:
    class Once(Plain):
        tokens_per_step = 4

        async def generate(self, prompt: str, s: Session) -> Canvas:
            (canvas,) = s.open()
            await s.step([canvas], [Draft(torch.tensor([1, 2, 3]))])
            await s.run([canvas])
            return canvas

    model = Watched()
    draw_compactly(Once(), jobs(TEXTS[:1]), model, 2)
    decoded = [shape for shape in model.shapes if shape[0] == 2]
    assert decoded[0] == (2, 4)
    assert set(decoded[1:]) == {(2, 1)}


@pytest.mark.parametrize("concurrency", [None, 3, 1])
def test_shapes_do_not_follow_how_long_images_take(
    concurrency: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run drawn again has the shapes of the first, whenever its pictures are finished."""
    some = jobs(TEXTS, images=2)
    runs = []
    for patience in (1, 2, 7, 1000):
        asked: dict[int, int] = {}

        def is_ready(
            picture: Picture, asked: dict[int, int] = asked, after: int = patience
        ) -> bool:
            """Say that a picture is finished when it has been asked so many times."""
            asked[id(picture)] = asked.get(id(picture), 0) + 1
            return asked[id(picture)] >= after

        def wait(picture: Picture, asked: dict[int, int] = asked) -> Image:
            asked[id(picture)] = 1000
            return picture.pixels_HW3.numpy()

        monkeypatch.setattr(Picture, "ready", property(is_ready))
        monkeypatch.setattr(Picture, "image", wait)
        model = Watched()
        drawn = draw_compactly(BestOfN(2, PixelSum()), some, model, 8, concurrency)
        runs.append((model.shapes, {key: drawn[key].tokens for key in sorted(drawn)}))
    for again in runs[1:]:
        assert again == runs[0]


def test_a_bucket_holds_what_is_alive() -> None:
    model = Watched()
    draw_compactly(Plain(), jobs(TEXTS[:3]), model, 16, concurrency=None)
    decoded = {rows for rows, columns in model.shapes if columns == 1}
    assert decoded == {8}  # three images of two branches


def build_spec(*overrides: str) -> RunSpec:
    config = compose("config", ["benchmark.prompts=2", *overrides])
    return build_run_spec(config, {"method": "plain", "benchmark": "pictogram"})


def test_numerics_name_a_run_and_are_checked() -> None:
    with initialize_config_module("conf", version_base="1.3"):
        constant = build_spec("numerics=constant")
        fast = build_spec("numerics=fast")
        assert constant.fingerprint != fast.fingerprint
        assert constant.describe()["run"]["numerics"] == "constant"
        assert fast.describe()["run"]["numerics"] == "fast"
        assert "compact" not in constant.sampler_sizes
        assert fast.sampler_sizes["compact"] is True
        with pytest.raises(UserError, match="numerics=quick: choose from constant, fast"):
            build_spec("numerics=quick")
        with pytest.raises(UserError, match="numerics=fast to have it recorded"):
            build_spec("+sampler.compact=true")


def test_fast_results_stand_apart_in_the_leaderboard(tmp_path: Path) -> None:
    small = (*TOY, "benchmark.prompts=2", "benchmark.images=1", "results=r")
    for numerics in ("constant", "fast"):
        code, said = harness(tmp_path, *small, f"numerics={numerics}")
        assert code == 0, said
    with (tmp_path / "r" / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["numerics"] for row in rows) == ["constant", "fast"]
