"""Run the user's own code at every size and seed and write down the sizes of everything, as rows of numbers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mutransfer.check import feed
from mutransfer.check.build import make, own_randomness, seed_all
from mutransfer.check.optimizer import check_states, default_of, erased_ratios, facts_of, owners
from mutransfer.check.seen import Attention, Site, numbers
from mutransfer.check.step import train
from mutransfer.check.trace import Trace
from mutransfer.optimizers import OptimizerFacts


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
    default_eps: dict[str, float] = field(default_factory=dict)
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
    groups = owners(optimizers)
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
            train(records, protocol, model, params, groups, optimizers, schedulers, batches, start, step, i, j)
    if j == 0 and (erased := erased_ratios(optimizers, schedulers)) is not None:
        owner = {id(p): name for name, p in params.items()}
        name = next((owner[id(p)] for p in erased[0]["params"] if id(p) in owner), next(iter(params)))
        records.erased.append((records.values[i], name, erased[1]))


def _rms(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x.float())) / math.sqrt(max(1, x.numel()))


def _describe(records: Records, model: nn.Module, params: dict[str, nn.Parameter], groups: dict[int, Any]) -> None:
    records.models.append(_skeleton(model))
    for name, p in params.items():
        entry = groups.get(id(p))
        if entry is None or name in records.optimizer_of:
            continue
        group, optimizer = entry
        records.optimizer_of[name] = str(group.get("optimizer", type(optimizer).__name__))
        records.facts[name] = facts_of(group, optimizer)
        records.default_decay[name] = default_of(optimizer, "weight_decay")
        records.default_eps[name] = default_of(optimizer, "eps")


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
        seed_all(seed)
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
        for name, value in numbers({n: torch.linalg.vector_norm(d) / math.sqrt(d.numel()) for n, d in changes.items()}):
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


def _first_bad(records: Records, step: int, i: int, j: int) -> str:
    for (kind, name, at), array in records.data.items():
        if kind == "size" and at == step and not math.isfinite(array[i, j]) and name != "(model)":
            return name
    return "(model)"
