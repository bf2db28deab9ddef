"""Whatever takes a GPU's memory is declared before slots are chosen, and the sum is printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_llamagen import tiny_t5
from test_memory import Peak, spec_of
from test_vlm import tiny_config, tiny_processor
from toy import TEXTS, ToyModel, jobs

from benchmarks.geneval.benchmark import Evaluator
from benchmarks.geneval.colors import Clip
from benchmarks.geneval.mmdet_backend import Mmdet
from benchmarks.metrics.image_reward import ImageReward
from harness.check import main as check
from harness.check.capacity import Capacity, measure_capacity
from harness.drafters.eagle import Eagle, Layer, LayerWeights
from harness.drafters.model import DraftModel
from harness.engine.acceptance import Draft
from harness.engine.canvas import Canvas
from harness.engine.draft_trees import Static
from harness.engine.forward import DecodeBatch
from harness.engine.guidance import Sampling
from harness.engine.memory_need import (
    GB,
    MemoryNeed,
    SamplerShape,
    count_weights,
    list_declared,
    list_sampler_parts,
    need_beside,
)
from harness.engine.meter import Meter
from harness.engine.method_spec import MethodSpec
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.engine.session import Method, Session
from harness.judges.inception import InceptionFeatures
from harness.judges.local_vlm import LocalVLM
from harness.judges.verifier import ChatReward, ChatVerifier
from harness.models.captions import T5, Features
from harness.models.kv_cache import KVCache
from harness.models.linear import can_pack
from harness.models.pictogram.generator import Pictogram
from harness.models.trunk import Trunk, TrunkSpec, prepare
from harness.records import MemoryPart
from harness.runs.execute import Executor
from methods.best_of_n import BestOfN
from methods.gridar import GridAR
from methods.lantern import Lantern
from methods.plain import Plain
from methods.speculative import Speculative

VOCAB = 512


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published dimensions of Qwen2.5-VL-7B-Instruct, without its weights."""
    config = tiny_config()
    text = config.get_text_config()
    text.hidden_size = 3584
    text.intermediate_size = 18944
    text.num_hidden_layers = 28
    text.num_attention_heads = 28
    text.num_key_value_heads = 4
    text.vocab_size = 152064
    text.layer_types = ["full_attention"] * 28
    text.rope_parameters["mrope_section"] = [16, 24, 24]
    vision = config.vision_config
    vision.hidden_size = 1280
    vision.intermediate_size = 3420
    vision.out_hidden_size = 3584
    vision.depth = 32
    vision.num_heads = 16
    config.tie_word_embeddings = False
    text.tie_word_embeddings = False
    folder = tmp_path_factory.mktemp("judge") / "Qwen2.5-VL-7B-Instruct"
    config.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


# ------------------------------------------------------------------ published models on two cards

EAGLE = (
    "model=llamagen_xl_512",
    "+model.collapse=false",
    "method=eagle",
    "drafter@method.drafter=llamagen_eagle",
)


def with_local_reward(folder: Path) -> tuple[str, ...]:
    """Options of a Best-of-N on Janus-Pro-7B, drafted by the 1B model and judged beside it."""
    return (
        "model=janus_pro_7b",
        "method=best_of_n_speculative",
        "drafter@method.decoding.drafter=janus_pro_1b",
        "judge@method.reward=local_vlm_reward",
        f"method.reward.chat.model={folder}",
    )


def fixed_gb(capacity: Capacity) -> dict[str, float]:
    return {part.name: part.fixed / GB for part in capacity.need.parts if part.fixed}


def slot_gb(capacity: Capacity) -> dict[str, float]:
    return {part.name: part.per_slot / GB for part in capacity.need.parts if part.per_slot}


def test_eagle_on_llamagen_fits_on_both_cards() -> None:
    capacity = measure_capacity(EAGLE)
    fixed = fixed_gb(capacity)
    # 36 layers of width 1280, their tables, and the image tokenizer: nothing is allocated for them.
    assert fixed["weights"] == pytest.approx(1.84, abs=0.02)
    assert fixed["EAGLE's weights"] == pytest.approx(0.089, abs=0.002)
    assert {"image decoder", "prefill", "matrix workspaces"} < fixed.keys()
    by_slot = slot_gb(capacity)
    keys = 2 * 36 * 1280 * 2 * (120 + 1024 + 58) / GB
    assert keys < by_slot["slots"] < 1.5 * keys
    # 58 nodes and the root in one captured forward: a GB for 64 slots.
    assert 64 * by_slot["CUDA graphs"] == pytest.approx(1.25, abs=0.15)
    assert by_slot["EAGLE's cache"] == pytest.approx(2 * 1280 * 2 * 1243 / GB, rel=0.05)
    assert (capacity.fitting(24), capacity.fitting(80)) == (16, 64)
    assert capacity.need.total(16) < 0.9 * 24 * GB < capacity.need.total(32)


