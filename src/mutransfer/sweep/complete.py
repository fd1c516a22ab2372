"""A command whose every run is in the store is answered from the store, without loading torch or making a config."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mutransfer.commands.builtin import DATA, MODELS
from mutransfer.sweep.store import FILE, Store

_NOTE = "complete"


def request(command: Any) -> str | None:
    """The hash of all that decides what a sweep command asks for; None when that cannot be known without its code.

    That is the command's options and this version, where the model is built in and the data is embedded: the user's own
    code and files may have changed since.
    """
    from mutransfer import __version__

    options = dataclasses.asdict(command)
    data = {word.partition("=")[2] for word in (*options["grid"], *options["set"]) if word.startswith("data=")}
    if command.config not in MODELS or not all(name in DATA.values() for text in data for name in text.split(",")):
        return None
    shown = {
        name: str(value)
        for name, value in options.items()
        if name not in ("out", "json", "yes", "limit", "workers", "executor")
    }
    return hashlib.sha256(json.dumps([shown, __version__], sort_keys=True).encode()).hexdigest()


def remember(store: Store, asked: str | None, keys: Sequence[str]) -> None:
    """Note that this request's runs are all there."""
    if asked is not None:
        store.note(_NOTE, {**store.notes().get(_NOTE, {}), asked: list(keys)})


def answer(folder: Path, asked: str | None) -> list[dict[str, Any]] | None:
    """The records of a request that was completed before; None when something is to be done."""
    if asked is None or not (folder / FILE).is_file():
        return None
    with Store(folder, create=False) as store:
        keys = store.notes().get(_NOTE, {}).get(asked)
        records = store.records() if keys is not None else {}
    if not keys or any(key not in records or records[key]["status"] == "failed" for key in keys):
        return None
    return [records[key] for key in keys]
