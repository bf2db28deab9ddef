"""The shipped weights and their networks: what they compute and refuse; and training learns."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.judges.pictogram import PictogramDetector, PictogramReward
from harness.models import FollowableModel, HasClasses, HasCollapse, HasPrefix
from harness.models.pictogram import grammar, world
from harness.models.pictogram import weights as files
from harness.models.pictogram.detector import MICROBATCH, Detector, new_network
from harness.models.pictogram.generator import GPT, PROMPT, GPTSpec, Pictogram
from harness.models.pictogram.grammar import CLASS_SETS, DEFAULT, TASKS
from harness.models.pictogram.reading import soft_score
from harness.models.trunk import causal
from harness.results import gates
from harness.training import (
    export,
    samples,
    train_detector,
    train_generator,
    train_tokenizer,
    verify,
)
from harness.training import loop as training
from harness.training.card import render

SET = DEFAULT
CLASSES = CLASS_SETS[SET]


@pytest.fixture(scope="module")
def model() -> Pictogram:
    return Pictogram(SET)


@pytest.fixture(scope="module")
def scenes() -> list[world.Sample]:
    rng = random.Random("model tests")
    drawn = []
    for i in range(48):
        task = TASKS[i % 6]
        one = world.draw_sample(rng, CLASSES, tasks=[task], style="geneval", layout_share=0.0)
        drawn.append(one)
    return drawn


def encoded(model: Pictogram, scenes: list[world.Sample]) -> torch.Tensor:
    """Codes of the scenes' pictures."""
    pixels = train_tokenizer.to_pixels(np.stack([one.pixels for one in scenes]))
    with torch.no_grad():
        return model.vq.encode(pixels)


def reconstructed(model: Pictogram, scenes: list[world.Sample]) -> np.ndarray:
    """The scenes' pictures, encoded and decoded."""
    with torch.no_grad():
        return model.decode(encoded(model, scenes)).numpy()


def test_its_optional_members_are_declared(model: Pictogram) -> None:
    for protocol in (HasClasses, FollowableModel):
        assert isinstance(model, protocol)
    for protocol in (HasPrefix, HasCollapse):
        assert not isinstance(model, protocol)
    assert model.classes == CLASSES


def test_the_tokenizer_keeps_pictures(model: Pictogram, scenes: list[world.Sample]) -> None:
    pictures = reconstructed(model, scenes)
    assert pictures.shape == (48, 48, 48, 3)
    pairs = zip(scenes, pictures, strict=True)
    assert np.mean([train_tokenizer.decibel(scene.pixels, other) for scene, other in pairs]) >= 27


def test_missing_codes_do_not_disturb_what_is_drawn(
    model: Pictogram, scenes: list[world.Sample]
) -> None:
    codes = encoded(model, scenes)
    half = codes.clone()
    half[:, 72:] = -1
    with torch.no_grad():
        whole = model.decode(codes).float()
        partial = model.decode(half).float()
    assert (whole[:, :20] - partial[:, :20]).abs().mean() < 6
    assert (partial[:, 30:] - 128).abs().mean() < 12


