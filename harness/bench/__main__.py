"""Measure speed, as ratios: `python -m harness.bench NAME [options]`.

python -m harness.bench sampler model=llamagen_b 'batch=[1,8]'   its speed over other loops
python -m harness.bench methods model=pictogram                  their speed over plain sampling
python -m harness.bench newest model=pictogram                   the same, of the newest methods
python -m harness.bench judges                                   images a second
python -m harness.bench sampler --cfg job                        the options of a bench

Rows are appended to results/bench/, with device, commit and date.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.arguments import print_error
from harness.bench.options import expect_bench_options
from harness.cli import enable_plugins
from harness.engine.memory import cap_memory, short_of_memory
from harness.models.devices import device_named
from harness.records import UserError, one_line
from harness.runs.options import expect_options
from harness.runs.unknown_names import explain_compose_error
from harness.sweeps.overrides import put_flags_first

NAMES = ("sampler", "methods", "newest", "judges")
HELP = {"-h", "--help"}


def main() -> None:
    """Run the bench that the first argument names, and exit.

    Exit code 0 if the bars that bind hold, 1 if one does not, 2 for a mistake in the command, 130
    after Ctrl-C. Batch sizes that are done by then are in the file of the bench.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    enable_plugins()
    logging.getLogger("hydra").setLevel(logging.WARNING)
    name, *options = sys.argv[1:] or [""]
    if HELP & set(sys.argv[1:]):
        print(__doc__)
        sys.exit(0)
    if name not in NAMES:
        sys.exit(print_error(f"bench {name!r}: choose from {', '.join(NAMES)}"))
    sys.argv[1:] = put_flags_first([f"+bench={name}", *options])
    _bars_held.clear()
    try:
        _app()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(print_error(explain_compose_error(error, options)))
    except Exception as error:
        if not short_of_memory(error):
            raise
        problem = f"the device's memory is too small for this bench ({one_line(error)[:120]})"
        sys.exit(print_error(f"{problem}: set fewer images in batch=, or a smaller model="))
    except KeyboardInterrupt:
        sys.exit(print_error("interrupted: the batch sizes before this one are written", code=130))
    sys.exit(0 if _bars_held else 1)


_bars_held: list[bool] = []
"""Holds True once a bench has ended and its bars hold: Hydra's main returns nothing."""


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def _app(config: DictConfig) -> None:
    expect_options(config)
    expect_bench_options(str(config.bench).split(".")[-2], config)
    on_cpu = device_named(str(config.device)).type == "cpu"
    with cap_memory() if on_cpu else nullcontext():
        run_bench = hydra.utils.get_method(config.bench)
        hold = run_bench(config)
    if hold:
        _bars_held.append(True)


if __name__ == "__main__":
    main()
