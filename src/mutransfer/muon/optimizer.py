"""Muon: orthogonalised momentum, for every matrix that a tensor holds; the update of torch.optim.Muon where both apply.

B ← B + (1 − μ)·(G − B)        M = (1 − μ)·G + μ·B  (nesterov; else M = B)
W ← (1 − lr·weight_decay)·W    W ← W − lr·scale(in, out)·polar(M)
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from mutransfer.errors import InputError
from mutransfer.muon.coefficients import Coefficients, Triple, schedule
from mutransfer.muon.layout import Layout, layout
from mutransfer.muon.polar import Scratch, check_eps, compute_dtype, polar
from mutransfer.optimizers import SQUARED_NORMS
from mutransfer.rules import root

_ALIASES = {
    "UVᵀ": "1",
    "sqrt(max(1,out/in))": "√max(1,out/in)",
    "sqrt(out/in)": "√(out/in)",
    "0.2*sqrt(max(in,out))": "0.2√max(in,out)",
}
_TORCH_SCALES = {None: "√max(1,out/in)", "original": "√max(1,out/in)", "match_rms_adamw": "0.2√max(in,out)"}


class _foreach:
    """torch's multi-tensor operations, which its stubs do not export."""

    lerp_: Any = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
    copy_: Any = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
    mul_: Any = torch._foreach_mul_  # pyright: ignore[reportPrivateImportUsage]
    add_: Any = torch._foreach_add_  # pyright: ignore[reportPrivateImportUsage]


_BATCH = {"cpu": 2**19}  # entries of one batched call: what stays in a core's cache; elsewhere what fills the device
_BATCH_ELSEWHERE = 2**25
_FEW = 4  # larger matrices still go a few at a time (a batched product of one is slower), while they are below
_WHOLE = 2**24  # entries: also what is gathered at a time of sharded parameters


class _Settings(NamedTuple):
    """What matrices must share to be computed in one call."""

    device: torch.device
    stored: torch.dtype
    rows: int
    columns: int
    dtype: torch.dtype
    steps: tuple[Triple, ...]
    eps: float
    momentum: float
    nesterov: bool


_Sharded = tuple[Any, Tensor, Tensor, dict[str, Any]]  # parameter, gradient, momentum buffer, group


class _Matrix(NamedTuple):
    """`weight ← keep·weight − rate·polar(M)`. Views, kernel taps on axes of their own. Without a gradient `buffer` is M itself."""

    weight: Tensor
    gradient: Tensor | None
    buffer: Tensor
    keep: float
    rate: float


class Muon(Optimizer):
    """Muon for matrices stored in any way, same shapes batched in one call. Update: see the head of this file.

    `axes` says what each stored axis of a group's tensors means, ("out", "in") by default, else for instance ("in", "out")
    (x @ w), ("stack", "out", "in") (experts), ("out", "in", "kernel", "kernel") (convolution: out × in·k²), ("in", "out",
    "kernel", "kernel") (transposed convolution). `parts` are the sizes along "out" of matrices fused in one tensor, such as
    query, key and value; each is orthogonalised alone. `scale` is one of `mutransfer.optimizers.SQUARED_NORMS` ("1" is also
    written "UVᵀ"), taken of each single matrix's own fan-in and fan-out, whichever way it is stored. `coefficients`, `ns_steps`,
    `eps` and `dtype` are those of `orthogonalize`. All are settings of a param group.

    Decay is decoupled, by the group's lr without `scale`, as torch's. State: `momentum_buffer`, as torch's; its state dict
    can be loaded. Sharded parameters (DTensor, FSDP2) are gathered a few at a time and computed on every rank.
    Raises InputError for complex, sparse, empty, 0-D and 1-D parameters and for bad settings, naming them.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        eps: float = 1e-7,
        ns_steps: int = 5,
        *,
        coefficients: Coefficients = "jordan",
        dtype: str | None = None,
        scale: str = "√max(1,out/in)",
        axes: tuple[str, ...] | None = None,
        parts: tuple[int, ...] = (),
    ) -> None:
        defaults = dict(
            lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, eps=eps, ns_steps=ns_steps,
            coefficients=coefficients, dtype=dtype, scale=scale, axes=axes, parts=parts,
        )  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; raises InputError where a setting or a parameter of the group cannot be run by Muon."""
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except InputError:
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch's (copies, loaded state dicts). A group without our settings, as torch's Muon saves it, keeps the present ones."""
        present = self.__dict__.get("param_groups", [])
        super().__setstate__(state)
        for number, group in enumerate(self.param_groups):
            if "ns_coefficients" in group:
                group["coefficients"] = group.pop("ns_coefficients")
                group["scale"] = _TORCH_SCALES[group.pop("adjust_lr_fn")]
            for key, default in self.defaults.items():
                group.setdefault(key, present[number].get(key, default) if number < len(present) else default)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] # torch declares overloads
        """One step on every parameter that has a gradient; returns the closure's loss, if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        batches: dict[_Settings, list[_Matrix]] = {}
        sharded: list[_Sharded] = []
        for group in self.param_groups:
            keep = 1 - float(group["lr"]) * float(group["weight_decay"])
            for p in group["params"]:
                if p.grad is None:
                    continue
                gradient, buffer = _gradient(p), self._buffer(p)
                if _is_sharded(p):
                    sharded.append((p, gradient, buffer, group))
                else:
                    _cut(batches, p, gradient, buffer, group, keep, float(group["lr"]))
        _run(batches)
        for bucket in _buckets(sharded):
            _run_sharded(bucket)
        return loss

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad, memory_format=torch.preserve_format)  # pyright: ignore[reportArgumentType] # not None here
        return state["momentum_buffer"]


