"""A chat with any OpenAI-compatible vision endpoint.

These are GPT models, and open ones served by vLLM, SGLang and the like.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from PIL import Image as Pillow

from harness.engine.memory_need import takes_nothing
from harness.engine.rendering import Image
from harness.judges.verifier import HELPFUL
from harness.records import UserError, one_line

log = logging.getLogger(__name__)

REFUSED = (401, 403, 404)
"""Statuses that another attempt cannot mend: wrong key, wrong model, wrong address."""

Body = dict[str, Any]
"""A request or an answer of the chat-completions interface."""


class Endpoint:
    """Answer questions about images by chat completions, several at a time.

    `base_url` (".../v1") and `model` default to VLM_BASE_URL and VLM_MODEL. The key is VLM_API_KEY,
    if set, and is never written anywhere. Pictures are sent as `picture` ("jpeg" or "png").

    A question that still fails after `retries` more attempts (time-out, overload, refusal, garbage)
    is answered with None, so that the method's fallback is recorded beside its image. Pauses
    between attempts double; they are as long as the server asks for, but never longer than
    `longest_pause_s`. Raises UserError if nothing can ever be answered: there is no endpoint, or it
    does not accept the key or know the model.
    """

    def __init__(
        self,
        base_url: str | None = None,
        model: str | None = None,
        *,
        temperature: float | None = 0.0,
        logprobs: bool = True,
        max_tokens: int | None = 200,
        picture: str = "jpeg",
        needs_key: bool = False,
        timeout_s: float = 60.0,
        retries: int = 2,
        backoff_s: float = 1.0,
        longest_pause_s: float = 60.0,
        concurrency: int = 8,
    ) -> None:
        self._url = (base_url or os.environ.get("VLM_BASE_URL", "")).rstrip("/")
        self._model = model or os.environ.get("VLM_MODEL", "")
        _expect_endpoint(self._url, self._model)
        if picture not in ("jpeg", "png"):
            raise UserError(f"vision endpoint: picture={picture!r}: choose jpeg or png")
        self._temperature = temperature
        self._logprobs = logprobs
        self._max_tokens = max_tokens
        self._picture = picture
        self._needs_key = needs_key
        self._timeout_s = timeout_s
        self._retries = retries
        self._backoff_s = backoff_s
        self._longest_pause_s = longest_pause_s
        self._concurrency = concurrency
        self.id = f"vlm-{self._model}" + (f"-t{temperature}" if temperature != 0 else "")
        self.tokens: Sequence[int] = ()
        self.served: Sequence[str] = ()

    memory_need = takes_nothing  # it runs elsewhere

    def ready(self) -> None:
        """Raise UserError if a key is needed and none is set."""
        if self._needs_key and not os.environ.get("VLM_API_KEY"):
            raise UserError(
                f"{self.id} at {self._url} needs a key: set VLM_API_KEY in the environment"
            )

    def reply(
        self, questions: Sequence[str], images: Sequence[Image], system: str = HELPFUL
    ) -> list[str | None]:
        """Answer each question about its image in words."""
        options: Body = {}
        if self._max_tokens is not None:
            options["max_tokens"] = self._max_tokens
        return [read_text(answer) for answer in self._ask_all(questions, images, options, system)]

    def yes(self, questions: Sequence[str], images: Sequence[Image]) -> list[float | None]:
        """Return P(yes) + P(Yes) of the first token; 1 for yes and 0 for no without probabilities.

        Some servers give no probabilities.
        """
        options: Body = {"max_tokens": 4}
        if self._logprobs:
            options["logprobs"] = True
            options["top_logprobs"] = 20
        answers = self._ask_all(questions, images, options, HELPFUL)
        return [read_yes_probability(answer) for answer in answers]

    def _ask_all(
        self, questions: Sequence[str], images: Sequence[Image], options: Body, system: str
    ) -> list[Body]:
        """Return completions in the order of the questions; {} for a question that failed."""
        assert len(questions) == len(images)

        def ask(question: str, image: Image) -> Body:
            return self._complete(self._write_body(question, image, options, system))

        workers = max(1, min(self._concurrency, len(questions)))
        with ThreadPoolExecutor(workers) as pool:
            answers = list(pool.map(ask, questions, images))
        self.tokens = [_count_tokens(answer) for answer in answers]
        self.served = [str(answer.get("model") or "") for answer in answers]
        return answers

    def _write_body(self, question: str, image: Image, options: Body, system: str) -> Body:
        content = [
            {"type": "text", "text": question},
            {"type": "image_url", "image_url": {"url": _data_address(image, self._picture)}},
        ]
        messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        body: Body = {"model": self._model, "messages": messages, **options}
        if self._temperature is not None:
            body["temperature"] = self._temperature
        return body

    def _complete(self, body: Body) -> Body:
        """Ask for a completion until there is one with a text; {} if all attempts fail."""
        asked_s = 0.0  # the pause that the server asks for
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(self._choose_pause_s(attempt, asked_s))
            try:
                return self._post_for_text(body)
            except urllib.error.HTTPError as error:
                if error.code in REFUSED:
                    raise self._refused(error) from None
                if error.code == 400:
                    body = _without_logprobs(body)  # they may be the trouble
                reason = f"status {error.code}"
                asked_s = _retry_after_s(error.headers.get("Retry-After"))
            except (OSError, HTTPException, ValueError) as error:
                reason = one_line(f"{type(error).__name__}: {error}")
            log.warning("%s, attempt %d of %d: %s", self.id, attempt + 1, self._retries + 1, reason)
        return {}

    def _choose_pause_s(self, attempt: int, asked_s: float) -> float:
        doubled_s = self._backoff_s * 2 ** (attempt - 1)
        return min(max(doubled_s, asked_s), self._longest_pause_s)

    def _refused(self, error: urllib.error.HTTPError) -> UserError:
        return UserError(
            f"vision endpoint {self._url} refuses model {self._model!r} "
            f"({error.code} {error.reason}): "
            "check VLM_API_KEY, the model's name and the address"
        )

    def _post_for_text(self, body: Body) -> Body:
        """Post a request. Raises ValueError for an answer without a text."""
        answer = self._post(body)
        if not isinstance(answer, dict) or read_text(answer) is None:
            raise ValueError("the answer holds no text")
        return answer

    def _post(self, body: Body) -> Any:
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}/chat/completions", data, headers)
        key = os.environ.get("VLM_API_KEY", "")
        if key:
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
            content = response.read()
        if key:
            content = content.replace(key.encode(), b"[key]")  # some servers echo what they got
        return json.loads(content)


def _expect_endpoint(url: str, model: str) -> None:
    """Raise UserError without an address or model, and for an address that holds a key."""
    if not url.startswith(("http://", "https://")) or not model:
        raise UserError(
            f"vision endpoint: base_url={url or None}, model={model or None}; "
            "set both, or VLM_BASE_URL and VLM_MODEL (and VLM_API_KEY) in the environment"
        )
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query:
        raise UserError(
            f"vision endpoint: keep the key out of the address {parts.hostname}, "
            "it goes to VLM_API_KEY"
        )


def _data_address(image: Image, kind: str) -> str:
    """Encode an image as a data: address."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, format=kind.upper())
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind};base64,{encoded}"


