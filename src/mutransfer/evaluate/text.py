"""Held-out files read, tokenized and scored, one domain each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mutransfer.data.documents import read_pieces
from mutransfer.errors import InputError
from mutransfer.evaluate.score import DomainScore, score_of
from mutransfer.evaluate.windows import Model, check_window, token_nats

Encode = Callable[[str], Any]
"""A text to its token ids: a list, an array or a tensor of one dimension."""
Decode = Callable[[np.ndarray], str]


@dataclass(frozen=True)
class Domain:
    """A text as the model sees it."""

    name: str
    ids: np.ndarray  # (N,) whole numbers
    bytes: int | None
    changed: bool = False
    """Whether the tokens stand for another text than the file's: white space collapsed, letters made small."""


def evaluate_text(
    model: Model,
    encode: Encode,
    files: str | Path | Iterable[str | Path],
    *,
    context: int,
    stride: int | None = None,
    batch: int | None = None,
    device: torch.device | str | None = None,
    on_progress: Callable[[int, int, str], object] | None = None,
) -> tuple[DomainScore, ...]:
    """How well `model` predicts each of `files`: nats per token, perplexity and bits per byte, one domain per file.

        L = −Σ ln p(token_i | tokens before it in its window), over all tokens but the first;  nats = L / tokens
        perplexity = exp(nats);   bits per byte = L / ln 2 / bytes of the file in UTF-8

    `model`: anything that maps ids (B, T) to logits (B, T, V), or to an object with `.logits`. `encode`: its tokenizer,
    from a str to ids. `files`: UTF-8 text (.jsonl and .parquet: the field "text" of every row). Windows hold `context`
    tokens and start every `stride` tokens (default: `context`, disjoint windows): every token but a file's first is scored
    exactly once, with at least context − stride + 1 tokens before it in its window, or all there are. `batch` windows at
    once (default: 4,096 tokens' worth), which changes rounding only. `device` and the model's mode: see `token_nats`.
    `on_progress(done, total, domain)` counts tokens. All files are read before the model runs. Standard errors: see
    `block_error`; all files as one: `mutransfer.evaluate.total`.
    Raises InputError for a file that is missing, given twice, not UTF-8, shorter than two tokens, or with characters that
    the tokenizer does not know.
    """
    check_window(context, stride, batch)
    domains = [read_domain(encode, path) for path in file_list(files)]
    return score_domains(
        model, domains, context=context, stride=stride, batch=batch, device=device, on_progress=on_progress
    )


def score_domains(
    model: Model,
    domains: Sequence[Domain],
    *,
    context: int,
    stride: int | None = None,
    batch: int | None = None,
    device: torch.device | str | None = None,
    on_progress: Callable[[int, int, str], object] | None = None,
) -> tuple[DomainScore, ...]:
    """As `evaluate_text`, for texts that are tokenized already."""
    for domain in domains:
        if len(domain.ids) < 2:
            count = "1 token" if len(domain.ids) == 1 else f"{len(domain.ids)} tokens"
            raise InputError(f"{domain.name!r} has {count}: the first is given, so that at least two are needed")
    whole, done, scores = sum(len(domain.ids) - 1 for domain in domains), 0, []

    def scored(tokens: int) -> None:
        nonlocal done
        done += tokens
        if on_progress is not None:
            on_progress(done, whole, domains[len(scores)].name)

    for domain in domains:
        try:
            nats = token_nats(
                model, domain.ids, context=context, stride=stride, batch=batch, device=device, on_tokens=scored
            )
        except InputError as error:
            raise InputError(f"{domain.name!r}: {error}") from None
        scores.append(score_of(domain.name, nats, domain.bytes, context))
    return tuple(scores)


def file_list(files: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files as paths. Raises InputError where there is none, or one twice: it would count twice in the total."""
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
    if not paths:
        raise InputError("there is no file to evaluate: give at least one")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise InputError(f"{str(path)!r} is given twice: write it once")
        seen.add(path.resolve())
    return paths


def read_domain(encode: Encode, path: Path, decode: Decode | None = None) -> Domain:
    """A file, tokenized; with `decode`, whether that keeps the text. Raises InputError naming file and place."""
    text = _read(path)
    if not text:
        raise InputError(f"{str(path)!r} is empty: at least two tokens are needed")
    try:
        found = encode(text)
    except InputError as error:
        raise InputError(f"{str(path)!r}: {error}") from None
    except KeyError as error:  # a table of characters that lacks one
        key = error.args[0] if error.args else None
        where = f" ({place_of(text, text.index(key))})" if isinstance(key, str) and key and key in text else ""
        raise InputError(f"{str(path)!r}: the tokenizer does not know {key!r}{where}: replace it there") from None
    except Exception as error:  # a tokenizer of the user's, or one of dozens of libraries
        said = (str(error).splitlines() or [""])[0][:120]
        raise InputError(f"{str(path)!r}: the tokenizer cannot encode it ({type(error).__name__}: {said})") from None
    ids = _as_ids(found, path)
    return Domain(str(path), ids, len(text.encode("utf-8")), decode is not None and decode(ids) != text)


def place_of(text: str, offset: int) -> str:
    """Where a character is, for a message: its offset in characters from 0, and its line from 1."""
    return f"offset {offset}, line {text.count(chr(10), 0, offset) + 1}"


def _read(path: Path) -> str:
    name = str(path)
    if path.is_dir():
        raise InputError(f"{name!r} is a folder: give files of text")
    if path.suffix in (".jsonl", ".parquet"):  # as in training: a line end after each document of a .jsonl
        if not path.exists():
            raise InputError(f"{name!r} does not exist: give a file of text")
        return "".join(text + "\n" * (ends and path.suffix == ".jsonl") for text, ends in read_pieces(path))
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(
            f"{name!r} is not UTF-8 text (byte 0x{byte:02x} at {error.start}): convert it to UTF-8"
        ) from None
    except FileNotFoundError:
        raise InputError(f"{name!r} does not exist: give a file of text") from None
    except OSError as error:
        raise InputError(f"{name!r} cannot be read: {error.strerror}") from None


def _as_ids(found: Any, path: Path) -> np.ndarray:
    """What a tokenizer returned, as an array (N,)."""
    if isinstance(found, torch.Tensor):
        found = found.detach().cpu().numpy()
    try:
        ids = np.asarray(found)
    except ValueError:  # rows of unequal length
        ids = np.empty((0, 0))
    if ids.size == 0 and ids.ndim == 1:
        return np.zeros(0, dtype=np.int64)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(
            f"{str(path)!r}: encode returned a {type(found).__name__} of shape {ids.shape}: it must give"
            " one id per token, (N,)"
        )
    return ids
