"""Write a bench's rows: to `results/bench/<bench>-<model>-<device>.csv`, a plot, and the terminal.

The file keeps the rows of earlier benches (see history.py); the plot beside it shows the latest.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from harness.bench.history import append_rows, read_rows
from harness.engine.meter import describe
from harness.kernels import why_unused
from harness.results.columns import Table
from harness.runs.generate import find_commit

RESULTS = Path("results")


class Outcome:
    """The rows of one bench, each with its date, commit and machine.

    `about` is true of all rows, as the model's name. Raises UserError, before anything is
    measured, if the file that the rows belong to cannot be read.
    """

    def __init__(
        self, table: Table, model: Any, heading: str, about: Mapping[str, object] | None = None
    ) -> None:
        subject = f"{model.name}-{model.device.type}"
        self.path = RESULTS / table.file.replace("*", subject)
        self._table = table
        self._shared = {**(about or {}), **describe_machine(model.device)}
        self._rows: list[dict[str, Any]] = []
        self._written = 0
        read_rows(self.path)

        print(heading)
        print(", ".join(str(value) for value in self._shared.values()), flush=True)

    def add(self, **values: Any) -> None:
        """Add a row; floats are written with four significant digits."""
        unknown = values.keys() - set(self._table.names)
        assert not unknown, f"columns.py does not describe {', '.join(sorted(unknown))}"
        row = {name: _round_float(value) for name, value in values.items()}
        self._rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)

    def write(self, *, plot: tuple[str, str, str] | None = None) -> None:
        """Append the rows that are not in the file yet, and plot all rows of this bench, if wanted.

        `plot` names the columns of x and y, and that whose values get a line each.
        """
        added = [{**row, **self._shared} for row in self._rows[self._written :]]
        append_rows(self.path, self._table, added)
        self._written = len(self._rows)
        if plot:
            self._plot(pd.DataFrame(self._rows), *plot)
        print(f"{self.path}: {len(added)} rows appended")

    def _plot(self, frame: pd.DataFrame, x: str, y: str, series: str) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(5, 3.4), layout="constrained")
        for name, line in frame.groupby(series, sort=False):
            axes.plot(line[x], line[y], marker="o", markersize=4, label=str(name))

        sizes = sorted(set(frame[x]))
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
        figure.savefig(self.path.with_suffix(".svg"), metadata={"Date": None})
        pyplot.close(figure)


def _round_float(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def describe_machine(device: torch.device) -> dict[str, str]:
    """Describe what a measurement belongs to: device, machine, versions, commit and day."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        capability = f"CUDA {torch.version.cuda}, capability {major}.{minor}"
    else:
        capability = str(torch.backends.cpu.get_cpu_capability())
    return {
        **describe(device),
        "capability": capability,
        "kernels": why_unused(device) or "Triton",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "commit": find_commit(),
        "machine": describe_host(),
    }


def describe_host() -> str:
    """Describe the host without its name, so that the rows can be published."""
    processor = describe(torch.device("cpu"))["device"].rpartition(", ")[0]
    memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return f"{processor}, {os.cpu_count()} CPUs, {memory_gb:.0f} GB, {platform.system()}"