@pytest.mark.parametrize("part", ["generator", "draft"])
def test_decoding_step_by_step_equals_teacher_forcing(part: str) -> None:
    one = Pictogram(SET, part=part)
    text = "a photo of a cat"
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, one.vocab, (1, one.num_tokens), generator=generator)
    cache = one.cache(1)
    start = torch.tensor([PROMPT])

    def last_logits(x: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
        hidden = one.forward(x, pos, start, cache.attend_all(pos))
        return one.head(hidden[:, -1])

    with torch.no_grad():
        expected = one.gpt.forward_train(torch.tensor([grammar.encode(text)]), tokens, causal)
        context = one.context(text, text).unsqueeze(0)
        logits = [last_logits(context, torch.arange(PROMPT).unsqueeze(0))]
        for n in range(4):
            x = one.embed(tokens[:, n : n + 1], torch.tensor([[n]]))
            logits.append(last_logits(x, torch.tensor([[PROMPT + n]])))
    torch.testing.assert_close(torch.stack(logits, 1), expected[:, :5], rtol=1e-3, atol=1e-3)


def test_null_context_is_no_prompt(model: Pictogram) -> None:
    assert model.context(None, "a photo of a cat").shape == (PROMPT, model.dim)
    assert not torch.equal(model.context(None, "x"), model.context("a photo of a cat", "x"))


def test_detectors_find_what_is_there(model: Pictogram, scenes: list[world.Sample]) -> None:
    drawn = [(one.pixels, one.placed) for one in scenes]
    originals = [one.pixels for one in scenes]
    decoded = list(reconstructed(model, scenes))
    for part in ("judge", "reward"):
        detector, _ = Detector.load(SET, part)
        for pictures in (originals, decoded):
            precision, recall, color = train_detector.accuracy(detector, pictures, drawn)
            assert min(precision, recall, color) >= 0.95


def test_detections_do_not_depend_on_what_else_is_in_the_batch(scenes: list[world.Sample]) -> None:
    detector = PictogramDetector(SET)
    pictures = [one.pixels for one in scenes[: MICROBATCH + 3]]
    together = detector.detect(pictures)
    assert together == [detector.detect([picture])[0] for picture in pictures]
    assert together == detector.detect(pictures[::-1])[::-1]


def test_the_reward_reads_text_and_picture_only(scenes: list[world.Sample]) -> None:
    reward = PictogramReward(SET)
    texts = [one.text for one in scenes]
    pictures = [one.pixels for one in scenes]
    right = reward(texts, pictures)
    wrong = reward(texts[1:] + texts[:1], pictures)
    both = [(a, b) for a, b in zip(right, wrong, strict=True) if a is not None and b is not None]
    assert np.mean([a > b for a, b in both]) > 0.95
    assert reward(["a sunset in Provence"], pictures[:1]) == [None]
    assert all(0 <= value <= 1 for value in right if value is not None)


def test_the_soft_score_of_nothing_is_low() -> None:
    spec = grammar.parse("a photo of a red car left of a blue dog")
    assert spec is not None
    assert soft_score(spec, []) == 0.0


def test_judge_and_reward_are_independent() -> None:
    assert PictogramDetector(SET).id != PictogramReward(SET).id
    judge, _ = Detector.load(SET, "judge")
    reward, _ = Detector.load(SET, "reward")
    assert type(judge.network) is not type(reward.network)


def test_unknown_sets_and_altered_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="neither a folder nor one of the shipped sets pictogram_16"
    ):
        Pictogram("pictogram_17")
    copy = tmp_path / "set"
    shutil.copytree(files.find_set(SET), copy)
    altered = bytearray((copy / "judge.safetensors").read_bytes())
    altered[-1] ^= 1
    (copy / "judge.safetensors").write_bytes(altered)
    with pytest.raises(ValueError, match="sha256"):
        PictogramDetector(str(copy))


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    config = {"architecture": "residual", "classes": list(CLASSES)}
    files.write_part(tmp_path / "judge.safetensors", new_network("residual", 3), config)
    with pytest.raises(ValueError, match="head"):
        PictogramDetector(str(tmp_path))


def test_the_card_vouches_for_the_files() -> None:
    folder = files.find_set(SET)
    card = json.loads((folder / "card.json").read_text())
    parts = sorted(folder.glob("*.safetensors"))
    assert card["sha256"] == {path.name: files.hash_file(path) for path in parts}
    assert sum(path.stat().st_size for path in parts) <= 20e6


def test_generator_training_learns(tmp_path: Path, model: Pictogram) -> None:
    options = training.Options("pictogram_16", cpu_minutes=1, seed=0, work=tmp_path)
    gpt = GPT(GPTSpec(layers=2, dim=64, heads=2, hidden=128))
    optimisers = training.muon_adamw(gpt, 0.02, 3e-3)
    words, tokens = train_generator.batch(options, random.Random(0), model.vq.encode)
    losses = []
    for i in range(25):
        training.set_rate(optimisers, min(1.0, (i + 1) / 5))
        loss = train_generator.loss_of_batch(gpt, words[:16], tokens[:16], tokens[:16])
        training.descend(loss, gpt, optimisers)
        losses.append(loss.item())
    assert losses[0] > 5
    assert losses[-1] < 3


def test_checkpoints_continue(tmp_path: Path) -> None:
    path = tmp_path / "part.pt"
    module = torch.nn.Linear(8, 8)
    optimisers = training.muon_adamw(module, 0.01, 1e-3)
    progress, _ = training.resume(path)
    training.descend(module(torch.ones(2, 8)).square().sum(), module, optimisers)
    progress.tick(2)
    progress.note(loss=1.0)
    training.save(path, progress, module, optimisers)
    again, states = training.resume(path)
    assert (again.step, again.samples, again.curve) == (1, 2, progress.curve)
    assert torch.equal(states["model"]["weight"], module.weight)
    training.restore(training.muon_adamw(module, 0.01, 1e-3), states["optimisers"])