def _without_logprobs(body: Body) -> Body:
    return {name: value for name, value in body.items() if "logprobs" not in name}


def _retry_after_s(value: str | None) -> float:
    """Read the seconds of a Retry-After header; 0 if it names none (its other form is a date)."""
    try:
        seconds = float(value or 0)
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds < math.inf else 0.0


# --- what a completion says -----------------------------------------------------------------------


def read_text(answer: Mapping[str, Any]) -> str | None:
    """Read the text of a completion, or its reason for refusing; None if there is neither."""
    message = _first_choice(answer).get("message")
    if not isinstance(message, dict):
        return None
    for text in (message.get("content"), message.get("refusal")):
        if isinstance(text, str):
            return text
    return None


def read_yes_probability(answer: Mapping[str, Any]) -> float | None:
    """Read the probability of yes from a completion, by its log-probabilities if it has them.

    None if the completion says neither yes nor no.
    """
    probabilities = _read_first_token(answer)
    if probabilities:
        if not any(word.lower() in ("yes", "no") for word in probabilities):
            return None
        total = sum(probabilities.get(word, 0.0) for word in ("yes", "Yes"))
        return min(1.0, total)
    word = (read_text(answer) or "").strip().rstrip(".!").lower()
    return {"yes": 1.0, "no": 0.0}.get(word)


def _first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    return first if isinstance(first, dict) else {}


def _read_first_token(answer: Mapping[str, Any]) -> dict[str, float]:
    """Read the probabilities of the likeliest first tokens, by word; {} if there are none."""
    probabilities: dict[str, float] = {}
    try:
        for entry in _first_choice(answer)["logprobs"]["content"][0]["top_logprobs"]:
            word = str(entry["token"]).strip()
            probability = math.exp(min(0.0, float(entry["logprob"])))
            probabilities[word] = probabilities.get(word, 0.0) + probability
    except (KeyError, IndexError, TypeError, ValueError):
        return {}
    return probabilities


def _count_tokens(answer: Mapping[str, Any]) -> int:
    usage = answer.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) else 0
