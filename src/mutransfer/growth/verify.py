"""Is the big model the small one? Outputs layer by layer, gradients by the rule, and the same path for n steps (theory §6).

Everything runs on copies, in float64 where the user's code can. What is allowed is measured: the small model runs a second time with every
number rounded anew, and what that changes, times `SAFETY`, is what rounding explains, in each tensor and step on its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.check import feed
from mutransfer.check.build import own_randomness
from mutransfer.clip import clip_grad_norm_
from mutransfer.errors import InputError
from mutransfer.growth import layers
from mutransfer.growth.build import numbers
from mutransfer.growth.shadow import Manner, Shadow, manner
from mutransfer.growth.tensors import GrowPlan, TensorGrowth
from mutransfer.growth.verification import OUTPUT, Check, GrowthError, Verification
from mutransfer.growth.weights import grown, grown_moment
from mutransfer.shapes import clean

__all__ = ["Check", "GrowthError", "Verification", "verify_growth"]

SAFETY = 20.0
FLOOR = 1e-10
"""Always allowed: sums over k copies round otherwise than k times one."""


def verify_growth(
    small: nn.Module,
    big: nn.Module,
    grow_plan: GrowPlan,
    batches: Any,
    loss: feed.Loss | None = None,
    *,
    optimizer: Any = None,
    big_optimizer: Any = None,
    steps: int = 0,
    clip: Any = None,
    tolerance: float | None = None,
    outputs_only: bool = False,
) -> Verification:
    """Compare the grown model with the small one on the user's batches, and say what departs first, and by how much.

    `W' = s·dup(W)` for every tensor; outputs of every module that have a partner; `G' = g·dup(G)`; then `steps` steps of both optimizers
    (each one or a list), in their present state, `clip` being None, a norm (the plan's invariant one) or a function of a model that clips.
    `batches` and `loss` as in `coord_check`. `tolerance` replaces the measured one. `outputs_only` leaves weights, gradients and steps
    out: for a model with function-preserving noise. Batch norms run in training mode, everything random in eval mode.

    Nothing of the caller's changes: models, optimizers, random state. Raises InputError for what cannot be verified.
    """
    if not isinstance(small, nn.Module) or not isinstance(big, nn.Module) or not isinstance(grow_plan, GrowPlan):
        raise InputError(
            "verify_growth(small, big, grow_plan, batches): two modules, and the grow plan (record.plan, or GrowPlan.load)"
        )
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise InputError(f"steps={steps!r}: write how many training steps to compare, 0 or more")
    if steps and (optimizer is None or big_optimizer is None):
        raise InputError(f"steps={steps}: hand over optimizer= of the small model and big_optimizer= of the big one")
    if tolerance is not None and not (isinstance(tolerance, int | float) and tolerance > 0):
        raise InputError(f"tolerance={tolerance!r}: write a positive number, or leave it out to have it measured")
    if clip is not None and not callable(clip) and not (isinstance(clip, int | float) and clip > 0):
        raise InputError(
            f"clip={clip!r}: write a positive norm such as 1.0, or a function that clips a model's gradients"
        )
    if any(p.is_meta for model in (small, big) for p in model.parameters()):
        raise InputError("a model is on the meta device: materialise it first, there is nothing to verify")
    ours, theirs = (
        [] if o is None else list(o) if isinstance(o, list | tuple) else [o] for o in (optimizer, big_optimizer)
    )
    for model, every, which in ((small, ours, "optimizer"), (big, theirs, "big_optimizer")):
        owned = {id(p) for p in model.parameters()}
        if any(not any(id(p) in owned for group in o.param_groups for p in group["params"]) for o in every):
            raise InputError(
                f"{which}= trains no parameter of its model: optimizer= is the small model's, big_optimizer= the big one's"
            )
    if outputs_only and steps:
        raise InputError(
            f"steps={steps} with outputs_only=True: outputs alone are compared before any step; leave one out"
        )
    with own_randomness():
        listed = feed.materialise(batches, max(1, steps))
        comparison = _Comparison(grow_plan, tolerance)
        if not outputs_only:
            comparison.plan()
            comparison.shared(small, big, ours, theirs)
            comparison.weights(small, big)
        kept, same, steps = comparison.extent(outputs_only, steps)
        if kept:
            how = manner(small, ours if steps else [], loss or feed.default_loss, listed[0])
            comparison.run(
                how, small, big, ours, theirs, listed, loss or feed.default_loss, clip, same, steps, outputs_only
            )
    return Verification(tuple(comparison.checks.values()), steps, tuple(comparison.notes))


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected number; 0 where both are zero."""
    if found.numel() == 0:
        return 0.0
    found, expected = (
        (torch.view_as_real(t.detach().resolve_conj()) if t.is_complex() else t.detach()).double()
        for t in (found, expected)
    )
    largest = float((found - expected).abs().max())
    return 0.0 if largest == 0.0 else largest / max(float(expected.abs().max()), 1e-300)


@dataclass
class _Comparison:
    growth: GrowPlan
    tolerance: float | None
    checks: dict[tuple[str, str], Check] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    floor: float = FLOOR
    unit: float = 0.0
    blur: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, name: str, error: float, allowed: float, step: int = 0, detail: str = "") -> None:
        """Keep the first failure of a name, else its worst step."""
        allowed = allowed if self.tolerance is None or stage in ("plan", "shared") else self.tolerance
        check, known = Check(stage, name, step, error, allowed, detail), self.checks.get((stage, name))
        if known is None or (known.ok and (not check.ok or check.error / allowed > known.error / known.allowed)):
            self.checks[stage, name] = check

    def plan(self) -> None:
        """s·g is what the plan asks for: a first-order change of the loss is the same in both models."""
        for tensor in () if self.growth.depth else self.growth.tensors:
            if tensor.row is not None:
                s, g = numbers(self.growth.plan[tensor.row], self.growth.plan)
                error = abs(tensor.scale * tensor.gradient / (s * g) - 1)
                if error > 1e-9:
                    self.add(
                        "plan",
                        tensor.name,
                        error,
                        1e-9,
                        detail=f"scale·gradient is {tensor.scale * tensor.gradient:.6g}, due {s * g:.6g}",
                    )

    def shared(self, small: nn.Module, big: nn.Module, ours: list[Any], theirs: list[Any]) -> None:
        """No tensor of one side is the other's: a step counter in common counts twice."""
        mine = {t.untyped_storage().data_ptr() for _, t in _everything(small, ours)} - {0}
        for name, tensor in _everything(big, theirs):
            if tensor.untyped_storage().data_ptr() in mine:
                self.add("shared", name, 1.0, 0.0)

    def weights(self, small: nn.Module, big: nn.Module) -> None:
        """`W' = s·dup(W)` in the type that W' is stored in; buffers are equal."""
        have, made = _tensors(small), _tensors(big)
        for tensor in self.growth.tensors:
            if tensor.name not in made or tensor.source not in have:
                raise InputError(
                    f"the grow plan's {tensor.name!r} ← {tensor.source!r} is not in these models: give those it was made for"
                )
            source, found = have[tensor.source], made[tensor.name]
            if source.shape != tensor.base_shape or found.shape != tensor.target_shape:
                raise InputError(
                    f"{tensor.name!r}: the grow plan goes from {tensor.base_shape} to {tensor.target_shape}, these models have "
                    f"{tuple(source.shape)} and {tuple(found.shape)}: give those it was made for"
                )
            exact = source.detach().double() if source.is_floating_point() else source.detach()
            floating = [t.dtype for t in (source, found) if t.is_floating_point()]
            allowed = 4 * max([torch.finfo(d).eps for d in floating], default=0.0)
            self.add("weights", tensor.name, difference(found, grown(tensor, exact)), allowed)

    def extent(self, outputs_only: bool, steps: int) -> tuple[bool, bool, int]:
        """Whether the function is kept, whether gradients follow their rule, and for how many steps the path; notes say why not."""
        sources = [t.source for t in self.growth.tensors if not t.buffer]
        fresh = any(t.fresh for t in self.growth.tensors)
        if len(set(sources)) < len(sources) and not fresh:
            self.notes.append("repeated blocks do not keep the function: only the copies themselves were compared")
            return False, False, 0
        if fresh:
            self.notes.append(
                "new blocks start at zero: outputs were compared, gradients and training are not the small model's"
            )
        inexact = next((t for t in self.growth.tensors if t.inexact), None)
        if steps and inexact is not None and not fresh:
            self.notes.append(f"training was not compared: {inexact.name} will not train alike ({inexact.inexact})")
        same = not (outputs_only or fresh)
        return True, same, steps if same and inexact is None else 0

    def run(
        self,
        how: Manner,
        small: nn.Module,
        big: nn.Module,
        ours: list[Any],
        theirs: list[Any],
        batches: list[Any],
        loss: feed.Loss,
        clip: Any,
        same: bool,
        steps: int,
        outputs_only: bool,
    ) -> None:
        """Three models side by side: the small one, the small one rounded anew, the big one."""
        if how.still:
            self.notes.append("the model is random in training mode: its modules ran in eval mode, batch norms apart")
        if not how.double:
            self.notes.append("the loss does not run in float64: compared in the models' own precision")
        base, rounded, target = (
            how.shadow(model, optimizers if steps else [])
            for model, optimizers in ((small, ours), (small, ours), (big, theirs))
        )
        exact = how.double and not outputs_only
        if exact:  # what storing W' rounded was judged before: here it would only blur the comparison
            rounded.stored_states = self._exact(base, target)
        self.unit = max(how.rounding, 0.0 if exact else how.stored)
        rounded.perturb(2 * self.unit)
        self.floor = FLOOR + SAFETY * max(self.unit, rounded.stored_states)
        settings = [
            v for o in target.optimizers for g in o.param_groups for v in g.values()
        ]  # a learning rate as a tensor
        rates = [torch.finfo(v.dtype).eps for v in settings if isinstance(v, Tensor) and v.is_floating_point()]
        self.floor += SAFETY * max(rates, default=0.0)
        models = (base, rounded, target)
        for step in range(steps + 1):
            values, outputs = [], []
            wanted = step < steps or (step == 0 and same)  # the last pass is there for its outputs
            for model in models:
                with model.outputs() as found:
                    values.append(_backward(model, loss, batches[step % len(batches)], wanted, model is target))
                outputs.append(found)
            off, near = (abs(values[i] - values[0]) / max(abs(values[0]), 1e-300) for i in (2, 1))
            if "" in outputs[0]:
                near = max(near, difference(outputs[1][""], outputs[0][""]))
            # one small tensor may escape by luck what rounding does to the rest
            self.floor = max(self.floor, FLOOR + SAFETY * near)
            if wanted:
                self._blur(base)
            self._layers(outputs, step)
            self.add("path" if step else "loss", "loss", off, self.floor, step)
            if step == 0 and same:
                self._gradients(models, list(outputs[2]))
            if step == steps:
                break
            rounded.perturb_gradients(step)
            for model in models:
                _clip(model, clip, self.growth if model is target else None)
                model.step()
            self._tensors(models, list(outputs[2]), step + 1)
        unjudged = [c.name for c in self.checks.values() if c.ok and c.allowed > 0.1]
        if unjudged:
            self.notes.append(f"rounding alone changes {listed(unjudged)} by more than a tenth: not judged")

    def _exact(self, base: Shadow, target: Shadow) -> float:
        """Put the exact copies where the big model's weights and moments are these but for the type they are stored in.

        A moment is `g·dup(m)` or `g²·dup(m)`; whether it is the right one shows in training. Returns the rounding of states that are
        neither.
        """
        mine, theirs = ({id(p): state for o in m.optimizers for p, state in o.state.items()} for m in (base, target))
        keys: dict[int, list[str]] = {}
        for values, key in target.states():
            keys.setdefault(id(values), []).append(key)
        left = 0.0
        for tensor in (t for t in self.growth.tensors if not t.buffer):
            small, big = base.parameters[tensor.source], target.parameters[tensor.name]
            if self.checks["weights", tensor.name].ok:
                big.data.copy_(grown(tensor, small.detach()))
            states, held = mine.get(id(small), {}), theirs.get(id(big), {})
            for key in keys.get(id(held), ()):
                source = states.get(key)
                exact = []
                if isinstance(source, Tensor) and source.shape == small.shape and held[key].shape == big.shape:
                    exact = [grown_moment(tensor, source, degree) for degree in (1, 2)]
                near = [e for e in exact if difference(held[key], e) <= 4 * target.stored_states]
                left = left if near else target.stored_states
                held[key] = near[0] if near else held[key]
        return left

    def _blur(self, base: Shadow) -> None:
        """What the rounding of the largest gradient is to each tensor's own: one that is zero but for rounding is all noise."""
        sizes = {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in base.parameters.items()}
        largest = max(sizes.values())
        for name, size in sizes.items():
            blur = self.unit * largest / max(size, 1e-300)
            self.blur[name] = max(self.blur.get(name, 0.0), blur)

    def _layers(self, outputs: list[dict[str, Tensor]], step: int) -> None:
        """Outputs of modules that have a partner; a layer may carry a constant that a later one takes back, the model may not."""
        small, near, big = outputs
        scaled = ""
        for path, partner in layers.partners(self.growth, list(big), set(small)).items():
            if step and path:
                continue
            found = layers.compare(self.growth, path, big[path], small[partner], free=path != "")
            allowed = self.floor + SAFETY * difference(near[partner], small[partner])
            off = abs(found.factor - 1) > max(allowed, 1e-6)
            wrong = not found.error <= allowed
            words = f"the output of {path} is {found.factor:.4g} times the copy" if off and path and not wrong else ""
            self.add(
                "path" if step else "layers", path or OUTPUT, found.error, allowed, step, scaled if wrong else words
            )
            scaled = words or scaled

    def _gradients(self, models: tuple[Shadow, Shadow, Shadow], order: list[str]) -> None:
        """`G' = g·dup(G)`, from the loss backwards."""
        for tensor in reversed(_forward_order(self.growth, order)):
            mine, near, found = (
                m.parameters[n].grad for m, n in zip(models, (tensor.source, tensor.source, tensor.name), strict=True)
            )
            if mine is None and found is None:
                continue
            if mine is None or found is None or near is None:
                detail = f"only the {'big' if mine is None else 'small'} model's loss depends on it"
                self.add("gradients", tensor.name, float("inf"), self.floor, detail=detail)
                continue
            error = difference(found, grown_moment(tensor, mine, 1))
            allowed = self.floor + SAFETY * (self.blur[tensor.source] + difference(near, mine))
            self.add("gradients", tensor.name, error, allowed)

    def _tensors(self, models: tuple[Shadow, Shadow, Shadow], order: list[str], step: int) -> None:
        """`W' = s·dup(W)` after a step, and the buffers that the forward pass before it changed."""
        mine, near, found = (m.parameters | _tensors(m.model) for m in models)
        for tensor in (*_forward_order(self.growth, order), *(t for t in self.growth.tensors if t.buffer)):
            source = mine[tensor.source].detach()
            error = difference(found[tensor.name], grown(tensor, source))
            blur = self.blur.get(tensor.source, 0.0) + difference(near[tensor.source], source)
            self.add("path", tensor.name, error, self.floor + SAFETY * blur, step)


