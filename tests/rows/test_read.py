"""Tables are read from wherever they are; what is no table is one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mutransfer.errors import InputError
from mutransfer.rows.read import read


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("runs.csv", b"", "is empty"),
        ("runs.csv", b"hello\nworld\n", "is no table"),
        ("runs.csv", b"width,lr,lr\n1,2,3\n", "two columns named 'lr'"),
        ("runs.csv", b"width,lr,loss\n1,2,3,4\n", "line 2: more values"),
        ("runs.csv", b"\xff\xfe\x00", "not text"),
        ("runs.json", b"{", "is not JSON"),
        ("runs.json", b'{"a": 1}', "holds no list"),
        ("runs.parquet", b"no", "parquet"),
    ],
)
def test_bad_files_are_one_clear_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_absent_files_and_folders_without_a_store(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no.csv", tmp_path / "no.sqlite"):
        with pytest.raises(InputError, match="give a table"):
            read(path)


def test_columns_of_arrays_are_a_table() -> None:
    assert read({"width": np.array([64, 128], np.int32), "loss": [2.4, 2.3]}) == [{"width": 64, "loss": 2.4}, {"width": 128, "loss": 2.3}]  # fmt: skip


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"width": [1, 2], "loss": [1.0]}, "width has 2, loss has 1"),
        ({"width": 3, "loss": [1.0]}, "width='3' is not a column"),
        ({"width": np.ones((2, 2))}, "is not a column"),
        ({"width": [], "loss": []}, "no rows"),
        ({}, "no rows"),
    ],
)
def test_arrays_that_are_no_table_are_one_clear_line(columns: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        read(columns)
    assert message in str(error.value) and "\n" not in str(error.value)
