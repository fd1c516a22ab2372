"""Grids: which values of which fields, written `lr=2^-12..2^-4 width=32,64 seed=0..2`, and the runs they make."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mutransfer.errors import InputError

if TYPE_CHECKING:
    from mutransfer.train import RunConfig

SIZES = ("width", "depth")
"""The sizes whose smallest value in the grid is the base, where the config names none."""
_MOST = 200  # values of one field

_POWER = re.compile(r"(\d+(?:\.\d+)?)\^(-?\d+(?:\.\d+)?)$")


def axes_of(words: Iterable[str], option: str = "--grid") -> dict[str, list[Any]]:
    """`["lr=2^-12..2^-4", "width=32,64"]` as name → values.

    Values are separated by commas. `a..b` is every whole number from a to b; `2^a..2^b` every power of two,
    `2^a..2^b/2` in steps of √2 (that many values per octave). Raises InputError for anything else.
    """
    from mutransfer.commands.user_code import assignments

    axes: dict[str, list[Any]] = {}
    for name, text in assignments(words, option, "name=values, such as width=32,64,128 lr=2^-12..2^-4").items():
        word, parts = f"{name}={text}", text.split(",")
        if "" in parts:
            raise InputError(f"{option} {word!r}: a value is missing beside a comma; the empty value is written none")
        values = [value for part in parts for value in _values(part, word, option)]
        if len(values) > _MOST:
            raise InputError(f"{option} {word!r}: more than {_MOST} values; powers of two are written 2^5..2^8")
        if len(set(map(repr, values))) < len(values):
            raise InputError(f"{option} {word!r}: a value occurs twice")
        axes[name] = values
    return axes


def _values(part: str, word: str, option: str) -> list[Any]:
    from mutransfer.commands.user_code import literal

    first, dots, last = part.partition("..")
    if not dots:
        power = _POWER.match(part)
        return [_power(*power.groups()) if power else literal(part)]
    last, slash, per = last.partition("/")
    low, high = _POWER.match(first), _POWER.match(last)
    try:
        count = int(per) if slash else 1
        if count < 1:
            raise ValueError
        if low and high and low[1] == high[1]:
            start, end = float(low[2]), float(high[2])
            steps = (end - start) * count
            if steps < 0 or abs(steps - round(steps)) > 1e-9:
                raise ValueError
            return [_power(low[1], start + i / count) for i in range(round(steps) + 1)]
        if slash:
            raise ValueError
        start, end = int(first), int(last)
        if end < start:
            raise ValueError
        return list(range(start, min(end, start + _MOST) + 1))  # one too many is enough to be refused
    except ValueError:
        raise InputError(
            f"{option} {word!r}: {part!r} is no range; write 2^-12..2^-4 (powers of two), 2^-12..2^-4/2 (steps of √2) or 0..3"
        ) from None


def _power(base: str, exponent: float | str) -> int | float:
    value = float(base) ** float(exponent)
    return int(value) if value.is_integer() and float(exponent) >= 0 else value


def with_fields(values: Mapping[str, Any], given: Mapping[str, Any], option: str = "--set") -> dict[str, Any]:
    """A config as `RunConfig.to_dict` gives it, with fields of the run, of its model, of its base (`base.width`) or of the model that it grows from
    (`grow_from.width`) set."""
    from mutransfer.commands.builtin import close_name, config_fields

    model, base, small = dict(values["model"]), dict(values.get("base", {})), dict(values.get("grow_from") or {})
    rest = {name: value for name, value in values.items() if name not in ("model", "base", "grow_from")}
    for name, value in given.items():
        if name in ("model", "base", "grow_from"):
            raise InputError(
                f"{option} {name}={value}: write its fields one by one, such as {f'{name}.' * (name != 'model')}width=64"
            )
        if name.startswith("base."):
            base[name.removeprefix("base.")] = value
        elif name.startswith("grow_from."):
            small[name.removeprefix("grow_from.")] = value
        elif name in config_fields(model["kind"]):
            model[name] = value
        elif name in _run_fields():
            rest[name] = value
        else:
            known = (*_run_fields(), *config_fields(model["kind"]))
            raise InputError(
                f"{option} {name}={value}: neither the run nor its {model['kind']} has a field {name!r}: {close_name(name, known)}"
            )
    return {**rest, "model": model, "base": base, **({"grow_from": small} if small else {})}


def _run_fields() -> tuple[str, ...]:
    from dataclasses import fields

    from mutransfer.train import RunConfig

    return tuple(field.name for field in fields(RunConfig))


def expand(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination, the first axis slowest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def grid_configs(values: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> list[RunConfig]:
    """The run of every point of a grid on top of a config given as by `RunConfig.to_dict`.

    Where the config names no base, the smallest width and depth of the grid are the base. Raises InputError for a
    field or value that a run cannot have.
    """
    from mutransfer.train import RunConfig

    if not values.get("base") and not any(name.startswith("base.") for name in axes):
        smallest = {name: min(axes[name]) for name in SIZES if name in axes and _numbers(axes[name])}
        values = {**values, "base": smallest}
    return [RunConfig.from_dict(with_fields(values, point, "--grid")) for point in expand(axes)]


def require_numbers(values: Mapping[str, Sequence[Any]], option: str) -> None:
    """Raise InputError for a learning rate or size that is not a number above 0: no training can mean anything else by them."""
    for name in ("lr", *SIZES):
        for value in values.get(name, ()):
            if isinstance(value, bool) or not _numbers([value]) or not value > 0:
                raise InputError(f"{option} {name}={value}: give numbers above 0")


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
