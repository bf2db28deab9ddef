"""Compare our LlamaGen with the arrays of a fixture folder, through the sampler and without it.

Two forms of the prompt go through the sampler and its cache, one cache entry (collapsed) and all
its positions. A third, padded to T positions under a mask as upstream has it, goes through the bare
trunk without a cache.

Shapes: B captions, K branches of a canvas, R = 2B rows (captions first, then their null prompts), T
condition positions, N image tokens, V codes, C feature width, D model width, L = T + N positions.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.engine.acceptance import Draft, exact
from harness.engine.canvas import Canvas, Context
from harness.engine.guidance import Guide, Sampling, cfg, unguided, warp
from harness.engine.sampler import Sampler
from harness.models.captions import Features, clean_prompt
from harness.models.llamagen import LlamaGen, Padding
from harness.models.llamagen_checkpoint import fill_gpt, fill_vq
from harness.models.llamagen_network import GPT, GPTSpec, rotary_table
from harness.models.trunk import TrunkSpec
from harness.models.vq import VQ, VQSpec, round_to_uint8, to_uint8
from harness.parity.fixture import Fixture, Quantity
from harness.records import Usage, UserError

FORMS = {"(collapsed)": True, "(every position)": False}
"""Forms of the prompt in the cache by the words that follow a quantity's name: collapsed or not."""


@torch.no_grad()
def parity(fixture: Fixture, device: torch.device) -> Iterator[Quantity]:
    """Compare every array of the fixture that our model computes, then the captions."""
    check = _Check(fixture, device)
    yield from check.prompts()
    yield from check.without_cache()
    yield from check.cached()
    yield from check.greedy()
    yield from check.other_prompts()
    yield from check.bfloat16()
    yield from check.tokenizer()
    yield from check.filters()
    yield from check.captions()


