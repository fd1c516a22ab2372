"""Text as one long array of token ids, and batches of windows whose order depends on the seed alone."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mutransfer.data.order import offsets, rank_rows
from mutransfer.data.tokenizers import Tokenizer
from mutransfer.errors import InputError

# A tenth is held out; a long text needs no more than this for a precise validation loss.
_MOST_VAL_TOKENS = 2**22


def embedded_text() -> str:
    """The Python language reference that every CPython ships: about 465 kB of English and code.

    Source: the standard library's `pydoc_data.topics`, in the order of its sorted keys. Its content differs
    from one Python version to the next, so compare runs only where `TextData.fingerprint` is equal.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise InputError(
            "data 'topics' is missing: this Python comes without pydoc_data; install the full standard library,"
            " or give the path of a .txt file"
        ) from None
    return "\n".join(topics[key] for key in sorted(topics))


def split_point(count: int) -> int:
    """Where validation begins in `count` tokens: the last tenth, at most 2²² tokens."""
    return count - min(count - count * 9 // 10, _MOST_VAL_TOKENS)


@dataclass(frozen=True, eq=False)
class TextData:
    """Tokenized text: `train` and `val` are 1-D arrays of ids (uint16 or uint32, in memory or memory-mapped)."""

    train: np.ndarray
    val: np.ndarray
    tokenizer: Tokenizer
    name: str
    fingerprint: str = field(default="")

    kind = "text"

    def __post_init__(self) -> None:
        if not self.fingerprint:
            value = text_fingerprint(sha256(self.train), sha256(self.val), self.vocab_size)
            object.__setattr__(self, "fingerprint", value)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def batch(
        self,
        step: int,
        seed: int,
        batch: int,
        context: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Training batch of `step`; see `text_batch`."""
        return text_batch(self.train, step, seed, batch, context, device, rank, world)

    def val_batches(
        self, batch: int, context: int, n: int | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The same validation batches every time; see `val_batches`."""
        return val_batches(self.val, batch, context, n, device)


def sha256(array: np.ndarray) -> str:
    """Hex sha256 of the array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def text_fingerprint(train: str, val: str, vocab_size: int) -> str:
    """16 hex digits that name what the model sees: the ids of both splits and the vocabulary size."""
    return hashlib.sha256(f"{train} {val} {vocab_size}".encode()).hexdigest()[:16]


def require_length(tokens: np.ndarray, context: int, what: str) -> None:
    """InputError unless `tokens` holds one window of `context` inputs and their targets."""
    if context < 1:
        raise InputError(f"context={context!r} is not a positive number of tokens")
    if len(tokens) == 0:
        raise InputError(f"{what} is empty: there are no tokens to train on")
    if len(tokens) <= context:
        raise InputError(
            f"{what} has {len(tokens)} tokens, too few for context={context}: use a longer text,"
            f" or a context below {len(tokens)}"
        )


def _windows(tokens: np.ndarray, starts: np.ndarray, context: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Inputs and next-token targets at `starts`: two contiguous int64 tensors of shape (len(starts), context)."""
    rows = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    x = torch.from_numpy(np.ascontiguousarray(rows[:, :-1]))
    y = torch.from_numpy(np.ascontiguousarray(rows[:, 1:]))
    if torch.device(device).type == "cuda":  # pinned memory lets the copy overlap with computation
        return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)
    return x.to(device), y.to(device)


def text_batch(
    tokens: np.ndarray,
    step: int,
    seed: int,
    batch: int,
    context: int,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of step `step`: windows whose starts are a pure function of (seed, step).

    x and y are int64 of shape (batch / world, context), and `y[:, t] = x[:, t + 1]` inside a window. `batch` is the global batch;
    each of `world` ranks takes its own rows of it. The first rows stay the same when `batch` grows; resuming needs
    only the step number. Raises InputError when the text is not longer than the context.
    """
    require_length(tokens, context, "the text")
    rows = rank_rows(batch, rank, world)
    starts = offsets(seed, step, batch, len(tokens) - context)
    return _windows(tokens, starts[rows], context, device)


def val_batches(
    tokens: np.ndarray, batch: int, context: int, n: int | None = None, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """`n` batches of non-overlapping windows spread evenly over `tokens` (all of them when n is None).

    All batches have the same shape, so that the mean of their losses is the mean over tokens: a text with fewer than
    `n · batch` windows gives fewer batches, and one with fewer than `batch` gives a single smaller batch.
    """
    require_length(tokens, context, "the validation text")
    rank_rows(batch, 0, 1)
    if n is not None and n < 1:
        raise InputError(f"n={n!r} is not a positive number of validation batches")
    available = (len(tokens) - 1) // context
    batch = min(batch, available)
    count = available // batch if n is None else min(n, available // batch)
    starts = np.arange(count * batch, dtype=np.int64) * available // (count * batch) * context
    return (_windows(tokens, rows, context, device) for rows in starts.reshape(count, batch))
