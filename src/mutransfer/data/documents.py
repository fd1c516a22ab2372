"""Documents from local files or a Hugging Face stream, in pieces small enough for any machine."""

import importlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutransfer.errors import InputError

# A piece of text, and whether a document ends with it.
Piece = tuple[str, bool]

PLAIN = (".txt", ".raw", ".tokens")
SUFFIXES = (*PLAIN, ".jsonl", ".parquet")
_PIECE_CHARACTERS = 4 << 20


@dataclass(frozen=True)
class Corpus:
    """Text to be tokenized: `train` (and `val`, where the data has its own) each start a fresh pass over the pieces."""

    train: Callable[[], Iterator[Piece]]
    val: Callable[[], Iterator[Piece]] | None
    source: str


def read_pieces(path: Path) -> Iterator[Piece]:
    """The text of one `.jsonl` (field "text"), `.parquet` (column "text") or plain UTF-8 file; line ends stay as they are."""
    if path.suffix == ".jsonl":
        return _jsonl(path)
    if path.suffix == ".parquet":
        return _parquet(path)
    return _plain(path)


def _plain(path: Path) -> Iterator[Piece]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = file.readlines(_PIECE_CHARACTERS)
            while lines:
                piece, lines = "".join(lines), file.readlines(_PIECE_CHARACTERS)
                yield piece, not lines
    except UnicodeDecodeError as error:
        raise InputError(
            f"{str(path)!r} is not UTF-8 text (byte 0x{error.object[error.start]:02x}): convert it to UTF-8,"
            " or load it with tokenizer='byte'"
        ) from None
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from None


def _jsonl(path: Path) -> Iterator[Piece]:
    number = 1
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    yield _text_of(json.loads(line)), True
                number += 1
    except (ValueError, KeyError, TypeError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        wanted = 'one object per line with a string "text"'
        raise InputError(f"{str(path)!r} line {number} cannot be read: a .jsonl file has {wanted}") from None


def _text_of(row: dict[str, Any]) -> str:
    text = row["text"]
    if not isinstance(text, str):
        raise TypeError
    return text


def _parquet(path: Path) -> Iterator[Piece]:
    try:
        pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise InputError(f"{str(path)!r} needs the package pyarrow: pip install 'mutransfer[hf]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            for rows in file.iter_batches(batch_size=1024, columns=["text"]):
                for text in rows.column("text").to_pylist():
                    yield text, True
    except (pyarrow.ArrowException, KeyError) as error:
        raise InputError(f"{str(path)!r} cannot be read as parquet with a column 'text': {error}") from None


def local_corpus(source: Path) -> Corpus:
    """Files of one path: a file, or all text files of a folder in the order of their names.

    In a folder, names with the word "val", "valid" or "validation" are the validation split and those with "test"
    are left out. Raises InputError where there is nothing to read.
    """
    if not source.exists():
        raise InputError(f"source {str(source)!r} does not exist: give a file or folder of {', '.join(SUFFIXES)} files")
    if source.is_file():
        return Corpus(lambda: read_pieces(source), None, str(source))
    files = sorted(path for path in source.iterdir() if path.suffix in SUFFIXES)
    words = {path: set(re.split(r"[^a-z]+", path.name.lower())) for path in files}
    val = [path for path in files if words[path] & {"val", "valid", "validation"}]
    train = [path for path in files if path not in val and "test" not in words[path]]
    if not train:
        raise InputError(f"folder {str(source)!r} has no training text: put {', '.join(SUFFIXES)} files there")
    return Corpus(lambda: _chain(train), (lambda: _chain(val)) if val else None, str(source))


def _chain(paths: list[Path]) -> Iterator[Piece]:
    for path in paths:
        yield from read_pieces(path)


def hub_corpus(repo: str, config: str | None, val: str | None, stream: bool, advice: str) -> Corpus:
    """A data set of the Hugging Face hub, through the optional package `datasets`.

    `stream` reads only as much as is used; otherwise the hub's own cache downloads everything, resumable and verified.
    Raises InputError with `advice` where the package or the network is missing.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise InputError(f"{repo!r} needs the package datasets: pip install 'mutransfer[hf]'; or {advice}") from None

    def pieces(split: str) -> Iterator[Piece]:
        try:
            for row in datasets.load_dataset(repo, config, split=split, streaming=stream):
                yield _text_of(row), True
        except Exception as error:  # the hub's client raises dozens of kinds, all of them "not reachable" here
            reason = (str(error).splitlines() or [""])[0][:120]
            raise InputError(
                f"cannot read {repo!r} from the hub ({type(error).__name__}: {reason}): {advice}"
            ) from None

    return Corpus(
        lambda: pieces("train"), None if val is None else lambda: pieces(val), f"https://hf.co/datasets/{repo}"
    )
