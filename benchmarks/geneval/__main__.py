"""GenEval's files by hand.

python -m benchmarks.geneval export RUN FOLDER    a run's images in the reference's layout, for its own evaluator
python -m benchmarks.geneval summary FILE         the reference's summary of a result file
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.geneval.layout import export
from benchmarks.geneval.prompts import official_file, read_prompts
from benchmarks.geneval.summary import read_results, summarize
from harness.records import UserError, one_line


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.geneval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    out = kinds.add_parser("export", help="a run's images in the reference's layout")
    out.add_argument("run", type=Path)
    out.add_argument("folder", type=Path)
    out.add_argument(
        "--metadata", help="the file that the run was made from; default: the official one"
    )
    summary = kinds.add_parser("summary", help="the reference's summary of a result file")
    summary.add_argument("file", type=Path)
    chosen = parser.parse_args(arguments)
    try:
        if chosen.kind == "summary":
            print(summarize(read_results(chosen.file)))
            return 0
        path, _ = official_file(chosen.metadata, allow_other_version=True)
        copied, missing = export(chosen.run, chosen.folder, read_prompts(path))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"{chosen.folder}: {copied} images" + (f", {missing} missing" if missing else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
