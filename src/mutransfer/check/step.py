"""One training step of the user's own loop, and the sizes of its gradients and updates."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mutransfer.check import feed
from mutransfer.check.build import make, seed_all
from mutransfer.check.optimizer import operator_norm
from mutransfer.check.seen import numbers as _numbers
from mutransfer.check.trace import Trace
from mutransfer.errors import InputError

if TYPE_CHECKING:
    from mutransfer.check.record import Protocol, Records

NO_GRADIENT = 1e-30  # a norm below which a gradient is an exact zero
ROUNDING = 1e-3  # of what decay took: a remainder below this is rounding
STEPS = ("update", "descent", "update operator norm")
PROBE = 1024.0


def train(
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
    seed_all(records.seeds[j] + 7919 * (step + 1))  # dropout does not depend on how many numbers the init drew
    trace = Trace(model, gradients=True)
    with trace:
        value = feed.scalar(protocol.loss(model, batches[step % len(batches)]))
    if not value.requires_grad:
        raise InputError("the loss does not depend on the model's parameters: no gradient can flow from it")
    value.backward()
    grads = {name: _dense(p.grad) for name, p in params.items() if p.grad is not None}
    _clip(records, protocol, model, grads, step, i, j)
    # copies: schedule-free AdamW, for one, divides the gradient in place
    grads = {name: _dense(p.grad).clone() for name, p in params.items() if p.grad is not None}
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
            group = groups[id(p)][0] if id(p) in groups else {}
            decay = float(group.get("lr", 0.0)) * float(group.get("weight_decay", 0.0) or 0.0)
            if decay and facts is not None and (facts.decay == "decoupled" or facts.kind == "sgd"):
                update.add_(old, alpha=decay)  # the loss's own step, without decay
                found["decayed", name] = decay * torch.linalg.vector_norm(old) / math.sqrt(old.numel())
            norm = torch.linalg.vector_norm(g)
            found["gradient", name] = norm / math.sqrt(g.numel())
            found["gradient norm", name] = norm
            found["gradient touched", name] = norm / torch.count_nonzero(g).clamp_min(1).sqrt()
            found["update", name] = torch.linalg.vector_norm(update) / math.sqrt(update.numel())
            found["descent", name] = -torch.dot(g.flatten(), update.flatten().to(g.dtype))
            matrix = facts is None or facts.kind == "matrix" or protocol.operator_norms
            if matrix and update.dim() >= 2:
                found["update operator norm", name] = operator_norm(update)
            if protocol.operator_norms and g.dim() >= 2:
                found["gradient operator norm", name] = operator_norm(g)
    numbers = dict(_numbers(found))
    for (kind, name), value in numbers.items():
        if kind in STEPS and not _is_step(numbers, name):
            continue
        if kind != "decayed":
            records.put(kind, name, step, i, j, value)


def _is_step(numbers: dict[Any, float], name: str) -> bool:
    """Whether the loss moved this tensor: without a gradient only decay, or the rounding of it, does."""
    if numbers["gradient norm", name] < NO_GRADIENT:
        return False
    return numbers["update", name] >= ROUNDING * numbers.get(("decayed", name), 0.0)


def probe_degree(protocol: Protocol, size: feed.Size, seed: int) -> dict[str, tuple[int, ...]]:
    """The degree p of the optimizer, A(tG) = tᵖ A(G), per parameter, between steps with t = 1, 2¹⁰ and 2²⁰ times the gradient.

    The second number is free of any eps; the first is what happens at the gradient's own size.
    """
    found: list[dict[str, float]] = []
    for t in (1.0, PROBE, PROBE**2):
        model, optimizers, _ = make(protocol.build, size, seed)
        device = next(model.parameters()).device
        seed_all(seed)
        feed.scalar(protocol.loss(model, feed.move(protocol.batches[0], device))).backward()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(t)
        for optimizer in optimizers:
            optimizer.step()
        moved = {n: torch.linalg.vector_norm((p.detach() - before[n]).double()) for n, p in model.named_parameters()}
        found.append(dict(_numbers(moved)))
    return {
        name: tuple(int(math.log(b[name] / a[name]) / math.log(PROBE) > 0.5) for a, b in itertools.pairwise(found))
        for name in found[0]
        if all(one[name] > 0 and math.isfinite(one[name]) for one in found)
    }
