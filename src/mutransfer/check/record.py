"""Run the user's own code at every size and seed and write down the sizes of everything, as rows of numbers."""

from __future__ import annotations

import contextlib
import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mutransfer.check import feed
from mutransfer.check.optimizer import check_states, default_decay, erased_ratios, operator_norm
from mutransfer.check.seen import Attention, Site
from mutransfer.check.trace import Trace
from mutransfer.errors import InputError
from mutransfer.optimizers import OptimizerFacts, facts_for


@dataclass
class Records:
    """Every number by (kind, name, step) as an array (sizes, seeds); NaN where a run gave none."""

    axis: str
    sizes: list[feed.Size]
    values: list[float]
    seeds: list[int]
    data: dict[tuple[str, str, int], np.ndarray] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)  # of the smallest size
    fans: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # (fan_in, fan_out) of a site per size
    heads: dict[str, list[int]] = field(default_factory=dict)  # head size of an attention per size
    attention: dict[str, Attention] = field(default_factory=dict)
    first_use: dict[str, int] = field(default_factory=dict)
    channels: dict[str, list[int]] = field(default_factory=dict)  # last axis of a module's output per size
    models: list[nn.Module] = field(default_factory=list)  # one meta copy of the shapes per size
    facts: dict[str, OptimizerFacts | None] = field(default_factory=dict)  # per parameter; None: unknown optimizer
    optimizer_of: dict[str, str] = field(default_factory=dict)
    default_decay: dict[str, float] = field(default_factory=dict)
    diverged: dict[tuple[int, int], tuple[int, str]] = field(
        default_factory=dict
    )  # (size, seed) -> (step, first module)
    clip_is_callable: bool = False
    erased: list[tuple[float, str, str]] = field(default_factory=list)  # (size, parameter, words) of erased LR ratios

    def put(self, kind: str, name: str, step: int, i: int, j: int, value: float) -> None:
        key = (kind, name, step)
        if key not in self.data:
            self.data[key] = np.full((len(self.values), len(self.seeds)), np.nan)
        self.data[key][i, j] = value

    def get(self, kind: str, name: str, step: int = 0) -> np.ndarray | None:
        """(sizes, seeds) of one quantity, or None when it was never recorded."""
        return self.data.get((kind, name, step))

    def names(self, kind: str) -> list[str]:
        """Every name that has this kind of record, in order of first appearance."""
        return list(dict.fromkeys(name for k, name, _ in self.data if k == kind))

    def steps(self, kind: str, name: str) -> list[int]:
        """The steps at which this quantity was recorded."""
        return sorted(step for k, n, step in self.data if k == kind and n == name)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row per number: kind, name, step, size, seed, value."""
        return [
            {
                "kind": kind,
                "name": name,
                "step": step,
                self.axis: self.values[i],
                "seed": self.seeds[j],
                "value": float(v),
            }
            for (kind, name, step), array in self.data.items()
            for (i, j), v in np.ndenumerate(array)
            if not math.isnan(v)
        ]


@dataclass(frozen=True)
class Protocol:
    """How one run is made: the same at every size and seed."""

    build: Callable[[Any], Any]
    batches: list[Any]
    loss: feed.Loss
    steps: int
    clip: float | Callable[[nn.Module], Any] | None
    schedule: Callable[[Any], Any] | None
    after_step: Callable[..., Any] | None
    operator_norms: bool


def run(records: Records, protocol: Protocol, i: int, j: int) -> None:
    """One run: build, then `steps` training steps, each preceded by a recorded forward pass on the first batch."""
    model, optimizers, schedulers = make(protocol.build, records.sizes[i], records.seeds[j])
    device = next(model.parameters()).device
    batches = [feed.move(batch, device) for batch in protocol.batches]
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    check_states(optimizers, params, records.sizes[i])
    groups = {id(p): (g, o) for o in optimizers for g in o.param_groups for p in g["params"]}
    if j == 0:
        _describe(records, model, params, groups)
    if protocol.schedule is not None:
        schedulers = [*schedulers, *(protocol.schedule(optimizer) for optimizer in optimizers)]
    start = {name: p.detach().clone() for name, p in params.items()}
    for name, w in start.items():
        records.put("weight", name, 0, i, j, _rms(w))
    before: dict[str, Tensor] | None = None
    for step in range(protocol.steps + 1):
        changes = None if step == 0 else {name: p.detach() - start[name] for name, p in params.items()}
        trace, value = _recorded(model, protocol.loss, batches[0], changes, before, records.seeds[j])
        before = trace.seen.outputs if before is None else before
        _store(records, trace, step, i, j, changes)
        records.put("loss", "", step, i, j, value)
        if not math.isfinite(value):
            records.diverged[i, j] = (step, _first_bad(records, step, i, j))
            return
        if step < protocol.steps:
            _train(records, protocol, model, params, groups, optimizers, schedulers, batches, start, step, i, j)
    if j == 0 and (erased := erased_ratios(optimizers, schedulers)) is not None:
        owner = {id(p): name for name, p in params.items()}
        name = next((owner[id(p)] for p in erased[0]["params"] if id(p) in owner), next(iter(params)))
        records.erased.append((records.values[i], name, erased[1]))


def make(build: Callable[[Any], Any], size: feed.Size, seed: int) -> tuple[nn.Module, list[Any], list[Any]]:
    """The user's model and optimizers at this size, drawn from this seed. Raises InputError when their code fails."""
    _seed(seed)
    try:
        result = build(dict(size) if isinstance(size, dict) else size)
    except InputError:
        raise
    except Exception as error:
        line = str(error).strip().splitlines()
        raise InputError(f"build({size!r}) failed: {type(error).__name__}: {line[0] if line else ''}") from error
    return feed.built(result, size)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """The caller's random states (torch, numpy, python) are the same afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _rms(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x.float())) / math.sqrt(max(1, x.numel()))


def _describe(records: Records, model: nn.Module, params: dict[str, nn.Parameter], groups: dict[int, Any]) -> None:
    records.models.append(_skeleton(model))
    for name, p in params.items():
        entry = groups.get(id(p))
        if entry is None or name in records.optimizer_of:
            continue
        optimizer = entry[1]
        records.optimizer_of[name] = type(optimizer).__name__
        try:
            records.facts[name] = facts_for(optimizer)
        except InputError:
            records.facts[name] = None
        records.default_decay[name] = default_decay(optimizer)


def _skeleton(model: nn.Module) -> nn.Module:
    """A copy of the module tree whose parameters have shapes but no memory."""
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), requires_grad=p.requires_grad)
    for b in model.buffers():
        memo[id(b)] = torch.empty(b.shape, dtype=b.dtype, device="meta")
    try:
        return copy.deepcopy(model, memo)
    except Exception:  # a model that cannot be copied keeps its weights alive instead
        return model


def _recorded(
    model: nn.Module, loss: feed.Loss, batch: Any, changes: Any, before: dict[str, Tensor] | None, seed: int
) -> tuple[Trace, float]:
    """A forward pass that leaves no trace in the model: buffers and random states are put back."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    trace = Trace(model, changes=changes, before=before)
    with own_randomness():
        _seed(seed)
        with torch.no_grad(), trace:
            value = float(feed.scalar(loss(model, batch)))
    with torch.no_grad():
        for buffer, old in buffers:
            buffer.copy_(old)
    return trace, value


