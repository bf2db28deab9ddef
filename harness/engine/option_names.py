"""Spell the options in a message as the user types them.

A rule, drafter or judge does not know where the configuration puts it: it says "drafter.coupling=x"
or "checkpoint=PATH". Who builds or prepares it knows, and puts the place before the names.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from harness.records import UserError

WHOLE = ("model", "method", "benchmark", "sampler", "metrics", "logger", "hydra")
"""What an option that is spelled as a whole begins with."""
_MENTION = re.compile(
    r"(?<![\w.@/+-])(?P<owner>[a-z_]\w*\.)?(?P<name>[a-z_]\w*)\b(?P<rest>(?:\.[a-z_]\w*)*=)?"
)


def spell_options(message: str, place: str, names: Collection[str]) -> str:
    """Put `place` before the options of a part that a message names.

    `names` are the part's options: "k=3" becomes "method.rule.k=3" for the place "method.rule", and
    so do "rule.k=3" and "rule.k", whatever the part calls itself. An option of one of its own parts
    has that one's name before it, so that "rule.k=3" is right for the place "method", too.
    """

    def spell(found: re.Match[str]) -> str:
        owner = (found["owner"] or "").removesuffix(".")
        rest = found["rest"] or ""
        if owner in WHOLE or not (owner or rest):
            return found.group()
        if owner in names and rest:
            return f"{place}.{found.group()}"
        return f"{place}.{found['name']}{rest}" if found["name"] in names else found.group()

    return _MENTION.sub(spell, message)


def list_options(part: object) -> set[str]:
    """List the options of a part, or of its class: the parameters of its constructor."""
    kind = part if inspect.isclass(part) or inspect.isroutine(part) else type(part)
    try:
        return set(inspect.signature(kind).parameters)
    except (TypeError, ValueError):
        return set()  # of what Python cannot read, such as a compiled class


@contextmanager
def options_at(place: str, part: object) -> Iterator[None]:
    """Spell the options of a part that stands at a place, in what it raises as UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(spell_options(str(error), place, list_options(part))) from error
