"""Sample with LlamaGen's own code, from a checkout of FoundationVision/LlamaGen that the user has.

Nothing of it is part of this project: its modules are imported from where they lie, its own
`generate` draws the images, and its model gets the weights of ours. A bench that compares with code
of somebody else should run that code.

Shapes: B images, Q rows (the text branches, then, under guidance, the null branches, as its
`generate` stacks them), T condition positions, C feature width, N image tokens, V codes.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from harness.bench.reference import StaticLoop
from harness.engine.guidance import Sampling
from harness.models.llamagen import LlamaGen
from harness.records import UserError, digest, one_line

NETWORK = "autoregressive.models.gpt"
LOOP = "autoregressive.models.generate"
FILES = ("autoregressive/models/gpt.py", "autoregressive/models/generate.py", "utils/drop_path.py")
"""What is imported of a checkout, relative to it."""

CONDITION = 120
"""Condition positions of its text-to-image models, a number in its code."""

CLONE = "git clone https://github.com/FoundationVision/LlamaGen"


@dataclass(frozen=True, slots=True)
class Checkout:
    """LlamaGen's modules, and what identifies them: 12 digits of the sha256 of `FILES`."""

    path: Path
    network: ModuleType
    loop: ModuleType
    version: str

    @classmethod
    def load(cls, path: Path) -> Checkout:
        """Import the modules of a checkout. Raises UserError where they are not, or do not work."""
        missing = [name for name in FILES if not (path / name).is_file()]
        if missing:
            raise UserError(
                f"peer={path} is no checkout of LlamaGen: it has no {', '.join(missing)}; "
                f"give the folder that `{CLONE}` makes"
            )
        if not hasattr(torch.backends.cuda, "sdp_kernel"):
            raise UserError(
                f"peer={path}: its generate calls torch.backends.cuda.sdp_kernel, "
                f"which torch {torch.__version__} does not have: leave peer out"
            )
        try:
            network, loop = _import_from(path.resolve(), NETWORK, LOOP)
        except Exception as error:  # whatever code of somebody else raises when it is imported
            raise UserError(
                f"peer={path} cannot be imported ({type(error).__name__}: {one_line(error)[:200]})"
            ) from error
        content = b"".join((path / name).read_bytes() for name in FILES)
        return cls(path, network, loop, digest(content, 12))

    def expect_model(self, model: Any) -> LlamaGen:
        """Return a model that this code is for. Raises UserError for another one."""
        if not isinstance(model, LlamaGen):
            raise UserError(f"peer={self.path} draws no {model.name}: set model=llamagen_...")
        if model.gpt.spec.condition != CONDITION:
            raise UserError(
                f"peer={self.path} has {CONDITION} condition positions, "
                f"{model.name} has {model.gpt.spec.condition}: leave peer out"
            )
        return model


class UpstreamLlamaGen:
    """LlamaGen's model and its loop, one image for each of `texts`.

    The weights are those of `model`, and so are the prompts, padded as upstream's sampling script
    pads them. Raises UserError for a model that is not LlamaGen's, or that its code cannot be.
    """

    def __init__(
        self, checkout: Checkout, model: Any, sampling: Sampling, texts: Sequence[str]
    ) -> None:
        model = checkout.expect_model(model)
        self._loop = checkout.loop
        self._tokens = model.num_tokens
        self._net = _copy_network(checkout, model)
        self._feature_BTC, self._is_real_BT = _pad_prompts(model, texts)
        self._options: dict[str, Any] = {
            "cfg_scale": sampling.scale,
            "cfg_interval": sampling.interval,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "sample_logits": sampling.temperature > 0,
        }

    @classmethod
    def count_bytes(cls, model: Any, sampling: Sampling, texts: Sequence[str]) -> int:
        """Count the bytes that it takes: weights made in float32, and what our loop takes."""
        weights = 4 * sum(tensor.numel() for tensor in model.gpt.parameters())
        return weights + StaticLoop.count_bytes(model, sampling, texts)

    def __call__(self, _block: int = 0) -> Tensor:
        """Draw all images; return their tokens, [B, N]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the way it chooses its attention
            drawn: Tensor = self._loop.generate(
                self._net,
                self._feature_BTC,
                self._tokens,
                self._is_real_BT,
                **self._options,
            )
        return drawn

    def replay(self, token_BN: Tensor) -> Tensor:
        """Let its loop draw the given tokens; return the logits of the last step, [Q, V].

        Only for this its function that draws a token is replaced.
        """
        columns = iter(token_BN.T.unsqueeze(-1))
        last: list[Tensor] = []

        def give_token(logits: Tensor, **_options: object) -> tuple[Tensor, Tensor]:
            return next(columns), logits

        def keep_logits(_module: object, _inputs: object, outputs: tuple[Tensor, object]) -> None:
            last[:] = [outputs[0][:, -1]]

        hook = self._net.register_forward_hook(keep_logits)
        own_function = self._loop.sample
        self._loop.sample = give_token  # type: ignore[attr-defined]
        try:
            self()
        finally:
            self._loop.sample = own_function  # type: ignore[attr-defined]
            hook.remove()
        return last[0]


def _copy_network(checkout: Checkout, model: LlamaGen) -> Any:
    """Make upstream's model of the same dimensions and weights."""
    spec = model.gpt.spec
    usual = int(2 * 4 * spec.trunk.dim / 3)  # the hidden width before it is rounded up
    arguments = checkout.network.ModelArgs(
        dim=spec.trunk.dim,
        n_layer=spec.trunk.layers,
        n_head=spec.trunk.heads,
        multiple_of=spec.trunk.hidden,
        ffn_dim_multiplier=min(1.0, spec.trunk.hidden / usual),
        norm_eps=spec.trunk.norm_eps,
        vocab_size=spec.codes,
        block_size=spec.side**2,
        cls_token_num=spec.condition,
        caption_dim=spec.caption_dim,
        model_type="t2i",
    )
    net = checkout.network.Transformer(arguments).eval().requires_grad_(False)
    state = {}
    for name, tensor in model.gpt.state_dict().items():
        state[name.removeprefix("trunk.")] = tensor.to_dense() if tensor.is_mkldnn else tensor
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"peer={checkout.path}: its model does not take the weights of {model.name} "
            f"({one_line(error)[:200]}): it is another version of LlamaGen"
        ) from None
    return net.to(model.device, model.dtype)


def _pad_prompts(model: LlamaGen, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Lay the captions' features out as upstream's script does: [B, T, C], and where they are."""
    spec = model.gpt.spec
    shape = (len(texts), spec.condition)
    feature_BTC = torch.zeros((*shape, spec.caption_dim))
    is_real_BT = torch.zeros(shape)
    for b, text in enumerate(texts):
        row_vC = model.captions(text).row_vC
        count = len(row_vC)
        place = slice(-count, None) if model.padding == "left" else slice(0, count)
        feature_BTC[b, place] = row_vC
        is_real_BT[b, place] = 1
    return feature_BTC.to(model.device, model.dtype), is_real_BT.to(model.device)


def _import_from(folder: Path, *names: str) -> list[ModuleType]:
    """Import modules that lie below a folder, which is on the path for no longer than this."""
    with _first_on_path(folder):
        modules = [importlib.import_module(name) for name in names]
    for module in modules:
        if not Path(module.__file__ or "").is_relative_to(folder):
            raise ImportError(f"{module.__name__} was imported from {module.__file__} before")
    return modules


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
