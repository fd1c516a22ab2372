"""Initial values at the target: the base's law at std · ratio (theory §3, "Where the base's numbers come from")."""

from __future__ import annotations

import math
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mutransfer import draw
from mutransfer.errors import InputError
from mutransfer.laws import Law, measure
from mutransfer.shapes import parameters_of

if TYPE_CHECKING:
    from mutransfer.plans import Plan, Row


def initialize(plan: Plan, model: nn.Module, seed: int, redraw: bool) -> None:
    """See `Plan.initialize`."""
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise InputError(f"seed={seed!r}: write a whole number")
    rows = plan.named(model)
    drawn = [row for row, parameter in rows if redraw or parameter.is_meta or _sharded(parameter)]
    for row in drawn:
        if _wanted(plan, row).kind == "unknown":
            raise _error(f"{row.name!r}: its initial law could not be read off the base model; give plan() a base that is "
                         f"materialised, or initialise a materialised model")  # fmt: skip
    if any(parameter.is_meta for _, parameter in rows):
        _materialise(model)
        rows = plan.named(model)
    names = {row.name for row in drawn}
    same = plan.identity and plan.depth == 1.0 and all(row.base_shape == row.target_shape for row, _ in rows)
    with torch.no_grad():
        for row, parameter in rows:
            if row.name in names:
                _draw(parameter, _wanted(plan, row), seed, row.name)
            elif not same:
                _rescale(plan, row, parameter, seed)
        _clear_padding(model, {id(parameter) for row, parameter in rows if row.name in names})


def _error(message: str) -> Exception:
    from mutransfer.plans import PlanError

    return PlanError(message)


def _sharded(parameter: Tensor) -> bool:
    return hasattr(parameter, "to_local")


def _wanted(plan: Plan, row: Row) -> Law:
    """The law at the target. Standard parametrization keeps what the target's own code draws."""
    if plan.standard:
        return row.target_law
    return row.base_law.scaled(row.ratios.std)


def _materialise(model: nn.Module) -> None:
    """Storage on torch's default device for what is on meta; of its buffers only a batch norm's statistics are known."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    empty = [m for m in norms if any(buffer.is_meta for buffer in m.buffers())]
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta and module not in empty:
                raise _error(f"buffer '{path + '.' if path else ''}{name}' is on the meta device and only your code knows its "
                             f"values: build the model on a real device, or fill its buffers first")  # fmt: skip
    give_storage(model)
    for module in empty:
        module.reset_running_stats()


def give_storage(model: nn.Module) -> None:
    """Storage, of any content, on torch's default device for every tensor on meta; what is real and what is tied stays so."""
    ties = [p for p in parameters_of(model).values() if p.aliases]
    device = torch.get_default_device()
    model._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)  # to_empty, sparing what is real
    for parameter in ties:  # torch gives each name a tensor of its own
        for _, module, attribute in parameter.aliases:
            module._parameters[attribute] = parameter.module._parameters[parameter.attribute]


def _clear_padding(model: nn.Module, drawn: set[int]) -> None:
    """torch keeps the padding row of an embedding at zero, and its gradient too: a new draw must not fill it for ever."""
    for module in model.modules():
        row: Any = module.padding_idx if isinstance(module, nn.Embedding | nn.EmbeddingBag) else None
        table: Any = module._parameters.get("weight")
        if row is not None and id(table) in drawn:
            table[row].zero_()


def _draw(parameter: Any, law: Law, seed: int, name: str) -> None:
    if not _sharded(parameter):
        draw.fill(parameter, law, seed, name)
        return
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    local = parameter.to_local()
    draw.fill(local, law, seed, name, shape=parameter.shape, offset=tuple(offset))


def _rescale(plan: Plan, row: Row, parameter: Tensor, seed: int) -> None:
    """Turn the tensor's own draw into the wanted law by an affine map; by nothing at all where it has it already."""
    wanted = _wanted(plan, row)
    if plan.standard or (row.target_law.kind != "unknown" and wanted == row.target_law):
        return
    own = _own(row, parameter)
    if wanted.kind == "unknown":  # the base could not be read: keep the target's own law at the plan's ratio
        parameter.mul_(row.ratios.std)
    elif wanted.kind == "constant":
        parameter.fill_(wanted.mean)
    elif own.std == 0:
        draw.fill(parameter, wanted, seed, row.name)
    else:
        factor = wanted.std / own.std
        if math.isclose(factor, 1.0, rel_tol=1e-12) and own.mean == wanted.mean:
            return  # the same law up to the rounding of √(ratio): not a bit may change
        if own.mean or wanted.mean:
            parameter.sub_(own.mean).mul_(factor).add_(wanted.mean)
        else:
            parameter.mul_(factor)


def _own(row: Row, parameter: Tensor) -> Law:
    """The law of this very draw: the one recorded from the target's code if the values agree, else measured."""
    found, nominal = measure(parameter), row.target_law
    if nominal.kind == "unknown" or nominal.std == 0 or found.std == 0:
        return found
    tolerance = 5 / math.sqrt(2 * parameter.numel()) + 1e-3
    return nominal if abs(found.std / nominal.std - 1) < tolerance else found
