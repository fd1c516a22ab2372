"""Bring a known data set into its memory-mapped form: `train.bin` and `val.bin` of token ids, or `.npy` arrays."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mutransfer.data.catalog import Known, data_root, find_known, raw_advice, raw_path, read_meta
from mutransfer.data.documents import Corpus, Piece, hub_corpus, local_corpus
from mutransfer.data.download import Progress, check_file, download, file_digest, write_json
from mutransfer.data.images import read_cifar100
from mutransfer.data.tabular import load_digits_arrays, moments, read_covertype, split_rows
from mutransfer.data.text import embedded_text, split_point
from mutransfer.data.tokenizers import NAMES, CharTokenizer, TiktokenTokenizer, Tokenizer, make_tokenizer, token_dtype
from mutransfer.errors import InputError


@dataclass(frozen=True)
class Prepared:
    """A finished folder: its place, the content of its `meta.json`, and whether it was there already."""

    name: str
    folder: Path
    meta: dict[str, Any]
    cached: bool


def prepare(
    name: str,
    folder: str | Path | None = None,
    source: str | Path | None = None,
    tokenizer: str | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Download (or read `source`), tokenize and store a known data set, once; later calls find it done.

    Text becomes `<folder>/<name>/<tokenizer>/train.bin`, `val.bin` (uint16 or uint32 ids, as in nanoGPT) and `meta.json`;
    tables and images become `<folder>/<name>/arrays/*.npy`. `folder` is the data folder (see `data_root`); `source` a local file
    or folder in place of the network; `tokenizer` "char", "byte", "gpt2" or another tiktoken name; `limit` the largest
    number of tokens (text) or rows (else), training and validation together. The folder appears complete or not at all.
    Raises InputError, one line, on a wrong name, an unreachable network, a wrong checksum or an unwritable folder.
    """
    known = find_known(name)
    root = data_root(folder)
    if limit is not None and limit < 20:
        raise InputError(f"limit={limit!r} is too small to split: give at least 20 tokens or rows, or leave it out")
    path = None if source is None else Path(source).expanduser()
    if path is not None and not path.exists():
        raise InputError(f"source {str(source)!r} does not exist: give an existing file or folder")
    if known.kind != "text":
        if tokenizer is not None:
            raise InputError(f"data {name!r} is {known.kind}, not text: leave out tokenizer={tokenizer!r}")
        return _store(known, root, "arrays", path, limit, lambda out: _arrays(known, root, path, limit, out, progress))
    label = tokenizer or known.tokenizer
    if label not in NAMES:
        raise InputError(f"tokenizer {label!r} is unknown: write one of {', '.join(NAMES)}")
    return _store(known, root, label, path, limit, lambda out: _tokens(known, root, path, label, limit, out, progress))


def _store(
    known: Known, root: Path, label: str, source: Path | None, limit: int | None, fill: Callable[[Path], dict[str, Any]]
) -> Prepared:
    """Fill a scratch folder and move it into place, unless the same request has been finished before."""
    target = root / known.name / label
    request = {"limit": limit, "source": str(source.resolve()) if source else None}
    meta = read_meta(target)
    if meta is not None and (meta.get("request") == request or (source is None and meta.get("limit") == limit)):
        return Prepared(known.name, target, meta, cached=True)
    if meta is None and target.is_dir() and any(target.iterdir()):
        raise InputError(f"folder {str(target)!r} was not made by prepare and would be replaced: move it away")
    with _scratch(target) as scratch:
        meta = {
            "format": 1,
            "name": known.name,
            "kind": known.kind,
            "limit": limit,
            "request": request,
            **fill(scratch),
        }
        meta["sha256"] = {path.name: file_digest(path) for path in sorted(scratch.iterdir())}
        write_json(scratch / "meta.json", meta)
        old = target.with_name(f".{label}.{os.getpid()}.old")
        if target.exists():
            target.replace(old)
        scratch.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    return Prepared(known.name, target, meta, cached=False)


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A scratch folder beside `target`; whatever was created for it is gone after a failure."""
    created = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        scratch.chmod(0o755)  # mkdtemp makes it private, but a data folder is often shared
        yield scratch
    except OSError as error:
        raise InputError(
            f"cannot write to {str(target)!r} ({error.strerror or error}): pass folder=PATH, or set MUTRANSFER_DATA"
        ) from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for folder in created:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _published(known: Known, root: Path, source: Path | None, progress: Progress | None) -> Path:
    """The published file: the user's own `source`, one found in the data folders (verified), or a download."""
    if source is not None:
        return source
    for place in (root, data_root()):
        found = raw_path(known, place)
        if found is not None:
            if known.files[found.name]:
                check_file(found, known.files[found.name])
            return found
    file, checksum = next(iter(known.files.items()))
    return download(known.url, root / known.name / file, checksum, raw_advice(known, root), progress)


def find_corpus(known: Known, root: Path, source: Path | None, limit: int | None, progress: Progress | None) -> Corpus:
    """The text of a data set, from (in this order) `source`, Python itself, the data folders, the network."""
    if source is not None:
        return local_corpus(source)
    if known.embedded:
        return Corpus(lambda: iter([(embedded_text(), True)]), None, known.source)
    if known.hub is None:
        return local_corpus(_published(known, root, None, progress))
    for place in (root, data_root()):
        found = raw_path(known, place)
        if found is not None:
            return local_corpus(found)
    repo, config, val = known.hub
    return hub_corpus(repo, config, val, stream=limit is not None, advice=raw_advice(known, root))


