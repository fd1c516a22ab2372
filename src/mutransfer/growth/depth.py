"""Depth: which block of the small model each block of the big one is made from, and which are new.

"identity": every old block stays what it was; new blocks stand right behind the one they are copied from, and the tensors that end
their residual branches start at zero, so that they add nothing: the function is the small model's. "interleave" copies every block
in place, 0 0 1 1 2 2 (after 2011.13635); "append" repeats the whole stack, 0 1 2 0 1 2 (2011.13635, 2305.02869 and others stack
so). Where the plan carries 1/L on residual branches, the copies of a block together move the stream as the one did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from mutransfer import branches
from mutransfer.blocks import Stack, block_of
from mutransfer.errors import InputError
from mutransfer.plans import Plan
from mutransfer.shapes import compare_with_stacks

DepthMode = Literal["identity", "interleave", "append"]
MODES: tuple[DepthMode, ...] = get_args(DepthMode)


@dataclass(frozen=True)
class Blocks:
    """What becomes of blocks: target block → block of the small model it copies; those that are new; tensors that end branches."""

    source: dict[str, str]
    new: frozenset[str]
    ends: frozenset[str]

    def source_of(self, name: str, base_name: str, block: str | None) -> str:
        """The small model's name of a tensor of a block."""
        if block is None or block not in self.source:
            return base_name
        return self.source[block] + name[len(block) :]


def blocks(
    small: nn.Module, big: nn.Module, plan: Plan, mode: DepthMode, branch_out: Sequence[str] = ()
) -> Blocks | None:
    """The blocks of the growing stacks; None where no stack grows. Raises InputError where a new block cannot start as identity."""
    if mode not in MODES:
        raise InputError(f"depth={mode!r}: one of {', '.join(map(repr, MODES))}")
    names = {row.name: row.base_name for row in plan.rows}
    stacks = [s for s in _stacks(small, big) if s.base != s.target]
    if not stacks:
        return None
    source: dict[str, str] = {}
    new: set[str] = set()
    for stack in stacks:
        if stack.target < stack.base:
            raise InputError(f"{stack.path!r} shrinks from {stack.base} to {stack.target} blocks: growing drops none")
        for ours, theirs in _kinds(stack, names):
            for i, child in enumerate(ours):
                at = i % len(theirs) if mode == "append" else i * len(theirs) // len(ours)
                source[child] = theirs[at]
                if mode == "identity" and i and (i - 1) * len(theirs) // len(ours) == at:
                    new.add(child)
    ends: set[str] = set()
    if mode == "identity":
        ends = _ends(small, big, stacks, branch_out)
        for block in sorted(new):
            if not any(name.startswith(f"{block}.") for name in ends):
                raise InputError(f"depth='identity': no tensor of {block!r} ends a residual branch, so that it cannot start by adding nothing: "
                                 f"name it with branch_out=['*.pattern'], or say depth='interleave' (the function changes)")  # fmt: skip
    return Blocks(source, frozenset(new), frozenset(ends))


def _stacks(small: nn.Module, big: nn.Module) -> list[Stack]:
    return branches.depth_stacks(compare_with_stacks(small, big, strict=False)[1])


def _kinds(stack: Stack, names: dict[str, str]) -> list[tuple[list[str], list[str]]]:
    """Blocks of the stack and of its small brother, by kind: those that hold the same tensors."""
    ours: dict[str, set[str]] = {}
    theirs: dict[str, set[str]] = {}
    for name, base in names.items():
        block = block_of(name, [stack])
        if block is None or not name.startswith(f"{stack.path}."):
            continue
        tail = name[len(block) :]
        ours.setdefault(block, set()).add(tail)
        theirs.setdefault(base[: len(base) - len(tail)], set()).add(tail)
    kinds: dict[frozenset[str], tuple[list[str], list[str]]] = {}
    for place, of in enumerate((ours, theirs)):
        for block, tails in of.items():
            kinds.setdefault(frozenset(tails), ([], []))[place].append(block)
    return [(sorted(a, key=_number), sorted(b, key=_number)) for a, b in kinds.values() if len(a) > len(b) > 0]


def _number(block: str) -> int:
    return int(block.rpartition(".")[2])


def _ends(small: nn.Module, big: nn.Module, stacks: list[Stack], branch_out: Sequence[str]) -> set[str]:
    shapes, _ = compare_with_stacks(small, big, strict=False)
    found = branches.find_ends(big, shapes, stacks, branch_out, small)
    known = {shape.name for shape in shapes}
    return {name for end in found for attribute in end.attributes if (name := f"{end.path}.{attribute}") in known}
