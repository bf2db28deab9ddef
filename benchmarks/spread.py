"""Fewer prompts than a benchmark has, of every category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.records import Prompt, UserError


def spread(prompts: Sequence[Prompt], wanted: int) -> list[Prompt]:
    """`wanted` of the prompts, as evenly over their categories as these allow: the first ones of
    each, in order.

    A smaller number takes a subset of what a larger one takes. Raises UserError for a number that
    cannot be had.
    """
    if not 1 <= wanted <= len(prompts):
        raise UserError(
            f"benchmark.prompts={wanted}: choose from 1 to the {len(prompts)} prompts available"
        )
    available = Counter(prompt.category for prompt in prompts)
    share = dict.fromkeys(available, 0)
    for _ in range(wanted):
        share[min((c for c in share if share[c] < available[c]), key=share.__getitem__)] += 1
    taken: Counter[str] = Counter()
    chosen = []
    for prompt in prompts:
        if taken[prompt.category] < share[prompt.category]:
            chosen.append(prompt)
        taken[prompt.category] += 1
    return chosen
