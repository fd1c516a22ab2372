"""`mt.plan`: from the user's factory (built on the meta device, no memory) or from two modules, to the finished table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mutransfer import branches, sparsity
from mutransfer.assignment import assign
from mutransfer.construct import Factory, check_third_size, confirmed, construct, measured
from mutransfer.duration import Duration
from mutransfer.errors import InputError
from mutransfer.laws import Law
from mutransfer.optimizers import OptimizerFacts, facts_for
from mutransfer.plans import Plan
from mutransfer.recipes import PLACEMENTS, Recipe, chosen_recipe
from mutransfer.rules import MODES, Mode
from mutransfer.shapes import compare_with_stacks
from mutransfer.solver import Solver

_DEPTH_KEY = re.compile(r"(^|_)(depth|n_?layers?|layers?|n_?blocks?|blocks|stages)$", re.IGNORECASE)


def plan(
    model: Factory | nn.Module,
    *,
    base: Mapping[str, Any] | nn.Module,
    target: Mapping[str, Any] | None = None,
    optimizer: str | type | OptimizerFacts | Mapping[str, str | type | OptimizerFacts] | None = None,
    recipe: str | Recipe = "mup",
    mode: Mode = "exact",
    placement: str | None = None,
    fallback: str = "adamw",
    axes: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    branch_out: str | Sequence[str] = (),
    head_size: tuple[int, int] | None = None,
    fused: Mapping[str, int | Sequence[int]] | None = None,
    batch: tuple[float, float] | None = None,
    tokens: tuple[float, float] | None = None,
    steps: tuple[float, float] | None = None,
    duration: str | None = None,
    density: float | tuple[float, float] | None = None,
) -> Plan:
    """What must change from base to target, tensor by tensor: the spectral condition solved for the user's own model.

    `model` is a factory, called as `model(**base)` and `model(**target)` on the meta device, or the target module itself
    with `base` the base module. `optimizer` is a name, a class, or OptimizerFacts; one that works on matrices runs the hidden
    matrices, `fallback` the rest; a mapping splits otherwise, by place (input, hidden, output, vector) or name pattern, first match:
    {"hidden": "muon-kimi", "output": "sgd", "*": "adamw"}. `placement` "absorbed" leaves the forward untouched wherever the gauge allows it;
    "multiplier" carries output and branch multipliers by hooks. `axes`, `roles`, `branch_out`, `head_size` and `fused` (how many
    matrices a tensor holds along its fan-out) answer what shapes and names leave open. Source of every number: `rules.py`.
    `batch`, and `tokens` or `steps`, are (base, target) of the whole run: with the rule `duration` ("completed-p", "sde" or "ema", all
    uncertain, see `duration.py`) the plan changes lr, betas, eps and decay for them too; without them it knows nothing of batch and length.
    `recipe` is a name or a `Recipe`; its own optimizer and placement hold where none is given (else "adamw", "absorbed"). `density`
    keeps that fraction of every hidden matrix, of a dense base, or of one as sparse as the first of two numbers (`sparsity.py`).
    `placement` "unit" gives every weight std 1 and carries the rest by hooks (`unit.py`).
    Raises InputError for anything ambiguous, naming the tensor, both shapes and the line to write.
    """
    chosen = chosen_recipe(recipe)
    optimizer = chosen.optimizer or "adamw" if optimizer is None else optimizer
    placement = chosen.placement or "absorbed" if placement is None else placement
    if placement not in PLACEMENTS:
        raise InputError(f"placement={placement!r}: {', '.join(map(repr, PLACEMENTS[:-1]))} or {PLACEMENTS[-1]!r}")
    sparse = sparsity.parse(density)
    if not chosen.width and sparse != (1.0, 1.0):
        raise InputError(f"density={density!r}: recipe={chosen.name!r} scales nothing; use recipe='supar' or 'mup'")
    if mode not in MODES:
        raise InputError(f"mode={mode!r}: one of {', '.join(MODES)}")
    patterns = [branch_out] if isinstance(branch_out, str) else branch_out
    _check_options(axes, roles, patterns, head_size)
    for given in (*(optimizer.values() if isinstance(optimizer, Mapping) else (optimizer,)), fallback):
        facts_for(given)  # an unknown one is an error before anything is built
    big, big_laws, small, small_laws, sizes = _build(model, base, target, axes, roles)
    shapes, stacks = compare_with_stacks(small, big, axes=axes, roles=roles)
    if sizes and sizes[0] != sizes[1] and not stacks and all(s.base_shape == s.target_shape for s in shapes):
        raise InputError(f"base={sizes[0]} and target={sizes[1]} give the same shapes: the factory does not use them")
    serial = branches.depth_stacks(stacks)
    depth = branches.depth_ratio(serial)
    if sizes and depth == 1.0 and chosen.depth_exponent is not None:
        _refuse_hidden_depth(chosen.name, *sizes)
    assigned = assign(optimizer, fallback, shapes, roles, fused)
    longer = Duration.of(duration, batch, tokens, steps, assigned.facts)
    solver = Solver(
        chosen, assigned.of, mode, placement, depth, serial, shapes, big, small, big_laws, sizes is None, roles, sparse
    )
    rows = solver.rows(small_laws, patterns, head_size)
    return Plan(
        rows=tuple(rows),
        facts=assigned.facts,
        optimizer_name=assigned.main,
        fallback=assigned.fallback,
        classes=assigned.classes,
        recipe=chosen.name,
        mode=mode,
        placement=placement,
        depth=depth,
        depth_exponent=chosen.depth_exponent,
        base=_plain(sizes[0]) if sizes else None,
        target=_plain(sizes[1]) if sizes else None,
        hooks=tuple(solver.hooks),
        notes=tuple(dict.fromkeys((*assigned.notes, *solver.notes))),
        duration=longer,
        parametrization=chosen,
        zeros=tuple(solver.zeros),
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
