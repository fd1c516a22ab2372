"""Residual branches: which tensors sit in one, and which tensors end one, so that its multiplier can move into them."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from mutransfer.axes import is_norm
from mutransfer.blocks import Stack, block_of, collapse
from mutransfer.errors import InputError
from mutransfer.named_branches import (
    SHORTCUT,
    check_sizes,
    ends_by_name,
    refuse_normalised,
    tensors_of,
    unseen,
    with_bias,
)
from mutransfer.shapes import TensorShape, clean
from mutransfer.trace_branches import Branch, Traced, matrix_names, trace

_PARALLEL = re.compile(r"(^|[._])(experts?|heads?|towers?|adapters?|codebooks?)$")
_SERIAL = re.compile(r"(^|[._])(blocks?|layers?|stages?|resnets?|h|body|units?|cells?|modules?|transformers?)$")


def depth_stacks(stacks: Sequence[Stack]) -> list[Stack]:
    """The stacks whose children follow one another (experts and heads stand side by side), outermost only."""
    serial = [stack for stack in stacks if not _PARALLEL.search(stack.path)]
    return [s for s in serial if not any(s.path.startswith(f"{o.path}.") for o in serial if o is not s)]


def depth_ratio(stacks: Sequence[Stack]) -> float:
    """L: residual blocks of the target over those of the base, all growing stacks together; 1 where none grows."""
    base, target = sum(stack.base for stack in stacks), sum(stack.target for stack in stacks)
    return target / base if base else 1.0


def in_branch(name: str, stacks: Sequence[Stack]) -> bool:
    """Whether this tensor is multiplied by its residual branch's factor: inside a block, and not on its shortcut."""
    return block_of(name, stacks) is not None and not SHORTCUT.search(name)


@dataclass(frozen=True)
class End:
    """Where a branch ends: the tensors that its multiplier can move into (none: only a hook can carry it), by module.

    `site` is the module on whose output a hook does the same (None: no module returns the branch). `series` counts the
    matrices one after another in the branch, where that is known; `traced` tells that the graph of a forward pass showed it.
    `own` is what the target's own forward multiplies the branch by over what the base's does: 1/L where the code knows the depth.
    """

    path: str
    attributes: tuple[str, ...]
    site: str | None
    series: int | None = None
    traced: bool = False
    own: float = 1.0


def last_modules(
    model: nn.Module,
    shapes: Sequence[TensorShape],
    stacks: Sequence[Stack],
    declared: Sequence[str],
    base: nn.Module | None = None,
) -> dict[str, tuple[str, ...]]:
    """The modules that end each residual branch, by path, with those of their tensors that take the branch multiplier."""
    return {end.path: end.attributes for end in find_ends(model, shapes, stacks, declared, base)}


def find_ends(
    model: nn.Module,
    shapes: Sequence[TensorShape],
    stacks: Sequence[Stack],
    declared: Sequence[str],
    base: nn.Module | None = None,
) -> list[End]:
    """Where every residual branch of the growing blocks ends.

    `declared` are the user's patterns over paths of modules or bare parameters. Without them the graph of a forward pass of
    `base` tells (`trace_branches`); where no pass can be run, what the block's own forward adds to its stream, as far as its
    source can be read; else known names (out_proj, c_proj, down_proj, fc2, …), the batch norm after the last convolution of a
    block, or the last matrix of a block that is a single chain. Raises InputError naming a block where the end is unclear, with
    the line to write.
    """
    if not declared:
        _refuse_unordered(stacks)
        traced = _traced(model, shapes, stacks, base)
        if traced is not None:
            return traced
    read = _read(model, shapes, stacks, declared)
    return [End(path, attributes, path, _counted(path, read, shapes)) for path, attributes in read.items()]


def _counted(path: str, ends: Iterable[str], shapes: Sequence[TensorShape]) -> int | None:
    """1 where a block holds as many matrices as branches; more cannot be counted without a graph."""
    block = next((s.block for s in shapes if s.block and s.name.startswith(f"{path}.")), None)
    if block is None:
        return None
    matrices = [s for s in shapes if s.block == block and s.role in ("hidden", "output") and len(s.target_shape) > 1]
    return 1 if len(matrices) == sum(1 for end in ends if f"{end}.".startswith(f"{block}.")) else None


