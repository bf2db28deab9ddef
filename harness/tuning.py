"""`python -m harness.tuning TUNING --evaluation FOLDER`: choose settings of relaxed methods.

TUNING are the results of experiment=embedded_tuning: plain and exact speculative sampling, and a
grid of settings of each method, on prompts of their own. Prompts that the evaluation's results have
too are left out. Of each method the setting with the fewest target passes is chosen whose loss
against all images of exact rules is within the method's gate; if none is, the one that loses least.
`--out FILE` writes the choice as an experiment, which draws the evaluation's prompts with it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harness.arguments import explain_mistakes
from harness.records import UserError
from harness.results.relaxed import MOST_LOSS
from harness.results.stats import paired_difference
from harness.runs.journal import write_atomic
from harness.runs.read import Run, read_runs

EXACT = ("plain", "speculative")
"""Methods whose images have plain sampling's distribution."""
HEAD = """\
# @package _global_
# The best settings of relaxed methods that `python -m harness.tuning` found on prompts that are not
# the evaluation's; it wrote this file
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a method lost and cost at one setting, on the tuning prompts."""

    method: str
    params: str  # options that differ from the preset: "rule.delta=0.1, rule.k=5"
    loss: float
    low: float  # 95 % interval of the loss
    high: float
    passes: float  # of the target, an image

    @property
    def is_within(self) -> bool:
        """Tell whether the loss is within the method's gate."""
        return self.loss <= MOST_LOSS[self.method]


@explain_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """Print all settings and the choice, and perhaps write it; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tuning", type=Path, help="results folder of the tuning")
    parser.add_argument(
        "--evaluation", type=Path, required=True, help="results folder, or board, of the evaluation"
    )
    parser.add_argument("--out", type=Path, help="a file below conf/experiment")
    chosen = parser.parse_args(arguments)

    runs = read_runs(chosen.tuning).runs
    seen = read_texts(read_runs(chosen.evaluation).runs, chosen.evaluation)
    settings, about = measure_settings(runs, seen)
    best = choose(settings)
    lines = [about, *describe(settings, best)]
    print("\n".join(lines))
    if chosen.out:
        write_atomic(chosen.out, write_experiment(lines, best).encode())
    return 0


def read_texts(runs: Collection[Run], folder: Path) -> set[str]:
    """Return the texts of all prompts of some runs. Raises UserError where there is none."""
    texts = {prompt.text for run in runs for prompt in run.prompts.values()}
    if not texts:
        raise UserError(f"--evaluation {folder}: no runs there")
    return texts


# ------------------------------------------------------------------ measuring


def measure_settings(runs: Sequence[Run], seen: Collection[str]) -> tuple[list[Setting], str]:
    """Measure each setting on the prompts whose texts are not in `seen`.

    Returns also what it rests on, in a sentence. Raises UserError where the runs are not of the
    same prompts, or one that is needed is missing or unfinished.
    """
    # 1. What can be used.
    usable = [run for run in runs if run.complete and run.is_scored]
    exact = [run for run in usable if run.about["method"] in EXACT and not run.about["params"]]
    tried = [run for run in usable if run.about["method"] in MOST_LOSS]
    if not exact or not tried:
        raise UserError(
            f"of {len(runs)} runs {len(exact)} are complete ones of plain or speculative sampling "
            f"and {len(tried)} of {', '.join(MOST_LOSS)}: finish experiment=embedded_tuning"
        )
    protocols = {run.protocol for run in (*exact, *tried)}
    if len(protocols) > 1:
        raise UserError("the tuning runs are of several protocols: give each a folder of its own")

    # 2. The prompts of the tuning alone.
    prompts = exact[0].prompts
    own = {prompt_id for prompt_id, prompt in prompts.items() if prompt.text not in seen}
    if not own:
        raise UserError("every tuning prompt is among the evaluation's: set another benchmark.seed")
    pool = pd.concat([_own_rows(run, own) for run in exact])
    categories = sorted(pool["category"].unique())
    about = (
        f"{len(own)} of {len(prompts)} tuning prompts are not among the evaluation's, of "
        f"{', '.join(categories)}; {len(pool)} images of exact rules"
    )
    others = {str(run.about["method"]) for run in usable} - {*EXACT, *MOST_LOSS}
    if others:
        about += f"; passed over, as nothing says what they may lose: {', '.join(sorted(others))}"

    # 3. Loss and passes of each setting.
    settings = []
    for run in tried:
        loss, low, high = paired_difference(pool, _own_rows(run, own))
        spent = [r.usage.target_passes for r in run.done.values() if r.prompt_id in own]
        passes = sum(spent) / len(spent)
        method = str(run.about["method"])
        settings.append(Setting(method, str(run.about["params"]), loss, low, high, passes))
    return settings, about


def _own_rows(run: Run, prompts: Collection[str]) -> pd.DataFrame:
    """Return the scores of some prompts' images."""
    return run.table[run.table["prompt_id"].isin(prompts)]


def choose(settings: Sequence[Setting]) -> dict[str, Setting]:
    """Choose a setting of each method: the fewest passes within its gate, else the least loss."""
    best = {}
    for method in MOST_LOSS:
        own = [setting for setting in settings if setting.method == method]
        within = [setting for setting in own if setting.is_within]
        if within:
            best[method] = min(within, key=lambda setting: (setting.passes, setting.loss))
        elif own:
            best[method] = min(own, key=lambda setting: (setting.loss, setting.passes))
    return best


# ------------------------------------------------------------------ saying it


def describe(settings: Sequence[Setting], best: dict[str, Setting]) -> Iterator[str]:
    """List all settings, method by method, and mark the chosen ones."""
    for method, chosen in best.items():
        yield f"{method}, loss at most {MOST_LOSS[method]:g}:"
        own = [setting for setting in settings if setting.method == method]
        for setting in sorted(own, key=lambda setting: setting.passes):
            yield f"  {_describe_setting(setting)}{' <- chosen' if setting == chosen else ''}"
        if not chosen.is_within:
            missed = chosen.loss - MOST_LOSS[method]
            yield f"  no setting is within the gate: the least loss misses it by {missed:.2g}"


def _describe_setting(setting: Setting) -> str:
    loss = f"{setting.loss:+.3f}"
    if not math.isnan(setting.low):
        loss += f" [{setting.low:+.3f}, {setting.high:+.3f}]"
    return f"{setting.params or 'as published'}: loss {loss}, {setting.passes:.1f} passes"


def write_experiment(lines: Sequence[str], best: dict[str, Setting]) -> str:
    """Return an experiment that draws GenEval's prompts at the chosen settings.

    Published settings that were chosen are left out: the board has them already.
    """
    points = []
    for method, setting in best.items():
        if setting.params:
            options = [f"++method.{option}" for option in setting.params.split(", ")]
            points.append(f"      - [{', '.join([f'method={method}', *options])}]\n")
    found = "".join(f"# {line}\n" for line in lines)
    sweep = f"    points:\n{''.join(points)}" if points else "    points: []\n"
    return (
        f"{HEAD}{found}benchmark:\n  metadata: official\n  images: 4\nhydra:\n  sweeper:\n{sweep}"
    )


if __name__ == "__main__":
    sys.exit(main())
