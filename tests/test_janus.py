"""Janus-Pro computes what the transformers library's does, in both layouts, and keeps the laws."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import harness
from safetensors.torch import load_file, save_file
from test_batch_invariance import Wanderer, costs
from test_gridar import TWO_STEPS, Mock
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from toy import DEVICES, TEXTS, PixelSum, draw, jobs

from harness.drafters.model import DraftModel
from harness.engine.acceptance import coupled
from harness.engine.guidance import Sampling
from harness.models import FollowableModel, HasClasses, HasCollapse, HasPrefix, HasRenderBytes
from harness.models.janus import Janus, JanusNet
from harness.models.janus_checkpoint import SIZES, JanusSpec
from harness.models.janus_prompt import BEGIN_OF_IMAGE, BOS, PAD
from harness.models.pictogram.weights import count_parameters
from harness.models.trunk import TrunkSpec
from harness.models.vq import MISSING, VQSpec, truncate_to_uint8
from harness.parity.fixture import Fixture
from harness.parity.janus import parity
from harness.records import UserError
from methods.best_of_n import BestOfN
from methods.gridar import GridAR
from methods.lantern import Lantern
from methods.plain import Plain
from methods.scalingar import ScalingAR
from methods.speculative import Speculative
from methods.vvs import VVS, Uniform

FIXTURE = Path(__file__).parents[2] / "shared" / "fixtures" / "janus_tiny"
TINY = JanusSpec(
    TrunkSpec(2, 32, 2, 48, norm_eps=1e-6),
    words=300,
    side=4,
    vq=VQSpec(40, 8, 32, (1, 1, 2), 1, 32),
    positions=256,
)


def tiny(device: str | torch.device = "cpu") -> Janus:
    return Janus(weights="random", size=TINY, max_context=24, device=device, dtype="float32")


# --- a tiny model of the transformers library, and its answers ------------------------------------

TEXT_CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
}
VISION_CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "num_image_tokens": 16,
    "projection_dim": 32,
}
VQ_CONFIG = {
    "embed_dim": 8,
    "num_embeddings": 40,
    "latent_channels": 32,
    "base_channels": 32,
    "num_res_blocks": 1,
    "channel_multiplier": [1, 1, 2],
    "projection_dim": 32,
    "image_token_embed_dim": 32,
}


@pytest.fixture(scope="module")
def oracle() -> Any:
    """The library's model with random weights whose logits are well apart."""
    from transformers import JanusConfig, JanusForConditionalGeneration

    config = JanusConfig(
        text_config={**TEXT_CONFIG, "num_key_value_heads": 2, "rms_norm_eps": 1e-6},
        vision_config=VISION_CONFIG,
        vq_config=VQ_CONFIG,
        tie_word_embeddings=False,
    )
    model = JanusForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = float("norm" in name and name.endswith("weight"))
            std = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.normal_(mean, std, generator=generator)
    return model


