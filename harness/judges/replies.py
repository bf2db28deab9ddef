"""Read what a language model replied: its words without its reasoning, yes or no, a refusal.

A completion is the body of an OpenAI-compatible answer. Servers differ in where they put what: the
dialects that are read are listed in docs/judges.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.records import Answer, clean_text

Completion = Mapping[str, Any]

CUT_OFF = "cut off by the limit of its tokens (max_tokens)"
"""Why there is no answer where reasoning, or a reply that must be whole, met the limit."""
EMPTY = "the reply is empty"
"""Why there is no answer where there are no words, and not for want of tokens."""
REFUSING_ENDS = ("content_filter", "refusal", "safety")
"""Values of `finish_reason` by which services say that they will not answer."""

_REASONING_ENDS = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_REASONING_BEGINS = re.compile(r"\s*<(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_YES_OR_NO = re.compile(
    r"[\W_]*(?:(?:so|ok|okay|well|my|the|final|answer|is|it)\b[\W_]*)*"
    r"(?P<word>yes|no)\b"
    # "no doubt" is no no, and "yes and no" or "yes/no" is neither
    r"(?!\s+(?:doubt|question|problem|idea)\b)"
    r"(?!\s*(?:/|,?\s*\bor\b|,?\s*\band\b)\s*(?:yes|no)\b)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\W*(?:"
    r"(?:(?:I am|I[’']m|we are|we[’']re)\s+)?(?:(?:very|so|really)\s+)?(?:sorry|afraid)\b|"
    r"(?:(?:I|we) )?(?:apologi[sz]e|apologies)\b|my apologies\b|"
    r"unfortunately,? (?:I|we)\b|"
    r"(?:I|we) (?:can[’']?t|cannot|can not|won[’']?t|will not|must decline|decline|refuse)\b|"
    r"(?:I am|I[’']m|we are|we[’']re) (?:unable|not able|not allowed|not comfortable)\b|"
    r"as an? (?:AI|artificial intelligence|language model)\b"
    r")",
    re.IGNORECASE,
)


def is_completion(body: object) -> bool:
    """Tell whether a body is a completion: it holds a message, whatever that says."""
    return isinstance(body, Mapping) and isinstance(_first_choice(body).get("message"), Mapping)


def read_words(completion: Completion, *, whole: bool = True) -> Answer:
    """Read the words of a completion, without the reasoning before them.

    `whole`: a reply that was cut off by the limit of its tokens is no answer.
    """
    choice = _first_choice(completion)
    message = choice.get("message") or {}
    raw = clean_text(_join_parts(message.get("content"), "text"))
    finish = str(choice.get("finish_reason") or "")

    # 1. A refusal, in the field for it or by the reason for ending.
    refusal = clean_text(_read_refusal(message))
    if refusal.strip():
        return Answer("refused", text=refusal, reason="the model refuses")
    if finish.lower() in REFUSING_ENDS:
        return Answer("refused", text=raw, reason=f"finish_reason={finish.lower()}")

    # 2. What follows the reasoning.
    words = without_reasoning(raw)
    if words is None or not words.strip():
        reason = CUT_OFF if finish == "length" or words is None else EMPTY
        return Answer("unreadable", text=raw, reason=reason)
    if whole and finish == "length":
        return Answer("unreadable", text=raw, reason=CUT_OFF)
    return Answer("answered", words, text=raw)


def read_yes(completion: Completion) -> Answer:
    """Read the probability of yes: by log-probabilities if there are any, else 1 or 0 by words.

    It is the sum over all spellings of yes among the likeliest tokens at the place of the answer:
    the first token that is no blank, quote or mark, or where the words say yes or no.
    """
    said = read_words(completion, whole=False)
    if not said.answered:
        return said
    decision = _find_yes_or_no(said.value)
    probability = _read_yes_probability(completion, said, decision)
    if probability is not None:
        return Answer("answered", probability, said.text)
    if decision is not None:
        return Answer("answered", float(decision["word"].lower() == "yes"), said.text)
    if is_refusal(said.value):
        return Answer("refused", text=said.text, reason="the model refuses")
    return Answer("unreadable", text=said.text, reason="neither yes nor no")


def yes_or_no(text: str) -> bool | None:
    """Tell whether a reply begins with yes or with no, in any case and decoration; else None."""
    decision = _find_yes_or_no(text)
    return None if decision is None else decision["word"].lower() == "yes"


def is_refusal(text: str) -> bool:
    """Tell whether a reply begins as refusals do: "I'm sorry, but I can't help with that."."""
    return _REFUSAL.match(text) is not None


def without_reasoning(text: str) -> str | None:
    """Return what follows a reply's reasoning (`<think>...</think>`); None if that never ends."""
    *_, last = [None, *_REASONING_ENDS.finditer(text)]
    if last is not None:
        return text[last.end() :].strip()
    return None if _REASONING_BEGINS.match(text) else text


