"""`python -m harness.power`: how many prompts and images would resolve a difference.

python -m harness.power A B                    from two runs like those to be compared
python -m harness.power --rate 0.8             from assumptions, without runs
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.arguments import print_error
from harness.compare import find_run
from harness.records import UserError
from harness.results.stats import (
    VarianceComponents,
    assume_components,
    detectable_difference,
    estimate_components,
)

IMAGES = (1, 2, 4, 8, 16)
"""Images per prompt that the table has a row for."""
RANGES = {"rate": (0.0, 1.0), "correlation": (0.0, 1.0), "pairing": (-1.0, 1.0)}
"""Values that assumptions may have."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan; returns the exit code."""
    chosen = _parser().parse_args(arguments)
    try:
        components = _components(chosen)
        lines = plan_prompts(components, chosen.difference / 100, chosen.power, chosen.prompts)
        print("\n".join(lines))
    except UserError as error:
        return print_error(error)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.power",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="*", help="two run folders, METHOD-FINGERPRINT or fingerprints")
    add("--results", type=Path, default=Path("results"), help="where names of runs are looked for")
    add("--difference", type=float, default=2.0, help="points to be resolved (default 2)")
    add("--power", type=float, default=0.8, help="chance to resolve it (default 0.8)")
    add("--prompts", type=int, default=553, help="prompts of the last column (default 553)")
    add("--rate", type=float, help="share of right images that both methods have, 0 to 1")
    add(
        "--correlation",
        type=float,
        default=0.45,
        help="of two images of a prompt (default 0.45)",
    )
    add(
        "--pairing",
        type=float,
        default=0.3,
        help="of two methods' answers to it (default 0.3)",
    )
    return parser


def plan_prompts(
    components: VarianceComponents, difference: float, power: float, prompts: int
) -> list[str]:
    """Tabulate, for several images per prompt, the prompts that resolve `difference`.

    Each line also says what `prompts` of them detect. Raises UserError for a difference that is not
    between 0 and 1, a power outside (0, 1) or fewer than two prompts.
    """
    if not 0 < difference < 1:
        raise UserError(f"--difference {100 * difference:g}: choose points between 0 and 100")
    if not 0 < power < 1:
        raise UserError(f"--power {power:g}: choose a chance between 0 and 1")
    if math.isnan(components.between_prompts):
        raise UserError(
            "each category has a single prompt, so the variance between prompts is unknown: "
            "take runs of two prompts a category at least, or give --rate"
        )
    if prompts < 2:
        raise UserError(f"--prompts {prompts}: a comparison needs two prompts at least")
    heads = (
        "images per prompt",
        f"prompts for {100 * difference:g} points",
        "images in all",
        f"{prompts} prompts detect",
    )
    lines = [
        "variance of the paired difference: "
        f"{components.between_prompts:.4f} between prompts, "
        f"{components.within_prompts:.4f} between images",
        "   ".join(heads),
    ]
    for images in IMAGES:
        needed = components.prompts_needed(difference, images, power)
        error = components.standard_error(prompts, images)
        detected = 100 * detectable_difference(error, power)
        cells = (f"{images}", f"{needed}", f"{needed * images}", f"{detected:.1f} points")
        padded = [cell.rjust(len(head)) for cell, head in zip(cells, heads, strict=True)]
        lines.append("   ".join(padded))
    return lines


def _components(chosen: argparse.Namespace) -> VarianceComponents:
    """Estimate variance components from two runs, or derive them from assumptions."""
    if len(chosen.runs) == 2:
        a, b = (find_run(name, chosen.results) for name in chosen.runs)
        try:
            return estimate_components(a.table, b.table)
        except ValueError as error:
            raise UserError(f"{a.path}, {b.path}: {error}") from None
    if chosen.runs or chosen.rate is None:
        raise UserError(f"{len(chosen.runs)} runs are given: name two, or assume a --rate")
    for name, (lowest, highest) in RANGES.items():
        value = getattr(chosen, name)
        if not lowest <= value <= highest:
            raise UserError(f"--{name} {value:g}: choose from {lowest:g} to {highest:g}")
    return assume_components(chosen.rate, chosen.correlation, chosen.pairing)


if __name__ == "__main__":
    sys.exit(main())
