"""Weights in one safetensors file, or in shards with an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mutransfer.errors import InputError
from mutransfer.growth.files.safetensors import open_safetensors
from mutransfer.growth.files.torch_file import open_torch

INDEX = "model.safetensors.index.json"
_WHOLE = ("model.safetensors", INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")


def open_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, of all shards of an index, or of a folder that holds one of them; and the metadata of the first.

    Raises InputError where a shard or a tensor that the index names is missing.
    """
    if path.is_dir():
        named = next((path / name for name in _WHOLE if (path / name).is_file()), None)
        single = sorted(path.glob("*.safetensors"))
        if named is None and len(single) == 1:
            named = single[0]
        if named is None:
            raise InputError(f"{str(path)!r} holds no weights: a folder holds one of {', '.join(_WHOLE)}")
        path = named
    if not path.name.endswith(".json"):
        return open_safetensors(path) if path.name.endswith(".safetensors") else (_tensors(path), {})
    try:
        where = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = dict.fromkeys(where.values())
        if not all(isinstance(name, str) and Path(name).name == name for name in (*where, *files) if name in files):
            raise ValueError("a shard that is no file beside it")
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{str(path)!r} is no index of shards ({type(error).__name__}: {error})") from None
    found: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name in files:
        shard = path.parent / name
        tensors, more = open_weights(shard)
        metadata = metadata or more
        found.update({key: tensor for key, tensor in tensors.items() if where.get(key) == name})
    missing = next((key for key in where if key not in found), None)
    if missing is not None:
        raise InputError(f"{str(path)!r} names {missing!r} in {where[missing]!r}, which does not hold it")
    return {key: found[key] for key in where}, metadata


def _tensors(path: Path) -> dict[str, Tensor]:
    content = open_torch(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{str(path)!r} is no state dict")
    return content


def index_of(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """The index of shards, as transformers reads it."""
    total = sum(later.nbytes for part in parts.values() for later in part.values())
    where = {name: file for file, part in parts.items() for name in part}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2) + "\n"
