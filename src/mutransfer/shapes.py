"""Which axes grow: base against target shapes → role and logical fans of every tensor.

Roles by which fan grows: both → hidden, only fan-out → input (embeddings, first layers), only fan-in → output (heads),
a tensor without fan-in that grows → vector (gains, biases), nothing → scalar. Pure arithmetic on names and shapes; modules
may live on the meta device.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from mutransfer import axes as axis_rules
from mutransfer.blocks import Stack, block_of, collapse, match
from mutransfer.errors import InputError
from mutransfer.rules import ROLES, Fan


@dataclass(frozen=True)
class TensorShape:
    """One tensor at base and target. `fan_in` of a lookup or a vector is 1; `kind` is `ModuleType.attribute`.

    `aliases` are the other names of a tied tensor, whose `role` is then the first name's (an embedding's: "input") and
    `tied_output` tells that it also serves as a head. `block` is the repeated residual block it sits in, if depth grows.
    """

    name: str
    base_name: str
    role: str
    kind: str
    axes: tuple[str, ...]
    base_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    fan_in: Fan
    fan_out: Fan
    aliases: tuple[str, ...] = ()
    tied_output: bool = False
    block: str | None = None


@dataclass(frozen=True)
class Parameter:
    """Where a parameter lives: its first name, other names, owning module and attribute."""

    name: str
    module: nn.Module
    attribute: str
    shape: tuple[int, ...]
    aliases: tuple[tuple[str, nn.Module, str], ...] = ()


def parameters_of(model: nn.Module) -> dict[str, Parameter]:
    """Every distinct parameter by its first name, tied names gathered. Wrappers' prefixes (compile, DDP) are dropped."""
    first: dict[int, str] = {}
    found: dict[str, Parameter] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, tensor in module._parameters.items():
            if tensor is None:
                continue
            name = clean(f"{path}.{attribute}" if path else attribute)
            if id(tensor) in first:
                known = found[first[id(tensor)]]
                if name != known.name:
                    aliases = (*known.aliases, (name, module, attribute))
                    found[known.name] = Parameter(known.name, known.module, known.attribute, known.shape, aliases)
                continue
            first[id(tensor)] = name
            found[name] = Parameter(name, module, attribute, tuple(tensor.shape))
    return found


_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def clean(name: str) -> str:
    """A parameter's name in the user's own model: prefixes that torch.compile, FSDP and DDP put before it removed."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def lookup(patterns: Mapping[str, object] | None, name: str) -> object | None:
    """The value of the first pattern (shell-style, `blocks.*.w`) that matches this name."""
    return next((value for pattern, value in (patterns or {}).items() if fnmatch.fnmatchcase(name, pattern)), None)


def check_patterns(option: str, patterns: Mapping[str, object] | None, names: list[str]) -> None:
    """Raise InputError for a pattern of a user's option that matches no tensor: it would be ignored silently."""
    for pattern in patterns or {}:
        if not fnmatch.filter(names, pattern):
            raise InputError(f"{option}={{{pattern!r}: …}} matches no tensor; names look like {', '.join(names[:3])}")


def compare(
    base: nn.Module,
    target: nn.Module,
    *,
    axes: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    strict: bool = True,
) -> tuple[TensorShape, ...]:
    """The role and logical fans of every tensor of `target`, from its shape against `base`.

    `axes` names the axes of bare parameters by pattern ({"blocks.*.experts.w1": "stack in out"}), `roles` overrides roles.
    With `strict=False` an ambiguous tensor gets role "unknown" instead of an error.
    Raises InputError naming the tensor, both shapes and the line to write.
    """
    return tuple(shape for shape in compare_with_stacks(base, target, axes=axes, roles=roles, strict=strict)[0])


def compare_with_stacks(
    base: nn.Module,
    target: nn.Module,
    *,
    axes: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    strict: bool = True,
) -> tuple[list[TensorShape], list[Stack]]:
    """`compare`, and the stacks of blocks whose length differs between base and target."""
    ours, theirs = parameters_of(target), parameters_of(base)
    if not ours:
        raise InputError("the model has no parameters")
    mapping, stacks = match({n: p.shape for n, p in theirs.items()}, {n: p.shape for n, p in ours.items()})
    every = [*ours, *(alias for p in ours.values() for alias, _, _ in p.aliases)]
    check_patterns("axes", axes, every)
    check_patterns("roles", roles, every)
    for role in (roles or {}).values():
        if role not in ROLES:
            raise InputError(f"roles: {role!r} is not one of {', '.join(ROLES)}")
    shapes = []
    for name, parameter in ours.items():
        partner = theirs[mapping[name]]
        if {collapse(alias) for alias, _, _ in parameter.aliases} != {collapse(a) for a, _, _ in partner.aliases}:
            raise InputError(f"{name!r} is tied to {[a for a, _, _ in parameter.aliases] or 'nothing'} in the target but to "
                             f"{[a for a, _, _ in partner.aliases] or 'nothing'} in the base")  # fmt: skip
        shapes.append(_tensor(parameter, partner, axes, roles, strict, block_of(name, stacks)))
    return shapes, stacks


