"""The embedded editor: its world of edits, its judge and reward, its network in the engine."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import deterministic, folders
from runs import harness as run_harness

from benchmarks.edit_pictogram import EditPictogram
from benchmarks.pie_bench.masks import decode_mask
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.judges.pictogram import PictogramDetector
from harness.judges.pictogram_edit import PictogramEditReward
from harness.judges.pictogram_edit_verifier import PictogramEditVerifier
from harness.models.pictogram import edits, grammar
from harness.models.pictogram import weights as files
from harness.models.pictogram.detector import read_box_colors
from harness.models.pictogram.edit_reading import judge_edit, measure_overlap
from harness.models.pictogram.editor import (
    EditorGPT,
    PictogramEditor,
    begin_with_generator,
    editor_spec,
)
from harness.models.pictogram.generator import GPT, GPTSpec, load_gpt, load_tokenizer, spec_config
from harness.models.trunk import causal
from harness.records import SourceImage, Usage, UserError
from harness.results.contact_sheet import (
    GAP,
    LEGEND_HEIGHT,
    PITCH,
    PROMPT_WIDTH,
    render_contact_sheet,
    write_contact_sheet,
)
from harness.runs.read import read_run
from harness.training import loop as training
from harness.training import train_editor, verify
from harness.training.card import render
from harness.training.edit_gates import measure_editor

SET = "pictogram_16"
CLASSES = grammar.CLASS_SETS[SET]
SMALL = GPTSpec(layers=1, dim=32, heads=2, hidden=48, words=len(edits.vocabulary()))


@pytest.fixture(scope="module")
def made() -> list[edits.Edit]:
    return edits.generate_edits(CLASSES, 40, 0, read_box_colors)


# ------------------------------------------------------------------ the world


def test_edits_are_a_function_of_the_seed_and_as_many_of_each_kind(made: list[edits.Edit]) -> None:
    assert made == edits.generate_edits(CLASSES, 40, 0, read_box_colors)
    assert made[:8] == edits.generate_edits(CLASSES, 8, 0, read_box_colors)
    assert made != edits.generate_edits(CLASSES, 40, 1, read_box_colors)
    assert Counter(edit.kind for edit in made) == dict.fromkeys(edits.KINDS, 10)


def test_nothing_changes_outside_the_mask_and_something_inside(made: list[edits.Edit]) -> None:
    for edit in made:
        before, _ = edit.source.draw()
        after, _ = edit.target.draw()
        mask = decode_mask(edits.list_mask_runs(edit), 48, 48)
        changed = (before != after).any(-1)
        assert changed.any()
        assert not (changed & (mask == 0)).any()
        assert (mask == 0).any()


def test_every_instruction_is_read_as_what_it_asks_for(made: list[edits.Edit]) -> None:
    for edit in made:
        request = edits.parse(edit.text)
        assert request is not None
        assert request.kind == edit.kind
        assert 1 not in edits.encode(edit.text), edit.text  # <unk>
        finish = edits.parse(edits.write_finish(edit))
        assert finish is not None
        assert (finish.kind, finish.name) == ("finish", edit.changed.name)
    assert edits.parse("a photo of a cat") is None
    assert edits.parse("make the orange orange red") == edits.Request("color", "orange", "red")


def test_words_of_captions_keep_their_numbers() -> None:
    known = grammar.vocabulary()
    assert {word: edits.vocabulary()[word] for word in known} == known
    assert len(edits.vocabulary()) == len(known) + len(edits.WORDS)
    assert edits.encode("a photo of a cat") == grammar.encode("a photo of a cat")
    assert edits.encode(None) == grammar.encode(None)


def test_a_copy_asks_for_the_colour_that_is_there() -> None:
    edit = edits.draw_identity(random.Random(0), CLASSES)
    assert edit.source == edit.target
    assert edit.text.endswith(f"{edit.changed.name} {edit.changed.color}")


# ------------------------------------------------------------------ judge and reward


def test_true_edits_are_accepted_and_untouched_sources_are_not(made: list[edits.Edit]) -> None:
    judge = PictogramDetector(SET)
    targets = judge.detect([edit.target.draw()[0] for edit in made])
    sources = judge.detect([edit.source.draw()[0] for edit in made])
    keys = [edits.describe(edit) for edit in made]
    right = [judge_edit(key, found) for key, found in zip(keys, targets, strict=True)]
    wrong = [judge_edit(key, found) for key, found in zip(keys, sources, strict=True)]
    assert np.mean([verdict.correct for verdict in right]) >= 0.95
    assert not any(verdict.done for verdict in wrong)
    assert all(verdict.reasons for verdict in wrong)


def test_what_is_lost_beside_the_edit_is_noticed(made: list[edits.Edit]) -> None:
    """A picture with the edited thing alone keeps nothing, where there was another one."""
    judge = PictogramDetector(SET)
    several = [edit for edit in made if edit.kind != "remove" and len(edit.source.things) > 1]
    for edit in several:
        alone = edits.Scene(edit.target.background, (edit.changed,))
        (found,) = judge.detect([alone.draw()[0]])
        verdict = judge_edit(edits.describe(edit), found)
        assert not verdict.kept
        assert any("is not where it was" in reason for reason in verdict.reasons)


def test_overlap_is_intersection_over_union() -> None:
    assert measure_overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert measure_overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert measure_overlap((0, 0, 2, 2), (2, 0, 3, 2)) == 0


def test_the_reward_prefers_the_true_edit_and_needs_the_source(made: list[edits.Edit]) -> None:
    reward = PictogramEditReward(SET)
    texts = [edit.text for edit in made]
    sources: list[Any] = [edit.source.draw()[0] for edit in made]
    targets = [edit.target.draw()[0] for edit in made]
    true = reward(texts, targets, sources)
    untouched = reward(texts, sources, sources)
    better = [
        a > b for a, b in zip(true, untouched, strict=True) if a is not None and b is not None
    ]
    assert len(better) == len(made)
    assert np.mean(better) >= 0.95
    assert reward(["a photo of a cat"], targets[:1], sources[:1]) == [None]
    assert reward(texts[:1], targets[:1], [None]) == [None]


# ------------------------------------------------------------------ the network


def small_editor() -> PictogramEditor:
    torch.manual_seed(0)
    gpt = EditorGPT(SMALL)
    for parameter in gpt.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    vq, _ = load_tokenizer(SET)
    return PictogramEditor.of_networks(gpt, vq, CLASSES)


def source_of(edit: edits.Edit) -> SourceImage:
    return SourceImage.of_pixels(edit.source.draw()[0])


def test_the_engine_computes_what_training_does(made: list[edits.Edit]) -> None:
    """Logits along given tokens, fed one by one beside a source, are those of the whole pass."""
    model = small_editor()
    any_model: Any = model
    edit = made[0]
    sampler = Sampler(any_model, Sampling(scale=2.0), slots=2, prefill=(2, 32))
    contexts, guide = sampler.contexts(edit.text, source_of(edit))
    canvas = sampler.open(contexts, guide, 1, Usage())
    logits: list[torch.Tensor] = []

    def tap(logits_RKTV: torch.Tensor, _: Any) -> dict[str, torch.Tensor]:
        logits.append(logits_RKTV[0, :, 0].clone())
        return {"none": logits_RKTV[:, 0, 0, 0]}

    token_N = torch.randint(0, 512, (144,), generator=torch.Generator().manual_seed(0))
    for token in token_N[:20].tolist():
        sampler.forward([canvas], [None])
        sampler.probe([canvas], tap)
        sampler.commit(canvas, [token])
    drawn_nKV = torch.stack(logits)

    source_2N = model.encode(edit.source.draw()[0]).expand(2, -1)
    words = torch.tensor([edits.encode(None), edits.encode(edit.text)])
    with torch.no_grad():
        whole_KNV = model.gpt.forward_edits(
            source_2N, torch.tensor([False, False]), words, token_N.expand(2, -1), causal
        )
    torch.testing.assert_close(drawn_nKV.transpose(0, 1), whole_KNV[:, :20], rtol=1e-4, atol=1e-4)
    assert canvas.ledger.text_positions == 2 * (144 + 32)


def test_the_source_reaches_a_place_through_its_own_cell(made: list[edits.Edit]) -> None:
    """With attention cut off, logits still follow the source token of the cell that is drawn."""

    def blind(_layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(v)

    gpt = small_editor().gpt
    token_1N = torch.zeros((1, 144), dtype=torch.int64)
    words = torch.tensor([edits.encode("remove the cat")])
    here = torch.tensor([False])
    with torch.no_grad():
        one = gpt.forward_edits(token_1N, here, words, token_1N, blind)
        changed_1N = token_1N.clone()
        changed_1N[0, 50] = 7
        other = gpt.forward_edits(changed_1N, here, words, token_1N, blind)
    differs = (one != other).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == [50]


def test_an_editor_begins_with_the_generators_weights() -> None:
    generator, _, _ = load_gpt(SET, "generator")
    gpt = EditorGPT(editor_spec(generator.spec))
    begin_with_generator(gpt, generator)
    words = len(grammar.vocabulary())
    assert torch.equal(gpt.word_embeddings.weight[:words], generator.word_embeddings.weight)
    assert torch.equal(gpt.head.weight, generator.head.weight)
    assert torch.equal(gpt.hint.weight, torch.eye(generator.spec.dim))


def test_the_editor_refuses_other_sizes_and_missing_weights(tmp_path: Path) -> None:
    model = small_editor()
    other = SourceImage.of_pixels(np.zeros((32, 48, 3), np.uint8))
    with pytest.raises(UserError, match="a source of 48x32: the embedded editor reads 48x48"):
        model.edit_context("remove the cat", "remove the cat", other)
    with pytest.raises(files.WeightsError, match=r"editor\.safetensors is missing"):
        PictogramEditor(str(tmp_path))


# ------------------------------------------------------------------ training


def test_a_batch_has_dropped_conditions_and_finish_instructions() -> None:
    vq, _ = load_tokenizer(SET)
    words = []
    empty = 0
    for step in range(4):
        rng = training.step_rng(0, "editor", step)
        source, is_empty, word_B32, target = train_editor.draw_batch(CLASSES, rng, vq.encode, 0.0)
        assert source.shape == target.shape == (train_editor.BATCH, 144)
        empty += int(is_empty.sum())
        words += word_B32.tolist()
        assert not word_B32[is_empty].any()
    number = len(words)
    dropped = sum(not any(row) for row in words) / number
    finish = edits.vocabulary()["finish"]
    assert 0.03 < dropped < 0.25
    assert 0 < sum(finish in row for row in words) / number < 0.25
    assert empty < number * 0.1


def test_an_editor_is_watched_while_it_is_trained() -> None:
    model = small_editor()
    options = training.Options(SET, 60, 0, Path("unused"))
    measured = train_editor.watch(EditorGPT(SMALL), model.vq, options, count=4)
    assert set(measured) == {"done", "kept", "both", *edits.KINDS}
    assert all(0 <= value <= 1 for value in measured.values())


@pytest.mark.long
def test_a_training_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "compile_if_possible", lambda function: function)
    monkeypatch.setattr(train_editor, "watch", lambda *_: {})

    def train(folder: str, samples: int) -> EditorGPT:
        torch.manual_seed(0)
        options = training.Options(SET, 60, 0, tmp_path / folder, samples=samples)
        return train_editor.train(options)

    monkeypatch.setattr(training, "decay", lambda share: 0.1)
    whole = train("whole", 3 * train_editor.BATCH)
    train("parts", 2 * train_editor.BATCH)
    continued = train("parts", 3 * train_editor.BATCH)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, continued.state_dict()[name]), name


def test_the_gates_of_an_editor_are_measured(tmp_path: Path) -> None:
    """The judge's gates hold whatever the editor is; random weights make no edit."""
    weights = write_set(tmp_path / "tiny_set")
    gates = {gate.name: gate for gate in measure_editor(str(weights), 8)}
    assert gates["edits: true ones accepted"].value == 1
    assert gates["edits: untouched sources accepted"].value == 0
    assert not gates["edits: done and kept"].holds
    assert gates["edits: done and kept"].least == 0.20
    assert gates["edits: best of 4 by reward: gain"].least == 0.10
    assert gates["editor, MB"].most == 6
    assert gates["editor, MB"].holds
    assert {f"edits: done and kept: {kind}" for kind in edits.KINDS} < set(gates)


