"""Take fewer prompts than a benchmark has, evenly from all of its categories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.records import Prompt, UserError


def spread_evenly(prompts: Sequence[Prompt], wanted: int) -> list[Prompt]:
    """Take `wanted` of the prompts, as evenly over their categories as these allow.

    The first prompts of each category are taken, and their order is kept. A smaller number takes a
    subset of what a larger one takes. Raises UserError unless 1 <= `wanted` <= number of prompts.
    """
    if not 1 <= wanted <= len(prompts):
        raise UserError(
            f"benchmark.prompts={wanted}: choose from 1 to the {len(prompts)} prompts available"
        )
    shares = _share_out(wanted, Counter(prompt.category for prompt in prompts))

    taken: Counter[str] = Counter()
    chosen = []
    for prompt in prompts:
        if taken[prompt.category] < shares[prompt.category]:
            chosen.append(prompt)
        taken[prompt.category] += 1
    return chosen


def _share_out(wanted: int, available: Counter[str]) -> dict[str, int]:
    """Decide how many prompts each category gives: one at a time from the one that gave least."""
    shares = dict.fromkeys(available, 0)
    for _ in range(wanted):
        open_categories = [name for name in shares if shares[name] < available[name]]
        smallest = min(open_categories, key=lambda name: shares[name])
        shares[smallest] += 1
    return shares
