"""The options of `python -m harness.check gpu`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser. Their values are read in `command`."""
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the result file (default results/gpu); a second call goes on in it",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="stop after so many minutes; the next call goes on (default: no limit)",
    )
    parser.add_argument(
        "--only",
        metavar="STEP,...",
        help="steps to run, by number or name (default: all)",
    )
    parser.add_argument(
        "--fixtures", type=Path, metavar="DIR", help="folder of the parity fixtures' folders"
    )
    parser.add_argument(
        "--peer", type=Path, metavar="PATH", help="a checkout of FoundationVision/LlamaGen"
    )
    parser.add_argument(
        "--device", default="cuda:0", metavar="NAME", help="GPU to examine (default cuda:0)"
    )
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="print the tables of a result file; run nothing"
    )
