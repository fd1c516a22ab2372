"""Which class runs an optimizer of the plan: the user's own, torch's or a package's, or our Muon where torch's does not serve."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from mutransfer.errors import InputError
from mutransfer.optimizers import facts_for, optimizer_class

if TYPE_CHECKING:
    from torch import nn

    from mutransfer.plans import Plan, Row

Engine = Literal["auto", "torch", "own"]
PLANNED = ("scale", "axes", "parts", "adjust_lr_fn")
"""Settings that follow from the plan, not from the user."""

_OWN_CLASSES: dict[
    str, type
] = {}  # the user's classes seen by this process: one in a function cannot be imported by name


def remember(optimizer: Any) -> str | None:
    """`module:qualname` of an optimizer class (or instance) that the user gave; None for a name, or for facts.

    torch's element-wise classes are found by name; its Muon is kept, because a name would let ours run it.
    """
    cls = type(optimizer) if hasattr(optimizer, "param_groups") else optimizer
    if not isinstance(cls, type):
        return None
    if cls.__module__.startswith("torch.optim") and cls.__name__ != "Muon" and optimizer_class(cls.__name__) is cls:
        return None
    path = f"{cls.__module__}:{cls.__qualname__}"
    _OWN_CLASSES[path] = cls
    return path


def torch_muon() -> type[torch.optim.Optimizer] | None:
    """torch's Muon; None before torch 2.9."""
    return getattr(torch.optim, "Muon", None)


def class_of(plan: Plan, name: str, *, required: bool = True) -> Any:
    """The class that runs this optimizer: the user's own if the plan was made with one, else the one known by its name."""
    path = plan.classes.get(name)
    found = optimizer_class(name, required=required) if path is None else _OWN_CLASSES.get(path) or _imported(path)
    if found is None and named_muon(plan, name):
        from mutransfer.muon import Muon

        found = Muon
    if found is None and required:
        what = (
            f"no class for optimizer {name!r} is known"
            if path is None
            else f"the optimizer class {path!r} is not importable"
        )
        raise InputError(
            f"{what}: write optimizer = YourClass(plan.groups(model, lr=…)), or plan(…, optimizer=YourClass)"
        )
    return found


def _imported(path: str) -> Any:
    module, _, qualname = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError:
        return None
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def is_named_muon(name: str) -> bool:
    """Whether this name is one of Muon's scalings, which leaves the choice of the class to us."""
    try:
        return facts_for(name).name.startswith("muon")
    except InputError:
        return False


def named_muon(plan: Plan, name: str) -> bool:
    """Whether this optimizer of the plan is a Muon given by name and not by class."""
    return name not in plan.classes and is_named_muon(name)


def choose(
    plan: Plan, name: str, rows: Iterable[tuple[Row, nn.Parameter]], engine: Engine, asked: Mapping[str, Any]
) -> Any:
    """The class for these rows. "auto": torch's Muon where it serves, which is on an accelerator and on plain (out, in) matrices
    with no setting that only ours has; else ours, which runs float32 on a CPU, fused and stacked matrices, and kernels.

    Raises InputError for engine="torch" where torch's does not serve, and "own" for a class that the user gave.
    """
    if engine not in get_args(Engine):
        raise InputError(f"engine={engine!r}: 'auto', 'torch' or 'own'")
    if not named_muon(plan, name):
        return class_of(plan, name)
    from mutransfer.muon import Muon

    if engine == "own":
        return Muon
    theirs = torch_muon()
    why = "this torch has no Muon" if theirs is None else next(filter(None, (_unfit(row) for row, _ in rows)), None)
    if engine == "torch":
        if why is not None:
            raise InputError(f"engine='torch': {why}; leave engine out, and ours runs it")
        return theirs
    on_cpu = any(parameter.device.type == "cpu" for _, parameter in rows)
    ours = any(key in ("coefficients", "dtype") for key in asked)
    return Muon if why is not None or on_cpu or ours else theirs


def _unfit(row: Row) -> str | None:
    """Why torch's Muon cannot run this tensor as the plan means it."""
    if len(row.target_shape) != 2:
        return f"torch's Muon takes two axes, {row.name!r} has shape {row.target_shape}"
    if row.parts:
        return f"torch's Muon takes {row.name!r} as one matrix, and it holds {len(row.parts)}"
    if row.axes == ("in", "out"):
        return f"torch's Muon reads rows as fan-out, {row.name!r} is stored (in, out)"
    return None