def test_a_set_without_an_editor_has_none_of_its_gates() -> None:
    assert not files.has_part("pictogram_80", "editor")
    study: Any = SimpleNamespace(bench=SimpleNamespace(weights="pictogram_80"), size=verify.FEW)
    assert list(verify.editor_gates(study)) == []


def test_the_card_tells_how_its_editor_was_trained() -> None:
    card = json.loads((files.find_set("pictogram_80") / "card.json").read_text())
    assert "**Editor**" not in render(card)
    editor = {"parameters": 5, "seed": 1, "cpu_min": 60, "steps": 9, "samples": 288}
    card["parts"]["editor"] = editor
    assert "**Editor**" in render(card)
    assert "| editor | 5 | 1 | 60 | 9 | 288 |" in render(card)


# ------------------------------------------------------------------ benchmark and runs


def test_the_benchmark_judges_images_and_says_what_was_kept(
    tmp_path: Path, made: list[edits.Edit]
) -> None:
    benchmark = EditPictogram(PictogramDetector(SET), total=8, images=1)
    items = []
    for number, (prompt, edit) in enumerate(zip(benchmark.prompts(), made, strict=False)):
        assert prompt.text == edit.text
        assert prompt.source == source_of(edit)
        path = tmp_path / f"{number}" / "0.png"
        path.parent.mkdir()
        scene = edit.target if number < 4 else edit.source
        Image.fromarray(scene.draw()[0]).save(path)
        items.append((prompt, path))
    items.append((benchmark.prompts()[0], tmp_path / "none.png" / "0.png"))
    scores = list(benchmark.score(items))
    assert [score.value for score in scores[:4]] == [1.0] * 4
    assert [score.value for score in scores[4:8]] == [0.0] * 4
    assert scores[8].value is None
    for score in scores[:8]:  # nothing differs outside the mask
        assert score.detail["metrics"]["mse_unedit_part"] == 0
        assert score.detail["metrics"]["ssim_unedit_part"] == pytest.approx(1, abs=1e-3)  # 32 bits
        assert score.detail["infinite"] == ["psnr_unedit_part"]
    assert [score.detail["metrics"]["done"] for score in scores[:8]] == [1.0] * 4 + [0.0] * 4
    lines = list(benchmark.summarise(scores))
    assert re.match(r"edit done, % +50\.00 \[", lines[0])
    assert any(re.match(r"color +3 +50\.00 ", line) for line in lines)
    assert lines[-1].startswith("unjudged, counted as wrong, and in none of these means: 1 0.png")
    (table,) = benchmark.files(scores[:8], tmp_path / "plain-00").values()
    rows = table.splitlines()
    assert rows[0].startswith("file_id,plain-00|done,plain-00|kept,plain-00|both,plain-00|psnr")
    assert [row[:6] for row in rows[1:5]] == ["600000", "100001", "200002", "300003"]
    few = EditPictogram(PictogramDetector(SET), total=8, prompts=4)
    assert Counter(prompt.category for prompt in few.prompts()) == dict.fromkeys(edits.KINDS, 1)
    with pytest.raises(UserError, match="at least one image per prompt"):
        EditPictogram(PictogramDetector(SET), images=0)


