"""Which law over which variables: by what varies in the table, and the size variable by backtest inside the fitted points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.backtest import Backtest, backtest
from mutransfer.predict.fit import Fit, fit
from mutransfer.predict.laws import LAWS, law
from mutransfer.predict.points import VARIABLES, Points
from mutransfer.predict.sizes import SIZES, candidates, families, varies

Array = np.ndarray
PROPORTIONAL = 0.02  # scatter of tokens about a power of the size, as a share of their spread, below which they say nothing of their own
CLEARLY = 0.9  # another size variable replaces the preferred one when its backtest error is less than this share of it


@dataclass(frozen=True)
class Candidate:
    """One size variable, fitted and backtested. `error`: root mean square in log loss, NaN without a backtest; `refused`: why it was not fitted."""

    size: str
    fit: Fit | None
    test: Backtest | None
    refused: str = ""

    @property
    def error(self) -> float:
        return float("nan") if self.test is None else self.test.error


def choose(points: Points, name: str | None, over: Sequence[str] | None, among: Sequence[str] | None, delta: float | None) -> tuple[Candidate, tuple[Candidate, ...]]:  # fmt: skip
    """(the one taken, all that were tried). `over`: the law's variables, then nothing is chosen; `among`: the sizes to choose from."""
    if name is not None and name not in LAWS:
        raise InputError(f"law={name!r}: write one of {', '.join(LAWS)}")
    if over is not None:
        for variable in over:
            if variable not in points.variables:
                known = ", ".join(points.variables) or "none"
                raise InputError(
                    f"over={variable!r}: the table has no such variable; it has {known} (of {', '.join(VARIABLES)})"
                )
        taken = name or {1: "power", 2: "chinchilla"}.get(len(over), "additive")
        one = _candidate(points, taken, tuple(over), delta)
        return one, (one,)
    sizes = _sizes(points, among)
    rest = _rest(points, name, bool(sizes))
    if not sizes:
        every = _instead(points, rest)
        if among is not None or not every or (name is not None and LAWS[name][0] > 1):
            raise InputError(_nothing(points, among))
        one = _candidate(points, name or "power", tuple(every[:1]), delta)
        return one, (one,)
    tried: list[Candidate] = []
    problem: InputError | None = None
    for size in sizes:
        taken = name or {0: "power", 1: "chinchilla", 2: "data-constrained"}[len(rest)]
        try:
            tried.append(_candidate(points, taken, (size, *rest), delta))
        except InputError as error:
            problem = problem or error
            tried.append(Candidate(size, None, None, str(error)))
    fitted = [c for c in tried if c.fit is not None]
    if not fitted:
        assert problem is not None
        raise problem
    best = fitted[0]
    for other in fitted[1:]:
        if other.error < CLEARLY * best.error:
            best = other
    return best, tuple(tried)


def expected(points: Points, name: str | None, over: Sequence[str] | None, among: Sequence[str] | None) -> tuple[str, ...]:  # fmt: skip
    """The variables of the law that `choose` will take, the preferred size first; no loss is looked at. Empty where there is nothing to fit over."""
    if over is not None:
        return tuple(over)
    sizes = _sizes(points, among)
    rest = _rest(points, name, bool(sizes))
    return (sizes[0], *rest) if sizes else tuple(_instead(points, rest)[:1])


def _sizes(points: Points, among: Sequence[str] | None) -> list[str]:
    """The sizes to choose from; of exact powers of one another the preferred one, or the one that is asked for."""
    found = [[size for size in family if among is None or size in among] for family in families(points)]
    return [family[0] for family in found if family]


def _instead(points: Points, rest: Sequence[str]) -> list[str]:
    """What a law may be over where no size varies."""
    names = rest or ("tokens", "compute", "steps", "batch")
    return [v for v in names if v in points.variables and varies(points.variables[v])]


def _candidate(points: Points, name: str, variables: tuple[str, ...], delta: float | None) -> Candidate:
    made = fit(law(name, variables), points, delta)
    return Candidate(variables[0], made, backtest(made))


def _rest(points: Points, name: str | None, sized: bool) -> tuple[str, ...]:
    """The variables beside the size."""
    v = points.variables
    tokens = "tokens" if "tokens" in v and varies(v["tokens"]) else None
    repeated = tokens and "unique_tokens" in v and bool(np.any(v["unique_tokens"] < 0.99 * v["tokens"]))
    if name == "data-constrained":
        for needed in ("tokens", "unique_tokens"):
            if needed not in v:
                raise InputError(
                    f"law={name!r} needs {needed}, which the table does not have: name its column, columns={{{needed!r}: …}}"
                )
        return ("tokens", "unique_tokens")
    if name in ("chinchilla", "kaplan"):
        if "tokens" not in v:
            raise InputError(
                f"law={name!r} needs tokens, which the table does not have: name its column, columns={{'tokens': …}}"
            )
        return ("tokens",)
    if name == "additive":
        return ("tokens",) if tokens and not _proportional(points) else ()
    if name is not None or not sized or tokens is None or _proportional(points):
        return ()
    return ("tokens", "unique_tokens") if repeated else ("tokens",)


def _proportional(points: Points) -> bool:
    """Whether tokens follow from the size (20 tokens per parameter, say): then one variable says it all."""
    size = next((s for s in candidates(points)), None)
    if size is None:
        return False
    x = np.log(np.stack([points.variables[size], points.variables["tokens"]]))
    x = x - x.mean(1, keepdims=True)
    values = np.linalg.svd(x, compute_uv=False)
    return bool(values[-1] < PROPORTIONAL * values[0])


def _nothing(points: Points, among: Sequence[str] | None) -> str:
    have = ", ".join(
        f"{name} ({'varies' if varies(values) else f'{values[0]:g} in every row'})"
        for name, values in points.variables.items()
    )
    wanted = ", ".join(among) if among is not None else f"a size ({', '.join(SIZES)}), tokens or compute"
    return f"nothing to fit over: the law needs {wanted} to vary; the table has {have or 'no such column'}; name one with columns={{'params': …}}"