def _store(records: Records, trace: Trace, step: int, i: int, j: int, changes: dict[str, Tensor] | None) -> None:
    seen = trace.seen
    keys = list(seen.squares)
    if keys:
        means = torch.stack([torch.stack(seen.squares[key]).mean().float() for key in keys])
        for (kind, name), value in zip(keys, means.double().sqrt().tolist(), strict=True):
            records.put(kind, name, step, i, j, value)
    if changes is not None:
        for name, value in _numbers(
            {n: torch.linalg.vector_norm(d) / math.sqrt(d.numel()) for n, d in changes.items()}
        ):
            records.put("moved", name, step, i, j, value)
    if step == 0 and j == 0:
        for key, site in seen.sites.items():
            records.fans.setdefault(key, []).append((site.fan_in, site.fan_out))
        for key, attention in seen.attention.items():
            records.heads.setdefault(key, []).append(attention.head_size)
        for key, n in seen.leaves.items():
            records.channels.setdefault(key, []).append(n)
        if i == 0:
            records.sites, records.attention, records.first_use = seen.sites, seen.attention, seen.first_use


def _numbers(values: dict[Any, Tensor]) -> list[tuple[Any, float]]:
    """All 0-d tensors fetched from the device at once."""
    if not values:
        return []
    return list(
        zip(values, torch.stack([v.detach().float().reshape(()) for v in values.values()]).tolist(), strict=True)
    )


def _first_bad(records: Records, step: int, i: int, j: int) -> str:
    for (kind, name, at), array in records.data.items():
        if kind == "size" and at == step and not math.isfinite(array[i, j]) and name != "(model)":
            return name
    return "(model)"


