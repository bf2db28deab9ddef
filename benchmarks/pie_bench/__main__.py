"""Compare two results of PIE-Bench in all metrics, or copy images into the reference's layout.

python -m benchmarks.pie_bench compare RUN OTHER      run folders, or result files of the reference
python -m benchmarks.pie_bench export RUN METADATA FOLDER
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.pie_bench.layout import export_run
from benchmarks.pie_bench.summary import compare_results
from harness.records import UserError, one_line


def main() -> int:
    """Carry out the command line, and return the exit code."""
    chosen = _parse_arguments()
    try:
        return _carry_out(chosen)
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def _carry_out(chosen: argparse.Namespace) -> int:
    if chosen.command == "compare":
        for line in compare_results(chosen.run, chosen.other):
            print(line)
        return 0
    copied, missing = export_run(chosen.run, chosen.metadata, chosen.folder)
    print(f"{copied} images copied to {chosen.folder}, {missing} missing")
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pie_bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", help="compare two results, paired by image")
    compare.add_argument("run", type=Path)
    compare.add_argument("other", type=Path)
    export = commands.add_parser("export", help="copy a run's images into the reference's layout")
    export.add_argument("run", type=Path)
    export.add_argument("metadata", type=Path, help="PIE-Bench's folder")
    export.add_argument("folder", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
