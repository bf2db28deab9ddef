"""The laws hold on the embedded model, at its shapes and with its judge and reward."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy import DEVICES

from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.engine.session import Method
from harness.judges.pictogram import PictogramReward
from harness.models.pictogram.generator import Pictogram
from harness.models.pictogram.grammar import generate_prompts
from harness.records import Job, Prompt
from methods.best_of_n import BestOfN
from methods.plain import Plain
from methods.scalingar import ScalingAR

GOLDEN = Path(__file__).with_name("golden.json")

Draw = Callable[[Method, Sequence[Job]], dict[tuple[str, int], Delivery]]


def prompts() -> list[Prompt]:
    rows = generate_prompts(Pictogram().classes, 6, seed=5)
    return [
        Prompt(f"embedded/{i:05d}", row["prompt"], row["tag"], dict(row))
        for i, row in enumerate(rows)
    ]


@pytest.fixture(scope="module", params=DEVICES)
def draw(request: pytest.FixtureRequest) -> Draw:
    model = Pictogram(device=request.param)

    def run(method: Method, jobs: Sequence[Job]) -> dict[tuple[str, int], Delivery]:
        sampler = Sampler(model, Sampling(scale=2.0), slots=16, prefill=(8, 32), render_batch=8)
        done: dict[tuple[str, int], Delivery] = {}
        scheduler = Scheduler(method, sampler, seed=0)
        scheduler.run(jobs, lambda delivery: done.update({delivery.job.key: delivery}))
        assert sampler.free == 16
        return done

    return run


def test_batch_invariance_and_order_change_no_token(draw: Draw) -> None:
    jobs = [Job(prompt, image) for prompt in prompts() for image in range(2)]
    together = draw(Plain(), jobs)
    for some in (jobs[::-1], jobs[5:6]):
        for key, delivery in draw(Plain(), some).items():
            assert delivery.tokens == together[key].tokens


def test_batch_invariance_changes_no_confidence(draw: Draw) -> None:
    """Probes run on as many rows as there are, which their sums must not depend on."""
    jobs = [Job(prompt, 0) for prompt in prompts()[4:]]
    together = draw(ScalingAR(4), jobs)
    alone = draw(ScalingAR(4), jobs[1:])
    for key, delivery in alone.items():
        assert delivery.tokens == together[key].tokens
        assert delivery.notes == together[key].notes


def test_no_choice_reads_the_answer_key(draw: Draw) -> None:
    """The reward parses the prompt's text: with falsified answer keys it chooses the same."""
    rewarded = BestOfN(4, PictogramReward())
    honest = draw(rewarded, [Job(prompt, 0) for prompt in prompts()])
    falsified = [replace(prompt, spec={"tag": "counting", "include": []}) for prompt in prompts()]
    misled = draw(rewarded, [Job(prompt, 0) for prompt in falsified])
    assert honest.keys() == misled.keys()
    for key, delivery in honest.items():
        assert delivery.tokens == misled[key].tokens
        assert delivery.notes == misled[key].notes
    chosen = {delivery.notes["chosen"] for delivery in honest.values()}
    assert len(chosen) > 1  # it does choose


def test_tokens_are_those_of_the_last_release() -> None:
    """A refactoring changes no token; new weights or a meant change of the draw rewrite the file.

    Floating-point kernels differ between processors and versions of torch: where no hashes are on
    file, none can be compared.
    """
    place = name_place()
    golden = json.loads(GOLDEN.read_text())
    model = Pictogram()
    if model.revision != golden["weights"] or place not in golden["tokens"]:
        pytest.skip(
            f"no token hashes for {place} and weights {model.revision}: "
            "write them with this file as a script"
        )
    assert hash_tokens() == golden["tokens"][place]


def name_place() -> str:
    """What decides how sums are rounded: torch's version and the processor's instruction set."""
    version = torch.__version__.split("+")[0]
    return f"torch {version} {torch.backends.cpu.get_cpu_capability()}"


def hash_tokens() -> dict[str, str]:
    """A hash of the tokens of each method."""
    methods = {"plain": Plain(), "best_of_4": BestOfN(4, PictogramReward())}
    return {name: hash_tokens_of(method) for name, method in methods.items()}


def hash_tokens_of(method: Method) -> str:
    sampler = Sampler(Pictogram(), Sampling(scale=2.0), slots=16, prefill=(8, 32), render_batch=8)
    done: list[Delivery] = []
    jobs = [Job(prompt, 0) for prompt in prompts()]
    Scheduler(method, sampler, seed=0).run(jobs, done.append)
    tokens = {delivery.job.prompt.id: delivery.tokens for delivery in done}
    text = json.dumps(tokens, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_golden() -> None:
    """Add the hashes of this place to the file; those of other weights are dropped."""
    revision = Pictogram().revision
    known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"weights": "", "tokens": {}}
    kept = known["tokens"] if known["weights"] == revision else {}
    golden = {"weights": revision, "tokens": {**kept, name_place(): hash_tokens()}}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_golden()
