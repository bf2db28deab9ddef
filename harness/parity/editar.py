"""Compare our EditAR with the arrays of a fixture folder, through the sampler.

Shapes: B edits, K branches of a canvas (the null instruction first), R = 2B rows (instructions
first, then their null instructions), N image tokens, T text positions, V codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.engine.acceptance import exact
from harness.engine.canvas import Canvas, Context
from harness.engine.guidance import Sampling, cfg
from harness.engine.sampler import Sampler
from harness.models.captions import Features
from harness.models.editar import EditAR, EditingGPT, rotary_table
from harness.models.llamagen_checkpoint import fill_editing_gpt
from harness.models.llamagen_network import GPTSpec
from harness.models.trunk import TrunkSpec
from harness.parity.fixture import Fixture, Quantity
from harness.records import SourceImage, Usage, UserError


@torch.no_grad()
def parity(fixture: Fixture, device: torch.device) -> Iterator[Quantity]:
    """Compare every array of the fixture."""
    check = _Check(fixture, device)
    yield from check.tables()
    yield from check.forced()
    yield from check.greedy()
    yield from check.stages()


class _Check:
    """A fixture's model, loaded as the released one is, with the fixture's inputs.

    The fixture has no tokenizer: its sources come as tokens, and stand under made-up names.
    """

    def __init__(self, fixture: Fixture, device: torch.device) -> None:
        self.fixture = fixture
        self.device = device
        self.inputs = fixture.read_tensors("inputs.safetensors")
        self.expected = fixture.read_tensors("expected.safetensors")
        run: Mapping[str, Any] = fixture.manifest["run"]
        self.scale = float(run["cfg_scale"])
        self.teacher_BN = self.inputs["teacher_tokens"]
        count = len(self.teacher_BN)
        self.texts = [f"instruction {row}" for row in range(count)]
        self.refined = [f"refined {row}" for row in range(count)]
        self.sources = [SourceImage(str(row).encode()) for row in range(count)]
        self.model = self._load_model()

    def tables(self) -> Iterator[Quantity]:
        """Compare the rotary table of source cells, text and target cells."""
        yield self._compare("rope_table", rotary_table(self.model.gpt.spec))

    def forced(self) -> Iterator[Quantity]:
        """Compare logits along the teacher's tokens, one position a forward, and guided ones."""
        sampler = self._sampler()
        canvases = self._open(sampler)
        tap = _Tap()
        for token_B in self.teacher_BN.T.tolist():
            sampler.forward(canvases, [None] * len(canvases))
            sampler.probe(canvases, tap.probe)
            for canvas, token in zip(canvases, token_B, strict=True):
                sampler.commit(canvas, [token])
        logits_BKNV = torch.cat(tap.logits, 2)
        logits_RNV = torch.cat((logits_BKNV[:, 1], logits_BKNV[:, 0]))
        yield self._compare("prefill_last_logits", logits_RNV[:, 0])
        yield self._compare("cached_logits", logits_RNV)
        scale_B = torch.full((len(canvases),), self.scale, device=self.device)
        yield self._compare("cfg_logits", cfg(logits_BKNV, scale_B))

    def greedy(self) -> Iterator[Quantity]:
        """Compare the tokens of greedy edits, and of those without a source."""
        arrays: dict[str, Sequence[SourceImage | None]] = {
            "greedy_tokens_cfg": self.sources,
            "greedy_tokens_image_dropped_mode0": [None] * len(self.texts),
        }
        for name, sources in arrays.items():
            sampler = self._sampler()
            canvases = self._open(sampler, sources)
            yield self._compare(name, self._draw(sampler, canvases))

    def stages(self) -> Iterator[Quantity]:
        """Compare two stages of GridAR: a padded quarter, a half drawn again by another text."""
        num_tokens = self.model.num_tokens
        sampler = self._sampler()
        canvases = self._open(sampler)
        quarter_Bn = self._draw(sampler, canvases, until=num_tokens // 4)
        padded_BN = torch.nn.functional.pad(quarter_Bn, (0, num_tokens - num_tokens // 4))
        yield self._compare("first_quarter_padded_with_zero", padded_BN)

        self._draw(sampler, canvases, until=num_tokens // 2)
        rows = zip(canvases, self.texts, self.refined, self.sources, strict=True)
        for canvas, text, refined, source in rows:
            contexts = [Context(None, text, source), Context(refined, refined, source)]
            sampler.condition(canvas, contexts, cfg)
        again_BN = self._draw(sampler, canvases)
        yield self._compare("second_half_regenerated_with_refined_text", again_BN)

    # ------------------------------------------------------------------ through the sampler

    def _compare(self, name: str, got: Tensor) -> Quantity:
        return self.fixture.compare(name, got, self.expected[name], self.device)

    def _load_model(self) -> EditAR:
        config: Mapping[str, Any] = self.fixture.manifest["config"]
        if config["n_kv_head"] != config["n_head"] or config["rope_base"] != 10000:
            raise UserError(
                f"{self.fixture.folder}: no EditAR has grouped queries or a rotary base other than "
                "10000"
            )
        trunk = TrunkSpec(
            layers=config["n_layer"],
            dim=config["dim"],
            heads=config["n_head"],
            hidden=config["ffn_hidden"],
            norm_eps=config["norm_eps"],
        )
        spec = GPTSpec(
            trunk,
            side=config["grid"],
            codes=config["vocab_size"],
            condition=config["cls_token_num"],
            caption_dim=config["caption_dim"],
        )
        with torch.device("meta"):
            gpt = EditingGPT(spec)
        (checkpoint,) = self.fixture.manifest["checkpoints"]
        fill_editing_gpt(gpt, self.fixture.folder / checkpoint)
        model = EditAR(gpt, None, self._given_instructions(), device=self.device)
        token_BN = self.inputs["source_image_tokens"].to(self.device)
        given = dict(zip(self.sources, token_BN, strict=True))
        model.encode_source = given.__getitem__
        return model

    def _given_instructions(self) -> _Given:
        features: dict[str, Features] = {}
        for texts, name in ((self.texts, "t5_features"), (self.refined, "refined_t5_features")):
            for text, row_TC in zip(texts, self.inputs[name], strict=True):
                features[text] = Features(row_TC, row_TC[-1])
        return _Given(features)

    def _sampler(self) -> Sampler:
        sampling = Sampling(scale=self.scale, temperature=0.0)
        return Sampler(self.model, sampling, slots=2 * len(self.texts), prefill=(2, 16))

    def _open(
        self, sampler: Sampler, sources: Sequence[SourceImage | None] | None = None
    ) -> list[Canvas]:
        """A canvas for each edit: its null instruction's branch, and its instruction's."""
        canvases = []
        pairs = zip(self.texts, sources or self.sources, strict=True)
        for key, (text, source) in enumerate(pairs):
            contexts, guide = sampler.contexts(text, source)
            canvases.append(sampler.open(contexts, guide, key=key, usage=Usage()))
        return canvases

    def _draw(
        self, sampler: Sampler, canvases: Sequence[Canvas], until: int | None = None
    ) -> Tensor:
        """Draw greedily until every canvas has so many tokens (None: all), int64 [B, until]."""
        until = until or self.model.num_tokens
        while canvases[0].length < until:
            if not sampler.burst(canvases, until - canvases[0].length):
                sampler.forward(canvases, [None] * len(canvases))
                sampler.draw(canvases, [None] * len(canvases), exact)
        return torch.tensor([canvas.tokens for canvas in canvases])


class _Given:
    """Features by text, instead of a text encoder."""

    revision = "given"

    def __init__(self, features: Mapping[str, Features]) -> None:
        self._features = features

    def __call__(self, text: str) -> Features:
        return self._features[text]


class _Tap:
    """A probe that keeps the logits it sees."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def probe(self, logits_RKTV: Tensor, probs: Callable[[], Tensor]) -> dict[str, Tensor]:
        self.logits.append(logits_RKTV[:, :, :1].clone())
        return {"drawn": probs()[:, 0].argmax(-1)}
