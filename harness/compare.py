"""`python -m harness.compare A B`: one paired comparison in words, or of two rankings.

A and B are run folders, or runs below `--results` (default: results) by fingerprint or by the name
of their folder, METHOD-FINGERPRINT.

python -m harness.compare FOLDER --seeds 0 1        two seeds of a results folder
python -m harness.compare FOLDER OTHER              two results folders

These print, for each protocol, Kendall's tau of the two rankings of the methods that are in both,
and the pairs of methods that are resolved in both, the other way round: contradictions. The exit
code is 1 if there is one, or if tau of ten methods or more is below 0.95. In a ranking of fewer an
exchange of two neighbours alone would make it so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.arguments import natural, print_error
from harness.records import UserError
from harness.results import stats
from harness.results.agreement import compare_rankings, describe_agreement
from harness.results.labels import label_runs
from harness.results.ranking import RankedGroup, find_misfits
from harness.runs.read import Run, find_runs, read_run, read_runs

PLANNED_DIFFERENCE = 0.02
"""Difference of scores for which the number of prompts needed is stated."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "a", help="run folder, METHOD-FINGERPRINT or fingerprint; or a results folder"
    )
    parser.add_argument("b", nargs="?", help="another one; with --seeds it may be the same")
    parser.add_argument(
        "--seeds", nargs=2, type=natural, metavar="SEED", help="compare the rankings of two seeds"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where names of runs are looked for"
    )
    chosen = parser.parse_args(arguments)
    try:
        if chosen.seeds or _is_results_folder(chosen.a):
            return print_agreement(chosen.a, chosen.b, chosen.seeds)
        if chosen.b is None:
            raise UserError(f"{chosen.a}: name a second run, or two seeds of a results folder")
        a = find_run(chosen.a, chosen.results)
        b = find_run(chosen.b, chosen.results)
        print("\n".join(describe_comparison(a, b)))
    except UserError as error:
        return print_error(error)
    return 0


def _is_results_folder(name: str) -> bool:
    """Tell whether a folder holds run folders and is none itself."""
    folder = Path(name)
    return bool(name) and folder.is_dir() and not (folder / "config.yaml").exists()


def print_agreement(a: str, b: str | None, seeds: Sequence[int] | None) -> int:
    """Print how two rankings compare, protocol by protocol; returns the exit code.

    They are those of two results folders, of two seeds of one, or of a seed of each. Raises
    UserError where there are no two.
    """
    if b is None and seeds is None:
        raise UserError(f"{a}: name a second results folder, or two seeds by --seeds A B")
    runs_a = read_runs(Path(a)).runs
    runs_b = read_runs(Path(b)).runs if b else runs_a
    name_a = a
    name_b = b or a
    if seeds:
        runs_a = _of_seed(runs_a, seeds[0], a)
        runs_b = _of_seed(runs_b, seeds[1], b or a)
        name_a += f" seed {seeds[0]}"
        name_b += f" seed {seeds[1]}"
    found = compare_rankings(runs_a, runs_b)
    blocks = ["\n".join(describe_agreement(one, name_a, name_b)) for one in found]
    print("\n\n".join(blocks))
    return 0 if all(one.holds for one in found) else 1


def _of_seed(runs: Iterable[Run], seed: int, folder: str) -> list[Run]:
    """Return the runs of a seed. Raises UserError where there is none."""
    runs = list(runs)
    chosen = [run for run in runs if run.about["seed"] == seed]
    if not chosen:
        there = ", ".join(map(str, sorted({run.about["seed"] for run in runs}))) or "none"
        raise UserError(f"--seeds {seed}: no run of it in {folder}; there are {there}")
    return chosen


def find_run(name: str, results: Path) -> Run:
    """Read the run of a folder, or of a name below `results`: [METHOD-]FINGERPRINT.

    The beginning of the fingerprint is enough. Raises UserError unless exactly one run is meant.
    """
    if (Path(name) / "config.yaml").exists():
        return read_run(Path(name))
    folders = find_runs(results)
    found = [folder for folder in folders if _is_meant(folder, name)]
    if len(found) != 1:
        known = ", ".join(sorted(folder.name for folder in folders)) or "none"
        raise UserError(
            f"{name}: {len(found)} runs below {results} have this fingerprint or name; "
            f"there are {known}"
        )
    return read_run(found[0])


