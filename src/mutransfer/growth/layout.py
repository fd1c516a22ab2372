"""How the axes of a model hang together: axes that must be indexed alike are one, and every axis falls into the parts it is used in.

Two axes met in a sum, a product or a contraction are the same axis. A view that splits an axis into (heads, head size) makes it a
product; a split into query, key and value makes it a join. Refining one use refines every other use of the same axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from mutransfer.growth.axis import Form


class Axis:
    """One axis of some tensor: `size` units, read as a whole ("copy"), a product of axes, or several one after another.

    `trouble` says which two uses of it contradict each other; `constant` that a table made in the forward pass is indexed by it,
    `normed` that a mean or variance is taken over it.
    """

    def __init__(self, size: int, form: Form = "copy", parts: Sequence[Axis] = ()) -> None:
        self.size, self.form, self.parts = size, form, list(parts)
        self.same: Axis | None = None
        self.trouble = ""
        self.constant = False
        self.mismatch = False
        self.normed = False

    def find(self) -> Axis:
        """The axis that stands for all that are the same as this one."""
        axis = self
        while axis.same is not None:
            axis = axis.same
        if self is not axis:
            self.same = axis
        return axis

    def leaves(self) -> list[Axis]:
        """The factors of a product, outermost first, those of size 1 left out; the axis itself where it is none."""
        axis = self.find()
        if axis.form == "product":
            return [leaf for part in axis.parts for leaf in part.leaves()]
        return [axis] if axis.size != 1 else []

    def all(self) -> Iterable[Axis]:
        """This axis and everything inside it."""
        axis = self.find()
        yield axis
        for part in axis.parts:
            yield from part.all()

    def complain(self, trouble: str) -> None:
        """Remember that two uses of this axis do not go together."""
        axis = self.find()
        axis.trouble = axis.trouble or trouble


def product(parts: Sequence[Axis]) -> Axis:
    """The axis that is a product of these."""
    return parts[0] if len(parts) == 1 else Axis(math.prod(p.size for p in parts), "product", parts)


def join(parts: Sequence[Axis]) -> Axis:
    """The axis that is these one after another."""
    return parts[0] if len(parts) == 1 else Axis(sum(p.size for p in parts), "join", parts)


def unify(a: Axis, b: Axis) -> None:
    """The two are one axis from here on."""
    a, b = a.find(), b.find()
    if a is b:
        return
    if a.size != b.size:
        a.complain(f"meets an axis of {b.size}")
        b.complain(f"meets an axis of {a.size}")
        a.mismatch = b.mismatch = True
        return
    if a.form != "copy" and b.form != "copy":
        if a.form == b.form == "join":
            cuts = sorted({*_cuts(a), *_cuts(b)})
            for x, y in zip(pieces(a, cuts), pieces(b, cuts), strict=True):
                unify(x, y)
        else:
            _refine(a, b)
        a, b = a.find(), b.find()
        if a is b:
            return
    old, new = (a, b) if a.form == "copy" else (b, a)
    if any(part is old for part in new.all()):
        return
    old.same = new
    new.trouble = new.trouble or old.trouble
    new.constant |= old.constant
    new.normed |= old.normed


def _refine(a: Axis, b: Axis) -> None:
    """Cut two products (or a product and a join) into common factors, and make those one each."""
    ours, theirs = [*_reading(a)], [*_reading(b)]
    while ours and theirs:
        x, y = ours[0].find(), theirs[0].find()
        if x.size == y.size:
            unify(x, y)
            del ours[0], theirs[0]
            continue
        larger, smaller = (x, y) if x.size > y.size else (y, x)
        halves = split(larger, larger.size // smaller.size) if larger.size % smaller.size == 0 else None
        if halves is None:
            text = f"read both as {_sizes(a)} and as {_sizes(b)}"
            a.complain(text)
            b.complain(text)
            return
        (ours if larger is x else theirs)[0:1] = halves


def _reading(axis: Axis) -> list[Axis]:
    return axis.leaves() if axis.form == "product" else [axis]


def split(axis: Axis, inner: int) -> tuple[Axis, Axis] | None:
    """(outer, inner) factors of a leaf; a join whose pieces all divide becomes a product too. None where it cannot be."""
    axis = axis.find()
    if axis.form == "product" or axis.size % inner:
        return None
    if inner == axis.size or inner == 1:
        one = Axis(1)
        return (one, axis) if inner == axis.size else (axis, one)
    if axis.form == "copy":
        halves = Axis(axis.size // inner), Axis(inner)
    else:
        parts = [split_any(piece, inner) for piece in axis.parts]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        for _, other in known[1:]:
            unify(known[0][1], other)
        halves = join([outer for outer, _ in known]), known[0][1]
    axis.form, axis.parts = "product", list(halves)
    return halves


def split_any(axis: Axis, inner: int) -> tuple[Axis, Axis] | None:
    """`split` of any axis: a product is cut between its factors, or through one of them."""
    found = divide([axis], [axis.size // inner, inner]) if axis.size % inner == 0 else None
    return None if found is None else (found[0], found[1])


def divide(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis] | None:
    """The axes, flattened together, as axes of these sizes: what a view does. None (and a complaint) where none fits."""
    leaves = [leaf for axis in axes for leaf in axis.leaves()]
    made: list[Axis] = []
    for size in sizes:
        need, taken = size, []
        while need > 1:
            if not leaves:
                return None
            leaf = leaves.pop(0).find()
            if leaf.form == "product":
                leaves[0:0] = leaf.leaves()
                continue
            if need % leaf.size == 0:
                taken.append(leaf)
                need //= leaf.size
                continue
            shared = math.gcd(need, leaf.size)
            halves = split(leaf, leaf.size // shared) if shared > 1 else None
            if halves is None:
                for axis in axes:
                    axis.complain(f"a view of {_sizes(*axes)} as {tuple(sizes)} cuts through its parts")
                return None
            leaves[0:0] = halves
        made.append(product(taken) if taken else Axis(1))
    return made


def pieces(axis: Axis, cuts: Iterable[int]) -> list[Axis]:
    """The axis cut at these places. Pieces of a product keep its inner factors."""
    axis, cuts = axis.find(), sorted({c for c in cuts if 0 < c < axis.size})
    if not cuts:
        return [axis]
    ends = [0, *cuts, axis.size]
    sizes = [end - start for start, end in itertools.pairwise(ends)]
    if axis.form == "copy":
        axis.form, axis.parts = "join", [Axis(size) for size in sizes]
        return list(axis.parts)
    if axis.form == "join":
        made, start = [], 0
        for part in axis.parts:
            made += pieces(part, [c - start for c in cuts])
            start += part.size
        starts = list(itertools.accumulate((m.size for m in made), initial=0))
        axis.parts = made
        return [
            join([m for m, s in zip(made, starts[:-1], strict=True) if start <= s < end])
            for start, end in itertools.pairwise(ends)
        ]
    outer, *inner = axis.leaves()
    rest = math.prod(leaf.size for leaf in inner)
    if any(c % rest for c in cuts):
        axis.complain(f"cut into {tuple(sizes)} across its parts {_sizes(axis)}")
        return [Axis(size) for size in sizes]
    return [product([piece, *inner]) for piece in pieces(outer, [c // rest for c in cuts])]


def piece_of(axis: Axis, start: int, size: int) -> Axis:
    """`size` units of an axis from `start`: one of its pieces."""
    at, found = 0, []
    for part in pieces(axis, (start, start + size)):
        if start <= at < start + size:
            found.append(part)
        at += part.size
    return join(found) if sum(p.size for p in found) == size else Axis(size)


def _cuts(axis: Axis) -> list[int]:
    return list(itertools.accumulate(part.size for part in axis.parts))[:-1]


def _sizes(*axes: Axis) -> tuple[int, ...]:
    return tuple(leaf.size for axis in axes for leaf in axis.leaves())
