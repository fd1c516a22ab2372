"""A folder that is there whole or not at all: filled under another name, flushed to the disk, then renamed once."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mutransfer.errors import InputError

_MARGIN = 1 << 20  # bytes for headers and reports


def require_new(out: Path, source: Path) -> None:
    """Raise InputError unless `out` can become a new folder that lies outside the source."""
    from mutransfer.commands.output import require_folder

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {str(out)!r} exists: give a new folder")
    require_folder(out)
    place = source.resolve() if source.is_dir() else source.resolve().parent
    if source.is_dir() and out.resolve().is_relative_to(place):
        raise InputError(f"--out {str(out)!r} lies in the source {str(source)!r}, which is never touched: give another")


@contextlib.contextmanager
def new_folder(out: Path, size: int) -> Iterator[Path]:
    """The folder to fill, a hidden neighbour of `out`; at the end everything in it is flushed and it becomes `out`.

    A process killed at any moment leaves no `out`, or a whole one, and at worst a `.part` folder, which the next call for the same
    `out` removes. Raises InputError where `size` bytes do not fit, and where it cannot be written.
    """
    parents = [parent for parent in reversed(out.absolute().parents) if not parent.exists()]
    made: Path | None = None
    lock = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        free = shutil.disk_usage(out.parent).free
        if free < size + _MARGIN:
            raise InputError(f"--out {str(out)!r} needs {_gigabytes(size)}, and {_gigabytes(free)} are free there")
        made = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part"))
        lock = _locked(made)
        yield made
        made.chmod(0o755)  # temporary folders are private, what becomes of them is not
        for path in (*made.rglob("*"), made):
            _flush(path)
        made.rename(out)
        _flush(out.parent)
    except BaseException as error:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        for parent in reversed(parents):
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            why = "the disk is full" if full else error.strerror or error
            raise InputError(f"--out {str(out)!r} cannot be written: {why}") from error
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def _flush(path: Path) -> None:
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _locked(folder: Path) -> int | None:
    """A lock on the folder that ends with this process; None where another process has it, or the system has none."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _remove_abandoned(out: Path) -> None:
    """What a killed process left: nobody holds its lock."""
    for part in out.parent.glob(f".{out.name}.*.part"):
        handle = _locked(part)
        if handle is not None:
            shutil.rmtree(part, ignore_errors=True)
            os.close(handle)
