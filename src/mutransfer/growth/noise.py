"""Noise that breaks the tie between copies: without it they stay equal for ever (theory §6).

One σ means the same at any width, growth factor and placement of the multipliers. A grown layer is `c·W'x'` with `W' = s·dup(W)` and
`s·a·c = 1`, over `n' = a·n` inputs, each of them copied `a` times. Independent entries of std e change its output by `c·e·√(a·n)·RMS(x)`, so

    gaussian   e = σ·s·√a/√n = σ·s·a/√n'     the output changes by σ·RMS(x): "σ/√n_in before any 1/k", whatever the weights are
    relative   e = σ·√a·RMS(W')              by σ times what independent weights of W's size would give; √a because W' itself repeats
    spectral   e = σ·‖W'‖₂/(√b·(√n + √m))    the same for independent weights of W's operator norm, W being (m, n) and its m growing b-fold;
                                             where both sides grow alike, ‖E‖₂ = σ·‖W'‖₂. Of each single matrix; kernels are (m, n·taps)

A lookup table sums over nothing: its natural scale is its own, so all three mean RMS(E) = σ·RMS(W'). A bias has no scale of its own when it
is zero: "gaussian" gives it σ·s. Never noise: gains and scales of any kind, running statistics and other buffers, tensors that do not
grow, and tensors of new blocks that start at zero.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mutransfer.errors import InputError
from mutransfer.growth.tensors import GrowPlan, TensorGrowth
from mutransfer.plans import Row

NoiseKind = Literal["gaussian", "relative", "spectral"]
KINDS: tuple[NoiseKind, ...] = get_args(NoiseKind)
ROLES = {"input": 1.0, "hidden": 1.0, "output": 1.0, "vector": 0.0}
"""What σ is multiplied by in tensors of each role, unless said otherwise: biases and other vectors get none."""

_EXAMPLE = "write 0.05, 'relative:0.05' or 'gaussian:0.05:preserving'"


@dataclass(frozen=True)
class Noise:
    """How much noise, of what kind, and where. `size` is σ, without unit; the formulas are at the head of this file.

    `preserving`: the mean over the copies of each input unit is taken out of every row, so that a layer fed with equal copies gives what
    it gave; tensors without a growing summed axis (input layers, tables, vectors) cannot have such noise and get none.
    `moments`: relative noise on the optimizer's running averages, which parts copies whose weights are equal; signs stay.
    `roles` multiplies σ by role: input, hidden, output, vector. Raises InputError for a number or name that means nothing.
    """

    size: float = 0.0
    kind: NoiseKind = "gaussian"
    preserving: bool = False
    moments: float = 0.0
    roles: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.roles, Mapping) or not isinstance(self.preserving, bool):
            raise InputError(
                f"noise roles={self.roles!r}, preserving={self.preserving!r}: write roles={{'hidden': 1.0}}, preserving=True or False"
            )
        if self.kind not in KINDS:
            raise InputError(f"noise kind {self.kind!r}: write one of {', '.join(KINDS)}")
        for key, value in {"size": self.size, "moments": self.moments, **self.roles}.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise InputError(f"noise {key}={value!r}: write a finite number, 0 or more, such as 0.05")
        for role in self.roles:
            if role not in ROLES:
                raise InputError(f"noise for role {role!r}: the roles are {', '.join(ROLES)}")

    def __bool__(self) -> bool:
        """Whether there is any noise at all."""
        return self.size > 0 or self.moments > 0

    def __str__(self) -> str:
        words = [f"{self.kind}:{self.size:g}"] + ["preserving"] * self.preserving
        words += [f"moments={self.moments:g}"] * (self.moments > 0) + [f"{k}={v:g}" for k, v in self.roles.items()]
        return ":".join(words)

    def strength(self, growth: TensorGrowth, row: Row | None) -> float:
        """The multiplier of σ for this tensor; 0 where it is never noise."""
        grows = any(m.grows for m in growth.maps)
        if row is None or growth.buffer or growth.fresh == "zero" or not grows or is_gain(row):
            return 0.0
        return self.roles.get(row.role, ROLES.get(row.role, 0.0))


def noise_of(value: Any) -> Noise:
    """A Noise from a number, a Noise, or words such as "0.05", "spectral:0.1", "gaussian:0.05:preserving:moments=0.1:hidden=2".

    Raises InputError that quotes what was given.
    """
    if isinstance(value, Noise):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Noise(value)
    if not isinstance(value, str):
        raise InputError(f"noise={value!r}: {_EXAMPLE}")
    found: dict[str, Any] = {}
    roles: dict[str, float] = {}
    for word in (part.strip() for part in value.split(":")):
        key, equals, number = word.partition("=")
        new = "preserving" if word == "preserving" else "kind" if word[:1].isalpha() and not equals else "size"
        new = new if word.lower() not in ("nan", "inf", "infinity") else "size"
        if equals:
            roles |= {} if key == "moments" else {key: _number(number, value)}
            new = "moments" if key == "moments" else ""
        if new in found:
            raise InputError(f"noise={value!r}: {new} is said twice; {_EXAMPLE}")
        if new:
            found[new] = {"preserving": True, "kind": word}.get(new) or _number(number if equals else word, value)
    if not {"size", "moments"} & set(found):
        raise InputError(f"noise={value!r} says no size; {_EXAMPLE}")
    return Noise(**found, roles=roles)


def _number(word: str, whole: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise InputError(f"noise={whole!r}: {word!r} is no number; {_EXAMPLE}") from None


def is_gain(row: Row) -> bool:
    """Whether the tensor multiplies features: a norm's gain, a layer scale, the magnitude of a normalised weight, a slope."""
    owner, _, attribute = row.kind.rpartition(".")
    if "norm" in owner.lower().replace("normal", ""):
        return "bias" not in attribute.lower()
    if row.role != "vector":
        return False
    law = row.base_law
    return attribute in ("original0", "weight_g") or law.kind == "unknown" or (law.kind == "constant" and not law.zeros)


