"""GenEval's evaluator, the true networks at a tiny size, held against mmdet and open_clip."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_evaluator import BASE, picture, write_clip, write_config

from benchmarks.geneval import mmcv_ops
from benchmarks.geneval.colors import Clip, ColorQuestion, crop_object
from benchmarks.geneval.detector import CLASSES, Instance, read_instances
from benchmarks.geneval.mmdet_backend import OFFICIAL, SHA256, Mmdet
from benchmarks.geneval.transformers_backend import Transformers
from benchmarks.geneval.verdict import COLORS
from harness.records import UserError

FLOOR = 0.01
SMALL: dict[str, Any] = {"short_side": 64, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluator")


@pytest.fixture(scope="module")
def config(folder: Path) -> str:
    return write_config(folder)


@pytest.fixture(scope="module")
def detector(config: str) -> Mmdet:
    made = Mmdet(config, weights="random", **SMALL)
    made.load()
    return made


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return Clip(write_clip(folder), weights="random", device="cpu")


# --- operators ------------------------------------------------------------------------------------


def test_the_stand_in_has_what_the_detector_needs_and_refuses_the_rest(detector: Mmdet) -> None:
    from mmcv.ops import nms
    from mmcv.utils import ext_loader

    assert not mmcv_ops.install()  # once is enough
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    _, kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
    assert kept.tolist() == [0, 2]
    with pytest.raises(NotImplementedError, match="'softnms' needs a compiled mmcv"):
        ext_loader.load_ext("_ext", []).softnms()


def test_attention_that_returns_garbage_is_found_out(
    detector: Mmdet, monkeypatch: pytest.MonkeyPatch
) -> None:
    mmcv_ops.expect_sound_attention(torch.device("cpu"))
    extension = sys.modules["mmcv._ext"]
    right = extension.ms_deform_attn_forward

    def wrong(*args: Any, **options: Any) -> Any:
        return right(*args, **options) * 1.01

    monkeypatch.setattr(extension, "ms_deform_attn_forward", wrong)
    with pytest.raises(UserError, match="deformable attention is wrong on cpu"):
        mmcv_ops.expect_sound_attention(torch.device("cpu"))


# --- mmdet ----------------------------------------------------------------------------------------


def test_the_official_detector_is_named_and_pinned() -> None:
    assert Mmdet().id == f"mmdet-{OFFICIAL}-{SHA256}"
    assert Mmdet(weights="random", short_side=384).id == f"mmdet-{OFFICIAL}-random@384"
    assert not Mmdet().random


def test_detections_are_those_of_mmdet(detector: Mmdet) -> None:
    from mmdet.apis import inference_detector
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    network: Any = detector.network
    network.cfg = detector.read_config()
    pipeline = network.cfg.test_dataloader.dataset.pipeline
    pipeline[0].to_float32 = False  # mmdet 2, and so the reference, resizes bytes
    pipeline[1].scale = (107, 64)
    for seed in range(3):
        image = picture(seed)
        ours = detector.detect([image], 0.0)[0]
        ours.sort(key=lambda found: (found.name, found.score))

        image_BGR = np.ascontiguousarray(image[:, :, ::-1])
        theirs = inference_detector(network, image_BGR).pred_instances.numpy()
        names = [CLASSES[label] for label in theirs.labels]
        order = sorted(range(len(theirs)), key=lambda i: (names[i], theirs.scores[i]))

        assert len(ours) == len(theirs) == 100
        assert [found.name for found in ours] == [names[i] for i in order]
        np.testing.assert_allclose([found.score for found in ours], theirs.scores[order], rtol=1e-5)
        np.testing.assert_array_equal([found.box for found in ours], theirs.bboxes[order])
        np.testing.assert_array_equal([found.mask for found in ours], theirs.masks[order])


def test_a_padded_input_is_read_as_mmdet_reads_it(detector: Mmdet) -> None:
    network: Any = detector.network
    random = torch.Generator().manual_seed(1)
    class_QC = torch.randn(20, 81, generator=random) * 3
    mask_Qhw = torch.randn(20, 16, 24, generator=random)
    ours = read_instances(
        class_QC, mask_Qhw, padded=(64, 96), used=(50, 90), picture=(75, 135), floor=0.15
    )

    upsampled = F.interpolate(mask_Qhw[None], (64, 96), mode="bilinear", align_corners=False)
    sample: Any = type("Sample", (), {"metainfo": {"img_shape": (50, 90), "ori_shape": (75, 135)}})
    (results,) = network.panoptic_fusion_head.predict(
        class_QC[None], upsampled, [sample], rescale=True
    )
    theirs = results["ins_results"]
    wanted = [i for i, score in enumerate(theirs.scores.tolist()) if score > 0.15]

    assert 5 < len(ours) == len(wanted) < 100
    for found, i in zip(ours, wanted, strict=True):
        assert found.name == CLASSES[theirs.labels[i]]
        assert found.score == pytest.approx(float(theirs.scores[i]), rel=1e-5)
        assert list(found.box) == theirs.bboxes[i].tolist()
        assert (found.mask == theirs.masks[i].numpy()).all()


def test_pictures_are_resized_padded_with_gray_and_normalised(detector: Mmdet) -> None:
    pixels_CHW, used = detector.prepare(np.full((20, 30, 3), (10, 20, 30), np.uint8))
    assert (used, tuple(pixels_CHW.shape)) == ((64, 96), (3, 64, 96))
    pixels_CHW, used = detector.prepare(np.full((20, 60, 3), (10, 20, 30), np.uint8))
    assert (used, tuple(pixels_CHW.shape)) == ((36, 107), (3, 64, 128))
    means = torch.tensor((123.675, 116.28, 103.53))
    deviations = torch.tensor((58.395, 57.12, 57.375))
    wanted_at = {
        (0, 0): (10, 20, 30),
        (35, 106): (10, 20, 30),
        (36, 0): (128, 128, 128),  # padding
    }
    for (y, x), wanted in wanted_at.items():
        got = pixels_CHW[:, y, x] * deviations + means
        torch.testing.assert_close(got, torch.tensor(wanted).float(), atol=1e-3, rtol=0)


def test_no_detection_depends_on_what_else_is_in_the_batch(config: str) -> None:
    several = Mmdet(config, weights="random", batch=3, **SMALL)
    pictures = [picture(0), picture(1), picture(2, 96, 64), picture(3), picture(4), picture(5)]
    together = several.detect(pictures, FLOOR)
    assert all(together)
    for one, wanted in zip(reversed(pictures), reversed(together), strict=True):
        assert describe(several.detect([one], FLOOR)[0]) == describe(wanted)
    assert several.detect([], FLOOR) == []


def describe(found: list[Instance]) -> list[tuple]:
    """Make detections comparable, masks included."""
    return [(one.name, one.box, one.score, one.mask.tobytes()) for one in found]


def write_checkpoint(path: Path, detector: Mmdet) -> str:
    """Write what mmengine keeps: weights, and metadata and logs beside them."""
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer

    meta = {
        "cfg": "model = 1",
        "dataset_meta": {"classes": CLASSES},
        "lr": np.float64(0.1),
        "more": ConfigDict(a=1),
    }
    checkpoint = {
        "meta": meta,
        "state_dict": detector.network.state_dict(),
        "message_hub": {"loss": HistoryBuffer([0.5, 0.25], [1, 1])},
    }
    torch.save(checkpoint, path)
    return str(path)


def test_a_checkpoint_gives_its_weights_and_its_name(
    detector: Mmdet, config: str, folder: Path
) -> None:
    image = picture(7)
    wanted = describe(detector.detect([image], FLOOR)[0])
    path = write_checkpoint(folder / "whole.pth", detector)
    loaded = Mmdet(config, checkpoint=path, **SMALL)
    assert not loaded.random
    assert describe(loaded.detect([image], FLOOR)[0]) == wanted
    assert loaded.id.split("-")[:2] == ["mmdet", "tiny"]
    larger = Mmdet(config, checkpoint=path, **{**SMALL, "short_side": 96})
    assert larger.id == loaded.id.replace("@64", "@96")

    rename_numpy_as_numpy_1(Path(path))
    older = Mmdet(config, checkpoint=path, **SMALL)
    assert older.id != loaded.id
    older.load()

    safe = folder / "whole.safetensors"
    save_file(detector.network.state_dict(), safe)
    assert describe(Mmdet(config, checkpoint=str(safe), **SMALL).detect([image], FLOOR)[0])


def rename_numpy_as_numpy_1(path: Path) -> None:
    """Name NumPy's functions in a checkpoint as files of 2022 do."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, content in parts.items():
            older = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            file.writestr(name, older)