@pytest.fixture(scope="module")
def library(oracle: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint as the library saves it, with a tokenizer of bytes and Janus' tags."""
    folder = tmp_path_factory.mktemp("library")
    oracle.save_pretrained(folder)
    letters = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([PAD, "<|User|>", BEGIN_OF_IMAGE, BOS, "<|Assistant|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        "content": "<|grounding|>",
        "special": True,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "single_word": False,
    }
    settings = {
        "tokenizer_class": "LlamaTokenizerFast",
        "add_bos_token": True,
        "bos_token": BOS,
        "legacy": True,
        "added_tokens_decoder": {str(tokenizer.get_vocab_size()): added},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def original(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in the original layout: two pickled shards, a config without defaults."""
    folder = tmp_path_factory.mktemp("original")
    stored = load_file(library / "model.safetensors")
    state = {renamed(name): tensor for name, tensor in stored.items()}
    state["gen_vision_model.quantize.codebook_used"] = torch.zeros(16)
    state["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    files: dict[str, dict[str, Tensor]] = {
        "pytorch_model-00001-of-00002.bin": {},
        "pytorch_model-00002-of-00002.bin": {},
    }
    for n, name in enumerate(sorted(state)):
        files[sorted(files)[n % 2]][name] = state[name]
    weight_map = {}
    for file, part in files.items():
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = json.dumps({"weight_map": weight_map})
    (folder / "pytorch_model.bin.index.json").write_text(index)
    config = {
        "model_type": "multi_modality",
        "language_config": TEXT_CONFIG,
        "vision_config": {"params": {"image_size": 16}},
        "gen_aligner_config": {"params": {"depth": 2}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(library / file, folder)
    return folder


ORIGINAL_NAMES = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.generation_embeddings.": "gen_embed.",
    "model.generation_aligner.fc1.": "gen_aligner.layers.0.",
    "model.generation_aligner.hidden_layers.0.": "gen_aligner.layers.2.",
    "model.generation_head.proj_out.": "gen_head.output_mlp_projector.",
    "model.generation_head.vision_head.": "gen_head.vision_head.",
    "model.vision_model.": "vision_model.",
    "model.aligner.": "aligner.",
    "model.vqmodel.": "gen_vision_model.",
    "encoder.down.": "encoder.conv_blocks.",
    "decoder.up.": "decoder.conv_blocks.",
    ".block.": ".res.",
    "mid.block_1": "mid.0",
    "mid.attn_1": "mid.1",
    "mid.block_2": "mid.2",
}
"""Parts of the library's names, and what the original layout has in their place."""


def renamed(name: str) -> str:
    """A library name in the original layout."""
    for old, new in ORIGINAL_NAMES.items():
        if not name.startswith(("vision_model.", "language_model.")):
            name = name.replace(old, new)
    return name


def load(checkpoint: Path, **options: Any) -> Janus:
    return Janus(checkpoint=str(checkpoint), max_context=64, dtype="float32", **options)


@pytest.fixture(params=["library", "original"])
def model(request: pytest.FixtureRequest) -> Janus:
    return load(request.getfixturevalue(request.param))


def ids_of(library: Path, prompt: str) -> Tensor:
    """Ids of a prompt, by the tokenizers library and the template written out."""
    tokenizer = Tokenizer.from_file(str(library / "tokenizer.json"))
    text = f"<|User|>: {prompt}\n\n<|Assistant|>:<begin_of_image>"
    return torch.tensor([[tokenizer.token_to_id(BOS), *tokenizer.encode(text).ids]])


def test_its_optional_members_are_declared(library: Path) -> None:
    model = load(library)
    assert isinstance(model, HasRenderBytes)
    for protocol in (HasPrefix, HasCollapse, HasClasses, FollowableModel):
        assert not isinstance(model, protocol)


@torch.no_grad()
def test_teacher_forced_logits_are_the_librarys(oracle: Any, library: Path, model: Janus) -> None:
    ids = ids_of(library, "a cat")
    codes = torch.randint(0, 40, (1, 16), generator=torch.Generator().manual_seed(1))
    words = oracle.get_input_embeddings()(ids)
    inputs = torch.cat((words, oracle.prepare_embeddings_for_image_generation(codes)), 1)
    hidden = oracle.model.language_model(inputs_embeds=inputs).last_hidden_state
    expected = oracle.model.generation_head(hidden)

    context = model.context(" a cat\n", like="ignored")
    torch.testing.assert_close(context, words[0], atol=0, rtol=0)
    x = torch.cat((context, model.embed(codes[0], codes[0])))[None]
    start = torch.tensor([len(context)])
    cache = model.cache(1)

    def fed(first: int, last: int) -> Tensor:
        """Logits of positions `first` .. `last` - 1, fed in one forward."""
        pos = torch.arange(first, last)[None]
        hidden = model.forward(x[:, first:last], pos, start, cache.attend_all(pos))
        return model.head(hidden)

    got = [fed(0, 20), *(fed(n, n + 1) for n in range(20, x.shape[1]))]
    torch.testing.assert_close(torch.cat(got, 1), expected, atol=2e-5, rtol=1e-5)
    assert expected.std() > 0.1


def test_greedy_guided_images_are_the_librarys(oracle: Any, library: Path, model: Janus) -> None:
    """Prompts of different lengths, drawn together by the sampler; the library draws each alone."""
    texts = ["a cat", "two dogs left of a car", "one"]
    drawn = draw(
        Plain(), jobs(texts), model=model, sampling=Sampling(scale=5.0, temperature=0.0), slots=6
    )
    tokenizer = Tokenizer.from_file(str(library / "tokenizer.json"))
    begin_of_image = tokenizer.token_to_id(BEGIN_OF_IMAGE)
    oracle.generation_config.generation_kwargs = {"boi_token_id": begin_of_image}
    for text, delivery in zip(texts, drawn.values(), strict=True):
        ids = ids_of(library, text)
        expected = oracle.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_mode="image",
            guidance_scale=5.0,
            do_sample=False,
            bos_token_id=tokenizer.token_to_id(BOS),
            pad_token_id=tokenizer.token_to_id(PAD),
        )
        assert delivery.tokens == tuple(expected[0].tolist())
    assert len({delivery.tokens for delivery in drawn.values()}) == 3
    assert len({token for delivery in drawn.values() for token in delivery.tokens}) > 5


@torch.no_grad()
def test_pixels_are_the_librarys(oracle: Any, model: Janus) -> None:
    codes = torch.randint(0, 40, (3, 16), generator=torch.Generator().manual_seed(2))
    expected = oracle.decode_image_tokens(codes)
    pixels = model.vq.decode(codes, model.grid).permute(0, 2, 3, 1)
    torch.testing.assert_close(pixels, expected, atol=2e-5, rtol=1e-5)
    expected_uint8 = ((expected + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)
    difference = model.decode(codes).int() - expected_uint8.int()
    assert difference.abs().max() <= 1
    partial = codes.masked_fill(torch.arange(16) >= 8, MISSING)
    assert model.decode(partial).shape == (3, 16, 16, 3)


@torch.no_grad()
def test_codes_are_the_nearest_unit_vectors(oracle: Any, model: Janus) -> None:
    """The library's encoder finds the latents; it forgets to take unit lengths, as is done here."""
    tower = oracle.model.vqmodel
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    latent = tower.quant_conv(tower.encoder(pixels)).double()
    latent = latent.permute(0, 2, 3, 1).reshape(2, 16, 1, 8)
    rows = tower.quantize.embedding.weight.double()
    unit_latent = latent / latent.square().sum(-1, keepdim=True).sqrt()
    unit_rows = rows / rows.square().sum(-1, keepdim=True).sqrt()
    expected = (unit_latent - unit_rows).square().sum(-1).argmin(-1)
    assert torch.equal(model.vq.encode(pixels), expected)
    forgotten = (latent - rows).square().sum(-1).argmin(-1)
    assert not torch.equal(forgotten, expected)


def test_eight_bits_are_truncated() -> None:
    pixels = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert truncate_to_uint8(pixels)[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_the_null_prompt_has_its_likes_length(library: Path) -> None:
    model = load(library)
    text = model.context("a cat", "a cat")
    null = model.context(None, "a cat")
    tokenizer = Tokenizer.from_file(str(library / "tokenizer.json"))
    pad = model.embed_words([tokenizer.token_to_id(PAD)])
    assert torch.equal(null[0], text[0])
    assert torch.equal(null[-1], text[-1])
    assert torch.equal(null[1:-1], pad.expand(len(text) - 2, -1))
    assert torch.equal(null, model.context(None, "a dog"))
    added = model.context("a <|grounding|>", "")
    assert len(added) == len(model.context("a x", ""))  # one id, from tokenizer_config.json
    with pytest.raises(UserError, match=r"set model\.max_context to 109 or more"):
        model.context("a cat" * 20, "")


# --- its derivatives ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def derivative(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original layout in one safetensors file and float32, as T2I-R1 and Janus-Pro-R1 are."""
    folder = tmp_path_factory.mktemp("derivative")
    state: dict[str, Tensor] = {}
    for shard in original.glob("*.bin"):
        state |= torch.load(shard)
    save_file(state, folder / "model.safetensors")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(original / file, folder)
    return folder


def configured(name: str, checkpoint: Path, **options: Any) -> Janus:
    """A model as its configuration makes it, but for a checkpoint of another size."""
    text = (Path(__file__).parents[1] / "conf" / "model" / f"{name}.yaml").read_text()
    config = yaml.safe_load(text)
    del config["sampling"]
    assert config.pop("_target_") == "harness.models.janus.Janus"
    changes = {"checkpoint": str(checkpoint), "size": None, "max_context": 64, **options}
    return Janus(**{**config, **changes})


@pytest.mark.parametrize(
    ("name", "roles"),
    [("t2i_r1", ("User", "Assistant")), ("janus_pro_r1", ("<|User|>", "<|Assistant|>"))],
)
def test_a_derivative_loads_and_has_its_own_prompt(
    name: str, roles: tuple[str, str], derivative: Path, library: Path
) -> None:
    model = configured(name, derivative)
    assert model.name == name
    assert model.dtype == model.net.gen_head[0].weight.dtype == torch.bfloat16
    assert model.vq.post_quant_conv.weight.dtype == torch.float32

    tokenizer = Tokenizer.from_file(str(library / "tokenizer.json"))
    text = f"{roles[0]}: a cat\n\n{roles[1]}:<begin_of_image>"
    ids = [tokenizer.token_to_id(BOS), *tokenizer.encode(text).ids]
    assert torch.equal(model.context("a cat", ""), model.embed_words(ids))
    null = [ids[0], *[tokenizer.token_to_id(PAD)] * (len(ids) - 2), ids[-1]]
    assert torch.equal(model.context(None, "a cat"), model.embed_words(null))


def test_a_derivative_draws_what_its_weights_draw_as_janus_pro(derivative: Path) -> None:
    """The layout of the files changes nothing; the roles of the prompt do."""
    some = jobs(TEXTS[:2])
    janus = draw(Plain(), some, model=load(derivative))
    for name, same in (("janus_pro_r1", True), ("t2i_r1", False)):
        model = configured(name, derivative, dtype="float32")
        drawn = draw(Plain(), some, model=model)
        for key, delivery in drawn.items():
            assert not delivery.error
            assert (delivery.tokens == janus[key].tokens) == same


# --- against upstream's code ----------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_parity_with_upstream(device: str) -> None:
    if not FIXTURE.is_dir():
        pytest.skip("the shared parity fixture is not on this machine")
    quantities = list(parity(Fixture(FIXTURE), torch.device(device)))
    assert not [str(quantity) for quantity in quantities if not quantity.passed]
    assert len(quantities) == 2 * 29 + 1


# --- laws and methods -----------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", [Plain(), Wanderer()])
def test_tokens_and_costs_do_not_depend_on_what_else_is_in_the_batch(
    method: Any, device: str
) -> None:
    some = jobs(TEXTS)
    together = draw(method, some, model=tiny(device), slots=14)
    shuffled = random.Random(3).sample(some, len(some))
    for other in (
        draw(method, shuffled, model=tiny(device), slots=14),
        draw(method, some[:1], model=tiny(device), slots=14),
    ):
        for key, delivery in other.items():
            assert not delivery.error
            assert delivery.tokens == together[key].tokens
            assert costs(delivery.usage) == costs(together[key].usage)


def test_methods_without_a_choice_are_plain() -> None:
    model = tiny()
    plain = draw(Plain(), jobs(TEXTS[:3]), model=model)
    methods = (
        BestOfN(1),
        GridAR(1, {}, Mock(), PixelSum(), line=0),
        Speculative(DraftModel(tiny), 2, coupled),
    )
    for method in methods:
        drawn = draw(method, jobs(TEXTS[:3]), model=model)
        assert drawn.keys() == plain.keys()
        for key, delivery in drawn.items():
            assert delivery.tokens == plain[key].tokens


@pytest.mark.parametrize(
    "method",
    [
        Plain(),
        BestOfN(2, PixelSum()),
        ScalingAR(3),
        GridAR(4, TWO_STEPS, Mock(), PixelSum(), line=0),
        GridAR(4, TWO_STEPS, Mock(), PixelSum(), line=0, three_way=False),
        Speculative(DraftModel(tiny), 3),
        Speculative(DraftModel(tiny), 2, Lantern(5, delta=0.3)),
        VVS(DraftModel(tiny), Uniform(2), 2, Lantern(5, multiplier=2.0)),
    ],
)
def test_methods_run_end_to_end(
    method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for delivery in draw(method, jobs(TEXTS[:3]), model=tiny(), slots=24).values():
        assert not delivery.error
        assert len(delivery.tokens) == 16
        assert delivery.image is not None
        assert delivery.image.shape == (16, 16, 3)


def test_released_sizes() -> None:
    """Parameters of decoder blocks and of aligner with head, bytes in bfloat16: as published."""
    for size, published in {"1B": (1.233e9, 42e6, 3.1e9), "7B": (6.072e9, 101e6, 13.3e9)}.items():
        with torch.device("meta"):
            net = JanusNet(SIZES[size])
        blocks = count_parameters(net.trunk)
        image = count_parameters(net.gen_aligner) + count_parameters(net.gen_head)
        total = 2 * count_parameters(net)
        assert (blocks, image, total) == pytest.approx(published, rel=0.03)


# --- bad input ------------------------------------------------------------------------------------


def refused(match: str, **options: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        Janus(**{"max_context": 64, "dtype": "float32", **options})
    assert "\n" not in str(caught.value)


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target / "copy"))


def test_a_checkpoint_of_another_size_is_refused(library: Path, tmp_path: Path) -> None:
    refused(
        "2 layers of width 32 .* not 24 layers of width 2048", checkpoint=str(library), size="1B"
    )
    refused("known sizes are 1B, 7B", checkpoint=str(library), size="3B")
    folder = copied(library, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"intermediate_size": 64}, "w1.weight is .48, 32., the model needs .64, 32."),
        (
            {"num_hidden_layers": 3},
            "lacks 9 tensors, the first is model.language_model.layers.2.input_layernorm.weight",
        ),
        ({"num_key_value_heads": 1}, "num_key_value_heads that no Janus-Pro has"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0}},
            "rope_type that no Janus-Pro has",
        ),
    ):
        changed = {**config, "text_config": {**config["text_config"], **change}}
        (folder / "config.json").write_text(json.dumps(changed))
        refused(message, checkpoint=str(folder))
    for change in ({"num_attention_heads": 0}, {"num_hidden_layers": 0}, {"hidden_size": 33}):
        changed = {**config, "text_config": {**config["text_config"], **change}}
        (folder / "config.json").write_text(json.dumps(changed))
        refused("is not a Janus configuration|are no trunk", checkpoint=str(folder))
    (folder / "config.json").write_text(json.dumps({**config, "text_config": None}))
    refused("is not a Janus configuration", checkpoint=str(folder))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    refused("says model_type 'llama'", checkpoint=str(folder))
    (folder / "config.json").unlink()
    refused("a checkpoint needs its config.json", checkpoint=str(folder))


def test_missing_names_are_refused_and_unknown_ones_reported(
    library: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(library, tmp_path)
    state = load_file(folder / "model.safetensors")
    save_file({**state, "model.extra.weight": torch.zeros(1)}, folder / "model.safetensors")
    load(folder)
    assert "1 tensors are not known and not used, the first is model.extra.weight" in caplog.text
    del state["model.generation_head.vision_head.bias"]
    save_file(state, folder / "model.safetensors")
    refused(
        "lacks 1 tensors, the first is model.generation_head.vision_head.bias",
        checkpoint=str(folder),
    )
    del state["model.vqmodel.encoder.conv_in.weight"]
    save_file(state, folder / "model.safetensors")
    refused("lacks tensor model.vqmodel.encoder.conv_in.weight", checkpoint=str(folder))


class Touch:
    """What a malicious pickle does: run code when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_damaged_and_dangerous_files_are_refused(
    library: Path, original: Path, tmp_path: Path
) -> None:
    cut = copied(library, tmp_path)
    whole = (cut / "model.safetensors").read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        (cut / "model.safetensors").write_bytes(whole[:size])
        refused("it is damaged, download it again", checkpoint=str(cut))
    shards = copied(original, tmp_path / "shards")
    shard = shards / "pytorch_model-00002-of-00002.bin"
    whole = shard.read_bytes()
    for size in (0, 100, len(whole) // 2):
        shard.write_bytes(whole[:size])
        refused("damaged", checkpoint=str(shards))
    for protocol, save in (
        (None, torch.save),
        (2, lambda value, file: file.write_bytes(pickle.dumps(value, protocol=2))),
    ):
        save({"a": Touch(tmp_path / f"ran{protocol}")}, shard)
        refused("not read because it could run code", checkpoint=str(shards))
    assert not list(tmp_path.glob("ran*"))
    torch.save({"step": 3}, shard)
    refused("entry 'step' is no tensor", checkpoint=str(shards))
    torch.save([1], shard)
    refused("holds a list instead of tensors by name", checkpoint=str(shards))
    shard.unlink()
    refused(
        "names the shard pytorch_model-00002-of-00002.bin, which is not beside it",
        checkpoint=str(shards),
    )


def test_missing_checkpoints_are_refused(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused(
        "somebody/janus .* cannot be downloaded .* set model.checkpoint=PATH", hub="somebody/janus"
    )
    refused("set model.checkpoint=PATH, or model.hub", hub=None)
    refused("there is no such file or folder", checkpoint=str(tmp_path / "nowhere"))
    refused("it is no checkpoint folder", checkpoint=str(tmp_path))
    refused("choose float32, bfloat16 or float16", checkpoint=str(library), dtype="int8")
    refused("choose published or random", weights="best")
    refused("needs model.size", weights="random")
    refused("1 to 240 fit", weights="random", size=TINY, max_context=241)
    refused(
        "known prompt templates are Janus-Pro, Janus-1.3B",
        family="Janus-2",
        checkpoint=str(library),
    )
    folder = copied(library, tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json beside its weights"):
        load(folder).context("a cat", "a cat")
    tokenizer = Tokenizer.from_file(str(library / "tokenizer.json"))
    tokenizer.add_tokens([f"word{n}" for n in range(40)])
    tokenizer.save(str(folder / "tokenizer.json"))
    refused("has ids up to 301, the model 300 words", checkpoint=str(folder))
    (folder / "tokenizer.json").write_text("{}")
    refused("is no tokenizer", checkpoint=str(folder))


def toy_benchmark(prompts: int) -> tuple[str, ...]:
    """Options of a run of the toy benchmark."""
    conf = Path(__file__).parent / "toy_conf"
    return ("--config-dir", str(conf), "benchmark=toy", f"benchmark.prompts={prompts}")


def prefixed(prefix: str, options: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}={value}" for name, value in options.items())


SMALL = {"size": "null", "dtype": "float32", "max_context": 64}


def test_a_checkpoint_on_disk_draws_a_benchmark(library: Path, tmp_path: Path) -> None:
    model = ("model=janus_pro_1b", *prefixed("model", {**SMALL, "checkpoint": library}))
    options = (*toy_benchmark(3), *model, "sampler.slots=8", "device=cpu")
    code, output = harness(tmp_path, *options)
    assert code == 0, output
    (run,) = tmp_path.glob("results/toy/janus_pro_1b/*")
    assert len(list(run.rglob("*.png"))) == 6
    code, output = harness(tmp_path, "run", str(run), "--again", "2", module="harness.check")
    assert code == 0, output


def without_second_layer(library: Path, target: Path) -> Path:
    """A copy of the checkpoint whose language model has one layer."""
    target.mkdir()
    folder = copied(library, target)
    weights = load_file(folder / "model.safetensors")
    second = ".language_model.layers.1."
    kept = {name: tensor for name, tensor in weights.items() if second not in name}
    save_file(kept, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_smaller_checkpoint_drafts_for_a_larger_one(library: Path, tmp_path: Path) -> None:
    """As Janus-Pro-1B for 7B: another language model, the same image tokenizer, both from disk."""
    small = without_second_layer(library, tmp_path / "draft")
    options = (
        *toy_benchmark(2),
        "model=janus_pro_7b",
        *prefixed("model", {**SMALL, "checkpoint": library}),
        "method=speculative",
        "drafter@method.drafter=janus_pro_1b",
        *prefixed("method.drafter.model", {**SMALL, "checkpoint": small}),
        "device=cpu",
    )
    code, output = harness(tmp_path, *options, "sampler.slots=4")
    assert code == 0, output
    (run,) = tmp_path.glob("results/toy/janus_pro_7b/speculative-*")
    records = [json.loads(line) for line in (run / "records-0.jsonl").read_text().splitlines()]
    assert len(records) == 4
    for record in records:
        accepted = record["notes"]["accepted"]
        assert sum((a + 1) * count for a, count in enumerate(accepted)) == 16
        assert sum(accepted[1:]) > 0
        assert record["usage"]["drafted_positions"] > 0

    code, output = harness(tmp_path, *options, "method.drafter.model.max_context=300")
    assert code == 2
    assert "1 to 240 fit" in output


def test_commands_refuse_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for option in ("model.hub=somebody/janus", "model.checkpoint=nowhere"):
        code, output = harness(tmp_path, "model=janus_pro_1b", option, "device=cpu")
        assert code
        assert len(output.strip().splitlines()) == 1
        assert "model.checkpoint" in output
