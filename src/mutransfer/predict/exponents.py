"""Which exponents a table of optima can tell: the variables of the law, those that follow others, and how many sizes are needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.names import LETTERS
from mutransfer.predict.optima import TITLES, Optima
from mutransfer.predict.points import VARIABLES
from mutransfer.predict.sizes import varies
from mutransfer.predict.tuning import LENGTH, SIZE

Array = np.ndarray
TIED = 0.05  # of its own spread: a variable that departs less from a power of another cannot be told from it


@dataclass(frozen=True)
class Relation:
    """`dropped` ≈ factor·`kept`^power in every row, so that their exponents cannot be told apart."""

    dropped: str
    kept: str
    factor: float
    power: float

    def __str__(self) -> str:
        power = "" if abs(self.power - 1) < 0.02 else f"^{self.power:.2f}"
        return f"{self.dropped} = {self.factor:.3g} × {self.kept}{power} in every row"

    def departure(self, given: Mapping[str, float]) -> list[str]:
        """What to say where the caller names a value of the dropped variable off the relation."""
        if self.dropped not in given or self.kept not in given:
            return []
        usual = self.factor * given[self.kept] ** self.power
        if abs(math.log(given[self.dropped] / usual)) < 0.25:
            return []
        return [
            f"{self.dropped} {given[self.dropped]:.4g} is not the {usual:.4g} that goes with this {self.kept} in the table: the law says nothing of that"
        ]


def names_of(on: str | Sequence[str] | None, of: str) -> tuple[str, ...] | None:
    if on is None:
        return None
    given = [part.strip() for part in on.split(",")] if isinstance(on, str) else list(on)
    names = tuple(LETTERS.get(name, name) for name in given)
    wrong = next((n for n in names if n not in VARIABLES or n == of), None)
    if wrong is not None or not names or len(set(names)) < len(names):
        raise InputError(f"on={on!r}: write one or more of {', '.join(n for n in VARIABLES if n != of)}")
    return names


def logs(optima: Optima, on: Sequence[str]) -> Array:
    """(n, variables) log2 of the sizes."""
    return np.stack([np.log2(optima.variables[name]) for name in on], 1)


def choose(optima: Optima, wanted: tuple[str, ...] | None) -> tuple[tuple[str, ...], Relation | None, list[str]]:
    """(the law's variables, what was left out because it cannot be told apart, what to say)."""
    measured = optima.side == 0
    moving = [n for n, v in optima.variables.items() if n != optima.of and varies(v[measured])]
    if not measured.sum():
        raise InputError(f"no size has its best {TITLES[optima.of]} inside what was run{_lacking(optima)}")
    if wanted is not None:
        missing = next((n for n in wanted if n not in optima.variables), None)
        if missing is not None:
            raise InputError(f"on: no {missing} is read for every size; there are {', '.join(optima.variables)}")
        still = next((n for n in wanted if n not in moving), None)
        if still is not None:
            value = optima.variables[still][0]
            raise InputError(f"on: {still} is {value:.6g} in every row with an optimum: its exponent cannot be told; write on={[n for n in wanted if n != still] or moving}")  # fmt: skip
        for i, name in enumerate(wanted):
            relation = _relation(optima, name, wanted[:i])
            if relation is not None:
                raise InputError(
                    f"{relation}: the exponents of both cannot be told apart; write on={relation.kept!r} or on='compute'"
                )
        return wanted, None, _ignored(optima, wanted, moving)
    size = _size(optima, moving)
    length = next((n for n in (*LENGTH, "steps") if n in moving), None)
    chosen = [n for n in (*size, length) if n is not None] or [n for n in ("compute",) if n in moving]
    chosen += [name for name in optima.also if name in moving and name not in chosen]
    if not chosen:
        raise InputError(f"no size and no tokens vary among the sizes with an optimum ({', '.join(optima.variables) or 'none is known'}): a law needs several{_lacking(optima)}")  # fmt: skip
    notes = [f"{name} is the same in every row: the law leaves it out" for name in ("params", "tokens") if name in optima.variables and name not in moving]  # fmt: skip
    if optima.of == "lr" and optima.kind.startswith("curves") and "batch" in moving and not optima.also:
        notes.append(
            "batch differs between the sizes and is not in the law, which holds along with it; on='params,tokens,batch' tells its part"
        )
    relation = None
    for name in list(chosen[1:]):
        found = _relation(optima, name, [n for n in chosen if n != name])
        if found is not None:
            chosen.remove(name)
            relation = found
            notes.append(f"{found}: the exponents of both cannot be told apart. The law is in {found.kept}, and holds along that line only")  # fmt: skip
    if len(chosen) > 1:
        r = float(np.corrcoef(logs(optima, chosen[:2])[measured].T)[0, 1])
        if abs(r) > 0.95:
            notes.append(
                f"{chosen[0]} and {chosen[1]} vary almost together (correlation {r:.2f}): their exponents are told apart poorly"
            )
    return tuple(chosen), relation, notes


def _ignored(optima: Optima, on: Sequence[str], moving: Sequence[str]) -> list[str]:
    """What to say of a size or length of training that varies and is not in the law."""
    sizes = [n for n in SIZE if n in on] or [n for n in ("compute",) if n in on]
    left = [n for n in LENGTH[:1] if n in moving and n not in on and "compute" not in on]
    left += [] if sizes else _size(optima, moving)
    return [
        f"{name} varies too and is not in the law: what it does to the best {TITLES[optima.of]} counts as scatter"
        for name in left
        if _relation(optima, name, on) is None
    ]


def _size(optima: Optima, moving: Sequence[str]) -> list[str]:
    """The size variable: parameters where the table has them, else width or depth where only one moves, else what follows from both."""
    stated = [n for n in SIZE if n in moving and n in optima.columns]
    counted = [n for n in ("params", "non_embedding") if n in stated]
    if counted:
        return counted[:1]
    own = [n for n in ("width", "depth") if n in stated]
    if len(own) == 1:
        return own
    derived = [n for n in ("params", "non_embedding", "flops_per_token") if n in moving]
    return derived[:1] or own


def _relation(optima: Optima, name: str, others: Sequence[str]) -> Relation | None:
    """How `name` follows one of the others, or all of them together, in the measured rows; None where it varies by itself."""
    if not others:
        return None
    measured = optima.side == 0
    y = np.log(optima.variables[name][measured])
    x = np.log(np.stack([optima.variables[n][measured] for n in others], 1))
    centred, spread = x - x.mean(0), y - y.mean()
    slope = np.linalg.lstsq(centred, spread, rcond=None)[0]
    if np.sqrt(np.mean((spread - centred @ slope) ** 2)) > TIED * np.sqrt(np.mean(spread**2)):
        return None
    kept = int(np.argmax(np.abs(slope) * centred.std(0)))
    power = float(slope[kept])
    return Relation(name, others[kept], math.exp(float(y.mean() - power * x[:, kept].mean())), power)


def enough(optima: Optima, on: Sequence[str], wanted: tuple[str, ...] | None) -> None:
    count, need = int((optima.side == 0).sum()), len(on) + 2
    distinct = len({tuple(row) for row in np.round(logs(optima, on)[optima.side == 0], 6).tolist()})
    if min(count, distinct) < need:
        what = f"{optima.of}* = k" + "".join(f"·{name}^{letter}" for name, letter in zip(on, "abcdefgh", strict=False))
        fewer = f", or write on={on[0]!r}" if len(on) > 1 and wanted is None else ""
        raise InputError(f"{distinct} size{'s' if distinct != 1 else ''} with an optimum: {what} needs {need} or more{_lacking(optima)}; add sizes{fewer}")  # fmt: skip


def _lacking(optima: Optima) -> str:
    edges = int((optima.side != 0).sum())
    said = [f"{edges} at the edge of their grid"] if edges else []
    said += [f"{len(optima.left_out)} without one, such as {optima.left_out[0][0]}: {optima.left_out[0][1]}"] if optima.left_out else []  # fmt: skip
    return f" ({'; '.join(said)})" if said else ""


def full_rank(x: Array) -> bool:
    centred = x - x.mean(0)
    values = np.linalg.svd(centred, compute_uv=False)
    return bool(len(values) == x.shape[1] and values[-1] > TIED * values[0] and values[0] > 0)
