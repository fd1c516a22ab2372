"""Text to token ids and back: bytes, characters, or a tiktoken encoding."""

import importlib
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from mutransfer.errors import InputError

Ids = Iterable[int] | np.ndarray | torch.Tensor

# vocabulary sizes by name, so that tokenized files load where tiktoken is not installed
_TIKTOKEN = {"gpt2": 50257, "cl100k_base": 100277, "o200k_base": 200019}

NAMES = ("char", "byte", *_TIKTOKEN)


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer offers; `to_dict` is its JSON form, read back by `tokenizer_from_dict`."""

    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    def encode(self, text: str) -> np.ndarray: ...
    def decode(self, ids: Ids) -> str: ...
    def to_dict(self) -> dict[str, Any]: ...


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id fits (vocabulary up to 65,536), else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def _as_array(ids: Ids, vocab_size: int) -> np.ndarray:
    """Ids as a flat int64 array, each in [0, vocab_size), or InputError."""
    if isinstance(ids, torch.Tensor):
        ids = ids.detach().cpu().numpy()
    elif not isinstance(ids, np.ndarray):
        ids = np.array(list(ids), dtype=np.int64)
    flat = ids.reshape(-1).astype(np.int64)
    outside = flat[(flat < 0) | (flat >= vocab_size)]
    if outside.size:
        raise InputError(f"token id {outside[0]} is outside this tokenizer's vocabulary of {vocab_size}")
    return flat


class ByteTokenizer:
    """One token per UTF-8 byte: 256 tokens, any text, nothing to fit."""

    name = "byte"
    vocab_size = 256

    def encode(self, text: str) -> np.ndarray:
        """uint16 ids of shape (number of UTF-8 bytes,)."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint16)

    def decode(self, ids: Ids) -> str:
        """The text; bytes that are not UTF-8 (a cut character) become U+FFFD."""
        return _as_array(ids, self.vocab_size).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "vocab_size": self.vocab_size}


class CharTokenizer:
    """One token per character; the vocabulary is the sorted set of characters of the text it was made from."""

    name = "char"

    def __init__(self, text: str) -> None:
        if not text:
            raise InputError("a character tokenizer needs a text with at least one character: the text is empty")
        self.characters = "".join(sorted(set(text)))
        self.vocab_size = len(self.characters)
        points = _code_points(self.characters)
        self._ids = np.full(int(points[-1]) + 1, -1, dtype=np.int64)
        self._ids[points] = np.arange(self.vocab_size)

    def encode(self, text: str) -> np.ndarray:
        """Ids of shape (characters,), uint16 or uint32; a character outside the vocabulary is an InputError."""
        points = _code_points(text)
        ids = np.where(points < len(self._ids), self._ids[np.minimum(points, len(self._ids) - 1)], -1)
        unknown = np.flatnonzero(ids < 0)
        if unknown.size:
            where = int(unknown[0])
            raise InputError(
                f"character {text[where]!r} at position {where} is not among the {self.vocab_size} characters"
                " of this tokenizer: fit it on this text, or use tokenizer='byte'"
            )
        return ids.astype(token_dtype(self.vocab_size))

    def decode(self, ids: Ids) -> str:
        return "".join(self.characters[i] for i in _as_array(ids, self.vocab_size))

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "vocab_size": self.vocab_size, "characters": self.characters}


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4").astype(np.int64)


class TiktokenTokenizer:
    """A byte-pair encoding of the optional package tiktoken, which fetches its merge table once and caches it.

    Special tokens in the text are read as ordinary text; `end_of_text` is the id that separates documents.
    """

    def __init__(self, name: str = "gpt2") -> None:
        if name not in _TIKTOKEN:
            raise InputError(f"tokenizer {name!r} is unknown: write one of {', '.join(NAMES)}")
        self.name = name
        self.vocab_size = _TIKTOKEN[name]
        self._loaded: Any = None

    @property
    def _encoding(self) -> Any:
        if self._loaded is None:
            try:
                tiktoken = importlib.import_module("tiktoken")
            except ImportError:
                raise InputError(
                    f"tokenizer {self.name!r} needs the package tiktoken: pip install 'mutransfer[hf]',"
                    " or use tokenizer='byte'"
                ) from None
            try:
                self._loaded = tiktoken.get_encoding(self.name)
            except Exception as error:  # tiktoken passes on whatever its HTTP client raises
                raise InputError(
                    f"tiktoken cannot fetch the merge table of {self.name!r} ({type(error).__name__}): go online once,"
                    " set TIKTOKEN_CACHE_DIR to a filled cache, or use tokenizer='byte'"
                ) from None
        return self._loaded

    @property
    def end_of_text(self) -> int:
        return int(self._encoding.eot_token)

    def encode(self, text: str) -> np.ndarray:
        ids = self._encoding.encode_ordinary(text)
        return np.array(ids, dtype=token_dtype(self.vocab_size))

    def decode(self, ids: Ids) -> str:
        return self._encoding.decode(_as_array(ids, self.vocab_size).tolist())

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "vocab_size": self.vocab_size}


class TokenIds:
    """Ids whose tokenizer is not known (a bare `.bin` file): a vocabulary size, and no text."""

    name = "ids"

    def __init__(self, vocab_size: int) -> None:
        if vocab_size < 1:
            raise InputError(f"vocab_size={vocab_size!r} is not a positive number of tokens")
        self.vocab_size = vocab_size

    def encode(self, text: str) -> np.ndarray:
        raise InputError("this data is token ids alone, so text cannot be encoded: its tokenizer is not known")

    def decode(self, ids: Ids) -> str:
        raise InputError("this data is token ids alone, so they cannot be decoded: its tokenizer is not known")

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "vocab_size": self.vocab_size}


def make_tokenizer(name: str, text: str = "") -> Tokenizer:
    """The tokenizer called `name`; "char" is fitted on `text`. Unknown names raise InputError."""
    if name == "byte":
        return ByteTokenizer()
    if name == "char":
        return CharTokenizer(text)
    return TiktokenTokenizer(name)


def tokenizer_from_dict(row: dict[str, Any]) -> Tokenizer:
    """The tokenizer that wrote `row` with `to_dict`."""
    name = row.get("name")
    if name == "char":
        return CharTokenizer(str(row.get("characters", "")))
    if name == "ids":
        return TokenIds(int(row.get("vocab_size", 0)))
    return make_tokenizer(str(name))
