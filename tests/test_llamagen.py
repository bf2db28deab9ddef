"""LlamaGen computes what the original does, collapses its prompt, and keeps the sampler's laws."""

from __future__ import annotations

import pickle
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llamagen_reference as reference
import pytest
import torch
from runs import harness
from test_batch_invariance import Wanderer, costs
from test_gridar import Mock, gridar
from torch import Tensor
from toy import DEVICES, TEXTS, PixelSum, ToyModel, draw, jobs

from harness.drafters.model import DraftModel
from harness.engine.acceptance import exact
from harness.engine.canvas import Canvas, Context
from harness.engine.guidance import Sampling, cfg
from harness.engine.memory import choose_slots
from harness.engine.memory_need import GB, estimate_need
from harness.engine.sampler import Sampler
from harness.engine.session import Method
from harness.models import FollowableModel, HasClasses, HasCollapse, HasPrefix, HasRenderBytes
from harness.models.captions import T5, WordFeatures, clean, clean_prompt
from harness.models.llamagen import LlamaGen, load
from harness.models.vq import VQ, VQSpec
from harness.records import Usage, UserError
from methods.best_of_n import BestOfN
from methods.lantern import Lantern
from methods.plain import Plain
from methods.scalingar import ScalingAR
from methods.speculative import Speculative

SHARED = Path(__file__).parents[2] / "shared" / "fixtures" / "llamagen_tiny"
TEXT = "two dogs left of a car"
SIZE = {"layers": 2, "dim": 32, "heads": 2, "hidden": 48, "condition": 12, "caption_dim": 12}
TOKENIZER = {
    "codes": reference.CODES,
    "code_dim": 4,
    "width": 8,
    "multipliers": [1, 2],
    "blocks": 1,
    "latent": 8,
    "groups": 4,
}


def tiny(**options: Any) -> LlamaGen:
    """A tiny LlamaGen of random weights, as `model.weights=random` makes the large ones."""
    given = {
        "size": SIZE,
        "weights": "random",
        "dtype": "float32",
        "tokenizer": TOKENIZER,
        **options,
    }
    return load("tiny", image=8, captions=WordFeatures(12, 12), **given)


# ------------------------------------------------------------------ parity


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parity folder whose arrays the reference of this folder computed."""
    return reference.write_fixture(tmp_path_factory.mktemp("parity") / "fixture", vq_shapes())


def vq_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tiny tokenizer's tensors."""
    spec = VQSpec(**{**TOKENIZER, "multipliers": (1, 2)})  # type: ignore[arg-type]
    return {name: tuple(tensor.shape) for name, tensor in VQ(spec).state_dict().items()}


@pytest.mark.skipif(
    not SHARED.is_dir(),
    reason=f"{SHARED} is not here: the original's arrays are not part of the project",
)
def test_parity_with_the_original(tmp_path: Path) -> None:
    code, output = harness(tmp_path, "parity", str(SHARED), module="harness.check")
    assert code == 0, output
    assert "pass  cached_logits (collapsed) " in output


def test_parity_with_a_loop_in_float64(fixture: Path, tmp_path: Path) -> None:
    code, output = harness(tmp_path, "parity", str(fixture), module="harness.check")
    assert code == 0, output
    assert output.endswith("44 passed, 0 failed\n")


def test_parity_sees_a_wrong_weight(fixture: Path, tmp_path: Path) -> None:
    spoiled = shutil.copytree(fixture, tmp_path / "spoiled")
    file = spoiled / "checkpoints" / "gpt.pt"
    content = torch.load(file)
    content["model"]["layers.1.attention.wqkv.weight"][-1] += 0.05
    torch.save(content, file)
    code, output = harness(tmp_path, "parity", str(spoiled), module="harness.check")
    assert code == 1
    assert "FAIL  cached_logits (collapsed)" in output
    assert "pass  decoded_pixels " in output


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "no parity fixture"),
        ("{}", "no parity fixture"),
        ('{"family": "x", "tensors": {}}', "family 'x'"),
    ],
)
def test_a_folder_that_is_no_fixture_is_one_line(
    tmp_path: Path, manifest: str | None, message: str
) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    code, output = harness(tmp_path, "parity", str(tmp_path), module="harness.check")
    assert code == 2
    assert message in output
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("A Photo of TWO cats", "a photo of two cats"),
        ("<person> at https://a.example/b.html?x=1 now", "person at a. example b. html?x=1 now"),
        ("caf%C3%A9+au+lait", "café au lait"),
        ("one - two – three — four_five", "one two three four five"),
        ("an 猫 by @someone at 12x34 and <b>bold</b>", "an by at and bold"),
        ("he said “so”... `twice` then", 'he said "so" "twice" then'),
        ("free download of IMG_2041.JPG", "of"),
    ],
)
def test_captions_are_cleaned(raw: str, cleaned: str) -> None:
    assert clean_prompt(raw) == cleaned


