"""Our LlamaGen against the arrays of a fixture folder: through the sampler and its cache, and
without either.

Two forms of the prompt go through the sampler, one cache entry (collapsed) and all its positions; a
third, padded to T positions under a mask as upstream has it, goes through the bare trunk.

Shapes: B captions, R = 2B rows (captions first, then their null prompts), T condition positions, N
image tokens, V codes, C feature width, D model width.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.engine.acceptance import Draft, exact
from harness.engine.canvas import Canvas, Context
from harness.engine.guidance import Sampling, cfg, unguided, warp
from harness.engine.sampler import Sampler
from harness.models.captions import Features, clean
from harness.models.llamagen import LlamaGen, Padding
from harness.models.llamagen_checkpoint import fill_gpt, fill_vq
from harness.models.llamagen_network import GPT, GPTSpec, rotary_table
from harness.models.trunk import TrunkSpec
from harness.models.vq import VQ, VQSpec, to_uint8
from harness.parity.fixture import Fixture, Quantity
from harness.records import Usage, UserError


@torch.no_grad()
def parity(fixture: Fixture, device: torch.device) -> Iterator[Quantity]:
    """Every array of the fixture that our model computes, then the captions."""
    check = _Check(fixture, device)
    for part in (
        check.prompts,
        check.without_cache,
        check.cached,
        check.greedy,
        check.other_prompts,
    ):
        yield from part()
    for part in (check.bfloat16, check.tokenizer, check.filters, check.captions):
        yield from part()


@dataclass(frozen=True, slots=True)
class _Given:
    """Caption features by text, instead of a text encoder."""

    features: Mapping[str, Features]
    revision: str = "given"

    def __call__(self, text: str) -> Features:
        return self.features[text]


class _Check:
    """A fixture's model, loaded as the released one is, with the fixture's inputs."""

    def __init__(self, fixture: Fixture, device: torch.device) -> None:
        self.fixture = fixture
        self.device = device
        self.inputs = {
            name: tensor.to(device)
            for name, tensor in fixture.tensors("inputs.safetensors").items()
        }
        self.expected = fixture.tensors("expected_gpt.safetensors")
        self.scale = float(fixture.manifest["run"]["cfg_scale"])
        self.gpt, self.vq = _load(fixture)
        self.gpt.to(device)
        self.vq.to(device)
        spec = self.gpt.spec
        self.condition = spec.condition
        self.total = spec.side**2
        self.teacher_BN = self.inputs["teacher_tokens"]
        self.texts = [str(row) for row in range(len(self.teacher_BN))]
        self.feature_BTC = self.inputs["t5_features_right_padded"]
        self.length_B = [int(row.sum()) for row in self.inputs["t5_attention_mask"]]
        self.greedy_BN: Tensor | None = None

    def _compare(self, got: Mapping[str, Tensor], form: str = "") -> Iterator[Quantity]:
        for name, value in got.items():
            if name in self.expected:
                quantity = self.fixture.compare(name, value, self.expected[name], self.device)
                yield replace(quantity, name=f"{name} {form}".strip())

    # ------------------------------------------------------------------ the padded prompt, without

    def prompts(self) -> Iterator[Quantity]:
        """Tables, masks and embeddings of the padded prompt."""
        left_BTC, mask_BT = self._left()
        yield from self.fixture.compare_all(
            {"caption_embs_left_padded": left_BTC, "emb_masks_left": mask_BT.long()},
            "inputs.safetensors",
            self.device,
        )
        yield from self._compare({"attention_mask_bool": _seen(mask_BT.repeat(2, 1), self.total)})
        table = rotary_table(self.gpt.spec)
        debug = {
            "rope_table": torch.cat((table[:1].expand(self.condition, -1, -1), table[1:])),
            "condition_embeddings": self._condition(left_BTC),
        }
        if (self.fixture.folder / "debug_gpt.safetensors").is_file():
            yield from self.fixture.compare_all(debug, "debug_gpt.safetensors", self.device)

    def without_cache(self) -> Iterator[Quantity]:
        """One pass over the padded prompt and all tokens; padding positions themselves need not
        match.
        """
        left_BTC, mask_BT = self._left()
        mask_RT = mask_BT.repeat(2, 1)
        logits_RWV = self._padded(
            self._condition(left_BTC), self.teacher_BN.repeat(2, 1), _seen(mask_RT, self.total)
        )
        prefill_RTV = logits_RWV[:, : self.condition].cpu()
        padding_RT = ~mask_RT.cpu()
        prefill_RTV[padding_RT] = self.expected["prefill_logits"][padding_RT]
        yield from self._compare(
            {
                "prefill_logits": prefill_RTV,
                "teacher_forced_logits": logits_RWV[:, self.condition - 1 :],
            }
        )
        everything = _seen(torch.ones_like(mask_BT[:1]), self.total)
        bare = self._padded(
            self.gpt.cls_embedding.cap_proj(left_BTC[:1]), self.teacher_BN[:1], everything
        )
        yield from self._compare(
            {"cond_only_nomask_teacher_forced_logits_row0": bare[:, self.condition - 1 :]}
        )

    def _left(self) -> tuple[Tensor, Tensor]:
        """Features with their padding on the left and zero, [B, T, C], and where they are real, [B,
        T].
        """
        left_BTC = torch.zeros_like(self.feature_BTC)
        for row, (features_TC, count) in enumerate(
            zip(self.feature_BTC, self.length_B, strict=True)
        ):
            left_BTC[row, -count:] = features_TC[:count]
        start_B1 = self.condition - torch.tensor(self.length_B, device=self.device).unsqueeze(1)
        return left_BTC, torch.arange(self.condition, device=self.device) >= start_B1

    def _condition(self, feature_BTC: Tensor) -> Tensor:
        null_BTC = self.gpt.cls_embedding.uncond_embedding.expand_as(feature_BTC)
        return self.gpt.cls_embedding.cap_proj(torch.cat((feature_BTC, null_BTC)))

    def _padded(self, prompt_RTD: Tensor, token_RN: Tensor, seen_RWW: Tensor) -> Tensor:
        """Logits [R, T + N - 1, V] of the bare trunk over padded prompts and tokens."""
        x_RWD = torch.cat((prompt_RTD, self.gpt.tok_embeddings(token_RN[:, :-1])), 1)
        width = x_RWD.shape[1]
        at_W = (torch.arange(width) - self.condition + 1).clamp(min=0)
        mask_R1WW = seen_RWW[:, None, :width, :width].bool()

        def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_R1WW)

        rotary_1W2 = rotary_table(self.gpt.spec)[at_W].unsqueeze(0).to(self.device)
        return self.gpt.output(self.gpt.trunk(x_RWD, rotary_1W2, attend))

    # ------------------------------------------------------------------ through the sampler

    def cached(self) -> Iterator[Quantity]:
        """Teacher-forced logits, one position a forward, and all in one forward as drafts are
        verified.
        """
        for form, collapse in (("(collapsed)", True), ("(every position)", False)):
            logits_BKNV = self._forced(self._sampler(collapse))
            guided_BNV = cfg(
                logits_BKNV, torch.full((len(self.texts),), self.scale, device=self.device)
            )
            yield from self._compare(
                {"cached_logits": _rows(logits_BKNV), "cfg_logits": guided_BNV}, form
            )
            wide_BKNV = self._forced_at_once(self._sampler(collapse, tokens_per_step=self.total))
            yield from self._compare(
                {"cached_logits": _rows(wide_BKNV)}, f"{form[:-1]}, one forward)"
            )

    def greedy(self) -> Iterator[Quantity]:
        """The largest guided logit: always, for the first tokens only, and without guidance."""
        interval = int(self.fixture.manifest["run"]["cfg_interval_case"])
        for form, collapse in (("(collapsed)", True), ("(every position)", False)):
            logits_BKNV, self.greedy_BN = self._greedy(self._sampler(collapse))
            guided_BNV = cfg(
                logits_BKNV, torch.full((len(self.texts),), self.scale, device=self.device)
            )
            got = {"greedy_tokens_cfg": self.greedy_BN, "greedy_cfg_logits": guided_BNV}
            got["greedy_tokens_cfg_interval"] = self._greedy(
                self._sampler(collapse, interval=interval)
            )[1]
            got["greedy_tokens_no_cfg"] = self._greedy(
                self._sampler(collapse, scale=1.0), guided=False
            )[1]
            yield from self._compare(got, form)

    def other_prompts(self) -> Iterator[Quantity]:
        """The padding of AR-GRPO, and a prompt whose padding is seen."""
        left_BTC, _ = self._left()
        seen = _Given(
            {text: Features(row, row[-1]) for text, row in zip(self.texts, left_BTC, strict=True)}
        )
        for form, collapse in (("(collapsed)", True), ("(every position)", False)):
            right = self._sampler(collapse, padding="right")
            unmasked = self._sampler(collapse, captions=seen)
            for case, sampler in (("right_padded", right), ("no_emb_mask", unmasked)):
                logits_BKNV, tokens_BN = self._greedy(sampler)
                got = {
                    f"greedy_tokens_{case}": tokens_BN,
                    f"prefill_last_logits_{case}": _rows(logits_BKNV)[:, 0],
                }
                yield from self._compare(got, form)

    def bfloat16(self) -> Iterator[Quantity]:
        """In bfloat16 our logits may depart from float32 hardly more than upstream's own do."""
        upstream = self.fixture.manifest.get("measured", {}).get("bf16")
        if upstream is None:
            return
        expected_RNV = self.expected["cached_logits"]
        got_RNV = _rows(self._forced(self._sampler(collapse=True, dtype=torch.bfloat16))).cpu()
        error_RNV = (got_RNV - expected_RNV).abs()
        for what, error, limit in (
            ("mean", float(error_RNV.mean()), 1.5 * upstream["mean"]),
            ("max", float(error_RNV.max()), 3.0 * upstream["max"]),
        ):
            yield Quantity(f"cached_logits (bfloat16, {what})", "bf16", error, error <= limit)

    def _sampler(
        self,
        collapse: bool,
        *,
        captions: _Given | None = None,
        padding: Padding = "left",
        scale: float | None = None,
        interval: int = -1,
        tokens_per_step: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> Sampler:
        rows = zip(self.texts, self.feature_BTC, self.length_B, strict=True)
        own = _Given({text: Features(row[:count], row[-1]) for text, row, count in rows})
        gpt = self.gpt if dtype == torch.float32 else copy.deepcopy(self.gpt)
        model = LlamaGen(
            gpt,
            self.vq,
            captions or own,
            padding=padding,
            collapse=collapse,
            dtype=dtype,
            device=self.device,
        )
        sampling = Sampling(
            scale=self.scale if scale is None else scale, temperature=0.0, interval=interval
        )
        return Sampler(
            model,
            sampling,
            slots=2 * len(self.texts),
            tokens_per_step=tokens_per_step,
            prefill=(2, 16),
        )

    def _open(self, sampler: Sampler, guided: bool = True) -> list[Canvas]:
        pairs = [[Context(None, text), Context(text, text)] for text in self.texts]
        if guided:
            return [sampler.open(pair, cfg, key=n, usage=Usage()) for n, pair in enumerate(pairs)]
        return [
            sampler.open(pair[1:], unguided, key=n, usage=Usage()) for n, pair in enumerate(pairs)
        ]

    def _forced(self, sampler: Sampler) -> Tensor:
        """Logits [B, K, N, V] along the teacher's tokens."""
        canvases = self._open(sampler)
        tap = _Tap()
        for token_B in self.teacher_BN.T.tolist():
            sampler.forward(canvases, [None] * len(canvases))
            sampler.probe(canvases, tap.probe)
            for canvas, token in zip(canvases, token_B, strict=True):
                sampler.commit(canvas, [token])
        return torch.cat(tap.logits, 2)

    def _forced_at_once(self, sampler: Sampler) -> Tensor:
        canvases = self._open(sampler)
        tap = _Tap()
        for canvas in canvases:
            canvas._guide = tap.guide
        drafts = [Draft(token_N[:-1]) for token_N in self.teacher_BN]
        sampler.forward(canvases, drafts)
        sampler.draw(canvases, drafts, exact)
        return tap.logits[0]

    def _greedy(self, sampler: Sampler, guided: bool = True) -> tuple[Tensor, Tensor]:
        """Logits [B, K, N, V] along the drawn tokens, and those tokens [B, N]."""
        canvases = self._open(sampler, guided)
        tap = _Tap()
        while not canvases[0].done:
            sampler.forward(canvases, [None] * len(canvases))
            sampler.probe(canvases, tap.probe)
            sampler.draw(canvases, [None] * len(canvases), exact)
        return torch.cat(tap.logits, 2), torch.tensor([canvas.tokens for canvas in canvases])

    # ------------------------------------------------------------------ pixels, laws, captions

    def tokenizer(self) -> Iterator[Quantity]:
        """Both ways through the tokenizer, and both rules for 8 bits."""
        expected = self.fixture.tensors("expected_vq.safetensors")
        grid = (self.gpt.spec.side,) * 2
        codes_BN = self.inputs["decode_codes"]
        image = self.inputs["image"]
        latent = self.vq.quant_conv(self.vq.encoder(image))
        assert self.greedy_BN is not None
        shown_BN = self.greedy_BN[: len(expected["decoded_pixels_greedy"])].to(self.device)
        pixels = self.vq.decode(shown_BN, grid)
        rounded = (
            ((pixels.clamp(-1, 1) + 1) * 127.5 + 0.5).floor().to(torch.uint8).permute(0, 2, 3, 1)
        )
        partial_BN = self.inputs["decode_codes_quarter_then_zero"]
        got = {
            "codebook_entries": self.vq.quantize.lookup(codes_BN.unflatten(1, grid)),
            "decoded_pixels": self.vq.decode(codes_BN, grid),
            "decoded_pixels_quarter_then_zero": self.vq.decode(partial_BN, grid),
            "decoded_pixels_greedy": pixels,
            "uint8_greedy_batch_script": to_uint8(pixels),
            "uint8_greedy_save_image": rounded,
            "encoder_pre_quant": latent,
            "encoder_codes": self.vq.encode(image),
            "encoder_quantised": self.vq.quantize.lookup(self.vq.quantize.nearest(latent)),
        }
        for name in [name for name in got if name in expected]:
            yield self.fixture.compare(name, got[name], expected[name], self.device)

    def filters(self) -> Iterator[Quantity]:
        """The sampler's laws, with the settings that the arrays are named after."""
        file = self.fixture.tensors("expected_sampling.safetensors")
        logits_BV = file.pop("logits").to(self.device)
        for name, expected in file.items():
            probs_BV = warp(logits_BV, _settings(name))
            got = probs_BV.argmax(-1, keepdim=True) if name.startswith("argmax") else probs_BV
            yield self.fixture.compare(name, got, expected, self.device)

    def captions(self) -> Iterator[Quantity]:
        """How many captions are cleaned to another text than upstream's."""
        file = self.fixture.folder / "caption_cleaning.json"
        if file.is_file():
            cases = json.loads(file.read_text())
            wrong = sum(clean(clean(case["input"])) != case["output"] for case in cases)
            yield Quantity(
                f"caption_cleaning ({len(cases)} captions)", "exact", float(wrong), wrong == 0
            )


class _Tap:
    """A probe and a guide that keep the logits they see."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def probe(self, logits_RKTV: Tensor, probs: Callable[[], Tensor]) -> dict[str, Tensor]:
        self.logits.append(logits_RKTV[:, :, :1].clone())
        return {"drawn": probs()[:, 0].argmax(-1)}

    def guide(self, logits_RKTV: Tensor, scale_R: Tensor) -> Tensor:
        self.logits.append(logits_RKTV.clone())
        return cfg(logits_RKTV, scale_R)


def _rows(logits_BKNV: Tensor) -> Tensor:
    """[2B, N, V] in the fixture's order, captions first; the sampler has the null branch first."""
    return torch.cat((logits_BKNV[:, 1], logits_BKNV[:, 0]))


def _seen(mask_RT: Tensor, images: int) -> Tensor:
    """Who sees whom over T + N positions, uint8: no later position and no padding, but everyone
    itself.
    """
    seen_RL = F.pad(mask_RT.bool(), (0, images), value=True)
    length = seen_RL.shape[1]
    below = torch.ones(length, length, dtype=torch.bool, device=mask_RT.device).tril()
    return (
        seen_RL.unsqueeze(1) & below | torch.eye(length, dtype=torch.bool, device=mask_RT.device)
    ).to(torch.uint8)


def _settings(name: str) -> Sampling:
    """The sampling settings in a name such as probs_top_k_10_top_p_0p6_temperature_1p3."""
    found = {
        key: value.replace("p", ".")
        for key, value in re.findall(r"(top_k|top_p|temperature)_(\d+(?:p\d+)?)", name)
    }
    return Sampling(
        temperature=float(found.get("temperature", 1)),
        top_k=int(found.get("top_k", 0)),
        top_p=float(found.get("top_p", 1)),
    )


def _load(fixture: Fixture) -> tuple[GPT, VQ]:
    """The fixture's networks, with the sizes of its manifest, from its checkpoints."""
    config: Mapping[str, Any] = fixture.manifest["config"]
    g = config["gpt"]
    v = config["vq"]
    if g["n_kv_head"] != g["n_head"] or g["rope_base"] != 10000:
        raise UserError(
            f"{fixture.folder}: no LlamaGen has grouped queries or a rotary base other than 10000"
        )
    trunk = TrunkSpec(g["n_layer"], g["dim"], g["n_head"], g["ffn_hidden"], g["norm_eps"])
    with torch.device("meta"):
        gpt = GPT(GPTSpec(trunk, g["grid"], g["vocab_size"], g["cls_token_num"], g["caption_dim"]))
        vq = VQ(
            VQSpec(
                codes=v["codebook_size"],
                code_dim=v["codebook_embed_dim"],
                width=v["ch"],
                multipliers=tuple(v["ch_mult"]),
                blocks=v["num_res_blocks"],
                latent=v["z_channels"],
                groups=v["group_norm"]["groups"],
            )
        )
    files: Mapping[str, Any] = fixture.manifest["checkpoints"]
    fill_gpt(gpt, fixture.folder / _holding(files, "tok_embeddings.weight"), v["image_size"])
    fill_vq(vq, fixture.folder / _holding(files, "quantize.embedding.weight"))
    return gpt.eval(), vq.eval()


def _holding(files: Mapping[str, Any], tensor: str) -> str:
    found: Sequence[str] = [name for name, file in files.items() if tensor in file["tensors"]]
    if len(found) != 1:
        raise UserError(f"the manifest lists {len(found)} checkpoints with {tensor}: one is needed")
    return found[0]
