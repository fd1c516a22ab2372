"""Tables under E + A/N^α + B/D^β whose compute-optimal frontier is known, and laws fitted to them without a backtest."""

from __future__ import annotations

import numpy as np

from mutransfer.predict.fit import fit
from mutransfer.predict.forecast import LossLaw
from mutransfer.predict.intervals import bootstrap
from mutransfer.predict.laws import law
from mutransfer.predict.points import Points

Array = np.ndarray
E, A, B = 1.8, 480.0, 2085.0


def best_size(compute: float, alpha: float = 0.35, beta: float = 0.366) -> float:
    """N_opt = G·(C/6)^(β/(α+β))."""
    g = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    return float(g * (compute / 6) ** (beta / (alpha + beta)))


def curves(
    rng: np.random.Generator, noise: float = 0.003, alpha: float = 0.35, beta: float = 0.366, budgets: int = 5, sizes: int = 7,
    wide: float = 4.0, jitter: float = 0.0,
) -> Points:  # fmt: skip
    """isoFLOP runs: budgets from 1e18 to 1e21 FLOPs, sizes within a factor `wide` of the best; compute off by `jitter` (log)."""
    n, d = [], []
    for c in np.geomspace(1e18, 1e21, budgets):
        every = best_size(c, alpha, beta) * np.geomspace(1 / wide, wide, sizes) * np.exp(0.15 * rng.standard_normal())
        off = np.exp(jitter * rng.uniform(-1, 1, sizes))
        n.append(every)
        d.append(c * off / 6 / every)
    size, tokens = np.concatenate(n), np.concatenate(d)
    loss = (E + A / size**alpha + B / tokens**beta) * np.exp(noise * rng.standard_normal(len(size)))
    return made({"params": size, "tokens": tokens, "compute": 6 * size * tokens}, loss)


def made(variables: dict[str, Array], loss: Array) -> Points:
    """Points without seeds, a run each."""
    return Points(variables, loss, tuple(map(str, range(len(loss)))), ("",) * len(loss))


def sizes(rng: np.random.Generator, noise: float = 0.002, runs: int = 9, top: float = 1e9) -> Points:
    """L = 2.9 + 1000·N^-0.43."""
    n = np.geomspace(1e7, top, runs)
    return made({"params": n}, (2.9 + 1000 * n**-0.43) * np.exp(noise * rng.standard_normal(runs)))


def fitted(points: Points, name: str = "chinchilla", variables: tuple[str, ...] = ("params", "tokens"), draws: int = 200) -> LossLaw:  # fmt: skip
    """The law with few bootstrap draws and no backtest: fast."""
    one = fit(law(name, variables), points)
    found = LossLaw(one, None, ())
    found.__dict__["draws"] = bootstrap(one, draws)
    return found
