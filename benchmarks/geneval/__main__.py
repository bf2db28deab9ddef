"""Exchange files with GenEval's reference by hand.

python -m benchmarks.geneval export RUN FOLDER    a run's images in the reference's layout
python -m benchmarks.geneval summary FILE         the reference's summary of a result file

An exported folder is ready for the reference's own evaluator.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.geneval.layout import export_run
from benchmarks.geneval.prompts import locate_metadata, read_prompts
from benchmarks.geneval.summary import read_results, summarize
from harness.records import UserError, one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; 2 is a mistake of the user."""
    chosen = _parse_arguments(arguments)
    try:
        if chosen.kind == "summary":
            print(summarize(read_results(chosen.file)))
            return 0
        path, _ = locate_metadata(chosen.metadata, allow_other_version=True)
        copied, missing = export_run(chosen.run, chosen.folder, read_prompts(path))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"{chosen.folder}: {copied} images" + (f", {missing} missing" if missing else ""))
    return 0


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.geneval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True)

    export = kinds.add_parser("export", help="a run's images in the reference's layout")
    export.add_argument("run", type=Path)
    export.add_argument("folder", type=Path)
    export.add_argument(
        "--metadata", help="the file that the run was made from; default: the official one"
    )

    summary = kinds.add_parser("summary", help="the reference's summary of a result file")
    summary.add_argument("file", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
