"""The laws: what loss follows from size, tokens and compute, and where each was published.

Every law is a sum of terms with coefficients ≥ 0, some raised to an outer power:

    L = (Σ_j c_j·φ_j(θ, x))^p(θ)

so that for given exponents θ the coefficients are a small linear problem. Variables enter as x = log(value / scale), `scale`
their geometric mean: no unit and no size overflows, and none changes the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mutransfer.errors import InputError

Array = np.ndarray


@dataclass(frozen=True)
class Law:
    """One functional form over `variables` (canonical names or roles, in order).

    `log_terms(θ (..., q), x (v, n), log c (..., k))` gives log φ (..., k, n); `bounds` are those of θ, `grids` its values in the global search.
    `raw(log c, θ, log scale)` turns fitted numbers into the published parameters, for values in units of one; `own` says which of those are one
    fitted number alone (index into (log c, θ)), so that its profile is theirs.
    """

    name: str
    formula: str
    needs: str
    source: str
    variables: tuple[str, ...]
    coefficients: tuple[str, ...]
    exponents: tuple[str, ...]
    own: Mapping[str, int]
    bounds: tuple[tuple[float, float], ...]
    grids: Callable[[Array], tuple[Array, ...]]
    log_terms: Callable[[Array, Array, Array], Array]
    raw: Callable[[Array, Array, Array], dict[str, Array]]
    outer: Callable[[Array], Array] | None = None
    plain: bool = False
    """Whether it is E + Σ_v A_v/x_v^α_v, whose derivatives are simple."""

    @property
    def count(self) -> int:
        """Parameters fitted."""
        return len(self.coefficients) + len(self.exponents)

    def log_mean(self, u: Array, x: Array) -> Array:
        """log L (..., n) at parameters u = (log c, θ) (..., k + q) and normalised logarithms x (v, n)."""
        k = len(self.coefficients)
        log_c, theta = u[..., :k], u[..., k:]
        logs = log_c[..., None] + self.log_terms(theta, x, log_c)
        top = logs.max(axis=-2)
        log_sum = top + np.log(np.exp(logs - top[..., None, :]).sum(axis=-2))
        return log_sum if self.outer is None else self.outer(theta)[..., None] * log_sum

    def derivative(self, u: Array, x: Array) -> Array:
        """∂ log L/∂u (B, n, p) at u (B, p): of plain laws from the terms' shares, of others by central differences, exact to 1e-9."""
        if not self.plain:
            steps = 1e-5 * np.eye(u.shape[1])
            return np.stack([(self.log_mean(u + h, x) - self.log_mean(u - h, x)) / 2e-5 for h in steps], axis=-1)
        k = len(self.coefficients)
        logs = u[:, :k, None] + self.log_terms(u[:, k:], x, u[:, :k])
        share = np.exp(logs - logs.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        return np.concatenate([share, -share[:, 1:] * x], axis=1).transpose(0, 2, 1)


def additive(name: str, variables: Sequence[str], formula: str, needs: str, source: str, own: Mapping[str, int], raw: Callable[[Array, Array, Array], dict[str, Array]]) -> Law:  # fmt: skip
    """E + Σ_v A_v / x_v^α_v: the power law in one variable, Chinchilla's in two."""
    v = len(variables)

    def log_terms(theta: Array, x: Array, log_c: Array) -> Array:
        falling = -theta[..., :, None] * x
        return np.concatenate([np.zeros((*falling.shape[:-2], 1, x.shape[1])), falling], axis=-2)

    steps = {1: 160, 2: 28, 3: 11}[v]
    return Law(
        name, formula, needs, source, tuple(variables), ("E", *(f"A{i}" for i in range(v))), tuple(f"α{i}" for i in range(v)),
        own, ((1e-3, 6.0),) * v, lambda x: (np.geomspace(0.01, 4.0, steps),) * v, log_terms, raw, plain=True,
    )  # fmt: skip


def _power(variable: str) -> Law:
    def raw(log_c: Array, theta: Array, log_scale: Array) -> dict[str, Array]:
        b = theta[..., 0]
        return {"a": np.exp(log_c[..., 1] + b * log_scale[0]), "b": -b, "c": np.exp(log_c[..., 0])}

    return additive(
        "power", (variable,), *LAWS["power"][1:], {"c": 0, "b": 2}, raw,
    )  # fmt: skip


def _chinchilla(size: str, tokens: str) -> Law:
    def raw(log_c: Array, theta: Array, log_scale: Array) -> dict[str, Array]:
        a, b = (np.exp(log_c[..., i + 1] + theta[..., i] * log_scale[i]) for i in (0, 1))
        return {"E": np.exp(log_c[..., 0]), "A": a, "α": theta[..., 0], "B": b, "β": theta[..., 1]}

    return additive(
        "chinchilla", (size, tokens), *LAWS["chinchilla"][1:], {"E": 0, "α": 3, "β": 4}, raw,
    )  # fmt: skip


def _three(variables: tuple[str, ...]) -> Law:
    letters = "ABC"
    greek = ("α", "β", "γ")

    def raw(log_c: Array, theta: Array, log_scale: Array) -> dict[str, Array]:
        out = {"E": np.exp(log_c[..., 0])}
        for i in range(len(variables)):
            out[letters[i]] = np.exp(log_c[..., i + 1] + theta[..., i] * log_scale[i])
            out[greek[i]] = theta[..., i]
        return out

    formula = "L = E + " + " + ".join(
        f"{letter}/{v}^{g}" for letter, v, g in zip(letters, variables, greek, strict=False)
    )
    own = {"E": 0, **{greek[i]: 1 + len(variables) + i for i in range(len(variables))}}
    return additive(
        "additive", variables, formula, *LAWS["additive"][2:], own, raw,
    )  # fmt: skip


def _kaplan(size: str, tokens: str) -> Law:
    # (c0·n^(-αN/αD) + c1·d^-1)^αD
    def log_terms(theta: Array, x: Array, log_c: Array) -> Array:
        ratio = theta[..., 0] / theta[..., 1]
        return np.stack([-ratio[..., None] * x[0], np.broadcast_to(-x[1], (*ratio.shape, x.shape[1]))], axis=-2)

    def raw(log_c: Array, theta: Array, log_scale: Array) -> dict[str, Array]:
        n, d = theta[..., 0], theta[..., 1]
        size_c = np.exp(log_c[..., 0] * d / n + log_scale[0])
        return {"Nc": size_c, "αN": n, "Dc": np.exp(log_c[..., 1] + log_scale[1]), "αD": d}

    return Law(
        "kaplan", *LAWS["kaplan"][1:], (size, tokens), ("c_N", "c_D"), ("αN", "αD"), {"αN": 2, "αD": 3},
        ((1e-3, 3.0), (5e-3, 3.0)), lambda x: (np.geomspace(0.01, 1.5, 32), np.geomspace(0.02, 1.5, 32)), log_terms, raw,
        outer=lambda theta: theta[..., 1],
    )  # fmt: skip


def effective_tokens(tokens: Array, unique: Array, half: Array) -> Array:
    """D' = U + U·R*·(1 − e^(−R/R*)), R = D/U − 1 repetitions: what repeated tokens are worth (2305.16264, eq. 5). Logs in, log out."""
    repeats = np.maximum(np.expm1(np.minimum(tokens - unique, 60.0)), 0.0)
    return np.minimum(tokens, unique) + np.log1p(half * -np.expm1(-repeats / half))


def _data_constrained(size: str, tokens: str, unique: str) -> Law:
    # x[1] and x[2] share one scale, so that D/U is theirs (see `scales`)
    def log_terms(theta: Array, x: Array, log_c: Array) -> Array:
        alpha, beta = theta[..., 0, None], theta[..., 1, None]
        half_d, half_n = np.exp(theta[..., 2, None]), np.exp(theta[..., 3, None])
        worth = effective_tokens(x[1], x[2], half_d)
        # U_N: the size that is compute-optimal for the distinct tokens, G·(6·N·D/6)… with αA/N^α = βB/D^β
        best = (np.log(alpha) + log_c[..., 1, None] - np.log(beta) - log_c[..., 2, None] + beta * x[2]) / alpha
        useful = effective_tokens(x[0], np.minimum(best, x[0]), half_n)
        return np.stack([np.zeros_like(worth), -alpha * useful, -beta * worth], axis=-2)

    def raw(log_c: Array, theta: Array, log_scale: Array) -> dict[str, Array]:
        a, b = (np.exp(log_c[..., i + 1] + theta[..., i] * log_scale[i]) for i in (0, 1))
        return {"E": np.exp(log_c[..., 0]), "A": a, "α": theta[..., 0], "B": b, "β": theta[..., 1],
                "R*_D": np.exp(theta[..., 2]), "R*_N": np.exp(theta[..., 3])}  # fmt: skip

    return Law(
        "data-constrained", *LAWS["data-constrained"][1:], (size, tokens, unique),
        ("E", "A", "B"), ("α", "β", "log R*_D", "log R*_N"), {"E": 0, "α": 3, "β": 4, "R*_D": 5, "R*_N": 6},
        ((1e-3, 4.0), (1e-3, 4.0), (np.log(0.3), np.log(300.0)), (np.log(0.3), np.log(300.0))),
        lambda x: (np.geomspace(0.05, 1.5, 11), np.geomspace(0.05, 1.5, 11), np.log([1.0, 3.0, 10.0, 30.0, 100.0]), np.log([1.0, 5.0, 30.0, 150.0])),
        log_terms, raw,
    )  # fmt: skip


def _broken(variable: str) -> Law:
    def log_terms(theta: Array, x: Array, log_c: Array) -> Array:
        b, extra, where, log_f = (theta[..., i, None] for i in range(4))
        f = np.exp(log_f)
        soft = f * np.logaddexp(0.0, (x[0] - where) / f)
        return np.stack([np.zeros_like(soft), -b * x[0] - extra * soft], axis=-2)

    def raw(log_c: Array, theta: Array, log_scale: Array) -> dict[str, Array]:
        b = theta[..., 0]
        return {"a": np.exp(log_c[..., 0]), "b": np.exp(log_c[..., 1] + b * log_scale[0]), "c0": b, "c1": theta[..., 1],
                "d1": np.exp(theta[..., 2] + log_scale[0]), "f1": np.exp(theta[..., 3])}  # fmt: skip

    def grids(x: Array) -> tuple[Array, ...]:
        low, high = x[0].min(), x[0].max()
        return (np.geomspace(0.01, 2.0, 14), np.array([-1.0, -0.4, -0.15, -0.05, 0.05, 0.15, 0.4, 1.0]),
                np.linspace(low, high, 9)[1:-1], np.log([0.1, 0.3, 1.0]))  # fmt: skip

    return Law(
        "broken", *LAWS["broken"][1:], (variable,), ("a", "b"), ("c0", "c1", "log d1", "log f1"), {"a": 0, "c0": 2, "c1": 3, "d1": 4, "f1": 5},
        ((-1.0, 6.0), (-6.0, 6.0), (-30.0, 30.0), (np.log(0.02), np.log(5.0))), grids, log_terms, raw,
    )  # fmt: skip


class Listed(NamedTuple):
    """A law as users choose it: how many variables it takes (0: one to three), its formula, what the table must have, where it was published."""

    variables: int
    formula: str
    needs: str
    source: str


LAWS: Mapping[str, Listed] = {
    "power": Listed(
        1, "L = a·N^b + c", "one size (or tokens, or compute) that varies; 4 sizes or more", "Mu-scaling; Henighan et al. 2010.14701"
    ),
    "broken": Listed(
        1, "L = a + b·x^(-c0)·(1 + (x/d1)^(1/f1))^(-c1·f1)", "one variable over several decades that bends once; 7 sizes or more",
        "Caballero et al. 2210.14891, one break",
    ),
    "chinchilla": Listed(
        2, "L = E + A/N^α + B/D^β", "sizes and tokens that vary, not in proportion; 6 runs or more", "Hoffmann et al. 2203.15556, approach 3"
    ),
    "kaplan": Listed(
        2, "L = [(Nc/N)^(αN/αD) + Dc/D]^αD", "sizes and tokens that vary, not in proportion; 5 runs or more; no irreducible loss",
        "Kaplan et al. 2001.08361, eq. 1.5",
    ),
    "data-constrained": Listed(
        3, "L = E + A/N'^α + B/D'^β, D' = U + U·R*_D·(1 − e^(−R_D/R*_D)), N' likewise beyond the size optimal for U",
        "sizes, tokens and distinct tokens, with repetition in some runs; 8 runs or more", "Muennighoff et al. 2305.16264",
    ),
    "additive": Listed(
        0, "L = E + Σ A_v/x_v^α_v", "one to three variables, each varying by itself", "the form of 2203.15556 over any variables"
    ),
}  # fmt: skip
"""Every law by name; the one source of what is said of them."""


def law(name: str, variables: Sequence[str]) -> Law:
    """The law of that name over these variables (size first, then tokens, then distinct tokens). Raises InputError."""
    makers: dict[str, Callable[..., Law]] = {
        "power": _power, "broken": _broken, "chinchilla": _chinchilla, "kaplan": _kaplan, "data-constrained": _data_constrained,
    }  # fmt: skip
    if name not in LAWS:
        raise InputError(f"law={name!r}: write one of {', '.join(LAWS)}")
    if name == "additive":
        if not 1 <= len(variables) <= 3:
            raise InputError(f"law='additive' takes one to three variables, not {len(variables)}")
        return _three(tuple(variables))
    if len(variables) != LAWS[name][0]:
        raise InputError(f"law={name!r} takes {LAWS[name][0]} variables, not {len(variables)} ({', '.join(variables)})")
    return makers[name](*variables)
