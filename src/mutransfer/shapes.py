"""Which axes grow: base against target shapes → role and logical fans of every tensor.

Roles by which fan grows: both → hidden, only fan-out → input (embeddings, first layers), only fan-in → output (heads),
a tensor without fan-in that grows → vector (gains, biases), nothing → scalar. Pure arithmetic on names and shapes; modules
may live on the meta device.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.parameter import UninitializedParameter

from mutransfer import axes as axis_rules
from mutransfer.blocks import Stack, block_of, collapse, match
from mutransfer.errors import InputError
from mutransfer.reading import application, applied_as_matrix
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
    normalised: tuple[nn.Module, str] | None = None  # under a parametrization: the module and attribute that it serves


def parameters_of(model: nn.Module) -> dict[str, Parameter]:
    """Every distinct parameter by its first name, tied names gathered. Wrappers' prefixes (compile, DDP) are dropped."""
    first: dict[int, str] = {}
    found: dict[str, Parameter] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        for attribute, tensor in module._parameters.items():
            if tensor is None:
                continue
            name = clean(f"{path}.{attribute}" if path else attribute)
            if isinstance(tensor, UninitializedParameter):
                raise InputError(
                    f"{name!r} has no shape yet ({type(module).__name__}): run one forward pass, or say its sizes"
                )
            if id(tensor) in first:
                known = found[first[id(tensor)]]
                if name != known.name:
                    found[known.name] = replace(known, aliases=(*known.aliases, (name, module, attribute)))
                continue
            first[id(tensor)] = name
            owner, found_at, served = path.rpartition("parametrizations.")
            normalised = (modules[owner.rstrip(".")], served) if found_at and attribute != "original0" else None
            found[name] = Parameter(name, module, attribute, tuple(tensor.shape), (), normalised)
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
    for names, others, where in ((ours, theirs, "base"), (theirs, ours, "target")):
        for p in others.values():
            alone = next((alias for alias, _, _ in p.aliases if alias in names and p.name in names), None)
            if alone is not None:
                raise InputError(
                    f"{alone!r} is tied to {p.name!r} in the {where} only: tie it at both sizes, or at none"
                )
    mapping, stacks = match({n: p.shape for n, p in theirs.items()}, {n: p.shape for n, p in ours.items()})
    stacks = _with_matrices(stacks, ours) + _shared(ours, theirs)
    growth = _Growth(stacks, ours, {name: theirs[found] for name, found in mapping.items()})
    every = [*ours, *(alias for p in ours.values() for alias, _, _ in p.aliases)]
    check_patterns("axes", axes, every)
    check_patterns("roles", roles, every)
    for role in (roles or {}).values():
        if role not in ROLES:
            raise InputError(f"roles: {role!r} is not one of {', '.join(ROLES)}")
    shapes = []
    for name, parameter in ours.items():
        partner = theirs[mapping[name]]
        if _ties(parameter) != _ties(partner):
            raise InputError(f"{name!r} is tied to {[a for a, _, _ in parameter.aliases] or 'nothing'} in the target but to "
                             f"{[a for a, _, _ in partner.aliases] or 'nothing'} in the base")  # fmt: skip
        shape = _tensor(parameter, partner, axes, roles, strict, block_of(name, stacks), growth)
        if shape.role == "input" and "lookup" in shape.axes and not shape.tied_output:
            shape = replace(shape, tied_output=applied_as_matrix(target, parameter.module))
        shapes.append(shape)
    return shapes, stacks


def _ties(parameter: Parameter) -> set[str]:
    """What else this tensor is, copies of its own block aside."""
    return {collapse(alias) for alias, _, _ in parameter.aliases} - {collapse(parameter.name)}


def _with_matrices(stacks: list[Stack], ours: Mapping[str, Parameter]) -> list[Stack]:
    """The stacks whose members hold a matrix: lists of gains, norms or embeddings per layer are no blocks of their own."""
    matrices = [
        name
        for name, p in ours.items()
        if len(p.shape) > 1 and not axis_rules.is_norm(p.module) and not isinstance(p.module, nn.Embedding)
    ]
    return [stack for stack in stacks if any(block_of(name, [stack]) for name in matrices)]


def _shared(ours: Mapping[str, Parameter], theirs: Mapping[str, Parameter]) -> list[Stack]:
    """Stacks of one block applied many times (ALBERT): its copies are aliases of the first, and count as depth."""

    def copies(parameters: Mapping[str, Parameter]) -> dict[str, tuple[str, int]]:
        found: dict[str, tuple[str, int]] = {}
        for p in parameters.values():
            same = [alias for alias, _, _ in p.aliases if collapse(alias) == collapse(p.name)]
            parts = [(a, b) for a, b in zip(p.name.split("."), same[0].split("."), strict=True)] if same else []
            at = next((i for i, (a, b) in enumerate(parts) if a != b), 0)
            prefix = ".".join(p.name.split(".")[:at])
            if same and len(p.shape) > 1:
                found[prefix] = p.name, 1 + len(same)
        return found

    before, after = copies(theirs), copies(ours)
    pairs = {path: (before.get(path, ("", 1))[1], after.get(path, ("", 1))[1]) for path in before | after}
    return [Stack(path, b, t) for path, (b, t) in pairs.items() if b != t]


