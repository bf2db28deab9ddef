"""Check an evaluator by MLPerf's window: FID and CLIP of SDXL's images, which MLPerf accepts.

python -m benchmarks.coco window RUN

RUN is the folder of a run of benchmark=coco_mlperf with SDXL's images (benchmark.images=FOLDER).
The window is closed on both sides: better is different, too. It says nothing about other models.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from benchmarks.coco.conventions import MLPERF_CLIP, MLPERF_FID, is_inside_mlperf
from harness.records import SET_METRICS, Score, SetMetrics, UserError, one_line

JUDGE = "coco-mlperf-"
"""How the judge's id of the protocol begins."""


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command line: 0 inside the window, 1 outside, 2 for a run that is no such."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coco",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    window = commands.add_parser("window", help="compare a run with MLPerf's window")
    window.add_argument("run", type=Path)
    chosen = parser.parse_args(arguments)
    try:
        clip, fid = read_numbers(chosen.run)
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    are_inside = is_inside_mlperf(clip, fid)
    named = (("CLIP", clip, MLPERF_CLIP), ("FID", fid, MLPERF_FID))
    for is_inside, (name, value, (low, high)) in zip(are_inside, named, strict=True):
        word = "inside" if is_inside else "outside"
        print(f"{name} {value:.5f}: {word} {low} to {high}")
    return 0 if all(are_inside) else 1


def read_numbers(run: Path) -> tuple[float, float]:
    """Read the CLIP score and FID of a complete run.

    Raises UserError for a run of another protocol, one that is not complete, and one without FID.
    """
    file = run / SET_METRICS
    if not file.is_file():
        raise UserError(f"{file}: there is none: score a run of benchmark=coco_mlperf first")
    try:
        sets = SetMetrics.from_json(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: cannot be read ({one_line(error)})") from None
    if not sets.judge.startswith(JUDGE):
        raise UserError(f"{run}: judged by {sets.judge}, not as MLPerf does: benchmark=coco_mlperf")
    if sets.problem or "fid" not in sets.metrics:
        raise UserError(f"{run}: it has no FID ({sets.problem or 'no reference'})")
    clips = _read_clips(run, sets.judge)
    if len(clips) != sets.planned:
        raise UserError(f"{run}: {len(clips)} of {sets.planned} images have a CLIP score")
    return math.fsum(clips.values()) / len(clips), sets.metrics["fid"].value


def _read_clips(run: Path, judge: str) -> dict[tuple[str, int], float]:
    """Read the CLIP score of each image from the journals of all shares; the last one counts."""
    found = {}
    for journal in sorted(run.glob("scores*.jsonl")):
        for line in journal.read_text(encoding="utf-8").splitlines():
            try:
                score = Score.from_json(line)
            except (ValueError, json.JSONDecodeError) as error:
                raise UserError(f"{journal}: cannot be read ({one_line(error)})") from None
            clip = score.detail.get("metrics", {}).get("clip")
            if score.judge == judge and clip is not None:
                found[score.prompt_id, score.image] = float(clip)
    return found


if __name__ == "__main__":
    sys.exit(main())
