"""Compare our Janus-Pro with the arrays of a fixture folder, for both checkpoint layouts.

It runs through our own cache. Rows of a batch are branches of their own lengths here: nothing is
padded, so GridAR's left-padded batches are compared by what they computed for the real positions.

Shapes: B rows, P prompt length, N image tokens, V image vocabulary, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from harness.engine.guidance import cfg
from harness.models.janus import Janus
from harness.models.janus_prompt import ROLES, null_ids, template
from harness.models.trunk import causal
from harness.models.vq import truncate_to_uint8
from harness.parity.fixture import Fixture, Quantity
from harness.records import UserError

Guide = Callable[[Tensor], Tensor]
"""Logits [B, ..., V] of all rows to guided logits [prompts, ..., V]."""


@torch.no_grad()
def parity(fixture: Fixture, device: torch.device) -> Iterator[Quantity]:
    """Compare every expected array, once per checkpoint layout; then the prompt templates."""
    checkpoints = [fixture.folder / stored for stored in fixture.manifest["checkpoints"]]
    for folder in dict.fromkeys(path.parent for path in checkpoints):
        check = _Check(fixture, folder, device)
        missing = _expected_kinds(fixture)
        for part in (check.one_prompt, check.prompts, check.three_branches, check.tokenizer):
            for quantity in part():
                missing.pop(quantity.name)
                yield replace(quantity, name=f"{folder.name}: {quantity.name}")
        yield from check.bfloat16(folder)
        for name, kind in missing.items():
            yield Quantity(f"{folder.name}: {name} (not computed)", kind, float("inf"), False)
    yield from _templates(fixture.folder / "prompt_templates.json")


def _expected_kinds(fixture: Fixture) -> dict[str, str]:
    """Kind of every array that a check has to compute."""
    kinds = {}
    for file, tensors in fixture.manifest["tensors"].items():
        if not file.startswith("expected_"):
            continue
        for name, entry in tensors.items():
            if entry["kind"] not in ("input", "bf16"):
                kinds[name] = entry["kind"]
    return kinds


class _Check:
    """One checkpoint of a fixture, loaded, with the fixture's inputs."""

    def __init__(self, fixture: Fixture, checkpoint: Path, device: torch.device) -> None:
        self.fixture = fixture
        self.device = device
        self.inputs = fixture.read_tensors("inputs.safetensors")
        self.greedy: Tensor | None = None  # set by `one_prompt`, read by `tokenizer`
        manifest = fixture.manifest
        self.pad: int = manifest["config"]["tokens"]["pad"]
        self.weight = float(manifest["run"]["cfg_weight"])
        self.gridar_scale = float(manifest["run"]["gridar_cfg_scale"])
        self.ids = self._unpadded("prompt")
        self.refined = self._unpadded("refined_prompt")

        self.model = self._load(checkpoint, "float32")
        self.num_tokens = self.model.num_tokens
        image = manifest["config"]["image"]
        if (self.num_tokens, self.model.vocab) != (image["tokens"], image["vocab"]):
            raise UserError(
                f"{checkpoint} does not have the image tokens that the fixture's manifest states"
            )

    def _load(self, checkpoint: Path, dtype: str) -> Janus:
        """The checkpoint as a model in which every prompt of the fixture fits."""
        longest = max(len(ids) for ids in (*self.ids, *self.refined))
        return Janus(
            checkpoint=str(checkpoint), max_context=longest, device=self.device, dtype=dtype
        )

    def _unpadded(self, which: str) -> list[list[int]]:
        """Ids of prompts that the fixture has padded on the left."""
        rows = self.inputs[f"{which}_ids_left_padded"]
        lengths = self.inputs[f"{which}_lengths"].tolist()
        return [row[-length:].tolist() for row, length in zip(rows, lengths, strict=True)]

    def _compare(self, part: str, got: Mapping[str, Tensor]) -> Iterator[Quantity]:
        """Compare the arrays of `got` that a file of expected arrays has."""
        file = f"expected_{part}.safetensors"
        stated = self.fixture.manifest["tensors"][file]
        present = {name: value for name, value in got.items() if name in stated}
        yield from self.fixture.compare_all(present, file, self.device)

    # ------------------------------------------------------------------ one prompt, upstream's loop

    def one_prompt(self) -> Iterator[Quantity]:
        """Compare text and null rows in turn, as upstream interleaves them.

        Prefilled, teacher-forced without and with a cache, and guided; then greedy for each prompt.
        """
        text = self.ids[0]
        null = null_ids(text, self.pad)
        teacher_BN = self.inputs["teacher_tokens"].to(self.device)
        pairs = [text, null] * len(teacher_BN)
        forced_BN = teacher_BN.repeat_interleave(2, 0)
        guide = self._pairwise(self.weight, null_first=False)

        cached_BNV = _Branches(self.model, pairs).forced_logits(forced_BN)
        every_token = torch.arange(self.model.vocab, device=self.device)
        got = {
            "gen_img_embeds_all_tokens": self._embed(every_token),
            "cfg_prompt_rows": torch.tensor(pairs),
            "prefill_gen_logits": _Branches(self.model, [text, null]).prompt_logits(),
            "teacher_forced_logits": self._without_cache(pairs, forced_BN),
            "cached_logits": cached_BNV,
            "cfg_logits": guide(cached_BNV),
        }
        yield from self._compare("llm", got)

        for n, ids in enumerate(self.ids):
            branches = _Branches(self.model, [ids, null_ids(ids, self.pad)])
            _, guided, tokens = branches.draw_greedy(guide, self.num_tokens)
            yield from self._compare("llm", {f"greedy_tokens_prompt{n}": tokens})
            if n == 0:
                self.greedy = tokens
                yield from self._compare("llm", {"greedy_cfg_logits_prompt0": guided})

    def bfloat16(self, checkpoint: Path) -> Iterator[Quantity]:
        """Compare bfloat16 logits along the teacher's tokens with float32 ones."""
        text = self.ids[0]
        teacher_BN = self.inputs["teacher_tokens"].to(self.device)
        pairs = [text, null_ids(text, self.pad)] * len(teacher_BN)
        forced_BN = teacher_BN.repeat_interleave(2, 0)
        branches = _Branches(self._load(checkpoint, "bfloat16"), pairs)
        expected = self.fixture.read_tensors("expected_llm.safetensors")["cached_logits"]
        name = f"{checkpoint.name}: cached_logits"
        yield from self.fixture.compare_bfloat16(name, branches.forced_logits(forced_BN), expected)

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.model.embed(tokens, tokens)  # Janus' embeddings do not depend on the place

    def _without_cache(self, prompts: list[list[int]], forced_BN: Tensor) -> Tensor:
        """Logits [B, N, V] of one pass over prompts of one length and all their tokens."""
        words_BPD = torch.stack([self.model.embed_words(ids) for ids in prompts])
        rows, length = words_BPD.shape[:2]
        x_BWD = torch.cat((words_BPD, self._embed(forced_BN[:, :-1])), 1)
        pos_BW = torch.arange(x_BWD.shape[1], device=self.device).expand(rows, -1)
        start_B = torch.full((rows,), length, device=self.device)
        hidden_BWD = self.model.forward(x_BWD, pos_BW, start_B, causal)
        return self.model.head(hidden_BWD[:, length - 1 :])

    @staticmethod
    def _pairwise(weight: float, null_first: bool) -> Guide:
        """The harness's guidance over rows that alternate between null and text."""

        def guide(logits: Tensor) -> Tensor:
            vocab = logits.shape[-1]
            positions = logits[0].numel() // vocab
            logits_RKTV = logits.reshape(-1, 2, positions, vocab)
            scale_R = torch.full(
                (len(logits_RKTV),), weight, dtype=torch.float64, device=logits.device
            )
            guided_RTV = cfg(logits_RKTV if null_first else logits_RKTV.flip(1), scale_R)
            return guided_RTV.view(-1, *logits.shape[1:])

        return guide

    # ------------------------------------------------------------------ prompts in GridAR's loop

    def prompts(self) -> Iterator[Quantity]:
        """Compare GridAR's two branches of several prompts, the null row first.

        Its scale w is the usual weight w + 1.
        """
        rows = []
        for ids in self.ids:
            rows += [null_ids(ids, self.pad), ids]
        guide = self._pairwise(self.gridar_scale + 1, null_first=True)
        teacher_BN = self.inputs["batch_teacher_tokens"].to(self.device).repeat_interleave(2, 0)
        raw_BNV = _Branches(self.model, rows).forced_logits(teacher_BN)
        _, _, tokens = _Branches(self.model, rows).draw_greedy(guide, self.num_tokens)

        yield from self._compare_layout("2way", rows)
        got = {
            "raw_logits_2way_teacher": raw_BNV,
            "fused_logits_2way_teacher": guide(raw_BNV),
            "greedy_tokens_2way": tokens,
        }
        yield from self._compare("batched", got)

    def three_branches(self) -> Iterator[Quantity]:
        """Compare GridAR's rows null, original, refined, continued greedily after given tokens."""
        rows = []
        for ids, refined in zip(self.ids, self.refined, strict=True):
            rows += [null_ids(ids, self.pad), ids, refined]
        expected = self.fixture.read_tensors("expected_batched.safetensors")
        given_BN = expected["prefix_tokens_3way"].to(self.device)
        branches = _Branches(self.model, rows, given_BN.repeat_interleave(3, 0))
        count = self.num_tokens - given_BN.shape[1]
        raw, fused, tokens = branches.draw_greedy(self._three_way, count)

        yield from self._compare_layout("3way", rows)
        got = {
            "raw_logits_3way": raw,
            "fused_logits_3way": fused,
            "greedy_tokens_3way_second_half": tokens,
        }
        yield from self._compare("batched", got)

    def _three_way(self, logits_BV: Tensor) -> Tensor:
        """null + (w + 1) d + w r, with d = text - null (GridAR's generator).

        r is the refined prompt's direction without its part along d.
        """
        null, text, refined = logits_BV.unflatten(0, (-1, 3)).unbind(1)
        d = text - null
        r = refined - null
        along = (r * d).sum(-1, keepdim=True) / d.square().sum(-1, keepdim=True).clamp(min=1e-12)
        return null + (self.gridar_scale + 1) * d + self.gridar_scale * (r - along * d)

    def _compare_layout(self, way: str, rows: Sequence[Sequence[int]]) -> Iterator[Quantity]:
        """Compare prompts where GridAR's batch has real positions, whatever it pads with."""
        expected = self.fixture.read_tensors("expected_batched.safetensors")
        ids = expected[f"rows_{way}"].clone()
        mask = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, -len(row) :] = torch.tensor(row)
            mask[n, -len(row) :] = 1
        yield from self._compare("batched", {f"rows_{way}": ids, f"attention_mask_{way}": mask})

    # ------------------------------------------------------------------ pixels

    def tokenizer(self) -> Iterator[Quantity]:
        """Compare both ways through the tokenizer, and the 8-bit rule on the greedy image."""
        vq = self.model.vq
        grid = self.model.grid
        codes_BN = self.inputs["decode_codes"].to(self.device)
        image = self.inputs["image"].to(self.device)
        latent = vq.quant_conv(vq.encoder(image))
        assert self.greedy is not None
        pixels = vq.decode(self.greedy.to(self.device), grid)
        got = {
            "codebook_entries": vq.quantize.lookup(codes_BN.unflatten(1, grid)),
            "decoded_pixels": vq.decode(codes_BN, grid),
            "decoded_pixels_greedy_prompt0": pixels,
            "encoder_pre_quant": latent,
            "encoder_codes": vq.encode(image),
            "encoder_quantised": vq.quantize.lookup(vq.quantize.nearest(latent)),
            "uint8_greedy_prompt0": truncate_to_uint8(pixels),
        }
        yield from self._compare("vq", got)


