"""Compare our SimpleAR, Lumina-mGPT and Emu3 with the arrays of a fixture folder.

Logits are computed along given codes through our own cache, codes are drawn by our sampler. So line
tokens, null prompts of their own length, and what is drawn at which place are compared as well.

Shapes: B prompts, N places, C codes of an image, V codes of the vocabulary, P prompt length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.engine.acceptance import exact
from harness.engine.canvas import Context
from harness.engine.guidance import Sampling, cfg, warp
from harness.engine.sampler import Sampler
from harness.models import chameleon_vq, cosmos, emu3_vq
from harness.models import checkpoint as checkpoints
from harness.models.language_checkpoint import (
    CHAMELEON,
    EMU3,
    QWEN2,
    Family,
    load_net,
    prefix_of,
    read_spec,
)
from harness.models.language_model import ImageTokenizer, ImageWords, LanguageModel
from harness.models.raster import Raster, raster_of
from harness.models.vq import round_to_uint8, truncate_to_uint8
from harness.parity.fixture import Fixture, Quantity
from harness.records import Usage

Arrays = Mapping[str, Tensor]

DRAWN = "drawn "
"""Stands before the number of a prompt that is drawn from, in the texts of `_FixturePrompts`."""


@torch.no_grad()
def simplear(fixture: Fixture, device: torch.device) -> Iterator[Quantity]:
    """Compare SimpleAR, with its head tied to the word table and with one of its own."""
    stated = fixture.manifest["config"]
    image = ImageWords(stated["image"]["image_base"], stated["image"]["codes"])
    side = stated["image"]["grid"]
    unseen = stated["llm"]["pad_token_id"]
    check = _Check(fixture, device, QWEN2, image, (side, side), _cosmos(fixture), unseen=unseen)
    model = check.load("tied")
    got, greedy_BC = check.run(model)
    guided_BCV = got.pop("cfg_logits")
    got["cfg_logits_image"] = guided_BCV
    got["law_image"] = guided_BCV.softmax(-1)
    untied = check.load("untied")
    got["untied_cond_logits_prompt0"] = check.logits(untied, untied.prompts[:1])[0]

    expected = _cut_vocabulary(fixture.read_tensors("expected_llm.safetensors"), image)
    got["guided_log_probs"] = _without_constant(guided_BCV)
    expected["guided_log_probs"] = _without_constant(expected["guided_log_probs"])
    yield from check.report("tied", got, expected, "expected_llm.safetensors")
    yield from check.bfloat16("tied", expected["cond_logits"])

    decoder = model.decoder
    codes_BC = check.inputs["decode_codes"].to(device)
    digits = model.codebook[codes_BC.unflatten(1, model.grid)].permute(0, 3, 1, 2)
    pixels = {"code_vectors": digits, "all_code_vectors": model.codebook}
    yield from check.report_pixels("cosmos", decoder, model, greedy_BC, pixels)


@torch.no_grad()
def lumina(fixture: Fixture, device: torch.device) -> Iterator[Quantity]:
    """Compare Lumina-mGPT, with norms that all heads share and with norms of each head."""
    stated = fixture.manifest["config"]
    names = chameleon_words(checkpoints.read_config(fixture.folder / "checkpoints" / "lumina"))
    image = ImageWords(names["IMGIMGAZ"], stated["image"]["codes"], names["<reserved08799>"])
    grid = (stated["image"]["rows"], stated["image"]["columns"])
    head = [
        names["<racm3:break>"],
        stated["image"]["height_token"],
        stated["image"]["width_token"],
    ]
    file = chameleon_vq.find_file(fixture.folder / "checkpoints" / "chameleon_tokenizer")
    vq = chameleon_vq.load(file)
    tokenizer = ImageTokenizer(vq, vq.quantize.rows(), truncate_to_uint8)
    check = _Check(fixture, device, CHAMELEON, image, grid, tokenizer, end=head, null=head)
    model = check.load("lumina")
    got, greedy_BC = check.run(model)
    got |= check.filtered_probs(got["cfg_logits"], fixture.manifest["run"]["image_top_k"])
    got["image_ids"] = torch.arange(image.first, image.first + image.codes)
    got["image_head"] = torch.tensor(head)
    got["teacher_sequence"] = check.fed_words(model, [image.line or 0])
    got["drawn_positions"] = _drawn_places(raster_of(model))
    got["greedy_cfg_logits_prompt0"] = check.guided(model, greedy_BC[:1])[0]
    per_head = check.load("per_head")
    got["per_head_cond_logits_prompt0"] = check.logits(per_head, per_head.prompts[:1])[0]

    expected = fixture.read_tensors("expected_llm.safetensors")
    yield from check.report("lumina", got, expected, "expected_llm.safetensors")
    yield from check.bfloat16("lumina", expected["cond_logits"])
    codes_BC = check.inputs["decode_codes"].to(device)
    pixels = {"codebook_entries": vq.quantize.lookup(codes_BC.unflatten(1, grid))}
    yield from check.report_pixels("chameleon_tokenizer", vq, model, greedy_BC, pixels)


def chameleon_words(config: Mapping[str, Any]) -> Mapping[str, int]:
    """Return the words of a Lumina-mGPT by name."""
    return config["vocabulary_map"]


@torch.no_grad()
def emu3(fixture: Fixture, device: torch.device) -> Iterator[Quantity]:
    """Compare Emu3, in the original layout and the library's."""
    stated = fixture.manifest["config"]
    tokens = stated["tokens"]
    image = ImageWords(stated["image"]["image_base"], stated["image"]["codes"], tokens["line"])
    grid = (stated["image"]["rows"], stated["image"]["columns"])
    closing = [tokens[name] for name in ("line", "end_of_frame", "image_end", "end_of_text")]
    for layout, stored in (("original", "original_vision_tokenizer"), ("hf", "hf")):
        vq = _emu3_vq(fixture.folder / "checkpoints" / stored)
        tokenizer = ImageTokenizer(vq, vq.codebook, truncate_to_uint8)
        check = _Check(fixture, device, EMU3, image, grid, tokenizer)
        model = check.load(layout)
        got, greedy_BC = check.run(model)
        got |= check.filtered_probs(got["cfg_logits"], fixture.manifest["run"]["top_k"])
        got["teacher_sequence"] = check.fed_words(model, closing)
        got["greedy_sequence"] = check.fed_words(model, closing, greedy_BC)
        got["drawn_positions"] = _drawn_places(raster_of(model))
        got["guided_log_probs_prompt0"] = _without_constant(got["cfg_logits"][0])

        expected = fixture.read_tensors("expected_llm.safetensors")
        guided = expected["guided_log_probs_prompt0"]
        expected["guided_log_probs_prompt0"] = _without_constant(guided)
        yield from check.report(layout, got, expected, "expected_llm.safetensors")
        yield from check.bfloat16(layout, expected["cond_logits"])
        yield from check.report_pixels(stored, vq, model, greedy_BC, {})