def test_a_drafter_and_a_local_reward_need_the_larger_card(qwen: Path) -> None:
    capacity = measure_capacity(with_local_reward(qwen))
    fixed = fixed_gb(capacity)
    assert fixed["weights"] == pytest.approx(13.6, abs=0.3)
    assert fixed["janus_pro_1b's weights"] == pytest.approx(3.4, abs=0.3)
    assert fixed["Qwen2.5-VL-7B-Instruct"] == pytest.approx(16.58, abs=0.02)
    assert 0.5 < fixed["Qwen2.5-VL-7B-Instruct's answers"] < 4
    by_slot = slot_gb(capacity)
    assert by_slot["janus_pro_1b's slots"] == pytest.approx(0.155, abs=0.01)
    assert {"slots", "CUDA graphs", "janus_pro_1b's CUDA graphs"} < by_slot.keys()
    assert capacity.fitting(24) == 0
    assert capacity.fitting(80) > 0
    assert capacity.need.total(capacity.fitting(80)) < 0.9 * 80 * GB
    assert not capacity.need.undeclared
    names = [part.name for part in capacity.need.parts]
    assert len(names) == len(set(names))


def test_the_command_prints_the_arithmetic(capsys: pytest.CaptureFixture[str], qwen: Path) -> None:
    assert check(["memory", *EAGLE]) == 0
    said = capsys.readouterr().out
    assert "llamagen_xl_512, method=eagle: 0.9 of a card of 24 GB, 21.6 GB" in said
    assert "16 slots of 64 that are asked for, 8 images at once" in said
    assert "64 slots, 32 images at once" in said
    assert check(["memory", "--cards", "24", *with_local_reward(qwen)]) == 1
    said = capsys.readouterr().out
    assert "Qwen2.5-VL-7B-Instruct's answers" in said
    assert "it fits on a card of " in said
    assert check(["memory", "--cards", "much"]) == 2
    assert "--cards much: give GB" in capsys.readouterr().err


def test_the_tables_of_the_documentation_are_the_commands(qwen: Path) -> None:
    page = Path(__file__).parent.parent.joinpath("docs/models.md").read_text()
    for options in (EAGLE, with_local_reward(qwen)):
        capacity = measure_capacity(options)
        for card_gb in (24, 80):
            assert capacity.describe(card_gb) in page


# ------------------------------------------------------------------ the sum bounds what is taken


def toy(device: str | torch.device = "cpu") -> ToyModel:
    return ToyModel(vocab=VOCAB, dtype=torch.float32, device=device)


def drafters() -> dict[str, tuple[Any, Any]]:
    """Drafters and what they draft: a chain or a tree."""
    layer = Layer(toy().trunk_spec)
    weights = LayerWeights(layer.state_dict(), "toy", "toy")
    tree = Static({"": 2, "0": 2, "00": 1})
    return {
        "draft model, chain": (DraftModel(lambda device="cpu": toy(device)), 3),
        "draft model, tree": (DraftModel(lambda device="cpu": toy(device)), tree),
        "EAGLE, chain": (Eagle(lambda: weights), 3),
        "EAGLE, tree": (Eagle(lambda: weights), tree),
    }


def shape_of(spec: MethodSpec, model: ToyModel) -> SamplerShape:
    return SamplerShape(model.device, prefill=(3, 4), render_batch=2, trees=spec.trees,
                        **spec.sampler_sizes())  # fmt: skip


