"""Finished runs as JSON lines: one line per run, written when it ends, found again by what decides its result."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mutransfer.errors import InputError


class Store:
    """`runs.jsonl` in the output folder. A line torn by a kill is skipped, and its run made again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{str(path)!r} cannot be read ({error}): move it away") from None
        for line in lines:
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                continue

    def add(self, key: str, row: dict[str, Any]) -> None:
        """Append one row and make it last: a kill after this loses nothing."""
        self.rows[key] = {"key": key, **row}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                file.seek(0, os.SEEK_END)
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    torn = file.read(1) != b"\n"
                else:
                    torn = False
                file.write(("\n" * torn + json.dumps(self.rows[key], allow_nan=False) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {str(self.path)!r}: {error.strerror}") from None
