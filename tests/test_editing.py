"""Editing: a prompt may carry a source image; it is seen, counted, and named by its content."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from toy import ToyModel, draw

import harness
import harness.cli
from harness.check.originals import check_parity
from harness.engine.guidance import ImageGuide, Sampling, cfg
from harness.engine.method_spec import MethodSpec
from harness.engine.scheduler import Delivery
from harness.models.captions import Features, WordFeatures
from harness.models.editar import EditAR, EditingGPT, crop_source, load, truncate_pixels
from harness.models.vq import VQ, VQSpec
from harness.records import Job, Prompt, SourceImage, UserError
from harness.runs.instantiate import build_object
from harness.runs.spec import expect_sources
from methods.best_of_n import BestOfN
from methods.plain import Plain

FIXTURE = Path(__file__).parents[2] / "shared" / "fixtures" / "editar_tiny"
SIZE = {"layers": 2, "dim": 32, "heads": 2, "hidden": 48, "condition": 6, "caption_dim": 12}
TOKENIZER = {
    "codes": 32,
    "code_dim": 4,
    "width": 8,
    "multipliers": [1, 2],
    "blocks": 1,
    "latent": 8,
    "groups": 4,
}
SIDE = 8
"""Pixels a side of the tiny editor's images: 4 x 4 tokens."""
CONTEXT = 16 + 6
TEXT = "make the cat blue"


@cache
def tiny() -> EditAR:
    """A tiny editor of random weights, as `model.weights=random` makes the large one."""
    return load(
        "tiny",
        SIZE,
        SIDE,
        WordFeatures(12, 6, padded=True),
        weights="random",
        tokenizer=TOKENIZER,
        dtype="float32",
    )


def source(seed: int = 0, side: int = SIDE) -> SourceImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return SourceImage.of_pixels(pixels)


def edit(image: SourceImage | None = None, text: str = TEXT, name: str = "0") -> Job:
    return Job(Prompt(f"edits/{name}", text, "any", source=image or source()), 0)


def draw_edits(*jobs: Job, method: Any = None, **options: Any) -> list[Delivery]:
    model: Any = tiny()
    found = draw(method or Plain(), jobs, model=model, **options)
    return [found[job.key] for job in jobs]


# ------------------------------------------------------------------ the original's answers


@pytest.mark.skipif(not FIXTURE.is_dir(), reason="the parity fixture is not here")
def test_the_editor_computes_what_the_original_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_parity(FIXTURE, "cpu") == 0
    assert "8 passed, 0 failed" in capsys.readouterr().out


# ------------------------------------------------------------------ sources


def test_a_source_is_named_by_its_bytes_and_shown_over_white(tmp_path: Path) -> None:
    file = tmp_path / "clear.png"
    Image.new("RGBA", (3, 2), (255, 0, 0, 0)).save(file)
    image = SourceImage.read(file)
    assert image.size == (3, 2)
    assert (image.pixels() == 255).all()
    (tmp_path / "copy.png").write_bytes(file.read_bytes())
    assert SourceImage.read(tmp_path / "copy.png") == image
    assert source(0) != source(1)
    assert edit(source(0)).prompt.extra_fields != edit(source(1)).prompt.extra_fields


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_file_that_is_no_image_is_one_line_with_its_name(
    content: bytes | None, tmp_path: Path
) -> None:
    file = tmp_path / "broken.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png.* cannot be read") as error:
        SourceImage.read(file)
    assert "\n" not in str(error.value)


