"""Say in words why an image counts as it does.

Journals keep the words of GenEval's reference, with which they are compared: "expected
motorcycle>=1, found 0". People read "expected at least 1 motorcycle, found 0".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.runs.read import Run

EXPECTED = re.compile(r"^expected (?P<what>.+?)(?P<sign>>=|<)(?P<count>\d+), found (?P<found>.+)$")
"""A clause of GenEval's reference that a number of objects did not meet."""


def explain_value(run: Run, key: tuple[str, int]) -> str:
    """Say in a line why an image counts as it does: the judge's words, or why it has no score."""
    if key not in run.done:
        return "failed: the same command draws it again" if key in run.failed else "not drawn yet"
    score = run.scores.get(key)
    if score is None:
        return "not judged yet"
    detail = score.detail
    reasons = detail.get("reasons") or detail.get("unjudged") or detail.get("reason") or ""
    if isinstance(reasons, Iterable) and not isinstance(reasons, str):
        return "; ".join(put_in_words(str(reason)) for reason in reasons)
    return put_in_words(str(reasons))


def put_in_words(reason: str) -> str:
    """Return a reason without code; one that has none is returned as it is."""
    clause = EXPECTED.match(reason)
    if clause is None:
        return reason
    count = int(clause["count"])
    found = clause["found"].replace("; and ", ", and ")
    if clause["sign"] == ">=":
        wanted = f"at least {count}"
    else:
        wanted = f"at most {count - 1}" if count > 1 else "no"
    return f"expected {wanted} {clause['what']}, found {found}"