# ------------------------------------------------------------------ the prompt as one cache entry


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_collapsed_prompt_draws_the_same_tokens_at_the_same_price(
    padding: str, scale: float
) -> None:
    sampling = Sampling(scale=scale)
    whole_model: Any = tiny(padding=padding, collapse=False)
    collapsed_model: Any = tiny(padding=padding)
    whole = draw(Plain(), jobs(TEXTS), model=whole_model, sampling=sampling)
    collapsed = draw(Plain(), jobs(TEXTS), model=collapsed_model, sampling=sampling)
    for key, delivery in collapsed.items():
        assert not delivery.error
        assert delivery.tokens == whole[key].tokens
        assert delivery.usage.text_positions == whole[key].usage.text_positions
        assert delivery.usage.target_positions == whole[key].usage.target_positions


def test_a_prompt_takes_two_positions_of_the_cache() -> None:
    model = tiny()
    sampler = Sampler(model, Sampling(scale=2.0), slots=2)
    canvas = sampler.open(*sampler.contexts(TEXT), key=1, usage=Usage())
    sampler.forward([canvas], [None])
    assert sampler.table.cache.keys.shape[3] == 2 + model.num_tokens + 1
    assert [branch.cached for branch in canvas.branches] == [2, 2]
    words = len(clean(TEXT).split()) + 1
    assert canvas.ledger.text_positions == 2 * words
    assert canvas.ledger.target_passes == 2  # the prompt's, then the first token's


def test_its_optional_members_are_declared() -> None:
    model = tiny()
    for protocol in (HasPrefix, HasCollapse, HasRenderBytes, FollowableModel):
        assert isinstance(model, protocol)
    assert not isinstance(model, HasClasses)
    assert model.trunk_spec.layers == SIZE["layers"]


def test_the_interval_guides_the_first_tokens_only() -> None:
    drawn = {}
    for k in (-1, 0, 5, 14):
        model: Any = tiny()
        sampling = Sampling(temperature=0.0, scale=4.0, interval=k)
        deliveries = draw(Plain(), jobs(TEXTS), model=model, sampling=sampling)
        drawn[k] = deliveries["toy/00001", 0].tokens
    assert drawn[14] == drawn[-1]
    assert drawn[0] != drawn[-1]
    for k in (0, 5):
        assert drawn[k][: k + 2] == drawn[-1][: k + 2]
    with pytest.raises(UserError, match="interval=-2"):
        Sampling(interval=-2)


# ------------------------------------------------------------------ the sampler's laws


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("collapse", [True, False])
@pytest.mark.parametrize("method", [BestOfN(2, PixelSum()), Wanderer()])
def test_tokens_and_costs_do_not_depend_on_what_else_is_in_the_batch(
    method: Method, collapse: bool, device: str
) -> None:
    model: Any = tiny(collapse=collapse, device=device)
    some = jobs(TEXTS)
    together = draw(method, some, model=model)
    shuffled = random.Random(3).sample(some, len(some))
    for other in (draw(method, shuffled, model=model), draw(method, shuffled[:1], model=model)):
        for key, delivery in other.items():
            assert not delivery.error
            assert delivery.tokens == together[key].tokens
            assert costs(delivery.usage) == costs(together[key].usage)


@pytest.fixture(params=["left", "right"])
def sampler(request: pytest.FixtureRequest) -> Sampler:
    return Sampler(
        tiny(padding=request.param), Sampling(scale=2.0), slots=8, tokens_per_step=3, prefill=(2, 4)
    )


def opened(sampler: Sampler, key: int = 5) -> Canvas:
    """A new canvas of TEXT."""
    return sampler.open(*sampler.contexts(TEXT), key=key, usage=Usage())


def advance(sampler: Sampler, canvas: Canvas, until: int = 16) -> tuple[int, ...]:
    """Draw until a canvas has so many tokens; returns them all."""
    while canvas.length < until:
        sampler.forward([canvas], [None])
        sampler.draw([canvas], [None], exact)
    return canvas.tokens