class Misused:
    """Asks for an attribute as the logs in checkpoints do, but for one that could be misused."""

    def __reduce__(self) -> tuple:
        from mmengine.logging import HistoryBuffer

        return getattr, (HistoryBuffer, "__subclasses__")


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_that_would_run_code_is_refused(config: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = tmp_path / "hostile.pth"

    def load() -> None:
        Mmdet(config, checkpoint=str(path), **SMALL).load()

    torch.save({"state_dict": {}, "meta": Misused()}, path)
    with pytest.raises(UserError, match="could run code"):
        load()
    torch.save({"state_dict": {}, "meta": Hostile(trap)}, path)
    with pytest.raises(
        UserError, match=r"more than tensors in it \(posix\.mkdir\), .* could run code"
    ):
        load()
    path.write_bytes(pickle.dumps({"state_dict": {}, "meta": Hostile(trap)}, protocol=2))
    with pytest.raises(UserError, match=r"could run code"):
        load()
    assert not trap.exists()


def without_level_embedding(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if "level_embed" not in name}


def with_attention_renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, value in state.items():
        renamed[name.replace("attn.in_proj", "attentions.0.in_proj")] = value
    return renamed


def with_more_classes(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**state, "panoptic_head.cls_embed.weight": torch.zeros(134, 32)}


def without_tensors(state: dict[str, torch.Tensor]) -> dict[str, int]:
    return {"a": 3}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without_level_embedding, "1 are missing (such as panoptic"),
        (with_attention_renamed, "are unknown (such as panoptic_head.transformer_decoder"),
        (with_more_classes, "1 have another shape (such as panoptic_head.cls_embed.weight)"),
        (without_tensors, "no weights by name"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(
    change: Any, problem: str, detector: Mmdet, config: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.pth"
    torch.save({"state_dict": change(OrderedDict(detector.network.state_dict()))}, path)
    with pytest.raises(UserError) as caught:
        Mmdet(config, checkpoint=str(path), **SMALL).load()
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_configurations_are_refused(tmp_path: Path, config: str) -> None:
    panoptic = write_config(tmp_path, base=BASE.replace(".py", "-panoptic.py"))
    with pytest.raises(
        UserError, match=r"knows 133 classes.*instance segmentation variant, not the panoptic one"
    ):
        Mmdet(panoptic, weights="random", **SMALL).load()
    (tmp_path / "broken.py").write_text("model = (")
    with pytest.raises(UserError, match="no configuration of mmdet"):
        Mmdet(str(tmp_path / "broken.py"), weights="random", **SMALL).load()
    with pytest.raises(UserError, match="choose a file, or one of mask2former_r101"):
        Mmdet("mask3former", weights="random", **SMALL).load()
    with pytest.raises(UserError, match=r"only .* has a download; set checkpoint=PATH"):
        Mmdet(config)
    with pytest.raises(UserError, match=r"nowhere\.pth: cannot be read"):
        Mmdet(checkpoint=str(tmp_path / "nowhere.pth"))
    wrong_options: list[dict[str, Any]] = [
        {"weights": "good"},
        {"short_side": 3},
        {"batch": 0},
        {"weights": "random", "checkpoint": config},
    ]
    for options in wrong_options:
        with pytest.raises(UserError, match=r"benchmark\.detector"):
            Mmdet(**options)


# --- transformers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a checkpoint folder of transformers, as on the hub."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
    )

    swin = {
        "model_type": "swin",
        "embed_dim": 12,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 7,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    small = {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "num_attention_heads": 4,
        "num_queries": 20,
    }
    more = {
        "encoder_feedforward_dim": 64,
        "dim_feedforward": 64,
        "encoder_layers": 1,
        "decoder_layers": 3,
    }
    config = Mask2FormerConfig(backbone_config=swin, num_labels=80, **small, **more)
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("hub") / "tiny-coco-instance"
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 107}).save_pretrained(
        folder
    )
    return folder


