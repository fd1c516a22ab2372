"""A small model and what `mutransfer.grow` made of it, trained side by side on the same batches.

`race` compares every module's output at every step. A `twin` of both, rounded anew, says what rounding alone does: no comparison can be
sharper than that.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.growth import layers
from mutransfer.growth.axis import AxisMap
from mutransfer.growth.tensors import GrowPlan
from mutransfer.growth.weights import grown
from mutransfer.plans import Plan
from tests.grow.models import OPTIMIZERS, PLANNED, SUBJECTS, Batch, Subject, loss, settings_of

Clip = Callable[[nn.Module], Any] | None


@dataclass
class Outcome:
    """Largest relative difference of any module's output over all steps, where and when.

    `tensors` is the largest of `W' = s·dup(W)` and of the buffers after the last step, `bitten` in how many steps the norm was clipped,
    `moved` how far the small model's weights went. `rounding` and `big_rounding`: what rounding alone changes in either model.
    """

    error: float = 0.0
    where: str = ""
    step: int = 0
    tensors: float = 0.0
    bitten: int = 0
    moved: float = 0.0
    rounding: float = 0.0
    big_rounding: float = 0.0
    compared: set[str] = field(default_factory=set)


@dataclass
class Pair:
    """A small model and its optimizer in the middle of training, what grew from them, and the plans of the two where they have any."""

    small: nn.Module
    optimizer: Any
    big: nn.Module
    big_optimizer: Any
    growth: GrowPlan
    record: Any = None
    small_plan: Plan | None = None
    big_plan: Plan | None = None

    def sides(self, norm: float | None) -> list[tuple[nn.Module, Any, Clip]]:
        """Both models with their optimizer and clipping: by each plan's invariant norm; without a plan by the plain one, and the grown plan's."""
        small, big = self.small_plan, self.big_plan or self.growth.plan
        clips: list[Clip] = [
            lambda m: (
                nn.utils.clip_grad_norm_(m.parameters(), norm or 0)
                if small is None
                else small.clip_grad_norm_(m, norm or 0)
            ),
            lambda m: big.clip_grad_norm_(m, norm or 0),
        ]
        if norm is None:
            clips = [None, None]
        return [(self.small, self.optimizer, clips[0]), (self.big, self.big_optimizer, clips[1])]


def train(model: nn.Module, optimizer: Any, batches: list[Batch]) -> None:
    """One step per batch."""
    for batch in batches:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()


WARM = 5
"""Steps that the small model has trained when it grows: every state is there, and no two of its numbers are equal by chance."""


def sp_pair(name: str, optimizer: str, dtype: torch.dtype = torch.float64, size: str = "big", **options: Any) -> Pair:
    """The small model in standard parametrization under the user's own optimizer; no plan is given to `grow`."""
    subject = SUBJECTS[name]
    small = subject.model(subject.small).to(dtype)
    made = OPTIMIZERS[optimizer](small, subject.pace)
    return _grown(subject, small, made, subject.model(getattr(subject, size), seed=1).to(dtype), dtype, **options)


def grow_on(name: str, pair: Pair) -> Pair:
    """What grew once, grown on to the big size."""
    subject = SUBJECTS[name]
    return _grown(subject, pair.big, pair.big_optimizer, subject.model(subject.big, seed=1), torch.float64, warm=0)


def mup_pair(name: str, optimizer: str, placement: str, dtype: torch.dtype = torch.float64) -> Pair:
    """The small model is a target of the user's plan itself, from a smaller base; it grows by the plan from that base to the big one."""
    subject, (key, _) = SUBJECTS[name], PLANNED[optimizer]
    ours, theirs = (
        mt.plan(subject.make, base=dict(subject.base or {}), target=dict(size), optimizer=key, placement=placement)
        for size in (subject.small, subject.big)
    )
    small = ours.attach(subject.model(subject.small).to(dtype))
    made = ours.optimizer(small, **settings_of(optimizer, subject.pace))
    pair = _grown(subject, small, made, subject.model(subject.big, seed=1).to(dtype), dtype, plan=theirs)
    pair.small_plan, pair.big_plan = ours, theirs
    return pair


def _grown(
    subject: Subject,
    small: nn.Module,
    made: Any,
    target: nn.Module,
    dtype: torch.dtype,
    warm: int = WARM,
    **options: Any,
) -> Pair:
    train(small, made, subject.batches(warm))
    x, y = subject.batches(1)[0]
    batches = [(x.to(dtype) if x.is_floating_point() else x, y)]
    options = {"verify": False, **options}
    big, big_optimizer, record = mt.grow(small, made, to=target, batches=batches, loss=loss, show=False, **options)
    return Pair(small, made, big, big_optimizer, record.plan, record)


