"""Residual branches read off the graph of a forward pass: what is added to the stream, and what can take its multiplier.

The forward of a small stand-in (the base, its tensors replaced by random ones) is run on guessed inputs. An addition is residual
if one operand, the stream, has met no matrix of a growing block since the last such addition, the other has, both stem from the same
activation, and the result leads on to the output (or to another stack). Additions inside a branch are thereby told apart.
"""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from mutransfer.axes import is_norm, is_table
from mutransfer.construct import same_randomness
from mutransfer.graph import Recorder
from mutransfer.passed import Value
from mutransfer.sample import Call, calls
from mutransfer.shapes import parameters_of

_LARGEST = 1 << 25  # numbers in a stand-in; a larger one stays on the meta device


@dataclass(frozen=True)
class Branch:
    """One branch: its block, the tensors that its multiplier can move into (none: only a hook can carry it), and where.

    `site` is the module whose output it can multiply instead; `series` the number of matrices from the stream to the sum;
    `factor` a number of the user's own that the branch is multiplied by already.
    """

    block: str
    ends: tuple[str, ...]
    site: str | None
    series: int
    factor: float = 1.0


@dataclass(frozen=True)
class Traced:
    """The branches found, why a block is unclear, and the blocks' tensors that the pass never used."""

    branches: tuple[Branch, ...]
    unclear: Mapping[str, str]
    unused: frozenset[str]


def trace(model: nn.Module, blocks: Mapping[str, Iterable[str]], matrices: Iterable[str]) -> Traced | None:
    """The branches of these blocks (path → names of its tensors). None where the forward could not be run.

    `matrices` are those tensors that a value cannot pass and still be the stream. The model is copied, never run itself.
    """
    owner = {name: block for block, names in blocks.items() for name in names}
    wanted = set(matrices)
    for device in ("cpu", "meta"):
        if device == "cpu" and sum(p.numel() for p in model.parameters()) > _LARGEST:
            continue
        whole = _whole(model, owner, wanted, device)
        if whole is not None:
            return whole
    if any(_module(model, block) is None for block in blocks):
        return None  # bare parameters in a list
    parts = []
    for block in blocks:
        names = {n.removeprefix(f"{block}."): n for n, b in owner.items() if b == block}
        part = _alone(model, block, names, wanted)
        if part is None:
            return None
        parts.append(part)
    return Traced(
        tuple(branch for part in parts for branch in part.branches),
        {block: reason for part in parts for block, reason in part.unclear.items()},
        frozenset().union(*(part.unused for part in parts)),
    )


