"""The safetensors format, read by mapping the file and written tensor by tensor: 8 bytes of length, a JSON header, the numbers.

The header knows every offset before any tensor is read. Source of the format: the README of huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mutransfer.errors import InputError
from mutransfer.growth.files.later import Later

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST = 100_000_000  # bytes of a header, as the format's own reader allows


def open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The file's tensors, mapped, and its metadata. The file is read as they are used, and never written.

    Raises InputError for a missing file and for one that is damaged or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _LONGEST):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        metadata = header.pop("__metadata__", {})
        start = 8 + length
        parts = {name: _part(name, entry, size - start) for name, entry in header.items()}
        ends = [0, *sorted(end for *_, end in parts.values())]
        if ends[-1] != size - start:
            raise ValueError(f"{size - start} bytes of numbers where its header tells of {ends[-1]}")
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except (struct.error, ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} is damaged, or no safetensors file ({error})") from None
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    found = {}
    for name, (dtype, shape, begin, end) in parts.items():
        numbers = data[start + begin : start + end]
        if (start + begin) % dtype.itemsize:  # written by somebody who does not align
            numbers = numbers.clone()
        found[name] = numbers.view(dtype).view(shape)
    return found, metadata


def _part(name: str, entry: Any, available: int) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    begin, end = map(int, entry["data_offsets"])
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name!r} is of type {entry['dtype']!r}, which torch does not have")
    dtype, shape = DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))
    if not 0 <= begin <= end <= available or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name!r} of shape {shape} lies at bytes {begin} to {end} of {available}")
    return dtype, shape, begin, end


def save_safetensors(path: Path, tensors: Mapping[str, Later], metadata: Mapping[str, str] | None = None) -> None:
    """Write the file, each tensor made when its numbers are due; fsync at the end. Raises InputError for a type it has no name for."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    # large types first, as the format's own writer does: every tensor is then aligned
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    end = 0
    for name in order:
        later = tensors[name]
        if later.dtype not in NAMES:
            raise InputError(f"{name!r} is of type {later.dtype}, which safetensors cannot hold")
        header[name] = {
            "dtype": NAMES[later.dtype],
            "shape": list(later.shape),
            "data_offsets": [end, end + later.nbytes],
        }
        end += later.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(tensors[name].data())
        file.flush()
        os.fsync(file.fileno())


def shards(tensors: Mapping[str, Later], stem: str, largest: int) -> dict[str, dict[str, Later]]:
    """File name → its tensors, in order, none larger than `largest` bytes unless one tensor is; one file where all fit."""
    parts: list[dict[str, Later]] = [{}]
    for name, later in tensors.items():
        if parts[-1] and sum(t.nbytes for t in parts[-1].values()) + later.nbytes > largest:
            parts.append({})
        parts[-1][name] = later
    if len(parts) == 1:
        return {f"{stem}.safetensors": parts[0]}
    return {f"{stem}-{i:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts, 1)}
