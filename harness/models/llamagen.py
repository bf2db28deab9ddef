"""LlamaGen text-to-image (arXiv 2406.06525) and models of its kind: AR-GRPO is the same with other
weights and padding.

The prompt's positions have a rotary table of zeros, cosine and sine, so their queries and keys are
exactly zero: attention inside the prompt is a running mean of values, and a later position gives
each of them the score 0. The prompt therefore acts as one cache entry with a zero key, the mean of
its values and a score of log(how many). `collapse` keeps it so: all prompt positions but the last
are computed at once into that entry (`prefix`), the last one is fed. Padding is dropped altogether,
which changes nothing, since where a prompt sits does not matter.

Shapes: B rows, W positions, T condition positions (120), v of them seen, P context positions of a
branch, C feature width, N image tokens, V codes, D width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models import checkpoint as files
from harness.models.captions import Captions, WordFeatures
from harness.models.kv_cache import KVCache, Prefix
from harness.models.trunk import Attend, Trunk, TrunkSpec, axial_rotary
from harness.models.vq import VQ, VQSpec, to_uint8
from harness.records import UserError

log = logging.getLogger(__name__)

Padding = Literal["left", "right"]
"""Side of the prompt on which its padding was in training: left for LlamaGen, right for AR-GRPO."""

SIZES = {
    "B": TrunkSpec(12, 768, 12, 2048),
    "L": TrunkSpec(24, 1024, 16, 2816),
    "XL": TrunkSpec(36, 1280, 20, 3584),
    "XXL": TrunkSpec(48, 1536, 24, 4096),
    "XXXL": TrunkSpec(48, 2560, 40, 6912),
    "1B": TrunkSpec(22, 2048, 32, 5632),
    "3B": TrunkSpec(24, 3200, 32, 8704),
    "7B": TrunkSpec(32, 4096, 32, 11008),
}
RELEASED = {"t2i_XL_stage1_256.pt": 256, "t2i_XL_stage2_512.pt": 512}
"""Pixels a side of the published files, which differ in nothing else that can be seen from
outside.
"""


@dataclass(frozen=True, slots=True)
class GPTSpec:
    """Dimensions of a text-to-image GPT: all but `trunk` and `side` are the same in every published
    one.
    """

    trunk: TrunkSpec
    side: int
    codes: int = 16384
    condition: int = 120
    caption_dim: int = 2048


class Projection(nn.Module):
    """Caption features to embeddings; a row of zeros stays one."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)

    def forward(self, row_PC: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(row_PC), approximate="tanh"))


class CaptionEmbedding(nn.Module):
    def __init__(self, spec: GPTSpec) -> None:
        super().__init__()
        self.cap_proj = Projection(spec.caption_dim, spec.trunk.dim)
        self.register_buffer("uncond_embedding", torch.zeros(spec.condition, spec.caption_dim))

    uncond_embedding: Tensor


class GPT(nn.Module):
    """The transformer; its names are the checkpoint's but for the trunk's, which `from_checkpoint`
    renames.
    """

    def __init__(self, spec: GPTSpec) -> None:
        super().__init__()
        self.spec = spec
        self.cls_embedding = CaptionEmbedding(spec)
        self.tok_embeddings = nn.Embedding(spec.codes, spec.trunk.dim)
        self.trunk = Trunk(spec.trunk)
        self.output = nn.Linear(spec.trunk.dim, spec.codes, bias=False)


