"""Tables of known laws."""

from __future__ import annotations

from typing import Any

import numpy as np

from mutransfer.predict.points import Points


def points(values: dict[str, Any], loss: Any, seed: Any = None) -> Points:
    """Columns as points."""
    n = len(loss)
    seeds = tuple(map(str, seed)) if seed is not None else ("",) * n
    arrays = {name: np.asarray(v, float) for name, v in values.items()}
    return Points(arrays, np.asarray(loss, float), tuple(map(str, range(n))), seeds)


def power(n: Any, a: float = 0.5, b: float = 0.4, c: float = 2.0, at: float = 3e7) -> Any:
    """c + a·(n/at)^-b."""
    return c + a * (np.asarray(n, float) / at) ** -b


def chinchilla(n: Any, d: Any) -> Any:
    """Hoffmann et al.'s law with the parameters of Besiroglu et al. 2404.10102."""
    return 1.8172 + 482.01 / np.asarray(n, float) ** 0.3478 + 2085.43 / np.asarray(d, float) ** 0.3658


def grid(rng: np.random.Generator, runs: int) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and tokens as in published sets: 44 M to 16 B parameters, 2 to 200 tokens per parameter."""
    n = np.exp(rng.uniform(np.log(4.4e7), np.log(1.6e10), runs))
    return n, n * np.exp(rng.uniform(np.log(2), np.log(200), runs))
