"""LlamaGen's own code, from a checkout of FoundationVision/LlamaGen: a rival that we did not write.

Nothing of it is shipped. Its weights are random; its dimensions are those of our model, its prompts
as many positions as ours have words, padded on the left to 120.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import torch

from harness.engine.guidance import Sampling
from harness.models.llamagen import LlamaGen
from harness.records import UserError

POSITIONS = 120
"""Prompt positions of its text-to-image models."""


class UpstreamLlamaGen:
    """Upstream's `generate` for one image of each text; called with the number of a block.

    Raises UserError for a path that is no such checkout.
    """

    def __init__(
        self, checkout: Path, model: LlamaGen, sampling: Sampling, texts: tuple[str, ...]
    ) -> None:
        if not (checkout / "autoregressive" / "models" / "generate.py").is_file():
            raise UserError(f"--peer {checkout}: this is no checkout of FoundationVision/LlamaGen")
        if str(checkout) not in sys.path:
            sys.path.insert(0, str(checkout))
        networks = import_module("autoregressive.models.gpt")
        self._generate = import_module("autoregressive.models.generate").generate
        self._sampling = sampling
        self._tokens = model.num_tokens

        spec = model.gpt.spec
        arguments = networks.ModelArgs(
            dim=spec.trunk.dim,
            n_layer=spec.trunk.layers,
            n_head=spec.trunk.heads,
            caption_dim=spec.caption_dim,
            vocab_size=spec.codes,
            cls_token_num=POSITIONS,
            block_size=model.num_tokens,
            model_type="t2i",
        )
        with torch.device(model.device):
            network = networks.Transformer(arguments)
        self._network = network.to(model.device, model.dtype).eval()

        mask_BT = torch.zeros(len(texts), POSITIONS, device=model.device)
        for row, text in enumerate(texts):
            mask_BT[row, -len(model.captions(text).row_vC) :] = 1
        shape = (len(texts), POSITIONS, spec.caption_dim)
        feature_BTC = torch.randn(shape, device=model.device, dtype=model.dtype)
        self._feature_BTC = feature_BTC * mask_BT.unsqueeze(-1).to(model.dtype)
        self._mask_BT = mask_BT

    def __call__(self, _block: int = 0) -> torch.Tensor:
        """Draw all tokens of all images, [B, N]."""
        tokens: torch.Tensor = self._generate(
            self._network,
            self._feature_BTC,
            self._tokens,
            self._mask_BT,
            cfg_scale=self._sampling.scale,
            temperature=self._sampling.temperature,
            top_k=self._sampling.top_k,
            top_p=self._sampling.top_p,
            sample_logits=True,
        )
        return tokens