def test_what_changes_outside_the_mask_is_measured(tmp_path: Path, made: list[edits.Edit]) -> None:
    """A patch of noise outside the mask costs PSNR and SSIM; inside it nothing."""
    benchmark = EditPictogram(PictogramDetector(SET), total=4, images=2)
    prompt = benchmark.prompts()[0]
    mask = decode_mask(prompt.spec["mask"], 48, 48) == 1
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    target = made[0].target.draw()[0]
    outside = np.where(mask[..., None], target, noise)
    inside = np.where(mask[..., None], noise, target)
    items = []
    for number, pixels in enumerate((outside, inside)):
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        items.append((prompt, path))
    spoiled, kept = (score.detail["metrics"] for score in benchmark.score(items))
    assert spoiled["psnr_unedit_part"] < 15
    assert spoiled["ssim_unedit_part"] < kept["ssim_unedit_part"] - 0.2
    assert kept["mse_unedit_part"] == 0


def write_set(folder: Path) -> Path:
    """Write a set of weights with a small random editor beside the shipped parts."""
    folder.mkdir()
    for part in ("tokenizer", "judge", "reward"):
        shutil.copyfile(files.find_set(SET) / f"{part}.safetensors", folder / f"{part}.safetensors")
    torch.manual_seed(0)
    config = {**spec_config(SMALL), "classes": list(CLASSES)}
    files.write_part(folder / "editor.safetensors", EditorGPT(SMALL), config)
    return folder


