"""Step 11: NVIDIA's compute-sanitizer on a few rounds, where it is installed.

It sees reads and writes out of bounds inside kernels, which may change no token. In the captured
rounds tensors lie side by side in torch's blocks, which hides some; in the eager ones each tensor
is an allocation of its own. Run as a module, this draws the rounds that it watches.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from harness.check.gpu.finding import Finding, NotRunError, Part, Setting

HOME = Path("/usr/local/cuda/bin/compute-sanitizer")
"""Where a toolkit has it that is not on the path."""
CAPTURED = "captured rounds"
EAGER = "eager rounds, each tensor alone"
TOKENS = 6
LIMIT_S = 280.0


def list_parts(_setting: Setting) -> Sequence[Part]:
    """List captured and eager rounds."""
    return [Part(rounds, partial(watch, rounds), 100) for rounds in (CAPTURED, EAGER)]


def watch(rounds: str, setting: Setting) -> Finding:
    """Draw a few rounds under the tool, and read what it counted."""
    program = shutil.which("compute-sanitizer") or (str(HOME) if HOME.is_file() else "")
    if not program:
        raise NotRunError("compute-sanitizer is not installed")
    command = [program, "--tool", "memcheck", sys.executable, "-m", "harness.check.gpu.sanitizer"]
    environment = dict(os.environ)
    if rounds == EAGER:
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    done = subprocess.run(
        [*command, setting.device, rounds],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=environment,
    )
    return judge_output(done.stdout + done.stderr, done.returncode)


def judge_output(printed: str, code: int) -> Finding:
    """Read the count of errors that a tool printed, and the first of them."""
    counted = re.search(r"ERROR SUMMARY: (\d+) error", printed)
    if counted is None:
        last = printed.strip().rpartition("\n")[2][:200]
        return Finding("", {"exit_code": code}, [f"it printed no summary: {last or 'nothing'}"])
    errors = int(counted[1])
    failures = []
    if errors:
        first = re.search(r"========= (\w.*(?:access|error|read).*)", printed)
        failures.append(f"{errors} errors, the first: {first[1] if first else 'not named'}")
    elif code:
        failures.append(f"the watched process ended with {code}")
    return Finding(f"{errors} errors", {"errors": errors, "exit_code": code}, failures)


def main() -> None:
    """Draw a few tokens of two images on the device, and in the way, that the arguments name."""
    from harness.check.gpu.configured import EMBEDDED, build_model
    from harness.check.gpu.subjects import draw_tokens, open_canvases
    from harness.check.gpu.worker import prepare_device
    from harness.engine.cuda_graphs import without_graphs
    from harness.engine.sampler import Sampler

    device, rounds = sys.argv[1:]
    setting = Setting(device=device)
    prepare_device(setting)
    model, sampling = build_model(EMBEDDED, setting.device)
    with without_graphs() if rounds == EAGER else nullcontext():
        sampler = Sampler(model, sampling, slots=4, prefill=(4, 32), render_batch=2)
    canvases = open_canvases(sampler, range(2))
    draw_tokens(sampler, canvases, TOKENS)
    sampler.render(canvases)
    if rounds == CAPTURED and setting.torch_device.type == "cuda" and sampler.graphs.state != "on":
        sys.exit(f"graphs are {sampler.graphs.state}")


if __name__ == "__main__":
    main()