def test_pixels_of_another_kind_are_refused() -> None:
    with pytest.raises(UserError, match=r"float32 \[4, 4, 3\]: give uint8"):
        SourceImage.of_pixels(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(UserError, match=r"uint8 \[4, 4\]: give uint8"):
        SourceImage.of_pixels(np.zeros((4, 4), np.uint8))


def test_the_middle_of_a_source_is_seen() -> None:
    wide = np.zeros((10, 31, 3), np.uint8)
    wide[:, 10:20] = 200
    assert crop_source(wide, 10).shape == (10, 10, 3)
    assert (crop_source(wide, 10) == 200).all()
    assert crop_source(wide, 20).shape == (20, 20, 3)


def test_pixels_are_truncated_not_rounded() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 0.9999, 1.0, 2.0]).view(1, 1, 1, -1).expand(1, 3, 1, -1)
    assert truncate_pixels(values)[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


# ------------------------------------------------------------------ what is drawn, and its cost


def test_an_edit_follows_from_its_source_and_its_instruction_alone() -> None:
    jobs = [edit(name="0"), edit(source(1), name="1"), edit(text="remove the dog", name="2")]
    together = draw_edits(*jobs)
    alone = [draw_edits(job, slots=2)[0] for job in jobs]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    # The noise is that of the prompt's id; all else being equal, the source decides.
    here, there = draw_edits(edit(source(0))), draw_edits(edit(source(1)))
    assert here[0].tokens != there[0].tokens


def test_the_ledger_counts_the_positions_of_the_source() -> None:
    (plain,) = draw_edits(edit())
    assert plain.usage.text_positions == 2 * CONTEXT
    assert plain.usage.visual_tokens == 16
    (guided,) = draw_edits(edit(), sampling=Sampling(scale=2.0, image_scale=1.5))
    assert guided.usage.text_positions == 3 * CONTEXT
    (four,) = draw_edits(edit(), method=BestOfN(4), slots=8)
    assert four.usage.text_positions == 8 * CONTEXT


def test_guidance_by_the_image_is_the_papers_equation() -> None:
    empty, image, text = torch.randn(3, 2, 5, 7, dtype=torch.float64)
    logits = torch.stack((empty, image, text), 1)
    scale = torch.tensor([3.0, 2.0], dtype=torch.float64)
    by_scale = scale[:, None, None]
    expected = empty + 1.5 * (image - empty) + by_scale * (text - image)
    torch.testing.assert_close(ImageGuide(cfg, 1.5)(logits, scale), expected)
    torch.testing.assert_close(ImageGuide(cfg, 1.0)(logits, scale), cfg(logits[:, 1:], scale))


def test_guided_by_the_image_three_branches_are_drawn_and_the_source_weighs_more() -> None:
    class Watching(Plain):
        async def generate(self, prompt: str, s: Any) -> Any:
            (canvas,) = s.open()
            contexts.extend(canvas.contexts)
            s.condition(canvas, (None, "paint it red"), cfg)
            contexts.extend(canvas.contexts)
            await s.run([canvas])
            return canvas

    contexts: list[Any] = []
    image = source()
    sampling = Sampling(scale=2.0, image_scale=1.5)
    (done,) = draw_edits(edit(image), method=Watching(), sampling=sampling)
    assert done.error == ""
    seen = [(context.text, context.source) for context in contexts]
    assert seen[:3] == [(None, None), (None, image), (TEXT, image)]
    assert seen[3:] == [(None, None), (None, image), ("paint it red", image)]
    (plain,) = draw_edits(edit(image))
    (by_image,) = draw_edits(edit(image), sampling=sampling)
    assert by_image.tokens != plain.tokens


# ------------------------------------------------------------------ who edits, and who refuses


METHODS = {
    "plain": "",
    "best_of_n_likelihood": "",
    "gsd": "",
    "importance_sampling": "sees no source image",
    "scalingar": "",
    "sjd": "",
    "vvs": "drafts from texts",
    "zipar": "",
    "best_of_n": "sees no source image",
    "eagle": "was trained for weights",
    "gridar": "sees no source image",
    "lantern": "drafts from texts",
    "speculative": "drafts from texts",
}
"""Methods, and why they refuse to edit; "" for those that do."""


def make_method(name: str) -> Any:
    """Build a method of the project as its configuration has it."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("config", [f"method={name}"])
    GlobalHydra.instance().clear()
    return build_object(config.method)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_edits_unchanged_or_refuses_with_a_reason(name: str) -> None:
    method = make_method(name)
    spec = MethodSpec.of(method)
    sizes = spec.sampler_sizes()
    model: Any = tiny()
    if METHODS[name]:
        with pytest.raises(UserError, match=METHODS[name]) as error:
            spec.expect_fit(model, Sampling(scale=2.0), slots=spec.slots, **sizes)
        assert "\n" not in str(error.value)
        return
    (done,) = draw_edits(edit(), method=method, slots=spec.slots)
    assert done.error == ""
    assert done.image is not None
    assert done.image.shape == (SIDE, SIDE, 3)


def test_a_judge_that_sees_the_source_may_choose_edits() -> None:
    class Fond:
        id = "fond"
        sees_source = True

        def __call__(self, texts: Any, images: Any, sources: Any) -> list[float]:
            seen.extend(zip(texts, images, sources, strict=True))
            return [float(index) for index in range(len(images))]

    seen: list[tuple[str, np.ndarray, np.ndarray]] = []
    image = source(3)
    (done,) = draw_edits(edit(image), method=BestOfN(2, Fond()), slots=4)
    assert done.error == ""
    assert done.notes["chosen"] == 1
    assert [text for text, _, _ in seen] == [TEXT, TEXT]
    assert all((given == image.pixels()).all() for _, _, given in seen)


def test_a_judge_of_edits_is_refused_where_nothing_is_edited() -> None:
    spec = MethodSpec.of(make_method("gridar_edit"))
    toy: Any = ToyModel()
    with pytest.raises(UserError, match=r"method\.(verifier|reward): .* and toy edits none"):
        spec.expect_fit(toy, Sampling(scale=2.0), slots=spec.slots, **spec.sampler_sizes())


def test_models_and_prompts_that_do_not_fit_are_refused() -> None:
    toy: Any = ToyModel()
    editor: Any = tiny()
    with pytest.raises(
        UserError, match=r"toy draws from texts and edits no image.*such as model=editar"
    ):
        expect_sources(toy, [edit().prompt])
    with pytest.raises(UserError, match="tiny edits images, and 1 prompts have none"):
        expect_sources(editor, [Prompt("a", "a cat", "any")])
    spec = MethodSpec.of(Plain())
    with pytest.raises(UserError, match=r"image_scale=2 guides by a source image, and toy edits"):
        spec.expect_fit(toy, Sampling(image_scale=2.0), slots=4, tokens_per_step=1)
    with pytest.raises(UserError, match=r"image_scale=0.*must be positive"):
        Sampling(image_scale=0.0)
    three = spec.under(Sampling(scale=2.0, image_scale=2.0))
    assert three.slots == 3
    with pytest.raises(UserError, match=r"slots=2 is too few: the method needs 3"):
        three.expect_fit(editor, Sampling(image_scale=2.0), slots=2, tokens_per_step=1)


# ------------------------------------------------------------------ checkpoints


def write_checkpoint(folder: Path, **more: torch.Tensor) -> dict[str, Any]:
    """Write a tiny editor in the released layout; returns the options that name it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = tiny()
    gpt = EditingGPT(model.gpt.spec)
    state = {name.removeprefix("trunk."): t for name, t in gpt.state_dict().items()} | more
    torch.save({"module": state}, folder / "editar.pt")
    vq = VQ(VQSpec(**{**TOKENIZER, "multipliers": (1, 2)}))  # type: ignore[arg-type]
    torch.save({"model": vq.state_dict()}, folder / "vq_ds16_t2i.pt")
    return {"checkpoint": str(folder / "editar.pt"), "tokenizer": TOKENIZER, "dtype": "float32"}


def load_tiny(**options: Any) -> EditAR:
    return load("tiny", SIZE, SIDE, WordFeatures(12, 6, padded=True), **options)


def test_a_checkpoint_is_read_without_what_training_alone_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = {"alignment.weight": torch.zeros(3), "freqs_cis": torch.zeros(38, 8, 2)}
    model = load_tiny(**write_checkpoint(tmp_path, **more))
    assert len(model.revision) == 12
    assert "not known" not in caplog.text
    again = load_tiny(**write_checkpoint(tmp_path / "other"))
    assert again.revision != model.revision


def test_a_checkpoint_is_pinned_by_its_hash(tmp_path: Path) -> None:
    from harness.download import file_sha256

    options = write_checkpoint(tmp_path)
    found = file_sha256(tmp_path / "editar.pt")
    assert load_tiny(**options, sha256=found[:8]).revision
    with pytest.raises(UserError, match=rf"has sha256 {found}, not 00000000"):
        load_tiny(**options, sha256="00000000")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": None}, "the model names no weights: set model.checkpoint=PATH"),
        ({"weights": "none"}, "model.weights=none: choose published or random"),
        ({"size": {**SIZE, "dim": 64}}, r"tensor .* the model needs"),
        ({"dtype": "int8"}, "model.dtype=int8"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    options = {"size": SIZE, **write_checkpoint(tmp_path), **change}
    size = options.pop("size")
    with pytest.raises(UserError, match=message):
        load("tiny", size, SIDE, WordFeatures(12, 6, padded=True), **options)


def test_a_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    options = write_checkpoint(tmp_path)
    state = torch.load(options["checkpoint"])["module"]
    del state["img_uncond_embedding"]
    torch.save({"module": state}, options["checkpoint"])
    with pytest.raises(UserError, match=r"lacks 1 of .* the first is img_uncond_embedding"):
        load_tiny(**options)


def test_instructions_need_the_features_of_their_padding() -> None:
    class Short:
        revision = "short"

        def __call__(self, text: str) -> Features:
            return Features(torch.zeros(3, 12), torch.zeros(12))

    model = tiny()
    other = EditAR(model.gpt, None, Short())
    with pytest.raises(UserError, match=r"\(3, 12\), the model takes 6 rows .*padded=true"):
        other.context("a cat", "a cat")
    assert len(WordFeatures(4, 9, padded=True)("a cat").row_vC) == 9
    assert len(WordFeatures(4, 9)("a cat").row_vC) == 3


# ------------------------------------------------------------------ harness.draw


def write_model(folder: Path) -> Path:
    """Write the configuration of a tiny editor on disk; returns the folder of configurations."""
    write_checkpoint(folder / "weights")
    lines = (
        "_target_: harness.models.editar.load",
        "name: tiny_editor",
        f"size: {SIZE}",
        f"image: {SIDE}",
        f"tokenizer: {TOKENIZER}",
        f"checkpoint: {folder / 'weights' / 'editar.pt'}",
        "dtype: float32",
        "sampling: {scale: 3.0}",
        "captions:",
        "  _target_: harness.models.captions.WordFeatures",
        "  width: 12",
        "  length: 6",
        "  padded: true",
    )
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "model" / "tiny_editor.yaml").write_text("\n".join(lines) + "\n")
    return folder / "conf"


def test_draw_edits_a_path_pixels_and_images_alike(tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "tiny_editor", "config_dir": write_model(tmp_path)}
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    file = tmp_path / "cat.png"
    Image.fromarray(pixels).save(file)
    given: list[Any] = [file, str(file), pixels, Image.fromarray(pixels)]
    drawn = [harness.draw("plain", TEXT, image=image, **options) for image in given]
    assert len({one.tokens for one in drawn}) == 1
    assert drawn[0].image.size == (SIDE, SIDE)
    assert drawn[0].usage.text_positions == 2 * CONTEXT
    assert drawn[0].prompt.source is not None

    other = harness.draw("plain", TEXT, image=255 - pixels, **options)
    assert other.tokens != drawn[0].tokens
    two = harness.draw("plain", [TEXT, TEXT], image=[pixels, 255 - pixels], **options)
    assert [one.tokens for one in two] == [drawn[0].tokens, other.tokens]
    harness.release()


@pytest.mark.parametrize(
    ("prompt", "image", "message"),
    [
        ("a cat", "none.png", r"none\.png: cannot be read"),
        ("a cat", 7, "image=7: give a path"),
        (["a", "b"], [np.zeros((4, 4, 3), np.uint8)], "1 images for 2 prompts"),
        ("a cat", np.zeros((4, 4, 3), np.uint8), "draws from texts and edits no image"),
    ],
)
def test_draw_refuses_images_that_cannot_be_edited(prompt: Any, image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        harness.draw("plain", prompt, image=image)


def test_the_likelihood_of_an_edit_is_finite() -> None:
    (done,) = draw_edits(edit(), method=BestOfN(2), slots=4)
    scores: Any = done.notes["scores"]
    assert all(math.isfinite(score) for score in scores)
