"""The gates of a world like natural images say what they measure, and by how much it is missed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from test_train_generator import options as options
from test_train_generator import vq as vq

from harness.models.pictogram import grammar
from harness.models.pictogram.generator import GPT, GPTSpec, draw_tokens, draw_with_probs
from harness.records import Usage, UserError
from harness.results.gates import Gate, platform, summarise
from harness.training import loop as training
from harness.training import (
    measure_draft,
    natural_gates,
    samples,
    train_detector,
    verify,
)
from harness.training.card import render

SET = "pictogram_16"
TAGS = ("color_attr", "counting")
PROMPTS = 4
"""Two of each task."""


# --- a world in which everything is known ---------------------------------------------------------


def drawn_with(
    right: Sequence[Sequence[float]],
    *,
    accepted: Sequence[int] = (0, 1),
    passes: int = 145,
    tags: Sequence[str] = TAGS,
) -> samples.Drawn:
    """Samples [prompts, images] with these verdicts, the same notes and costs for every image."""
    images = np.size(right)
    rows: list[Any] = [{"tag": tags[p % len(tags)], "prompt": f"{p}"} for p in range(len(right))]
    return samples.Drawn(
        rows=rows,
        tokens=torch.zeros(0),
        pictures=np.zeros(0),
        right=np.array(right, bool),
        notes=[{"accepted": list(accepted)}] * images,
        usages=[Usage(target_passes=passes)] * images,
    )


def share_right(numerator: int, images: int = 8) -> list[list[float]]:
    """So many right images of each prompt."""
    return [[float(i < numerator) for i in range(images)]] * PROMPTS


class PlantedWorld:
    """Samples whose gates are known beforehand."""

    bench = SimpleNamespace(draft=SimpleNamespace(id="draft", revision="r"))
    agreement = 0.9

    def __init__(self) -> None:
        self.drawn = drawn_with(share_right(4))
        shape = self.drawn.right.shape
        self.signals = samples.Signals(
            reward=self.drawn.right.astype(float),  # an oracle
            likelihood=np.zeros(shape),
            entropy=1.25 - self.drawn.right,  # low where the image is right
            top_1=np.full(shape, 0.5),
            peak_entropy=np.zeros(shape),
            acceptance=0.75,
            tokens_per_pass=3.0,
        )
        self.by_method = {
            # exact: 1 of 1 accepted twice in 2 verifications; right as often as plain
            "exact": drawn_with(share_right(4), accepted=(1, 1), passes=60),
            "lantern": drawn_with(share_right(3), accepted=(0, 1, 1), passes=52),
            "lantern_plus": drawn_with(share_right(4), passes=58),
            "vvs_3": drawn_with(share_right(1), passes=26),
            "vvs_3_cap_2": drawn_with(share_right(2), passes=40),
            "zipar": drawn_with(share_right(5), passes=57),
        }
        self.asked: list[Any] = []

    def draw_by(self, method: Any) -> samples.Drawn:
        self.asked.append(method)
        return list(self.by_method.values())[len(self.asked) - 1]

    def draw_swapped(self, share: float) -> np.ndarray:
        return np.array(share_right(4 if share == 0 else 3), bool)


EXPECTED = {
    "natural: mean top-1 probability": (0.5, "pass"),
    "natural: mean entropy, nats": (0.75, ""),
    "natural: loss by near codes, 15 % while drawing": (0.125, "missed by 0.075"),
    "natural: draft acceptance per token": (0.75, "pass"),
    "natural: LANTERN accepts above exact, share": (2.0, "pass"),
    "natural: LANTERN, loss": (0.125, "missed by 0.045"),
    "natural: LANTERN++, loss": (0.0, "pass"),
    "natural: VVS, interval 3, LANTERN's passes over its": (2.0, "pass"),
    "natural: VVS, interval 3, loss": (0.375, "missed by 0.17"),
    "natural: VVS, interval 3, cap 2, LANTERN's passes over its": (1.3, "pass"),
    "natural: VVS, interval 3, cap 2, loss": (0.25, "missed by 0.05"),
    "natural: ZipAR, window 4, loss": (-0.125, "pass"),
    "natural: plain": (0.5, "pass"),
    "natural: plain, color_attr": (0.5, "pass"),
    "natural: best of 4 by reward, gain": (0.0, "missed by 0.15"),
    "natural: entropy AUC": (1.0, "pass"),
    "natural: reward and judge agree": (0.9, "pass"),
}


def test_each_gate_measures_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Best of 4 gains nothing here: of eight images the first four are right, the others wrong."""
    monkeypatch.setattr(natural_gates, "new_drafter", lambda *_: None)
    world = PlantedWorld()
    found = {gate.name: gate for gate in natural_gates.natural_gates(world)}  # type: ignore[arg-type]
    assert list(found) == list(EXPECTED)
    for name, (value, verdict) in EXPECTED.items():
        assert found[name].value == pytest.approx(value), name
        assert found[name].verdict == verdict, name
    loss = found["natural: LANTERN, loss"]
    assert loss.low == pytest.approx(0.125)  # every prompt loses the same
    assert loss.high == pytest.approx(0.125)