def race(
    subject: Subject,
    pair: Pair,
    steps: int,
    norm: float | None = None,
    twin: Pair | None = None,
    unit: float | None = None,
) -> Outcome:
    """Train both models of the pair for `steps` steps on the same batches; `twin`, made as the pair was, is rounded anew and trained beside them."""
    outcome, copies, generator = Outcome(), {}, torch.Generator().manual_seed(0)
    start = {name: p.detach().clone() for name, p in pair.small.named_parameters()}
    sides = pair.sides(norm) + ([] if twin is None else twin.sides(norm))
    for model, _, _ in sides[2:]:
        _round(model, generator)
    for step, batch in enumerate(subject.batches(steps + 1, start=WARM)):
        seen = []
        for which, (model, optimizer, clip) in enumerate(sides):
            optimizer.zero_grad()
            with outputs(model) as found:
                loss(model, batch).backward()
            seen.append(found)
            if which > 1:
                _round(model, generator, gradients=True, unit=unit)
            if clip is not None:
                outcome.bitten += float(clip(model)) > (norm or 0) and which == 1
            if step < steps:
                optimizer.step()
        _compare(outcome, subject, pair.growth, seen, copies, step)
    have, made = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (pair.small, pair.big))
    for tensor in pair.growth.tensors:
        if not _free(subject, tensor.name):
            expected = grown(tensor, have[tensor.source].detach())
            outcome.tensors = max(outcome.tensors, difference(made[tensor.name].detach(), expected))
    outcome.moved = max(difference(p.detach(), start[name]) for name, p in pair.small.named_parameters())
    return outcome


def _compare(
    outcome: Outcome,
    subject: Subject,
    growth: GrowPlan,
    seen: list[dict[str, Tensor]],
    copies: dict[str, Copy],
    step: int,
) -> None:
    small, big = seen[:2]
    if not copies:
        for path, partner in layers.partners(growth, list(big), set(small)).items():
            if not _free(subject, path):
                copies[path] = _copy(growth, partner, big[path], small[partner], path != "")
        unseen = [path for path in big if path not in copies and not _free(subject, path)]
        assert not unseen, f"outputs without a partner: {unseen}"
    for path, copy in copies.items():
        error = difference(big[path], copy(small[copy.partner]))
        if outcome.error == outcome.error and not error <= outcome.error:  # NaN comes and stays
            outcome.error, outcome.where, outcome.step = error, path or "the output", step
        if len(seen) > 2:
            outcome.rounding = max(outcome.rounding, difference(seen[2][copy.partner], small[copy.partner]))
            outcome.big_rounding = max(outcome.big_rounding, difference(seen[3][path], big[path]))
    outcome.compared = set(copies)


@dataclass(frozen=True)
class Copy:
    """How a module's output is a copy of its partner's: by which axis maps, and times a constant that a later layer takes back."""

    partner: str
    maps: tuple[AxisMap | None, ...]
    factor: float

    def __call__(self, small: Tensor) -> Tensor:
        for axis, map_ in enumerate(self.maps):
            if map_ is not None:
                small = small.index_select(axis, map_.index())
        return small * self.factor


def _copy(growth: GrowPlan, partner: str, big: Tensor, small: Tensor, free: bool) -> Copy:
    """Read off the first step, and held to ever after: of the plan's maps of these sizes those that fit."""
    every = dict.fromkeys(map_ for tensor in growth.tensors for map_ in tensor.maps)
    sizes = zip(small.shape, big.shape, strict=True)
    choices = [[None] if b == t else [m for m in every if (m.base, m.target) == (b, t)] for b, t in sizes]
    found: list[tuple[float, Copy]] = []
    for maps in itertools.product(*choices):
        copied = Copy(partner, maps, 1.0)(small)
        factor = float((big * copied).sum() / (copied * copied).sum()) if free else 1.0
        found.append((difference(big, copied * factor), Copy(partner, maps, factor)))
    return min(found, key=lambda pair: pair[0])[1]


def _free(subject: Subject, name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in subject.free)


@torch.no_grad()
def _round(model: nn.Module, generator: torch.Generator, gradients: bool = False, unit: float | None = None) -> None:
    """Every number up or down by one unit in its last place, or left as it is."""
    for p in model.parameters():
        tensor = p.grad if gradients else p
        if tensor is not None:
            ulp = torch.randint(-1, 2, tensor.shape, generator=generator).to(tensor) * (
                unit or torch.finfo(tensor.dtype).eps
            )
            tensor.mul_(1 + ulp)


@contextmanager
def outputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The output of every module, by its path."""
    found: dict[str, Tensor] = {}
    handles = []
    for path, module in model.named_modules():

        def keep(_: nn.Module, __: Any, output: Any, path: str = path) -> None:
            if isinstance(output, Tensor):
                found[path] = output.detach()

        handles.append(module.register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected number."""
    largest = float((found.double() - expected.double()).abs().max())
    return largest / max(float(expected.double().abs().max()), 1e-300) if largest else 0.0