@pytest.mark.parametrize("name", drafters())
def test_the_sum_with_a_drafter_bounds_the_peak(name: str) -> None:
    """The caches of a drafter are much of what is taken, so that without them it would not."""
    drafter, gamma = drafters()[name]
    method = Speculative(drafter, gamma)
    spec = MethodSpec.of(method)
    model = toy()
    spec.expect_target(model)
    need = need_beside(model, shape_of(spec, model), [drafter])
    slots = 8
    done: list[Delivery] = []
    with Peak() as peak:
        sampler = Sampler(
            model,
            Sampling(scale=2.0, top_k=0),
            slots=slots,
            prefill=(3, 4),
            render_batch=2,
            **spec.sampler_sizes(),
        )
        Scheduler(method, sampler, seed=0).run(jobs(TEXTS[:4]), done.append)
    assert not any(delivery.error for delivery in done)
    predicted = need.total(slots) - need.held
    assert 0.1 * predicted < peak.bytes < predicted


@pytest.mark.parametrize("name", drafters())
def test_a_drafters_caches_are_its_declared_slots(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter, gamma = drafters()[name]
    method = Speculative(drafter, gamma)
    spec = MethodSpec.of(method)
    model = toy()
    spec.expect_target(model)
    declared = MemoryNeed(tuple(list_declared([drafter], model, shape_of(spec, model))))

    made: list[int] = []
    plain = KVCache.__init__

    def record(cache: KVCache, *arguments: Any, **options: Any) -> None:
        plain(cache, *arguments, **options)
        made.append(cache.slot_bytes)

    sampler = Sampler(model, Sampling(scale=2.0), slots=8, prefill=(3, 4), **spec.sampler_sizes())
    monkeypatch.setattr(KVCache, "__init__", record)
    Scheduler(method, sampler, seed=0).run(jobs(TEXTS[:2]), lambda _: None)
    (slot_bytes,) = made
    assert slot_bytes <= declared.per_slot
    assert declared.held > 0


@pytest.mark.parametrize("columns", [1, 7])
def test_what_a_captured_forward_keeps_is_bounded(columns: int) -> None:
    """The pool of a graph is as large as what its work computes in between."""
    model = toy()
    shape = SamplerShape(torch.device("cuda"), columns, prefill=(3, 4), render_batch=1)
    parts = {part.name: part for part in list_sampler_parts(model, shape)}
    sampler = Sampler(model, Sampling(scale=2.0), slots=8, prefill=(3, 4), tokens_per_step=columns)
    forward = sampler._forward
    sampler.table.make_frontier()
    idle = DecodeBatch.idle(8, columns, sampler.positions)
    batch = DecodeBatch(torch.from_numpy(idle.table_BX))
    with Peak() as peak, torch.no_grad():
        forward._compute_frontier(batch)
    predicted = 8 * parts["CUDA graphs"].per_slot
    assert 0.05 * predicted < peak.bytes < predicted


def test_the_embedded_models_decoder_is_declared() -> None:
    model = Pictogram("pictogram_16")
    token_BN = torch.zeros((1, model.num_tokens), dtype=torch.int64)
    with Peak() as peak, torch.no_grad():
        model.decode(token_BN)
    assert 0.2 * model.render_bytes < peak.bytes < 1.5 * model.render_bytes


# ------------------------------------------------------------------ text encoders


class Telling(ToyModel):
    """A model with a text encoder; it tells what is asked of the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[object] = []

    def count_text_encoder_bytes(self) -> int:
        return int(GB)

    def prepare_texts(self, texts: Any, *, stay: bool) -> None:
        self.told.append((sorted(set(texts)), stay))


@pytest.mark.parametrize("rewrites", [False, True])
def test_texts_are_encoded_before_there_are_slots(
    rewrites: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder then leaves; only for a method that rewrites prompts it stays, and counts."""
    method = Plain()
    method.rewrites_prompts = rewrites  # type: ignore[attr-defined]
    spec = spec_of(method, slots=4)
    model = spec.model = Telling()
    plain = Sampler.__init__

    def tell(sampler: Sampler, *arguments: Any, **options: Any) -> None:
        model.told.append("sampler")
        plain(sampler, *arguments, **options)

    monkeypatch.setattr(Sampler, "__init__", tell)
    Executor(spec).draw(jobs(TEXTS[:2], images=2), lambda _: None)
    assert model.told == [(sorted(TEXTS[:2]), rewrites), "sampler", ([], False)]

    shape = shape_of(spec.method_spec, model)
    shape = replace(shape, rewrites_prompts=spec.method_spec.rewrites_prompts)
    counted = need_beside(model, shape, []).part("text encoder").fixed  # type: ignore[arg-type]
    assert counted == rewrites * int(GB)


@pytest.mark.skipif(
    not can_pack(torch.zeros(1, dtype=torch.bfloat16)), reason="oneDNN multiplies no bfloat16 here"
)
def test_packed_weights_count_as_the_plain_ones_do() -> None:
    trunk = Trunk(TrunkSpec(layers=2, dim=48, heads=3, hidden=72)).bfloat16()
    plain = count_weights(trunk)
    prepare(trunk)
    packed = [part for part in trunk.parameters() if part.is_mkldnn]
    assert sum(part.nbytes for part in packed) > 0.9 * plain
    assert count_weights(trunk) == plain


def test_captions_are_encoded_on_the_device_only_while_they_are_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = T5(checkpoint=str(tiny_t5(tmp_path / "t5")), cache=str(tmp_path), dtype="float32")
    with_weights = captions.count_bytes()
    _, encoder = captions._tokenizer_and_encoder
    assert with_weights == sum(one.nbytes for one in encoder.parameters())

    places: list[tuple[str, str]] = []

    def encode(one: T5, caption: str) -> Features:
        places.append((caption, one._device.type))
        return Features(torch.zeros(1, 12), torch.zeros(12))

    monkeypatch.setattr(T5, "_encode", encode)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    cuda = torch.device("cuda")
    captions.prepare(["a cat", "A  cat", "a dog"], cuda, stay=False)
    assert "_tokenizer_and_encoder" not in vars(captions)
    captions("a cat")
    captions("a bird")
    assert places == [("a cat", "cuda"), ("a dog", "cuda"), ("a bird", "cpu")]

    captions.prepare(["a cat"], cuda, stay=True)
    captions("a fish")
    captions.prepare([], cuda, stay=False)
    captions("a cow")
    assert places[3:] == [("a fish", "cuda"), ("a cow", "cpu")]


def test_gridar_keeps_the_encoder_if_it_rewrites() -> None:
    chat: Any = MyJudge()
    chat.tokens = ()
    chat.reply = chat.yes = lambda *_: []
    stages = {"half": {"share": 0.5, "strips": 2}}
    kept = GridAR(4, stages, ChatVerifier(chat), ChatReward(chat))
    without = GridAR(4, stages, ChatVerifier(chat), ChatReward(chat), rewrite=False)
    assert MethodSpec.of(kept).rewrites_prompts
    assert not MethodSpec.of(without).rewrites_prompts


# ------------------------------------------------------------------ what is measured


def test_the_peak_on_a_gpu_is_what_was_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of captured graphs are not allocated: only what is reserved shows them."""
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: int(1e9))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: int(5e9))
    monkeypatch.setattr("harness.engine.meter.joules", lambda _: None)
    assert Meter(torch.device("cuda")).peak_memory_gb == 5.0


# ------------------------------------------------------------------ what is declared by whom


class MyJudge:
    """A judge that says nothing of its memory."""

    id = "mine"

    def __call__(self, texts: Any, images: Any) -> list[float]:
        return [0.0 for _ in texts]


class Frugal(MyJudge):
    """A judge that declares a GB."""

    def __init__(self, device: str = "") -> None:
        self.device = device

    def memory_need(self, model: Any, shape: SamplerShape) -> list[MemoryPart]:
        return [MemoryPart("frugal", fixed=int(GB), device=self.device)]


def need_of(*owners: object) -> MemoryNeed:
    model: Any = toy()
    shape = SamplerShape(model.device, 1, prefill=(3, 4), render_batch=1)
    return need_beside(model, shape, owners)


def test_what_is_not_declared_is_said() -> None:
    need = need_of(MyJudge(), 4, "text", None)
    assert need.describe(2).endswith("; not declared: MyJudge")
    assert need.total(2) == need_of().total(2)
    assert "not declared" not in need_of(Frugal()).describe(2)
    assert "frugal 1 GB" in need_of(Frugal()).describe(2)
    assert need_of(Frugal("cuda")).describe(2) == need_of().describe(2), "it lies elsewhere"


def test_objects_speak_for_those_that_hold_them() -> None:
    class Holder(MyJudge):
        def __init__(self) -> None:
            self._chat = Frugal()

    assert need_of(Holder()).part("frugal").fixed == GB
    judge = Frugal()
    assert need_of(judge, judge).fixed == need_of(judge).fixed, "the same object is asked once"


def test_an_evaluator_of_geneval_declares_detector_and_colors() -> None:
    detector = Mmdet(weights="random", device="cpu", batch=2)
    evaluator = Evaluator(detector, Clip(weights="random", device="cpu", batch=3))
    need = need_of(evaluator)
    assert need.part("detector").fixed == 4 * 69_000_000
    assert need.part("CLIP").fixed == 4 * 428_000_000
    larger = Mmdet(weights="random", device="cpu", batch=2, short_side=1600)
    of_larger = need_of(Evaluator(larger, evaluator.colors)).part("detector's pictures").fixed
    assert of_larger == 4 * need.part("detector's pictures").fixed
    assert "not declared" not in need.describe(2)


def test_an_evaluator_counts_the_batches_of_the_device_that_is_asked_about() -> None:
    """Also on a machine without it: a forward has more pictures on a GPU."""
    detector = Mmdet(weights="random")
    colors = Clip(weights="random")
    networks = (detector, 8), (colors, 16), (ImageReward(weights="random"), 16)
    for evaluator, more in (*networks, (InceptionFeatures(weights="random"), 32)):
        fixed = []
        for device in ("cpu", "cuda"):
            shape = SamplerShape(torch.device(device), 1, (1, 1), 1)
            fixed.append(evaluator.memory_need(None, shape)[1].fixed)
        assert fixed[1] == more * fixed[0]


def test_tables_of_a_rule_count_once_they_are_loaded() -> None:
    rule = Lantern(k=3, delta=0.2)
    assert need_of(rule).fixed == need_of().fixed
    rule.expect_target(toy())  # type: ignore[arg-type]
    assert need_of(rule).fixed - need_of().fixed == VOCAB * 4 * 8
    assert need_of(rule).held - need_of().held == VOCAB * 4 * 8


def test_a_local_judge_is_counted_once_whoever_asks_it(qwen: Path) -> None:
    model: Any = toy()
    shape = SamplerShape(torch.device("cuda"), 1, prefill=(3, 4), render_batch=1)
    reward = ChatReward(LocalVLM(str(qwen)))
    verifier = ChatVerifier(LocalVLM(str(qwen), max_new_tokens=96))
    parts = list_declared([reward, verifier, verifier.rewrite], model, shape)
    assert [part.name for part in parts] == [qwen.name, f"{qwen.name}'s answers"]
    assert not any(part.held for part in parts)
    on_host = list_declared([ChatReward(LocalVLM(str(qwen), device="cpu"))], model, shape)
    assert not on_host


class Grove:
    """Drafts trees of its own making, whose shape it does not hold."""

    rows = 1
    branches = 2
    tokens_per_step = 7
    tree_capacity = 6

    def __init__(self, drafter: object) -> None:
        self.drafter = drafter

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        await s.step([canvas], [Draft(torch.arange(6), None, (-1, -1, 0, 0, 1, 2))])
        return canvas


def test_trees_that_a_method_does_not_hold_are_bounded() -> None:
    drafter, _ = drafters()["EAGLE, tree"]
    model: Any = toy()
    unknown = shape_of(MethodSpec.of(Grove(drafter)), model)
    known = shape_of(MethodSpec.of(Speculative(drafter, Static({"": 2, "0": 2, "1": 2}))), model)
    assert not unknown.trees
    assert len(known.trees) == 1
    for one in (drafter, drafters()["draft model, tree"][0]):
        bound = sum(part.per_slot for part in one.memory_need(model, unknown))
        exact = sum(part.per_slot for part in one.memory_need(model, known))
        assert exact < bound < 3 * exact


def test_the_parts_of_a_method_are_searched_in_its_decoding() -> None:
    drafter, gamma = drafters()["EAGLE, tree"]
    method: Method = BestOfN(2, decoding=Speculative(drafter, gamma))
    spec = MethodSpec.of(method)
    assert spec.trees == (gamma,)
    owners = [part for _, part in spec.parts]
    model: Any = toy()
    parts = list_declared(owners, model, shape_of(spec, model))
    assert [part.name for part in parts] == ["EAGLE's weights", "EAGLE's cache", "EAGLE's drafts"]
