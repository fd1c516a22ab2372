"""Sizes and losses in units of one: "125M", "2^20", PF-days, bits, perplexity."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from mutransfer.errors import InputError
from mutransfer.rows.cells import decimal_point, number

Array = np.ndarray

LOSS_UNITS = ("nats", "bits", "bits_per_byte", "perplexity")
PF_DAY = 8.64e19  # 10^15 operations a second for a day
MEBI = float(2**20)

_COUNTS = {
    1e3: ("k", "thousand", "thousands", "kilo"),
    1e6: ("m", "mn", "mln", "mio", "million", "millions", "mega"),
    1e9: ("b", "bn", "bln", "g", "billion", "billions", "giga"),
    1e12: ("t", "tn", "trn", "trillion", "trillions", "tera"),
    1e15: ("p", "peta", "quadrillion"),
    1e18: ("e", "exa"),
    1e21: ("z", "zetta"),
    2.0**10: ("ki", "kib", "kibi"),
    MEBI: ("mi", "mib", "mebi"),
    2.0**30: ("gi", "gib", "gibi"),
}
UNITS = {word: factor for factor, words in _COUNTS.items() for word in words}
_NOT_UNITS = {
    "in",
    "of",
    "x",
    "params",
    "param",
    "parameters",
    "tokens",
    "token",
    "units",
    "unit",
    "flops",
    "flop",
    "samples",
    "sequences",
}
_FLOPS = re.compile(r"^(k|m|g|t|p|e|z|y|kilo|mega|giga|tera|peta|exa|zetta|yotta)?(flops?|f)$")
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21, "y": 1e24}
_POWER = re.compile(r"^(\d+(?:\.\d+)?)(?:\^|\*\*)\(?([-+]?\d+(?:\.\d+)?)\)?$")
_SCIENTIFIC = re.compile(r"^\d+(?:\.\d+)?[eE]\+?\d+$")


def unit_of(words: Sequence[str]) -> float | None:
    """The factor that the words of a unit name stand for: millions, B, 2^20, exaflops, PF-days; None where they are no unit."""
    said = [word.lower() for word in words]
    if said and said[-1] in ("day", "days", "pfdays", "pfday"):
        rest = [word for word in said[:-1] if word not in ("s", "sec", "second")]
        if said[-1].startswith("pf"):
            return PF_DAY if not rest else None
        factor = _flops(rest[0]) if len(rest) == 1 else None
        return None if factor is None else factor * 86400
    factor = 1.0
    told = False
    for word in said:
        if word in _NOT_UNITS:
            told = True
            continue
        one = UNITS.get(word) or _flops(word) or _written(word)
        if one is None:
            return None
        factor *= one
        told = True
    return factor if told else None


def _flops(word: str) -> float | None:
    found = _FLOPS.match(word)
    return None if found is None else _PREFIXES[(found[1] or "")[:1]]


def _written(word: str) -> float | None:
    """2^20, 1e6: a unit written as a number."""
    if power := _POWER.match(word):
        return float(power[1]) ** float(power[2])
    return float(word) if _SCIENTIFIC.match(word) else None


def unit(value: Any, name: str) -> float:
    """The factor of a unit that the caller declares: 1e6, "M", "millions", "2^20", "PF-days". Raises InputError for anything else."""
    if isinstance(value, str):
        found = unit_of(re.findall(r"\d+\^\d+|\d+(?:\.\d+)?[eE]\+?\d+|[A-Za-z]+|\d+", value))
        if found is None:
            try:
                found = float(value)
            except ValueError:
                found = None
    else:
        found = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if found is None or not math.isfinite(found) or found <= 0:
        raise InputError(f"units {name}={value!r} is no unit: write a factor such as 1e6, or K, M, B, T, 2^20, PF-days")
    return found


def quantity(value: Any, column: str) -> tuple[float | None, float | None]:
    """(number, unit in the cell or None) of a cell: 8.53, "125M", "1.4 B", "2^20", "1,400,000", "2.2×10^9"; (None, None) where empty.

    The number has the cell's own unit multiplied in. Raises InputError for other text.
    """
    try:
        return number(value), None
    except (ValueError, TypeError):
        pass
    text = str(value).strip().replace("−", "-").replace("·", "×")
    text = re.sub(r"(?<=\d)[ _](?=\d{3}(\D|$))", "", text)  # 1 400 000
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3}){2,}(\.\d+)?", text):
        return float(text.replace(",", "")), None
    if re.fullmatch(r"[-+]?\d{1,3},\d{3}", text):
        raise InputError(
            f"{column}={value!r}: write {text.replace(',', '')} or {text.replace(',', '.')}, whichever is meant"
        )
    found = re.fullmatch(
        r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)?\s*(?:[x×*]\s*)?((?:10|2)(?:\^|\*\*)[-+]?[\d.]+)?\s*([A-Za-z][A-Za-z/ -]*)?",
        text,
    )
    if found is not None and (found[1] or found[2]):
        try:
            size = float(found[1] or 1.0) * (_written(found[2]) or 1.0 if found[2] else 1.0)
        except ValueError:
            size = math.nan
        factor = unit_of(re.findall(r"[A-Za-z]+", found[3])) if found[3] else 1.0
        if factor is not None and not math.isnan(size):
            return size * factor, factor if found[3] else None
    write = decimal_point(value) or "write it in figures, such as 1.4e9 or 1.4B"
    raise InputError(f"{column}={value!r} is not a number; {write}")


def check_loss_unit(name: str | None) -> None:
    """Raises InputError for an unknown unit of the loss."""
    if name is not None and name not in LOSS_UNITS:
        raise InputError(f"loss_unit={name!r} is unknown: write {', '.join(LOSS_UNITS)}")


@overload
def to_nats(loss: float, unit: str) -> float: ...
@overload
def to_nats(loss: Array, unit: str) -> Array: ...
def to_nats(loss: Any, unit: str) -> Any:
    """A loss in the scale that laws are fitted in: nats per token; bits × ln 2, ln of a perplexity. Bits per byte stay as they are.

    Bits per byte are nats per token times a constant that the tokenizer decides: a ratio scale of its own.
    """
    if unit == "bits":
        return loss * math.log(2)
    return np.log(loss) if unit == "perplexity" else loss


@overload
def from_nats(loss: float, unit: str) -> float: ...
@overload
def from_nats(loss: Array, unit: str) -> Array: ...
def from_nats(loss: Any, unit: str) -> Any:
    """The inverse of `to_nats`: a fitted or predicted loss in the user's own unit."""
    if unit == "bits":
        return loss / math.log(2)
    return np.exp(loss) if unit == "perplexity" else loss
