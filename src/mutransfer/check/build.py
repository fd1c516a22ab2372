"""One model and optimizer from the user's own code, drawn from a seed of ours; the caller's random states stay as they are."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from mutransfer.check import feed
from mutransfer.errors import InputError


def make(build: Callable[[Any], Any], size: feed.Size, seed: int) -> tuple[nn.Module, list[Any], list[Any]]:
    """The user's model and optimizers at this size, drawn from this seed. Raises InputError when their code fails."""
    seed_all(seed)
    try:
        result = build(dict(size) if isinstance(size, dict) else size)
    except InputError:
        raise
    except Exception as error:
        line = str(error).strip().splitlines()
        raise InputError(f"build({size!r}) failed: {type(error).__name__}: {line[0] if line else ''}") from error
    return feed.built(result, size)


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """The caller's random states (torch, numpy, python) are the same afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
