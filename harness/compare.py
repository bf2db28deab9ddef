"""`python -m harness.compare A B`: one paired comparison in words.

A and B are run folders, or fingerprints of runs below `--results` (default: results).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.cli import print_error
from harness.records import UserError
from harness.results import stats
from harness.results.ranking import Group
from harness.runs.read import Run, find_runs, read_run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.compare", description=__doc__)
    parser.add_argument("a", help="run folder or fingerprint")
    parser.add_argument("b", help="run folder or fingerprint")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where fingerprints are looked for"
    )
    chosen = parser.parse_args(arguments)
    try:
        print("\n".join(words(*(find_run(name, chosen.results) for name in (chosen.a, chosen.b)))))
    except UserError as error:
        return print_error(error)
    return 0


def find_run(name: str, results: Path) -> Run:
    """The run of a folder or of a fingerprint (its beginning is enough). Raises UserError if there
    is not just one.
    """
    if (Path(name) / "config.yaml").exists():
        return read_run(Path(name))
    folders = find_runs(results)
    found = [
        folder for folder in folders if name and folder.name.rpartition("-")[2].startswith(name)
    ]
    if len(found) != 1:
        known = ", ".join(sorted(folder.name for folder in folders)) or "none"
        raise UserError(
            f"{name}: {len(found)} runs below {results} have this fingerprint; there are {known}"
        )
    return read_run(found[0])


def words(a: Run, b: Run) -> list[str]:
    """Lines about A against B. Raises UserError for runs that cannot be compared, naming what
    differs.
    """
    if a.fingerprint == b.fingerprint:
        raise UserError(f"{a.path} and {b.path} are one run: name two")
    unlike = [
        f"{name} {mine or 'none'} and {theirs or 'none'}"
        for name, mine, theirs in zip(a.protocol._fields, a.protocol, b.protocol, strict=True)
        if mine != theirs
    ]
    if unlike:
        raise UserError(
            f"{a.name} and {b.name} were run under different protocols: {'; '.join(unlike)}"
        )
    group = Group([a, b])
    found = group.difference(0, 1)
    score_a, score_b = group.score_R
    lines = [
        f"{a.protocol.benchmark} on {a.protocol.model}, {len(a.prompts)} prompts x {a.protocol.images_per_prompt} "
        f"images, judge {a.judge or 'none'}, paired by prompt",
        f"A = {a.name} ({a.fingerprint}): {score_a:.3f}    B = {b.name} ({b.fingerprint}): {score_b:.3f}",
        f"A - B = {100 * found.value:+.1f} points, 95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}, "
        f"p {_p(found.p)} ({found.test})",
        _verdict(found),
    ]
    if not group.design.uncertain:
        return [
            *lines[:2],
            "A category has a single prompt: no error can be stated, so nothing is resolved.",
        ]
    spread = stats.measured_spread(a.table, b.table)
    lines.append(
        f"This comparison detects {100 * found.detectable:.1f} points with 80 % power; 2 points would take "
        f"{spread.needed(0.02, a.protocol.images_per_prompt):,} prompts."
    )
    lines += _by_category(group)
    lines += [f"{run.name}: {problem}" for run in (a, b) for problem in _gaps(run)]
    return lines


def _verdict(found: stats.Difference) -> str:
    if found.resolved:
        return f"Resolved: A is {'better' if found.value > 0 else 'worse'} than B."
    bound = f"A is at most {max(0.0, -100 * found.bound):.1f} points worse than B, with 95 % confidence."
    if found.p < stats.ALPHA:
        return (
            f"Not resolved: p is below {stats.ALPHA}, but a difference this small is found in less than "
            f"80 % of repeats. {bound}"
        )
    return f"Not resolved. {bound}"


def _by_category(group: Group) -> list[str]:
    """A line for each category: an exploration, corrected for the share of false findings among the
    findings.
    """
    design = group.design
    width = max(map(len, group.design.categories))
    delta_P = group.value_RP[0] - group.value_RP[1]
    one_CC = np.eye(len(design.categories))
    found = stats.benjamini_hochberg(
        [stats.sign_flip(design.shares(delta_P, one_C)) for one_C in one_CC]
    )
    lines = ["By category (exploration; q after Benjamini and Hochberg):"]
    for c, (name, value, q) in enumerate(
        zip(design.categories, design.means(delta_P[None])[0], found, strict=True)
    ):
        low, high = stats.percentiles(group.draws_DRC[:, 0, c] - group.draws_DRC[:, 1, c])
        lines.append(
            f"  {name:<{width}}  {100 * value:+6.1f}  [{100 * low:+6.1f}, {100 * high:+6.1f}]  q {_p(q)}"
        )
    return lines


def _gaps(run: Run) -> list[str]:
    missing = len(run.planned) - len(run.done)
    gaps = (
        [f"{missing} of {len(run.planned)} images are missing and count as wrong"]
        if missing
        else []
    )
    return gaps + (
        [f"{len(run.unjudged)} images are unjudged and count as wrong"] if run.unjudged else []
    )


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


if __name__ == "__main__":
    sys.exit(main())
