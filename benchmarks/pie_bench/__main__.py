"""Compare two runs of PIE-Bench in all metrics, or copy a run's images into the reference's layout.

python -m benchmarks.pie_bench compare RUN OTHER
python -m benchmarks.pie_bench export RUN METADATA FOLDER
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.pie_bench.layout import export_run
from benchmarks.pie_bench.summary import compare_runs
from harness.arguments import explain_mistakes
from harness.runs.read import read_run


@explain_mistakes
def main() -> int:
    """Carry out the command line, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pie_bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", help="compare two runs, paired by prompt")
    compare.add_argument("run", type=Path)
    compare.add_argument("other", type=Path)
    export = commands.add_parser("export", help="copy a run's images into the reference's layout")
    export.add_argument("run", type=Path)
    export.add_argument("metadata", type=Path, help="PIE-Bench's folder")
    export.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "compare":
        for line in compare_runs(read_run(chosen.run), read_run(chosen.other)):
            print(line)
        return 0
    copied, missing = export_run(chosen.run, chosen.metadata, chosen.folder)
    print(f"{copied} images copied to {chosen.folder}, {missing} missing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
