"""A chat with any OpenAI-compatible vision endpoint: GPT models, or open ones behind vLLM, SGLang
and their kin.
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

from harness.engine.rendering import Image
from harness.judges.verifier import HELPFUL
from harness.records import UserError, one_line

log = logging.getLogger(__name__)

REFUSED = (401, 403, 404)
"""Statuses that another attempt cannot mend: wrong key, wrong model, wrong address."""


class Endpoint:
    """Questions about images, sent as chat completions, several at a time.

    `base_url` (".../v1") and `model` default to VLM_BASE_URL and VLM_MODEL; the key is VLM_API_KEY,
    if set, and is never written anywhere. A question that still fails after `retries` more attempts
    (time-out, overload, refusal, garbage) is answered with None, so that the method's fallback is
    recorded beside its image. The pauses between attempts double, are as long as the server asks,
    and never longer than `longest_pause_s`. Pictures are sent as `picture` ("jpeg" or "png").
    Raises UserError where nothing can ever be answered: no endpoint, or one that does not take the
    key or know the model.
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
        if not self._url.startswith(("http://", "https://")) or not self._model:
            raise UserError(
                f"vision endpoint: base_url={self._url or None}, model={self._model or None}; "
                "set both, or VLM_BASE_URL and VLM_MODEL (and VLM_API_KEY) in the environment"
            )
        parts = urlsplit(self._url)
        if "@" in parts.netloc or parts.query:
            raise UserError(
                f"vision endpoint: keep the key out of the address {parts.hostname}, it goes to VLM_API_KEY"
            )
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

    def ready(self) -> None:
        """Raises UserError where a key is needed and none is set."""
        if self._needs_key and not os.environ.get("VLM_API_KEY"):
            raise UserError(
                f"{self.id} at {self._url} needs a key: set VLM_API_KEY in the environment"
            )

    def reply(
        self, questions: Sequence[str], images: Sequence[Image], system: str = HELPFUL
    ) -> list[str | None]:
        """The text of each answer."""
        extra = {} if self._max_tokens is None else {"max_tokens": self._max_tokens}
        return [text_of(answer) for answer in self._ask_all(questions, images, extra, system)]

    def yes(self, questions: Sequence[str], images: Sequence[Image]) -> list[float | None]:
        """P(yes) + P(Yes) of the first token; where the server gives no probabilities, 1 for yes
        and 0 for no.
        """
        extra: dict[str, Any] = {"max_tokens": 4}
        if self._logprobs:
            extra |= {"logprobs": True, "top_logprobs": 20}
        return [yes_of(answer) for answer in self._ask_all(questions, images, extra, HELPFUL)]

    def _ask_all(
        self,
        questions: Sequence[str],
        images: Sequence[Image],
        extra: Mapping[str, Any],
        system: str,
    ) -> list[dict[str, Any]]:
        """Completions in the order of the questions; an empty one where there was none."""

        assert len(questions) == len(images)

        def ask(question: str, image: Image) -> dict[str, Any]:
            return self._persist(self._body(question, image, extra, system))

        with ThreadPoolExecutor(max(1, min(self._concurrency, len(questions)))) as pool:
            answers = list(pool.map(ask, questions, images))
        self.tokens = [_tokens(answer) for answer in answers]
        self.served = [str(answer.get("model") or "") for answer in answers]
        return answers

    def _body(
        self, question: str, image: Image, extra: Mapping[str, Any], system: str
    ) -> dict[str, Any]:
        content = [
            {"type": "text", "text": question},
            {"type": "image_url", "image_url": {"url": _data_address(image, self._picture)}},
        ]
        messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        body: dict[str, Any] = {"model": self._model, "messages": messages, **extra}
        if self._temperature is not None:
            body["temperature"] = self._temperature
        return body

    def _persist(self, body: dict[str, Any]) -> dict[str, Any]:
        """One completion, tried again with growing pauses; without log-probabilities where they may
        be the trouble.
        """
        asked_s = 0.0  # the pause that the server wants
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(
                    min(max(self._backoff_s * 2 ** (attempt - 1), asked_s), self._longest_pause_s)
                )
            try:
                answer = self._post(body)
                if not isinstance(answer, dict) or text_of(answer) is None:
                    raise ValueError("the answer holds no text")
                return answer
            except urllib.error.HTTPError as error:
                if error.code in REFUSED:
                    raise UserError(
                        f"vision endpoint {self._url} refuses model {self._model!r} ({error.code} {error.reason}): "
                        "check VLM_API_KEY, the model's name and the address"
                    ) from None
                if error.code == 400:
                    body = {name: value for name, value in body.items() if "logprobs" not in name}
                why = f"status {error.code}"
                asked_s = _retry_after_s(error.headers.get("Retry-After"))
            except (OSError, HTTPException, ValueError) as error:
                why = one_line(f"{type(error).__name__}: {error}")
            log.warning("%s, attempt %d of %d: %s", self.id, attempt + 1, self._retries + 1, why)
        return {}

    def _post(self, body: Mapping[str, Any]) -> Any:
        url = f"{self._url}/chat/completions"
        request = urllib.request.Request(
            url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        key = os.environ.get("VLM_API_KEY", "")
        if key:
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
            said = response.read()
        return json.loads(
            said.replace(key.encode(), b"[key]") if key else said
        )  # some servers echo what they got


def _data_address(image: Image, kind: str) -> str:
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, format=kind.upper())
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _retry_after_s(value: str | None) -> float:
    """Seconds that a Retry-After header asks for; 0 where it names none (its other form is a
    date).
    """
    try:
        seconds = float(value or 0)
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds < math.inf else 0.0


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    return first if isinstance(first, dict) else {}


def text_of(answer: Mapping[str, Any]) -> str | None:
    """What a completion says, if only why it refuses; None where it says nothing."""
    message = _choice(answer).get("message")
    if not isinstance(message, dict):
        return None
    said = (message.get("content"), message.get("refusal"))
    return next((text for text in said if isinstance(text, str)), None)


def yes_of(answer: Mapping[str, Any]) -> float | None:
    """The probability of yes in a completion, from its log-probabilities if it has them; None for
    anything else.
    """
    chances = _first_token(answer)
    if chances:
        known = {word: chance for word, chance in chances.items() if word.lower() in ("yes", "no")}
        return min(1.0, sum(known.get(word, 0.0) for word in ("yes", "Yes"))) if known else None
    said = (text_of(answer) or "").strip().rstrip(".!").lower()
    return {"yes": 1.0, "no": 0.0}.get(said)


def _first_token(answer: Mapping[str, Any]) -> dict[str, float]:
    """Probabilities of the likeliest first tokens, by word; empty where the server does not say."""
    chances: dict[str, float] = {}
    try:
        for entry in _choice(answer)["logprobs"]["content"][0]["top_logprobs"]:
            word = str(entry["token"]).strip()
            chances[word] = chances.get(word, 0.0) + math.exp(min(0.0, float(entry["logprob"])))
    except (KeyError, IndexError, TypeError, ValueError):
        return {}
    return chances


def _tokens(answer: Mapping[str, Any]) -> int:
    usage = answer.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) else 0