class _Growth:
    """How sizes grow in this model: `widths`, pairs (base, target) of axes that modules declare; `depths`, of the stacks."""

    def __init__(self, stacks: list[Stack], ours: Mapping[str, Parameter], theirs: Mapping[str, Parameter]) -> None:
        self.widths = frozenset(
            (b, t)
            for name, p in ours.items()
            if type(p.module).__module__.startswith("torch.nn.modules") and len(p.shape) == len(theirs[name].shape)
            for b, t in zip(theirs[name].shape, p.shape, strict=True)
            if b != t
        )
        every = [(s.base, s.target) for s in stacks if s.base != s.target]
        self.depths = frozenset([*every, (sum(b for b, _ in every), sum(t for _, t in every))] if every else [])


def _tensor(
    ours: Parameter,
    theirs: Parameter,
    axes: Mapping[str, str] | None,
    roles: Mapping[str, str] | None,
    strict: bool,
    block: str | None,
    growth: _Growth,
) -> TensorShape:
    labels = _labels(ours, theirs, axes, growth, block)
    kind = f"{type(ours.module).__name__}.{ours.attribute}"
    aliases = tuple(alias for alias, _, _ in ours.aliases)
    common = (ours.name, theirs.name)
    if labels is None:
        if strict:
            readings = axis_rules.suggestions(collapse(ours.name), theirs.shape, ours.shape)
            raise InputError(
                f"{ours.name!r} ({kind}) is ambiguous: base {theirs.shape}, target {ours.shape}; say which axis is which: "
                f"{readings} (labels: {', '.join(axis_rules.LABELS)})"
            )
        one = Fan(1, 1)
        return TensorShape(*common, "unknown", kind, (), theirs.shape, ours.shape, one, one, aliases, False, block)
    fan_in, fan_out = _fans(labels, theirs.shape, ours.shape)
    if isinstance(ours.module, axis_rules.TRANSPOSED) and len(ours.shape) > 1 and lookup(axes, ours.name) is None:
        fan_in, fan_out = _grouped(fan_in, fan_out, theirs.module, ours.module)
    role = _role(labels, fan_in, fan_out)
    if role == "output" and (ours.normalised or ours.attribute in ("weight_v", "weight_orig")):
        raise InputError(f"{ours.name!r} is normalised (weight or spectral norm) and its fan-out {fan_out.target:g} stays: its "
                         f"multiplier 1/{fan_in.ratio:g} would be divided away again; remove the norm from this layer")  # fmt: skip
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


def _labels(
    ours: Parameter, theirs: Parameter, axes: Mapping[str, str] | None, growth: _Growth, block: str | None
) -> tuple[str, ...] | None:
    for name in (ours.name, *(alias for alias, _, _ in ours.aliases)):
        declared = lookup(axes, name)
        if declared is not None:
            return axis_rules.parse(str(declared), name, len(ours.shape))
    module, attribute = ours.normalised or (ours.module, ours.attribute)
    known = axis_rules.of_parameter(module, attribute, ours.shape)
    bare = known is None or (len(ours.shape) == 1 and not type(module).__module__.startswith("torch.nn.modules"))
    bare = (bare or isinstance(module, nn.ParameterList | nn.ParameterDict)) and not axis_rules.is_norm(module)
    if not bare:
        return known
    if known is None and len(ours.shape) == 2 and (read := application(module, attribute)):
        return read
    pairs = list(zip(theirs.shape, ours.shape, strict=True))
    layers = [i for i, pair in enumerate(pairs) if pair in growth.depths] if block is None else []
    if layers:  # one entry per layer: an axis that grows with depth is no width
        others = any(b != t for i, (b, t) in enumerate(pairs) if i not in layers)
        if len(layers) > 1 or others or pairs[layers[0]] in growth.widths:
            return None
        return tuple("stack" if i in layers else "out" for i in range(len(pairs)))
    return known if known is not None else axis_rules.of_bare(ours.name, theirs.shape, ours.shape, growth.widths)


def _grouped(fan_in: Fan, fan_out: Fan, base: nn.Module, target: nn.Module) -> tuple[Fan, Fan]:
    """A transposed convolution is stored (in, out/groups, …): each output sees in/groups inputs."""
    before, after = int(getattr(base, "groups", 1)), int(getattr(target, "groups", 1))
    return (
        Fan(fan_in.base / before, fan_in.target / after),
        Fan(fan_out.base * before, fan_out.target * after),
    )


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