def _tensor(
    ours: Parameter,
    theirs: Parameter,
    axes: Mapping[str, str] | None,
    roles: Mapping[str, str] | None,
    strict: bool,
    block: str | None,
) -> TensorShape:
    labels = _labels(ours, theirs, axes)
    kind = f"{type(ours.module).__name__}.{ours.attribute}"
    aliases = tuple(alias for alias, _, _ in ours.aliases)
    common = (ours.name, theirs.name)
    if labels is None:
        if strict:
            generic = collapse(ours.name)
            example = " ".join(["stack"] * (len(ours.shape) - 2) + ["in", "out"])
            raise InputError(
                f"{ours.name!r} ({kind}) is ambiguous: base {theirs.shape}, target {ours.shape}; say which axis is which, "
                f"e.g. axes={{{generic!r}: {example!r}}} (labels: {', '.join(axis_rules.LABELS)})"
            )
        one = Fan(1, 1)
        return TensorShape(*common, "unknown", kind, (), theirs.shape, ours.shape, one, one, aliases, False, block)
    fan_in, fan_out = _fans(labels, theirs.shape, ours.shape)
    role = _role(labels, fan_in, fan_out)
    tied_output = False
    for _, module, attribute in ours.aliases:
        other = axis_rules.of_parameter(module, attribute, ours.shape)
        if other is not None and _role(other, *_fans(other, theirs.shape, ours.shape)) == "output":
            tied_output = True
            if role == "output":  # the head was registered first: read the tensor as the embedding that it also is
                continue
    if role == "output" and ours.aliases:
        embedding = next(
            (o for _, m, a in ours.aliases if (o := axis_rules.of_parameter(m, a, ours.shape)) and "lookup" in o), None
        )
        if embedding is not None:
            labels, tied_output = embedding, True
            fan_in, fan_out = _fans(labels, theirs.shape, ours.shape)
            role = _role(labels, fan_in, fan_out)
    forced = lookup(roles, ours.name)
    if forced is not None:
        role = str(forced)
        if (role in ("input", "vector") and fan_in.grows and not fan_out.grows) or (
            role == "output" and fan_out.grows and not fan_in.grows
        ):
            fan_in, fan_out = fan_out, fan_in
    return TensorShape(
        *common, role, kind, labels, theirs.shape, ours.shape, fan_in, fan_out, aliases, tied_output, block
    )


def _labels(ours: Parameter, theirs: Parameter, axes: Mapping[str, str] | None) -> tuple[str, ...] | None:
    declared = lookup(axes, ours.name)
    if declared is not None:
        return axis_rules.parse(str(declared), ours.name, len(ours.shape))
    known = axis_rules.of_parameter(ours.module, ours.attribute, ours.shape)
    return known if known is not None else axis_rules.of_bare(ours.name, theirs.shape, ours.shape)


def _fans(labels: tuple[str, ...], base: tuple[int, ...], target: tuple[int, ...]) -> tuple[Fan, Fan]:
    """Products of the labelled axes; lookups select one row, so their fan-in is 1; stacks are independent copies."""

    def product(shape: tuple[int, ...], wanted: tuple[str, ...]) -> int:
        return math.prod(size for size, label in zip(shape, labels, strict=True) if label in wanted)

    fan_in = Fan(product(base, ("in", "kernel")), product(target, ("in", "kernel")))
    return fan_in, Fan(product(base, ("out",)), product(target, ("out",)))


def _role(labels: tuple[str, ...], fan_in: Fan, fan_out: Fan) -> str:
    if fan_in.grows:
        return "hidden" if fan_out.grows else "output"
    if not fan_out.grows:
        return "scalar"
    return "input" if {"in", "lookup", "kernel"} & set(labels) else "vector"
