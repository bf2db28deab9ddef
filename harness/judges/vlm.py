"""A chat with any OpenAI-compatible vision endpoint.

These are GPT models, and open ones served by vLLM, SGLang and the like. What their replies say is
read in `replies`.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from PIL import Image as Pillow

from harness.engine.memory_need import takes_nothing
from harness.engine.rendering import Image
from harness.judges.replies import CUT_OFF, EMPTY, is_completion, read_words, read_yes
from harness.judges.self_test import expect_sight
from harness.judges.verifier import HELPFUL, AnswerForm, Shown, list_pictures
from harness.records import (
    Answer,
    Count,
    Natural,
    NotNegative,
    Positive,
    UserError,
    clean_text,
    one_line,
)

log = logging.getLogger(__name__)

REFUSED = (401, 403, 404)
"""Statuses that another attempt cannot mend: wrong key, wrong model, wrong address."""
FILTERED = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")
"""What the body of status 400 names where a service refuses the question itself."""
YES_TOKENS = 4
"""Tokens of a reply that begins with yes or no."""
TEST_RETRIES = 2
"""Further attempts, at most, at a question of the self-test: nothing is lost by stopping there."""

Body = dict[str, Any]
"""A request or an answer of the chat-completions interface."""


class Endpoint:
    """Answer questions about images by chat completions, several at a time.

    `base_url` (".../v1") and `model` default to VLM_BASE_URL and VLM_MODEL. The key is VLM_API_KEY,
    if set, and is never written anywhere. Pictures are sent as `picture` ("jpeg" or "png").

    A question that reaches nobody, or gets an empty reply, is asked again up to `retries` times;
    then its `Answer` says why there is none. Pauses between attempts double; they are as long as
    the server asks for, but never longer than `longest_pause_s`. Raises UserError if nothing can
    be answered any more: there is no endpoint, it does not accept the key or know the model, or
    `give_up_after` questions in a row reached nobody (null: never).

    With `self_test`, two pictures whose answers are known are shown to it before a run.
    """

    def __init__(
        self,
        base_url: str | None = None,
        model: str | None = None,
        *,
        temperature: NotNegative | None = 0.0,
        logprobs: bool = True,
        max_tokens: Count | None = 200,
        picture: str = "jpeg",
        needs_key: bool = False,
        timeout_s: Positive = 60.0,
        retries: Natural = 2,
        backoff_s: NotNegative = 1.0,
        longest_pause_s: NotNegative = 60.0,
        concurrency: Count = 8,
        give_up_after: Count | None = 20,
        self_test: bool = True,
    ) -> None:
        self._url = (base_url or os.environ.get("VLM_BASE_URL", "")).rstrip("/")
        self._model = model or os.environ.get("VLM_MODEL", "")
        _expect_endpoint(self._url, self._model)
        if picture not in ("jpeg", "png"):
            raise UserError(f"vision endpoint: picture={picture!r}: choose jpeg or png")
        if give_up_after is not None and give_up_after < 1:
            raise UserError(
                f"vision endpoint: give_up_after={give_up_after}: give a number of questions from "
                "1 up, or null"
            )
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._picture = picture
        self._needs_key = needs_key
        self._timeout_s = timeout_s
        self._retries = retries
        self._backoff_s = backoff_s
        self._longest_pause_s = longest_pause_s
        self._concurrency = concurrency
        self._self_test = self_test
        self._tested: set[AnswerForm] = set()
        self._dialect = _Dialect(logprobs=logprobs)
        self._outage = _Outage(give_up_after)
        self.id = f"vlm-{self._model}" + (f"-t{temperature}" if temperature != 0 else "")
        self.tokens: Sequence[int] = ()
        self.served: Sequence[str] = ()

    memory_need = takes_nothing  # it runs elsewhere

    def ready(self, form: AnswerForm = "reply") -> None:
        """Test, once, that it can be asked for answers of a form.

        Raises UserError if a key is needed and none is set, and if it fails the self-test.
        """
        if self._needs_key and not os.environ.get("VLM_API_KEY"):
            raise UserError(
                f"{self.id} at {self._url} needs a key: set VLM_API_KEY in the environment"
            )
        if not self._self_test or form in self._tested:
            return
        ask = self._reply if form == "reply" else self._yes
        retries = min(self._retries, TEST_RETRIES)
        expect_sight(f"{self.id} at {self._url}", partial(ask, system=HELPFUL, retries=retries))
        self._tested.add(form)

    def reply(
        self, questions: Sequence[str], images: Sequence[Shown], system: str = HELPFUL
    ) -> list[Answer]:
        """Answer each question about its image in words."""
        return self._reply(questions, images, system, self._retries)

    def yes(self, questions: Sequence[str], images: Sequence[Shown]) -> list[Answer]:
        """Answer each question by the probability of yes, in any spelling, at the answer's place.

        It is 1 for yes and 0 for no without probabilities: some servers give none.
        """
        return self._yes(questions, images, HELPFUL, self._retries)

    def _reply(
        self, questions: Sequence[str], images: Sequence[Shown], system: str, retries: int
    ) -> list[Answer]:
        options: Body = {}
        if self._max_tokens is not None:
            options["max_tokens"] = self._max_tokens
        return self._ask_all(questions, images, options, system, read_words, retries)

    def _yes(
        self, questions: Sequence[str], images: Sequence[Shown], system: str, retries: int
    ) -> list[Answer]:
        options: Body = {"max_tokens": YES_TOKENS, "logprobs": True, "top_logprobs": 20}
        return self._ask_all(questions, images, options, system, read_yes, retries)

    def _ask_all(
        self,
        questions: Sequence[str],
        images: Sequence[Shown],
        options: Body,
        system: str,
        read: Callable[[Body], Answer],
        retries: int,
    ) -> list[Answer]:
        """Return answers in the order of the questions. Raises UserError if nobody is reached."""
        assert len(questions) == len(images)

        def ask(question: str, image: Shown) -> _Exchange:
            body = self._write_body(question, image, options, system)
            exchange = self._ask(body, read, retries)
            self._outage.watch(exchange.answer)
            return exchange

        workers = max(1, min(self._concurrency, len(questions)))
        with ThreadPoolExecutor(workers) as pool:
            exchanges = list(pool.map(ask, questions, images))
        if silence := self._outage.take():
            raise UserError(
                f"{self.id} at {self._url}: {silence.questions} questions in a row reached nobody "
                f"(the last: {silence.reason}); it is asked no more, all images so far are kept: "
                "mend it and run the same command again"
            )
        self.tokens = [_count_tokens(exchange.completion) for exchange in exchanges]
        self.served = [_read_name(exchange.completion) for exchange in exchanges]
        return [exchange.answer for exchange in exchanges]

    def _write_body(self, question: str, image: Shown, options: Body, system: str) -> Body:
        content: list[Body] = [{"type": "text", "text": question}]
        for picture in list_pictures(image):
            address = _data_address(picture, self._picture)
            content.append({"type": "image_url", "image_url": {"url": address}})
        messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        body: Body = {"model": self._model, "messages": messages, **options}
        if self._temperature is not None:
            body["temperature"] = self._temperature
        return body

    # ------------------------------------------------------------------ one question

    def _ask(self, body: Body, read: Callable[[Body], Answer], retries: int) -> _Exchange:
        """Ask until there is an answer, or one that another attempt would not change."""
        exchange = _Exchange({}, Answer("unreachable", reason="not asked: nobody was reached"))
        for attempt in range(retries + 1):
            if attempt:
                self._outage.wait(self._choose_pause_s(attempt, exchange.asked_s))
            if self._outage.is_over:
                break
            exchange = self._try_once(body, read)
            answer = exchange.answer
            is_empty = answer.reason == EMPTY
            if answer.kind != "unreachable" and not is_empty:
                break
            log.warning(
                "%s, attempt %d of %d: %s", self.id, attempt + 1, retries + 1, answer.reason
            )
        return exchange

    def _try_once(self, body: Body, read: Callable[[Body], Answer]) -> _Exchange:
        """Ask once; a reply of yes or no may be as long as others where reasoning needs that."""
        lengthened = self._lengthen(body)
        if self._dialect.reasons:
            return self._exchange(lengthened, read)
        exchange = self._exchange(body, read)
        if exchange.answer.reason != CUT_OFF or lengthened == body:
            return exchange
        if self._dialect.learn_reasons():
            log.warning("%s reasons before it answers: max_tokens=%s", self.id, self._max_tokens)
        return self._exchange(lengthened, read)

    def _lengthen(self, body: Body) -> Body:
        """Give a reply of yes or no the limit of other replies; None is the service's own."""
        if body.get("max_tokens") != YES_TOKENS:
            return body
        longer = {name: value for name, value in body.items() if name != "max_tokens"}
        return longer if self._max_tokens is None else {**longer, "max_tokens": self._max_tokens}

    def _exchange(self, body: Body, read: Callable[[Body], Answer]) -> _Exchange:
        """Send a request and read what comes. Raises UserError where no attempt can succeed."""
        try:
            completion = self._post_in_dialect(body)
        except _StatusError as error:
            if error.code in REFUSED:
                raise self._refused(error) from None
            if error.code in (400, 422) and any(name in error.said for name in FILTERED):
                return _Exchange({}, Answer("refused", reason=str(error)))
            return _Exchange({}, Answer("unreachable", reason=str(error)), error.asked_s)
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            reason = one_line(f"{type(error).__name__}: {error}")
            return _Exchange({}, Answer("unreachable", reason=reason))
        return _Exchange(completion, read(completion))

    def _post_in_dialect(self, body: Body) -> Body:
        """Post a request; where status 400 refuses how it is put, put it otherwise."""
        sent = self._dialect.spell(body)
        while True:
            try:
                completion = self._post(sent)
            except _StatusError as error:
                respelled = self._respell(sent, error) if error.code == 400 else None
                if respelled is None:
                    raise
                sent = respelled
                continue
            if "logprobs" in body and "logprobs" not in sent and self._dialect.learn_no_logprobs():
                log.warning("%s gives no probabilities: yes counts 1, no counts 0", self.id)
            return completion

    def _respell(self, sent: Body, error: _StatusError) -> Body | None:
        """Put a refused request otherwise; None if nothing is left to try."""
        if "max_completion_tokens" in error.said and "max_tokens" in sent:
            self._dialect.learn_limit("max_completion_tokens")
            return self._dialect.spell(sent)
        if "temperature" in error.said and "temperature" in sent:
            raise UserError(
                f"{self.id} at {self._url} does not take temperature={sent['temperature']} "
                f"({error}): set the chat's temperature=null for the service's own"
            )
        if "logprobs" in sent:  # they may be the trouble
            return _without_logprobs(sent)
        return None

    def _post(self, body: Body) -> Body:
        """Post a request. Raises _StatusError, and ValueError for what is no completion."""
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}/chat/completions", data, headers)
        key = os.environ.get("VLM_API_KEY", "")
        if key:
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                content = _hide(key, response.read())
        except urllib.error.HTTPError as error:
            raise _StatusError(error, _hide(key, _read_error(error))) from None
        return _parse_completion(content)

    def _choose_pause_s(self, attempt: int, asked_s: float) -> float:
        doubled_s = self._backoff_s * 2 ** (attempt - 1)
        return min(max(doubled_s, asked_s), self._longest_pause_s)

    def _refused(self, error: _StatusError) -> UserError:
        return UserError(
            f"vision endpoint {self._url} refuses model {self._model!r} "
            f"({error.code} {error.phrase}): "
            "check VLM_API_KEY, the model's name and the address"
        )


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


