"""Files that are there whole or not at all, whatever kills the process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from mutransfer.errors import InputError


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write(file)` fill a temporary neighbour; then fsync and one rename. The folder must exist.

    A process killed at any moment leaves the old file or the new one, and at worst a `.part` file that nothing reads.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # temporary files are private, what becomes of them is not
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # make the rename itself survive a power cut
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_whole(path: Path, data: str | bytes) -> Path:
    """Write text (UTF-8) or bytes, making the folder; returns the path. Raises InputError where that cannot be."""
    if path.is_dir():
        raise InputError(f"cannot write {str(path)!r}: it is a folder; give a file")
    content = data.encode() if isinstance(data, str) else data
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda file: file.write(content))
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    return path
