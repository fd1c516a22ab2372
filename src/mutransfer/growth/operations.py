"""What each operation of torch says about the axes of its operands: which are one, which are parts, which are new.

A rule is called with the tracer, the arguments by their names in the operation's schema, and the tensors it made. Operations that
have no rule: those torch tags as pointwise broadcast their operands; of any other, axes of equal size at equal places are carried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from mutransfer.growth.layout import Axis, unify


class Knows(Protocol):
    """Who knows the axes of tensors."""

    def of(self, tensor: Tensor) -> list[Axis]: ...
    def put(self, tensor: Tensor, axes: list[Axis]) -> None: ...


Rule = Callable[[Knows, Mapping[str, Any], Sequence[Tensor]], None]
OPERATIONS: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under these operations' names."""

    def register(function: Rule) -> Rule:
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return register


def given(call: Mapping[str, Any]) -> list[Tensor]:
    """The operands that are tensors, lists of them opened."""
    found = []
    for value in call.values():
        found += [t for t in (value if isinstance(value, tuple | list) else (value,)) if isinstance(t, Tensor)]
    return found


def pointwise(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    """Operands are aligned at their last axes; axes of one size are one, those of size 1 stretch."""
    operands = [knows.of(t) for t in given(call)]
    axes: list[Axis] = []
    for place, size in enumerate(made[0].shape):
        back = made[0].ndim - place
        met = [o[-back] for o in operands if len(o) >= back and o[-back].size == size]
        for other in met[1:]:
            unify(met[0], other)
        axes.append(met[0] if met else Axis(size))
    for tensor in made:
        if tensor.shape == made[0].shape:
            knows.put(tensor, axes)


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "new_tensor")
def _new(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    """New axes, whatever the tensor that lends its type and device."""
    for tensor in made:
        knows.put(tensor, [Axis(n) for n in tensor.shape])


@rule("clone", "_softmax", "_log_softmax", "native_dropout", "cumsum", "cumprod", "sort", "tril", "triu", "flip", "roll",
      "detach", "alias", "_to_copy", "lift_fresh", "contiguous", "bernoulli", "cummax", "cummin", "zeros_like",
      "ones_like", "empty_like", "rand_like", "randn_like", "full_like", "dropout", "alpha_dropout", "renorm")  # fmt: skip
def carry(knows: Knows, call: Mapping[str, Any], made: Sequence[Tensor]) -> None:
    """Axes of the first operand at equal places, where sizes are equal; others are new."""
    operands = given(call)
    if not operands:
        return
    source = knows.of(operands[0])
    for tensor in made:
        axes = [source[i] if i < len(source) and source[i].size == n else Axis(n) for i, n in enumerate(tensor.shape)]
        knows.put(tensor, axes)


def dim_of(dim: int, of: int) -> int:
    return dim + of if dim < 0 else dim


def dims_of(dims: Any, of: int) -> set[int]:
    if dims is None or (isinstance(dims, tuple | list) and not dims):
        return set(range(of))
    return {dim_of(d, of) for d in (dims if isinstance(dims, tuple | list) else (dims,))}