def test_a_reward_that_chooses_gains_and_one_that_does_not_gains_nothing() -> None:
    """One of four images of each prompt is right: an oracle gains 3/4."""
    world = PlantedWorld()
    world.drawn = drawn_with([[0, 1, 0, 0] * 2] * PROMPTS)
    for reward, gain in ((world.drawn.right.astype(float), 0.75), (np.zeros((4, 8)), -0.25)):
        world.signals = samples.Signals(
            reward, reward, -reward, reward, reward, acceptance=0.0, tokens_per_pass=1.0
        )
        gates = natural_gates.headroom_gates(world)  # type: ignore[arg-type]
        found = {gate.name: gate.value for gate in gates}
        assert found["natural: best of 4 by reward, gain"] == pytest.approx(gain)


def test_losses_are_against_plain_and_exact_images_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Plain 4 of 8, exact 8 of 8: 3/4; LANTERN's 3 of 8 loses 3/8."""
    monkeypatch.setattr(natural_gates, "new_drafter", lambda *_: None)
    world = PlantedWorld()
    world.by_method["exact"] = drawn_with(share_right(8), accepted=(1, 1))
    found = {gate.name: gate.value for gate in natural_gates.method_gates(world)}  # type: ignore[arg-type]
    assert found["natural: LANTERN, loss"] == pytest.approx(3 / 8)


