"""Checks shared by the model configs: every wrong field is one clear `InputError` line."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral
from typing import Any, TypeVar

from mutransfer.errors import InputError

M = TypeVar("M")

LATER = {"later": True}
"""Metadata of a field that was added later: at its default it is left out of a run's JSON, so that runs stored before keep their keys."""


def check_whole(config: object, *names: str, least: int = 1) -> None:
    """Each named field is a whole number of at least `least`, stored as int; raises `InputError` otherwise."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise InputError(f"{name}={value!r}: write a whole number, {least} or more")
        object.__setattr__(config, name, int(value))  # a numpy integer would not survive JSON


def check_number(config: object, name: str, least: float, below: float = math.inf) -> None:
    """The named field is a finite number in `[least, below)`; raises `InputError` otherwise."""
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < below:
        raise InputError(f"{name}={value!r}: write a finite number >= {least}" + f" and < {below}" * (below < math.inf))


def check_flag(config: object, *names: str) -> None:
    """Each named field is True or False; raises `InputError` otherwise."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise InputError(f"{name}={getattr(config, name)!r}: write True or False")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """`value` is one of `choices`; raises an `InputError` that lists them otherwise."""
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"{name}={value!r} is unknown: {hint}write one of {', '.join(map(repr, choices))}")


def check_fields(config_class: type, fields: dict[str, Any]) -> None:
    """Every key of `fields` is a field of the config; raises an `InputError` with the closest name otherwise."""
    known = [field.name for field in dataclasses.fields(config_class)]
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"{config_class.__name__} has no field {name!r}: {hint}write one of {', '.join(known)}")


def factory(model_class: Callable[[Any], M], config_class: type, defaults: dict[str, Any]) -> Callable[..., M]:
    """`make(**sizes) -> model` with `defaults` filled in; later values win. It can be pickled and sent to workers."""
    check_fields(config_class, defaults)
    return partial(_build, model_class, config_class, defaults)


def _build(model_class: Callable[[Any], M], config_class: type, defaults: dict[str, Any], /, **sizes: Any) -> M:
    check_fields(config_class, sizes)
    return model_class(config_class(**{**defaults, **sizes}))
