"""Rows as a file that other tools read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mutransfer.errors import InputError
from mutransfer.files import write_whole


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """CSV or parquet by the path's suffix, whole or not at all; a value that is not there is empty.

    Raises InputError where the file cannot be written, and for parquet without pyarrow.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".parquet":
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise InputError("parquet needs pyarrow: pip install 'mutransfer[parquet]', or write a .csv") from None
        table = pyarrow.table({name: _column([row.get(name) for row in rows]) for name in columns})
        out = io.BytesIO()
        pyarrow.parquet.write_table(table, out)
        write_whole(path, out.getvalue())
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def _column(values: list[Any]) -> list[Any]:
    """One type for a column: text where the values are of several."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and len(kinds) > 1:
        return [None if value is None else float(value) for value in values]
    return values if len(kinds) <= 1 else [None if value is None else str(value) for value in values]