def test_the_transformers_backend_reads_raw_outputs_as_the_reference_does(hub: Path) -> None:
    from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

    image = picture(0, 72, 48)
    found = Transformers(str(hub), device="cpu").detect([image], 0.001)[0]
    network = Mask2FormerForUniversalSegmentation.from_pretrained(hub).eval()
    inputs = AutoImageProcessor.from_pretrained(hub)(image.copy(), return_tensors="pt")
    with torch.no_grad():
        outputs = network(**inputs)

    prob_QC = outputs.class_queries_logits[0].softmax(-1)[:, :-1]
    mask = F.interpolate(outputs.masks_queries_logits, (64, 96), mode="bilinear")
    mask_QHW = F.interpolate(mask, (48, 72), mode="bilinear")[0]
    scores = []
    for q in range(20):
        inside = mask_QHW[q] > 0
        quality = float(mask_QHW[q].sigmoid()[inside].mean()) if inside.any() else 0.0
        scores += [(float(prob_QC[q, c]) * quality, CLASSES[c]) for c in range(80)]
    scores.sort(reverse=True)

    best = sorted(found, key=lambda one: one.score, reverse=True)[:10]
    assert [one.name for one in best] == [name for _, name in scores[:10]]
    np.testing.assert_allclose(
        [one.score for one in best], [score for score, _ in scores[:10]], rtol=1e-4
    )


