"""What is asked of a law: targets as people type them, and which size variables they leave to choose from."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.choose import expected
from mutransfer.predict.laws import LAWS
from mutransfer.predict.names import known
from mutransfer.predict.points import VARIABLES, Points, completed
from mutransfer.predict.sizes import SIZES, families, varies
from mutransfer.predict.units import quantity

MOST = 100  # targets at once
SMALLEST = 1e3  # a target so many times below the smallest run is a slip: 1 for 1B
SPREAD = 0.1  # of log size about a power of the compute, up to which the compute says it all
CLOSE = 0.05  # what follows from the law's variables is the same as what was typed, up to this
EXAMPLE = "write NAME=VALUE, such as params=1.4e9 tokens=30B"


def parse_targets(words: Sequence[str]) -> tuple[dict[str, float], ...]:
    """Targets from NAME=VALUE words; several values of a name (params=1e9,1.4B) make several targets, all combinations. Raises InputError."""
    given: dict[str, list[float]] = {}
    for word in words:
        name, mark, text = word.partition("=")
        if not mark or not name.strip() or not text.strip():
            raise InputError(f"--target {word!r}: {EXAMPLE}")
        variable = _variable(name.strip(), word)
        if variable in given:
            raise InputError(f"--target {word!r}: {variable} is given twice; write several values as {variable}=1e9,2e9")  # fmt: skip
        given[variable] = [_value(variable, part.strip(), word) for part in text.split(",")]
    if math.prod(len(values) for values in given.values()) > MOST:
        raise InputError(f"--target: more than {MOST} combinations; write fewer values")
    return tuple(dict(zip(given, values, strict=True)) for values in product(*given.values())) if given else ()


def _variable(name: str, word: str) -> str:
    said = known(name)
    if name in VARIABLES:
        return name
    if said is not None and said.variable in VARIABLES and said.unit is None:
        return said.variable
    if said is not None and said.variable in VARIABLES:
        raise InputError(f"--target {word!r}: targets are in units of one; write {said.variable}=1.4e9 or {said.variable}=1.4B")  # fmt: skip
    close = difflib.get_close_matches(name, VARIABLES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(VARIABLES)}"
    raise InputError(f"--target {word!r}: there is no variable {name!r}; {hint}")


def _value(name: str, text: str, word: str) -> float:
    if re.fullmatch(r"0\d+", text):  # 1,400,000
        raise InputError(f"--target {word!r}: commas separate several targets; write one number without, such as {name}=1.4e9")  # fmt: skip
    try:
        value = quantity(text, name)[0]
    except InputError:
        value = None
    if value is None or not math.isfinite(value) or value <= 0:
        raise InputError(f"--target {word!r}: {text or 'nothing'!r} is not a number above 0; write {name}=1.4e9 or {name}=1.4B")  # fmt: skip
    return value


@dataclass(frozen=True)
class Asked:
    """Targets and what follows from them: `over`, `among` are arguments of the choice of a law; `notes`: why."""

    targets: tuple[Mapping[str, float], ...]
    over: tuple[str, ...] | None
    among: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


def ask(points: Points, targets: Sequence[Mapping[str, float]], law: str | None, over: Sequence[str] | None, size: Sequence[str] | None) -> Asked:  # fmt: skip
    """Restrict the law's variables to those that the targets give. No loss is looked at. Raises InputError where a target gives too little or too much."""
    _check_names(points, law, over, size)
    over, among = (tuple(v) if v else None for v in (over, size))
    if not targets:
        return Asked((), over, among)
    given, notes = set(targets[0]), []
    have = set(completed(targets[0]))
    sizes = [name for name in SIZES if name in have]
    if over is None and not sizes:
        over = _alone(points, given, law)
        notes.append(f"the law is over {over[0]}, which the target gives alone")
    elif over is None:
        wanted = [name for name in sizes if among is None or name in among]
        able = [name for name in wanted if any(name in family for family in families(points))]
        if not able:
            raise InputError(_no_size(points, sizes, among))
        others = [family[0] for family in families(points) if not set(family) & set(able)]
        if others and among is None:
            notes.append(f"size variables to choose from: {', '.join(able)}, which the target gives (the table also has {', '.join(others)})")  # fmt: skip
        among = tuple(able)
    needed = expected(points, law, over, among)
    missing = [name for name in needed if name not in have and not (name == "unique_tokens" and "tokens" in have)]
    if missing:
        raise InputError(f"--target gives {' and '.join(sorted(given))}; the law is over {' and '.join(needed)}, so write {' and '.join(f'{name}=VALUE' for name in missing)} too")  # fmt: skip
    for target in targets:
        _check_range(points, target)
    return Asked(tuple(targets), over, among, tuple(notes))


def places(asked: Asked, variables: Sequence[str], points: Points) -> tuple[dict[str, float], ...]:
    """The targets in the law's own variables. Raises InputError for a value that the law cannot use and the runs contradict."""
    found = []
    for target in asked.targets:
        have = completed(target)
        if "unique_tokens" in variables:
            have.setdefault("unique_tokens", have["tokens"])
        at = {name: have[name] for name in variables}
        for name, value in target.items():
            if (
                name not in variables
                and not (asked.among and name in asked.among)
                and not _used(name, target, variables)
            ):
                _check_extra(points, name, value, at)
        found.append(at)
    return tuple(found)