def test_a_run_edits_by_the_reward_and_goes_on(tmp_path: Path) -> None:
    weights = write_set(tmp_path / "tiny_set")
    options = [
        "model=pictogram_edit",
        f"embedded={weights}",
        "benchmark=edit_pictogram",
        "benchmark.prompts=4",
        "benchmark.images=1",
        "method=best_of_n",
        "method.n=2",
        "judge@method.reward=pictogram_edit_reward",
    ]
    code, said = run_harness(tmp_path, *options)
    assert code == 0, said
    (folder,) = folders(tmp_path)
    assert folder.parent.name == "tiny_set_editor"
    jobs = (folder / "jobs.jsonl").read_text()
    assert jobs.count('"source":"') == 4
    records = (folder / "records-0.jsonl").read_text().splitlines()
    assert len(records) == 4
    assert '"judge_calls":2' in records[0]
    assert f'"text_positions":{4 * (144 + 32)}' in records[0]

    # The sources stand in the folder, on the page and on the sheet.
    run = read_run(folder)
    assert {run.source(prompt_id) for prompt_id in run.prompts} == set(folder.glob("sources/*"))
    assert len(run.sources) == 4
    gallery = (tmp_path / "results" / "report" / "data" / "gallery.js").read_text()
    shown = re.findall(r'"([0-9a-f]{16}\.png)"', re.search(r'"sources":\[[^]]*\]', gallery)[0])  # type: ignore[index]
    assert len(shown) == 4
    assert all((tmp_path / "results" / "report" / "thumbs" / name).is_file() for name in shown)
    sheet = write_contact_sheet([folder], tmp_path / "sheet.png")
    with Image.open(sheet) as drawn:
        assert drawn.width == PROMPT_WIDTH + 2 * PITCH + GAP
    single = render_contact_sheet(run)
    assert single is not None
    with Image.open(io.BytesIO(single)) as drawn:  # two pairs of source and edit in a row
        assert drawn.size == (GAP + 4 * PITCH, GAP + 2 * PITCH + LEGEND_HEIGHT)

    # Killed while it wrote: a torn line, a lost image and a lost source are made good.
    before = deterministic(tmp_path)
    journal = folder / "records-0.jsonl"
    *whole, last = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(whole) + last[:40])
    next(folder.glob("images/*/0.png")).unlink()
    source = next(folder.glob("sources/*"))
    pixels = source.read_bytes()
    source.unlink()
    code, said = run_harness(tmp_path, *options)
    assert code == 0, said
    assert source.read_bytes() == pixels
    after = deterministic(tmp_path)
    records = f"{folder.relative_to(tmp_path)}/records"
    assert set(before.pop(records)) == set(after.pop(records))  # type: ignore[call-overload]
    assert after == before

    # A reward that sees no source cannot choose.
    code, said = run_harness(tmp_path, *options[:-1])
    assert code == 2
    assert "sees no source image" in said
    code, said = run_harness(tmp_path, *options[:2], "benchmark=pictogram")
    assert code == 2
    assert "edits images, and" in said
    assert "choose benchmark=edit_pictogram" in said


