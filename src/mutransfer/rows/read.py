"""A table of runs from wherever it is: rows, a data frame, CSV, TSV, JSON, JSON lines, parquet, our own store."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mutransfer.errors import InputError

Row = dict[str, Any]
ENDINGS = ".csv, .tsv, .json, .jsonl, .parquet or .sqlite"


def read(rows: Any) -> list[Row]:
    """Rows as plain dictionaries. `rows`: dicts, a data frame (pandas, polars, arrow), a mapping of columns, or a path.

    Raises InputError for anything else, and where there are no rows.
    """
    if isinstance(rows, (str, os.PathLike)):
        found = read_file(Path(rows))
    elif hasattr(rows, "to_dicts"):  # polars
        found = list(rows.to_dicts())
    elif hasattr(rows, "columns") and hasattr(rows, "to_dict"):  # pandas
        found = list(rows.to_dict("records"))
    elif hasattr(rows, "to_pylist"):  # arrow
        found = list(rows.to_pylist())
    elif isinstance(rows, Mapping):
        found = _from_arrays(rows)
    elif isinstance(rows, Iterable) and not isinstance(rows, bytes):
        found = list(rows)
    else:
        raise InputError(
            f"rows={type(rows).__name__}: give a list of dicts (width, lr, seed, loss), a data frame or the path of a table"
        )
    wrong = next((row for row in found if not isinstance(row, Mapping)), None)
    if wrong is not None:
        raise InputError(
            f"rows: {str(wrong)[:60]!r} is not a row; give dicts such as {{'width': 64, 'lr': 0.01, 'loss': 2.3}}"
        )
    if not found:
        raise InputError("the table has no rows: give one row per run, with a size (width), lr, seed and loss")
    return [{str(name): value for name, value in row.items()} for row in found]


def _from_arrays(columns: Mapping[Any, Any]) -> list[Row]:
    """Rows from columns of equal length: {"width": [64, 128], "loss": [2.4, 2.3]}."""
    lists: dict[str, list[Any]] = {}
    for name, items in columns.items():
        if (
            isinstance(items, (str, bytes, Mapping))
            or not isinstance(items, Iterable)
            or getattr(items, "ndim", 1) != 1
        ):
            raise InputError(f"rows: {name}={str(items)[:40]!r} is not a column; give one value per run, such as {{'width': [64, 128], …}}")  # fmt: skip
        lists[str(name)] = list(items.tolist() if hasattr(items, "tolist") else items)  # pyright: ignore[reportAttributeAccessIssue]
    lengths = {name: len(items) for name, items in lists.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"rows: columns must be equally long; {', '.join(f'{name} has {n}' for name, n in lengths.items())}")  # fmt: skip
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def read_file(path: Path) -> list[Row]:
    """The rows of one file or store."""
    if path.is_dir() or path.suffix.lower() in (".sqlite", ".sqlite3", ".db"):
        if not path.exists() or (path.is_dir() and not (path / "runs.sqlite").exists()):
            raise InputError(
                f"{str(path)!r}: there is no runs.sqlite; give a table ({ENDINGS}) or the folder of a sweep"
            )
        from mutransfer.sweep.store import read_rows

        return list(read_rows(path))
    if not path.exists():
        raise InputError(f"{str(path)!r} does not exist: give a table of runs ({ENDINGS}) or the folder of a sweep")
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{str(path)!r} is not text in UTF-8: give {ENDINGS}") from None
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror or error}") from None
    if not text.strip():
        raise InputError(f"{str(path)!r} is empty: give one row per run, with a size (width), lr, seed and loss")
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return [_json(line, path) for line in text.splitlines() if line.strip()]
    if path.suffix.lower() == ".json":
        return _from_json(_json(text, path), path)
    return _separated(text, path)


def is_store(rows: Any) -> bool:
    """Whether this is the folder of a sweep, or its file."""
    if not isinstance(rows, (str, os.PathLike)):
        return False
    path = Path(rows)
    return (path / "runs.sqlite").exists() if path.is_dir() else path.name == "runs.sqlite" and path.exists()


def read_curves(path: str | os.PathLike[str]) -> list[Row]:
    """A sweep's runs step by step: one row per logged point, with the run's own fields; `lr` is the run's, `scheduled_lr` the point's."""
    from mutransfer.sweep.store import Store

    place = Path(path)
    with Store(place if place.is_dir() else place.parent, create=False) as store:
        rows, points = store.rows(), store.points()
    found = [
        {**row, **{("scheduled_lr" if name == "lr" else name): value for name, value in point.items()}}
        for row in rows for point in points.get(str(row["key"]), ())
    ]  # fmt: skip
    if not found:
        raise InputError(f"{str(path)!r}: no run of the sweep has logged a step")
    return found


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not JSON: {error}") from None


def _from_json(value: Any, path: Path) -> list[Row]:
    """A list of rows, an object that holds one, or an object of columns."""
    if isinstance(value, Mapping):
        lists = {name: item for name, item in value.items() if isinstance(item, list)}
        if "rows" in lists or "runs" in lists:
            value = lists.get("rows", lists.get("runs"))
        elif lists and len({len(item) for item in lists.values()}) == 1:
            value = [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]
    if not isinstance(value, list):
        raise InputError(f"{str(path)!r} holds no list of rows: write [{{'width': 64, 'lr': 0.01, 'loss': 2.3}}, …]")
    return value


def _separated(text: str, path: Path) -> list[Row]:
    head = text.lstrip().splitlines()[0]
    counts = {mark: head.count(mark) for mark in ("\t", ",", ";")}
    mark = max(counts, key=lambda one: counts[one])
    if not counts[mark]:
        raise InputError(
            f"{str(path)!r} is no table: its first line is {head[:60]!r}, not column names with commas or tabs"
        )
    reader = csv.DictReader(io.StringIO(text.lstrip("\n\r")), delimiter=mark)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise InputError(f"{str(path)!r} cannot be read as a table: {error}") from None
    names = [name.strip() for name in reader.fieldnames or []]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{str(path)!r} has two columns named {twice!r}: rename one of them")
    for number, row in enumerate(rows, 2):
        if None in row:
            raise InputError(
                f"{str(path)!r}, line {number}: more values than the {len(names)} columns of the first line"
            )
    # a spreadsheet saves the empty lines below a table as bare commas
    filled = [row for row in rows if any(value is not None and value.strip() for value in row.values())]
    return [{str(name).strip(): value for name, value in row.items()} for row in filled]


def _parquet(path: Path) -> list[Row]:
    try:
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]  # optional
    except ImportError:
        raise InputError(f"{str(path)!r}: reading parquet needs pyarrow; install it, or give a CSV") from None
    try:
        return list(parquet.read_table(path).to_pylist())
    except Exception as error:  # pyarrow's own kinds of errors: whatever it is, the file cannot be read
        raise InputError(f"{str(path)!r} cannot be read as parquet: {str(error).splitlines()[0]}") from None
