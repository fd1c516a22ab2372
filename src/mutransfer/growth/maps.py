"""Axis maps from the layouts of two models: the same parts in both, each with its own growth; or as the user declares them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

from mutransfer.errors import InputError
from mutransfer.growth.axis import AxisMap
from mutransfer.growth.layout import Axis


class Unreadable(Exception):
    """Why two layouts of one axis do not give a map."""


class Uneven(Unreadable):
    """The map is known, but its factor is not whole."""


class Matching:
    """Reads maps off pairs of axes. Parts that were seen to be brothers once are brothers wherever they meet again."""

    def __init__(self, uneven: bool = False) -> None:
        self.uneven = uneven
        self.brothers: dict[Axis, Axis | None] = {}  # part of the big model → of the small one; None: it is 1 there
        self.tables: list[tuple[int, int]] = []
        self.normed: list[tuple[int, int]] = []

    def learn(self, small: Axis, big: Axis) -> None:
        """These are the same axis of the two models: remember the parts that can be told apart without doubt."""
        ours, theirs = small.find(), big.find()
        self.brothers.setdefault(theirs, ours)
        if ours.form == theirs.form == "join":
            below = (ours.parts, theirs.parts)
        elif "product" in (ours.form, theirs.form):
            below = (ours.leaves(), theirs.leaves())
        else:
            return
        if len(below[0]) == len(below[1]):
            for s, b in zip(*below, strict=True):
                self.learn(s, b)
        elif len(below[0]) < len(below[1]) and "join" not in (ours.form, theirs.form):
            ranked = self._ranked(*below)
            if len(ranked) == 1 or (ranked and ranked[0][0] > ranked[1][0]):
                self._remember(ranked[0][1])

    def map(self, small: Axis, big: Axis, table: bool = False, normed: bool = False) -> AxisMap:
        """The map from an axis of the small model to the same axis of the big one. Raises Unreadable.

        Free parts of n units become n' = k·n, copies side by side; with `uneven` also where n' is no multiple. `tables` keeps the
        growing parts that are indexed together with a table that forward makes, `normed` those that a norm takes its mean over.
        """
        small, big = small.find(), big.find()
        table = table or small.constant or big.constant
        normed = normed or small.normed or big.normed
        for axis in (small, big):
            if axis.trouble:
                raise Unreadable(axis.trouble)
        if small.form == "product" or big.form == "product":
            return AxisMap.product(
                *(self.map(s, b, table, normed) for s, b in self._aligned(small.leaves(), big.leaves()))
            )
        if small.form == big.form == "join":
            if len(small.parts) != len(big.parts):
                ours, theirs = ([p.size for p in axis.parts] for axis in (big, small))
                raise Unreadable(f"it consists of {theirs} in the small model and of {ours} in the big one")
            return AxisMap.join(*(self.map(s, b, table, normed) for s, b in zip(small.parts, big.parts, strict=True)))
        if small.form != big.form and small.size != big.size:
            parts = [p.size for p in (small if small.form == "join" else big).parts]
            raise Unreadable(f"it consists of {parts} in one of the models only")
        if table and small.size != big.size:
            self.tables.append((small.size, big.size))
        if normed and big.size % small.size:
            self.normed.append((small.size, big.size))
        return self._copy(small.size, big.size)

    def _copy(self, small: int, big: int) -> AxisMap:
        if big < small:
            raise Unreadable(f"{small} → {big} shrinks; growing copies units and drops none")
        if big % small and not self.uneven:
            raise Uneven(f"{small} → {big} units is no whole multiple: take {big - big % small} or {big - big % small + small}, or say "
                         f"uneven=True (--uneven) for copies that keep the function at the start but not the path")  # fmt: skip
        return AxisMap(small, big)

    def _aligned(self, small: Sequence[Axis], big: Sequence[Axis]) -> list[tuple[Axis, Axis]]:
        """Factors of one model against those of the other; a factor that is 1 in one of them (one head) is not seen there."""
        if len(small) == len(big):
            return list(zip(small, big, strict=True))
        ranked = self._ranked(small, big)
        if not ranked:
            ours, theirs = [a.size for a in big], [a.size for a in small]
            raise Unreadable(f"it is a product of {theirs} in the small model and of {ours} in the big one")
        self._remember(ranked[0][1])
        return ranked[0][1]

    def _ranked(self, small: Sequence[Axis], big: Sequence[Axis]) -> list[tuple[int, list[tuple[Axis, Axis]]]]:
        """Every pairing with whole factors, best first: those that agree with what is known, then those with most equal sizes."""
        few, many = (small, big) if len(small) < len(big) else (big, small)
        found: list[tuple[int, list[tuple[Axis, Axis]]]] = []
        for places in itertools.combinations(range(len(many)), len(few)):
            row = [Axis(1)] * len(many)
            for place, axis in zip(places, few, strict=True):
                row[place] = axis
            pairs = list(zip(row, many, strict=True) if few is small else zip(many, row, strict=True))
            if all(b.size % s.size == 0 or (self.uneven and b.size > s.size) for s, b in pairs):
                score = sum(s.size == b.size for s, b in pairs)
                for s, b in pairs:
                    known = self.brothers.get(b.find(), b)
                    if known is not b:
                        score += 10 if known is (None if s.size == 1 else s.find()) else -10
                found.append((score, pairs))
        return sorted(found, key=lambda candidate: -candidate[0])

    def _remember(self, pairs: list[tuple[Axis, Axis]]) -> None:
        for s, b in pairs:
            self.brothers.setdefault(b.find(), None if s.size == 1 else s.find())


# ------------------------------------------------------------------ declared by the user

_TOKEN = re.compile(r"\s*(\d+\s*(?:→|->)\s*\d+|\d+\s*[×x]\s*\[|\d+|[\[\]()|·*])")


def parse(text: str) -> AxisMap:
    """An axis map as the grow plan prints it: `4→8·16` (4 → 8 units of 16 each), `64→128 | 16→32`, `3×[4→8·16]`, `(a | b)·c`.

    `->`, `*` and `x` may stand for →, · and ×. Raises InputError for anything else.
    """
    tokens, at = [], 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        if not found:
            raise _bad(text)
        tokens.append(re.sub(r"\s", "", found[1]).replace("->", "→").replace("x", "×").replace("*", "·"))
        at = found.end()
    try:
        made = _joined(tokens)
    except (IndexError, ValueError):
        raise _bad(text) from None
    if tokens:
        raise _bad(text)
    return made


def _bad(text: str) -> InputError:
    return InputError(
        f"map {text!r}: write 4→8 for copied units, 4→8·16 for units of 16 copied whole, a | b for one after another, 3×[…] for three alike"
    )


def _joined(tokens: list[str]) -> AxisMap:
    parts = [_multiplied(tokens)]
    while tokens and tokens[0] == "|":
        tokens.pop(0)
        parts.append(_multiplied(tokens))
    return AxisMap.join(*parts)


def _multiplied(tokens: list[str]) -> AxisMap:
    parts = [_single(tokens)]
    while tokens and tokens[0] == "·":
        tokens.pop(0)
        parts.append(_single(tokens))
    return AxisMap.product(*parts)


def _single(tokens: list[str]) -> AxisMap:
    token = tokens.pop(0)
    if token.endswith("×["):
        inner = _joined(tokens)
        if tokens.pop(0) != "]":
            raise ValueError
        return AxisMap.join(*[inner] * int(token[:-2]))
    if token == "(":
        inner = _joined(tokens)
        if tokens.pop(0) != ")":
            raise ValueError
        return inner
    small, _, big = token.partition("→")
    made = AxisMap(int(small), int(big or small))
    if not 0 < made.base <= made.target:
        raise ValueError
    return made


def declared(
    maps: Mapping[str, Mapping[int, str | AxisMap]] | None, name: str, small: Sequence[int], big: Sequence[int]
) -> dict[int, AxisMap]:
    """What the user declared for the axes of this tensor: {pattern: {axis: map}}. Raises InputError where sizes do not fit."""
    from mutransfer.shapes import lookup

    found: dict[int, AxisMap] = {}
    given = lookup(maps, name)
    if given is None:
        return found
    if not isinstance(given, Mapping):
        raise InputError(f"maps={{{name!r}: {given!r}}}: write a map per axis, such as {{0: '4→8·16'}}")
    for axis, value in given.items():
        if type(axis) is not int or not -len(big) <= axis < len(big):
            raise InputError(f"maps: {name!r} {tuple(big)} has no axis {axis!r}")
        made = value if isinstance(value, AxisMap) else parse(str(value))
        axis %= len(big)
        if (made.base, made.target) != (small[axis], big[axis]):
            raise InputError(f"maps: axis {axis} of {name!r} goes from {small[axis]} to {big[axis]}, but {str(value)!r} from "
                             f"{made.base} to {made.target}")  # fmt: skip
        found[axis] = made
    return found