def stand_in(model: nn.Module, device: str) -> nn.Module | None:
    """A copy to run: parameters random, in float32, on this device; buffers as they are. None where it cannot be copied."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for p in module._parameters.values():
            if p is not None and id(p) not in memo:
                memo[id(p)] = nn.Parameter(_random(p, device), requires_grad=p.requires_grad and p.is_floating_point())
        loose = [v for v in vars(module).values() if isinstance(v, Tensor)]
        for b in [*module._buffers.values(), *loose]:
            if b is not None and id(b) not in memo and (b.is_meta or device == "meta"):
                memo[id(b)] = torch.zeros(b.shape, dtype=b.dtype, device=device)
    try:
        twin = copy.deepcopy(model, memo)
    except Exception:  # what cannot be copied is not traced
        return None
    return twin.eval()


def _random(p: Tensor, device: str) -> Tensor:
    dtype = torch.float32 if p.is_floating_point() else p.dtype
    empty = torch.empty(p.shape, dtype=dtype, device=device)
    if device == "meta" or not p.is_floating_point():
        return empty if device == "meta" else p.detach().clone()
    return empty.normal_(0.0, 1 / math.sqrt(p.shape[-1] if p.ndim > 1 else 4))


def _whole(model: nn.Module, owner: Mapping[str, str], wanted: set[str], device: str) -> Traced | None:
    with same_randomness(), torch.no_grad():
        _seed()
        twin = stand_in(model, device)
        if twin is None:
            return None
        tensors = _named(twin)
        if not wanted <= set(tensors):
            return None
        for call in calls(twin):
            found = _traced(twin, tensors, call, device, owner, wanted, alone=None)
            if found is not None:
                return found
    return None


def _alone(model: nn.Module, block: str, names: Mapping[str, str], wanted: set[str]) -> Traced | None:
    """One block run by itself on a guessed stream."""
    with same_randomness(), torch.no_grad():
        _seed()
        twin = stand_in(model.get_submodule(block), "cpu")
        if twin is None:
            return None
        tensors = {names[n]: t for n, t in _named(twin).items() if n in names}
        owner = dict.fromkeys(names.values(), block)
        own = wanted & set(tensors)
        for call in calls(twin):
            found = _traced(twin, tensors, call, "cpu", owner, own, alone=block)
            if found is not None:
                return found
    return None


def _seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)


def _named(model: nn.Module) -> dict[str, Tensor]:
    found = {n: p.module._parameters[p.attribute] for n, p in parameters_of(model).items()}
    return {n: t for n, t in found.items() if t is not None}


def _traced(
    twin: nn.Module, tensors: Mapping[str, Tensor], call: Call, device: str, owner: Mapping[str, str], wanted: set[str],
    alone: str | None,
) -> Traced | None:  # fmt: skip
    """Two passes: the first finds which additions are residual, the second takes no other for one."""
    first = _run(twin, tensors, call, device, wanted, set(owner.values()), None, alone)
    if first is None:
        return None
    reading = Reading(first[0], first[1], owner, wanted, alone)
    used = reading.used()
    if alone is None and any(not used & {m for m in wanted if owner[m] == b} for b in {owner[m] for m in wanted}):
        return None  # a stack that this call never runs
    second = _run(twin, tensors, call, device, wanted, set(owner.values()), reading.real, alone)
    if second is None:
        return None
    reading = Reading(second[0], second[1], owner, wanted, alone)
    if alone is not None and not reading.spine:
        return None  # only its parent knows whether it is added to anything
    return reading.result()


def _run(
    twin: nn.Module, tensors: Mapping[str, Tensor], call: Call, device: str, wanted: set[str], blocks: set[str],
    real: set[int] | None, alone: str | None,
) -> tuple[Recorder, list[Value]] | None:  # fmt: skip
    args, kwargs = call
    args = tuple(a.to(device) if isinstance(a, Tensor) else a for a in args)
    kwargs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    recorder = Recorder(twin, tensors, wanted, blocks if alone is None else [""], real)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused layer shows nothing
    try:
        _seed()
        for x in {id(t): t for t in [*args, *kwargs.values()] if isinstance(t, Tensor)}.values():
            recorder.input(x)
        with torch.device(device), recorder:
            output = twin(*args, **kwargs)
        made = [x for x in _tensors(output) if x.is_floating_point()]
        if alone is not None and not (made and isinstance(args[0], Tensor) and made[0].shape == args[0].shape):
            return None  # not a block that maps a stream to itself
        return recorder, [recorder.of(x) for x in (made[:1] if alone is not None else made)]
    except Exception:  # not an input that this forward accepts
        return None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _tensors(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, Mapping):
        return [t for v in x.values() for t in _tensors(v)]
    if isinstance(x, tuple | list):
        return [t for v in x for t in _tensors(v)]
    return []


class Reading:
    """The residual additions of one recorded pass."""

    def __init__(
        self, recorder: Recorder, outputs: list[Value], owner: Mapping[str, str], wanted: set[str], alone: str | None
    ) -> None:
        self.recorder, self.outputs, self.owner, self.wanted, self.alone = recorder, outputs, owner, wanted, alone
        self.graph = recorder.graph
        self.broken: set[str] = set()  # blocks whose output is no longer a stream
        self.scaled: set[str] = set()  # blocks that multiply the stream itself
        self.spine: list[Value] = []
        seen: set[int] = set()
        for value in outputs:
            self._walk(value, seen)
        while (late := self._unreached()) is not None:  # an encoder is reached through the decoder's branches only
            self._walk(late, seen)
        self.real = {value.number for value in self.spine}

    def used(self) -> set[str]:
        """Matrices that any value of this pass depends on."""
        return {m for m in self.wanted if self.recorder.touched & self.graph.bits[m]}

    def _blocks(self, bits: int) -> set[str]:
        return {self.owner[m] for m in self.wanted if bits & self.graph.bits[m]}

    def _walk(self, start: Value, seen: set[int]) -> None:
        todo: list[tuple[Value, Value | None]] = [(start, None)]  # with the addition that it flows into
        while todo:
            value, after = todo.pop()
            if value.bit in seen:
                continue
            seen.add(value.bit)
            if value.sum is not None:
                self.spine.append(value)
                if after is not None and after.scale[0] == value.scale[0]:
                    self._compare(value, after)
                todo.append((value.sum[0], value))
                continue
            if value.floats and not self.recorder.is_stream(value):
                self.broken |= self._blocks(value.cut)
            todo += [(parent, after) for parent in value.parents if parent.floats]

    def _compare(self, one: Value, after: Value) -> None:
        if not math.isclose(one.scale[1], after.scale[1], rel_tol=1e-6):
            assert after.sum is not None
            self.scaled |= self._blocks(after.sum[1].cut)

    def _unreached(self) -> Value | None:
        """The latest addition of a block that has none yet, made of all that the block's pass used."""
        done = self.broken | {b for v in self.spine if v.sum for b in self._blocks(v.sum[1].cut)}
        for value in reversed(self.recorder.sums):
            assert value.sum is not None
            blocks = self._blocks(value.sum[1].cut)
            if blocks and not blocks & done and value not in self.spine:
                mine = {m for m in self.used() if self.owner[m] in blocks}
                if all(value.above & self.graph.bits[m] for m in mine):
                    return value
        return None

    def result(self) -> Traced:
        """Every branch with what can take its multiplier, and what stands in the way elsewhere."""
        unclear: dict[str, str] = {}
        branches: list[Branch] = []
        uses: dict[str, int] = {}
        for value in self.spine:
            for site in value.sum[1].sites if value.sum else ():
                uses[site] = uses.get(site, 0) + 1
        for value in reversed(self.spine):
            assert value.sum is not None
            branch = value.sum[1]
            blocks = sorted(self._blocks(branch.cut))
            if len(blocks) != 1:
                unclear |= dict.fromkeys(blocks, "one sum holds the branches of several blocks")
                continue
            branches += self._branch(blocks[0], branch, uses, unclear)
        for block in sorted(self._doubled()):
            unclear[block] = "what it adds to the stream holds the stream itself"
        for block in sorted(self.broken):
            unclear.setdefault(block, "what it computes is not added to its input")
        for block in sorted(self.scaled):
            unclear[block] = "it multiplies the stream itself by a number, so that depth forgets it"
        for block in {self.owner[m] for m in self.used()} - {b.block for b in branches}:
            unclear.setdefault(block, "nothing that it computes is added to a stream")
        self._conflicts(branches, unclear)
        unused = {name for name in self.owner if not self.recorder.touched & self.graph.bits.get(name, 0)}
        return Traced(tuple(dict.fromkeys(branches)), unclear, frozenset(unused))

    def _branch(self, block: str, branch: Value, uses: dict[str, int], unclear: dict[str, str]) -> list[Branch]:
        ends = tuple(sorted(branch.ends))
        sites = sorted(s for s in branch.sites if self.graph.calls[s] == uses[s])
        prefix = f"{self.alone}." if self.alone is not None else ""
        if ends and all(self.owner.get(e) == block for e in ends):
            inside = [f"{prefix}{s}" for s in sites]
            if len(inside) > 1 and all(any(e.startswith(f"{s}.") for s in inside) for e in ends):
                return [
                    Branch(block, tuple(e for e in ends if e.startswith(f"{s}.")), s, branch.series, branch.scale[1])
                    for s in inside
                ]
            return [Branch(block, ends, inside[0] if len(inside) == 1 else None, branch.series, branch.scale[1])]
        if sites and len(sites) == len(branch.sites):
            return [Branch(block, (), f"{prefix}{s}", branch.series, branch.scale[1]) for s in sites]
        outside = [e for e in ends if self.owner.get(e) != block]
        unclear[block] = (f"{outside[0]!r}, which lies outside of the block, ends the branch" if outside else
                          "no tensor's multiplier passes what comes behind its last matrix; or apply an nn.Identity() to the branch and "
                          "name that")  # fmt: skip
        return []

    def _doubled(self) -> set[str]:
        """Blocks that add the stream to itself: `x + relu(x + W x)`, or a residual block that its parent adds to its input."""
        found: set[str] = set()
        for first, second, inside in self.recorder.doubled:
            for one, two in ((first, second), (second, first)):
                between = [v for v in self.recorder.sums if two.above & ~one.above & v.bit]
                made = {block for v in between if v.sum for block in self._blocks(v.sum[1].cut)}
                block = self.alone if self.alone is not None else inside
                if block in made:
                    found.add(str(block))
                below = two  # in the parent: down through the sums of one block to what went into it
                while below.sum is not None and len(made) == 1 and self._blocks(below.sum[1].cut) == made:
                    below = below.sum[0]
                    found |= made if below is one else set()
        return found

    def _conflicts(self, branches: list[Branch], unclear: dict[str, str]) -> None:
        """A tensor that ends a branch and acts elsewhere too cannot take the branch's multiplier."""
        ends = {e: b.block for b in branches for e in b.ends}
        places: list[tuple[int, frozenset[str]]] = []
        for value in self.spine:
            assert value.sum is not None
            places += [(value.sum[0].cut, frozenset()), (value.sum[1].cut, value.sum[1].ends)]
        places += [(value.cut, frozenset()) for value in self.outputs]
        for cut, own in places:
            for e, block in ends.items():
                if e not in own and cut & self.graph.bits[e]:
                    unclear[block] = f"{e!r} ends a branch and acts elsewhere too"


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def matrix_names(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Those tensors that mix features: two axes or more, no norm, no table, no bias of several parts."""
    found = parameters_of(model)
    return {
        name
        for name in names
        if name in found
        and sum(size > 1 for size in found[name].shape) > 1
        and not is_norm(found[name].module)
        and not isinstance(found[name].module, nn.Embedding)
        and not is_table(name)
        and not re.search(r"bias(_table)?$", name)
    }
