"""The plan from the small model to the big one, and the multipliers that the big model's function needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mutransfer import hooks
from mutransfer.build import plan as make_plan
from mutransfer.errors import InputError
from mutransfer.hooks import Hook
from mutransfer.optimizers import facts_for
from mutransfer.plans import Plan
from mutransfer.shapes import compare_with_stacks, parameters_of


def relative_plan(
    small: nn.Module, big: nn.Module, optimizer: Any = None, plan: Plan | None = None, **reading: Any
) -> Plan:
    """The plan from the small model to the big one: the given one, or made with the same recipe, placement and optimizers.

    `reading` are the options of `mutransfer.plan` that answer what shapes leave open: axes, roles, branch_out, head_size, fused.
    """
    if plan is not None:
        plan.named(big)
        if plan.standard:
            raise InputError(
                f"plan: recipe {plan.recipe!r} scales nothing, and copies need rates of their own: leave plan= out"
            )
        if plan.placement == "unit":
            raise InputError(
                "plan: placement 'unit' keeps every weight at size 1 by hooks of its own, which copies do not follow: leave plan= out"
            )
        shapes = {p.name: p.shape for p in parameters_of(small).values()}
        if all(shapes.get(row.base_name) == row.base_shape for row in plan.rows):
            return plan
    recipe: Any = "mup" if plan is None or plan.parametrization is None else plan.parametrization
    placement = "absorbed" if plan is None else plan.placement
    if plan is not None and plan.parametrization is not None:  # what it changes at the base the small model has already
        recipe = replace(plan.parametrization, attention="base", multipliers=(), zero=())
    return make_plan(
        big, base=small, optimizer=_optimizers(small, big, optimizer), recipe=recipe, placement=placement, **reading
    )


def _optimizers(small: nn.Module, big: nn.Module, optimizer: Any) -> Any:
    """What `mutransfer.plan` takes as its optimizer: one, or one by tensor of the big model."""
    if optimizer is None:
        return "adamw"
    every = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    parts = [part for one in every for part in getattr(one, "parts", [one])]
    names = {id(p.module._parameters[p.attribute]): name for name, p in parameters_of(small).items()}
    of: dict[str, Any] = {}
    for part in parts:
        if not isinstance(part, torch.optim.Optimizer):
            raise InputError(
                f"a {type(part).__name__} is no optimizer: give the torch optimizer that trains the small model"
            )
        facts = facts_for(part)
        whole: Any = type(part) if facts_for(type(part)) == facts else facts
        for group in part.param_groups:
            for p in group["params"]:
                if id(p) in names:
                    of[names[id(p)]] = group["optimizer"] if "base" in group else whole
    if len({repr(one) for one in of.values()}) == 1 and len(of) == len(names):
        return next(iter(of.values()))
    shapes, _ = compare_with_stacks(small, big, strict=False)
    return {shape.name: of.get(shape.base_name, "adamw") for shape in shapes}


def multiplier_hooks(
    small: nn.Module, big: nn.Module, relative: Plan, plan: Plan | None = None, more: Mapping[str, float] | None = None
) -> tuple[Hook, ...]:
    """The multipliers that the big model's function needs: the small model's own, times those of the plan, times `more`.

    Raises InputError where it carries others already, and where a user's plan from another base wants others.
    """
    ours = {(hook.module, hook.where): hook for hook in hooks.attached(big)}
    theirs = {(hook.module, hook.where): hook.factor for hook in hooks.attached(small)}
    sources = {row.name.rpartition(".")[0]: row.base_name.rpartition(".")[0] for row in relative.rows}
    due: dict[tuple[str, Any], Hook] = {(hook.module, hook.where): hook for hook in relative.hooks}
    for path in dict.fromkeys([*(p for p, _ in due), *sources, *(p for p, _ in theirs)]):
        for where in ("input", "output"):
            inherited = theirs.get((sources.get(path, path), where), 1.0)
            known = due.get((path, where))
            if inherited != 1.0:
                factor = inherited * (known.factor if known else 1.0)
                reason = known.reason if known else "the small model's own"
                due[path, where] = Hook(path, where, factor, reason)
    for path, factor in (more or {}).items():
        if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 < abs(factor) < math.inf:
            raise InputError(f"multipliers={{{path!r}: {factor!r}}}: write a number")
        known = due.get((path, "output"))
        due[path, "output"] = Hook(path, "output", factor * (known.factor if known else 1.0), "given")
    for key, hook in due.items():
        present = ours.pop(key, None)
        if present is not None and abs(present.factor / hook.factor - 1) > 1e-6:
            raise InputError(f"module {hook.module!r} of the big model carries ×{present.factor:g} where growing needs "
                             f"×{hook.factor:g}: give a model without hooks, or the plan= that they come from")  # fmt: skip
        if present is not None:
            due[key] = present
    for (path, _), hook in ours.items():
        if hook.factor != 1.0:
            raise InputError(f"module {path!r} of the big model carries ×{hook.factor:g}, which the small model does not: "
                             f"give the plan= that it comes from, or a model without hooks")  # fmt: skip
    wanted = tuple(hook for hook in due.values() if abs(hook.factor - 1) > 1e-12)
    if plan is None or plan is relative:
        return wanted
    given, found = ({(h.module, h.where): h for h in hooks_ if h.factor != 1.0} for hooks_ in (plan.hooks, wanted))
    for key in given.keys() | (found.keys() if not more else set()):
        due_, is_ = (side[key].factor if key in side else 1.0 for side in (found, given))
        if not more and not math.isclose(due_, is_, rel_tol=1e-6):
            raise InputError(f"plan: it multiplies module {key[0]!r} by {is_:g}, and the grown model needs ×{due_:g} there, because the plan of the small model "
                             f"treats that tensor otherwise (an axis that grows now did not grow then): leave plan= out")  # fmt: skip
    return tuple(
        given.get((hook.module, hook.where), hook) for hook in wanted
    )  # the plan's own, so that plan.verify finds them


def check_rates(plan: Plan | None, relative: Plan, optimizer: Any, big: nn.Module) -> None:
    """A user's plan from another base must find its own ratios in the grown optimizer, where its groups are a plan's."""
    if plan is None or plan is relative or isinstance(optimizer, list):
        return
    if all("base" in group for group in optimizer.param_groups):
        try:
            plan.verify(optimizer, big)
        except InputError as error:
            raise InputError(
                f"plan: the small model's optimizer was not built by the same rule ({error}): leave plan= out"
            ) from error
