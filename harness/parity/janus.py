"""Our Janus-Pro against the arrays of a fixture folder, for both checkpoint layouts, through our
own cache.

Rows of a batch are branches of their own lengths here: nothing is padded, so GridAR's left-padded
batches are compared by what they computed for the real positions.

Shapes: B rows, P prompt length, N image tokens, V image vocabulary, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from harness.engine.guidance import cfg
from harness.models.janus import Janus, to_uint8
from harness.models.janus_prompt import ROLES, null_ids, template
from harness.models.trunk import causal
from harness.parity.fixture import Fixture, Quantity
from harness.records import UserError

Guide = Callable[[Tensor], Tensor]
"""Logits [B, ..., V] of all rows to guided logits [prompts, ..., V]."""


@torch.no_grad()
def parity(fixture: Fixture, device: torch.device) -> Iterator[Quantity]:
    """Every expected array of the fixture, once per checkpoint layout; then the prompt
    templates.
    """
    for folder in dict.fromkeys(
        (fixture.folder / stored).parent for stored in fixture.manifest["checkpoints"]
    ):
        check = _Check(fixture, folder, device)
        due = {
            name: kind for name, kind in _expected(fixture).items() if kind not in ("input", "bf16")
        }
        for part in (check.one_prompt, check.prompts, check.three_branches, check.tokenizer):
            for quantity in part():
                due.pop(quantity.name)
                yield replace(quantity, name=f"{folder.name}: {quantity.name}")
        for name, kind in due.items():
            yield Quantity(f"{folder.name}: {name} (not computed)", kind, float("inf"), False)
    yield from _templates(fixture.folder / "prompt_templates.json")


def _expected(fixture: Fixture) -> dict[str, str]:
    """Kind of every array in the files of expected values."""
    files = {
        file: tensors
        for file, tensors in fixture.manifest["tensors"].items()
        if file.startswith("expected_")
    }
    return {name: entry["kind"] for tensors in files.values() for name, entry in tensors.items()}


class _Check:
    """One checkpoint of a fixture, loaded, with the fixture's inputs."""

    def __init__(self, fixture: Fixture, checkpoint: Path, device: torch.device) -> None:
        self.fixture = fixture
        self.device = device
        self.inputs = fixture.tensors("inputs.safetensors")
        self.greedy: Tensor | None = None
        manifest = fixture.manifest
        self.pad: int = manifest["config"]["tokens"]["pad"]
        self.weight = float(manifest["run"]["cfg_weight"])
        self.gridar_scale = float(manifest["run"]["gridar_cfg_scale"])
        self.ids = self._unpadded("prompt")
        self.refined = self._unpadded("refined_prompt")
        longest = max(len(ids) for ids in (*self.ids, *self.refined))
        self.model = Janus(
            checkpoint=str(checkpoint), max_context=longest, device=device, dtype="float32"
        )
        self.total = self.model.num_tokens
        if (self.total, self.model.vocab) != (
            manifest["config"]["image"]["tokens"],
            manifest["config"]["image"]["vocab"],
        ):
            raise UserError(
                f"{checkpoint} does not have the image tokens that the fixture's manifest states"
            )

    def _unpadded(self, which: str) -> list[list[int]]:
        rows = self.inputs[f"{which}_ids_left_padded"]
        lengths = self.inputs[f"{which}_lengths"]
        return [row[-length:].tolist() for row, length in zip(rows, lengths.tolist(), strict=True)]

    def _compare(self, file: str, got: dict[str, Tensor]) -> Iterator[Quantity]:
        file = f"expected_{file}.safetensors"
        stated = self.fixture.manifest["tensors"][file]
        yield from self.fixture.compare_all(
            {n: v for n, v in got.items() if n in stated}, file, self.device
        )

    # ------------------------------------------------------------------ one prompt, upstream's loop

    def one_prompt(self) -> Iterator[Quantity]:
        """Text then null rows, as upstream interleaves them: prefill, teacher-forced, cached,
        guided, greedy.
        """
        text = self.ids[0]
        null = null_ids(self.ids[0], self.pad)
        teacher = self.inputs["teacher_tokens"].to(self.device)
        pairs = [text, null] * len(teacher)
        forced = teacher.repeat_interleave(2, 0)
        cached = _Branches(self.model, pairs).forced(forced)
        yield from self._compare(
            "llm",
            {
                "gen_img_embeds_all_tokens": self._embed(
                    torch.arange(self.model.vocab, device=self.device)
                ),
                "cfg_prompt_rows": torch.tensor(pairs),
                "prefill_gen_logits": _Branches(self.model, [text, null]).prompt_logits(),
                "teacher_forced_logits": self._without_cache(pairs, forced),
                "cached_logits": cached,
                "cfg_logits": self._pairwise(self.weight, null_first=False)(cached),
            },
        )
        guide = self._pairwise(self.weight, null_first=False)
        for n, ids in enumerate(self.ids):
            _, guided, tokens = _Branches(self.model, [ids, null_ids(ids, self.pad)]).greedy(
                guide, self.total
            )
            yield from self._compare("llm", {f"greedy_tokens_prompt{n}": tokens})
            if n == 0:
                self.greedy = tokens
                yield from self._compare("llm", {"greedy_cfg_logits_prompt0": guided})

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.model.embed(tokens, tokens)  # Janus' embeddings do not depend on the place

    def _without_cache(self, prompts: list[list[int]], forced_BN: Tensor) -> Tensor:
        """Logits [B, N, V] of one pass over prompts of one length and all their tokens."""
        words_BPD = torch.stack([self.model.embed_words(ids) for ids in prompts])
        x_BWD = torch.cat((words_BPD, self._embed(forced_BN[:, :-1])), 1)
        pos_BW = torch.arange(x_BWD.shape[1], device=self.device).expand(len(x_BWD), -1)
        start_B = torch.full((len(x_BWD),), words_BPD.shape[1], device=self.device)
        hidden_BWD = self.model.forward(x_BWD, pos_BW, start_B, causal)
        return self.model.head(hidden_BWD[:, words_BPD.shape[1] - 1 :])

    @staticmethod
    def _pairwise(weight: float, null_first: bool) -> Guide:
        """The harness's guidance over rows that alternate between null and text."""

        def guide(logits: Tensor) -> Tensor:
            vocab = logits.shape[-1]
            logits_RKTV = logits.reshape(-1, 2, logits[0].numel() // vocab, vocab)
            scale_R = torch.full(
                (len(logits_RKTV),), weight, dtype=torch.float64, device=logits.device
            )
            guided_RTV = cfg(logits_RKTV if null_first else logits_RKTV.flip(1), scale_R)
            return guided_RTV.view(-1, *logits.shape[1:])

        return guide

    # ------------------------------------------------------------------ several prompts, GridAR's l

    def prompts(self) -> Iterator[Quantity]:
        """GridAR's two branches, null row first; its scale w is the usual weight w + 1."""
        rows = [row for ids in self.ids for row in (null_ids(ids, self.pad), ids)]
        guide = self._pairwise(self.gridar_scale + 1, null_first=True)
        raw = _Branches(self.model, rows).forced(
            self.inputs["batch_teacher_tokens"].to(self.device).repeat_interleave(2, 0)
        )
        _, _, tokens = _Branches(self.model, rows).greedy(guide, self.total)
        yield from self._layout("2way", rows)
        yield from self._compare(
            "batched",
            {
                "raw_logits_2way_teacher": raw,
                "fused_logits_2way_teacher": guide(raw),
                "greedy_tokens_2way": tokens,
            },
        )

    def three_branches(self) -> Iterator[Quantity]:
        """GridAR's rows null, original, refined over a given prefix, prefilled anew and continued
        greedily.
        """
        rows = [
            row
            for ids, new in zip(self.ids, self.refined, strict=True)
            for row in (null_ids(ids, self.pad), ids, new)
        ]
        prefix = self.fixture.tensors("expected_batched.safetensors")["prefix_tokens_3way"].to(
            self.device
        )
        branches = _Branches(self.model, rows, prefix.repeat_interleave(3, 0))
        raw, fused, tokens = branches.greedy(self._three_way, self.total - prefix.shape[1])
        yield from self._layout("3way", rows)
        yield from self._compare(
            "batched",
            {
                "raw_logits_3way": raw,
                "fused_logits_3way": fused,
                "greedy_tokens_3way_second_half": tokens,
            },
        )

    def _three_way(self, logits_BV: Tensor) -> Tensor:
        """null + (w + 1) d + w r: r is the refined prompt's direction without its part along d
        (GridAR's generator).
        """
        null, text, refined = logits_BV.unflatten(0, (-1, 3)).unbind(1)
        d = text - null
        r = refined - null
        along = (r * d).sum(-1, keepdim=True) / d.square().sum(-1, keepdim=True).clamp(min=1e-12)
        return null + (self.gridar_scale + 1) * d + self.gridar_scale * (r - along * d)

    def _layout(self, way: str, rows: Sequence[Sequence[int]]) -> Iterator[Quantity]:
        """Our prompts where GridAR's batch has real positions; what it pads with is not ours to
        reproduce.
        """
        ids = self.fixture.tensors("expected_batched.safetensors")[f"rows_{way}"].clone()
        mask = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, -len(row) :] = torch.tensor(row)
            mask[n, -len(row) :] = 1
        yield from self._compare("batched", {f"rows_{way}": ids, f"attention_mask_{way}": mask})

    # ------------------------------------------------------------------ pixels

    def tokenizer(self) -> Iterator[Quantity]:
        """Both ways through the tokenizer, and the 8-bit rule on the greedy image."""
        vq = self.model.vq
        grid = self.model.grid
        codes = self.inputs["decode_codes"].to(self.device)
        image = self.inputs["image"].to(self.device)
        latent = vq.quant_conv(vq.encoder(image))
        assert self.greedy is not None
        pixels = vq.decode(self.greedy.to(self.device), grid)
        yield from self._compare(
            "vq",
            {
                "codebook_entries": vq.quantize.lookup(codes.unflatten(1, grid)),
                "decoded_pixels": vq.decode(codes, grid),
                "decoded_pixels_greedy_prompt0": pixels,
                "encoder_pre_quant": latent,
                "encoder_codes": vq.encode(image),
                "encoder_quantised": vq.quantize.lookup(vq.quantize.nearest(latent)),
                "uint8_greedy_prompt0": to_uint8(pixels),
            },
        )