# --- one exchange with a server -------------------------------------------------------------------


class _Exchange(NamedTuple):
    """What came back to a question, and how long the server asks to be left alone."""

    completion: Body  # {} if there is none
    answer: Answer
    asked_s: float = 0.0


class _StatusError(Exception):
    """An error status, and the beginning of what came with it."""

    def __init__(self, error: urllib.error.HTTPError, said: bytes) -> None:
        self.code = error.code
        self.phrase = error.reason
        self.said = clean_text(said.decode(errors="replace"))
        self.asked_s = _retry_after_s(error.headers.get("Retry-After"))
        shown = one_line(self.said)[:160]
        super().__init__(f"status {self.code}" + (f", {shown}" if shown.strip("{}[] ") else ""))


class _Dialect:
    """How an endpoint wants requests to be put: learned from what it refuses, and kept.

    Each `learn` returns whether that is new. Threads share it.
    """

    def __init__(self, *, logprobs: bool) -> None:
        self._limit = "max_tokens"
        self._logprobs = logprobs
        self._lock = threading.Lock()
        self.reasons = False  # before it answers

    def spell(self, body: Body) -> Body:
        """Put a request as the endpoint wants it."""
        spelled = dict(body) if self._logprobs else _without_logprobs(body)
        if "max_tokens" in spelled and self._limit != "max_tokens":
            spelled[self._limit] = spelled.pop("max_tokens")
        return spelled

    def learn_limit(self, name: str) -> None:
        """Learn the name of the limit of tokens."""
        self._limit = name

    def learn_no_logprobs(self) -> bool:
        """Learn that it gives no log-probabilities."""
        with self._lock:
            is_new = self._logprobs
            self._logprobs = False
        return is_new

    def learn_reasons(self) -> bool:
        """Learn that it reasons before it answers."""
        with self._lock:
            is_new = not self.reasons
            self.reasons = True
        return is_new