@pytest.mark.parametrize("length", [0, 1, 9])
def test_rewinding_and_prompting_back_give_the_same_tokens(sampler: Sampler, length: int) -> None:
    drawn = advance(sampler, opened(sampler))
    canvas = opened(sampler)
    advance(sampler, canvas, 12)
    sampler.truncate(canvas, length)
    sampler.condition(canvas, [Context(None, TEXT), Context("one", "one")], cfg)
    sampler.forward([canvas], [None])
    sampler.condition(canvas, [Context(None, TEXT), Context(TEXT, TEXT)], cfg)
    assert advance(sampler, canvas) == drawn


def test_a_fork_shares_the_past_and_takes_over_the_prompt(sampler: Sampler) -> None:
    source = opened(sampler, 1)
    copy = sampler.open(*sampler.contexts("one"), key=2, usage=Usage())
    advance(sampler, copy, 3)
    advance(sampler, source, 6)
    sampler.fork(source, over=copy)
    advance(sampler, copy)
    continued = opened(sampler, copy.key)
    sampler.commit(continued, source.tokens[:6])
    assert advance(sampler, continued) == copy.tokens
    assert advance(sampler, source) != copy.tokens


def test_a_cache_built_in_pieces_equals_a_fresh_one(sampler: Sampler) -> None:
    canvas = opened(sampler)
    advance(sampler, canvas, 10)
    sampler.truncate(canvas, 8)
    fresh = opened(sampler)
    sampler.commit(fresh, canvas.tokens)
    for each in (canvas, fresh):
        sampler.forward([each], [None])
    cache = sampler.table.cache
    assert cache.bias_SL is not None
    for mine, theirs in zip(canvas.branches, fresh.branches, strict=True):
        assert mine.cached == theirs.cached
        for stored in (cache.keys, cache.values):
            torch.testing.assert_close(
                stored[:, mine.slot, :, : mine.cached], stored[:, theirs.slot, :, : mine.cached]
            )
        assert torch.equal(cache.bias_SL[mine.slot], cache.bias_SL[theirs.slot])


# ------------------------------------------------------------------ methods


def drafter() -> DraftModel:
    """The same tiny model with one layer as the draft."""

    def draft_model(device: Any = "cpu") -> Any:
        return tiny(size={**SIZE, "layers": 1}, device=device)

    return DraftModel(draft_model, True)