def _check_names(points: Points, law: str | None, over: Sequence[str] | None, size: Sequence[str] | None) -> None:
    if law is not None and law not in LAWS:
        close = difflib.get_close_matches(law, list(LAWS), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(LAWS)}"
        raise InputError(f"law={law!r}: {hint}")
    if over and size:
        raise InputError("over= names the law's variables and size= those to choose from: write one of them")
    for what, names in (("over", over or ()), ("size", size or ())):
        for name in names:
            if name not in VARIABLES:
                close = difflib.get_close_matches(name, VARIABLES, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(VARIABLES)}"
                raise InputError(f"{what}={name!r}: there is no such variable; {hint}")
            if name not in points.variables:
                raise InputError(f"{what}={name!r}: {_absent(points, name)}")
        if len(set(names)) < len(names):
            raise InputError(f"{what}: a variable is given twice in {' '.join(names)}")


def _absent(points: Points, name: str) -> str:
    if name in points.constants:
        return f"{name} is {points.constants[name]:.6g} in every row, and a law needs it to vary"
    return f"the table has no {name}; it has {', '.join(points.variables)}"


def _used(name: str, target: Mapping[str, float], variables: Sequence[str]) -> bool:
    """Whether another of the law's variables was made from this one."""
    made = set(completed(target)) - set(target)
    return name in ("compute", "params", "tokens") and bool(made & set(variables))


def _alone(points: Points, given: set[str], law: str | None) -> tuple[str, ...]:
    """The variable of a law over what the target gives, where that is no size."""
    usable = [name for name in ("tokens", "compute", "steps", "batch") if name in given]
    sizes = [family[0] for family in families(points)]
    if len(usable) == 1 and usable[0] in points.variables and (law is None or LAWS[law].variables in (0, 1)):
        free = [name for name in sizes if not _follows(points, name, usable[0])]
        if not free:
            return (usable[0],)
        said = f"and {free[0]} varies beside it"
        if usable[0] == "compute":
            said += " (mutransfer budget finds the best size and tokens of a budget)"
    else:
        said = "and no size"
    able = (
        f"write {' or '.join(f'{name}=VALUE' for name in sizes)} too"
        if sizes
        else "name the law's variables with over="
    )
    raise InputError(f"--target gives {' and '.join(sorted(given))} {said}: {able}")


def _follows(points: Points, name: str, other: str) -> bool:
    """Whether a variable goes with another as a power of it, up to a tenth."""
    x, y = (np.log(points.variables[one]) for one in (other, name))
    slope, *_ = np.linalg.lstsq(np.stack([x, np.ones(len(x))], 1), y, rcond=None)
    return bool(np.std(y - slope[0] * x - slope[1]) < SPREAD)


def _no_size(points: Points, sizes: Sequence[str], among: Sequence[str] | None) -> str:
    if among is not None:
        return f"--target gives {' and '.join(sizes)}, and the size is to be {' or '.join(among)}: write {among[0]}=VALUE"  # fmt: skip
    said = "; ".join(_absent(points, name) for name in sizes)
    heads = [family[0] for family in families(points)]
    return f"--target gives {' and '.join(sizes)}: {said}" + (f"; write {heads[0]}=VALUE" if heads else "")


def _check_range(points: Points, target: Mapping[str, float]) -> None:
    for name, value in target.items():
        if name in points.variables and value * SMALLEST < points.variables[name].min():
            raise InputError(
                f"--target {name}={value:g} is {points.variables[name].min() / value:.2g} times below the smallest run, of {points.variables[name].min():.4g}: "
                f"targets are in units of one, and commas separate several; write {name}=1.4e9 or {name}=1.4B"
            )  # fmt: skip


def _check_extra(points: Points, name: str, value: float, at: Mapping[str, float]) -> None:
    """A value that is no variable of the law: fine where it is what the runs have there, else a contradiction."""
    over = " and ".join(at)
    if name in points.constants:
        if abs(value / points.constants[name] - 1) > CLOSE:
            raise InputError(f"--target {name}={value:g}: every run has {name}={points.constants[name]:.6g}, so nothing says what another does; leave it out, or add runs")  # fmt: skip
        return
    if name in points.variables and varies(points.variables[name]):
        x = np.stack([np.log(points.variables[v]) for v in at] + [np.ones(len(points))])
        y = np.log(points.variables[name])
        slope, *_ = np.linalg.lstsq(x.T, y, rcond=None)
        if np.abs(slope @ x - y).max() < 0.02:  # it follows from them, as 20 tokens per parameter do
            follows = float(np.exp(slope @ np.array([*(math.log(v) for v in at.values()), 1.0])))
            if abs(value / follows - 1) > CLOSE:
                raise InputError(f"--target {name}={value:g}: in the runs {name} follows from {over}, which would give {follows:.4g}; leave it out, or add runs that vary it alone")  # fmt: skip
            return
    if name not in points.variables:
        raise InputError(f"--target {name}={value:g}: the table has no {name}, so nothing says what it does; leave it out, or name its column in columns=")  # fmt: skip
    raise InputError(f"--target {name}={value:g}: the law is over {over}, to which {name} says nothing; leave it out, or name it in over=")  # fmt: skip
