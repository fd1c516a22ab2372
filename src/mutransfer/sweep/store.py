"""Runs as rows of one SQLite file: any number of processes may write to it, and a kill loses no finished run.

`runs.sqlite` is in WAL mode. A run and its logged points are written in one transaction when the run ends, so that there
is never half of one. A run under way belongs to a process through a claim, which dies with the process.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mutransfer.errors import InputError

FILE = "runs.sqlite"
VERSION = 1
"""Of the tables below, kept in the file's `user_version`."""
STATUSES = ("finished", "diverged", "stopped", "failed")
"""finished: it has a loss · diverged: its loss was not finite · stopped: given up as hopeless · failed: an error ended it."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
  key TEXT PRIMARY KEY, result TEXT NOT NULL, status TEXT NOT NULL, reason TEXT, config TEXT NOT NULL,
  metrics TEXT NOT NULL,
  flops REAL, seconds REAL, cpu_seconds REAL, attempts INTEGER NOT NULL, copied_from TEXT,
  version TEXT NOT NULL, environment TEXT NOT NULL, git TEXT NOT NULL, ended TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS results ON runs (result);
CREATE TABLE IF NOT EXISTS points (
  key TEXT NOT NULL, step INTEGER NOT NULL, loss REAL, val_loss REAL, lr REAL, grad_norm REAL, tokens REAL, seconds REAL,
  more TEXT, PRIMARY KEY (key, step)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (result TEXT PRIMARY KEY, owner TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_POINT = ("step", "loss", "val_loss", "lr", "grad_norm", "tokens", "seconds")


class Store:
    """The runs in a folder. `create=False` for readers: a folder without a store is then one clear line.

    Raises InputError for a folder that cannot be written and a file that is no store.
    """

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        self.folder, self.path = folder, folder / FILE
        self.owner = uuid.uuid4().hex
        self._lock: Any = None
        if not create and not self.path.is_file():
            raise InputError(f"{str(folder)!r} holds no sweep (no {FILE} in it): give the folder of a sweep's --out")
        try:
            if create:
                folder.mkdir(parents=True, exist_ok=True)
            self._db = self._open(create)
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{str(self.path)!r} cannot be used as a store of runs: {error}") from None

    def _open(self, create: bool) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            try:
                self._prepare(db)
            except BaseException:
                db.close()
                raise
        except sqlite3.OperationalError:
            if create:
                raise
            # a reader of a folder that it may not write to: WAL needs two files beside the store even for reading
            db = self._open_to_read("mode=ro") or self._open_to_read("immutable=1")
            if db is None:
                raise
        return db

    def _open_to_read(self, how: str) -> sqlite3.Connection | None:
        db = sqlite3.connect(f"{self.path.absolute().as_uri()}?{how}", uri=True, isolation_level=None)
        try:
            self._check_version(db)
            db.execute("SELECT 1 FROM runs").fetchone()
        except sqlite3.OperationalError:
            db.close()
            return None
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        self._check_version(db)
        _patient(db, "PRAGMA journal_mode=WAL")
        # FULL: a finished run survives a power cut, too; one fsync per run is nothing beside the run
        db.execute("PRAGMA synchronous=FULL")
        if self._check_version(db) == VERSION:
            return
        _patient(db, "BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")

    def _check_version(self, db: sqlite3.Connection) -> int:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise InputError(
                f"{str(self.path)!r} was written by a later version of mutransfer (tables of version {version}, this one "
                f"knows {VERSION}): upgrade mutransfer, or give another folder"
            )
        return version

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the claims and close the file."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("DELETE FROM claims WHERE owner = ?", (self.owner,))
        self._db.close()
        if self._lock is not None:
            self._lock.close()
            self._lock_path(self.owner).unlink(missing_ok=True)

    # --- claims -------------------------------------------------------------------------------------------------------

    def claim(self, result: str) -> bool:
        """Whether the run of this `result` is now this process's: not ended, and not under way in a living process."""
        with self._transaction():
            self._hold_lock()
            if self._db.execute("SELECT 1 FROM runs WHERE result = ? AND status != 'failed'", (result,)).fetchone():
                return False
            row = self._db.execute("SELECT owner FROM claims WHERE result = ?", (result,)).fetchone()
            if row is not None and row[0] != self.owner and self._alive(row[0]):
                return False
            self._db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?)", (result, self.owner))
        return True

    def _lock_path(self, owner: str) -> Path:
        return self.folder / f".claim-{owner}.lock"

    def _hold_lock(self) -> None:
        """A file lock held while this process lives: the system releases it however the process ends.

        Inside a transaction, so that nobody takes the new file for that of a dead process before it is locked.
        """
        if self._lock is not None:
            return
        for path in self.folder.glob(".claim-*.lock"):
            self._alive(path.name.removeprefix(".claim-").removesuffix(".lock"))  # removes those of the dead
        self._lock = self._lock_path(self.owner).open("w")
        _try_lock(self._lock)

    def _alive(self, owner: str) -> bool:
        try:
            with self._lock_path(owner).open("r+") as file:
                free = _try_lock(file)
        except FileNotFoundError:
            return False
        if free:
            self._lock_path(owner).unlink(missing_ok=True)
        return not free

    # --- writing ------------------------------------------------------------------------------------------------------

    def add(self, row: Mapping[str, Any], points: Sequence[Mapping[str, Any]] = (), *, attempts: int = 1) -> None:
        """One ended run with its points, whole or not at all; it replaces a failed one of the same key, and nothing else.

        `row`: key, result (what decides the outcome: runs that must come out alike share it), status, reason, config
        (plain JSON), metrics (name → number or None), flops, seconds, cpu_seconds, copied_from, version, environment,
        git, ended.
        """
        if row["status"] not in STATUSES:
            raise ValueError(f"status {row['status']!r} is none of {STATUSES}")
        names = (
            "key", "result", "status", "reason", "config", "metrics", "flops", "seconds", "cpu_seconds", "copied_from",
            "version", "environment", "git", "ended",
        )  # fmt: skip
        values = [_stored(row.get(name)) for name in names]
        with self._transaction():
            self._db.execute("DELETE FROM runs WHERE key = ? AND status = 'failed'", (row["key"],))
            done = self._db.execute(
                f"INSERT OR IGNORE INTO runs ({', '.join(names)}, attempts) VALUES ({', '.join('?' * len(names))}, ?)",
                (*values, attempts),
            )
            if done.rowcount:
                self._db.execute("DELETE FROM points WHERE key = ?", (row["key"],))
                self._db.executemany(
                    "INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [(row["key"], *(_number(p.get(n)) for n in _POINT), _more(p)) for p in points],
                )
            self._db.execute("DELETE FROM claims WHERE result = ?", (row["result"],))

    def release(self, result: str) -> None:
        """Give a claim back."""
        with self._transaction():
            self._db.execute("DELETE FROM claims WHERE result = ? AND owner = ?", (result, self.owner))

    def note(self, name: str, value: Any) -> None:
        """Keep a fact about the sweep (its command, its estimate) under a name."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, json.dumps(value)))

    # --- reading ------------------------------------------------------------------------------------------------------

    def notes(self) -> dict[str, Any]:
        """Every kept fact."""
        return {name: json.loads(value) for name, value in self._read("SELECT name, value FROM notes")}

    def statuses(self) -> dict[str, str]:
        """key → status of every ended run."""
        return dict(self._read("SELECT key, status FROM runs"))

    def find(self, result: str) -> dict[str, Any] | None:
        """The ended run with this result as `add` took it, a failed one if there is no other, or None."""
        found = self._records("WHERE result = ?", result)
        return min(found, key=lambda record: record["status"] == "failed", default=None)

    def rows(self) -> list[dict[str, Any]]:
        """Every ended run as one flat row: key, status, reason, the config's fields, the metrics, cost, provenance.

        The model's fields stand beside the run's own (`width`, `depth`); a field of the base is `base.width`.
        """
        return [flat_row(record) for record in self._records()]

    def records(self) -> dict[str, dict[str, Any]]:
        """key → every ended run as `add` took it."""
        return {record["key"]: record for record in self._records()}

    def _records(self, where: str = "", *values: str) -> list[dict[str, Any]]:
        found = self._read(f"SELECT {', '.join(_COLUMNS)} FROM runs {where} ORDER BY rowid", *values)
        records: list[dict[str, Any]] = [dict(zip(_COLUMNS, row, strict=True)) for row in found]
        for record in records:
            record |= {name: json.loads(record[name]) for name in ("config", "metrics", "environment")}
        return records

    def points(self, keys: Iterable[str] | None = None) -> dict[str, list[dict[str, Any]]]:
        """key → its logged points in order."""
        columns = f"SELECT key, {', '.join(_POINT)}, more FROM points"
        if keys is None:
            rows = self._read(f"{columns} ORDER BY key, step")
        else:
            rows = [row for key in keys for row in self._read(f"{columns} WHERE key = ? ORDER BY step", key)]
        found: dict[str, list[dict[str, Any]]] = {}
        for key, *values, more in rows:
            point = dict(zip(_POINT, values, strict=True))
            found.setdefault(key, []).append({**point, **(json.loads(more) if more else {})})
        return found

    def _read(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise InputError(f"cannot read {str(self.path)!r}: {error}") from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self._rollback()
            raise InputError(f"cannot write {str(self.path)!r}: {error}") from None
        except BaseException:
            self._rollback()
            raise

    def _rollback(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")


_COLUMNS = (
    "key", "result", "status", "reason", "config", "metrics", "flops", "seconds", "cpu_seconds", "attempts", "copied_from",
    "version", "environment", "git", "ended",
)  # fmt: skip


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The flat rows of a sweep's folder or of its `runs.sqlite`. Raises InputError when it is neither."""
    path = Path(path)
    with Store(path.parent if path.name == FILE else path, create=False) as store:
        return store.rows()