def _train(
    records: Records,
    protocol: Protocol,
    model: nn.Module,
    params: dict[str, nn.Parameter],
    groups: dict[int, Any],
    optimizers: list[Any],
    schedulers: list[Any],
    batches: list[Any],
    start: dict[str, Tensor],
    step: int,
    i: int,
    j: int,
) -> None:
    for p in params.values():
        p.grad = None
    _seed(records.seeds[j] + 7919 * (step + 1))  # dropout does not depend on how many numbers the init drew
    trace = Trace(model, gradients=True)
    with trace:
        value = feed.scalar(protocol.loss(model, batches[step % len(batches)]))
    if not value.requires_grad:
        raise InputError("the loss does not depend on the model's parameters: no gradient can flow from it")
    value.backward()
    grads = {name: _dense(p.grad) for name, p in params.items() if p.grad is not None}
    _clip(records, protocol, model, grads, step, i, j)
    grads = {name: _dense(p.grad) for name, p in params.items() if p.grad is not None}
    for name in grads:
        entry = groups.get(id(params[name]))
        if entry is not None:
            for kind in ("lr", "weight_decay", "eps"):
                if isinstance(number := entry[0].get(kind), (int, float, Tensor)):
                    records.put(kind, name, step, i, j, float(number))
    previous = start if step == 0 else {name: params[name].detach().clone() for name in grads}
    for optimizer in optimizers:
        optimizer.step()
    _updates(records, protocol, params, groups, grads, previous, step, i, j)
    if trace.seen.squares:
        for (kind, name), value in _numbers({k: torch.stack(v).mean() for k, v in trace.seen.squares.items()}):
            records.put(kind, name, step, i, j, math.sqrt(max(0.0, value)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for scheduler in schedulers:
            scheduler.step()
    if protocol.after_step is not None:
        protocol.after_step(model, optimizers[0] if len(optimizers) == 1 else optimizers, step)


def _dense(g: Tensor) -> Tensor:
    return g.to_dense() if g.is_sparse else g.detach()


def _clip(
    records: Records, protocol: Protocol, model: nn.Module, grads: dict[str, Tensor], step: int, i: int, j: int
) -> None:
    if protocol.clip is None or not grads:
        return
    norms = {n: torch.linalg.vector_norm(g.float()) for n, g in grads.items()}
    before = float(torch.stack(list(norms.values())).norm())
    for name, value in _numbers(norms):
        records.put("norm before clip", name, step, i, j, value)
    if callable(protocol.clip):
        protocol.clip(model)
    else:
        torch.nn.utils.clip_grad_norm_(model.parameters(), protocol.clip)
    after = float(torch.stack([torch.linalg.vector_norm(_dense(p.grad).float()) for p in model.parameters() if p.grad is not None]).norm())  # fmt: skip
    records.put("clip", "", step, i, j, after / before if before > 0 else 1.0)


def _updates(
    records: Records,
    protocol: Protocol,
    params: dict[str, nn.Parameter],
    groups: dict[int, Any],
    grads: dict[str, Tensor],
    previous: dict[str, Tensor],
    step: int,
    i: int,
    j: int,
) -> None:
    found: dict[tuple[str, str], Tensor] = {}
    with torch.no_grad():
        for name, g in grads.items():
            p, old = params[name], previous[name]
            update = p.detach() - old
            facts = records.facts.get(name)
            decay = groups[id(p)][0].get("weight_decay", 0.0) if id(p) in groups else 0.0
            if decay and facts is not None and (facts.decay == "decoupled" or facts.kind == "sgd"):
                update.add_(
                    old, alpha=float(groups[id(p)][0]["lr"]) * float(decay)
                )  # the loss's own step, without decay
            norm = torch.linalg.vector_norm(g)
            found["gradient", name] = norm / math.sqrt(g.numel())
            found["gradient norm", name] = norm
            found["update", name] = torch.linalg.vector_norm(update) / math.sqrt(update.numel())
            found["descent", name] = -torch.dot(g.flatten(), update.flatten().to(g.dtype))
            matrix = facts is None or facts.kind == "matrix" or protocol.operator_norms
            if matrix and update.dim() >= 2:
                found["update operator norm", name] = operator_norm(update)
            if protocol.operator_norms and g.dim() >= 2:
                found["gradient operator norm", name] = operator_norm(g)
    for (kind, name), value in _numbers(found):
        records.put(kind, name, step, i, j, value)


def probe_degree(protocol: Protocol, size: feed.Size, seed: int, factor: float = 1024.0) -> dict[str, int]:
    """The degree p of an unknown optimizer, A(tG) = tᵖ A(G), per parameter, from one step with G and one with t·G."""
    found: list[dict[str, float]] = []
    for t in (1.0, factor):
        model, optimizers, _ = make(protocol.build, size, seed)
        device = next(model.parameters()).device
        _seed(seed)
        feed.scalar(protocol.loss(model, feed.move(protocol.batches[0], device))).backward()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(t)
        for optimizer in optimizers:
            optimizer.step()
        found.append({name: _rms(p.detach() - before[name]) for name, p in model.named_parameters()})
    first, second = found
    return {
        name: int(math.log(second[name] / first[name]) / math.log(factor) > 0.5)
        for name in first
        if first[name] > 0 and second[name] > 0 and math.isfinite(second[name])
    }
