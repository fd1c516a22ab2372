"""The cost of every token of a text under a model, in windows that score each token but the first exactly once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mutransfer.errors import InputError

Model = Callable[[Tensor], Any]
"""Maps ids (B, T), int64, to next-token logits (B, T, V), or to an object whose `.logits` they are."""

_TOKENS_AT_ONCE = (
    4096  # of all windows of a batch: on a CPU more is not faster, and logits of a large vocabulary are big
)
_LOGITS_AT_ONCE = 2**22  # in float64: 32 MB


@dataclass(frozen=True)
class Window:
    """Inputs `start … start + length − 1`, each of which predicts the next token; the first `skip` were scored before."""

    start: int
    length: int
    skip: int


def windows(count: int, context: int, stride: int) -> Iterator[Window]:
    """The windows over `count` tokens: window k starts at token k·stride and reads at most `context` tokens.

    Target p (of 1 … count − 1) belongs to the first window that reaches it. So it sees all p tokens before it in the
    first window, and in every other at least context − stride + 1; stride = context gives disjoint windows.
    """
    scored = 0  # targets 1 … scored have their window
    for start in itertools.count(0, stride):
        end = min(start + context, count - 1)  # the last target
        if end <= scored:
            return
        yield Window(start, end - start, scored - start)
        scored = end


def check_window(context: int, stride: int | None, batch: int | None) -> tuple[int, int]:
    """(stride, windows at once), resolved. Raises InputError for numbers that are none."""
    for name, value in (("context", context), ("stride", stride), ("batch", batch)):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1
        if not whole and (value is not None or name == "context"):
            raise InputError(f"{name}={value!r}: write a whole number of at least 1")
    stride = context if stride is None else stride
    if stride > context:
        raise InputError(
            f"stride={stride} would leave out tokens between windows of context={context}: write one up to {context}"
        )
    return int(stride), int(batch) if batch else max(1, _TOKENS_AT_ONCE // context)


def token_nats(
    model: Model,
    ids: np.ndarray,  # (N,) whole numbers
    *,
    context: int,
    stride: int | None = None,
    batch: int | None = None,
    device: torch.device | str | None = None,
    on_tokens: Callable[[int], object] | None = None,
) -> np.ndarray:  # (N - 1,) float64
    """−ln p(token | tokens before it in its window) of every token but the first: in float64 (float32 on MPS).

    `stride` (default: `context`): see `windows`. `batch`: windows at once. `device`: where the ids are put; by default
    where the model's parameters are. A module is put in eval mode and back, module by module; no gradients; autocast is
    as the caller has it. `on_tokens(n)` is called when n more are scored.
    Raises InputError for fewer than two ids and for a model that cannot take them.
    """
    stride, batch = check_window(context, stride, batch)
    place = device_of(model) if device is None else torch.device(device)
    if len(ids) < 2:
        raise InputError(f"{_tokens(len(ids))}: the first token is given, so that at least two are needed")
    found = np.empty(len(ids) - 1)
    with _evaluating(model), torch.no_grad():
        for group in _batches(windows(len(ids), context, stride), batch):
            length, skip = group[0].length, group[0].skip
            starts = np.array([window.start for window in group])
            rows = torch.from_numpy(ids[starts[:, None] + np.arange(length + 1)].astype(np.int64)).to(place)
            logits = _logits(model, rows[:, :-1], context, batch)
            scored = _nats(logits[:, skip:], rows[:, skip + 1 :]).cpu().numpy()
            for start, row in zip(starts, scored, strict=True):
                found[start + skip : start + length] = row  # found[p − 1] is of token p
            if on_tokens is not None:
                on_tokens(scored.size)
    return found


def device_of(model: Model) -> torch.device:
    """Where the first parameter (or buffer) of the model is; the CPU where it has none."""
    tensors = itertools.chain(model.parameters(), model.buffers()) if isinstance(model, nn.Module) else ()
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _batches(found: Iterator[Window], batch: int) -> Iterator[list[Window]]:
    """Windows of one shape, up to `batch` at once: nothing is padded."""
    for _, same in itertools.groupby(found, key=lambda window: (window.length, window.skip)):
        while group := list(itertools.islice(same, batch)):
            yield group


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Eval mode, and afterwards the mode that each module was in: a part may have been frozen by its owner."""
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        if isinstance(model, nn.Module):
            model.train(modes[0][1])  # modules may do more than set a flag here
        for module, training in modes:
            module.training = training


def _logits(model: Model, x: Tensor, context: int, batch: int) -> Tensor:
    """The model's logits (B, T, V), checked."""
    try:
        made = model(x)
    except IndexError as error:
        raise InputError(
            f"the model cannot take token ids up to {int(x.max())} in windows of {x.shape[1]} ({_first_line(error)}):"
            " its tokenizer must be the one it was trained with, and context no longer than its positions"
        ) from None
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise InputError(
            f"out of memory with batch={batch} windows of context={context}: write a smaller batch, or device='cpu'"
        ) from None
    logits = made if isinstance(made, Tensor) else getattr(made, "logits", None)
    if not isinstance(logits, Tensor):
        raise InputError(
            f"the model returned a {type(made).__name__}, not logits (batch, time, vocabulary): wrap it, such as"
            " lambda ids: model(ids)[0]"
        )
    if logits.dim() != 3 or logits.shape[:2] != x.shape or not logits.is_floating_point():
        raise InputError(
            f"the model returned {logits.dtype} of shape {tuple(logits.shape)} for ids of shape {tuple(x.shape)}: it must"
            " give the logits of every position, (batch, time, vocabulary)"
        )
    return logits


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    """−log softmax(logits)[target], (B, T): a part at a time, since logits in float64 may not fit."""
    flat, wanted = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    if int(wanted.max()) >= flat.shape[1] or int(wanted.min()) < 0:
        bad = wanted[(wanted >= flat.shape[1]) | (wanted < 0)][0]
        raise InputError(
            f"token id {int(bad)}, but the model has logits for {flat.shape[1]} tokens: its tokenizer is another"
        )
    exact = torch.float32 if flat.device.type == "mps" else torch.float64
    size = max(1, _LOGITS_AT_ONCE // flat.shape[1])
    parts = [
        F.cross_entropy(part.to(exact), target, reduction="none")
        for part, target in zip(flat.split(size), wanted.split(size), strict=True)
    ]
    nats = torch.cat(parts).reshape(targets.shape)
    if bool(nats.isnan().any()):
        raise InputError("the model's logits are not finite: load weights from before it diverged")
    return nats


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