def flat_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as one level of names; the machine's facts as one text.

    A number that the user's function returned under the name of a field or a column of ours (`lr`, `status`) is named
    `returned.lr`: it must not stand for what the run was.
    """
    row = {name: value for name, value in record.items() if name not in ("config", "metrics", "environment")}
    head = {name: row.pop(name) for name in ("key", "status", "reason")}
    environment = ", ".join(f"{name} {value}" for name, value in record["environment"].items())
    known = {**head, **flat(record["config"])}
    taken = {*known, *row, "environment"}
    metrics = {f"returned.{name}" if name in taken else name: value for name, value in record["metrics"].items()}
    return {**known, **metrics, **row, "environment": environment}


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config as one level: the model's fields beside its own, `base.width` for the base's, lists as texts."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        if name == "model" and isinstance(value, Mapping):
            out |= {("model" if field == "kind" else field): _cell(v) for field, v in value.items()}
        elif isinstance(value, Mapping):
            out |= {f"{name}.{field}": _cell(v) for field, v in value.items()}
        else:
            out[name] = _cell(value)
    return out


def _patient(db: sqlite3.Connection, statement: str) -> None:
    """Execute what needs the whole file: SQLite's own waiting does not cover the change to WAL."""
    for _ in range(600):
        try:
            db.execute(statement).fetchall()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) and "busy" not in str(error):
                raise
            time.sleep(0.1)
    db.execute(statement).fetchall()


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)


def _stored(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else value


def _number(value: Any) -> float | None:
    """SQLite has no NaN: a number that is not finite is NULL, and the row's status says why."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _more(point: Mapping[str, Any]) -> str | None:
    more = {name: _number(value) for name, value in point.items() if name not in _POINT}
    return json.dumps(more) if more else None


def _try_lock(file: Any) -> bool:
    """Take the file's lock without waiting; False when another process holds it."""
    if os.name == "nt":  # untested
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