def _emu3_vq(folder: Path) -> emu3_vq.Emu3VQ:
    """Read Emu3's image tokenizer, alone or beside the language model."""
    config = checkpoints.read_config(folder)
    is_library = "vq_config" in config
    spec = emu3_vq.read_spec(config["vq_config"] if is_library else config, folder)
    weights = checkpoints.read_weights(folder)
    return emu3_vq.load(weights, folder, spec, "vqmodel." if is_library else None)


def _cosmos(fixture: Fixture) -> ImageTokenizer:
    stated = fixture.manifest["config"]["vq"]
    spec = cosmos.CosmosSpec(
        levels=tuple(stated["levels"]),
        width=stated["channels"],
        multipliers=tuple(stated["channels_mult"]),
        blocks=stated["num_res_blocks"],
        latent=stated["z_channels"],
    )
    decoder = cosmos.load(fixture.folder / "checkpoints" / "cosmos", spec)
    return ImageTokenizer(decoder, decoder.codebook, round_to_uint8)


class _FixtureModel(LanguageModel):
    """A model whose prompts are those of a fixture; `prompts` are their numbers, as texts."""

    prompts: list[str]


class _FixturePrompts:
    """Ids of the prompts of a fixture, by number; with a mark in front, without unseen words."""

    def __init__(
        self, ids: Sequence[Sequence[int]], null: Sequence[int], unseen: int | None
    ) -> None:
        self.ids = ids
        self.null = null
        self.unseen = unseen

    def __call__(self, text: str | None) -> Sequence[int]:
        if text is None:
            return self.null
        ids = self.ids[int(text.removeprefix(DRAWN))]
        if not text.startswith(DRAWN):
            return ids
        return [word for word in ids if word != self.unseen]