class _Check:
    """A fixture's model, loaded as the released one is, with the fixture's inputs."""

    def __init__(self, fixture: Fixture, device: torch.device) -> None:
        self.fixture = fixture
        self.device = device
        inputs = fixture.read_tensors("inputs.safetensors")
        self.inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        self.expected = fixture.read_tensors("expected_gpt.safetensors")
        self.scale = float(fixture.manifest["run"]["cfg_scale"])

        self.gpt, self.vq = _load_networks(fixture)
        self.gpt.to(device)
        self.vq.to(device)
        spec = self.gpt.spec
        self.condition = spec.condition
        self.num_tokens = spec.side**2

        self.teacher_BN = self.inputs["teacher_tokens"]
        self.texts = [str(row) for row in range(len(self.teacher_BN))]
        self.feature_BTC = self.inputs["t5_features_right_padded"]
        self.length_B = [int(row.sum()) for row in self.inputs["t5_attention_mask"]]
        self.greedy_BN: Tensor | None = None  # set by `greedy`, read by `tokenizer`

    def _compare(self, got: Mapping[str, Tensor], form: str = "") -> Iterator[Quantity]:
        """Compare what the fixture expects of the GPT; `form` follows the quantities' names."""
        for name, value in got.items():
            if name in self.expected:
                quantity = self.fixture.compare(name, value, self.expected[name], self.device)
                yield replace(quantity, name=f"{name} {form}".strip())

    # ------------------------------------------------------------------ the padded prompt, no cache

    def prompts(self) -> Iterator[Quantity]:
        """Compare tables, masks and embeddings of the padded prompt."""
        left_BTC, mask_BT = self._left_padded()
        inputs = {"caption_embs_left_padded": left_BTC, "emb_masks_left": mask_BT.long()}
        yield from self.fixture.compare_all(inputs, "inputs.safetensors", self.device)

        seen_RLL = _visible(mask_BT.repeat(2, 1), self.num_tokens)
        yield from self._compare({"attention_mask_bool": seen_RLL})

        if (self.fixture.folder / "debug_gpt.safetensors").is_file():
            table = rotary_table(self.gpt.spec)
            prompt_rows = table[:1].expand(self.condition, -1, -1)
            debug = {
                "rope_table": torch.cat((prompt_rows, table[1:])),
                "condition_embeddings": self._embed_condition(left_BTC),
            }
            yield from self.fixture.compare_all(debug, "debug_gpt.safetensors", self.device)

    def without_cache(self) -> Iterator[Quantity]:
        """Compare one pass over the padded prompt and all tokens, with padding hidden and seen."""
        left_BTC, mask_BT = self._left_padded()
        mask_RT = mask_BT.repeat(2, 1)
        prompt_RTD = self._embed_condition(left_BTC)
        seen_RLL = _visible(mask_RT, self.num_tokens)
        logits_RLV = self._forward_padded(prompt_RTD, self.teacher_BN.repeat(2, 1), seen_RLL)

        prefill_RTV = logits_RLV[:, : self.condition].cpu()
        padding_RT = ~mask_RT.cpu()  # where the original's logits need not be matched
        prefill_RTV[padding_RT] = self.expected["prefill_logits"][padding_RT]
        teacher_forced_RNV = logits_RLV[:, self.condition - 1 :]
        yield from self._compare(
            {"prefill_logits": prefill_RTV, "teacher_forced_logits": teacher_forced_RNV}
        )

        seen_1LL = _visible(torch.ones_like(mask_BT[:1]), self.num_tokens)
        prompt_1TD = self.gpt.cls_embedding.cap_proj(left_BTC[:1])
        logits_1LV = self._forward_padded(prompt_1TD, self.teacher_BN[:1], seen_1LL)
        unmasked_1NV = logits_1LV[:, self.condition - 1 :]
        yield from self._compare({"cond_only_nomask_teacher_forced_logits_row0": unmasked_1NV})

    def _left_padded(self) -> tuple[Tensor, Tensor]:
        """Features [B, T, C] with zeros as padding on the left, and where they are real, [B, T]."""
        left_BTC = torch.zeros_like(self.feature_BTC)
        for row, count in enumerate(self.length_B):
            left_BTC[row, -count:] = self.feature_BTC[row, :count]
        length_B1 = torch.tensor(self.length_B, device=self.device).unsqueeze(1)
        place_T = torch.arange(self.condition, device=self.device)
        return left_BTC, place_T >= self.condition - length_B1

    def _embed_condition(self, feature_BTC: Tensor) -> Tensor:
        """Embeddings [R, T, D] of captions and of as many null prompts."""
        null_BTC = self.gpt.cls_embedding.uncond_embedding.expand_as(feature_BTC)
        return self.gpt.cls_embedding.cap_proj(torch.cat((feature_BTC, null_BTC)))

    def _forward_padded(self, prompt_RTD: Tensor, token_RN: Tensor, seen_RLL: Tensor) -> Tensor:
        """Logits [R, L - 1, V] of the bare trunk over padded prompts and tokens but the last."""
        x_RLD = torch.cat((prompt_RTD, self.gpt.tok_embeddings(token_RN[:, :-1])), 1)
        length = x_RLD.shape[1]
        rotary_row_L = (torch.arange(length) - self.condition + 1).clamp(min=0)
        rotary_1L2 = rotary_table(self.gpt.spec)[rotary_row_L].unsqueeze(0).to(self.device)
        mask_R1LL = seen_RLL[:, None, :length, :length].bool()

        def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_R1LL)

        return self.gpt.output(self.gpt.trunk(x_RLD, rotary_1L2, attend))

    # ------------------------------------------------------------------ through the sampler

    def cached(self) -> Iterator[Quantity]:
        """Compare teacher-forced logits, one position a forward, and all at once as a draft."""
        for form, collapse in FORMS.items():
            logits_BKNV = self._forced_logits(self._sampler(collapse))
            got = {"cached_logits": _in_rows(logits_BKNV), "cfg_logits": self._guided(logits_BKNV)}
            yield from self._compare(got, form)

            wide_sampler = self._sampler(collapse, tokens_per_step=self.num_tokens)
            at_once_BKNV = self._forced_logits_at_once(wide_sampler)
            got = {"cached_logits": _in_rows(at_once_BKNV)}
            yield from self._compare(got, f"{form[:-1]}, one forward)")

    def greedy(self) -> Iterator[Quantity]:
        """Compare the tokens of largest logit: guided always, at first only, and never."""
        interval = int(self.fixture.manifest["run"]["cfg_interval_case"])
        for form, collapse in FORMS.items():
            logits_BKNV, self.greedy_BN = self._draw_greedy(self._sampler(collapse))
            at_first = self._sampler(collapse, interval=interval)
            _, at_first_BN = self._draw_greedy(at_first)
            never = self._sampler(collapse, scale=1.0)
            _, never_BN = self._draw_greedy(never, guided=False)
            got = {
                "greedy_tokens_cfg": self.greedy_BN,
                "greedy_cfg_logits": self._guided(logits_BKNV),
                "greedy_tokens_cfg_interval": at_first_BN,
                "greedy_tokens_no_cfg": never_BN,
            }
            yield from self._compare(got, form)

    def other_prompts(self) -> Iterator[Quantity]:
        """Compare the padding of AR-GRPO, and a prompt whose padding is seen."""
        left_BTC, _ = self._left_padded()
        rows = zip(self.texts, left_BTC, strict=True)
        seen_padding = _Given({text: Features(row, row[-1]) for text, row in rows})
        for form, collapse in FORMS.items():
            samplers = {
                "right_padded": self._sampler(collapse, padding="right"),
                "no_emb_mask": self._sampler(collapse, captions=seen_padding),
            }
            for case, sampler in samplers.items():
                logits_BKNV, tokens_BN = self._draw_greedy(sampler)
                got = {
                    f"greedy_tokens_{case}": tokens_BN,
                    f"prefill_last_logits_{case}": _in_rows(logits_BKNV)[:, 0],
                }
                yield from self._compare(got, form)

    def bfloat16(self) -> Iterator[Quantity]:
        """Compare bfloat16 logits with float32 ones."""
        sampler = self._sampler(collapse=True, dtype=torch.bfloat16)
        got_RNV = _in_rows(self._forced_logits(sampler))
        expected_RNV = self.expected["cached_logits"]
        yield from self.fixture.compare_bfloat16("cached_logits", got_RNV, expected_RNV)

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
        """A greedy sampler over the fixture's model, with the fixture's captions unless given."""
        model = LlamaGen(
            self.gpt if dtype == torch.float32 else copy.deepcopy(self.gpt),
            self.vq,
            captions or self._fixture_captions(),
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

    def _fixture_captions(self) -> _Given:
        rows = zip(self.texts, self.feature_BTC, self.length_B, strict=True)
        return _Given({text: Features(row[:count], row[-1]) for text, row, count in rows})

    def _open(self, sampler: Sampler, guide: Guide = cfg) -> list[Canvas]:
        """A canvas for each caption: null and caption's branch, or the latter if `unguided`."""
        canvases = []
        for key, text in enumerate(self.texts):
            contexts = [Context(None, text), Context(text, text)]
            if guide is unguided:
                contexts = contexts[1:]
            canvases.append(sampler.open(contexts, guide, key=key, usage=Usage()))
        return canvases

    def _forced_logits(self, sampler: Sampler) -> Tensor:
        """Logits [B, K, N, V] along the teacher's tokens, one position a forward."""
        canvases = self._open(sampler)
        tap = _Tap()
        for token_B in self.teacher_BN.T.tolist():
            sampler.forward(canvases, [None] * len(canvases))
            sampler.probe(canvases, tap.probe)
            for canvas, token in zip(canvases, token_B, strict=True):
                sampler.commit(canvas, [token])
        return torch.cat(tap.logits, 2)

    def _forced_logits_at_once(self, sampler: Sampler) -> Tensor:
        """Logits [B, K, N, V] along the teacher's tokens, all in one forward as a draft."""
        tap = _Tap()
        canvases = self._open(sampler, tap.guide)
        drafts = [Draft(token_N[:-1]) for token_N in self.teacher_BN]
        sampler.forward(canvases, drafts)
        sampler.draw(canvases, drafts, exact)
        return tap.logits[0]

    def _draw_greedy(self, sampler: Sampler, guided: bool = True) -> tuple[Tensor, Tensor]:
        """Logits [B, K, N, V] along the drawn tokens, and those tokens [B, N]."""
        canvases = self._open(sampler, cfg if guided else unguided)
        tap = _Tap()
        while not canvases[0].done:
            sampler.forward(canvases, [None] * len(canvases))
            sampler.probe(canvases, tap.probe)
            sampler.draw(canvases, [None] * len(canvases), exact)
        return torch.cat(tap.logits, 2), torch.tensor([canvas.tokens for canvas in canvases])

    def _guided(self, logits_BKNV: Tensor) -> Tensor:
        """Guided logits [B, N, V] by the fixture's scale."""
        return cfg(logits_BKNV, torch.full((len(self.texts),), self.scale, device=self.device))

    # ------------------------------------------------------------------ pixels, filters, captions

    def tokenizer(self) -> Iterator[Quantity]:
        """Compare both ways through the tokenizer, and both rules for 8 bits."""
        expected = self.fixture.read_tensors("expected_vq.safetensors")
        grid = (self.gpt.spec.side, self.gpt.spec.side)
        codes_BN = self.inputs["decode_codes"]
        partial_BN = self.inputs["decode_codes_quarter_then_zero"]
        image = self.inputs["image"]
        latent = self.vq.quant_conv(self.vq.encoder(image))

        assert self.greedy_BN is not None
        count = len(expected["decoded_pixels_greedy"])
        pixels = self.vq.decode(self.greedy_BN[:count].to(self.device), grid)
        got = {
            "codebook_entries": self.vq.quantize.lookup(codes_BN.unflatten(1, grid)),
            "decoded_pixels": self.vq.decode(codes_BN, grid),
            "decoded_pixels_quarter_then_zero": self.vq.decode(partial_BN, grid),
            "decoded_pixels_greedy": pixels,
            "uint8_greedy_batch_script": to_uint8(pixels),
            "uint8_greedy_save_image": round_to_uint8(pixels),
            "encoder_pre_quant": latent,
            "encoder_codes": self.vq.encode(image),
            "encoder_quantised": self.vq.quantize.lookup(self.vq.quantize.nearest(latent)),
        }
        for name, value in got.items():
            if name in expected:
                yield self.fixture.compare(name, value, expected[name], self.device)

    def filters(self) -> Iterator[Quantity]:
        """Compare the probabilities that the sampler draws from.

        Settings are in the arrays' names.
        """
        file = self.fixture.read_tensors("expected_sampling.safetensors")
        logits_BV = file.pop("logits").to(self.device)
        for name, expected in file.items():
            got = warp(logits_BV, _settings_in(name))
            if name.startswith("argmax"):
                got = got.argmax(-1, keepdim=True)
            yield self.fixture.compare(name, got, expected, self.device)

    def captions(self) -> Iterator[Quantity]:
        """Count the captions that are cleaned to another text than upstream's."""
        file = self.fixture.folder / "caption_cleaning.json"
        if not file.is_file():
            return
        cases = json.loads(file.read_text())
        wrong = sum(clean_prompt(case["input"]) != case["output"] for case in cases)
        name = f"caption_cleaning ({len(cases)} captions)"
        yield Quantity(name, "exact", float(wrong), wrong == 0)


@dataclass(frozen=True, slots=True)
class _Given:
    """Caption features by text, instead of a text encoder."""

    features: Mapping[str, Features]
    revision: str = "given"

    def __call__(self, text: str) -> Features:
        return self.features[text]


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


def _in_rows(logits_BKNV: Tensor) -> Tensor:
    """[R, N, V] in the fixture's order, captions first; the sampler has the null branch first."""
    return torch.cat((logits_BKNV[:, 1], logits_BKNV[:, 0]))


def _visible(mask_RT: Tensor, num_tokens: int) -> Tensor:
    """Who sees whom over L = T + N positions, uint8 [R, L, L].

    No later position and no padding (where `mask_RT` is false) is seen, except by itself.
    """
    is_real_RL = F.pad(mask_RT.bool(), (0, num_tokens), value=True)
    length = is_real_RL.shape[1]
    everything_LL = torch.ones(length, length, dtype=torch.bool, device=mask_RT.device)
    itself_LL = torch.eye(length, dtype=torch.bool, device=mask_RT.device)
    seen_RLL = is_real_RL.unsqueeze(1) & everything_LL.tril() | itself_LL
    return seen_RLL.to(torch.uint8)


def _settings_in(name: str) -> Sampling:
    """The sampling settings in a name such as probs_top_k_10_top_p_0p6_temperature_1p3."""
    found = dict(re.findall(r"(top_k|top_p|temperature)_(\d+(?:p\d+)?)", name))
    return Sampling(
        temperature=_number_in(found.get("temperature", "1")),
        top_k=int(found.get("top_k", 0)),
        top_p=_number_in(found.get("top_p", "1")),
    )


def _number_in(text: str) -> float:
    return float(text.replace("p", "."))


# ------------------------------------------------------------------ the fixture's networks


def _load_networks(fixture: Fixture) -> tuple[GPT, VQ]:
    """The fixture's networks, with the dimensions of its manifest, from its checkpoints."""
    gpt_config: Mapping[str, Any] = fixture.manifest["config"]["gpt"]
    vq_config: Mapping[str, Any] = fixture.manifest["config"]["vq"]
    is_plain = gpt_config["n_kv_head"] == gpt_config["n_head"] and gpt_config["rope_base"] == 10000
    if not is_plain:
        raise UserError(
            f"{fixture.folder}: no LlamaGen has grouped queries or a rotary base other than 10000"
        )
    with torch.device("meta"):
        gpt = GPT(_gpt_spec(gpt_config))
        vq = VQ(_vq_spec(vq_config))
    fill_gpt(gpt, _checkpoint_with(fixture, "tok_embeddings.weight"), vq_config["image_size"])
    fill_vq(vq, _checkpoint_with(fixture, "quantize.embedding.weight"))
    return gpt.eval(), vq.eval()


def _gpt_spec(config: Mapping[str, Any]) -> GPTSpec:
    trunk = TrunkSpec(
        layers=config["n_layer"],
        dim=config["dim"],
        heads=config["n_head"],
        hidden=config["ffn_hidden"],
        norm_eps=config["norm_eps"],
    )
    return GPTSpec(
        trunk,
        side=config["grid"],
        codes=config["vocab_size"],
        condition=config["cls_token_num"],
        caption_dim=config["caption_dim"],
    )


def _vq_spec(config: Mapping[str, Any]) -> VQSpec:
    return VQSpec(
        codes=config["codebook_size"],
        code_dim=config["codebook_embed_dim"],
        width=config["ch"],
        multipliers=tuple(config["ch_mult"]),
        blocks=config["num_res_blocks"],
        latent=config["z_channels"],
        groups=config["group_norm"]["groups"],
    )


def _checkpoint_with(fixture: Fixture, tensor: str) -> Path:
    """The one checkpoint that the manifest lists with a tensor of that name."""
    checkpoints: Mapping[str, Any] = fixture.manifest["checkpoints"]
    found = [name for name, entry in checkpoints.items() if tensor in entry["tensors"]]
    if len(found) != 1:
        raise UserError(f"the manifest lists {len(found)} checkpoints with {tensor}: one is needed")
    return fixture.folder / found[0]