class LlamaGen:
    """LlamaGen as the sampler sees it (harness.models.ImageModel).

    Without `collapse` every seen prompt position is fed and cached: the reference that the
    collapsed form is held to.
    """

    def __init__(
        self,
        gpt: GPT,
        vq: VQ,
        captions: Captions,
        *,
        name: str = "llamagen",
        revision: str = "random",
        padding: Padding = "left",
        collapse: bool = True,
        dtype: torch.dtype = torch.float32,
        render_dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        if padding not in ("left", "right"):
            raise UserError(f"model.padding={padding}: choose left (LlamaGen) or right (AR-GRPO)")
        self.name = name
        self.revision = revision
        self.padding = padding
        self.collapse = collapse
        self.dtype = dtype
        self.device = torch.device(device)
        self.gpt = gpt.eval().requires_grad_(False).to(self.device, dtype)
        self.gpt.trunk.fuse()
        self.vq = (
            vq.eval()
            .requires_grad_(False)
            .to(self.device, torch.float32)
            .for_rendering(render_dtype)
        )
        spec = gpt.spec
        self.grid = (spec.side, spec.side)
        self.vocab = spec.codes
        self.dim = spec.trunk.dim
        self.max_context = 2 if collapse else spec.condition
        self._rotary = rotary_table(spec).to(self.device)
        self._captions = captions
        self._prompt = lru_cache(maxsize=256)(self._embed_prompt)

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def codebook(self) -> Tensor:
        return self.vq.quantize.rows()

    @property
    def render_bytes(self) -> int:
        """Working memory of the image decoder for one image."""
        return self.vq.decode_bytes(self.num_tokens)

    def context(self, text: str | None, like: str) -> Tensor:
        prompt_PD, _ = self._prompt(text, like)
        return prompt_PD[-1:].expand(2, -1) if self.collapse else prompt_PD

    @torch.no_grad()
    def prefix(self, text: str | None, like: str) -> Prefix:
        """Keys, values and bias of the prompt's positions before the last, as one entry; none
        without `collapse`.

        Exact but for rounding: a bfloat16 cache rounds the bias by up to 0.016, within what it does
        to everything else.
        """
        prompt_PD, padded = self._prompt(text, like)
        spec = self.gpt.spec.trunk
        count = len(prompt_PD) - 1
        last = -math.inf if padded else 0.0  # nothing but itself sees a padding position
        if not self.collapse:
            nothing = torch.empty(
                (spec.layers, spec.heads, 0, spec.head_dim), dtype=self.dtype, device=self.device
            )
            return Prefix(nothing, nothing, self._tensor([0.0] * count + [last]), 0)
        mean = torch.zeros(
            (spec.layers, spec.heads, 1, spec.head_dim), dtype=self.dtype, device=self.device
        )
        if count:
            still_1P = self._rotary[:1].expand(count, -1, -1).unsqueeze(0)
            self.gpt.trunk(prompt_PD[None, :-1], still_1P, _running_mean(mean))
        return Prefix(
            torch.zeros_like(mean),
            mean,
            self._tensor([math.log(count) if count else -math.inf, last]),
            count,
        )

    def embed(self, token_BW: Tensor, index_BW: Tensor) -> Tensor:
        return self.gpt.tok_embeddings(token_BW)

    def forward(self, x_BWD: Tensor, pos_BW: Tensor, start_B: Tensor, attend: Attend) -> Tensor:
        return self.gpt.trunk(x_BWD, self.rotary(pos_BW, start_B), attend)

    def rotary(self, pos_BW: Tensor, start_B: Tensor) -> Tensor:
        return self._rotary[(pos_BW - start_B.unsqueeze(1) + 1).clamp(0, self.num_tokens)]

    def head(self, hidden: Tensor) -> Tensor:
        return self.gpt.output(hidden).float()

    def cache(self, slots: int, tree_capacity: int = 0) -> KVCache:
        length = self.max_context + self.num_tokens + tree_capacity
        return KVCache(self.gpt.spec.trunk, slots, length, self.dtype, self.device, biased=True)

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Codes [B, N] of images in [-1, 1]."""
        return self.vq.encode(pixels_B3HW.to(self.device, torch.float32))

    def decode(self, token_BN: Tensor) -> Tensor:
        return to_uint8(self.vq.decode(token_BN, self.grid))

    @torch.no_grad()
    def _embed_prompt(self, text: str | None, like: str) -> tuple[Tensor, bool]:
        """Embeddings of what the first image token is predicted from, [P, D], and whether the last
        is padding.

        The null prompt is the learned array at the positions that the real prompt would have.
        """
        said = self._captions(like if text is None else text)
        row_vC = said.row_vC
        last_C = said.last_C
        spec = self.gpt.spec
        count = len(row_vC)
        if not (1 <= count <= spec.condition and row_vC.shape[1] == spec.caption_dim):
            raise UserError(
                f"caption features are {tuple(row_vC.shape)}, the model takes 1 to {spec.condition} rows "
                f"of {spec.caption_dim}: use the text encoder that it was trained with"
            )
        if text is None:
            learned_TC = self.gpt.cls_embedding.uncond_embedding
            row_vC = learned_TC[-count:] if self.padding == "left" else learned_TC[:count]
            last_C = learned_TC[-1]
        padded = self.padding == "right" and count < spec.condition
        row_PC = torch.cat((row_vC, last_C.unsqueeze(0))) if padded else row_vC
        return self.gpt.cls_embedding.cap_proj(row_PC.to(self.device, self.dtype)), padded

    def _tensor(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)


def rotary_table(spec: GPTSpec) -> Tensor:
    """(cos, sin) of a condition position (zero, both) and of the image tokens, [1 + N, d/2, 2]."""
    place = torch.arange(spec.side**2)
    image = axial_rotary(
        torch.stack((place // spec.side, place % spec.side), -1), spec.trunk.head_dim
    )
    return torch.cat((torch.zeros_like(image[:1]), image))


def _running_mean(mean: Tensor) -> Attend:
    """What attention is where all queries and keys are zero; leaves each layer's last mean in
    `mean`.
    """

    def attend(layer: int, _q: Tensor, _k: Tensor, v_BHWd: Tensor) -> Tensor:
        count_W1 = torch.arange(1, v_BHWd.shape[2] + 1, device=v_BHWd.device).unsqueeze(-1)
        seen_BHWd = v_BHWd.to(torch.promote_types(v_BHWd.dtype, torch.float32)).cumsum(2) / count_W1
        mean[layer] = seen_BHWd[0, :, -1:]
        return seen_BHWd.to(v_BHWd.dtype)

    return attend


# ------------------------------------------------------------------ weights


def load(
    name: str,
    size: str | Mapping[str, int],
    image: int,
    captions: Captions,
    *,
    weights: str = "published",
    hub: str | None = None,
    revision: str | None = None,
    file: str | None = None,
    checkpoint: str | None = None,
    tokenizer: Mapping[str, int | Sequence[int]] | None = None,
    tokenizer_hub: str | None = None,
    tokenizer_file: str = "vq_ds16_t2i.pt",
    tokenizer_checkpoint: str | None = None,
    padding: Padding = "left",
    collapse: bool = True,
    dtype: str = "bfloat16",
    render_dtype: str = "float32",
    device: str | torch.device = "cpu",
) -> LlamaGen:
    """A model of `image` pixels a side from published weights, a checkpoint on disk, or random ones
    of full size.

    `size` names a row of the table, or gives dimensions (`layers`, `dim`, `heads`, `hidden`, and
    GPTSpec's) of another model; `tokenizer` likewise differs from `vq_ds16_t2i` by VQSpec's.
    `checkpoint` is the GPT's file, or the folder that has it. Raises UserError, with the remedy,
    for weights that are missing, damaged or of another model.
    """
    vq_spec = _vq_spec(tokenizer or {})
    if image % vq_spec.downsampling:
        raise UserError(f"model.image={image}: must be a multiple of {vq_spec.downsampling}")
    gpt_spec = _gpt_spec(size, image // vq_spec.downsampling, vq_spec.codes)
    with torch.device("meta"):
        gpt = GPT(gpt_spec)
        vq = VQ(vq_spec)
    kind = files.dtype_named(dtype)
    shown = files.dtype_named(render_dtype, "render_dtype")
    if weights == "random":
        sha = "random"
        captions = WordFeatures(gpt_spec.caption_dim, gpt_spec.condition)
        files.randomise(gpt.to(kind), device)
        files.randomise(vq, device)
    elif weights == "published":
        path = _gpt_file(files.locate(hub, revision, [file or "*"], checkpoint), file)
        state = fill_gpt(gpt, path, image)
        if tokenizer_checkpoint is None and _has_tokenizer(state):
            vq_path = path
        else:
            beside = tokenizer_checkpoint or _beside(path, tokenizer_file)
            vq_path = _tokenizer_path(
                tokenizer_hub or hub, None if tokenizer_hub else revision, tokenizer_file, beside
            )
        fill_vq(vq, vq_path)
        sha = files.sha256(files.weight_files(path) + files.weight_files(vq_path))[:12]
    else:
        raise UserError(f"model.weights={weights}: choose published or random")
    log.info("%s: prompts padded on the %s", name, padding)
    return LlamaGen(
        *(gpt, vq, captions),
        name=name,
        revision=sha,
        padding=padding,
        collapse=collapse,
        dtype=kind,
        render_dtype=shown,
        device=device,
    )


def fill_gpt(gpt: GPT, path: Path, image: int) -> dict[str, Tensor]:
    """Put a checkpoint's tensors into a GPT made on the meta device; returns all there were."""
    stage = RELEASED.get(path.name, image)
    if stage != image:
        raise UserError(
            f"{path} is the {stage} px model, this configuration is for {image} px: "
            f"choose model=llamagen_xl_{stage}, or another model.checkpoint"
        )
    state = _read(path)
    table = state.get("freqs_cis")
    needed = gpt.spec.condition + gpt.spec.side**2
    if table is not None and len(table) != needed:
        raise UserError(
            f"{path} was made for {len(table) - gpt.spec.condition} image tokens, this configuration has "
            f"{gpt.spec.side**2} ({image} px): choose the configuration of its resolution"
        )
    _fill(gpt, state, path, ignore=("freqs_cis", "vq_model."))
    return state


def fill_vq(vq: VQ, path: Path) -> None:
    """Put the tensors of a tokenizer's checkpoint, or of one that holds GPT and tokenizer, into a
    VQ.
    """
    state = _read(path)
    if _has_tokenizer(state):
        state = {
            n.removeprefix("vq_model."): t for n, t in state.items() if n.startswith("vq_model.")
        }
    _fill(vq, state, path, ignore=("quantize.codebook_used",))


def _gpt_spec(size: str | Mapping[str, int], side: int, codes: int) -> GPTSpec:
    if isinstance(size, str):
        if size not in SIZES:
            raise UserError(f"model.size={size}: choose from {', '.join(SIZES)}")
        return GPTSpec(SIZES[size], side, codes)
    given = dict(size)
    own = {key: given.pop(key) for key in ("condition", "caption_dim") if key in given}
    try:
        return GPTSpec(TrunkSpec(**given), side, codes, **own)
    except TypeError as error:
        raise UserError(
            f"model.size={dict(size)}: {error}; give layers, dim, heads and hidden"
        ) from None


def _vq_spec(sizes: Mapping[str, int | Sequence[int]]) -> VQSpec:
    given: dict[str, Any] = {
        key: tuple(v) if isinstance(v, Sequence) else v for key, v in sizes.items()
    }
    try:
        return replace(VQSpec(), **given)
    except TypeError as error:
        raise UserError(f"model.tokenizer={dict(sizes)}: {error}") from None


def _gpt_file(found: Path, file: str | None) -> Path:
    """The GPT's weights in what was found: a file is taken as it is, a folder by the file's name
    where it has one.
    """
    if found.is_dir() and file is not None:
        found = found / file
        if not found.is_file():
            raise UserError(
                f"{found.parent} has no {file}: set model.checkpoint to the file, or model.file to its name"
            )
    return found


def _beside(path: Path, name: str) -> str | None:
    file = (path if path.is_dir() else path.parent) / name
    return str(file) if file.is_file() else None


def _tokenizer_path(
    hub: str | None, revision: str | None, file: str, checkpoint: str | None
) -> Path:
    try:
        found = files.locate(hub, revision, [file], checkpoint)
    except UserError as error:
        raise UserError(
            f"tokenizer: {error}".replace("model.checkpoint", "model.tokenizer_checkpoint")
        ) from None
    return found / file if found.is_dir() else found


def _has_tokenizer(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("vq_model.") for name in state)


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors by name, whichever training format they were saved in (under `model`, `module` or
    `state_dict`).
    """
    if path.is_dir() or path.suffix in (".safetensors", ".json"):
        return files.read_weights(path)
    content = files.unpickle(path)
    inner = next(
        (content[key] for key in ("model", "module", "state_dict") if key in content), content
    )
    if not isinstance(inner, dict) or not all(
        isinstance(value, Tensor) for value in inner.values()
    ):
        raise UserError(
            f"{path} has no tensors by name, neither on top nor under model, module or state_dict"
        )
    return inner


def _fill(
    module: nn.Module, state: Mapping[str, Tensor], path: Path, ignore: tuple[str, ...]
) -> None:
    """Fill all of `module`; what it does not know is reported, unless its name begins with one of
    `ignore`.
    """
    named = {
        _own_name(name): tensor for name, tensor in state.items() if not name.startswith(ignore)
    }
    wanted = module.state_dict().keys()
    missing = sorted(wanted - named.keys())
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of {len(wanted)} tensors, the first is {missing[0].removeprefix('trunk.')}: "
            "it is the checkpoint of another model"
        )
    files.report_unknown(sorted(named.keys() - wanted), path)
    files.fill(module, {name: named[name] for name in wanted}, path)


def _own_name(name: str) -> str:
    name = name.removeprefix("gpt_model.")
    return f"trunk.{name}" if name.startswith(("layers.", "norm.")) else name
