"""torch's files, read without being loaded and written without being held: one tensor at a time is in memory.

Reading maps the file (`torch.load(mmap=True, weights_only=True)`: no code in it is run). Writing lets torch lay out the file with
holes for the numbers (`torch.serialization.skip_data`) and fills them, with the checksums that the zip format asks for.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mutransfer.errors import InputError
from mutransfer.growth.files.later import Later

_BROKEN = (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, RuntimeError, OSError, ValueError, KeyError)


def open_torch(path: Path, *, check: bool = True) -> Any:
    """What `torch.save` wrote, its tensors mapped: the file is read as they are used, and never written.

    `check` reads it once for its checksums, which torch does not compare.

    Raises InputError for a missing or damaged file, and for one with objects other than tensors, dicts, lists and numbers.
    """
    if not path.is_file():
        raise InputError(f"{str(path)!r} does not exist" if not path.exists() else f"{str(path)!r} is no file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{str(path)!r} cannot be read: no permission")
    is_zip = zipfile.is_zipfile(path)
    try:
        if not is_zip:
            return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip() if check else None
        if damaged is None:
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except _BROKEN as error:
        said = str(error).partition("\n")[0][:160] or type(error).__name__
        if is_zip and "weights_only" in str(error):
            raise InputError(
                f"{str(path)!r} holds Python objects, not only tensors ({said}): save model.state_dict()"
            ) from None
        raise InputError(f"{str(path)!r} is damaged, or no file of torch's ({said})") from None
    raise InputError(f"{str(path)!r} is damaged: {damaged} does not match its checksum")


def save_torch(path: Path, content: Any) -> None:
    """`torch.save(content, path)`, each `Later` in it a tensor whose numbers are made when they are written; fsync at the end.

    `content` holds dicts, lists, tuples, primitives, tensors and `Later`s.
    """
    order: dict[int, Later] = {}  # by storage, in the order in which torch meets them
    kept: dict[int, Tensor] = {}  # Later → the empty tensor that stands for it
    laid_out = _laid_out(content, order, kept)
    with torch.serialization.skip_data():
        torch.save(laid_out, path)
    with zipfile.ZipFile(path) as archive:
        records = {int(i.filename.rpartition("/")[2]): i for i in archive.infolist() if "/data/" in i.filename}
        directory = archive.start_dir
    sums: dict[str, int] = {}
    with path.open("r+b") as file:
        for key, later in enumerate(order.values()):
            record = records[key]
            assert record.file_size == later.nbytes, "torch numbered its storages in another order"
            sums[record.filename] = _fill(file, record, later)
        _correct_directory(file, directory, sums)
        file.flush()
        os.fsync(file.fileno())


def _laid_out(value: Any, order: dict[int, Later], kept: dict[int, Tensor]) -> Any:
    """The content with memory that nobody touches in place of every tensor: it is never committed."""
    if isinstance(value, Tensor):
        value = Later.of(value)
    if isinstance(value, Later):
        if id(value) not in kept:
            kept[id(value)] = torch.empty(value.shape, dtype=value.dtype)
            order[id(value)] = value
        return kept[id(value)]
    if isinstance(value, dict):
        return type(value)((key, _laid_out(item, order, kept)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_laid_out(item, order, kept) for item in value)
    return value


def _fill(file: BinaryIO, record: zipfile.ZipInfo, later: Later) -> int:
    """Put the numbers into their hole, and the checksum behind them; returns the checksum."""
    file.seek(record.header_offset)
    flags, name, extra = struct.unpack("<6xH18xHH", file.read(30))
    start = record.header_offset + 30 + name + extra
    data = later.data()
    crc = zlib.crc32(data)
    file.seek(start)
    file.write(data)
    if flags & 8:  # a descriptor follows the data
        file.write(b"PK\x07\x08" + struct.pack("<I", crc))
    else:
        file.seek(record.header_offset + 14)
        file.write(struct.pack("<I", crc))
    return crc


def _correct_directory(file: BinaryIO, start: int, sums: dict[str, int]) -> None:
    for offset, name in list(_entries(file, start)):
        if name in sums:
            file.seek(offset + 16)
            file.write(struct.pack("<I", sums[name]))


def _entries(file: BinaryIO, start: int) -> Iterator[tuple[int, str]]:
    """Offset and file name of every entry of the zip's central directory."""
    while True:
        file.seek(start)
        head = file.read(46)
        if head[:4] != b"PK\x01\x02":
            return
        name, extra, comment = struct.unpack("<28xHHH12x", head)
        yield start, file.read(name).decode()
        start += 46 + name + extra + comment