class _Silence(NamedTuple):
    """Questions in a row that reached nobody, and why the last did not."""

    questions: int
    reason: str


class _Outage:
    """Watch for an endpoint that has gone: so many questions in a row that reached nobody.

    `limit` None never takes it for gone. Threads share it.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._count = 0
        self._reason = ""
        self._over = threading.Event()
        self._lock = threading.Lock()

    @property
    def is_over(self) -> bool:
        """Tell whether the limit was reached: nothing is asked any more."""
        return self._over.is_set()

    def wait(self, seconds: float) -> None:
        """Wait between two attempts, or until the limit is reached."""
        self._over.wait(seconds)

    def watch(self, answer: Answer) -> None:
        """Count a question that reached nobody; any other ends the row."""
        with self._lock:
            if self.is_over:
                return
            if answer.kind != "unreachable":
                self._count = 0
                return
            self._count += 1
            self._reason = answer.reason
            if self._limit is not None and self._count >= self._limit:
                self._over.set()

    def take(self) -> _Silence | None:
        """Return the row of questions if the limit was reached, and begin anew."""
        with self._lock:
            if not self.is_over:
                return None
            silence = _Silence(self._count, self._reason)
            self._count = 0
            self._over.clear()
            return silence


def _hide(key: str, content: bytes) -> bytes:
    """Hide the key: some servers echo what they got."""
    return content.replace(key.encode(), b"[key]") if key else content


def _read_error(error: urllib.error.HTTPError) -> bytes:
    """Read the beginning of what came with an error status; nothing if that breaks off, too."""
    try:
        return error.read(4000)
    except (OSError, HTTPException):
        return b""


def _parse_completion(content: bytes) -> Body:
    """Parse a completion. Raises ValueError for all else, with what it says."""
    try:
        body = json.loads(content)
    except ValueError:
        shown = one_line(clean_text(content[:400].decode(errors="replace")))[:120]
        raise ValueError(f"the answer is no JSON: {shown!r}") from None
    if not isinstance(body, dict) or not is_completion(body):
        shown = one_line(clean_text(json.dumps(body)))[:120]
        raise ValueError(f"the answer is no completion: {shown}")
    return body


def _count_tokens(completion: Body) -> int:
    usage = completion.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return max(0, total) if isinstance(total, int) else 0


def _read_name(completion: Body) -> str:
    """Read who answered, as the service says."""
    return clean_text(str(completion.get("model") or ""))
