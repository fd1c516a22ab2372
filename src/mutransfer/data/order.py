"""The order of examples is a pure function of (seed, step): counter-based, so nothing has to be stored or replayed."""

from functools import lru_cache

import numpy as np

from mutransfer.errors import InputError

# One Philox stream per purpose; the purpose sits in the highest counter word, which no draw ever reaches.
_OFFSETS, _EPOCHS, _SPLIT = 0, 1, 2


def _raw(purpose: int, seed: int, index: int, count: int) -> np.ndarray:
    """`count` raw uint64 of stream (purpose, seed, index); raw Philox output is the same in every numpy version."""
    for name, value in (("seed", seed), ("step", index)):
        if not isinstance(value, (int, np.integer)) or not 0 <= value < 2**64:
            raise InputError(f"{name}={value!r} is not a whole number in 0 … 2**64 − 1")
    key = np.array([seed, index], dtype=np.uint64)
    return np.random.Philox(key=key, counter=[0, 0, 0, purpose]).random_raw(count)


def offsets(seed: int, step: int, count: int, span: int) -> np.ndarray:
    """`count` window starts, uniform in [0, span), int64: a function of (seed, step) alone.

    Row r does not depend on `count`, so a larger batch keeps the rows of a smaller one.
    """
    # the top 53 bits as a fraction in [0, 1); exact in float64 and valid for any number of tokens
    fraction = (_raw(_OFFSETS, seed, step, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.minimum((fraction * span).astype(np.int64), span - 1)


@lru_cache(maxsize=4)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` examples in one epoch: a permutation that is a function of (seed, epoch), int64."""
    order = np.argsort(_raw(_EPOCHS, seed, epoch, count), kind="stable")
    order.setflags(write=False)
    return order


def epoch_rows(count: int, seed: int, start: int, stop: int) -> np.ndarray:
    """Rows `start … stop − 1` of the endless sequence "epoch 0, epoch 1, …" over `count` examples, int64."""
    pieces = []
    while start < stop:
        epoch, inside = divmod(start, count)
        taken = min(count - inside, stop - start)
        pieces.append(permutation(count, seed, epoch)[inside : inside + taken])
        start += taken
    return np.concatenate(pieces)


def split(count: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Sorted row numbers of train and validation, the same on every machine and for every seed of a run."""
    order = np.argsort(_raw(_SPLIT, 0, 0, count), kind="stable")
    held_out = round(count * fraction)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def rank_rows(batch: int, rank: int, world: int) -> slice:
    """The rows of one global batch that belong to `rank` of `world`: the union over ranks is the whole batch."""
    if batch < 1:
        raise InputError(f"batch={batch!r} is not a positive number of rows")
    if world < 1 or not 0 <= rank < world:
        raise InputError(f"rank={rank!r} is not one of 0 … world − 1 with world={world!r}")
    if batch % world:
        raise InputError(f"batch={batch} does not divide among world={world} ranks: use a multiple of {world}")
    share = batch // world
    return slice(rank * share, (rank + 1) * share)
