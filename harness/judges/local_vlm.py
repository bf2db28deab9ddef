"""A chat with a local vision-language model of transformers, such as Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.download import prepare_hub
from harness.engine.memory_need import PREFILL_COPIES, SamplerShape, count_weights
from harness.judges.replies import CUT_OFF, EMPTY, without_reasoning
from harness.judges.self_test import expect_sight
from harness.judges.verifier import HELPFUL, AnswerForm, Shown, list_pictures
from harness.models import ImageModel
from harness.models.checkpoint import content_of
from harness.models.devices import device_named
from harness.records import Answer, Count, MemoryPart, UserError, clean_text, one_line

if TYPE_CHECKING:
    from torch import Tensor


QUESTION_POSITIONS = 1024
"""Positions of a question with its picture that memory is declared for."""
LOGIT_COPIES = 3
"""Copies, in float32, of the logits at all positions of a question."""


class LocalVLM:
    """Answer questions about images, greedily and one by one.

    An answer therefore does not depend on what else is in the batch. `model` is a hub id or a
    folder, pinned by `revision`; a verifier, a reward and a judge of the same model share it. The
    weights are loaded when the first question comes. With `self_test` these are two about pictures
    whose answers are known, before a run. Raises UserError if the model cannot be loaded, or cannot
    answer yes.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        *,
        device: str = "auto",
        dtype: str = "bfloat16",
        max_new_tokens: Count = 96,
        self_test: bool = True,
    ) -> None:
        self._processor, commit = _load_processor(model, revision)
        self._device_name = device
        self._weights = (model, revision, str(device_named(device)), dtype)
        self._max_new_tokens = max_new_tokens
        self._self_test = self_test
        self._tested: set[AnswerForm] = set()

        vocabulary = self._processor.tokenizer.get_vocab()
        self._yes_tokens = [vocabulary[word] for word in ("yes", "Yes") if word in vocabulary]
        if not self._yes_tokens:
            raise UserError(
                f"{model}: its tokenizer has no token for yes, so it cannot be a reward"
            )

        name = model.rstrip("/").split("/")[-1]
        folder = Path(model).expanduser()
        pinned = content_of(folder) if folder.is_dir() else commit or revision
        self.id = f"vlm-{name}-{pinned}" if pinned else f"vlm-{name}"
        self.tokens: Sequence[int] = ()
        self.served: Sequence[str] = ()

    @property
    def network(self) -> Any:
        """Return the model's weights, loaded once for all chats of the same model."""
        return _load_network(*self._weights)

    def memory_need(self, _model: ImageModel, _shape: SamplerShape) -> list[MemoryPart]:
        """List its weights, and the memory of one question with its answer."""
        model, revision, _, dtype = self._weights
        weights, position = _count_bytes(model, revision, dtype)
        held = weights if self._weights in _networks else 0
        name = model.rstrip("/").split("/")[-1]
        working = (QUESTION_POSITIONS + self._max_new_tokens) * position
        key = " ".join(map(str, self._weights))
        return [
            MemoryPart(name, weights, held=held, device=self._device_name, key=key),
            MemoryPart(
                f"{name}'s answers", working, device=self._device_name, key=f"answers {key}"
            ),
        ]

    def ready(self, form: AnswerForm = "reply") -> None:
        """Test, once, that it answers in a form. Raises UserError if it fails the self-test."""
        if self._self_test and form not in self._tested:
            expect_sight(self.id, self.reply if form == "reply" else self.yes)
            self._tested.add(form)

    @torch.inference_mode()
    def reply(
        self, questions: Sequence[str], images: Sequence[Shown], system: str = HELPFUL
    ) -> list[Answer]:
        """Answer each question about its image in words."""
        replies: list[Answer] = []
        tokens = []
        for question, image in zip(questions, images, strict=True):
            inputs = self._prepare_inputs(question, image, system)
            prompt_length = inputs["input_ids"].shape[1]
            output = self.network.generate(
                **inputs, do_sample=False, max_new_tokens=self._max_new_tokens
            )[0]
            answer = output[prompt_length:]
            text = self._processor.tokenizer.decode(answer, skip_special_tokens=True)
            replies.append(_read_reply(text))
            tokens.append(len(output))

        self.tokens = tokens
        self.served = [self.id] * len(tokens)
        return replies

    @torch.inference_mode()
    def yes(self, questions: Sequence[str], images: Sequence[Shown]) -> list[Answer]:
        """Answer by P(yes) + P(Yes) of the first answered token, over the whole vocabulary.

        This takes one forward a question.
        """
        values: list[Answer] = []
        tokens = []
        for question, image in zip(questions, images, strict=True):
            inputs = self._prepare_inputs(question, image, HELPFUL)
            logits_V = self.network(**inputs).logits[0, -1]
            values.append(Answer.of(yes_probability(logits_V, self._yes_tokens)))
            tokens.append(inputs["input_ids"].shape[1] + 1)

        self.tokens = tokens
        return values

    def _prepare_inputs(self, question: str, image: Shown, system: str) -> Any:
        """Put a question and what is shown into the model's chat template, on its device."""
        from PIL import Image as Pillow

        pictures = [Pillow.fromarray(picture) for picture in list_pictures(image)]
        content = [{"type": "text", "text": question}, *({"type": "image"} for _ in pictures)]
        messages = [
            {"role": "system", "content": [{"type": "text", "text": system}]},
            {"role": "user", "content": content},
        ]
        text = self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        inputs = self._processor(text=[text], images=pictures, return_tensors="pt")
        network = self.network
        return inputs.to(network.device, network.dtype)


