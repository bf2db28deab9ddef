"""`python -m harness.check`: conformance files, audits of run folders, and a GPU's acceptance.

python -m harness.check geneval FILE     our GenEval decision against a conformance file
python -m harness.check geneval-summary FILE     its summary, likewise
python -m harness.check acceptance FILE  acceptance rules of speculative methods, likewise
python -m harness.check cool_sd FILE     Cool-SD's weights, tests, residuals and bound, likewise
python -m harness.check gridar FILE      GridAR's guidance, verdicts, copies, prompts and choice
python -m harness.check scalingar FILE   our ScalingAR arithmetic, likewise
python -m harness.check sjd_pac FILE     SJD-PAC's trees, candidates and walks, likewise
python -m harness.check t2i_compbench FILE     T2I-CompBench++'s questions, boxes, counts and scores
python -m harness.check tiif FILE        TIIF-Bench's replies, scores and text metrics, likewise
python -m harness.check pie_bench FILE   PIE-Bench's masks, pixel metrics, distances and means
python -m harness.check coco FILE        caption lists, scores and distances of COCO, likewise
python -m harness.check parity FOLDER    our model against what the original returned
python -m harness.check run FOLDER       is a run folder complete, intact and reproducible?
python -m harness.check repeat [OPTIONS] is a run the same in other batches, orders, pieces, sizes?
python -m harness.check memory [OPTIONS] what would a run take of a GPU's memory?
python -m harness.check gpu              is this harness right on this GPU, and how fast is it?
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.arguments import natural
from harness.check.gpu.options import add_options
from harness.check.originals import CONFORMANCE
from harness.records import UserError, one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line, and return the exit code."""
    chosen = _parse_arguments(arguments)
    try:
        return _carry_out(chosen)
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def _carry_out(chosen: argparse.Namespace) -> int:
    """Carry out one kind of check; each kind imports what it needs, and no more."""
    if chosen.kind == "gpu":
        from harness.check.gpu.command import check_gpu

        return check_gpu(chosen)
    if chosen.kind == "repeat":
        from harness.check.audit import check_reproducibility

        return check_reproducibility(chosen.options)
    if chosen.kind == "memory":
        from harness.check.capacity import print_capacities

        return print_capacities(chosen.options, _read_cards(chosen.cards))
    if chosen.kind == "run":
        from harness.check.audit import check_run

        return check_run(chosen.folder, chosen.again, chosen.config_dir)

    from harness.check.originals import check_conformance, check_parity

    if chosen.kind == "parity":
        return check_parity(chosen.folder, chosen.device)
    return check_conformance(chosen.kind, chosen.file)


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m harness.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in CONFORMANCE:
        conformance = kinds.add_parser(kind, help="run a conformance file")
        conformance.add_argument("file", type=Path)
    parity = kinds.add_parser("parity", help="compare a model with what the original returned")
    parity.add_argument("folder", type=Path)
    parity.add_argument(
        "--device", default="cpu", help="cpu (default) or cuda; float32 without TF32"
    )
    audit = kinds.add_parser("run", help="audit a run folder")
    audit.add_argument("folder", type=Path)
    audit.add_argument(
        "--again", type=natural, default=4, help="images to draw again and compare (default 4)"
    )
    audit.add_argument(
        "--config-dir", type=Path, help="your folder of configurations; your code lies beside it"
    )
    repeat = kinds.add_parser(
        "repeat", help="draw runs again in other batches, orders, pieces and sizes"
    )
    repeat.add_argument("options", nargs="*", help="of a sweep (default experiment=determinism)")
    memory = kinds.add_parser("memory", help="sum up what a run takes of a GPU's memory")
    memory.add_argument("options", nargs="*", help="of a run, such as model=llamagen_xl_512")
    memory.add_argument("--cards", default="24,80", help="GB of each card (default 24,80)")
    add_options(kinds.add_parser("gpu", help="accept this harness on a GPU, step by step"))
    return parser.parse_args(arguments)


def _read_cards(cards: str) -> list[float]:
    """Read the GB of some cards. Raises UserError for anything else."""
    try:
        sizes_gb = [float(size) for size in cards.split(",")]
    except ValueError:
        sizes_gb = []
    if not sizes_gb or not all(0 < size < math.inf for size in sizes_gb):
        raise UserError(f"--cards {cards}: give GB above 0, as 24,80")
    return sizes_gb