def test_the_transformers_backend_names_what_it_is(hub: Path) -> None:
    pinned = Transformers(revision="0123456789ab")
    assert pinned.id == "transformers-mask2former-swin-small-coco-instance-01234567"
    newest = Transformers(str(hub))
    assert re.fullmatch(r"transformers-tiny-coco-instance-[0-9a-f]{8}", newest.id)
    random = Transformers(str(hub), weights="random", short_side=96, device="cpu")
    assert (random.random, random.id) == (True, "transformers-tiny-coco-instance-random@96")
    assert random.detect([picture(0), picture(1)], 0.001)[1]


def test_a_transformers_model_that_cannot_be_had_is_refused(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    remedy = r"cannot be had .* set benchmark\.detector\.model to a folder"
    with pytest.raises(UserError, match=remedy):
        Transformers("nobody/nothing")
    with pytest.raises(UserError, match=remedy):
        Transformers(str(hub / "nowhere"), weights="random", device="cpu").load()
    with pytest.raises(UserError, match=r"device=cuda:77 is not usable here"):
        Transformers(str(hub), device="cuda:77").load()


def test_a_transformers_checkpoint_without_its_head_is_refused(hub: Path, tmp_path: Path) -> None:
    shutil.copytree(hub, tmp_path / "torn")
    whole = load_file(hub / "model.safetensors")
    torn = {name: value for name, value in whole.items() if "class_predictor" not in name}
    save_file(torn, tmp_path / "torn/model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"lacks 2 tensors of a Mask2Former, such as class_predictor"
    ):
        Transformers(str(tmp_path / "torn"), device="cpu").load()


# --- color ----------------------------------------------------------------------------------------


def half_masked(
    image: np.ndarray, name: str = "cup", box: tuple = (8.0, 4.0, 40.0, 60.0)
) -> ColorQuestion:
    """Ask about an object in `box` whose mask is the left half of a picture."""
    mask = np.zeros(image.shape[:2], bool)
    mask[:, :32] = True
    return ColorQuestion(image, Instance(name, box, 0.9, mask))


def test_a_crop_is_gray_outside_the_mask() -> None:
    question = half_masked(np.full((64, 64, 3), (200, 10, 30), np.uint8))
    crop = crop_object(question.image, question.instance)
    assert crop.size == (32, 56)
    assert crop.getpixel((23, 0)) == (200, 10, 30)
    assert crop.getpixel((24, 0)) == (153, 153, 153)


def test_colors_are_those_of_open_clip(clip: Clip) -> None:
    import open_clip

    questions = [
        half_masked(picture(0)),
        half_masked(picture(1), "teddy bear", (0.0, 0.0, 64.0, 20.0)),
    ]
    got = clip.scores(questions)
    network = clip.network
    tokenizer = open_clip.get_tokenizer("tiny_clip")
    assert any(type(module).__name__ == "QuickGELU" for module in network.modules())
    for question, scores in zip(questions, got, strict=True):
        name = question.instance.name
        pixels_CHW = clip.preprocess(crop_object(question.image, question.instance))
        with torch.no_grad():
            image = F.normalize(network.encode_image(pixels_CHW[None]))
            for color, score in zip(COLORS, scores, strict=True):
                texts = [
                    f"a photo of a {color} {name}",
                    f"a photo of a {color}-colored {name}",
                    f"a photo of a {color} object",
                ]
                text = F.normalize(network.encode_text(tokenizer(texts)))
                wanted = float((image @ F.normalize(text.mean(0), dim=0))[0])
                assert score == pytest.approx(wanted, abs=1e-5)


def test_no_color_depends_on_what_else_is_in_the_batch(folder: Path, clip: Clip) -> None:
    several = Clip(write_clip(folder), weights="random", device="cpu", batch=3)
    names = ("cup", "dog", "cup", "cat")
    questions = [half_masked(picture(seed), name) for seed, name in enumerate(names)]
    together = several.scores(questions)
    assert [several.scores([question])[0] for question in questions] == together
    np.testing.assert_allclose(clip.scores(questions), together, atol=1e-5)
    assert clip.scores([]) == []


def test_weights_of_openai_need_their_activation(folder: Path, tmp_path: Path) -> None:
    assert Clip().id == "clip-ViT-L-14-quickgelu-openai"
    with pytest.raises(
        UserError,
        match=r"ViT-L-14 has no QuickGELU, which OpenAI's weights need: ViT-L-14-quickgelu",
    ):
        Clip("ViT-L-14")
    with pytest.raises(UserError, match="no model of open_clip with quick_gelu"):
        Clip(str(tmp_path / "none.json"))
    with pytest.raises(UserError, match="exclude each other"):
        Clip(weights="random", checkpoint="x")
    with pytest.raises(UserError, match=r"none\.pt: cannot be read"):
        Clip(checkpoint=str(tmp_path / "none.pt"))
    with pytest.raises(UserError, match=r"benchmark\.colors\.batch=0"):
        Clip(batch=0)


def test_a_clip_checkpoint_is_read_as_weights_only(
    clip: Clip, folder: Path, tmp_path: Path
) -> None:
    clip.load()
    path = tmp_path / "clip.pt"
    torch.save(clip.network.state_dict(), path)
    loaded = Clip(write_clip(folder), checkpoint=str(path), device="cpu")
    assert loaded.scores([half_masked(picture(2))]) == clip.scores([half_masked(picture(2))])
    assert loaded.id != clip.id
    torch.save({"state_dict": Hostile(tmp_path / "trap")}, path)
    with pytest.raises(UserError, match=r"cannot be loaded .*set benchmark\.colors\.checkpoint"):
        Clip(write_clip(folder), checkpoint=str(path), device="cpu").load()
    assert not (tmp_path / "trap").exists()