def _read_reply(text: str) -> Answer:
    """Read the words of a reply, without the reasoning before them."""
    raw = clean_text(text)
    words = without_reasoning(raw)
    if words is None:
        return Answer("unreadable", text=raw, reason=CUT_OFF)
    if not words.strip():
        return Answer("unreadable", text=raw, reason=EMPTY)
    return Answer("answered", words, raw)


def yes_probability(logits_V: Tensor, yes: Sequence[int]) -> float:
    """Sum the probabilities of the tokens `yes` under the softmax of the logits."""
    probs_V = logits_V.double().softmax(-1)
    return float(probs_V[list(yes)].sum())


@lru_cache(maxsize=2)
def _load_processor(model: str, revision: str | None) -> tuple[Any, str | None]:
    """Load a processor; also return its commit on the hub, None for a folder."""
    from transformers import AutoConfig, AutoProcessor

    prepare_hub()
    try:
        config = AutoConfig.from_pretrained(model, revision=revision)
        processor = AutoProcessor.from_pretrained(model, revision=revision)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loaded(model, error) from None
    return processor, getattr(config, "_commit_hash", None)


_networks: dict[tuple[str, str | None, str, str], Any] = {}
"""The networks that are loaded, by model, revision, device and type: two at most."""


def _load_network(model: str, revision: str | None, device: str, dtype: str) -> Any:
    """Load a network once; the one that was loaded first goes when a third comes."""
    from transformers import AutoModelForImageTextToText

    key = (model, revision, device, dtype)
    if key in _networks:
        return _networks[key]
    if len(_networks) == 2:
        del _networks[next(iter(_networks))]
    network: Any
    prepare_hub()
    try:
        network = AutoModelForImageTextToText.from_pretrained(
            model, revision=revision, dtype=getattr(torch, dtype)
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loaded(model, error) from None
    _networks[key] = network.to(device).eval()
    return _networks[key]


@lru_cache(maxsize=2)
def _count_bytes(model: str, revision: str | None, dtype: str) -> tuple[int, int]:
    """Count the bytes of a network's weights, and of one position of a question.

    The network is built without memory, from its configuration alone.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    number_type = getattr(torch, dtype)
    prepare_hub()
    try:
        config = AutoConfig.from_pretrained(model, revision=revision)
        with torch.device("meta"):
            network = AutoModelForImageTextToText.from_config(config, dtype=number_type)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loaded(model, error) from None
    text = config.get_text_config()
    cached = 2 * text.num_hidden_layers * text.hidden_size  # at most: heads may share keys
    activations = PREFILL_COPIES * text.hidden_size
    position = (cached + activations) * number_type.itemsize + 4 * LOGIT_COPIES * text.vocab_size
    return count_weights(network), position


def _not_loaded(model: str, error: Exception) -> UserError:
    reason = one_line(error)[:300]
    return UserError(f"vision-language model {model!r} cannot be loaded: {reason}")
