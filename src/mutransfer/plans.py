"""The plan: a frozen table keyed by parameter name. What must change from base to target, tensor by tensor, and why.

Nothing is hung on tensors and no layer is replaced: the plan is data, and its methods apply it to the user's own model.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from mutransfer import hooks as hook_tools
from mutransfer import sparsity, zeroing
from mutransfer.duration import Duration
from mutransfer.engines import Engine
from mutransfer.errors import InputError
from mutransfer.files import write_whole
from mutransfer.hooks import Hook
from mutransfer.laws import Law
from mutransfer.optimizers import OptimizerFacts
from mutransfer.recipes import Change, Recipe
from mutransfer.rules import Fan, Ratios
from mutransfer.shapes import parameters_of
from mutransfer.zeroing import Zero

VERSION = 1


class PlanError(InputError):
    """A model or optimizer is not what the plan says; the message names the tensor, what was found and what is due."""


@dataclass(frozen=True)
class Row:
    """Everything about one tensor: how it grows, under which optimizer, the ratios in force, and their derivation.

    `ratios` hold after absorption: `multiplier`·`branch` is what the forward pass must still carry (by a hook). `repeats`
    is the ratio of the number of copies of this tensor over depth. `derivation` is the arithmetic behind the numbers. `axes` labels
    each stored axis (out, in, kernel, stack, lookup); `parts` are the sizes along "out" of matrices fused in one tensor, at the target.
    """

    name: str
    base_name: str
    aliases: tuple[str, ...]
    role: str
    kind: str
    base_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    fan_in: Fan
    fan_out: Fan
    block: str | None
    optimizer: str
    base_law: Law
    target_law: Law
    ratios: Ratios
    repeats: float
    derivation: str
    axes: tuple[str, ...] = ()
    parts: tuple[int, ...] = ()
    density: float = 1.0


@dataclass(frozen=True)
class Plan:
    """The rows, and the choices behind them. Immutable; JSON in and out; printable; built by `mutransfer.plan`."""

    rows: tuple[Row, ...]
    facts: dict[str, OptimizerFacts]
    optimizer_name: str
    fallback: str
    classes: dict[str, str]
    recipe: str
    mode: str
    placement: str
    depth: float
    depth_exponent: float | None
    base: dict[str, Any] | None
    target: dict[str, Any] | None
    hooks: tuple[Hook, ...] = ()
    notes: tuple[str, ...] = ()
    duration: Duration | None = None
    parametrization: Recipe | None = None
    zeros: tuple[Zero, ...] = ()

    # ---------------------------------------------------------------- reading

    def __getitem__(self, name: str) -> Row:
        """The row of the parameter of this name (any of a tied tensor's names)."""
        row = self._index.get(name)
        if row is None:
            raise PlanError(f"the plan has no tensor {name!r}")
        return row

    @functools.cached_property
    def _index(self) -> dict[str, Row]:
        return {name: row for row in self.rows for name in (row.name, *row.aliases)}

    @property
    def identity(self) -> bool:
        """Whether every ratio is 1 and no hook is needed: the user's own model and optimizer, bit for bit."""
        ones = (1.0, None)
        if self.duration is not None and not self.duration.identity:
            return False
        if self.zeros or any(row.density != 1.0 for row in self.rows):
            return False
        return not self.hooks and all(all(v in ones for v in asdict(row.ratios).values()) for row in self.rows)

    @property
    def standard(self) -> bool:
        """Whether nothing is scaled at all: the user's own code at every size."""
        return self.recipe == "sp" or (self.parametrization is not None and not self.parametrization.width)

    def __str__(self) -> str:
        from mutransfer.table import render

        return render(self)

    def print(self) -> None:
        """Print the table, with the formula behind each number."""
        print(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        data = asdict(self)
        if self.duration is None:
            del data["duration"]  # plans without one read as they always did
        return {"version": VERSION, **data}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`. Raises PlanError for another version or missing fields."""
        if not isinstance(data, Mapping):
            raise PlanError(f"not a plan: a {type(data).__name__}; give the mapping that to_dict returned")
        if data.get("version") != VERSION:
            raise PlanError(f"plan version {data.get('version')!r}; this release reads version {VERSION}")
        try:
            fields = {key: value for key, value in data.items() if key != "version"}
            fields["rows"] = tuple(_row(row) for row in fields["rows"])
            fields["facts"] = {name: _typed(OptimizerFacts, facts) for name, facts in fields["facts"].items()}
            fields["hooks"] = tuple(_typed(Hook, hook) for hook in fields["hooks"])
            fields["zeros"] = tuple(_typed(Zero, zero) for zero in fields.get("zeros", ()))
            if fields.get("parametrization") is not None:
                fields["parametrization"] = _recipe(fields["parametrization"])
            fields["notes"] = tuple(fields["notes"])
            if fields.get("duration") is not None:
                fields["duration"] = Duration.from_dict(fields["duration"])
            if path := fields.pop("optimizer_path", None):  # plans saved when one optimizer ran everything
                fields["classes"] = {fields["optimizer_name"]: path}
            fields.setdefault("classes", {})
            return _typed(cls, fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"not a plan: {type(error).__name__}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, atomically. Raises InputError when the folder cannot be written."""
        write_whole(_path(path), json.dumps(self.to_dict(), indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan saved by `save`. Raises InputError for a missing or malformed file."""
        try:
            data = json.loads(_path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read plan {str(path)!r}: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"{str(path)!r} is not a plan: {error}") from error
        if not isinstance(data, dict):
            raise InputError(f"{str(path)!r} is not a plan: expected a JSON object")
        return cls.from_dict(data)

    # ---------------------------------------------------------------- applying

    def initialize(self, model: nn.Module, seed: int = 0, *, redraw: bool = False) -> nn.Module:
        """Give every tensor the base's law at std·ratio, in place, and attach the plan's hooks. Returns the model.

        A materialised tensor keeps its own draw, rescaled (ratio 1 changes no bit); a meta or sharded one, or any with
        `redraw=True`, is drawn from (seed, name, position) alone. A meta model is materialised on torch's default device.
        Raises PlanError for a tensor whose shape is not the target's, or a buffer on meta that only the user can fill.
        """
        from mutransfer.initialize import initialize

        sparsity.start(self, model, redraw)
        initialize(self, model, seed, redraw)
        zeroing.apply(self, model)
        sparsity.attach(self, model, seed)
        return self.attach(model)

    def attach(self, model: nn.Module) -> nn.Module:
        """Register the plan's multiplier hooks on a model whose weights are loaded from elsewhere (idempotent).

        Under a density below 1 it also gets its masks, which a state dict loaded afterwards fills with those that were saved.
        """
        _check_model(model)
        hook_tools.attach(model, self.hooks)
        sparsity.attach(self, model)
        return model

    def groups(
        self,
        model: nn.Module,
        lr: float,
        weight_decay: float | None = None,
        eps: float | None = None,
        overrides: Mapping[str, Mapping[str, float]] | None = None,
        **memories: Any,
    ) -> list[dict[str, Any]]:
        """Param groups for the user's own optimizer class: the base's lr, decay and eps times each tensor's ratios.

        One group per distinct setting. `overrides` gives other *base* values by pattern, {"*.bias": {"weight_decay": 0}}.
        A plan with a duration changes memories too: give the base's betas, momentum or alpha here and not to the class.
        Each group also holds `names`, `optimizer` (its canonical name) and `base` (the base's own values) for `verify`.
        """
        from mutransfer.duration import given_memories
        from mutransfer.groups import groups

        given = given_memories(self.duration, self.facts, memories)
        return groups(self, model, lr, weight_decay, eps, overrides, memories=given)

    def optimizer(
        self,
        model: nn.Module,
        lr: float,
        weight_decay: float | None = None,
        *,
        overrides: Mapping[str, Mapping[str, float]] | None = None,
        engine: Engine = "auto",
        each: Mapping[str, Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> torch.optim.Optimizer:
        """A torch optimizer for this model from the base's settings; Muon + AdamW behind one interface where planned.

        `settings` go to every class that takes them, `each={"adamw": {"betas": …}}` to one of the mix. A Muon given by name runs in
        torch's class or ours, as `engine` says: "torch", "own", or "auto" (torch's where it serves, see `engines.choose`).
        """
        from mutransfer.groups import optimizer

        made = optimizer(self, model, lr, weight_decay, overrides, engine, each, settings)
        if any(row.density < 1 for row in self.rows):
            made.register_step_post_hook(sparsity.remask)
        return made

    def clip_grad_norm_(self, model: nn.Module, max_norm: float) -> Tensor:
        """Clip by a norm that means the same at every size; returns it (as torch's does), and equals torch's at ratio 1.

        Each tensor's ‖G‖_F is divided by its expected ratio c·α·√(a/b)/t (theory §4, §6) and the copies over depth are
        averaged, not summed: `Σ ‖G‖² / (expected²·L)`. All gradients are then scaled by min(1, max_norm/norm).
        """
        from mutransfer.clip import clip_grad_norm_

        return clip_grad_norm_(self, model, max_norm)

    def verify(self, optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> dict[str, float]:
        """Are the ratios still what the plan says? Returns {"lr": the base LR implied now}; any time.

        Raises PlanError naming the first tensor whose LR, decay, eps (or, in a plan with a duration, betas) has left its ratio (a schedule that set absolute
        rates, a state loaded from another width), whose state has another shape, or whose multiplier hook is missing.
        """
        from mutransfer.groups import verify

        if model is not None:
            sparsity.check(self, model)
        return verify(self, optimizer, model)

    def named(self, model: nn.Module) -> list[tuple[Row, nn.Parameter]]:
        """Each row with this model's parameter. Raises PlanError where names or shapes are not the plan's."""
        _check_model(model)
        tensors = dict(parameters_of(model))
        index = self._index
        result = []
        prefix = "module." if all(name.startswith("module.") for name in tensors) else ""  # DDP
        for name, parameter in tensors.items():
            row = index.get(name) or index.get(name.removeprefix(prefix))
            if row is None:
                raise PlanError(f"{name!r} {parameter.shape} is not in the plan: it was made for another model")
            if parameter.shape != row.target_shape:
                raise PlanError(f"{name!r} has shape {parameter.shape}; the plan's target has {row.target_shape}"
                                + (" (this is its base)" if parameter.shape == row.base_shape else ""))  # fmt: skip
            result.append((row, parameter.module._parameters[parameter.attribute]))
        missing = {row.name for row in self.rows} - {row.name for row, _ in result}
        if missing:
            raise PlanError(f"the model lacks {sorted(missing)[0]!r}, which the plan has")
        return result


def _recipe(data: Mapping[str, Any]) -> Recipe:
    fields = dict(data)
    changes = ({**change, "kinds": tuple(change["kinds"])} for change in fields.get("changes", ()))
    fields["changes"] = tuple(_typed(Change, change) for change in changes)
    fields["multipliers"] = tuple((kind, factor) for kind, factor in fields.get("multipliers", ()))
    fields["zero"] = tuple(fields.get("zero", ()))
    return Recipe(**fields)


def _row(data: Mapping[str, Any]) -> Row:
    fields = dict(data)
    for key in ("fan_in", "fan_out"):
        fields[key] = _typed(Fan, fields[key])
    for key in ("base_law", "target_law"):
        fields[key] = _typed(Law, fields[key])
    fields["ratios"] = _typed(Ratios, fields["ratios"])
    for key in ("aliases", "base_shape", "target_shape", "axes", "parts"):
        fields[key] = tuple(fields.get(key, ()))
    return _typed(Row, fields)


_Class = TypeVar("_Class")


def _typed(cls: type[_Class], fields: Mapping[str, Any]) -> _Class:
    """An instance of this dataclass, every value of the type that the class declares. Raises TypeError, ValueError."""
    for key, hint in _hints(cls).items():
        if key in fields and not _fits(fields[key], hint):
            raise TypeError(f"{key}={fields[key]!r:.60} in {cls.__name__}")
    return cls(**fields)


_hints = functools.cache(get_type_hints)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return type(value) is int
    return hint is Any or isinstance(value, hint)


def _path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path={path!r}: write the file's name, such as 'plan.json'")
    return Path(path)


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise PlanError(f"a {type(model).__name__} is no model: give the nn.Module that the plan was made for")