def noisy(noise: Noise, growth: TensorGrowth, tensor: Tensor, seed: int, row: Row | None) -> Tensor:
    """`W' + E` as a new tensor of W's dtype and device, or `tensor` itself where there is no noise; `row` is the plan's (None: a buffer).

    E depends on (seed, tensor name, position) and W' alone: any order, process or device gives the same.
    """
    size = noise.size * noise.strength(growth, row)
    if size == 0.0 or row is None or not tensor.is_floating_point():
        return tensor
    exact = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    drawn = _normal(tensor.shape, seed, f"{growth.name}").to(exact)
    if noise.preserving:
        _without_mean(growth, drawn)
    drawn *= size * _std(noise.kind, growth, row, exact)
    return drawn.add_(exact).to(tensor.dtype)


def noisy_moment(noise: Noise, growth: TensorGrowth, moment: Tensor, key: str, seed: int, row: Row | None) -> Tensor:
    """`m·exp(εz − ε²/2)`, z normal: a moment of the same sign and mean with relative noise ε = `noise.moments`; `key` is its name.

    For a state of the tensor's own shape; one of another shape (a step counter, a factored average) comes back as it is.
    """
    size = noise.moments * min(1.0, noise.strength(growth, row))
    if size == 0.0 or not moment.is_floating_point() or tuple(moment.shape) != growth.target_shape:
        return moment
    exact = moment.detach().to(torch.promote_types(moment.dtype, torch.float32))
    drawn = _normal(moment.shape, seed, f"{growth.name}/{key}").to(exact)
    return drawn.mul_(size).sub_(size**2 / 2).exp_().mul_(exact).to(moment.dtype)


def apply_noise(noise: Noise, grow_plan: GrowPlan, tensors: Callable[[str], Tensor], seed: int) -> tuple[str, ...]:
    """Add the noise to the big model's tensors in place; `tensors` gives the one of a name. Tied tensors get it once.

    Returns notes, one sentence each: noise that the tensors' dtype rounds away, tensors that function-preserving noise leaves out.
    """
    lost: list[str] = []
    left: list[str] = []
    with torch.no_grad():
        for growth in grow_plan.tensors:
            row = None if growth.row is None else grow_plan.plan[growth.row]
            if noise.size * noise.strength(growth, row) == 0.0:
                continue
            if noise.preserving and not _copied_inputs(growth):
                left.append(growth.name)
                continue
            tensor = tensors(growth.name)
            changed = noisy(noise, growth, tensor, seed, row)
            if tensor.numel() and float((changed == tensor).float().mean()) > 0.5:
                lost.append(f"{growth.name} ({str(tensor.dtype).removeprefix('torch.')})")
            tensor.copy_(changed)
    notes: list[str] = []
    if lost:
        notes.append(
            f"noise {noise} is below the rounding of most numbers of {_listed(lost)}: give more noise, or grow in float32"
        )
    if left:
        notes.append(f"no function-preserving noise exists for {_listed(left)}: no axis that they sum over grows")
    return tuple(notes)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _copied_inputs(growth: TensorGrowth) -> list[int]:
    return [i for i, (m, summed) in enumerate(zip(growth.maps, growth.sums, strict=True)) if summed and m.grows]