def _traced(
    model: nn.Module, shapes: Sequence[TensorShape], stacks: Sequence[Stack], base: nn.Module | None
) -> list[End] | None:
    """The ends that the graph of a forward pass shows; None where no pass can be run."""
    own = base is None
    names = {shape.name: shape.name if own else shape.base_name for shape in shapes}
    copies: dict[str, dict[str, None]] = {}  # a block of the model that is run → the target's blocks that it stands for
    targets: dict[tuple[str, str], list[str]] = {}  # (target's block, tensor of the model that is run) → its tensors
    for shape in shapes:
        block = block_of(names[shape.name], stacks)
        if shape.block is not None and block is not None:
            copies.setdefault(block, {})[shape.block] = None
            targets.setdefault((shape.block, names[shape.name]), []).append(shape.name)
    blocks = _by_block(names.values(), stacks)
    runs = _unwrapped(model if base is None else base)
    matrices = matrix_names(runs, [name for inside in blocks.values() for name in inside])
    blocks = {block: inside for block, inside in blocks.items() if matrices.intersection(inside)}
    found = trace(runs, blocks, matrices) if matrices else None
    if found is None:
        return None
    modules = {clean(path): module for path, module in model.named_modules()}
    for block, inside in blocks.items():
        detail = found.unclear.get(block) or _unused(matrices.intersection(inside), found)
        if detail:
            shown = next(iter(copies[block]))
            raise InputError(unseen(shown, detail))
    theirs = {} if own or all(b.factor == 1 for b in found.branches) else _factors(model, shapes, stacks)
    ends: list[End] = []
    for branch in _with_siblings(found, blocks):
        for block in copies[branch.block]:
            site = None if branch.site is None else block + branch.site.removeprefix(branch.block)
            held = [name for end in branch.ends for name in targets.get((block, end), ())]
            factor = theirs.get((block, frozenset(held), site), branch.factor) / branch.factor
            if site is not None:
                refuse_normalised(site, modules[site])
            if site is not None and not held:
                ends.append(End(site, (), site, branch.series, True, factor))
            ends += _ends(held, site, branch.series, factor)
    return list(dict.fromkeys(ends))


def _by_block(names: Iterable[str], stacks: Sequence[Stack]) -> dict[str, list[str]]:
    """The tensors of each block, without those of shortcuts."""
    blocks: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        block = block_of(name, stacks)
        if block is not None and not SHORTCUT.search(name):
            blocks.setdefault(block, []).append(name)
    return blocks


def _factors(
    model: nn.Module, shapes: Sequence[TensorShape], stacks: Sequence[Stack]
) -> dict[tuple[str, frozenset[str], str | None], float]:
    """What the target's own forward multiplies each branch by."""
    blocks, runs = _by_block([shape.name for shape in shapes], stacks), _unwrapped(model)
    matrices = matrix_names(runs, [name for inside in blocks.values() for name in inside])
    found = trace(runs, {b: inside for b, inside in blocks.items() if matrices.intersection(inside)}, matrices)
    return {} if found is None else {(b.block, frozenset(b.ends), b.site): b.factor for b in found.branches}


def notes(ends: Sequence[End], recipe: str, exponent: float) -> list[str]:
    """What the user should know: branches whose number of matrices asks for the other depth rule, and hooks.

    One matrix: branches × L^(−½) (Depth-μP 2310.02244); two or more: × 1/L (CompleteP 2505.01618). The recipe is the user's choice.
    """
    found = []
    counted = [end for end in ends if end.own != 1]
    if counted:
        names = list(dict.fromkeys(collapse(end.path) for end in counted))
        found.append(f"the target's own forward multiplies the branches that end in {', '.join(names[:3])} by ×{counted[0].own:.4g} "
                     f"of what the base's does: that counts as part of the branch multiplier")  # fmt: skip
    single = [end for end in ends if end.series == 1]
    several = [end for end in ends if (end.series or 0) > 1]
    for wrong, e, what, other in (
        (single, 1.0, "one matrix", "'depth-mup' (× L^-1/2)"), (several, 0.5, "two or more matrices", "'completep' (× 1/L)"),
    ):  # fmt: skip
        if wrong and exponent == e:
            names = list(dict.fromkeys(collapse(f"{end.path}.{(*end.attributes, '')[0]}".strip(".")) for end in wrong))
            listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            rest = "" if len(wrong) == len(single) + len(several) else ", and others do not: no one rule fits both"
            found.append(f"the residual branches that end in {listed} hold {what}{rest}; recipe {recipe!r} is kept as you chose it, "
                         f"the rule for such branches is {other}")  # fmt: skip
    return found


def _ends(names: list[str], site: str | None, series: int, own: float) -> list[End]:
    """One end per module that holds some of these tensors."""
    owners: dict[str, list[str]] = {}
    for name in names:
        owner, found, _ = name.partition(".parametrizations.")
        owner = owner if found else name.rpartition(".")[0]
        owners.setdefault(owner, []).append(name[len(owner) :].lstrip("."))
    return [End(owner, tuple(attributes), site, series, True, own) for owner, attributes in owners.items()]


def _with_siblings(found: Traced, blocks: dict[str, list[str]]) -> list[Branch]:
    """An expert that no token of the pass went to ends as its siblings do."""
    result = list(found.branches)
    for branch in found.branches:
        patterns = {collapse(end): end for end in branch.ends}
        known = {end for b in found.branches for end in b.ends}
        for name in blocks[branch.block]:
            twin = patterns.get(collapse(name))
            if twin is None or name in known or name not in found.unused:
                continue
            site = branch.site if branch.site is None else _renumbered(branch.site, twin, name)
            result.append(Branch(branch.block, (name,), site, branch.series))
    return result