def _tokens(
    known: Known,
    root: Path,
    source: Path | None,
    label: str,
    limit: int | None,
    out: Path,
    progress: Progress | None,
) -> dict[str, Any]:
    """Write `train.bin` and `val.bin` into `out`; the description of what was written."""
    if label not in ("char", "byte"):
        make_tokenizer(label).encode("")  # a missing package or merge table shows before anything is downloaded
    corpus = find_corpus(known, root, source, limit, progress)
    if label == "char":
        characters = _characters(corpus, known.separate, limit)
        if not characters:
            raise InputError(f"data {known.name!r} from {corpus.source!r} is empty: there is no text to tokenize")
        chosen: Tokenizer = CharTokenizer(characters)
    else:
        chosen = make_tokenizer(label)
    train, val = out / "train.bin", out / "val.bin"
    dtype = token_dtype(chosen.vocab_size)
    if corpus.val is None:
        total = _write(train, corpus.train(), chosen, known.separate, limit, progress)
        counts = _cut(train, val, total, dtype)
    else:
        held_out = None if limit is None else limit // 10
        val_count = _write(val, corpus.val(), chosen, known.separate, held_out, progress)
        rest = None if limit is None else limit - val_count
        counts = _write(train, corpus.train(), chosen, known.separate, rest, progress), val_count
    if not min(counts):
        raise InputError(
            f"data {known.name!r} from {corpus.source!r} is empty: {counts[0]} training tokens, {counts[1]} held out"
        )
    return {
        "source": corpus.source,
        "tokenizer": chosen.to_dict(),
        "vocab_size": chosen.vocab_size,
        "dtype": dtype.name,
        "train_tokens": counts[0],
        "val_tokens": counts[1],
    }


def _limited(pieces: Iterator[Piece], separate: bool, limit: int | None) -> Iterator[str]:
    """The first `limit` characters of the pieces, with a newline after each document."""
    left = limit
    for text, ends in pieces:
        whole = text + "\n" if separate and ends else text
        yield whole if left is None else whole[:left]
        if left is not None:
            left -= len(whole)
            if left <= 0:
                return


def _characters(corpus: Corpus, separate: bool, limit: int | None) -> str:
    """All characters that the limited text uses, each once: one pass, no text kept."""
    found: set[str] = set()
    for start in filter(None, (corpus.train, corpus.val)):
        for text in _limited(start(), separate, limit):
            found.update(text)
    return "".join(sorted(found))


def _write(
    path: Path,
    pieces: Iterator[Piece],
    tokenizer: Tokenizer,
    separate: bool,
    limit: int | None,
    progress: Progress | None,
) -> int:
    """Append the ids of all pieces to `path`, at most `limit`; their number."""
    end = np.array([tokenizer.end_of_text]) if separate and isinstance(tokenizer, TiktokenTokenizer) else None
    dtype, count, said = token_dtype(tokenizer.vocab_size), 0, 0
    with path.open("wb") as file:
        for text, ends in pieces:
            if limit is not None and not isinstance(tokenizer, TiktokenTokenizer):
                text = text[: limit - count]  # a token is at most one character here, so the rest is never used
            ids = tokenizer.encode(text)
            if separate and ends:
                ids = np.concatenate([ids, tokenizer.encode("\n") if end is None else end])
            if limit is not None:
                ids = ids[: limit - count]
            file.write(ids.astype(dtype).tobytes())
            count += len(ids)
            if progress and count - said >= 10_000_000:
                said = count
                progress(f"{path.name}: {count / 1e6:.0f} M tokens")
            if limit is not None and count >= limit:
                break
    return count


def _cut(train: Path, val: Path, total: int, dtype: np.dtype) -> tuple[int, int]:
    """Move the validation tail of `train` into `val`; the numbers of tokens of both."""
    kept = split_point(total)
    if total:
        tokens = np.memmap(train, dtype=dtype, mode="r")
        tokens[kept:].tofile(val)
        del tokens
        os.truncate(train, kept * dtype.itemsize)
    return kept, total - kept


def read_arrays(
    known: Known, root: Path, source: Path | None, progress: Progress | None = None
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], int]:
    """(train_x, train_y, val_x, val_y) of a table or image set, and its number of classes."""
    if known.embedded:
        if source is not None:
            raise InputError(f"data {known.name!r} comes with scikit-learn: leave out source={str(source)!r}")
        images, labels = load_digits_arrays()
        x = images[:, None] if known.kind == "images" else images.reshape(len(images), -1)
        return split_rows(x, labels), 10
    path = _published(known, root, source, progress)
    if known.kind == "images":
        return read_cifar100(path), 100
    return split_rows(*read_covertype(path)), 7


def _arrays(
    known: Known, root: Path, source: Path | None, limit: int | None, out: Path, progress: Progress | None
) -> dict[str, Any]:
    """Write the four arrays into `out`; the description of what was written."""
    arrays, classes = read_arrays(known, root, source, progress)
    if limit is not None:
        arrays = tuple(part[: limit * 4 // 5] for part in arrays[:2]) + tuple(part[: limit // 5] for part in arrays[2:])
    for name, part in zip(("train_x", "train_y", "val_x", "val_y"), arrays, strict=True):
        np.save(out / f"{name}.npy", part)
    mean, std = moments(arrays[0], (0, 2, 3) if known.kind == "images" else (0,))
    return {
        "source": str(source) if source else known.source,
        "classes": classes,
        "train_rows": len(arrays[1]),
        "val_rows": len(arrays[3]),
        "mean": mean.tolist(),
        "std": std.tolist(),
    }
