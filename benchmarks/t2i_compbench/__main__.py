"""Copy a run's images into the reference's layout, for the reference's detector.

python -m benchmarks.t2i_compbench export RUN FOLDER
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.t2i_compbench.layout import export_run
from harness.records import UserError, one_line


def main() -> int:
    """Carry out the command line, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.t2i_compbench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="copy a run's images into the reference's layout")
    export.add_argument("run", type=Path)
    export.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    try:
        copied, missing = export_run(chosen.run, chosen.folder)
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"{copied} images copied to {chosen.folder}, {missing} missing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