class _Check:
    """The inputs of a fixture, and what is computed from them by a model.

    `end` are words behind every prompt of the fixture, `null` the null prompt, if that is no input.
    `unseen` is a word that the original masks where it draws, though not along given codes: the
    library's `generate` takes pads anywhere in a prompt for padding.
    """

    def __init__(
        self,
        fixture: Fixture,
        device: torch.device,
        family: Family,
        image: ImageWords,
        grid: tuple[int, int],
        tokenizer: ImageTokenizer,
        end: Sequence[int] = (),
        null: Sequence[int] = (),
        unseen: int | None = None,
    ) -> None:
        self.fixture = fixture
        self.device = device
        self.family = family
        self.image = image
        self.grid = grid
        self.inputs = fixture.read_tensors("inputs.safetensors")
        self.scale = float(fixture.manifest["run"]["cfg_scale"])
        self.teacher_BC = self.inputs["teacher_codes"].to(device)
        ids: list[list[int]] = []
        while f"prompt_{len(ids)}" in self.inputs:
            ids.append([*self.inputs[f"prompt_{len(ids)}"].tolist(), *end])
        self.prompts = _FixturePrompts(ids, null or self.inputs["null_prompt"].tolist(), unseen)
        assert isinstance(tokenizer.decoder, nn.Module)
        tokenizer.decoder.to(device)
        self.tokenizer = replace(tokenizer, codebook=tokenizer.codebook.to(device))

    def load(self, checkpoint: str, dtype: torch.dtype = torch.float32) -> _FixtureModel:
        """Load a checkpoint of the fixture as a model into which its prompts fit."""
        path = self.fixture.folder / "checkpoints" / checkpoint
        config = checkpoints.read_config(path)
        spec = read_spec(path, config, self.family)
        net, words = load_net(
            path, spec, self.image, prefix=prefix_of(config), dtype=dtype, device=self.device
        )
        model = _FixtureModel(
            net,
            words,
            self.tokenizer,
            self.prompts,
            spec=spec,
            image=self.image,
            grid=self.grid,
            name=checkpoint,
            revision="fixture",
            max_context=max(map(len, (*self.prompts.ids, self.prompts.null))),
            dtype=dtype,
            device=self.device,
        )
        model.prompts = [str(n) for n in range(len(self.prompts.ids))]
        return model

    # ------------------------------------------------------------------ what a model computes

    def run(self, model: _FixtureModel) -> tuple[dict[str, Tensor], Tensor]:
        """Compute what all families have: logits along the teacher's codes, and greedy codes."""
        null = [None] * len(model.prompts)
        greedy_BC = self.draw_greedy(model)
        got = {
            "cond_logits": self.logits(model, model.prompts),
            "null_logits": self.logits(model, null),
            "cfg_logits": self.guided(model, self.teacher_BC),
            "greedy_codes": greedy_BC,
        }
        return got, greedy_BC

    def guided(self, model: _FixtureModel, codes_BC: Tensor) -> Tensor:
        """Compute guided logits [B, C, V] along codes of the first B prompts."""
        texts = model.prompts[: len(codes_BC)]
        null_BCV = self.logits(model, [None] * len(texts), codes_BC)
        text_BCV = self.logits(model, texts, codes_BC)
        scale_B = torch.full((len(texts),), self.scale, dtype=torch.float64, device=self.device)
        return cfg(torch.stack((null_BCV, text_BCV), 1), scale_B)

    def logits(
        self,
        model: LanguageModel,
        texts: Sequence[str | None],
        codes_BC: Tensor | None = None,
    ) -> Tensor:
        """Compute logits [B, C, V] where codes are drawn, along the teacher's codes or others."""
        raster = raster_of(model)
        drawn_C = _drawn_places(raster).to(self.device)
        cache = model.cache(len(texts))
        found = []
        for row, text in enumerate(texts):
            codes_C = (self.teacher_BC if codes_BC is None else codes_BC)[row]
            token_1N = torch.tensor([raster.lay_out(codes_C.tolist(), 0)], device=self.device)
            place_1N = torch.arange(raster.places, device=self.device).unsqueeze(0)
            context_PD = model.context(text, "")
            image_ND = model.embed(token_1N, place_1N)[0, :-1]
            x_WD = torch.cat((context_PD, image_ND))
            slot_1 = torch.tensor([row], device=self.device)
            pos_1W = torch.arange(len(x_WD), device=self.device).unsqueeze(0)
            start_1 = torch.tensor([len(context_PD)], device=self.device)
            attend = cache.attend_some(slot_1, pos_1W)
            hidden_WD = model.forward(x_WD.unsqueeze(0), pos_1W, start_1, attend)[0]
            found.append(model.head(hidden_WD[len(context_PD) - 1 + drawn_C]))
        return torch.stack(found)

    def draw_greedy(self, model: _FixtureModel) -> Tensor:
        """Draw the likeliest codes [B, C] of all prompts by the sampler, token by token."""
        sampling = Sampling(scale=self.scale, temperature=0.0)
        sampler = Sampler(model, sampling, slots=2 * len(model.prompts))
        rows = []
        for key, number in enumerate(model.prompts):
            text = DRAWN + number
            contexts = [Context(None, text), Context(text, text)]
            rows.append(sampler.open(contexts, cfg, key, Usage()))
        nothing = [None] * len(rows)
        while not rows[0].done:
            sampler.forward(rows, nothing)
            sampler.draw(rows, nothing, exact)
        codes = [sampler.raster.pick_codes(canvas.tokens) for canvas in rows]
        return torch.tensor(codes, device=self.device)

    def filtered_probs(self, guided_BCV: Tensor, top_k: int) -> dict[str, Tensor]:
        """Compute distributions behind top-k at the places where rounding decides nothing."""
        expected = self.fixture.read_tensors("expected_llm.safetensors")
        places_n2 = expected["law_top_k_places"].to(self.device)
        probs_BCV = warp(guided_BCV, Sampling(top_k=top_k))
        return {
            "law_top_k": probs_BCV[places_n2[:, 0], places_n2[:, 1]],
            "law_top_k_places": _list_clear_places(guided_BCV, top_k, places_n2),
        }

    def fed_words(
        self, model: LanguageModel, closing: Sequence[int], codes_BC: Tensor | None = None
    ) -> Tensor:
        """List what stands behind the context: words of codes and lines, and the closing ones."""
        raster = raster_of(model)
        assert self.image.line is not None
        rows = []
        for codes in (self.teacher_BC if codes_BC is None else codes_BC).tolist():
            tokens = raster.lay_out(codes, 0)
            words = []
            for place, token in enumerate(tokens):
                is_line = raster.is_forced(place)
                words.append(self.image.line if is_line else self.image.first + token)
            rows.append([*words, *closing])
        return torch.tensor(rows)

    # ------------------------------------------------------------------ comparisons

    def report(
        self, checkpoint: str, got: Arrays, expected: Arrays, file: str
    ) -> Iterator[Quantity]:
        """Compare arrays with those of a file, and say what was not computed."""
        for name, entry in self.fixture.manifest["tensors"][file].items():
            if entry["kind"] in ("input", "reference", "bf16"):
                continue
            if name not in got:
                found = Quantity(f"{name} (not computed)", entry["kind"], float("inf"), False)
            else:
                found = self.fixture.compare(name, got[name], expected[name], self.device)
            yield replace(found, name=f"{checkpoint}: {found.name}")

    def bfloat16(self, checkpoint: str, expected: Tensor) -> Iterator[Quantity]:
        """Compare bfloat16 logits along the teacher's codes with float32 ones."""
        model = self.load(checkpoint, torch.bfloat16)
        logits_BCV = self.logits(model, model.prompts)
        name = f"{checkpoint}: cond_logits"
        yield from self.fixture.compare_bfloat16(name, logits_BCV, expected)

    def report_pixels(
        self,
        checkpoint: str,
        decoder: Any,
        model: LanguageModel,
        greedy_BC: Tensor,
        got: Arrays,
    ) -> Iterator[Quantity]:
        """Compare what the image decoder makes of codes, and the 8-bit rule."""
        codes_BC = self.inputs["decode_codes"].to(self.device)
        raster = raster_of(model)
        first = torch.tensor([raster.lay_out(greedy_BC[0].tolist(), 0)])
        pixels = {
            **got,
            "decoded_pixels": decoder.decode(codes_BC, self.grid),
            "decoded_pixels_greedy_prompt0": decoder.decode(greedy_BC[:1], self.grid),
            "uint8_greedy_prompt0": model.decode(first),
        }
        file = "expected_vq.safetensors"
        yield from self.report(checkpoint, pixels, self.fixture.read_tensors(file), file)


def _drawn_places(raster: Raster) -> Tensor:
    """List the places that hold codes, int64 [C]."""
    return torch.tensor([p for p in range(raster.places) if not raster.is_forced(p)])


def _cut_vocabulary(expected: Arrays, image: ImageWords) -> dict[str, Tensor]:
    """Cut logits over all words to those of codes."""
    cut = dict(expected)
    for name, value in expected.items():
        if value.is_floating_point() and value.shape[-1] > image.codes:
            cut[name] = value[..., image.first : image.first + image.codes]
    return cut


def _without_constant(logits: Tensor) -> Tensor:
    """Take the mean over the codes away: guidance on log-probabilities differs by a constant."""
    return logits - logits.mean(-1, keepdim=True)


def _list_clear_places(guided_BCV: Tensor, top_k: int, places_n2: Tensor) -> Tensor:
    """Return the stated places, but -1 where our k-th and next guided logit are not apart."""
    ordered_nV = guided_BCV[places_n2[:, 0], places_n2[:, 1]].sort(-1, descending=True).values
    is_clear_n = ordered_nV[:, top_k - 1] > ordered_nV[:, top_k]
    return places_n2.masked_fill(~is_clear_n[:, None], -1)