def _is_meant(folder: Path, name: str) -> bool:
    """Tell whether a run folder is meant by the beginning of its fingerprint.

    A method before it, as in the folder's own name, must be the whole name of the run's method.
    """
    method, _, fingerprint = folder.name.rpartition("-")
    asked_method, _, beginning = name.rpartition("-")
    is_method = asked_method in ("", method)
    return is_method and bool(beginning) and fingerprint.startswith(beginning)


def describe_comparison(a: Run, b: Run) -> list[str]:
    """Compare run A with run B in lines of text.

    Raises UserError for runs that cannot be compared, naming what differs.
    """
    _expect_comparable(a, b)
    group = RankedGroup([a, b])
    labels = label_runs([a, b])
    protocol = a.protocol
    lines = [
        f"{protocol.benchmark} on {protocol.model}, {len(a.prompts)} prompts x "
        f"{protocol.images_per_prompt} images, judge {a.judge or 'none'}, paired by prompt",
        f"A = {labels[a.path]} ({a.fingerprint}): {group.score(a):.3f}    "
        f"B = {labels[b.path]} ({b.fingerprint}): {group.score(b):.3f}",
    ]
    if not group.error_is_known:
        lines.append(
            "A category has a single prompt: no error can be stated, so nothing is resolved."
        )
        return lines
    lines += _difference_lines(group, a, b)
    lines += _category_lines(group, a, b)
    for run in (a, b):
        lines += [f"{labels[run.path]}: {gap}" for gap in _gaps(run)]
    return lines


def _expect_comparable(a: Run, b: Run) -> None:
    if a.fingerprint == b.fingerprint:
        raise UserError(f"{a.path} and {b.path} are one run: name two")
    differing = []
    for name in a.protocol._fields:
        of_a = getattr(a.protocol, name)
        of_b = getattr(b.protocol, name)
        if of_a != of_b:
            differing.append(f"{name} {of_a or 'none'} and {of_b or 'none'}")
    if differing:
        labels = label_runs([a, b])
        raise UserError(
            f"{labels[a.path]} and {labels[b.path]} were run under different protocols: "
            f"{'; '.join(differing)}"
        )
    for run in (a, b):
        if not run.is_scored:
            raise UserError(f"{run.path}: not scored; run its command again with stages=[score]")
    for problem in find_misfits([a, b]).values():
        raise UserError(problem)


def _difference_lines(group: RankedGroup, a: Run, b: Run) -> list[str]:
    """State the difference of the scores, whether it is resolved, and what would be."""
    found = group.difference(a, b)
    components = stats.estimate_components(a.table, b.table)
    prompts = components.prompts_needed(PLANNED_DIFFERENCE, group.protocol.images_per_prompt)
    return [
        f"A - B = {found.value:+.3f}, 95 % interval {found.low:+.3f} to {found.high:+.3f}, "
        f"p {_format_p(found.p)} ({found.test})",
        _verdict(found),
        f"This comparison detects {found.detectable:.3f} with 80 % power; "
        f"{PLANNED_DIFFERENCE:.3f} would take {prompts:,} prompts.",
    ]


def _verdict(found: stats.Difference) -> str:
    if found.resolved:
        return f"Resolved: A is {'better' if found.value > 0 else 'worse'} than B."
    loss = max(0.0, -found.bound)
    bound = f"A is at most {loss:.3f} worse than B, with 95 % confidence."
    if found.p < stats.ALPHA:
        return (
            f"Not resolved: p is below {stats.ALPHA}, but a difference this small is found in less "
            f"than 80 % of repeats. {bound}"
        )
    return f"Not resolved. {bound}"


def _category_lines(group: RankedGroup, a: Run, b: Run) -> list[str]:
    """State the difference in each category: an exploration, adjusted for false discoveries."""
    differences = group.category_differences(a, b)
    width = max(len(found.category) for found in differences)
    lines = ["By category (exploration; q after Benjamini and Hochberg):"]
    for category, value, low, high, q in differences:
        difference = f"{value:+.3f}  [{low:+.3f}, {high:+.3f}]"
        lines.append(f"  {category:<{width}}  {difference}  q {_format_p(q)}")
    return lines


def _gaps(run: Run) -> list[str]:
    """Say how many images of a run count as wrong because they are missing or unjudged."""
    gaps = []
    missing = len(run.planned) - len(run.done)
    if missing:
        gaps.append(f"{missing} of {len(run.planned)} images are missing and count as wrong")
    if run.unjudged:
        gaps.append(f"{len(run.unjudged)} images are unjudged and count as wrong")
    return gaps


def _format_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


if __name__ == "__main__":
    sys.exit(main())