class _Branches:
    """Rows of their own prompt lengths over our cache: prefilled one by one, decoded together.

    `given_BN` are image tokens that follow the prompts already.
    """

    def __init__(
        self, model: Janus, prompts: Sequence[Sequence[int]], given_BN: Tensor | None = None
    ) -> None:
        self.model = model
        self.cache = model.cache(len(prompts))
        self.start_B = torch.tensor([len(ids) for ids in prompts], device=model.device)
        self.length = 0 if given_BN is None else given_BN.shape[1]
        self.hidden: list[Tensor] = []
        for row, ids in enumerate(prompts):
            given_N = None if given_BN is None else given_BN[row]
            self.hidden.append(self._prefill(row, ids, given_N))

    def _prefill(self, row: int, ids: Sequence[int], given_N: Tensor | None) -> Tensor:
        """Hidden states [W, D] of a row's prompt and given tokens."""
        x_WD = self.model.embed_words(ids)
        if given_N is not None:
            x_WD = torch.cat((x_WD, self.model.embed(given_N, given_N)))
        slot_B = torch.tensor([row], device=x_WD.device)
        pos_BW = torch.arange(len(x_WD), device=x_WD.device).unsqueeze(0)
        attend = self.cache.attend_some(slot_B, pos_BW)
        return self.model.forward(x_WD.unsqueeze(0), pos_BW, self.start_B[slot_B], attend)[0]

    def prompt_logits(self) -> Tensor:
        """Compute logits [B, P, V] at all positions of prompts of one length."""
        return self.model.head(torch.stack(self.hidden))

    def first_logits(self) -> Tensor:
        """Compute logits [B, V] after what was prefilled."""
        return self.model.head(torch.stack([hidden[-1] for hidden in self.hidden]))

    def feed(self, token_B: Tensor) -> Tensor:
        """Compute logits [B, V] after one more token of each row."""
        pos_BW = (self.start_B + self.length).unsqueeze(1)
        self.length += 1
        x_BWD = self.model.embed(token_B.unsqueeze(1), pos_BW)
        attend = self.cache.attend_all(pos_BW)
        hidden_BWD = self.model.forward(x_BWD, pos_BW, self.start_B, attend)
        return self.model.head(hidden_BWD)[:, 0]

    def forced_logits(self, token_BN: Tensor) -> Tensor:
        """Compute logits [B, N, V] along given tokens."""
        logits = [self.first_logits()]
        for token_B in token_BN.T[:-1]:
            logits.append(self.feed(token_B))
        return torch.stack(logits, 1)

    def draw_greedy(self, guide: Guide, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw `count` tokens of the largest guided logits.

        Returns logits of all rows [B, count, V], and guided logits [prompts, count, V] and tokens
        [prompts, count].
        """
        raw = []
        guided = []
        tokens = []
        logits_BV = self.first_logits()
        for n in range(count):
            raw.append(logits_BV)
            guided.append(guide(logits_BV))
            tokens.append(guided[-1].argmax(-1))
            if n + 1 < count:
                rows_per_prompt = len(logits_BV) // len(tokens[-1])
                logits_BV = self.feed(tokens[-1].repeat_interleave(rows_per_prompt))
        return torch.stack(raw, 1), torch.stack(guided, 1), torch.stack(tokens, 1)


def _templates(file: Path) -> Iterator[Quantity]:
    """How many prompts are tokenised from another text than upstream's."""
    if not file.is_file():
        return
    cases = json.loads(file.read_text())
    wrong = sum(template(ROLES[case["family"]], case["prompt"]) != case["text"] for case in cases)
    yield Quantity(f"prompt_templates ({len(cases)})", "exact", float(wrong), wrong == 0)
