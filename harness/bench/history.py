"""The rows of a bench's CSV file: new ones are appended, earlier ones are never changed.

A file holds the measurements of many days, commits and machines. It is replaced as a whole, so a
bench that is killed leaves either the rows before a write or those after it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from harness.records import UserError
from harness.results.columns import Table
from harness.runs.journal import write_atomic

Row = dict[str, str]
"""The cells of a row as they stand in the file, by column."""


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Return the header and the rows of a file; both are empty where there is none.

    Raises UserError for a file whose rows do not fit its header.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return [], []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): mend it or move it away") from None

    lines = csv.reader(io.StringIO(text, newline=""))
    header = next(lines, [])
    rows = []
    for cells in lines:
        if len(cells) != len(header):
            raise UserError(
                f"{path}, line {lines.line_num}: {len(cells)} cells under {len(header)} columns; "
                "mend it or move it away, and measure again"
            )
        rows.append(dict(zip(header, cells, strict=True)))
    return header, rows


def append_rows(path: Path, table: Table, added: Iterable[Mapping[str, object]]) -> None:
    """Append rows to a file under the columns of its table.

    Rows that were written under other columns keep their cells: a column that they lack is empty,
    and a column that the table does not have follows the table's own. Raises UserError where the
    file cannot be read or written.
    """
    header, rows = read_rows(path)
    names = merge_headers(table.names, header)
    rows += [_format_row(row) for row in added]
    write_atomic(path, _to_csv(names, rows))


def merge_headers(names: Sequence[str], earlier: Sequence[str]) -> list[str]:
    """List a table's columns, then those that only an earlier header has, in its order."""
    return [*names, *(name for name in earlier if name not in names)]


def _to_csv(names: Sequence[str], rows: Iterable[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _format_row(row: Mapping[str, object]) -> Row:
    """Write the cells of a row; a number that is not known, NaN, is an empty one."""
    cells = {}
    for name, value in row.items():
        is_unknown = value is None or value != value
        cells[name] = "" if is_unknown else str(value)
    return cells
