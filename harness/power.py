"""`python -m harness.power`: how many prompts and images would resolve a difference.

python -m harness.power A B                    from two runs like those to be compared
python -m harness.power --rate 0.8             from assumptions, without runs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.cli import print_error
from harness.compare import find_run
from harness.records import UserError
from harness.results.stats import Spread, assumed_spread, detectable, measured_spread

IMAGES = (1, 2, 4, 8, 16)
"""Images per prompt that the table has a row for."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m harness.power",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="*", help="two run folders or fingerprints")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where fingerprints are looked for"
    )
    parser.add_argument(
        "--difference", type=float, default=2.0, help="points to be resolved (default 2)"
    )
    parser.add_argument(
        "--power", type=float, default=0.8, help="chance to resolve it (default 0.8)"
    )
    parser.add_argument(
        "--prompts", type=int, default=553, help="prompts of the last column (default 553)"
    )
    parser.add_argument(
        "--rate", type=float, help="share of right images that both methods have, 0 to 1"
    )
    parser.add_argument(
        "--correlation", type=float, default=0.45, help="of two images of a prompt (default 0.45)"
    )
    parser.add_argument(
        "--pairing", type=float, default=0.3, help="of two methods' answers to it (default 0.3)"
    )
    chosen = parser.parse_args(arguments)
    try:
        print(
            "\n".join(plan(_spread(chosen), chosen.difference / 100, chosen.power, chosen.prompts))
        )
    except UserError as error:
        return print_error(error)
    return 0


def plan(spread: Spread, difference: float, power: float, prompts: int) -> list[str]:
    """A table of images per prompt: prompts that resolve `difference`, and what `prompts` of them
    detect.

    Raises UserError for a difference that is not above 0, a power outside (0, 1) or less than two
    prompts.
    """
    if not 0 < difference < 1:
        raise UserError(f"--difference {100 * difference:g}: choose points between 0 and 100")
    if not 0 < power < 1:
        raise UserError(f"--power {power:g}: choose a chance between 0 and 1")
    if prompts < 2:
        raise UserError(f"--prompts {prompts}: a comparison needs two prompts at least")
    heads = (
        "images per prompt",
        f"prompts for {100 * difference:g} points",
        "images in all",
        f"{prompts} prompts detect",
    )
    lines = [
        f"variance of the paired difference: {spread.prompts:.4f} between prompts, {spread.images:.4f} between images",
        "   ".join(heads),
    ]
    for images in IMAGES:
        needed = spread.needed(difference, images, power)
        seen = f"{100 * detectable(spread.error(prompts, images), power):.1f} points"
        cells = (str(images), str(needed), str(needed * images), seen)
        lines.append(
            "   ".join(cell.rjust(len(head)) for cell, head in zip(cells, heads, strict=True))
        )
    return lines


def _spread(chosen: argparse.Namespace) -> Spread:
    if len(chosen.runs) == 2:
        a, b = (find_run(name, chosen.results) for name in chosen.runs)
        try:
            return measured_spread(a.table, b.table)
        except ValueError as error:
            raise UserError(f"{a.path}, {b.path}: {error}") from None
    if chosen.runs or chosen.rate is None:
        raise UserError(f"{len(chosen.runs)} runs are given: name two, or assume a --rate")
    for name, lowest, highest in (
        ("rate", 0.0, 1.0),
        ("correlation", 0.0, 1.0),
        ("pairing", -1.0, 1.0),
    ):
        if not lowest <= getattr(chosen, name) <= highest:
            raise UserError(
                f"--{name} {getattr(chosen, name):g}: choose from {lowest:g} to {highest:g}"
            )
    return assumed_spread(chosen.rate, chosen.correlation, chosen.pairing)


if __name__ == "__main__":
    sys.exit(main())
