"""Tell what each method buys at 1, 2, 4 and 8 times what plain sampling costs.

Nothing is interpolated: a budget buys the run whose cost is the nearest at or below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.results.report.collect import Panel, Shown
from harness.results.stats.scaling import BUDGET_TOLERANCE

LEVELS = (1, 2, 4, 8)
"""Budgets, in plain images."""
AXES = ("tokens", "passes", "seconds")
"""What a budget may be counted in: visual tokens, target passes, device and judge seconds."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A run, and what an image of it costs in plain images."""

    one: Shown
    cost: float


@dataclass(frozen=True, slots=True)
class Family:
    """Runs of one method and one set of options at several budgets."""

    name: str
    offers: Sequence[Offer]  # by rising cost

    def bought_at(self, level: float) -> Offer | None:
        """Return the dearest run that costs no more than a budget; None if all cost more."""
        affordable = [
            offer for offer in self.offers if offer.cost <= level * (1 + BUDGET_TOLERANCE)
        ]
        return affordable[-1] if affordable else None


def list_families(panel: Panel, axis: str) -> list[Family]:
    """Return the scored runs of a panel by method and options, the best family first.

    Leaves out runs whose cost relative to plain sampling is not known on this axis.
    """
    offers: dict[str, list[Offer]] = {}
    for one in panel.shown:
        offer = Offer(one, _relative_cost(panel, one, axis))
        if one.run.is_scored and offer.cost > 0:
            offers.setdefault(_family_name(one), []).append(offer)

    families = []
    for name, members in offers.items():
        families.append(Family(name, sorted(members, key=_by_cost)))
    return families


def _relative_cost(panel: Panel, one: Shown, axis: str) -> float:
    """Return the cost of a run's image in plain images; nan where it cannot be known."""
    if axis == "tokens":
        return float(one.row["budget"])
    if axis == "seconds":
        return float(one.row["budget_s"])
    plain = next((other for other in panel.shown if other.id == one.plain), None)
    if plain is None:
        return math.nan
    plain_passes = float(plain.row["target_passes"])
    return float(one.row["target_passes"]) / plain_passes if plain_passes > 0 else math.nan


def _family_name(one: Shown) -> str:
    """Name a method without its budget, with what tells the run from others of the method."""
    further = [word for word in one.name.options if word not in one.family]
    return f"{one.family} ({', '.join(further)})" if further else one.family


def _by_cost(offer: Offer) -> tuple[float, float]:
    return offer.cost, float(offer.one.row["score"])
