"""`mt.plan`: from the user's factory (built on the meta device, no memory) or from two modules, to the finished table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mutransfer import branches
from mutransfer.construct import Factory, check_third_size, confirmed, construct, measured
from mutransfer.errors import InputError
from mutransfer.groups import remember
from mutransfer.laws import Law
from mutransfer.optimizers import OptimizerFacts, facts_for
from mutransfer.plans import Plan
from mutransfer.recipes import recipe_named
from mutransfer.rules import MODES, Mode
from mutransfer.shapes import compare_with_stacks
from mutransfer.solver import Solver

_DEPTH_KEY = re.compile(r"(^|_)(depth|n_?layers?|layers?|n_?blocks?|blocks|stages)$", re.IGNORECASE)


def plan(
    model: Factory | nn.Module,
    *,
    base: Mapping[str, Any] | nn.Module,
    target: Mapping[str, Any] | None = None,
    optimizer: str | type | OptimizerFacts = "adamw",
    recipe: str = "mup",
    mode: Mode = "exact",
    placement: str = "absorbed",
    fallback: str = "adamw",
    axes: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    branch_out: str | Sequence[str] = (),
    head_size: tuple[int, int] | None = None,
) -> Plan:
    """What must change from base to target, tensor by tensor: the spectral condition solved for the user's own model.

    `model` is a factory, called as `model(**base)` and `model(**target)` on the meta device, or the target module itself
    with `base` the base module. `optimizer` is a name, a class, or OptimizerFacts; one that works on matrices runs the hidden
    matrices, `fallback` the rest. `placement` "absorbed" leaves the forward untouched wherever the gauge allows it;
    "multiplier" carries output and branch multipliers by hooks. `axes`, `roles`, `branch_out` and `head_size` answer what
    shapes and names leave open. Source of every number: `rules.py`.
    Raises InputError for anything ambiguous, naming the tensor, both shapes and the line to write.
    """
    chosen = recipe_named(recipe)
    if placement not in ("absorbed", "multiplier"):
        raise InputError(f"placement={placement!r}: 'absorbed' or 'multiplier'")
    if mode not in MODES:
        raise InputError(f"mode={mode!r}: one of {', '.join(MODES)}")
    patterns = [branch_out] if isinstance(branch_out, str) else branch_out
    _check_options(axes, roles, patterns, head_size)
    main, rest = facts_for(optimizer), facts_for(fallback)
    if rest.matrix_only:
        raise InputError(
            f"fallback={fallback!r} works on matrices only; name one for embeddings and vectors, e.g. 'adamw'"
        )
    names = _key(optimizer, main), fallback if main.matrix_only else _key(optimizer, main)
    big, big_laws, small, small_laws, sizes = _build(model, base, target, axes, roles)
    shapes, stacks = compare_with_stacks(small, big, axes=axes, roles=roles)
    if sizes and sizes[0] != sizes[1] and not stacks and all(s.base_shape == s.target_shape for s in shapes):
        raise InputError(f"base={sizes[0]} and target={sizes[1]} give the same shapes: the factory does not use them")
    serial = branches.depth_stacks(stacks)
    depth = branches.depth_ratio(serial)
    if sizes and depth == 1.0 and chosen.depth_exponent is not None:
        _refuse_hidden_depth(chosen.name, *sizes)
    solver = Solver(
        chosen, main, rest, names, mode, placement, depth, serial, shapes, big, small, big_laws, roles, sizes is None
    )
    rows = solver.rows(small_laws, patterns, head_size)
    return Plan(
        rows=tuple(rows),
        facts={names[0]: main} | ({names[1]: rest} if main.matrix_only else {}),
        optimizer_name=names[0],
        fallback=names[1],
        optimizer_path=remember(optimizer),
        recipe=chosen.name,
        mode=mode,
        placement=placement,
        depth=depth,
        depth_exponent=chosen.depth_exponent,
        base=_plain(sizes[0]) if sizes else None,
        target=_plain(sizes[1]) if sizes else None,
        hooks=tuple(solver.hooks),
        notes=tuple(dict.fromkeys(solver.notes)),
    )


def _check_options(axes: Any, roles: Any, branch_out: Any, head_size: Any) -> None:
    for option, value in (("axes", axes), ("roles", roles)):
        if value is not None and not isinstance(value, Mapping):
            raise InputError(f"{option}={value!r}: write patterns and labels, such as {option}={{'blocks.*.w': …}}")
    if not isinstance(branch_out, list | tuple) or not all(isinstance(pattern, str) for pattern in branch_out):
        raise InputError(f"branch_out={branch_out!r}: write patterns over paths, such as branch_out=['blocks.*.out']")
    pair = isinstance(head_size, list | tuple) and len(head_size) == 2
    if head_size is not None and not (pair and all(type(size) is int and size > 0 for size in head_size)):
        raise InputError(f"head_size={head_size!r}: write head_size=(base, target), such as head_size=(64, 128)")


def _key(optimizer: Any, facts: OptimizerFacts) -> str:
    if isinstance(optimizer, str):
        return optimizer.lower()
    return optimizer.__name__.lower() if isinstance(optimizer, type) else facts.name


def _refuse_hidden_depth(recipe: str, base: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    for key, value in target.items():
        if _DEPTH_KEY.search(key) and key in base and base[key] != value:
            raise InputError(f"{key}={base[key]} → {value}, but no repeated blocks grow (one block applied again and again?): "
                             f"recipe={recipe!r} has no depth to see; use recipe='mup', which has no depth rule")  # fmt: skip


def _plain(value: Any) -> Any:
    """Sizes as JSON can hold them, so that a plan read back equals the one that was saved."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _build(
    model: Factory | nn.Module,
    base: Mapping[str, Any] | nn.Module,
    target: Mapping[str, Any] | None,
    axes: Mapping[str, str] | None,
    roles: Mapping[str, str] | None,
) -> tuple[nn.Module, dict[str, Law], nn.Module, dict[str, Law], tuple[Mapping[str, Any], Mapping[str, Any]] | None]:
    if isinstance(model, nn.Module):
        if not isinstance(base, nn.Module):
            raise InputError("with a module as the target, base must be a module too: plan(model, base=base_model)")
        if target is not None:
            raise InputError("with a module as the model, target is the model itself: leave target out")
        return model, measured(model), base, measured(base), None
    if not callable(model):
        raise InputError(f"model={model!r}: give a factory make_model(**sizes) -> nn.Module, or a module")
    if not isinstance(base, Mapping) or not isinstance(target, Mapping):
        raise InputError(
            "with a factory, base and target are its arguments: base=dict(width=256), target=dict(width=2048)"
        )
    small, small_laws = construct(model, base)
    big, big_laws = construct(model, target)
    check_third_size(model, base, target, small, big, axes, roles)
    small_laws, big_laws = confirmed(model, base, small_laws, big_laws, small, target)
    return big, big_laws, small, small_laws, (base, target)
