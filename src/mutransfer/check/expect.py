"""What every tensor is and which exponents it should have: role, fans, optimizer degree, place in the order of execution.

With fan-in growing like width^a and fan-out like width^b, μP asks (theory: the condition, in exponents of the width)

    ‖W₀x‖/‖x‖ ~ 0            and  −a/2 for the logits of a random zero-mean head (b = 0 < a)
    fan-in · RMS(ΔW) ~ 0     (element-wise steps),  √(n_in/n_out)·‖ΔW‖₂ ~ 0  (matrix steps)
    ‖G‖_F ~ (a − b)/2

up to the gauge of the tensor's own forward multiplier width^c: init −c, update −(1+p)c, gradient +c.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mutransfer import shapes
from mutransfer.check.feed import DEPTH_WORDS, WIDTH_WORDS
from mutransfer.check.record import Records
from mutransfer.check.slopes import fit
from mutransfer.errors import InputError

GROWS = 0.05  # an exponent of a fan above this is growth
FLAT_SPECTRUM = 0.5  # ‖ΔW‖_F²/‖ΔW‖₂² over its greatest value; random signs reach 0.25


@dataclass
class TensorInfo:
    """One parameter as the verdict sees it. `fan_in` holds one number per size; `a`, `b` are growth exponents of the fans."""

    name: str
    role: str
    a: float
    b: float
    fan_in: np.ndarray  # (sizes,)
    fan_out: np.ndarray  # (sizes,)
    order: float
    degree: int
    kind: str  # sgd | element | matrix | unknown
    sites: list[str] = field(default_factory=list)
    block: bool = False
    shape: tuple[int, ...] = ()
    head: bool = False  # a read-out: its fan-in grows, its fan-out does not, and no growing tensor comes after it

    @property
    def gradient_exponent(self) -> float:
        """Expected slope of ‖G‖_F when the tensor's own multiplier does not scale."""
        return (self.a - self.b) / 2


def exponent(values: list[float], fans: np.ndarray) -> float:
    """d log(fan) / d log(size), robust to rounding of the sizes."""
    slope = fit(values, fans[:, None].astype(float))
    return 0.0 if slope is None else slope.mean


def role_of(a: float, b: float, vector: bool) -> str:
    """The role by which fan grows: both hidden, only out input, only in output; a tensor without fan-in is a vector."""
    if vector:
        return "vector" if b > GROWS else "scalar"
    if a > GROWS:
        return "hidden" if b > GROWS else "output"
    return "input" if b > GROWS else "scalar"


def describe(records: Records, degrees: dict[str, tuple[int, ...]]) -> list[TensorInfo]:
    """Every trained parameter, in order of execution. `degrees` are the probed ones of unknown optimizers.

    Raises InputError when nothing grew at all.
    """
    shapes_at = [{name: tuple(p.shape) for name, p in model.named_parameters()} for model in records.models]
    if all(s == shapes_at[0] for s in shapes_at):
        raise InputError(
            f"no tensor's shape depends on {records.axis}: build(size) returned the same model at {records.sizes!r}"
        )
    compared = _compare(records)
    last = 1.0 + max([s.order for s in records.sites.values()] + list(records.first_use.values()), default=0)
    weight_order = {site.module: site.order for site in records.sites.values()}
    infos = []
    for name, shape in shapes_at[-1].items():
        if name not in records.optimizer_of or any(name not in s for s in shapes_at):
            continue
        sites = [key for key, site in records.sites.items() if site.param == name]
        known = [key for key in sites if len(records.fans.get(key, [])) == len(records.values)]
        module = name.rpartition(".")[0]
        own = weight_order.get(module, records.first_use.get(module))  # a bias acts after the weight of its module
        if known:
            pairs = np.array(records.fans[known[0]], dtype=float)
            fan_in, fan_out = pairs[:, 0], pairs[:, 1]
            vector, order = False, records.sites[known[0]].order
        elif len(shape) <= 1 or name not in compared:
            fan_in, fan_out = np.ones(len(shapes_at)), np.array([float(np.prod(s[name])) for s in shapes_at])
            vector, order = len(shape) <= 1, last if own is None else own
        else:
            fan_in, fan_out = compared[name]
            vector, order = bool(np.all(fan_in == 1)) and len(shape) <= 1, last if own is None else own
        a, b = exponent(records.values, fan_in), exponent(records.values, fan_out)
        role = role_of(a, b, vector)
        if not known and len(shape) > 1 and name not in compared:
            role = "unknown" if any(s[name] != shape for s in shapes_at) else "scalar"
        facts = records.facts.get(name)
        infos.append(
            TensorInfo(
                name, role, a, b, fan_in, fan_out, float(order),
                degree_of(records, degrees, name),
                _kind(records, name, shape) if facts is None else facts.kind,
                known, any(part.isdigit() for part in name.split(".")), shape,
            )
        )  # fmt: skip
        if len(shape) <= 1:
            infos[-1].order += 0.5
    grown = max((i.order for i in infos if i.sites and i.role in ("hidden", "input")), default=0.0)
    for info in infos:
        info.head = info.role == "output" and bool(info.sites) and info.order > grown
    return sorted(infos, key=lambda info: info.order)