METHODS: dict[str, Callable[[], Method]] = {
    "plain": Plain,
    "best_of_n": lambda: BestOfN(3, PixelSum()),
    "best_of_n_likelihood": lambda: BestOfN(3),
    "scalingar": lambda: ScalingAR(4),
    "gridar": lambda: gridar(Mock()),
    "speculative": lambda: Speculative(drafter(), 3),
    "lantern": lambda: Speculative(drafter(), 3, Lantern(5, 0.3)),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_run_on_it(name: str) -> None:
    model: Any = tiny()
    some = jobs(TEXTS[:3])
    for delivery in draw(METHODS[name](), some, model=model, slots=24).values():
        assert not delivery.error
        assert len(delivery.tokens) == 16
        assert delivery.image is not None
        assert delivery.image.shape == (8, 8, 3)


def test_one_candidate_is_plain() -> None:
    model: Any = tiny()
    plain = draw(Plain(), jobs(TEXTS), model=model)
    best = draw(BestOfN(1, PixelSum()), jobs(TEXTS), model=model)
    assert plain.keys() == best.keys()
    for key, delivery in plain.items():
        assert delivery.tokens == best[key].tokens


# ------------------------------------------------------------------ checkpoints


def released(folder: Path, **changes: Any) -> Path:
    """A folder with both files in the released layout; the GPT's is called gpt.pt."""
    folder.mkdir(exist_ok=True)
    torch.save({"model": reference.gpt_state() | changes}, folder / "gpt.pt")
    torch.save({"model": reference.vq_state(vq_shapes())}, folder / "vq_ds16_t2i.pt")
    return folder


def loaded(path: Path, image: int = 8, **options: Any) -> LlamaGen:
    size = {**SIZE, "condition": reference.CONDITION}
    given = {"checkpoint": str(path), "tokenizer": TOKENIZER, "dtype": "float32", **options}
    return load("tiny", size, image, WordFeatures(reference.WIDTH, reference.CONDITION), **given)


@pytest.mark.parametrize("key", ["model", "module", "state_dict"])
def test_every_training_format_loads(tmp_path: Path, key: str) -> None:
    folder = released(tmp_path)
    torch.save({key: reference.gpt_state(), "steps": 7}, folder / "gpt.pt")
    model = loaded(folder / "gpt.pt")
    assert torch.equal(
        model.gpt.tok_embeddings.weight, reference.gpt_state()["tok_embeddings.weight"]
    )
    assert model.revision == loaded(folder, file="gpt.pt").revision != "random"
    codes = torch.randint(0, 40, (2, 16))
    assert model.decode(codes).shape == (2, 8, 8, 3)
    assert model.encode(torch.zeros(2, 3, 8, 8)).shape == (2, 16)
    assert model.codebook.shape == (40, 4)


def test_one_file_with_gpt_and_tokenizer_loads(tmp_path: Path) -> None:
    """AR-GRPO's layout: both networks under prefixes, the null prompt trained."""
    from safetensors.torch import save_file

    gpt_state = reference.gpt_state(seed=5)
    vq_state = torch.load(released(tmp_path) / "vq_ds16_t2i.pt")["model"]
    gpt = {f"gpt_model.{name}": tensor for name, tensor in gpt_state.items()}
    vq = {f"vq_model.{name}": tensor for name, tensor in vq_state.items()}
    (tmp_path / "hub").mkdir()
    save_file(gpt | vq, tmp_path / "hub" / "model.safetensors")
    model = loaded(tmp_path / "hub", padding="right")
    assert model.padding == "right"
    null = model.gpt.cls_embedding.uncond_embedding
    torch.testing.assert_close(null, gpt_state["cls_embedding.uncond_embedding"])


def test_unknown_tensors_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded(released(tmp_path, extra=torch.zeros(3)) / "gpt.pt")
    assert "1 tensors are not known and not used, the first is extra" in caplog.text


class Unsafe:
    """Prints when it is unpickled, if that is allowed to run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this ran",)


def spoil(path: Path, how: str) -> None:
    """Spoil a checkpoint of the GPT."""
    state: dict[str, Tensor] = reference.gpt_state()
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif how == "no weights":
        torch.save([1, 2], path)
    elif how == "code":
        path.write_bytes(pickle.dumps({"model": Unsafe()}))
    elif how == "lacking":
        state.pop("layers.1.ffn_norm.weight")
        torch.save({"model": state}, path)
    elif how == "larger":
        torch.save({"model": state | {"norm.weight": torch.zeros(64)}}, path)
    elif how == "other grid":
        torch.save({"model": state | {"freqs_cis": torch.zeros(5 + 64, 8, 2)}}, path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "download it again"),
        ("no weights", "holds a list instead of tensors by name"),
        ("code", "not read because it could run code"),
        ("lacking", "lacks 1 of 20 tensors, the first is layers.1.ffn_norm.weight"),
        ("larger", r"is \(64,\), the model needs \(32,\)"),
        (
            "other grid",
            r"made for 64 image tokens, this configuration has 16 \(8 px\): "
            "choose the configuration",
        ),
    ],
)
def test_a_bad_checkpoint_is_one_line(
    tmp_path: Path, how: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(released(tmp_path) / "gpt.pt", how)
    with pytest.raises(UserError, match=message) as error:
        loaded(tmp_path / "gpt.pt")
    assert "\n" not in str(error.value)
    assert "this ran" not in capsys.readouterr().out


def test_stage_1_in_the_configuration_of_stage_2_is_refused(tmp_path: Path) -> None:
    shutil.copy(released(tmp_path) / "gpt.pt", tmp_path / "t2i_XL_stage1_256.pt")
    with pytest.raises(
        UserError, match=r"is the 256 px model, .* for 512 px: choose model=llamagen_xl_256"
    ):
        loaded(tmp_path / "t2i_XL_stage1_256.pt", image=512)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "nowhere.pt"}, "model.checkpoint=nowhere.pt: there is no such file"),
        (
            {"checkpoint": None, "hub": "nobody/nothing"},
            "nobody/nothing .* set model.checkpoint=PATH",
        ),
        ({"checkpoint": None}, "names no weights: set model.checkpoint=PATH"),
        (
            {"tokenizer_file": "other.pt", "hub": "nobody/nothing"},
            "tokenizer: .* set model.tokenizer_checkpoint=PATH",
        ),
        ({"weights": "no"}, "model.weights=no: choose"),
        ({"padding": "both"}, "model.padding=both: choose"),
        ({"dtype": "int8"}, "model.dtype=int8: choose"),
        ({"render_dtype": "int8"}, "model.render_dtype=int8: choose"),
        ({"image": 9}, "model.image=9: must be a multiple of 2"),
    ],
)
def test_a_bad_configuration_is_one_line(
    tmp_path: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError, match=message) as error:
        loaded(released(tmp_path) / "gpt.pt", **options)
    assert "\n" not in str(error.value)


def test_random_weights_stay_out_of_the_leaderboard(tmp_path: Path) -> None:
    for overrides in (["model=llamagen_b"], ["model=llamagen_xl_256", "model.weights=random"]):
        code, output = harness(tmp_path, *overrides)
        assert code == 2
        assert "model.weights=random is for measuring speed" in output
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_checkpoint_on_disk_runs_from_the_command_line(tmp_path: Path) -> None:
    captions = (
        f"{{_target_: harness.models.captions.WordFeatures, width: {reference.WIDTH}, length: 5}}"
    )
    options = on_disk(tmp_path, captions)
    code, output = harness(
        tmp_path,
        "-m",
        *options,
        "method=plain,toy_best",
        "sampler.slots=null",
        "sampler.memory_gb=0.01",
    )
    assert code == 0, output
    assert "memory: " in output
    for run in (tmp_path / "results" / "toy" / "tiny").iterdir():
        code, output = harness(tmp_path, "run", str(run), module="harness.check")
        assert code == 0, output


def on_disk(tmp_path: Path, captions: str) -> tuple[str, ...]:
    """Options of a run of the toy benchmark with a tiny checkpoint on disk."""
    folder = released(tmp_path / "weights")
    size = {**SIZE, "condition": reference.CONDITION}
    (tmp_path / "conf" / "model").mkdir(parents=True)
    lines = (
        "_target_: harness.models.llamagen.load",
        "name: tiny",
        f"size: {size}",
        "image: 8",
        f"tokenizer: {TOKENIZER}",
        f"checkpoint: {folder / 'gpt.pt'}",
        "dtype: float32",
        "sampling: {scale: 3.0, top_k: 20}",
        f"captions: {captions}",
    )
    (tmp_path / "conf" / "model" / "tiny.yaml").write_text("\n".join(lines) + "\n")
    shutil.copytree(Path(__file__).parent / "toy_conf", tmp_path / "conf", dirs_exist_ok=True)
    return (
        "--config-dir",
        str(tmp_path / "conf"),
        "model=tiny",
        "benchmark=toy",
        "benchmark.prompts=4",
    )


def test_a_missing_text_encoder_ends_a_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, output = harness(tmp_path, *on_disk(tmp_path, "{_target_: harness.models.captions.T5}"))
    assert code == 2
    assert "error: the text encoder google/flan-t5-xl is not usable" in output
    assert "Traceback" not in output


# ------------------------------------------------------------------ captions


def tiny_t5(folder: Path, width: int = 12) -> Path:
    """A T5 encoder of random weights with a tokenizer of whole words, as a hub folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "cat": 4, "dog": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {
        "d_model": width,
        "d_ff": 8,
        "d_kv": 4,
        "num_heads": 2,
        "num_layers": 1,
        "vocab_size": 6,
    }
    T5EncoderModel(T5Config(**sizes)).save_pretrained(folder)
    return folder


def test_caption_features_are_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locate_nothing(self: T5, files: Sequence[str]) -> Path:
        raise UserError("it cannot be read")

    folder = tiny_t5(tmp_path / "t5")
    options: dict[str, Any] = {
        "checkpoint": str(folder),
        "cache": str(tmp_path / "cache"),
        "length": 9,
        "dtype": "float32",
    }
    captions = T5(**options)
    features = captions("A  CAT, a dog")
    assert features.row_vC.shape == (6, 12)  # the comma is a word, and the end token counts
    assert features.last_C.shape == (12,)
    assert torch.equal(captions("a").last_C, captions("a").last_C)
    again = T5(**options)
    monkeypatch.setattr(T5, "_locate", locate_nothing)
    assert torch.equal(again("a cat, a dog").row_vC, features.row_vC)
    with pytest.raises(
        UserError, match=r"text encoder .* is not usable .* set model.captions.checkpoint"
    ):
        again("a bird")
    config = folder / "config.json"
    config.write_text(config.read_text() + " ")
    other = T5(**options)  # another encoder under the same path has no features yet
    with pytest.raises(UserError, match="text encoder"):
        other("a cat, a dog")


def test_a_missing_text_encoder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(
        UserError, match=r"google/flan-t5-xl is not usable .* `hf download google/flan-t5-xl`"
    ) as error:
        T5(cache=str(tmp_path))("a cat")
    assert "\n" not in str(error.value)


def test_features_of_another_encoder_are_refused() -> None:
    model = load(
        "tiny",
        SIZE,
        8,
        WordFeatures(10, 12),
        weights="random",
        dtype="float32",
        tokenizer=TOKENIZER,
    )
    model.captions = WordFeatures(10, 12)
    with pytest.raises(
        UserError, match=r"caption features are \(3, 10\), the model takes 1 to 12 rows of 12"
    ):
        model.context("a cat", "a cat")


def test_images_may_be_decoded_in_bfloat16() -> None:
    """Pixels are the same to a few shades, codes exactly; the decoder takes half the memory."""
    model = tiny()
    half = tiny(render_dtype="bfloat16")
    codes = torch.randint(
        0, model.vocab, (2, model.num_tokens), generator=torch.Generator().manual_seed(0)
    )
    shown = model.vq.decode(codes, model.grid)
    shown_half = half.vq.decode(codes, half.grid)
    assert (shown.dtype, shown_half.dtype) == (torch.float32, torch.bfloat16)
    assert 0 < (shown - shown_half).abs().max() < 0.03 * shown.abs().max()
    assert torch.equal(model.codebook, half.codebook)
    pixels = shown.clamp(-1, 1)
    assert torch.equal(model.encode(pixels), half.encode(pixels))
    assert half.decode(codes).dtype == torch.uint8
    assert 2 * half.render_bytes == model.render_bytes


def test_the_decoder_s_layout_changes_no_more_than_rounding() -> None:
    model = tiny()
    codes = torch.randint(
        -1, model.vocab, (2, model.num_tokens), generator=torch.Generator().manual_seed(0)
    )
    assert model.vq.decoder.conv_out.weight.is_contiguous(memory_format=torch.channels_last)
    shown = model.vq.decode(codes, model.grid)
    model.vq.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(model.vq.decode(codes, model.grid), shown, atol=1e-5, rtol=0)


# ------------------------------------------------------------------ memory

SHAPE: dict[str, Any] = {"tokens_per_step": 1, "prefill": (2, 32), "render_batch": 4}


def test_slots_follow_from_a_budget(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "harness")
    model: Any = tiny()
    need = estimate_need(model, **SHAPE)
    assert need.per_slot > model.cache(9).slot_bytes
    budget = need.total(50) / GB

    def slots(
        asked: int | None, one_job: int = 6, most: int = 600, memory_gb: float | None = budget
    ) -> int:
        return choose_slots(
            need, model.device, asked=asked, one_job=one_job, most=most, memory_gb=memory_gb
        )

    assert slots(50) == 50
    assert slots(64) == 48  # 6 x 2^3, the largest such number below 50
    assert slots(None) == 48
    assert slots(None, most=12) == 12
    assert slots(64, memory_gb=None) == 64  # on the CPU what is asked for is believed
    assert slots(None, memory_gb=None) > 0
    assert "48 slots x" in caplog.text
    assert "in sampler.memory_gb" in caplog.text
    with pytest.raises(UserError, match=r"where 50 slots fit: set sampler.memory_gb=.* or more"):
        slots(None, one_job=60)


def test_a_sampler_takes_what_was_predicted() -> None:
    model: Any = tiny(size={**SIZE, "layers": 8})
    need = estimate_need(model, **SHAPE)
    made = Sampler(model, Sampling(scale=2.0), slots=40)
    held = sum(
        t.nbytes
        for t in (
            made.table.cache.keys,
            made.table.cache.values,
            made.table.context_SPD,
            made.table.token_SN,
        )
    )
    # what a draw needs for a moment is not held
    assert 0.8 * held < 40 * need.per_slot < 1.6 * held
    toy: Any = ToyModel()
    assert estimate_need(toy, **SHAPE).part("image decoder").fixed == 0
    parts = (model.gpt, model.vq)
    held = sum(tensor.nbytes for part in parts for tensor in part.parameters())
    held += sum(
        tensor.nbytes
        for part in parts
        for name, tensor in part.named_buffers()
        if not name.endswith("fused_w1_w3")
    )
    assert need.part("weights").fixed == held, "a fused product is no copy"