def _cut(
    into: dict[_Settings, list[_Matrix]],
    weight: Tensor,
    gradient: Tensor | None,
    buffer: Tensor,
    group: dict[str, Any],
    keep: float,
    lr: float,
) -> None:
    """Sort the matrices of one tensor into the batches of their kind."""
    axes = group["axes"] if group["axes"] is None else tuple(group["axes"])
    cut = _layout(tuple(weight.shape), axes, tuple(group["parts"]))
    steps, dtype = schedule(group["coefficients"], group["ns_steps"]), compute_dtype(group["dtype"], weight)
    rest = steps, float(group["eps"]), float(group["momentum"]), group["nesterov"]
    weights, buffers = cut.matrices(weight), cut.matrices(buffer)
    gradients = cut.matrices(gradient) if gradient is not None else [[None] * len(views) for views in weights]
    for (rows, columns), fans, *views in zip(cut.sizes(), cut.fans, weights, gradients, buffers, strict=True):
        settings = _Settings(weight.device, weight.dtype, rows, columns, dtype, *rest)
        rate = lr * factor(group["scale"], *fans)
        into.setdefault(settings, []).extend(_Matrix(w, g, b, keep, rate) for w, g, b in zip(*views, strict=True))


def _run(batches: dict[_Settings, list[_Matrix]]) -> None:
    """Orthogonalise and apply, batch by batch. Batches follow from shapes and the order of parameters, never from the machine's state."""
    scratch = Scratch()
    for settings, matrices in batches.items():
        limit = _BATCH.get(settings.device.type, _BATCH_ELSEWHERE)
        entries = settings.rows * settings.columns
        size = max(1, limit // entries, min(_FEW, _WHOLE // entries))
        for start in range(0, len(matrices), size):
            _apply(settings, matrices[start : start + size], scratch)


def _apply(settings: _Settings, matrices: list[_Matrix], scratch: Scratch) -> None:
    """Momentum, decay and step of one batch, while its tensors are still in the cache."""
    momenta = [matrix.buffer for matrix in matrices]
    gradients = [matrix.gradient for matrix in matrices if matrix.gradient is not None]
    if gradients:
        _foreach.lerp_(momenta, gradients, 1 - settings.momentum)
    shape = len(matrices), settings.rows, settings.columns
    batch = scratch.make(shape, settings.dtype, settings.device)
    entries = [x.view(m.shape) for x, m in zip(batch.unbind(), momenta, strict=True)]
    if gradients and settings.nesterov:
        mixed = scratch.make(shape, settings.stored, settings.device)
        mixtures = [x.view(m.shape) for x, m in zip(mixed.unbind(), momenta, strict=True)]
        for mixture, gradient, momentum in zip(mixtures, gradients, momenta, strict=True):
            torch.lerp(gradient, momentum, settings.momentum, out=mixture)
        batch.copy_(mixed)  # one cast for all
        scratch.give(mixed)
    else:
        _foreach.copy_(entries, momenta)
    result = polar(batch, settings.steps, settings.eps, scratch)
    if result.dtype != settings.stored:
        cast = scratch.make(shape, settings.stored, settings.device).copy_(result)
        scratch.give(result)
        result = cast
    found = result.unbind()
    for (keep, rate), same in itertools.groupby(zip(matrices, found, strict=True), key=lambda pair: pair[0][-2:]):
        weights, updates = zip(*((matrix.weight, o.view(matrix.weight.shape)) for matrix, o in same), strict=True)
        if keep != 1:
            _foreach.mul_(weights, keep)
        _foreach.add_(weights, updates, alpha=-rate)
    scratch.give(result)


@functools.lru_cache(maxsize=4096)
def _layout(shape: tuple[int, ...], axes: tuple[str, ...] | None, parts: tuple[int, ...]) -> Layout:
    return layout(shape, axes, parts, "a parameter")


@functools.lru_cache(maxsize=4096)
def factor(scale: str, fan_in: int, fan_out: int) -> float:
    """The number that a scaling's formula gives for a matrix of this fan-in and fan-out."""
    return root(SQUARED_NORMS[_ALIASES.get(scale, scale)](Fraction(fan_in), Fraction(fan_out)))


# ------------------------------------------------------------------ sharded parameters


def _is_sharded(p: Tensor) -> bool:
    return hasattr(p, "to_local")


def _local(p: Any) -> Tensor:
    return p.to_local() if _is_sharded(p) else p


def _gradient(p: Any) -> Tensor:
    gradient = p.grad
    if gradient.layout != torch.strided:
        raise InputError(f"Muon: a parameter of shape {tuple(p.shape)} has a sparse gradient; run it under SparseAdam")
    if _is_sharded(p) and gradient.placements != p.placements:
        return gradient.redistribute(p.device_mesh, p.placements)
    return gradient


def _buckets(params: list[_Sharded]) -> Iterable[list[_Sharded]]:
    """Runs of parameters small enough to be held whole at once, or one parameter; the same on every rank."""
    bucket: list[_Sharded] = []
    for param in params:
        if bucket and sum(p.numel() for p, *_ in bucket) + param[0].numel() > _WHOLE:
            yield bucket
            bucket = []
        bucket.append(param)
    if bucket:
        yield bucket


def _run_sharded(bucket: list[_Sharded]) -> None:
    """Each rank keeps its shard of the momentum, gathers the whole, computes the whole update and adds its own shard of it."""
    from torch.distributed.tensor import DTensor, Replicate

    batches: dict[_Settings, list[_Matrix]] = {}
    updates: list[Tensor] = []
    for p, gradient, buffer, group in bucket:
        mine, local = _local(buffer), _local(gradient)
        mine.lerp_(local, 1 - group["momentum"])
        mixed = local.lerp(mine, group["momentum"]) if group["nesterov"] else mine
        whole: Any = DTensor.from_local(
            mixed, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
        ).full_tensor()
        updates.append(torch.zeros_like(whole))
        _cut(batches, updates[-1], None, whole, group, 1.0, -1.0)
    _run(batches)
    for (p, _, _, group), update in zip(bucket, updates, strict=True):
        whole = DTensor.from_local(update, p.device_mesh, [Replicate()] * p.device_mesh.ndim, run_check=False)
        lr = float(group["lr"])
        shard: Any = whole.redistribute(p.device_mesh, p.placements)  # no communication: each rank cuts its own
        _local(p).mul_(1 - lr * float(group["weight_decay"])).add_(shard.to_local(), alpha=-lr)


# ------------------------------------------------------------------ checks


def _check(group: dict[str, Any]) -> None:
    """Raises InputError for the first setting or parameter that cannot be run."""
    for key, below in (("lr", math.inf), ("weight_decay", math.inf), ("momentum", 1.0)):
        value = group[key]
        number = float(value) if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < below:
            raise InputError(f"{key}={value!r}: write a number, 0 or more" + " and below 1" * (below == 1))
    if not isinstance(group["nesterov"], bool):
        raise InputError(f"nesterov={group['nesterov']!r}: write True or False")
    check_eps(group["eps"])
    schedule(group["coefficients"], group["ns_steps"])
    compute_dtype(group["dtype"], torch.empty(0))
    scale = group["scale"]
    if not isinstance(scale, str) or _ALIASES.get(scale, scale) not in SQUARED_NORMS:
        raise InputError(f"scale={scale!r}: write a formula, one of 'UVᵀ', {', '.join(map(repr, SQUARED_NORMS))}")
    names = group.get("names") or [f"parameter {number} of the group" for number in range(len(group["params"]))]
    for name, p in zip(names, group["params"], strict=False):
        what = f"Muon: {name} of shape {tuple(p.shape)}"
        if not p.is_floating_point():
            raise InputError(f"{what} is {p.dtype}: Muon runs real matrices; give it to another optimizer")
        if p.layout != torch.strided:
            raise InputError(f"{what} is sparse: give it to SparseAdam")
        if p.ndim < 2 or p.numel() == 0:
            kind = "empty" if p.numel() == 0 else f"{p.ndim}-D"
            raise InputError(f"{what} is {kind}, no matrix: give it to another optimizer, such as AdamW")
        layout(p.shape, group["axes"], group["parts"], name)