def test_a_grown_generator_begins_as_the_one_it_grew_from(tmp_path: Path) -> None:
    """More layers and hidden units change nothing until they are trained."""
    small = GPT(GPTSpec(layers=2, dim=64, heads=2, hidden=64))
    large = GPT(GPTSpec(layers=3, dim=64, heads=2, hidden=96))
    torch.nn.init.normal_(small.trunk.layers[1].feed_forward.w2.weight, std=0.1)  # type: ignore
    torch.nn.init.normal_(small.trunk.layers[0].attention.wo.weight, std=0.1)  # type: ignore
    files.write_part(tmp_path / "generator.safetensors", small, {})
    options = training.Options(SET, cpu_minutes=1, seed=0, work=tmp_path, warm=str(tmp_path))
    training.warm(options, "generator", large)
    words = torch.randint(0, 200, (2, 32))
    tokens = torch.randint(0, 512, (2, 144))
    one = small.forward_train(words, tokens, causal)
    other = large.forward_train(words, tokens, causal)
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)  # half precision on the way
    assert one.std() > 0.1


def test_a_shipped_set_can_be_trained_on(tmp_path: Path) -> None:
    options = training.Options(SET, cpu_minutes=1, seed=0, work=tmp_path)
    export.unpack(options, files.find_set(SET))
    for part in files.PARTS:
        progress, states = training.resume(options.checkpoint(part))
        assert progress.samples > 0
        export.rebuild(part, states, options)
    with pytest.raises(ValueError, match="move it away"):
        export.unpack(options, files.find_set(SET))


def test_an_unfinished_set_can_be_trained_on_but_not_drawn_with(tmp_path: Path) -> None:
    here = training.Options(SET, cpu_minutes=1, seed=0, work=tmp_path / "here")
    there = training.Options(SET, cpu_minutes=1, seed=0, work=tmp_path / "there")
    folder = tmp_path / SET
    export.unpack(here, files.find_set(SET))
    for part in ("draft", "eagle", "reward", *files.OPTIONAL_PARTS):
        here.checkpoint(part).unlink(missing_ok=True)
    export.export(here, folder, unfinished=True)
    assert {path.stem for path in folder.glob("*.safetensors")} == {"tokenizer", "judge"}
    model_card = (folder / "MODEL_CARD.md").read_text()
    assert "Not here yet: generator, draft, eagle, reward." in model_card
    with pytest.raises(files.WeightsError, match=r"generator\.safetensors is missing"):
        Pictogram(str(folder))
    export.unpack(there, folder)
    for part in ("tokenizer", "generator", "judge"):
        was, before = training.resume(here.checkpoint(part))
        now, after = training.resume(there.checkpoint(part))
        assert (was.step, was.samples) == (now.step, now.samples)
        for name, tensor in before["model"].items():
            torch.testing.assert_close(after["model"][name], tensor, rtol=1e-2, atol=1e-3)


SHIPPED = sorted(path for path in files.FOLDER.iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_the_card_for_people_is_the_card_for_programs(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    assert (folder / "MODEL_CARD.md").read_text() == render(card)


def test_a_measurement_that_contradicts_the_card_is_an_objection() -> None:
    found = [gates.Gate("a", 0.5, least=0.4), gates.Gate("b", 0.1, least=0.4)]
    rows = [{"name": "a", "value": 0.8, "holds": True}, {"name": "b", "value": 0.1, "holds": False}]
    assert gates.objections(found, {"on": "elsewhere", "gates": rows}) == [
        "a is 0.500, the card says 0.800"
    ]
    assert gates.objections(found, None) == ["b is missed by 0.3 and the card does not say so"]


@pytest.mark.long
def test_the_card_states_what_verify_measures() -> None:
    card = json.loads((files.find_set(SET) / "card.json").read_text())
    parts = [part for part in verify.PARTS if part != "natural"]
    measured = verify.measure(samples.Study(samples.Bench(SET), samples.FEW), parts)
    assert gates.objections(measured, card["measured"]["quick"]) == []


def test_the_card_states_what_verify_measures_without_drawing() -> None:
    """In short: all gates of files, tokenizer and detectors, and the names of those of samples."""
    stated = json.loads((files.find_set(SET) / "card.json").read_text())["measured"]["quick"]
    bench = samples.Bench(SET)
    study = samples.Study(bench, samples.FEW)
    measured = verify.measure(study, ["tokenizer", "detectors", "files"])
    assert gates.objections(measured, stated) == []
    tasks = len(TASKS)
    few = replace(samples.FEW, prompts=tasks, prefixes=2, relaxed=tasks, by_method=1)
    named = {gate.name for gate in verify.sample_gates(samples.Study(bench, few))}
    on_card = {row["name"] for row in stated["gates"] if not row["name"].startswith("natural: ")}
    assert named | {gate.name for gate in measured} == on_card