def test_a_generator_file_is_no_editor(tmp_path: Path) -> None:
    weights = write_set(tmp_path / "other")
    config = {**spec_config(GPTSpec(1, 32, 2, 48)), "classes": list(CLASSES)}
    files.write_part(weights / "editor.safetensors", GPT(GPTSpec(1, 32, 2, 48)), config)
    with pytest.raises(files.WeightsError, match="knows 257 words, its texts have 262"):
        PictogramEditor(str(weights))


# ------------------------------------------------------------------ GridAR on edits


def top_of(scene: edits.Scene, rows: int) -> np.ndarray:
    return scene.draw()[0][:rows]


def test_a_true_edit_is_possible_at_every_stop(made: list[edits.Edit]) -> None:
    verifier = PictogramEditVerifier(SET)
    right = 0
    for edit in made:
        tops = [top_of(edit.target, 12)] * 4
        halves = [top_of(edit.target, 24)] * 2
        source = edit.source.draw()[0]
        (quarter,) = verifier.select(4)([edit.text], [np.concatenate(tops)], [source])
        (half,) = verifier.select(2)([edit.text], [np.concatenate(halves)], [source])
        right += (quarter, half) == (", ".join(["possible"] * 4), "possible, possible")
    assert right >= 0.95 * len(made)


