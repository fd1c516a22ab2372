"""Data by name or path, ready for batches."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from mutransfer.data.catalog import (
    KNOWN,
    Known,
    data_root,
    find_known,
    holds_tokens,
    prepared_folders,
    raw_advice,
    raw_path,
    read_meta,
)
from mutransfer.data.documents import PLAIN, read_pieces
from mutransfer.data.images import ImageData, make_images
from mutransfer.data.prepare import find_corpus, read_arrays
from mutransfer.data.tabular import TableData, make_table
from mutransfer.data.text import TextData, require_length, split_point, text_fingerprint
from mutransfer.data.tokenizers import (
    NAMES,
    ByteTokenizer,
    CharTokenizer,
    TiktokenTokenizer,
    TokenIds,
    Tokenizer,
    make_tokenizer,
    tokenizer_from_dict,
)
from mutransfer.errors import InputError

Data = TextData | TableData | ImageData


def load(
    name: str | Path,
    tokenizer: str | None = None,
    context: int | None = None,
    folder: str | Path | None = None,
    vocab_size: int | None = None,
) -> Data:
    """A known data set or the user's own file or folder, with `batch` and `val_batches`.

    `name`: a name of `listing()`; or the path of a UTF-8 text file (.jsonl and .parquet too), of a folder with `train.bin` and
    `val.bin` (made by `prepare` or by nanoGPT), of a bare `.bin` of uint16 ids, or of a prepared folder of arrays. A text without
    its own split holds out its last tenth. `tokenizer`: "char" (the default for small text), "byte", "gpt2" or another tiktoken
    name. `context`: when given, both splits must hold a window of it. `folder`: the data folder (see `data_root`). `vocab_size`:
    for `.bin` files that do not say it themselves (gpt2's 50,257 otherwise). Never touches the network, except that tiktoken
    fetches its merge table once. Raises InputError, one line, for anything that cannot be loaded.
    """
    text = str(name)
    if not text:
        raise InputError("data '' is empty: give a name such as 'topics', or an existing file or folder")
    try:
        if isinstance(name, str) and name in KNOWN:  # a known name goes before a file of that name
            data = _known(KNOWN[name], tokenizer, data_root(folder))
        else:
            data = _path(text, tokenizer, vocab_size)
    except OSError as error:
        raise InputError(f"data {text!r} cannot be read: {error.strerror or error}") from None
    if vocab_size is not None and vocab_size != getattr(data, "vocab_size", None):
        raise InputError(f"data {text!r} states its own vocabulary: leave out vocab_size={vocab_size}")
    if isinstance(data, TextData) and context is not None:
        require_length(data.train, context, f"data {text!r} (training split)")
        require_length(data.val, context, f"data {text!r} (validation split)")
    return data


def _path(text: str, tokenizer: str | None, vocab_size: int | None) -> Data:
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(path, path.name, tokenizer, vocab_size)
    if path.is_file():
        return _token_file(path, tokenizer, vocab_size) if path.suffix == ".bin" else _text_file(path, tokenizer)
    if path.suffix or path.name != text:
        raise InputError(f"data {text!r} does not exist: give a name such as 'topics', or an existing file or folder")
    return _known(find_known(text), tokenizer, data_root())


def _known(known: Known, tokenizer: str | None, root: Path) -> Data:
    prepared = {} if known.embedded else prepared_folders(known, root)
    raw = None if known.embedded else raw_path(known, root)
    readable = known.embedded or (raw is not None and known.whole)
    if known.kind != "text":
        _refuse_tokenizer(tokenizer, known.name, known.kind)
        if prepared.get("arrays"):
            return _folder(prepared["arrays"], known.name, None, None)
        if not readable:
            raise InputError(_missing(known, "", root))
        arrays, classes = read_arrays(known, root, None)
        return (make_images if known.kind == "images" else make_table)(known.name, *arrays, classes)
    label = tokenizer or (
        known.tokenizer if known.tokenizer in prepared or len(prepared) != 1 else next(iter(prepared))
    )
    if label not in NAMES:
        raise InputError(f"tokenizer {label!r} is unknown: write one of {', '.join(NAMES)}")
    if label in prepared:
        return _folder(prepared[label], known.name, None, None)
    if holds_tokens(root / known.name):
        return _folder(root / known.name, known.name, tokenizer, None)
    if not readable:
        raise InputError(_missing(known, label, root, tuple(prepared)))
    corpus = find_corpus(known, root, None, None, None)
    whole = "".join(text for text, _ in corpus.train())
    held_out = None if corpus.val is None else "".join(text for text, _ in corpus.val())
    return _from_text(whole, held_out, label, known.name)


def _missing(known: Known, label: str, root: Path, others: tuple[str, ...] = ()) -> str:
    command = f"mutransfer data prepare {known.name}" + (f" --tokenizer {label}" if label else "")
    have = f" (prepared so far: {', '.join(others)})" if others else ""
    return f"data {known.name!r} is not under {str(root)!r}{have}: run '{command}'; without a network {raw_advice(known, root)}"


def _refuse_tokenizer(tokenizer: str | None, name: str, kind: str) -> None:
    if tokenizer is not None:
        raise InputError(f"data {name!r} is {kind}, not text: leave out tokenizer={tokenizer!r}")


def _from_text(whole: str, held_out: str | None, label: str, name: str) -> TextData:
    """Tokenize a text that fits in memory; without a split of its own, the last tenth is held out."""
    if not whole:
        raise InputError(f"data {name!r} is empty: there is no text to train on")
    made = make_tokenizer(label, whole + (held_out or ""))
    ids = made.encode(whole)
    if held_out is not None:
        return TextData(ids, made.encode(held_out), made, name)
    cut = split_point(len(ids))
    return TextData(ids[:cut], ids[cut:], made, name)


def _text_file(path: Path, tokenizer: str | None) -> TextData:
    label = tokenizer or "char"
    if label not in NAMES:
        raise InputError(f"tokenizer {label!r} is unknown: write one of {', '.join(NAMES)}")
    if label == "byte" and path.suffix in PLAIN:  # bytes need no encoding, so any file will do
        ids = np.fromfile(path, dtype=np.uint8).astype(np.uint16)
        cut = split_point(len(ids))
        if not len(ids):
            raise InputError(f"data {str(path)!r} is empty: there is no text to train on")
        return TextData(ids[:cut], ids[cut:], ByteTokenizer(), path.name)
    whole = "".join(text + "\n" * (ends and path.suffix == ".jsonl") for text, ends in read_pieces(path))
    if "\0" in whole:
        raise InputError(
            f"data {str(path)!r} is not text (it has NUL bytes): give a .txt, .jsonl, .parquet or .bin file"
        )
    return _from_text(whole, None, label, path.name)


def _token_file(path: Path, tokenizer: str | None, vocab_size: int | None) -> TextData:
    """A bare file of ids; a `meta.json` or `meta.pkl` beside it gives dtype and vocabulary."""
    made, dtype = _vocabulary(path.parent, tokenizer, vocab_size)
    tokens = _map(path, dtype, None)
    _require_ids(path, tokens, made.vocab_size)
    cut = split_point(len(tokens))
    return TextData(tokens[:cut], tokens[cut:], made, path.name, _sampled_fingerprint(made, tokens))


def _folder(path: Path, name: str, tokenizer: str | None, vocab_size: int | None) -> Data:
    meta = read_meta(path)
    if (path / "train_x.npy").is_file() and meta is not None:
        _refuse_tokenizer(tokenizer, str(path), str(meta.get("kind")))
        return _array_folder(path, name, meta)
    absent = [file for file in ("train.bin", "val.bin") if not (path / file).is_file()]
    if absent:
        raise InputError(f"folder {str(path)!r} has no {absent[0]}: a data folder holds train.bin and val.bin")
    made, dtype = _vocabulary(path, tokenizer, vocab_size)
    counts = (None, None) if meta is None else (meta.get("train_tokens"), meta.get("val_tokens"))
    train, val = (
        _map(path / f"{part}.bin", dtype, count) for part, count in zip(("train", "val"), counts, strict=True)
    )
    _require_ids(path / "train.bin", train, made.vocab_size)
    _require_ids(path / "val.bin", val, made.vocab_size)
    digests = (meta or {}).get("sha256")
    if isinstance(digests, dict) and {"train.bin", "val.bin"} <= digests.keys():
        fingerprint = text_fingerprint(digests["train.bin"], digests["val.bin"], made.vocab_size)
    else:
        fingerprint = _sampled_fingerprint(made, train, val)
    return TextData(train, val, made, name, fingerprint)


def _array_folder(path: Path, name: str, meta: dict[str, Any]) -> TableData | ImageData:
    try:
        parts = [np.load(path / f"{part}.npy", mmap_mode="r") for part in ("train_x", "train_y", "val_x", "val_y")]
        mean, std = np.array(meta["mean"], dtype=np.float32), np.array(meta["std"], dtype=np.float32)
        make = ImageData if meta["kind"] == "images" else TableData
        data = make(*parts, classes=int(meta["classes"]), mean=mean, std=std, name=name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"folder {str(path)!r} is damaged ({error}): delete it and prepare the data again") from None
    if (len(data.train_y), len(data.val_y)) != (meta.get("train_rows"), meta.get("val_rows")):
        raise InputError(
            f"folder {str(path)!r} is damaged (its row counts are wrong): delete it and prepare the data again"
        )
    return data


def _vocabulary(folder: Path, tokenizer: str | None, vocab_size: int | None) -> tuple[Tokenizer, np.dtype]:
    """Tokenizer and dtype of the ids in `folder`: from `meta.json`, nanoGPT's `meta.pkl`, the arguments, or gpt2."""
    meta = read_meta(folder)
    if meta is not None and isinstance(meta.get("tokenizer"), dict):
        made, dtype = tokenizer_from_dict(meta["tokenizer"]), np.dtype(str(meta.get("dtype", "uint16")))
    else:
        dtype = np.dtype(np.uint16)
        size = None if meta is None else meta.get("vocab_size")
        characters = _nanogpt_characters(folder / "meta.pkl")
        if isinstance(size, int):
            made: Tokenizer = TokenIds(size)
        elif characters:
            made = CharTokenizer(characters)
        elif tokenizer == "byte":
            made = ByteTokenizer()
        elif tokenizer == "char":
            raise InputError(
                f"{str(folder)!r} does not say its characters: leave out tokenizer='char', give vocab_size"
            )
        elif tokenizer is None and vocab_size is not None:
            made = TokenIds(vocab_size)
        else:
            made = TiktokenTokenizer(tokenizer or "gpt2")
    if tokenizer is not None and tokenizer != made.name and not isinstance(made, TokenIds):
        raise InputError(f"{str(folder)!r} was tokenized with {made.name!r}, not {tokenizer!r}: leave out tokenizer")
    if vocab_size is not None and vocab_size != made.vocab_size:
        raise InputError(
            f"{str(folder)!r} has a vocabulary of {made.vocab_size}, not vocab_size={vocab_size}: leave it out"
        )
    return made, dtype


class _PlainValues(pickle.Unpickler):
    """An unpickler for dicts, strings and numbers: anything that names a class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not a plain value")


def _nanogpt_characters(path: Path) -> str:
    """The characters in nanoGPT's `meta.pkl` in id order; "" where there is no such file."""
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            table = _PlainValues(file).load()["itos"]
        characters = "".join(table[i] for i in range(len(table)))
    except Exception as error:  # a hostile or broken pickle can fail in any way; none of them may pass
        raise InputError(
            f"{str(path)!r} is not nanoGPT's table of characters ({error}): move it away, give vocab_size"
        ) from None
    if list(characters) != sorted(set(characters)):
        raise InputError(
            f"{str(path)!r} lists its characters in another order than sorted: move it away, give vocab_size"
        )
    return characters


def _map(path: Path, dtype: np.dtype, count: int | None) -> np.ndarray:
    """The ids of a `.bin` file, memory-mapped read-only; its size must be whole ids (and `count` of them)."""
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"data {str(path)!r} is empty: there are no tokens to train on")
    if size % dtype.itemsize:
        raise InputError(f"data {str(path)!r} has {size} bytes, no whole number of {dtype.name} ids: it is damaged")
    if count is not None and size != count * dtype.itemsize:
        raise InputError(
            f"data {str(path)!r} has {size // dtype.itemsize} tokens, not the {count} of its meta.json: it is damaged"
        )
    return np.memmap(path, dtype=dtype, mode="r")


def _ends(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last million ids: what can be looked at in a file of any size."""
    return tokens[: 2**20], tokens[max(len(tokens) - 2**20, 0) :]


def _require_ids(path: Path, tokens: np.ndarray, vocab_size: int) -> None:
    largest = max(int(part.max()) for part in _ends(tokens))
    if largest >= vocab_size:
        raise InputError(
            f"data {str(path)!r} has token id {largest}, outside its vocabulary of {vocab_size}: give vocab_size"
        )


def _sampled_fingerprint(made: Tokenizer, *arrays: np.ndarray) -> str:
    """A fingerprint of files without recorded digests: lengths and both ends, so that gigabytes need not be read."""
    digest = hashlib.sha256(str(made.vocab_size).encode())
    for tokens in arrays:
        digest.update(str(len(tokens)).encode())
        for part in _ends(tokens):
            digest.update(part.tobytes())
    return digest.hexdigest()[:16]
