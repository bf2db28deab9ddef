"""Combine the accuracies of TIIF-Bench's dimensions into groups, levels and an overall score.

A dimension's accuracy, for each length, is the share of right answers among all questions about all
its images. Everything above it is an unweighted mean: a group's of its dimensions, a level's of all
dimensions of its groups, the overall score's of the groups (eval/summary_results.py,
eval/summary_dimension_results.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

LENGTHS = ("short", "long")

Weights = dict[str, float]
"""A mean, as weights of the names whose values it averages."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Hold groups of dimensions, and levels of groups."""

    groups: Mapping[str, Sequence[str]]
    levels: Mapping[str, Sequence[str]]

    @property
    def dimensions(self) -> tuple[str, ...]:
        return tuple(name for names in self.groups.values() for name in names)

    def means(self, present: Collection[str]) -> dict[str, Weights]:
        """Express each group, each level and "overall" as weights of the `present` dimensions.

        A mean without any present dimension is left out, and so is a group of a single dimension,
        which says nothing that the dimension does not.
        """
        groups: dict[str, Weights] = {}
        for group, names in self.groups.items():
            if weights := _uniform_weights(names, present):
                groups[group] = weights

        levels: dict[str, Weights] = {}
        for level, members in self.levels.items():
            names = [name for group in members for name in self.groups[group]]
            levels[level] = _uniform_weights(names, present)

        named = {group: weights for group, weights in groups.items() if len(self.groups[group]) > 1}
        means = {**named, **levels, "overall": _mean_weights(groups.values(), len(groups))}
        return {name: weights for name, weights in means.items() if weights}

    def aggregates(self, categories: Collection[str]) -> dict[str, Weights]:
        """Express the means of both lengths as weights of categories.

        Names are those of `means` behind a length ("short/basic"), categories are dimensions behind
        a length ("short/negation"). "score" is the mean of both lengths' overall scores.
        """
        named: dict[str, Weights] = {}
        for length in LENGTHS:
            prefix = f"{length}/"
            present = [name.removeprefix(prefix) for name in categories if name.startswith(prefix)]
            for mean, weights in self.means(present).items():
                named[prefix + mean] = {prefix + name: w for name, w in weights.items()}

        both = [named[f"{length}/overall"] for length in LENGTHS if f"{length}/overall" in named]
        return {"score": _mean_weights(both, len(both)), **named}


def _uniform_weights(names: Iterable[str], present: Collection[str]) -> Weights:
    """Weigh the present ones of `names` equally."""
    there = [name for name in names if name in present]
    return {name: 1 / len(there) for name in there}


def _mean_weights(means: Iterable[Weights], count: int) -> Weights:
    """Weigh the names of `count` means such that each mean counts equally."""
    total: Weights = {}
    for weights in means:
        for name, weight in weights.items():
            total[name] = total.get(name, 0.0) + weight / count
    return total


def _cross(names: Sequence[str], *ends: str) -> tuple[str, ...]:
    return tuple(f"{name}+{end}" for name in names for end in ends)


_REASONING = ("numeracy", "comparison", "differentiation", "negation")
OFFICIAL = Groups(
    groups={
        "basic_attribute": ("shape+color", "color+texture", "texture+color", "shape+texture"),
        "basic_relation": ("2d_spatial_relation", "3d_spatial_relation", "action+2d", "action+3d"),
        "basic_reasoning": _REASONING,
        "advanced_attribute_relation": (
            *_cross(["action"], "color", "texture"),
            *_cross(["color", "shape", "texture"], "2d", "3d"),
        ),
        "advanced_attribute_reasoning": _cross(_REASONING, "color", "texture"),
        "advanced_relation_reasoning": _cross(_REASONING, "2d", "3d"),
        "text": ("text",),
        "style": ("style",),
        "real_world": ("real_world",),
    },
    levels={
        "basic": ("basic_attribute", "basic_relation", "basic_reasoning"),
        "advanced": (
            "advanced_attribute_relation",
            "advanced_attribute_reasoning",
            "advanced_relation_reasoning",
            "text",
            "style",
        ),
        "designer": ("real_world",),
    },
)


def matches(answer: str, expected: str) -> bool:
    """Tell whether an answer is the expected one; case and surrounding blanks do not count."""
    return answer.strip().lower() == expected.strip().lower()


def weighted_mean(weights: Mapping[str, float], accuracy: Mapping[str, float]) -> float:
    """Evaluate a mean, given as weights of dimensions, on their accuracies."""
    return sum(weight * accuracy[name] for name, weight in weights.items())