class _Branches:
    """Rows of their own prompt lengths over our cache: prefilled one by one, decoded together."""

    def __init__(
        self, model: Janus, prompts: Sequence[Sequence[int]], prefix_BN: Tensor | None = None
    ) -> None:
        self.model = model
        self.cache = model.cache(len(prompts))
        self.start_B = torch.tensor([len(ids) for ids in prompts], device=model.device)
        self.length = 0 if prefix_BN is None else prefix_BN.shape[1]
        self.hidden = [self._prefill(n, ids, prefix_BN) for n, ids in enumerate(prompts)]

    def _prefill(self, row: int, ids: Sequence[int], prefix_BN: Tensor | None) -> Tensor:
        x_WD = self.model.embed_words(ids)
        if prefix_BN is not None:
            x_WD = torch.cat((x_WD, self.model.embed(prefix_BN[row], prefix_BN[row])))
        slot_B = torch.tensor([row], device=x_WD.device)
        pos_BW = torch.arange(len(x_WD), device=x_WD.device).unsqueeze(0)
        attend = self.cache.attend_some(slot_B, pos_BW)
        return self.model.forward(x_WD.unsqueeze(0), pos_BW, self.start_B[slot_B], attend)[0]

    def prompt_logits(self) -> Tensor:
        """Logits [B, P, V] at all positions of prompts of one length."""
        return self.model.head(torch.stack(self.hidden))

    def first(self) -> Tensor:
        """Logits [B, V] behind what was prefilled."""
        return self.model.head(torch.stack([hidden[-1] for hidden in self.hidden]))

    def feed(self, token_B: Tensor) -> Tensor:
        """Logits [B, V] behind one more token of each row."""
        pos_BW = (self.start_B + self.length).unsqueeze(1)
        self.length += 1
        x_BWD = self.model.embed(token_B.unsqueeze(1), pos_BW)
        return self.model.head(
            self.model.forward(x_BWD, pos_BW, self.start_B, self.cache.attend_all(pos_BW))
        )[:, 0]

    def forced(self, token_BN: Tensor) -> Tensor:
        """Logits [B, N, V] along given tokens."""
        return torch.stack([self.first(), *(self.feed(token_B) for token_B in token_BN.T[:-1])], 1)

    def greedy(self, guide: Guide, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of all rows and of each prompt, and each prompt's tokens, along the largest guided
        logits.
        """
        raw = []
        guided = []
        tokens = []
        logits = self.first()
        for n in range(count):
            raw.append(logits)
            guided.append(guide(logits))
            tokens.append(guided[-1].argmax(-1))
            if n + 1 < count:
                logits = self.feed(tokens[-1].repeat_interleave(len(logits) // len(tokens[-1])))
        return torch.stack(raw, 1), torch.stack(guided, 1), torch.stack(tokens, 1)


def _templates(file: Path) -> Iterator[Quantity]:
    """How many prompts are tokenised from another text than upstream's."""
    if not file.is_file():
        return
    cases = json.loads(file.read_text())
    wrong = sum(template(ROLES[case["family"]], case["prompt"]) != case["text"] for case in cases)
    yield Quantity(f"prompt_templates ({len(cases)})", "exact", float(wrong), wrong == 0)