def preset(name: str) -> dict[str, Any]:
    """The options of a method's preset, its drafter and titles left out."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("config", [f"method={name}"])
    options: Any = OmegaConf.to_container(config.method, resolve=True)
    return {key: value for key, value in options.items() if key not in ("drafter", "title")}


@pytest.mark.parametrize(
    ("measured", "name"),
    [
        ("lantern", "lantern"),
        ("lantern_plus", "lantern_plus"),
        ("vvs_3", "vvs"),
        ("vvs_3_cap_2", "vvs_capped"),
    ],
)
def test_the_settings_are_those_of_the_presets(measured: str, name: str) -> None:
    """What a preset states and the gates do not is the default of the class."""
    Plugins.instance()
    stated = preset(name)
    gated = {**measure_draft.METHODS[measured], "gamma": measure_draft.GAMMA}
    assert gated["rule"].items() <= stated["rule"].items()
    assert gated.get("cap") == stated.get("cap")
    assert gated["gamma"] == stated["gamma"]
    assert gated.get("schedule", {}).items() <= stated.get("schedule", {}).items()


def test_zipars_setting_is_that_of_its_preset() -> None:
    Plugins.instance()
    assert preset("zipar") == natural_gates.ZIPAR


# --- tokens swapped while drawing -----------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTSpec(layers=1, dim=32, heads=2, hidden=32, side=4))


def test_swapped_tokens_are_what_the_next_ones_follow(gpt: GPT) -> None:
    """The probabilities behind them are those of the image with the swaps in it."""
    texts = ["a photo of a cat", "a photo of a dog"]

    def add_one(token_B1: torch.Tensor) -> torch.Tensor:
        return (token_B1 + 1) % gpt.spec.codes

    plain = draw_tokens(gpt, texts, scale=2.0, seed=0)
    swapped, probs = draw_with_probs(gpt, texts, scale=2.0, seed=0, swap=add_one)
    assert torch.equal(swapped[:, 0], add_one(plain[:, :1])[:, 0])
    model = SimpleNamespace(gpt=gpt)
    expected = samples.teacher_forced(model, texts, swapped, 2.0)  # type: ignore[arg-type]
    torch.testing.assert_close(probs, expected, rtol=1e-3, atol=1e-4)


def test_a_swap_takes_as_many_as_asked_and_only_to_near_codes() -> None:
    angle = torch.linspace(0, math.pi, 64)
    codes = torch.stack((angle.cos(), angle.sin()), -1)
    token_B1 = torch.arange(64).repeat(100)[:, None]
    swapped = samples.NearSwap(codes, 0.15)(token_B1)
    changed = swapped != token_B1
    assert float(changed.float().mean()) == pytest.approx(0.15, abs=0.02)
    assert int((swapped - token_B1).abs().max()) <= 5
    inner = (token_B1 >= 3) & (token_B1 < 61)
    assert int((swapped - token_B1)[inner].abs().max()) <= 3  # two or three on either side
    assert torch.equal(samples.NearSwap(codes, 0.0)(token_B1), token_B1)


def test_probabilities_are_as_sharp_as_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that knows four equal codes, a draft that knows two of them."""

    def planted(model: str, texts: Sequence[str], tokens: torch.Tensor, scale: float) -> Any:
        del scale
        probs = torch.zeros(len(texts), tokens.shape[1], 8)
        count = 4 if model == "target" else 2
        probs[..., :count] = 1 / count
        return probs

    monkeypatch.setattr(samples, "teacher_forced", planted)
    drawn = drawn_with([[1, 0], [0, 1]])
    drawn = samples.Drawn(
        drawn.rows,
        torch.zeros(2, 2, 144, dtype=torch.long),
        np.zeros((2, 2, 48, 48, 3), np.uint8),
        drawn.right,
        drawn.notes,
        drawn.usages,
    )
    bench: Any = SimpleNamespace(
        model="target", draft="draft", reward=lambda texts, pictures: [0.0] * len(texts)
    )
    signals = samples.Signals.of(bench, drawn)
    top_1, entropy = natural_gates.sharpness_gates(signals)
    assert top_1.value == pytest.approx(0.25)
    assert entropy.value == pytest.approx(math.log(4))
    assert signals.acceptance == pytest.approx(0.5)


# --- saying it ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "verdict"),
    [
        (Gate("a", 0.825, most=0.65), "missed by 0.17"),
        (Gate("a", 0.65, most=0.65), "pass"),
        (Gate("a", 0.0504, most=0.05), "missed by 0.0004"),
        (Gate("a", 0.81, least=0.85, most=0.95), "missed by 0.04"),
        (Gate("a", 0.96, least=0.85, most=0.95), "missed by 0.01"),
        (Gate("a", 0.5), ""),
    ],
)
def test_a_gate_says_whether_it_holds_or_by_how_much_it_is_missed(gate: Gate, verdict: str) -> None:
    assert gate.verdict == verdict
    assert str(gate).endswith(verdict or "report")
    assert Gate.from_row(json.loads(json.dumps(gate.to_row()))) == gate


def test_a_summary_names_what_is_missed() -> None:
    gates = [Gate("a", 1.0, least=0.5), Gate("b", 0.4, least=0.5), Gate("c", 7.0)]
    assert summarise(gates) == "1 of 2 gates hold; missed: b (missed by 0.1)"
    assert summarise(gates[:1]) == "1 of 1 gates hold"


def test_the_card_keeps_a_missed_gate_and_its_interval() -> None:
    rows = [Gate("a", 0.171, most=0.08, low=0.1, high=0.24).to_row(), Gate("b", 1.0).to_row()]
    card = {
        "set": "s",
        "classes": ["cat"],
        "sha256": {},
        "parts": {"reward": {"recipe": {"broken": 0.1}, **dict.fromkeys(CARD_COLUMNS, 1)}},
        "measured": {"quick": {"on": "here", "gates": rows}},
    }
    text = render(card)
    assert "| a | 0.171 [0.100, 0.240] | ≤ 0.08 | **missed by 0.091** |" in text
    assert "On here. 0 of 1 gates hold; missed: a (missed by 0.091)." in text
    assert "Reward: trained with `--broken 0.1`." in text


CARD_COLUMNS = ("parameters", "seed", "cpu_min", "steps", "samples")


