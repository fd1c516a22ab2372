"""The compute-optimal frontier: which size and how many tokens make the lowest loss of a budget, with intervals.

At C = k·N·D (k = 6, Kaplan et al. 2001.08361, eq. 2.2) a law E + A/N^α + B/D^β is lowest where αA/N^α = βB/D^β, that is

    N_opt = G·(C/k)^a,  D_opt = G^-1·(C/k)^b,  G = (αA/(βB))^(1/(α+β)),  a = β/(α+β),  b = α/(α+β)

(Hoffmann et al. 2203.15556, eq. 4). Kaplan's law is an increasing function of such a sum, so the same holds for it. With repeated tokens (2305.16264)
there is no closed form and the minimum is found on a grid of sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict import telling
from mutransfer.predict.backtest import growth, reach
from mutransfer.predict.costs import FACTOR
from mutransfer.predict.forecast import FOLDS, LossLaw
from mutransfer.predict.intervals import Draws, student
from mutransfer.predict.units import from_nats
from mutransfer.verdict.estimate import Estimate, central

Array = np.ndarray
GRID = 240  # sizes tried per budget where there is no closed form
WIDE = 9.0  # ± in log size about the closed form's optimum
SUBSET = 250  # draws used there


@dataclass(frozen=True)
class Optimum:
    """The best size and tokens for `compute` FLOPs. `loss`: what a run there will reach; `law`: the law's own loss there; `ratio`: tokens per unit of size; `reach`: how far
    beyond the fitted runs, in spans of them; `epochs`: how often tokens are seen where they are limited."""

    compute: float
    size: Estimate
    tokens: Estimate
    ratio: Estimate
    loss: Estimate
    law: Estimate
    reach: float
    epochs: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        out: dict[str, Any] = {"compute": self.compute, "reach": self.reach}
        for name in ("size", "tokens", "ratio", "loss", "law", "epochs"):
            one = getattr(self, name)
            out[name] = None if one is None else one.to_dict()
        return out


@dataclass(frozen=True)
class Frontier:
    """Of one fitted law. `at(compute)` is the answer; `exponents`: a and b of N_opt ∝ C^a, D_opt ∝ C^b where tokens are not limited."""

    law: LossLaw
    draws: Draws
    level: float = 0.9
    unique_tokens: float | None = None

    @property
    def size(self) -> str:
        """The law's size variable."""
        return next(name for name in self.law.variables if name in FACTOR)

    @property
    def factor(self) -> float:
        """k of C = k·N·D."""
        return FACTOR[self.size]

    @cached_property
    def exponents(self) -> dict[str, Estimate]:
        """a and b of N_opt ∝ C^a, D_opt ∝ C^b."""
        one, every = self._terms(self.law.fit.u[None]), self._terms(self.drawn)
        core = self._terms(self.law.fit.core[None])

        def of(part: Any) -> Estimate:
            return self._estimate(part(one)[:, None], part(core)[:, None], part(every)[:, None])[0]

        return {
            "a": of(lambda t: t.beta / (t.alpha + t.beta)),
            "b": of(lambda t: t.alpha / (t.alpha + t.beta)),
        }

    @property
    def closed(self) -> bool:
        """Whether the optimum has a closed form."""
        return self.law.fit.law.name != "data-constrained" or self.unique_tokens is None

    @property
    def computes(self) -> tuple[float, float]:
        """Compute of the smallest and the largest fitted run, FLOPs."""
        made = self.factor * self.law.points.variables[self.size] * self.law.points.variables["tokens"]
        return float(made.min()), float(made.max())

    def at(self, compute: float) -> Optimum:
        """The optimum for `compute` FLOPs. Raises InputError for what is no budget."""
        return self.table([compute])[0]

    def table(self, computes: Sequence[float] | Array) -> tuple[Optimum, ...]:
        """`at` for several budgets."""
        for value in computes:
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < float(value) < 1e60:
                raise InputError(f"compute={value!r}: write a budget in FLOPs, such as 1e21")
        log_c = np.log(np.array([float(c) for c in computes]))
        found = {}
        for who, u in (("one", self.law.fit.u[None]), ("core", self.law.fit.core[None]), ("all", self.drawn)):
            found[who] = self.optimal(u, log_c)
        n = self._estimates({who: f[0] for who, f in found.items()})
        d = self._estimates({who: f[1] for who, f in found.items()})
        ratio = self._estimates({who: f[1] - f[0] for who, f in found.items()})
        epochs = None
        if self.unique_tokens is not None:
            u = np.log(self.unique_tokens)
            epochs = self._estimates({who: np.maximum(f[1] - u, 0.0) for who, f in found.items()})
        out = []
        for i, c in enumerate(log_c):
            far, run, law = self._losses(found, i)
            out.append(Optimum(float(np.exp(c)), n[i], d[i], ratio[i], run, law, far, None if epochs is None else epochs[i]))  # fmt: skip
        return tuple(out)

    def optimal(self, u: Array, log_c: Array) -> tuple[Array, Array, Array]:
        """(log N, log D, log loss), each (B, m), at parameters u (B, p) and log budgets log_c (m,) or (B, m)."""
        log_c = np.broadcast_to(log_c, (len(u), log_c.shape[-1]))
        terms = self._terms(u)
        log_p = log_c - np.log(self.factor)
        log_n = terms.optimum(log_p)
        if self.closed:
            log_d = log_p - log_n
            if self.unique_tokens is not None:
                log_d = np.minimum(log_d, np.log(self.unique_tokens))
            log_n = log_p - log_d
            return log_n, log_d, terms.log_loss(log_n, log_d)
        log_n, log_l = self._searched(u, log_p, log_n)
        return log_n, log_p - log_n, log_l

    def _searched(self, u: Array, log_p: Array, about: Array) -> tuple[Array, Array]:
        """The lowest loss over sizes: a grid about the closed form's, and a parabola through its lowest three."""
        fit, names = self.law.fit, self.law.variables
        out_n, out_l = np.empty_like(log_p), np.empty_like(log_p)
        limit = np.log(float(self.unique_tokens or np.inf))
        for i in range(log_p.shape[1]):
            p, middle = log_p[:, i], np.median(about[:, i])
            # all draws share the grid: it is laid for the middle one, and budgets of draws differ only where a loss is asked for
            n = middle + np.linspace(-WIDE, WIDE, GRID)
            for j in np.array_split(np.arange(len(u)), 1 if np.ptp(p) == 0 else len(u)):
                d = p[j[0]] - n
                x = {self.size: n, "tokens": d, "unique_tokens": np.minimum(d, limit)}
                values = fit.log_loss(np.stack([x[name] for name in names]) - fit.log_scale[:, None], u[j])
                k = np.clip(values.argmin(1), 1, GRID - 2)
                rows = np.arange(len(j))
                left, here, right = values[rows, k - 1], values[rows, k], values[rows, k + 1]
                bend = np.maximum(left - 2 * here + right, 1e-300)
                shift = np.clip(0.5 * (left - right) / bend, -0.5, 0.5)
                out_n[j, i] = n[k] + shift * (n[1] - n[0])
                out_l[j, i] = here - 0.25 * (left - right) * shift
        return out_n, out_l

    @property
    def drawn(self) -> Array:
        """Parameters (B, p) of the draws that intervals rest on."""
        return self.draws.u if self.closed else self.draws.u[:SUBSET]

    @cached_property
    def units(self) -> Array:
        """What each draw's deviation counts (B,): few residuals that happen to be small make a narrow fit, so a draw is measured by its own scale."""
        scatter = self.law.fit.scatter
        if scatter <= 0:
            return np.ones(len(self.drawn))
        return scatter / np.maximum(self.draws.scale[: len(self.drawn)], max(0.2 * scatter, 1e-300))

    def _estimate(self, one: Array, core: Array, every: Array) -> list[Estimate]:
        """Values (1, m), about (1, m), draws (B, m) -> m estimates."""
        drawn = core + (every - core) * self.units[:, None]
        return [central(float(one[0, i]), drawn[:, i], self.level) for i in range(one.shape[1])]

    def _estimates(self, logs: Mapping[str, Array]) -> list[Estimate]:
        """The same of logarithms, as numbers."""
        return [
            Estimate(*(float(np.exp(v)) for v in (e.value, e.low, e.high)))
            for e in self._estimate(logs["one"], logs["core"], logs["all"])
        ]

    def place(self, log_n: float, log_d: float) -> Array:
        """Normalised logarithms (v, 1) of a size and tokens."""
        limit = np.log(self.unique_tokens) if self.unique_tokens is not None else np.inf
        x = {self.size: log_n, "tokens": log_d, "unique_tokens": min(log_d, float(limit))}
        return np.array([[x[name]] for name in self.law.variables]) - self.law.fit.log_scale[:, None]

    def misfit(self, far: float) -> float:
        """Half of the interval of the law's own error in log loss, as `predict` counts it."""
        test = self.law.backtest
        return 0.0 if test is None else student(self.level, FOLDS) * float(test.misfit_at(np.array(far)))

    def _losses(self, found: Mapping[str, tuple[Array, Array, Array]], i: int) -> tuple[float, Estimate, Estimate]:
        """(reach, loss of a run, loss of the law) at the optimum of budget i."""
        fit = self.law.fit
        centre, core = float(found["one"][2][0, i]), float(found["core"][2][0, i])
        far = float(reach(fit, self.place(float(found["one"][0][0, i]), float(found["one"][1][0, i])))[0])
        drawn = found["all"][2][:, i]
        noise = self.draws.noise[: len(drawn)]
        out = []
        for extra in (noise, 0.0):
            spread = (core - drawn + extra) * self.units
            low, high = (float(q) for q in np.quantile(spread, [(1 - self.level) / 2, (1 + self.level) / 2]))
            more = self.misfit(far) ** 2
            low, high = core - np.sqrt(min(low, 0.0) ** 2 + more), core + np.sqrt(max(high, 0.0) ** 2 + more)
            out.append(Estimate(*(float(from_nats(float(np.exp(v)), self.law.unit)) for v in (centre, low, high))))
        return far, out[0], out[1]

    def _terms(self, u: Array) -> _Terms:
        return _terms(self.law, self.size, u)

    @property
    def formula(self) -> str:
        """How compute is counted."""
        return {
            "params": "C = 6·N·D", "non_embedding": "C = 6·N·D, N without embedding", "flops_per_token": "C = FLOPs per token × D"
        }[self.size]  # fmt: skip

    def warnings(self, optima: Sequence[Optimum]) -> tuple[str, ...]:
        """Why not to believe these optima."""
        said = []
        far = [o for o in optima if o.reach > telling.LONG]
        if far:
            own = growth(self.law.fit, self.law.fit.x)
            decades = (own.max() - own.min()) / np.log(10)
            said.append(
                f"a long extrapolation from {far[0].compute:.3g} FLOPs on: the fitted runs span {decades:.1f} decades and end at "
                f"{self.computes[1]:.3g}; nothing in the data says that the law goes on so far"
            )
        if self.unique_tokens is not None and self.law.fit.law.name != "data-constrained":
            said.append(
                f"this law knows nothing of repeated tokens: they end at {self.unique_tokens:.3g}, and beyond it only the size grows; "
                "runs with repetition and law='data-constrained' would tell what epochs are worth"
            )
        ratio = self.law.points.variables["tokens"] / self.law.points.variables[self.size]
        outside = [o for o in optima if not ratio.min() / 1.01 <= o.ratio.value <= ratio.max() * 1.01]
        if outside:
            said.append(
                f"no fitted run has as many tokens per {self._unit} as the optimum at {outside[0].compute:.3g} FLOPs "
                f"({outside[0].ratio.value:.3g}; they have {ratio.min():.3g} to {ratio.max():.3g})"
            )
        return tuple(said)

    @property
    def _unit(self) -> str:
        return "FLOP of a token" if self.size == "flops_per_token" else "parameter"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "size": self.size, "compute": self.formula, "level": self.level, "unique_tokens": self.unique_tokens,
            "exponents": {name: e.to_dict() for name, e in self.exponents.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class _Terms:
    """(E + A/N^α + B/D^β)^outer, each (B,)."""

    log_e: Array
    log_a: Array
    alpha: Array
    log_b: Array
    beta: Array
    outer: Array

    def optimum(self, log_p: Array) -> Array:
        """log N (B, m) of the lowest loss at N·D = P, log P (B, m)."""
        g = np.log(self.alpha) + self.log_a - np.log(self.beta) - self.log_b
        return (g[:, None] + self.beta[:, None] * log_p) / (self.alpha + self.beta)[:, None]

    def log_loss(self, log_n: Array, log_d: Array) -> Array:
        """(B, m)."""
        size = self.log_a[:, None] - self.alpha[:, None] * log_n
        tokens = self.log_b[:, None] - self.beta[:, None] * log_d
        total = np.logaddexp(size, tokens)
        return self.outer[:, None] * np.logaddexp(self.log_e[:, None], total)


def _terms(law: LossLaw, size: str, u: Array) -> _Terms:
    """The law's numbers for values in units of one, as logarithms: A itself may overflow."""
    form, scale = law.fit.law, law.fit.log_scale
    i, j = form.variables.index(size), form.variables.index("tokens")
    if form.name == "kaplan":
        alpha = u[:, 2] / u[:, 3]
        return _Terms(
            np.full(len(u), -np.inf), u[:, 0] + alpha * scale[i], alpha, u[:, 1] + scale[j], np.ones(len(u)), u[:, 3]
        )
    k = len(form.coefficients)
    alpha, beta = u[:, k + i], u[:, k + j]
    return _Terms(
        u[:, 0],
        u[:, 1 + i] + alpha * scale[i],
        alpha,
        u[:, 1 + j] + beta * scale[j],
        beta,
        np.ones(len(u)),
    )


def frontier(law: LossLaw, *, unique_tokens: float | None = None, level: float = 0.9, draws: Draws | None = None) -> Frontier:  # fmt: skip
    """The compute-optimal frontier of a law over a size and tokens. `unique_tokens`: how many distinct ones there are, where they are limited.

    Raises InputError where the law has no size or no tokens, or the loss does not fall with one of them.
    """
    names = law.variables
    if not isinstance(level, (int, float)) or not 0.5 <= level <= 0.99:
        raise InputError(f"level={level!r}: write a level between 0.5 and 0.99, such as 0.9")
    if unique_tokens is not None and (
        isinstance(unique_tokens, bool)
        or not isinstance(unique_tokens, (int, float, np.number))
        or not 1 <= float(unique_tokens) < 1e40
    ):
        raise InputError(f"unique_tokens={unique_tokens!r}: write a number of tokens, such as 1e12")
    if "tokens" not in names:
        have = " and ".join(names)
        raise InputError(
            f"a compute-optimal frontier needs a law over a size and tokens, and this one is over {have}: it needs a table in which "
            "both vary, not in proportion (law='chinchilla')"
        )
    if not any(name in FACTOR for name in names):
        raise InputError(
            f"a compute-optimal frontier needs a size whose FLOPs are known, and this law is over {' and '.join(names)}: fit over one of "
            f"{', '.join(FACTOR)}, such as size='params'"
        )
    other = [name for name in names if name not in (*FACTOR, "tokens", "unique_tokens")]
    if other:
        raise InputError(
            f"the law is over {' and '.join(names)}: a frontier is of size and tokens alone; leave {other[0]} out"
        )
    form = law.fit.law
    if form.outer is None:
        for index, name in telling._flat(law.fit):
            if index and name in (*FACTOR, "tokens"):
                raise InputError(f"the loss does not fall with {name} in this table: there is no compute-optimal size")
    return Frontier(law, draws or law.draws, level, None if unique_tokens is None else float(unique_tokens))
