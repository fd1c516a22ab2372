"""Layers matched across depths by their repeated-block pattern: which base tensor is the small brother of a target's.

A stack is a path whose children are numbered (`blocks.0`, `blocks.1`, …). When base and target hold a different number of
children, first goes to first, last to last, and the ones between proportionally, among children that look alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mutransfer.errors import InputError

_DIGITS = re.compile(r"^\d+$")


@dataclass(frozen=True)
class Stack:
    """A numbered stack whose length differs between base and target: `path` in the target, children that carry tensors."""

    path: str
    base: int
    target: int


def _children(names: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """stack path → child number → relative tensor names, for every numbered level of dotted names."""
    stacks: dict[str, dict[str, list[str]]] = {}
    for name in names:
        parts = name.split(".")
        for i, part in enumerate(parts):
            if _DIGITS.match(part):
                children = stacks.setdefault(".".join(parts[:i]), {})
                children.setdefault(part, []).append(".".join(parts[i + 1 :]))
    return stacks


def _pick(position: int, of: int, among: int) -> int:
    """Which of `among` base children serves child `position` of `of`: first → first, last → last, else proportional."""
    if among == of:
        return position
    if position == 0 or among == 1:
        return 0
    if position == of - 1:
        return among - 1
    if among == 2:
        return position * 2 // of
    return 1 + (position - 1) * (among - 2) // (of - 2)


def match(
    base: Mapping[str, tuple[int, ...]], target: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, str], list[Stack]]:
    """Map every target tensor name to a base name; also the stacks whose length changed.

    `base` and `target` map names to shapes. Raises InputError naming the first tensor without a counterpart.
    """
    base_stacks, target_stacks = _children(base), _children(target)
    child_of: dict[tuple[str, str], str] = {}  # (target stack, child) -> base child
    changed: dict[tuple[str, str], Stack] = {}

    def resolve(name: str) -> str:
        parts, done = name.split("."), []
        for i, part in enumerate(parts):
            target_stack, base_stack = ".".join(parts[:i]), ".".join(done)
            if not _DIGITS.match(part) or base_stack not in base_stacks:
                done.append(part)
                continue
            key = (target_stack, part)
            if key not in child_of:
                _assign(target_stack, base_stack)
            done.append(child_of.get(key, part))
        return ".".join(done)

    def _assign(target_stack: str, base_stack: str) -> None:
        ours, theirs = target_stacks[target_stack], base_stacks[base_stack]
        if list(ours) == list(theirs):
            child_of.update({(target_stack, child): child for child in ours})
            return
        our_looks, their_looks = _looks(target_stack, ours, target), _looks(base_stack, theirs, base)
        for look in dict.fromkeys(our_looks.values()):
            alike = [child for child in ours if our_looks[child] == look]
            candidates = [child for child in theirs if their_looks[child] == look]
            if candidates:
                pairs = _pair(target_stack, base_stack, alike, candidates, ours, theirs, target, base)
                child_of.update({(target_stack, child): found for child, found in pairs.items()})
        if len(ours) != len(theirs):
            changed[(_fold(target_stack), base_stack)] = Stack(target_stack, len(theirs), len(ours))

    mapping: dict[str, str] = {}
    for name in target:
        found = name if name in base and not any(map(_DIGITS.match, name.split("."))) else resolve(name)
        if found not in base:
            near = ", ".join(list(base)[:3])
            hint = _numbered_by_name(name, base)
            raise InputError(f"{name!r} of the target has no counterpart in the base model (which has {near}, …){hint}")
        if len(base[found]) != len(target[name]):
            raise InputError(
                f"{name!r} has shape {target[name]} in the target but {base[found]} ({found!r}) in the base: "
                f"the two models must differ in sizes only"
            )
        mapping[name] = found
    used = set(mapping.values())
    orphans = [name for name in base if name not in used and collapse(name) not in {collapse(n) for n in target}]
    if orphans:
        raise InputError(f"{orphans[0]!r} of the base model has no counterpart in the target")
    stacks = list(changed.values())
    return mapping, stacks + _siblings(stacks, base_stacks, target_stacks, target)


def _looks(stack: str, children: dict[str, list[str]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple]:
    """child → what it looks like: relative names and numbers of axes, nested numbers folded."""
    return {
        child: tuple(sorted({(_fold(r), len(shapes[_join(stack, child, r)])) for r in relative}))
        for child, relative in children.items()
    }


def _pair(
    stack: str,
    base_stack: str,
    alike: list[str],
    candidates: list[str],
    ours: dict[str, list[str]],
    theirs: dict[str, list[str]],
    target: Mapping[str, tuple[int, ...]],
    base: Mapping[str, tuple[int, ...]],
) -> dict[str, str]:
    """Children that look alike, by kind where shapes tell kinds apart (first layer, hidden ones, head), else by position.

    Raises InputError where position would give a layer a counterpart of another kind: 128 for 64 here, and for 10 there.
    """

    def kinds(path: str, among: list[str], of: dict[str, list[str]], shapes: Mapping[str, tuple[int, ...]]) -> list:
        groups: dict[tuple, list[str]] = {}
        for child in among:
            sizes = tuple(sorted({(_fold(r), shapes[_join(path, child, r)]) for r in of[child]}))
            groups.setdefault(sizes, []).append(child)
        return list(groups.values())

    big, small = kinds(stack, alike, ours, target), kinds(base_stack, candidates, theirs, base)
    exact = len(big) == len(small)
    pairs: dict[str, str] = {}
    for group, partners in zip(big, small, strict=True) if exact else [(alike, candidates)]:
        for i, child in enumerate(group):
            pairs[child] = partners[_pick(i, len(group), len(partners))]
    for child, found in () if exact else list(pairs.items())[1:-1]:  # the first and the last are certain
        for relative in ours[child]:
            shape, partner = target[_join(stack, child, relative)], base.get(_join(base_stack, found, relative))
            sizes: dict[int, int] = {}
            if partner and any(sizes.setdefault(t, b) != b for t, b in zip(shape, partner, strict=True)):
                raise InputError(
                    f"{_join(stack, child, relative)!r} {shape} has no counterpart of its kind in the base, whose "
                    f"{_join(base_stack, found, relative)!r} is {partner}: take a deeper base, with every kind of layer"
                )
    return pairs


def _siblings(
    changed: list[Stack],
    base_stacks: dict[str, dict[str, list[str]]],
    target_stacks: dict[str, dict[str, list[str]]],
    shapes: Mapping[str, tuple[int, ...]],
) -> list[Stack]:
    """Stacks of the same blocks that kept their length (one stage of a ResNet): they share the residual stream."""

    def blocks(path: str) -> set[tuple]:
        looks = _looks(path, target_stacks[path], shapes).values()
        return {look for look in looks if sum(axes > 1 for _, axes in look) > 1}

    seen = {path for path in target_stacks if any(_fold(path) == _fold(s.path) for s in changed)}
    wanted = {look for stack in changed for look in blocks(stack.path)}
    return [
        Stack(path, len(base_stacks[path]), len(children))
        for path, children in target_stacks.items()
        if path not in seen and path in base_stacks and len(children) > 1 and blocks(path) & wanted
    ]


def _fold(path: str) -> str:
    """The path with every number replaced by `#`."""
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1#", path)


def _numbered_by_name(name: str, base: Mapping[str, tuple[int, ...]]) -> str:
    """What to do where blocks are attributes such as `block2`: only numbers of their own are seen as a stack."""

    def fold(path: str) -> str:
        return re.sub(r"\d+", "#", path)

    alike = any(fold(other) == fold(name) for other in base)
    return "; blocks must be numbered children (nn.ModuleList or nn.Sequential) to be matched" if alike else ""


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def collapse(name: str) -> str:
    """The name with every block number replaced by `*`: what is common to the copies of a layer."""
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name)


def block_of(name: str, stacks: Iterable[Stack]) -> str | None:
    """The path of the repeated block that holds this tensor (`blocks.3`), or None outside every changed stack."""
    patterns = {_fold(stack.path) for stack in stacks}
    parts = name.split(".")
    for i, part in enumerate(parts):
        if _DIGITS.match(part) and _fold(".".join(parts[:i])) in patterns:
            return ".".join(parts[: i + 1])
    return None
