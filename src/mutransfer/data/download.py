"""Downloads that resume, are checked, and appear under their name only when complete."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mutransfer.errors import InputError

Progress = Callable[[str], None]

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 3  # consecutive ones without a single new byte


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, value: object) -> None:
    """`value` as JSON under `path`, complete or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        part.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True) + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_file(path: Path, checksum: str) -> None:
    """InputError unless `path` has the digest `checksum`, written "sha256:…" or "md5:…"."""
    algorithm, _, expected = checksum.partition(":")
    found = file_digest(path, algorithm)
    if found != expected:
        raise InputError(
            f"{str(path)!r} has {algorithm} {found}, not {expected}: it is damaged or another file;"
            " delete it and fetch it again, or pass it as source=PATH to use it all the same"
        )


def download(url: str, target: Path, checksum: str = "", advice: str = "", progress: Progress | None = None) -> Path:
    """Fetch `url` to `target`: resumed by HTTP Range from `target.part`, verified, renamed when complete.

    A file already there is verified and kept. Without a published `checksum` the sha256 of the first download is
    recorded in `manifest.json` beside the file and verified from then on. Raises InputError, ending in `advice`, when the
    server cannot be reached (what has arrived is kept for the next call) and when the checksum is wrong (nothing is kept).
    """
    manifest_path = target.with_name("manifest.json")
    manifest = _read_manifest(manifest_path)
    if not checksum and target.name in manifest:
        checksum = f"sha256:{manifest[target.name]['sha256']}"
    if target.is_file():
        if checksum:
            check_file(target, checksum)
        return target
    part = target.with_name(target.name + ".part")
    _fetch(url, part, advice, progress)
    if checksum:
        try:
            check_file(part, checksum)
        except InputError:
            part.unlink()
            raise InputError(
                f"{url} delivered a file whose checksum is not {checksum}: nothing was kept; {advice}"
            ) from None
    manifest[target.name] = {"url": url, "bytes": part.stat().st_size, "sha256": file_digest(part)}
    write_json(manifest_path, manifest)
    part.replace(target)
    return target


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise InputError(f"{str(path)!r} is damaged: delete it and the files beside it, then prepare again") from None


def _fetch(url: str, part: Path, advice: str, progress: Progress | None) -> None:
    """Bring `part` to its full length; a lost connection is taken up where it broke."""
    import http.client
    import urllib.error

    failures = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        reason = "the connection broke"
        try:
            if _fetch_once(url, part, before, progress):
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and before:  # what we have is no prefix of what the server has: start again
                part.unlink()
                continue
            reason, failures = f"HTTP {error.code} {error.reason}", _ATTEMPTS
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        after = part.stat().st_size if part.is_file() else 0
        failures = 0 if after > before and failures < _ATTEMPTS else failures + 1
        if failures >= _ATTEMPTS:
            kept = f"; the first {after:,} bytes are kept and the next call goes on from there" if after else ""
            raise InputError(f"cannot download {url} ({reason}){kept}: {advice}")
        time.sleep(0.2 * failures)


def _fetch_once(url: str, part: Path, start: int, progress: Progress | None) -> bool:
    """One request; True when the file is complete."""
    import urllib.request

    request = urllib.request.Request(url, headers={"User-Agent": "mutransfer"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        if response.status != 206:  # the server does not do ranges and sends everything
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        _make_folder(part.parent)
        done, said = start, 0.0
        with part.open("ab" if start else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                if progress and time.monotonic() - said > 0.5:
                    said = time.monotonic()
                    progress(f"{url}: {done / 1e6:.1f}" + (f" of {total / 1e6:.1f} MB" if total else " MB"))
    return total is None or done == total


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create the folder {str(folder)!r} ({error.strerror}): pass folder=PATH, or set MUTRANSFER_DATA"
        ) from None