def _normal(shape: torch.Size, seed: int, name: str) -> Tensor:
    """float32 on the CPU from (seed, name): the counter of `mutransfer.draw` is forty times slower, which a whole checkpoint would feel."""
    digest = hashlib.sha256(f"noise/{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def _without_mean(growth: TensorGrowth, noise: Tensor) -> None:
    """Take out of each row, in place, the mean over the copies of every input unit; what is left keeps its std.

    Equal copies x meet `Σ_copies E·x = 0`, whatever share of W' each copy has. Several summed axes: the copies of a tuple of units.
    """
    mean, copies = noise, torch.ones((), dtype=noise.dtype, device=noise.device)
    for axis in _copied_inputs(growth):
        map_ = growth.maps[axis]
        index, number = map_.index().to(noise.device), map_.copies().to(noise)
        number = number.view(-1, *[1] * (noise.ndim - axis - 1))
        sums = torch.zeros_like(mean.narrow(axis, 0, map_.base)).index_add_(axis, index, mean)
        mean = sums.index_select(axis, index) / number
        copies = copies * number
    if mean is noise:
        noise.zero_()
        return
    noise -= mean
    noise *= (copies / (copies - 1).clamp_min(1)).sqrt()


def _std(kind: NoiseKind, growth: TensorGrowth, row: Row, tensor: Tensor) -> float | Tensor:
    """The std of each entry at σ = 1: a number, or one for each matrix of a stack, shaped to multiply `tensor`."""
    inputs = math.prod(m.base for m, summed in zip(growth.maps, growth.sums, strict=True) if summed)
    if kind == "gaussian" and (any(growth.sums) or tensor.ndim < 2):
        return abs(growth.scale) * math.sqrt(growth.fan_in_growth / inputs)
    if kind == "spectral" and any(growth.sums):
        return _spectral(growth, row, tensor, inputs)
    return math.sqrt(growth.fan_in_growth) * float(torch.linalg.vector_norm(tensor)) / math.sqrt(max(1, tensor.numel()))


def _spectral(growth: TensorGrowth, row: Row, tensor: Tensor, inputs: int) -> Tensor:
    """‖W'‖₂/(√b·(√n + √m)) of every single matrix, by power iteration."""
    stacked = [i for i, label in enumerate(row.axes) if label == "stack" and not growth.sums[i]]
    summed = [i for i in range(tensor.ndim) if growth.sums[i]]
    out = [i for i in range(tensor.ndim) if i not in stacked and i not in summed]
    batch, columns = (math.prod(tensor.shape[i] for i in axes) for axes in (stacked, summed))
    matrices = tensor.permute(*stacked, *out, *summed).reshape(batch, -1, columns)
    vector = _normal(torch.Size((batch, columns, 1)), 0, "power iteration").to(matrices)
    norm = torch.zeros(batch, 1, 1, dtype=tensor.dtype, device=tensor.device)
    for _ in range(100):
        vector = vector / torch.linalg.vector_norm(vector, dim=1, keepdim=True).clamp_min(1e-30)
        image = matrices @ vector
        before, norm = norm, torch.linalg.vector_norm(image, dim=1, keepdim=True)
        if bool(((norm - before).abs() <= 1e-3 * norm).all()):
            break
        vector = matrices.mT @ image
    outputs, growing = (math.prod(getattr(growth.maps[i], key) for i in out) for key in ("base", "factor"))
    norm = norm / (math.sqrt(growing) * (math.sqrt(inputs) + math.sqrt(outputs)))
    return norm.view([tensor.shape[i] if i in stacked else 1 for i in range(tensor.ndim)])