def refuse_shrinking(records: Records) -> None:
    """Raise InputError where a tensor of the latest size is smaller than at the size before."""
    before, after = ({n: tuple(p.shape) for n, p in model.named_parameters()} for model in records.models[-2:])
    sizes = records.sizes[len(records.models) - 2 : len(records.models)]
    for name, shape in after.items():
        if name in before and np.prod(shape) < np.prod(before[name]):
            raise InputError(
                f"{name!r} has shape {shape} at size {sizes[1]!r} and {before[name]} at {sizes[0]!r}: "
                f"no tensor may shrink while the {records.axis} grows"
            )


def axis_of(records: Records, said: str | None) -> str:
    """What integer sizes vary: the name the user gave, else depth where the number of tensors changes, else width.

    Raises InputError when the given name says the other one.
    """
    before, after = ({n: tuple(p.shape) for n, p in model.named_parameters()} for model in records.models[-2:])
    layers = set(before) != set(after)
    if said is None:
        return "depth" if layers else "width"
    depth = any(word in said.lower() for word in DEPTH_WORDS[:2])
    if layers and not depth and any(word in said.lower() for word in WIDTH_WORDS):
        raise InputError(f"axis={said!r}, but the number of layers changes with the size: write axis='depth'")
    grown = next((name for name, shape in after.items() if shape != before.get(name, shape)), None)
    if depth and not layers and grown is not None:
        raise InputError(
            f"axis={said!r}, but the number of layers stays and {grown!r} changes its shape: write axis='width'"
        )
    return said


def degree_of(records: Records, degrees: dict[str, tuple[int, ...]], name: str) -> int:
    """The declared degree of this parameter's rule, else the one measured at the gradient's own size."""
    facts = records.facts.get(name)
    return degrees.get(name, (0,))[0] if facts is None else facts.degree


def _kind(records: Records, name: str, shape: tuple[int, ...]) -> str:
    """What an undeclared rule does to a matrix: a step whose singular values are all alike is a matrix function of G."""
    norms, rms = records.get("update operator norm", name, 0), records.get("update", name, 0)
    if norms is None or rms is None or len(shape) != 2 or not np.all(norms > 0):
        return "unknown"
    shapes_at = [dict(model.named_parameters())[name].shape for model in records.models]
    numel, least = (np.array([float(f(s)) for s in shapes_at])[:, None] for f in (np.prod, min))
    return "matrix" if bool(np.all(rms**2 * numel / norms**2 > FLAT_SPECTRUM * least)) else "unknown"


def describe_depth(records: Records, degrees: dict[str, tuple[int, ...]]) -> list[TensorInfo]:
    """The parameters of the shallowest model, in order of execution, for an axis along which no shape grows."""
    ones = np.ones(len(records.values))
    infos = []
    for name, p in records.models[0].named_parameters():
        if name not in records.optimizer_of:
            continue
        sites = [key for key, site in records.sites.items() if site.param == name]
        order = records.sites[sites[0]].order if sites else records.first_use.get(name.rpartition(".")[0], 0)
        facts = records.facts.get(name)
        degree = degree_of(records, degrees, name)
        kind = "unknown" if facts is None else facts.kind
        infos.append(TensorInfo(name, "scalar", 0.0, 0.0, ones, ones, order, degree, kind, sites, True, tuple(p.shape)))
    return sorted(infos, key=lambda info: info.order)


def _compare(records: Records) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Fans per size of tensors that no watched operation used, from their shapes and module types."""
    found: dict[str, list[tuple[float, float]]] = {}
    unknown: set[str] = set()
    for model in records.models[1:]:  # the smallest against itself shows no axis: its fans are the others' base
        try:
            listed = shapes.compare(records.models[0], model, strict=False)
        except InputError:
            return {}
        for tensor in listed:
            unknown |= {tensor.name} if tensor.role == "unknown" else set()
            pairs = found.setdefault(tensor.name, [(float(tensor.fan_in.base), float(tensor.fan_out.base))])
            pairs.append((float(tensor.fan_in.target), float(tensor.fan_out.target)))
    return {
        name: (np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs]))
        for name, pairs in found.items()
        if len(pairs) == len(records.models) and name not in unknown
    }
