"""TIIF-Bench's dimensions, and how their accuracies make groups, levels and an overall score.

A dimension's accuracy, for each length, is the share of right answers among all questions about all
its images. Everything above it is an unweighted mean: a group's of its dimensions, a level's of all
dimensions of its groups, the overall score's of the groups (eval/summary_results.py,
eval/summary_dimension_results.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

LENGTHS = ("short", "long")


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of dimensions, and levels of groups."""

    groups: Mapping[str, Sequence[str]]
    levels: Mapping[str, Sequence[str]]

    @property
    def dimensions(self) -> tuple[str, ...]:
        return tuple(name for names in self.groups.values() for name in names)

    def means(self, present: Collection[str]) -> dict[str, dict[str, float]]:
        """Each group, each level and "overall" as weights of the dimensions that are present;
        without any it is absent.

        Groups of a single dimension are left out: they say nothing that the dimension does not.
        """
        shares = {group: _uniform(names, present) for group, names in self.groups.items()}
        shares = {group: share for group, share in shares.items() if share}
        levels = {
            level: _uniform([name for group in groups for name in self.groups[group]], present)
            for level, groups in self.levels.items()
        }
        overall: dict[str, float] = {}
        for share in shares.values():
            for name, weight in share.items():
                overall[name] = overall.get(name, 0.0) + weight / len(shares)
        named = {group: share for group, share in shares.items() if len(self.groups[group]) > 1}
        return {
            name: share for name, share in {**named, **levels, "overall": overall}.items() if share
        }

    def aggregates(self, categories: Collection[str]) -> dict[str, dict[str, float]]:
        """The means of both lengths ("short/basic") over categories ("short/negation"); "score" is
        that of both.
        """
        named: dict[str, dict[str, float]] = {}
        for length in LENGTHS:
            present = [
                name.partition("/")[2] for name in categories if name.startswith(f"{length}/")
            ]
            for mean, share in self.means(present).items():
                named[f"{length}/{mean}"] = {
                    f"{length}/{name}": weight for name, weight in share.items()
                }
        both = [named[f"{length}/overall"] for length in LENGTHS if f"{length}/overall" in named]
        return {
            "score": {name: weight / len(both) for share in both for name, weight in share.items()},
            **named,
        }


def _uniform(names: Sequence[str], present: Collection[str]) -> dict[str, float]:
    there = [name for name in names if name in present]
    return {name: 1 / len(there) for name in there}


_REASONING = ("numeracy", "comparison", "differentiation", "negation")
OFFICIAL = Groups(
    groups={
        "basic_attribute": ("shape+color", "color+texture", "texture+color", "shape+texture"),
        "basic_relation": ("2d_spatial_relation", "3d_spatial_relation", "action+2d", "action+3d"),
        "basic_reasoning": _REASONING,
        "advanced_attribute_relation": (
            *("action+color", "action+texture", "color+2d", "color+3d"),
            *("shape+2d", "shape+3d", "texture+2d", "texture+3d"),
        ),
        "advanced_attribute_reasoning": tuple(
            f"{name}+{end}" for name in _REASONING for end in ("color", "texture")
        ),
        "advanced_relation_reasoning": tuple(
            f"{name}+{end}" for name in _REASONING for end in ("2d", "3d")
        ),
        "text": ("text",),
        "style": ("style",),
        "real_world": ("real_world",),
    },
    levels={
        "basic": ("basic_attribute", "basic_relation", "basic_reasoning"),
        "advanced": (
            *(
                "advanced_attribute_relation",
                "advanced_attribute_reasoning",
                "advanced_relation_reasoning",
            ),
            *("text", "style"),
        ),
        "designer": ("real_world",),
    },
)


def matches(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one; case and blanks around it do not count."""
    return answer.strip().lower() == expected.strip().lower()


def weighted(share: Mapping[str, float], accuracy: Mapping[str, float]) -> float:
    """A mean, given as weights of dimensions, of their accuracies."""
    return sum(weight * accuracy[name] for name, weight in share.items())
