"""What commands say and where they write: JSON on stdout, progress on stderr, folders checked before any work."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mutransfer.errors import InputError

_given: list[str] = []  # the arguments of the command that runs


def remember_command(arguments: Sequence[str]) -> None:
    """Keep the arguments of this command, for `command_line`."""
    _given[:] = arguments


def command_line() -> str:
    """The command that runs, as it could be typed again."""
    return shlex.join(["mutransfer", *_given])


def show_json(value: Any) -> None:
    """Print one JSON document; numbers that are not finite become null."""
    print(json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False))


def finite(value: Any) -> Any:
    """Plain JSON types: NaN and infinities as None, tuples as lists, paths as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def require_folder(folder: Path) -> Path:
    """The folder, which exists and can be written or could be made; nothing is created. Raises InputError otherwise."""
    _require_place(folder, "--out")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {str(folder)!r} is a file: give a folder")
    return folder


def require_file(path: Path, option: str) -> Path:
    """The file, which could be written; nothing is created. Raises InputError otherwise."""
    _require_place(path, option)
    if path.is_dir():
        raise InputError(f"{option} {str(path)!r} is a folder: give a file")
    return path


def _require_place(path: Path, option: str) -> None:
    nearest = next(place for place in (path, *path.absolute().parents) if _exists(place, option))
    if nearest != path and not nearest.is_dir():
        raise InputError(f"{option} {str(path)!r} cannot be written: {nearest.name!r} is a file, not a folder")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"{option} {str(path)!r} cannot be written: no permission in {str(nearest)!r}")


def _exists(path: Path, option: str) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"{option} {str(path)!r} cannot be written: {error.strerror}") from None


def duration(seconds: float) -> str:
    """1:05 for sixty-five seconds."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


class Progress:
    """One live line with the remaining time on a terminal; without one, a plain line every few seconds. On stderr.

    `total` is the work in any unit; `advance(work, text)` reports some of it done. `expected` is the time in seconds that
    the whole should take, believed until some of it is done. Use as a context manager.
    """

    EVERY = 5.0  # seconds between plain lines

    def __init__(self, label: str, total: float, expected: float | None = None) -> None:
        self.label, self.total, self.expected = label, total, expected
        self.done = self.earlier = 0.0
        self.start = self.last = self.shown = time.perf_counter()
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Progress:
        self.start = self.last = self.shown = time.perf_counter()
        if sys.stderr.isatty():
            self._live()
        return self

    def _live(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
        from rich.progress import Progress as Bar
        from rich.text import Text

        owner = self

        class Remaining(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(owner.eta())

        columns = (
            TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.percentage:3.0f} %"), Remaining(),
            TextColumn("{task.fields[text]}"),
        )  # fmt: skip
        self.bar = Bar(*columns, console=Console(stderr=True, highlight=False), transient=True, refresh_per_second=4)
        self.bar.start()
        self.task = self.bar.add_task(self.label, total=self.total, text="")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()
        if kind is None:
            print(f"{self.label}: done in {duration(time.perf_counter() - self.start)}", file=sys.stderr, flush=True)

    def eta(self) -> str:
        """The remaining time, from the pace so far, counting down since the last report."""
        now = time.perf_counter()
        if self.done > self.earlier:
            pace = (self.last - self.start) / (self.done - self.earlier)
            left = pace * (self.total - self.done) - (now - self.last)
        elif self.expected is not None:
            left = self.expected - (now - self.start)
        else:
            return "ETA –"
        return f"ETA {duration(left)}"

    def skip(self, work: float) -> None:
        """Count `work` as done before this process: it tells nothing about the pace."""
        self.done += work
        self.earlier = self.done
        self.start = self.last = time.perf_counter()

    def advance(self, work: float, text: str = "") -> None:
        """Report `work` more of the total done."""
        self.done += work
        self.last = time.perf_counter()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, text=text)
        elif self.last - self.shown >= self.EVERY:
            self.shown = self.last
            share = 100 * self.done / self.total
            print(f"{self.label}: {share:.0f} %, {self.eta()}" + f", {text}" * bool(text), file=sys.stderr, flush=True)

    def callback(self) -> Callable[[int, int, str], None]:
        """For functions that report (done, total, text) themselves."""

        def report(done: int, total: int, text: str) -> None:
            self.advance(self.total * done / total - self.done, text)

        return report