def _renumbered(site: str, twin: str, name: str) -> str | None:
    """The module of `name` that corresponds to the module `site` of `twin`."""
    return ".".join(name.split(".")[: len(site.split("."))]) if twin.startswith(f"{site}.") else None


def _unused(matrices: set[str], found: Traced) -> str:
    """A matrix that the pass never met may end a branch that nobody saw, unless a sibling (an expert) ran."""
    ran = {collapse(name) for name in matrices if name not in found.unused}
    missing = sorted(name for name in matrices if name in found.unused and collapse(name) not in ran)
    return f"{missing[0]!r} takes no part in the forward pass that was traced" if missing else ""


def _unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside what compile or (Distributed)DataParallel put around it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _refuse_unordered(stacks: Sequence[Stack]) -> None:
    for stack in stacks:
        if re.search(r"(^|\.)\d+\.", stack.path) and not _SERIAL.search(stack.path):
            raise InputError(
                f"{stack.path!r} grows from {stack.base} to {stack.target}: cannot tell whether its members follow one "
                f"another or stand side by side; call it 'blocks' or 'experts', or use recipe='mup' for no depth rule"
            )


def _read(
    model: nn.Module, shapes: Sequence[TensorShape], stacks: Sequence[Stack], declared: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """What declarations, sources and names tell: the modules that end each branch, by path, with their tensors."""
    modules = {clean(path): module for path, module in model.named_modules()}
    blocks = sorted(
        {s.block for s in shapes if s.block and math.prod(s.target_shape) > 1}
    )  # also where depth alone grows
    if declared:
        return _declared(modules, shapes, blocks, declared)
    result: dict[str, tuple[str, ...]] = {}
    for block in blocks:
        if block not in modules:
            raise InputError(f"{block!r} is a bare parameter in a growing list: name the tensors that end the residual "
                             f"branches, e.g. branch_out=[{collapse(block)!r}], or use recipe='mup' for no depth rule")  # fmt: skip
        ends = ends_by_name(block, modules[block])
        found = {
            path: tensors_of(modules[path]) for path in (f"{block}.{e}".rstrip(".") for e in ends) if path in modules
        }
        for path in (f"{block}.{end}" for end in ends if f"{block}.{end}" not in modules):  # a stack of experts
            owner, _, attribute = path.rpartition(".")
            found[owner] = with_bias(modules[owner], attribute)
        check_sizes(block, found, shapes, modules)
        result |= found
    return result


def _declared(
    modules: dict[str, nn.Module], shapes: Sequence[TensorShape], blocks: list[str], patterns: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for pattern in patterns:
        paths, tensors = _matched(modules, shapes, pattern)
        for path in paths:
            if not any(path.startswith(f"{other}.") for other in paths):
                found[path] = tensors_of(modules[path])
        for name in tensors:
            owner, _, attribute = name.rpartition(".")
            found[owner] = (*found.get(owner, ()), *with_bias(modules[owner], attribute))
    for path, attributes in found.items():
        if isinstance(modules[path], nn.ParameterList | nn.ParameterDict):
            continue  # each of its tensors is one layer
        matrices = [a for a in attributes if not is_norm(modules[path]) and _parameter(modules[path], a).ndim > 1]
        if len([a for a in matrices if "parametrizations" not in a and not a.endswith("bias")]) > 1:
            raise InputError(f"branch_out: {path!r} holds {len(matrices)} matrices ({', '.join(matrices[:3])}, …); name the "
                             f"last one of each residual branch, e.g. {collapse(f'{path}.{matrices[-1]}')!r}")  # fmt: skip
    missing = [b for b in blocks if not any(p == b or p.startswith(f"{b}.") or b.startswith(f"{p}.") for p in found)]
    missing = [b for b in missing if b in modules]
    if missing:
        raise InputError(f"branch_out={list(patterns)} names no module in block {missing[0]!r}")
    return found


def check_declared(model: nn.Module, shapes: Sequence[TensorShape], patterns: Sequence[str]) -> None:
    """Raise InputError for a pattern of branch_out that matches nothing, also where no depth rule asks for it yet."""
    modules = {clean(path): module for path, module in model.named_modules()}
    for pattern in patterns:
        _matched(modules, shapes, pattern)


def _matched(modules: Iterable[str], shapes: Sequence[TensorShape], pattern: str) -> tuple[list[str], list[str]]:
    """The modules that a pattern names, and the tensors that it names beside them."""
    paths = fnmatch.filter([m for m in modules if m], pattern)
    tensors = fnmatch.filter([s.name for s in shapes], pattern)
    if not paths and not tensors:
        raise InputError(f"branch_out={pattern!r} matches no module; modules look like {', '.join(list(modules)[1:4])}")
    return paths, [n for n in tensors if not any(n.startswith(f"{p}.") for p in paths)]


def _parameter(module: nn.Module, attribute: str) -> nn.Parameter:
    return dict(module.named_parameters())[attribute]
