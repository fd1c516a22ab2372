"""The store: many writers, nothing half-written, clear words about files that are no store."""

import csv
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mutransfer.errors import InputError
from mutransfer.sweep import Store, read_rows
from mutransfer.sweep.export import write_table
from mutransfer.sweep.store import FILE
from tests.sweep.small import points, row


def _python(code: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)})


_WRITE = """
import sys
from pathlib import Path
from mutransfer.sweep.store import Store
from tests.sweep.small import points, row
with Store(Path(sys.argv[1])) as store:
    for i in range(50):
        assert store.claim(f"{sys.argv[2]}-{i}")
        store.add(row(f"{sys.argv[2]}-{i}"), points(20))
"""


def test_four_processes_write_fifty_rows_each(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    writers = [_python(_WRITE, folder, name) for name in "abcd"]
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0] * 4
    with Store(folder, create=False) as store:
        assert sorted(store.statuses()) == sorted(f"{name}-{i}" for name in "abcd" for i in range(50))
        assert all(len(found) == 20 for found in store.points().values())
    assert sorted(path.name for path in folder.iterdir()) == [FILE]


_CLAIM = """
import sys, time
from pathlib import Path
from mutransfer.sweep.store import Store
store = Store(Path(sys.argv[1]))
print(store.claim("a"), flush=True)
time.sleep(60)
"""


def test_claim_dies_with_its_process(tmp_path: Path) -> None:
    process = _python(_CLAIM, tmp_path)
    assert process.stdout is not None
    with process, Store(tmp_path) as store:
        assert process.stdout.readline() == "True\n"
        assert not store.claim("a")
        assert store.claim("b")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert store.claim("a")
        assert len(list(tmp_path.glob(".claim-*"))) == 1


def test_claims_are_given_back(tmp_path: Path) -> None:
    with Store(tmp_path) as one, Store(tmp_path) as other:
        assert one.claim("a") and one.claim("a") and not other.claim("a")
        one.release("a")
        assert other.claim("a")
        other.add(row("x", result="a"))
        assert not one.claim("a")
        assert one.claim("b")
        one.close()
        assert other.claim("b")


def test_a_run_is_kept_once_and_only_a_failed_one_is_replaced(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add(row("a", "failed", reason="no memory"), points(3))
        store.add(row("a", metrics={"loss": 2.0}), points(5), attempts=2)
        store.add(row("a", metrics={"loss": 3.0}), points(7))
        store.add(row("a", "failed", reason="late"), points(1))
        (kept,) = store.rows()
        assert (kept["status"], kept["loss"], kept["attempts"], len(store.points()["a"])) == ("finished", 2.0, 2, 5)


def test_numbers_that_are_not_finite_are_empty(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add(row("a", "diverged"), [{"step": 1, "loss": float("inf"), "grad_norm": float("nan"), "own": 2.0}])
        assert store.points(["a"]) == {
            "a": [{"step": 1, "loss": None, "val_loss": None, "lr": None, "grad_norm": None, "tokens": None,
                   "seconds": None, "own": 2.0}]
        }  # fmt: skip


def _is_one_line(error: "pytest.ExceptionInfo[InputError]", *words: str) -> None:
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_torn_transaction_is_as_if_it_had_not_been(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    with Store(tmp_path) as store:
        store.add(row("a"), points(5))
        whole = (tmp_path / f"{FILE}-wal").stat().st_size
        store.add(row("b"), points(500))
        for name in (FILE, f"{FILE}-wal"):  # as a kill finds them
            shutil.copy(tmp_path / name, copy / name)
    with (copy / f"{FILE}-wal").open("r+b") as file:
        file.truncate((whole + (copy / f"{FILE}-wal").stat().st_size) // 2)
    with Store(copy) as store:
        assert list(store.statuses()) == ["a"]
        assert list(store.points()) == ["a"]


def test_what_is_no_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"width,lr,loss\n" * 500)
    for create in (True, False):
        with pytest.raises(InputError) as error:
            Store(tmp_path, create=create)
        _is_one_line(error, repr(str(tmp_path / FILE)), "not a database")
    with pytest.raises(InputError) as error:
        read_rows(tmp_path / "elsewhere")
    _is_one_line(error, "holds no sweep")


def test_damaged_store_is_one_line(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for i in range(200):
            store.add(row(f"{i}"), points(20))
    path = tmp_path / FILE
    content = bytearray(path.read_bytes())
    for start in range(4096, len(content) - 4096, 4096):
        content[start : start + 64] = b"\xff" * 64
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_rows(tmp_path)
    _is_one_line(error, str(path), "malformed")


def test_later_version_is_named(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        db.execute("PRAGMA user_version = 2")
    db.close()
    for create in (True, False):
        with pytest.raises(InputError) as error:
            Store(tmp_path, create=create)
        _is_one_line(error, "later version", "upgrade mutransfer")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs users")
def test_read_only_folder_is_read_and_not_written() -> None:
    folder = Path(tempfile.mkdtemp())
    mine = os.geteuid()
    try:
        with Store(folder) as store:
            store.add(row("a"), points(2))
        (folder / FILE).chmod(0o444)
        folder.chmod(0o555)
        if mine == 0:
            os.seteuid(65534)
        assert [found["key"] for found in read_rows(folder)] == ["a"]
        with pytest.raises(InputError) as error, Store(folder) as store:
            store.add(row("b"))
        _is_one_line(error, str(folder), "readonly")
        with pytest.raises(InputError) as error:
            Store(folder / "new")
        _is_one_line(error, "cannot be used as a store")
    finally:
        os.seteuid(mine)
        folder.chmod(0o755)
        shutil.rmtree(folder)


ROWS = [
    {"key": "a", "width": 32, "lr": 0.1, "loss": 2.123456789012345, "reason": None},
    {"key": "b", "width": 64, "lr": 1, "loss": None, "reason": 'loss is "inf", at\nupdate 3', "extra": 1},
]


def test_csv_round_trip(tmp_path: Path) -> None:
    write_table(tmp_path / "rows.csv", ROWS)
    with (tmp_path / "rows.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(r["key"], int(r["width"]), float(r["lr"]), r["reason"]) for r in found] == [
        ("a", 32, 0.1, ""),
        ("b", 64, 1.0, ROWS[1]["reason"]),
    ]
    assert float(found[0]["loss"]) == ROWS[0]["loss"] and found[1]["loss"] == "" and found[1]["extra"] == "1"


def test_parquet_round_trip(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_table(tmp_path / "rows.parquet", ROWS)
    found = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert found == [{**ROWS[0], "extra": None}, ROWS[1]]
