"""Checkpoints: everything that decides the rest of a run, in one file that is whole or absent.

They hold tensors, dicts and primitives only, and are loaded without executing anything in them.
"""

import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from mutransfer.errors import InputError
from mutransfer.files import write_atomic
from mutransfer.train.config import RunConfig, canonical_json

FORMAT = 1
CHECKPOINT = "checkpoint.pt"
RESULT = "result.json"


def save_checkpoint(path: Path, config: RunConfig, state: dict[str, Any]) -> None:
    """Write `state` (tensors, dicts and primitives only) with the config and its hash, atomically."""
    content = {"format": FORMAT, "config": config.to_dict(), "config_hash": config.hash(), **state}
    write_atomic(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; ``"config"`` is a `RunConfig`.

    Raises `InputError` for a missing or damaged file.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a checkpoint: no such file")
    try:
        # torch does not compare the checksums that its own files carry; the zip reader does
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, RuntimeError, OSError, ValueError, KeyError) as error:
        raise InputError(_damaged(path, str(error).partition("\n")[0] or type(error).__name__)) from error
    if content is None:
        raise InputError(_damaged(path, "checksum mismatch"))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a checkpoint of a run that this version can read: delete it to start the run over"
        )
    if hashlib.sha256(canonical_json(content["config"]).encode()).hexdigest() != content["config_hash"]:
        raise InputError(_damaged(path, "its config does not match its hash"))
    content["config"] = RunConfig.from_dict(content["config"])
    return content


def refuse_other_config(path: Path, saved: RunConfig, given: RunConfig) -> None:
    """Raise `InputError` naming the first field that differs: a run continues as itself or not at all."""
    old, new = _flat(saved.to_dict()), _flat(given.to_dict())
    for name in [*new, *(n for n in old if n not in new)]:
        if name not in old or name not in new or old[name] != new[name]:
            raise InputError(
                f"{name}={new.get(name)!r} differs from {name}={old.get(name)!r} in {path}: "
                f"write {name}={old.get(name)!r} to continue that run, or give another folder"
            )


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of the generators that a run draws from: torch's on the CPU and the device's own."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put the generators back into a state that `rng_state` gave."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state["mps"])


def _damaged(path: Path, why: str) -> str:
    return f"{path} is damaged ({why}): delete it to start the run over"


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    model = {f"model.{name}": value for name, value in data["model"].items()}
    return {**{name: value for name, value in data.items() if name != "model"}, **model}
