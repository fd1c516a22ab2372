"""What a run came to, kept in a file from the moment it ended until its row is in the store.

Between the two, the worker or the whole sweep may be killed; the next attempt then finds the outcome instead of making the
run again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mutransfer.sweep.executor import Function


def kept_outcome(path: str, function: Function, *arguments: Any) -> dict[str, Any]:
    """A job: what `function(*arguments)` (the last of them `send`) returns, written to `path` unless the run is paused."""
    outcome = function(*arguments)
    if outcome["status"] != "paused":
        # no fsync: a killed process leaves it to the system to write, and a power cut costs one run
        part = Path(f"{path}.{os.getpid()}.part")
        part.write_text(json.dumps(outcome), encoding="utf-8")
        part.replace(path)
    return outcome


class Outcomes:
    """The outcomes in a folder by their run's result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def path(self, result: str) -> Path:
        """Where the outcome of this run is written."""
        return self.folder / f".ended-{result}.json"

    def find(self, result: str) -> dict[str, Any] | None:
        """The outcome of a run that ended and has no row yet."""
        try:
            return json.loads(self.path(result).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def forget(self, result: str) -> None:
        """Remove an outcome whose row is in the store."""
        with contextlib.suppress(OSError):
            self.path(result).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[str]:
        names = [path.name for path in self.folder.glob(".ended-*.json")]
        return iter([name.removeprefix(".ended-").removesuffix(".json") for name in names])