def test_some_parts_replace_their_rows_and_keep_the_others() -> None:
    former = verify.replace_gates(None, [Gate("a", 1.0), Gate("b", 2.0)])
    table = verify.replace_gates(former, [Gate("b", 3.0), Gate("c", 4.0)])
    assert [(row["name"], row["value"]) for row in table["gates"]] == [("a", 1), ("b", 3), ("c", 4)]
    assert table["on"] == platform()


def test_parts_of_two_platforms_are_not_mixed() -> None:
    table = {"on": "another machine", "gates": []}
    with pytest.raises(UserError, match=r"measured on another machine.*measure all parts"):
        verify.expect_same_platform(table, ["natural"], "quick")
    verify.expect_same_platform(table, list(verify.PARTS), "quick")
    verify.expect_same_platform(None, ["natural"], "quick")


# --- the shipped sets -----------------------------------------------------------------------------


def test_near_codes_are_swapped_in_images_of_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt is drawn as often as a method draws it, and judged."""
    size = samples.Size(prompts=1, images=1, scenes=1, prefixes=1, relaxed=1, by_method=2, edits=1)
    study = samples.Study(samples.Bench(SET), size)
    drawn = []
    judge = study.bench.correct

    def judge_and_keep(asked: Any) -> np.ndarray:
        drawn.append([picture for _, picture in asked])
        return judge(asked)

    monkeypatch.setattr(study.bench, "correct", judge_and_keep)
    assert study.draw_swapped(0.0).shape == (1, 2)
    assert study.draw_swapped(1.0).shape == (1, 2)
    assert not np.array_equal(drawn[0], drawn[1])


@pytest.mark.long
def test_a_set_is_measured_at_a_toy_size() -> None:
    """Every gate is there, and methods are drawn with their own settings."""
    size = samples.Size(prompts=6, images=4, scenes=6, prefixes=1, relaxed=1, by_method=1, edits=1)
    study = samples.Study(samples.Bench(SET), size)
    found = verify.measure(study, ["natural"])
    assert [gate.name for gate in found] == list(EXPECTED)
    assert all(math.isfinite(gate.value) for gate in found)


@pytest.mark.long
def test_the_card_states_the_natural_gates() -> None:
    card = json.loads((verify.files.find_set(grammar.DEFAULT) / "card.json").read_text())
    stated = card["measured"]["quick"]
    if not any(row["name"] in EXPECTED for row in stated["gates"]):
        pytest.skip("the card has none yet: verify --quick --parts natural --write puts them there")
    study = samples.Study(samples.Bench(grammar.DEFAULT), samples.FEW)
    found = verify.measure(study, ["natural"])
    assert verify.objections(found, stated) == []


# --- a reward that errs ---------------------------------------------------------------------------


def test_a_detector_sees_as_many_broken_and_worn_pictures_as_asked() -> None:
    classes = grammar.CLASS_SETS[SET]
    for broken in (0.0, 1.0):
        rng = random.Random(0)
        scenes = [train_detector.one_scene(rng, classes) for _ in range(8)]
        spoilt = [train_detector.break_object(one, rng, classes, broken) for one in scenes]
        lost = [len(was[1]) - len(now[1]) for was, now in zip(scenes, spoilt, strict=True)]
        assert lost == [int(broken and len(scene[1]) > 0) for scene in scenes]
    x = torch.rand(16, 3, 48, 48)
    for worn in (0.0, 1.0):
        changed = train_detector.wear(x, np.random.default_rng(0), worn) != x
        assert bool(changed.flatten(1).any(1).all()) == bool(worn)
        assert bool(changed.any()) == bool(worn)


def test_a_detectors_recipe_is_kept_and_another_one_is_refused(
    options: training.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends after the samples that were asked for, and its checkpoint names what differs."""
    monkeypatch.setattr(train_detector, "BATCH", 2)
    monkeypatch.setattr(train_detector, "measure", lambda *_: {})
    options.samples = 4
    recipe = train_detector.Recipe(broken=0.1, worn=0.5)
    train_detector.train(options, "reward", "hourglass", recipe)
    progress, states = training.resume(options.checkpoint("reward"))
    assert progress.samples == options.samples
    assert states["recipe"] == {"broken": 0.1, "worn": 0.5, "decoded": 0.5}
    with pytest.raises(UserError, match=r"--broken 0\.5: .* was trained with 0\.1"):
        train_detector.train(options, "reward", "hourglass")