def _forward_order(growth: GrowPlan, finished: list[str]) -> list[TensorGrowth]:
    """The parameters in the order in which their modules ran; those of modules that were never called come as they are listed."""
    place = {path: i for i, path in enumerate(finished)}
    own = [t for t in growth.tensors if not t.buffer]
    return sorted(own, key=lambda t: place.get(t.name.rpartition(".")[0], len(finished)))


def _backward(model: Shadow, loss: feed.Loss, batch: Any, gradients: bool, big: bool) -> float:
    try:
        return model.backward(loss, batch, gradients)
    except Exception as error:
        raise InputError(
            f"loss(model, batch) fails on the {'big' if big else 'small'} model: {type(error).__name__}: {error}"
        ) from error


def listed(names: list[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _clip(model: Shadow, clip: Any, growth: GrowPlan | None) -> None:
    if callable(clip):
        clip(model.model)
    elif clip is not None and growth is not None:
        clip_grad_norm_(growth.plan, model.model, clip)
    elif clip is not None:
        nn.utils.clip_grad_norm_(model.model.parameters(), clip)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {clean(name): tensor for name, tensor in named}


def _everything(model: nn.Module, optimizers: list[Any]) -> Iterable[tuple[str, Tensor]]:
    """Parameters and optimizer states, with a name for each."""
    names = {id(p): name for name, p in model.named_parameters()}
    yield from model.named_parameters()
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    yield f"{key} of {names.get(id(parameter), 'a tensor')}", value
