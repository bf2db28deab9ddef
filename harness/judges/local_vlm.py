"""A chat with a local vision-language model of transformers, of the kind of Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from harness.engine.rendering import Image
from harness.judges.verifier import HELPFUL
from harness.models.checkpoint import device_named
from harness.records import UserError, one_line

if TYPE_CHECKING:
    from torch import Tensor


class LocalVLM:
    """Questions about images, answered greedily and one by one, so that an answer does not depend
    on its company.

    `model` is a hub id or a folder, pinned by `revision`; a verifier, a reward and a judge of the
    same model share it. The weights are loaded when the first question comes. Raises UserError
    where it cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        *,
        device: str = "auto",
        dtype: str = "bfloat16",
        max_new_tokens: int = 96,
    ) -> None:
        self._processor, commit = _load_processor(model, revision)
        self._weights = (model, revision, str(device_named(device)), dtype)
        self._max_new_tokens = max_new_tokens
        vocabulary = self._processor.tokenizer.get_vocab()
        self._yes = [vocabulary[word] for word in ("yes", "Yes") if word in vocabulary]
        if not self._yes:
            raise UserError(
                f"{model}: its tokenizer has no token for yes, so it cannot be a reward"
            )
        pinned = commit or revision
        self.id = f"vlm-{model.rstrip('/').split('/')[-1]}" + (f"-{pinned}" if pinned else "")
        self.tokens: Sequence[int] = ()
        self.served: Sequence[str] = ()

    @property
    def _model(self) -> Any:
        return _load_network(*self._weights)

    def ready(self) -> None:
        """Nothing that the constructor did not see."""

    @torch.inference_mode()
    def reply(
        self, questions: Sequence[str], images: Sequence[Image], system: str = HELPFUL
    ) -> list[str | None]:
        """The greedy answer to each question."""
        replies: list[str | None] = []
        tokens = []
        for question, image in zip(questions, images, strict=True):
            inputs = self._inputs(question, image, system)
            known = inputs["input_ids"].shape[1]
            output = self._model.generate(
                **inputs, do_sample=False, max_new_tokens=self._max_new_tokens
            )[0]
            replies.append(
                self._processor.tokenizer.decode(output[known:], skip_special_tokens=True)
            )
            tokens.append(len(output))
        self.tokens = tokens
        self.served = [self.id] * len(tokens)
        return replies

    @torch.inference_mode()
    def yes(self, questions: Sequence[str], images: Sequence[Image]) -> list[float | None]:
        """P(yes) + P(Yes) of the first answered token over the whole vocabulary, from one forward;
        never None.
        """
        values: list[float | None] = []
        tokens = []
        for question, image in zip(questions, images, strict=True):
            inputs = self._inputs(question, image, HELPFUL)
            values.append(yes_probability(self._model(**inputs).logits[0, -1], self._yes))
            tokens.append(inputs["input_ids"].shape[1] + 1)
        self.tokens = tokens
        return values

    def _inputs(self, question: str, image: Image, system: str) -> Any:
        from PIL import Image as Pillow

        content = [{"type": "text", "text": question}, {"type": "image"}]
        messages = [
            {"role": "system", "content": [{"type": "text", "text": system}]},
            {"role": "user", "content": content},
        ]
        text = self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        inputs = self._processor(text=[text], images=[Pillow.fromarray(image)], return_tensors="pt")
        return inputs.to(self._model.device, self._model.dtype)


def yes_probability(logits_V: Tensor, yes: Sequence[int]) -> float:
    """Mass of the tokens `yes` under the softmax of `logits`."""
    return float(logits_V.double().softmax(-1)[list(yes)].sum())


@lru_cache(maxsize=2)
def _load_processor(model: str, revision: str | None) -> tuple[Any, str | None]:
    """The processor, and the commit on the hub that it is of; None for a folder."""
    from transformers import AutoConfig, AutoProcessor

    try:
        config = AutoConfig.from_pretrained(model, revision=revision)
        return AutoProcessor.from_pretrained(model, revision=revision), getattr(
            config, "_commit_hash", None
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loaded(model, error) from None


@lru_cache(maxsize=2)
def _load_network(model: str, revision: str | None, device: str, dtype: str) -> Any:
    from transformers import AutoModelForImageTextToText

    network: Any
    try:
        network = AutoModelForImageTextToText.from_pretrained(
            model, revision=revision, dtype=getattr(torch, dtype)
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loaded(model, error) from None
    return network.to(device).eval()


def _not_loaded(model: str, error: Exception) -> UserError:
    return UserError(f"vision-language model {model!r} cannot be loaded: {one_line(error)[:300]}")
