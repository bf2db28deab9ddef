"""Training of the draft: it continues after a kill, begins with the generator, ends on time."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.models.pictogram import weights as files
from harness.models.pictogram.generator import GPT, GPTSpec, Pictogram, draw_tokens, draw_with_probs
from harness.records import UserError
from harness.training import export, train_draft
from harness.training import loop as training
from harness.training.train_tokenizer import new_vq

SET = "pictogram_16"
TEACHER = GPTSpec(layers=2, dim=32, heads=2, hidden=48)
SMALL = GPTSpec(layers=1, dim=32, heads=2, hidden=32)
RECIPE = train_draft.Recipe(SMALL, from_generator=True, fresh_every=2, kept=16)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> training.Options:
    """A tiny generator's checkpoint and the shipped tokenizer's, and batches of 8."""
    monkeypatch.setitem(train_draft.TEACHERS, SET, TEACHER)
    monkeypatch.setattr(training, "compile_if_possible", lambda function: function)
    sizes = {"BATCH": 8, "DRAWN": 6, "SCENES": 2, "FIRST": 2, "HELD_OUT": 4}
    for name, size in sizes.items():
        monkeypatch.setattr(train_draft, name, size)
    made = training.Options(SET, cpu_minutes=1e-9, seed=3, work=tmp_path / "work", samples=48)
    torch.manual_seed(0)
    teacher = teach(GPT(TEACHER))
    training.write(made.checkpoint("generator"), checkpoint(teacher, average=teacher.state_dict()))
    vq = new_vq()
    vq.load_state_dict(files.read_part(SET, "tokenizer")[0])
    training.write(made.checkpoint("tokenizer"), checkpoint(vq))
    return made


def teach(gpt: GPT) -> GPT:
    """Give random weights to what is zero at the start, so that layers do something."""
    for name, weight in gpt.named_parameters():
        if name.endswith((".wo.weight", ".w2.weight")):
            torch.nn.init.normal_(weight, std=0.2)
    return gpt


def checkpoint(module: torch.nn.Module, **more: Any) -> dict[str, Any]:
    progress = training.Progress().state()
    return {"progress": progress, "model": module.state_dict(), "optimisers": [], "seed": 0, **more}


def interrupt_at(step: int) -> Callable[..., None]:
    """Make a `descend` that is killed at a step."""
    descend = training.descend
    count = 0

    def descend_or_die(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count > step:
            raise KeyboardInterrupt
        descend(*arguments)

    return descend_or_die


def test_a_killed_training_ends_as_if_it_had_not_been(
    options: training.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    whole = train_draft.train(options, RECIPE)
    options.checkpoint("draft").unlink()

    monkeypatch.setattr(training.Alarm, "rings", lambda self: True)
    with monkeypatch.context() as patch:
        patch.setattr(training, "descend", interrupt_at(3))
        with pytest.raises(KeyboardInterrupt):
            train_draft.train(options, RECIPE)
    progress, _ = training.resume(options.checkpoint("draft"))
    assert (progress.step, progress.samples) == (3, 24)
    torch.manual_seed(2)
    continued = train_draft.train(options, RECIPE)

    progress, _ = training.resume(options.checkpoint("draft"))
    assert (progress.step, progress.samples) == (6, 48)
    for name, weight in whole.state_dict().items():
        assert torch.equal(continued.state_dict()[name], weight), name


def test_it_learns_the_generators_distributions(options: training.Options) -> None:
    options.samples = 8 * 60
    teacher = train_draft.trained_generator(options)
    held_out = train_draft.draw_held_out(teacher, options)
    begun = GPT(SMALL)
    train_draft.adopt_layers(begun, teacher)
    learned = train_draft.train(options, RECIPE)
    before = train_draft.acceptance(begun, *held_out)
    after = train_draft.acceptance(learned, *held_out)
    assert after > before + 0.05


def test_it_refuses_a_checkpoint_of_another_shape(options: training.Options) -> None:
    options.samples = 8
    train_draft.train(options, RECIPE)
    with pytest.raises(UserError, match=r"--layers 2: .* has 1"):
        train_draft.train(options, train_draft.Recipe())


def test_a_draft_of_the_generators_shape_begins_as_the_generator() -> None:
    teacher = teach(GPT(TEACHER))
    draft = GPT(TEACHER)
    train_draft.adopt_layers(draft, teacher)
    for name, weight in teacher.state_dict().items():
        assert torch.equal(draft.state_dict()[name], weight), name


def test_a_smaller_draft_begins_with_the_first_layers() -> None:
    teacher = teach(GPT(TEACHER))
    draft = GPT(SMALL)
    train_draft.adopt_layers(draft, teacher)
    ours = draft.state_dict()
    theirs = teacher.state_dict()
    wqkv = "trunk.layers.0.attention.wqkv.weight"
    assert torch.equal(ours[wqkv], theirs[wqkv])
    w2 = "trunk.layers.0.feed_forward.w2.weight"
    assert torch.equal(ours[w2], theirs[w2][:, :32])


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (GPTSpec(1, 16, 2, 32), "--dim 16 --heads 2"),
        (GPTSpec(3, 32, 2, 32), "--layers 3"),
        (GPTSpec(1, 32, 2, 64), "--hidden 64"),
    ],
)
def test_a_shape_that_the_generator_cannot_give_is_refused(spec: GPTSpec, named: str) -> None:
    with pytest.raises(UserError, match=named):
        train_draft.adopt_layers(GPT(spec), GPT(TEACHER))


def test_the_distributions_of_a_drawing_are_the_generators() -> None:
    teacher = teach(GPT(TEACHER)).requires_grad_(False)
    texts = ["a photo of a dog", "a photo of two cats"]
    tokens, probs = draw_with_probs(teacher, texts, scale=train_draft.SCALE, seed=4)
    assert torch.equal(tokens, draw_tokens(teacher, texts, scale=train_draft.SCALE, seed=4))
    words = torch.tensor([train_draft.grammar.encode(text) for text in texts])
    torch.testing.assert_close(probs, train_draft.guided_probs(teacher, words, tokens))


def test_the_overlap_is_the_acceptance_of_the_exact_rule() -> None:
    draft = teach(GPT(SMALL)).requires_grad_(False)
    words = torch.zeros(3, 32, dtype=torch.long)
    tokens = torch.randint(0, 512, (3, 144))
    probs = torch.rand(3, 144, 512).softmax(-1)
    lesson = (words, tokens, probs)
    rejected = 1 - train_draft.acceptance(draft, *lesson)
    difference = train_draft.loss_of_batch(draft, *lesson, 2.0) - train_draft.loss_of_batch(
        draft, *lesson
    )
    assert float(difference) == pytest.approx(2 * rejected, abs=2e-3)


def test_a_trained_shape_is_exported(options: training.Options, tmp_path: Path) -> None:
    options.samples = 8
    trained = train_draft.train(options, RECIPE)
    options.checkpoint("generator").unlink()
    export.export(options, tmp_path / "out")
    draft = Pictogram(str(tmp_path / "out"), part="draft")
    assert draft.gpt.spec == SMALL
    norm = draft.gpt.trunk.norm.weight
    torch.testing.assert_close(norm, trained.trunk.norm.weight, rtol=1e-3, atol=1e-3)


def test_a_candidate_is_the_average_in_half_precision(
    options: training.Options, tmp_path: Path
) -> None:
    """It changes no weights, and can be exported or trained on where it is laid."""
    with pytest.raises(files.WeightsError, match="train the draft first"):
        export.write_candidate("draft", options, tmp_path)
    options.samples = 8
    trained = train_draft.train(options, RECIPE)
    export.write_candidate("draft", options, tmp_path)
    assert [path.name for path in tmp_path.rglob("*.pt") if "work" not in path.parts] == [
        "draft.pt"
    ]

    options.checkpoint("draft").write_bytes((tmp_path / "training" / "draft.pt").read_bytes())
    options.samples = 16
    train_draft.train(options, RECIPE)
    states = torch.load(tmp_path / "training" / "draft.pt", weights_only=True)
    assert states["spec"] == asdict(SMALL)
    for name, weight in trained.state_dict().items():
        assert torch.equal(states["average"][name], weight.half()), name


def test_options_reach_the_recipe() -> None:
    parser = training.parser("train_draft", "", cpu_minutes=1)
    training.add_samples(parser)
    train_draft.add_recipe(parser)
    assert train_draft.read_recipe(parser.parse_args([])) == train_draft.Recipe()
    line = (
        "--samples 640 --layers 3 --dim 32 --heads 4 --hidden 64 --from-generator "
        "--fresh-every 5 --kept 70 --rate 0.5 --overlap 2"
    )
    arguments = parser.parse_args(line.split())
    assert training.options(arguments).samples == 640
    recipe = train_draft.read_recipe(arguments)
    assert recipe == train_draft.Recipe(GPTSpec(3, 32, 4, 64), True, 5, 70, 0.5, 2.0)
    assert asdict(recipe).keys() == asdict(train_draft.Recipe()).keys()


def test_no_samples_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    training.add_samples(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--samples", "0"])
    assert "must be at least 1" in capsys.readouterr().err


def test_a_budget_of_samples_replaces_the_minutes() -> None:
    progress = training.Progress(step=2, samples=50, cpu_s=600)
    assert progress.share(cpu_minutes=20) == 0.5
    assert progress.share(cpu_minutes=20, samples=200) == 0.25
    assert progress.share(cpu_minutes=1, samples=10) == 1


def test_an_alarm_rings_once_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(training.time, "monotonic", lambda: now)
    alarm = training.Alarm(every_s=60, _since=now)
    now = 159.0
    assert not alarm.rings()
    now = 160.0
    assert alarm.rings()
    assert not alarm.rings()


def test_a_pool_forgets_the_oldest(options: training.Options) -> None:
    teacher = train_draft.trained_generator(options)
    pool = train_draft.Pool(teacher, options, kept=16)
    for _ in range(3):
        pool.add_fresh(random.Random(0))
    assert len(pool) == 16
    assert len(pool.state()) == 2
