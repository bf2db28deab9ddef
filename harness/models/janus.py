"""Janus-Pro's text-to-image half: language model, image head, aligner and tokenizer.

The understanding tower and the language head are never loaded. The language model is the shared
trunk. An image token enters it as an aligned code vector, a row of a table that is computed once;
positions are ordinary running ones, so a branch may have any prompt length.

Shapes: B rows, W positions, P prompt length, N image tokens, V image vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models import checkpoint as checkpoints
from harness.models.janus_checkpoint import SIZES, JanusSpec, read_spec, read_state
from harness.models.janus_prompt import ROLES, JanusWords, hashed_words, null_ids, read_words
from harness.models.kv_cache import KVCache
from harness.models.linear import Linear
from harness.models.trunk import Attend, Trunk, prepare, running_rotary
from harness.models.vq import VQ, truncate_to_uint8
from harness.models.vq_model import VQModel
from harness.records import Count, UserError


class Janus(VQModel):
    """Janus-Pro as the engine draws it (`harness.models.ImageModel`).

    Weights come from `checkpoint` (a folder or file in the original or the library's layout), else
    from the repository `hub` in the hub's cache; `weights="random"` draws them instead, in full
    size, for work on speed. `size` (1B, 7B) is what the checkpoint must be; None takes any.
    `max_context` is the longest prompt in positions. Raises UserError for a checkpoint that is
    missing, damaged or of another model.
    """

    def __init__(
        self,
        name: str = "janus_pro",
        hub: str | None = None,
        revision: str | None = None,
        files: Sequence[str] = ("*.json", "*.safetensors"),
        checkpoint: str | None = None,
        weights: str = "published",
        size: str | JanusSpec | None = None,
        family: str = "Janus-Pro",
        max_context: Count = 192,
        device: str | torch.device = "cpu",
        dtype: str = "bfloat16",
        render_dtype: str = "float32",
    ) -> None:
        if family not in ROLES:
            raise UserError(f"model.family={family}: known prompt templates are {', '.join(ROLES)}")
        self.name = name
        self._roles = ROLES[family]
        self.device = torch.device(device)
        self.dtype = checkpoints.dtype_named(dtype)

        # 1. Weights: random ones of the stated size, or a checkpoint's.
        expected = _expected_spec(size)
        self._words: JanusWords | None
        if weights == "random":
            self._randomise(expected)
        elif weights == "published":
            self._load(hub, revision, files, checkpoint, expected)
        else:
            raise UserError(f"model.weights={weights}: choose published or random")
        self.net.eval().requires_grad_(False)
        prepare(self.net)
        self.vq = self.net.vq
        self.vq.for_rendering(checkpoints.dtype_named(render_dtype, "render_dtype"))

        # 2. Dimensions, as the engine asks for them.
        self.vocab = self.spec.vq.codes
        self.dim = self.spec.trunk.dim
        self.grid = (self.spec.side, self.spec.side)
        self.max_context = max_context
        most = self.spec.positions - self.num_tokens
        if not 1 <= max_context <= most:
            raise UserError(f"model.max_context={max_context}: 1 to {most} fit")

        # 3. Tables that every forward reads.
        self.net.register_buffer("aligned_VD", self.net.align_all(), persistent=False)
        positions = torch.arange(max_context + self.num_tokens)
        head_dim = self.spec.trunk.head_dim
        self._rotary = running_rotary(positions, head_dim, self.spec.rope_base).to(self.device)

    def _randomise(self, expected: JanusSpec | None) -> None:
        """Draw random weights; the tokenizer's are float32 whatever the model computes in."""
        if expected is None:
            raise UserError(f"model.weights=random needs model.size, one of {', '.join(SIZES)}")
        self.spec = expected
        self.revision = "random"
        self.net = _net_without_memory(expected).to(self.dtype)
        self.net.vq.float()
        checkpoints.randomise(self.net, self.device)
        self._words = hashed_words(expected.words)

    def _load(
        self,
        hub: str | None,
        revision: str | None,
        files: Sequence[str],
        checkpoint: str | None,
        expected: JanusSpec | None,
    ) -> None:
        """Read a checkpoint's dimensions, tensors and tokenizer of words."""
        path = checkpoints.locate(hub, revision, files, checkpoint)
        weights = checkpoints.read_weights(path)
        self.spec = read_spec(path, weights)
        if expected is not None and self.spec != expected:
            raise UserError(
                f"{path} is {self.spec.summary}, not {expected.summary} as model.size says"
            )
        self.net = _net_without_memory(self.spec)
        state = read_state(path, weights, self.net, self.spec.trunk.heads)
        placed = {name: self._place(name, tensor) for name, tensor in state.items()}
        checkpoints.fill(self.net, placed, path)
        self.revision = checkpoints.revision_of(path)
        self._words = read_words(path, self.spec.words)

    def _place(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor on the device; the tokenizer's are float32 whatever the model computes in."""
        dtype = torch.float32 if name.startswith("vq.") else self.dtype
        return tensor.to(self.device, dtype)

    def context(self, text: str | None, like: str) -> Tensor:
        """Embed a prompt's words, [P, D].

        The null prompt has the ids of `like`, all but the first and the last replaced by pad.
        """
        if self._words is None:
            raise UserError(
                f"{self.name}: the checkpoint has no tokenizer.json beside its weights, add it"
            )
        ids = self._words(self._roles, like if text is None else text)
        if len(ids) > self.max_context:
            raise UserError(
                f"a prompt has {len(ids)} positions: set model.max_context to {len(ids)} or more"
            )
        if text is None:
            ids = null_ids(ids, self._words.pad)
        return self.embed_words(ids)

    def embed_words(self, ids: Sequence[int]) -> Tensor:
        """Embed word ids, [P, D]."""
        return self.net.words(torch.tensor(ids, device=self.device))

    def embed(self, token_BW: Tensor, index_BW: Tensor) -> Tensor:
        return F.embedding(token_BW, self.net.aligned_VD)

    def forward(self, x_BWD: Tensor, pos_BW: Tensor, start_B: Tensor, attend: Attend) -> Tensor:
        return self.net.trunk(x_BWD, self._rotary[pos_BW], attend)

    def head(self, hidden: Tensor) -> Tensor:
        return self.net.gen_head(hidden).float()

    def cache(self, slots: int, tree_capacity: int = 0) -> KVCache:
        length = self.max_context + self.num_tokens + tree_capacity
        return KVCache(self.spec.trunk, slots, length, self.dtype, self.device)

    def decode(self, token_BN: Tensor) -> Tensor:
        return truncate_to_uint8(self.vq.decode(token_BN, self.grid))


class JanusNet(nn.Module):
    """The weights.

    Aligner and head are linear, exact GELU, linear, with biases (Janus `projector.py`,
    `vision_head`).
    """

    aligned_VD: Tensor

    def __init__(self, spec: JanusSpec) -> None:
        super().__init__()
        dim = spec.trunk.dim
        codes = spec.vq.codes
        code_dim = spec.vq.code_dim
        self.words = nn.Embedding(spec.words, dim)
        # Not the tokenizer's codebook, and not scaled to unit length.
        self.gen_embed = nn.Embedding(codes, code_dim)
        self.gen_aligner = nn.Sequential(nn.Linear(code_dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.trunk = Trunk(spec.trunk)
        self.gen_head = nn.Sequential(Linear(dim, dim), nn.GELU(), Linear(dim, codes))
        self.vq = VQ(spec.vq)

    @torch.no_grad()
    def align_all(self) -> Tensor:
        """Compute what the trunk is fed for each image token, [V, D]."""
        return self.gen_aligner(self.gen_embed.weight)


def _net_without_memory(spec: JanusSpec) -> JanusNet:
    """The modules on the meta device, to be filled."""
    with torch.device("meta"):
        return JanusNet(spec)


def _expected_spec(size: str | JanusSpec | None) -> JanusSpec | None:
    if not isinstance(size, str):
        return size
    if size not in SIZES:
        raise UserError(f"model.size={size}: known sizes are {', '.join(SIZES)}")
    return SIZES[size]
