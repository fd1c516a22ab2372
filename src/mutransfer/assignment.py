"""Which optimizer runs which tensor: one for all, a matrix optimizer with a fallback, or any split by position or pattern."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mutransfer import fused as fused_matrices
from mutransfer.engines import is_named_muon, remember
from mutransfer.errors import InputError
from mutransfer.matrices import inner_matrices, is_matrix
from mutransfer.optimizers import OptimizerFacts, facts_for
from mutransfer.shapes import TensorShape, lookup

PLACES = ("input", "hidden", "output", "vector")
"""Where a tensor stands, told by its place and not by growth, which a base plan (ratio 1) cannot show."""


@dataclass(frozen=True)
class Assigned:
    """One tensor's optimizer. `logical`: its scaling knows which axis is fan-in; else it reads rows as out, as stored."""

    name: str
    facts: OptimizerFacts
    logical: bool
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """The optimizer of every tensor by name; the facts by optimizer name; the user's classes; what the plan must note."""

    of: Mapping[str, Assigned]
    facts: dict[str, OptimizerFacts]
    classes: dict[str, str]
    main: str
    fallback: str
    notes: tuple[str, ...]


def assign(
    optimizer: Any,
    fallback: Any,
    shapes: Sequence[TensorShape],
    roles: Mapping[str, str] | None,
    fused: Any,
) -> Assignment:
    """From the user's `optimizer` (a name, class, facts, or {place or pattern: one of these}) to every tensor's.

    Raises InputError for tensors without an optimizer, a pattern that matches nothing, and a matrix optimizer given to
    embeddings, vectors or (where its class takes two axes only) stacks and kernels.
    """
    asked = optimizer if isinstance(optimizer, Mapping) else None
    choices = {"hidden": optimizer, "*": fallback} if asked is None else dict(asked)
    if not choices:
        raise InputError("optimizer={}: write places or patterns, such as {'hidden': 'muon', '*': 'adamw'}")
    made = {key: _choice(value) for key, value in choices.items()}
    main = next(iter(made.values()))
    wide = all(one.logical for one in made.values() if one.facts.matrix_only)
    told = fused_matrices.declared(fused, shapes)
    inner, disagreements = inner_matrices(shapes, roles, stored_flat=not wide)
    matrix = any(one.facts.matrix_only for one in made.values())
    if asked is None and not main.facts.matrix_only:
        made = {"*": main}
    elif asked is None and made["*"].facts.matrix_only:
        raise InputError(
            f"fallback={fallback!r} works on matrices only; name one for embeddings and vectors, e.g. 'adamw'"
        )
    places = {shape.name: _place(shape, shapes, inner, roles) for shape in shapes}
    _check_keys(made, shapes, places)
    found: dict[str, Assigned] = {}
    notes: list[str] = list(disagreements) if matrix else []
    for shape in shapes:
        one = _of(shape, places[shape.name], made)
        if one.facts.matrix_only:
            _refuse(shape, one, asked)
            if one.logical:
                sizes, note = fused_matrices.parts(shape, told)
                one = Assigned(one.name, one.facts, True, sizes)
                notes += [note] if note else []
        found[shape.name] = one
    if asked is not None:
        _check_order(made, shapes, places)
    used = dict.fromkeys(one.name for one in found.values())
    facts = {one.name: one.facts for one in made.values() if one.name in used or asked is None}
    paths = {one.name: remember(value) for one, value in zip(made.values(), choices.values(), strict=False)}
    return Assignment(
        found,
        facts,
        {name: path for name, path in paths.items() if path is not None},
        main.name,
        made["*"].name if "*" in made else main.name,
        tuple(notes),
    )


def _choice(value: Any) -> Assigned:
    facts = facts_for(value)
    name = (
        value.lower() if isinstance(value, str) else value.__name__.lower() if isinstance(value, type) else facts.name
    )
    return Assigned(name, facts, isinstance(value, str) and is_named_muon(value))


def _place(shape: TensorShape, shapes: Sequence[TensorShape], inner: set[str], roles: Mapping[str, str] | None) -> str:
    declared = lookup(roles, shape.name)
    if declared is not None:
        return "vector" if declared == "scalar" else str(declared)
    if shape.name in inner:
        return "hidden"
    if "lookup" in shape.axes:
        return "input"
    if "in" not in shape.axes:
        return "vector"
    layers = [s for s in shapes if "in" in s.axes or "lookup" in s.axes]
    return "input" if shape is layers[0] else "output"


def _of(shape: TensorShape, place: str, made: Mapping[str, Assigned]) -> Assigned:
    key = _matches(shape, place, made)
    if key is not None:
        return made[key]
    raise InputError(
        f"optimizer={{{', '.join(map(repr, made))}: …}} leaves {shape.name!r} ({place}) without an optimizer; add '*': 'adamw'"
    )


def _check_keys(made: Mapping[str, Assigned], shapes: Sequence[TensorShape], places: Mapping[str, str]) -> None:
    names = [name for shape in shapes for name in (shape.name, *shape.aliases)]
    for key in made:
        if not isinstance(key, str):
            raise InputError(f"optimizer={{{key!r}: …}}: write a place ({', '.join(PLACES)}) or a pattern over names")
        if key in PLACES or key == "*" or any(lookup({key: True}, name) for name in names):
            continue
        close = difflib.get_close_matches(key, PLACES, n=1)
        hint = f"did you mean {close[0]!r}? places are" if close else "places are"
        raise InputError(
            f"optimizer={{{key!r}: …}} matches no tensor: {hint} {', '.join(PLACES)}; names look like {', '.join(names[:3])}"
        )


def _check_order(made: Mapping[str, Assigned], shapes: Sequence[TensorShape], places: Mapping[str, str]) -> None:
    """Raise InputError for a rule whose tensors all belong to rules before it: the first that matches decides."""
    for key in made:
        alone = {key: made[key]}
        mine = [s for s in shapes if _matches(s, places[s.name], alone)]
        if mine and not any(_matches(s, places[s.name], made) == key for s in mine):
            first = _matches(mine[0], places[mine[0].name], made)
            raise InputError(f"optimizer={{…, {key!r}: {made[key].name!r}}} never acts: {first!r} stands before it and matches first; "
                             f"put {key!r} first")  # fmt: skip


def _matches(shape: TensorShape, place: str, made: Mapping[str, Assigned]) -> str | None:
    """The first key that this tensor answers to."""
    names = (shape.name, *shape.aliases)
    for key in made:
        if key == place or (key not in PLACES and any(lookup({key: True}, name) for name in names)):
            return key
    return None


def _refuse(shape: TensorShape, one: Assigned, asked: Mapping[str, Any] | None) -> None:
    """A matrix optimizer on something that is no matrix, or whose logical fans it would misread."""
    if is_matrix(shape) and (one.logical or len(shape.target_shape) == 2):
        return
    what = "takes two axes only" if is_matrix(shape) else "is a function of a matrix"
    told = f"axes={{{shape.name!r}: 'out in'}}" if "lookup" in shape.axes else "another optimizer for it"
    raise InputError(
        f"optimizer {one.name!r} {what}; {shape.name!r} has shape {shape.target_shape} with axes "
        f"({', '.join(shape.axes)}): give {told}, such as optimizer={{'hidden': {one.name!r}, '*': 'adamw'}}"
    )