def test_what_cannot_be_mended_is_impossible() -> None:
    """The untouched source fails where the edited thing lies in its upper half; so does a loss."""
    verifier = PictogramEditVerifier(SET)
    untouched = []
    lost = []
    for edit in edits.generate_edits(CLASSES, 120, 0, read_box_colors):
        source = edit.source.draw()[0]
        key = edits.describe(edit)
        selector = verifier.select(2)
        if edit.kind != "add" and key["gone"]["box"][3] < 23:
            stack = np.concatenate([top_of(edit.source, 24), top_of(edit.target, 24)])
            untouched.append(selector([edit.text], [stack], [source])[0])
        if key["others"] and key["others"][0]["box"][3] < 23:
            empty = edits.Scene(edit.source.background, ())
            stack = np.concatenate([top_of(empty, 24), top_of(edit.target, 24)])
            lost.append(selector([edit.text], [stack], [source])[0])
    assert len(untouched) >= 8
    assert len(lost) >= 8
    assert untouched.count("impossible, possible") >= 0.8 * len(untouched)
    assert lost.count("impossible, possible") >= 0.8 * len(lost)


def test_what_the_middle_cuts_is_to_be_finished(made: list[edits.Edit]) -> None:
    verifier = PictogramEditVerifier(SET)
    finished = 0
    for edit in made:
        half = edit.target.draw()[0].copy()
        half[24:] = 0
        (text,) = verifier.rewrite([edit.text], [half], [edit.source.draw()[0]])
        assert text in (edit.text, edits.write_finish(edit))
        if edit.kind in ("color", "replace"):
            top, bottom = edits.describe(edit)["gone"]["box"][1::2]
            if min(24 - top, bottom - 24) >= 4:
                assert text == edits.write_finish(edit)
            elif min(24 - top, bottom - 24) <= 0:
                assert text == edit.text
        finished += text != edit.text
        if edit.kind == "remove":
            assert text == edit.text
    assert finished >= 5


def test_texts_and_pictures_that_are_no_edits_get_no_answer(made: list[edits.Edit]) -> None:
    verifier = PictogramEditVerifier(SET)
    picture = made[0].source.draw()[0]
    for judge in (verifier.select(2), verifier.rewrite):
        assert judge(["a cat"], [picture], [picture]) == [None]
        assert judge([made[0].text], [picture], [None]) == [None]


def test_gridar_edits_in_pieces(tmp_path: Path) -> None:
    weights = write_set(tmp_path / "tiny_set")
    code, said = run_harness(
        tmp_path,
        "model=pictogram_edit",
        f"embedded={weights}",
        "benchmark=edit_pictogram",
        "benchmark.prompts=2",
        "benchmark.images=1",
        "method=gridar_edit",
    )
    assert code == 0, said
    (folder,) = folders(tmp_path)
    for record in read_run(folder).done.values():
        stops = record.notes["stages"]
        assert [stop["stage"] for stop in stops] == ["quarter", "half"]
        assert all(len(stop["possible"]) == 4 for stop in stops)
        assert "texts" not in stops[0]
        assert len(stops[1]["texts"]) == 4
        assert record.usage.judge_calls == 1 + 2 + 4 + 4