# --- parts of a completion ------------------------------------------------------------------------


def _first_choice(completion: Completion) -> Completion:
    choices = completion.get("choices")
    first = choices[0] if isinstance(choices, Sequence) and choices else {}
    return first if isinstance(first, Mapping) else {}


def _join_parts(content: object, kind: str) -> str:
    """Join the text of a content that is a string or a list of parts; other kinds are left out.

    Parts of reasoning are of a kind of their own, "reasoning" or "thinking".
    """
    if isinstance(content, str):
        return content if kind == "text" else ""
    if not isinstance(content, Sequence):
        return ""
    return "".join(_read_part(part, kind) for part in content)


def _read_part(part: object, kind: str) -> str:
    if isinstance(part, str):
        return part if kind == "text" else ""
    if not isinstance(part, Mapping) or part.get("type", "text") not in (kind, f"output_{kind}"):
        return ""
    text = part.get(kind)
    return text if isinstance(text, str) else ""


def _read_refusal(message: Completion) -> str:
    refusal = message.get("refusal")
    return refusal if isinstance(refusal, str) else _join_parts(message.get("content"), "refusal")


def _find_yes_or_no(text: str) -> re.Match[str] | None:
    return _YES_OR_NO.match(text)


# --- log-probabilities ----------------------------------------------------------------------------


def _read_yes_probability(
    completion: Completion, said: Answer, decision: re.Match[str] | None
) -> float | None:
    """Read P(yes) from the log-probabilities; None where they do not tell."""
    entries = _list_entries(completion)
    index = _find_answer(entries, said, decision)
    if index is None:
        return None
    probabilities = _read_alternatives(entries[index])
    if not probabilities.keys() & {"yes", "no"}:
        return None
    return min(1.0, probabilities.get("yes", 0.0))


def _list_entries(completion: Completion) -> list[Mapping[str, Any]]:
    """List the entries of the reply's tokens, up to the first that is none."""
    found = _first_choice(completion).get("logprobs")
    content = found.get("content") if isinstance(found, Mapping) else None
    entries: list[Mapping[str, Any]] = []
    for entry in content if isinstance(content, Sequence) else ():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("token"), str):
            break
        entries.append(entry)
    return entries


def _find_answer(
    entries: Sequence[Mapping[str, Any]], said: Answer, decision: re.Match[str] | None
) -> int | None:
    """Find the token that answers: where the words say yes or no, else the first of any meaning.

    The entries may be of the reasoning, too, which comes first.
    """
    tokens = [clean_text(entry["token"]) for entry in entries]
    begin = _find_words("".join(tokens), said.value.strip())
    if begin is None:
        return None
    skipped = len(said.value) - len(said.value.lstrip())
    wanted = begin + (0 if decision is None else decision.start("word") - skipped)
    return _token_at(tokens, wanted, exact=decision is not None)


def _find_words(joined: str, words: str) -> int | None:
    """Find where the reply's words begin among the joined tokens, which may end before they do."""
    begin = joined.rfind(words)
    if begin >= 0:
        return begin
    for length in range(min(len(words), len(joined)), 0, -1):
        if joined.endswith(words[:length]):
            return len(joined) - length
    return None


def _token_at(tokens: Sequence[str], place: int, *, exact: bool) -> int | None:
    """Return the index of the token with the character at `place`.

    Unless it is `exact`, tokens without a letter or digit are passed over.
    """
    end = 0
    for index, token in enumerate(tokens):
        end += len(token)
        if end > place and (exact or any(map(str.isalnum, token))):
            return index
    return None


def _read_alternatives(entry: Mapping[str, Any]) -> dict[str, float]:
    """Read the probabilities of the likeliest tokens at a place, by word in lower case."""
    probabilities: dict[str, float] = {}
    for token, log_probability in _list_alternatives(entry):
        word = token.strip().strip("\"'*_`.,!:;").casefold()
        probabilities[word] = probabilities.get(word, 0.0) + math.exp(min(0.0, log_probability))
    return probabilities


def _list_alternatives(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """List tokens with their log-probabilities: the likeliest, or else the one that was drawn."""
    listed = entry.get("top_logprobs")
    for one in listed if isinstance(listed, Sequence) and listed else (entry,):
        if not isinstance(one, Mapping) or not isinstance(one.get("token"), str):
            continue
        value = one.get("logprob")
        if isinstance(value, int | float) and not math.isnan(value):
            yield one["token"], float(value)
