"""Sum up a run by category: mean, interval, and what it is made of.

Scales of the categories differ, so that their average means nothing by itself; it is what papers
and the leaderboard compare.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from harness.records import Prompt, Score


def summarise_categories(
    prompts: Sequence[Prompt], images: int, scores: Sequence[Score]
) -> Iterator[str]:
    """Format a line for each category: its mean over planned images, with a 95 % interval.

    An image that is missing or unjudged counts as wrong. Parts of the score follow where its
    details have them: how often objects were found, and how well they stand.
    """
    from harness.results.stats import interval

    if not scores:
        yield "no image was scored"
        return
    by_key = {(score.prompt_id, score.image): score for score in scores}
    table = _tabulate_planned(prompts, images, by_key)
    for category, rows in table.groupby("category", sort=False):
        low, high = interval(rows)
        mean = rows.groupby("prompt_id")["value"].mean().mean()
        number = rows["prompt_id"].nunique()
        line = f"{category:<12} {mean:.4f} {_format_interval(low, high)}, {number} prompts"
        of_category = [
            by_key[key]
            for key in zip(rows["prompt_id"], rows["image"], strict=True)
            if key in by_key
        ]
        yield line + _describe_places(of_category)
    if len(scores) < len(table):
        yield f"PARTIAL: {len(scores)} of {len(table)} images"
    yield from _describe_unjudged(scores)


def _tabulate_planned(
    prompts: Sequence[Prompt], images: int, by_key: Mapping[tuple[str, int], Score]
) -> pd.DataFrame:
    rows = []
    for prompt in prompts:
        for image in range(images):
            score = by_key.get((prompt.id, image))
            value = 0.0 if score is None or score.value is None else score.value
            rows.append((prompt.category, prompt.id, image, value))
    return pd.DataFrame(rows, columns=["category", "prompt_id", "image", "value"])


def _format_interval(low: float, high: float) -> str:
    if math.isnan(low):
        return "(no interval: a single prompt)"
    return f"[{low:.4f}, {high:.4f}]"


def _describe_places(scores: Sequence[Score]) -> str:
    """Say how often both objects were found, and the mean of the position half; "" without."""
    placed = [score.detail for score in scores if "position" in score.detail]
    if not placed:
        return ""
    both = sum(detail["found"] == 2 for detail in placed) / len(placed)
    position = sum(detail["position"] for detail in placed) / len(placed)
    return f"; both objects found in {100 * both:.1f} % of images, position {position:.4f}"


def _describe_unjudged(scores: Sequence[Score]) -> Iterator[str]:
    problems = Counter(score.detail["unjudged"] for score in scores if score.value is None)
    if problems:
        listed = ", ".join(f"{count} {problem}" for problem, count in problems.most_common(4))
        yield f"unjudged, counted as wrong: {listed}"
