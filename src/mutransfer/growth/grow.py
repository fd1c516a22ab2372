"""`mutransfer.grow`: the big model and its optimizer, started from the small one's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mutransfer.check.build import own_randomness
from mutransfer.check.feed import materialise as materialised
from mutransfer.errors import InputError
from mutransfer.growth.build import RANDOM, Maps, grow_plan
from mutransfer.growth.depth import DepthMode
from mutransfer.growth.guess import feeds as ways
from mutransfer.growth.guess import guessed_batch, guessed_loss
from mutransfer.growth.material import full, materialise, shard_state, write
from mutransfer.growth.noise import Noise, apply_noise, noise_of, noisy_moment
from mutransfer.growth.optimizer import State, grow_optimizer
from mutransfer.growth.relative import check_rates, multiplier_hooks, relative_plan
from mutransfer.growth.state import Declared, inexact_reason
from mutransfer.growth.tensors import GrowPlan
from mutransfer.growth.ties import tie_warning
from mutransfer.growth.verify import Verification, verify_growth
from mutransfer.growth.weights import grown
from mutransfer.plans import Plan
from mutransfer.shapes import clean, parameters_of

STEPS = 3
"""Training steps that `grow` verifies where it has the user's batches and both optimizers."""


@dataclass(frozen=True)
class Record:
    """What was done: the grow plan, what the verification found (None: it could not run), noise and seed, and notes.

    `scheduler` and `average` are the grown LR schedule and weight average, where they were handed over.
    """

    plan: GrowPlan
    verification: Verification | None
    noise: Noise
    seed: int
    notes: tuple[str, ...]
    scheduler: Any = None
    average: Any = None

    @property
    def exact(self) -> bool:
        """Whether the big model trains as the small one: the plan says so for every tensor, and nothing that was compared says otherwise."""
        return self.plan.exact and (self.verification is None or self.verification.ok)

    def __str__(self) -> str:
        lines = [f"noise {self.noise}, seed {self.seed}" if self.noise else "no noise"]
        lines.append("not verified" if self.verification is None else str(self.verification))
        return "\n".join([*lines, *(f"· {note}" for note in self.notes)])


@dataclass(frozen=True)
class Grown:
    """`big, big_opt, record = grow(…)`: the big model, its optimizer (None where none was given), and the record."""

    model: nn.Module
    optimizer: Any
    record: Record

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.optimizer, self.record))


def grow(
    model: nn.Module,
    optimizer: Any = None,
    *,
    to: nn.Module,
    noise: float | str | Noise = 0.0,
    seed: int = 0,
    plan: Plan | None = None,
    scheduler: Any = None,
    average: Any = None,
    batches: Any = None,
    loss: Any = None,
    steps: int | None = None,
    clip: Any = None,
    depth: DepthMode = "identity",
    uneven: bool = False,
    maps: Maps | None = None,
    axes: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    branch_out: Sequence[str] = (),
    head_size: tuple[int, int] | None = None,
    fused: Mapping[str, int | Sequence[int]] | None = None,
    multipliers: Mapping[str, float] | None = None,
    optimizer_state: State = "copy",
    state_rules: Mapping[str, Declared] | None = None,
    verify: bool | Literal["report"] = True,
    save: str | Path | None = None,
    show: bool = True,
) -> Grown:
    """Start `to`, a module of a larger shape, from `model`: `big, big_opt, record = grow(model, opt, to=big)`.

    Every unit of a growing axis is copied k-fold, `W' = s·dup(W)` with `s = 1/(a·c)`, and the optimizer's state with it, so that the big
    model computes the small one's function, and under the rates of the plan trains as it for ever (theory §6): pass the *same* base lr,
    decay and eps on. `noise` (σ, or as `Noise`) breaks the tie between copies. The small model and optimizer are not changed; `to` is
    written in place, on its own device (from the meta device: on torch's default one).

    `plan`: one from the small model to the big, or the one from your base to the big (its multipliers are then attached); without it the
    absorbed μP plan from small to big, which leaves the forward as it is and holds whatever parametrized the small model. `optimizer` may be
    a list. `scheduler` and `average` (an EMA) go on as `record.scheduler`, `record.average`. `depth` says what new blocks are: "identity"
    (they add nothing at the start), "interleave" or "append" (copies). `uneven` allows multiples that are not whole: the function is kept
    where it can be, the path is not. `maps` declares axes, {"*.qkv.weight": {0: "3×[4→8·16]"}}, as the plan prints them; `axes`, `roles`,
    `branch_out`, `head_size` and `fused` are those of `mutransfer.plan`. `multipliers` go on the outputs of the big model's modules: what
    undoes a factor of its own code that depends on the size (T5's logits × 1/√d_model), {"lm_head": 2**0.5} for twice the width.

    Before anything is done the grow plan is printed (`show`) and saved (`save`). `verify` compares outputs, gradients and, on `batches` with
    `loss(model, batch)`, `steps` training steps (`clip`: the threshold of the invariant clipping norm) before the noise; "report" leaves
    the outcome in `record.verification`, True raises GrowthError where something departs.
    Raises InputError for what cannot be grown, naming the tensor, the shapes and the line to write.
    """
    wanted = noise_of(noise)
    given, model, to = to, bare(model), bare(to)
    _check(model, to, seed, plan, save, state_rules, maps, multipliers, steps, verify, uneven)
    listed = None if batches is None else materialised(batches, max(1, STEPS if steps is None else steps))
    with own_randomness():
        reading = dict(axes=axes, roles=roles, branch_out=branch_out, head_size=head_size, fused=fused)
        relative = relative_plan(model, to, optimizer, plan, **reading)
        feeds = [] if listed is None else ways(listed[0], loss)
        made = grow_plan(model, to, relative, feeds=feeds, maps=maps, uneven=uneven, depth=depth, branch_out=branch_out)
        made = replace(
            _with_optimizer_notes(made, optimizer), hooks=multiplier_hooks(model, to, relative, plan, multipliers)
        )
        if save is not None:
            made.save(save)
        if show:
            print(made)
        made.attach(to)
        notes = _hook_notes(made)
        materialise(to, made)
        fill(model, to, made)
        big_optimizer = None
        if optimizer is not None:
            big_optimizer = grow_optimizer(optimizer, model, to, made, state=optimizer_state, state_rules=state_rules)
            shard_state(big_optimizer)
            check_rates(plan, relative, big_optimizer, to)
        schedule = None if scheduler is None else _schedule(scheduler, optimizer, big_optimizer, model, made)
        mean = None if average is None else _average(average, to, made)
        found: Verification | None = None
        if verify:
            found, more = _verified(model, to, made, listed, loss, optimizer, big_optimizer, steps, clip)
            notes += more
            if found is not None and not found.ok and verify is not True:
                notes.append("the verification failed: the big model is not the small one")
        if found is None or found.ok or verify is not True:
            notes += _noise(wanted, made, to, big_optimizer, seed)
            if wanted.preserving and wanted.size and found is not None and found.ok:
                found, _ = _verified(model, to, made, listed, loss, None, None, 0, None, outputs_only=True)
            random = RANDOM in made.notes or (found is not None and any("random in training" in n for n in found.notes))
            notes += [RANDOM] if random and RANDOM not in made.notes else []
            same = (found is None or found.ok) and not random
            if not wanted and same and (warning := tie_warning(to, made, optimizer=_one(big_optimizer))):
                notes.append(warning)
    record = Record(made, found, wanted, seed, tuple(dict.fromkeys(notes)), schedule, mean)
    if show:
        print(record)
    if found is not None and not found.ok and verify is True:
        found.raise_if_wrong()
    return Grown(given, big_optimizer, record)


def bare(model: Any) -> Any:
    """The user's own module inside DistributedDataParallel, DataParallel and torch.compile; its tensors are the same."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(model, nn.Module) and "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        else:
            return model


def _check(
    model: Any,
    to: Any,
    seed: Any,
    plan: Any,
    save: Any,
    state_rules: Any,
    maps: Any,
    multipliers: Any,
    steps: Any,
    verify: Any,
    uneven: Any,
) -> None:
    if not isinstance(model, nn.Module) or not isinstance(to, nn.Module):
        raise InputError("grow(model, optimizer, to=big_model): both models are nn.Module")
    if isinstance(model, torch.jit.ScriptModule) or isinstance(to, torch.jit.ScriptModule):
        raise InputError("a scripted model cannot be traced: give the nn.Module that it was made from")
    if model is to or {id(p) for p in model.parameters()} & {id(p) for p in to.parameters()}:
        raise InputError("to= shares tensors with the small model: build a module of its own")
    if type(seed) is not int:
        raise InputError(f"seed={seed!r}: write a whole number")
    if plan is not None and not isinstance(plan, Plan):
        raise InputError(f"plan={plan!r:.60}: give a plan that mt.plan made, or leave it out")
    if save is not None and not isinstance(save, str | Path):
        raise InputError(f"save={save!r}: write the path of a file, such as 'grow.json'")
    if steps is not None and (type(steps) is not int or steps < 0):
        raise InputError(f"steps={steps!r}: write how many training steps to compare, 0 or more")
    if verify not in (True, False, "report"):
        raise InputError(f"verify={verify!r}: write True, False or 'report'")
    if not isinstance(uneven, bool):
        raise InputError(f"uneven={uneven!r}: write True or False")
    for option, value, example in (
        ("state_rules", state_rules, "{'momentum': 1}"),
        ("maps", None if isinstance(maps, str) else maps, "{'*.qkv.weight': {0: '3×[4→8·16]'}}"),
        ("multipliers", multipliers, "{'lm_head': 1.4142}"),
    ):
        if value is not None and not isinstance(value, Mapping):
            raise InputError(f"{option}={value!r:.60}: write a mapping, such as {option}={example}")


def _hook_notes(made: GrowPlan) -> list[str]:
    if not made.hooks:
        return []
    first, count = made.hooks[0], len(made.hooks)
    what = "1 multiplier is" if count == 1 else f"{count} multipliers are"
    return [f"{what} carried by hooks of the big model ({first.module}: ×{first.factor:g}): after loading its weights into a new module call "
            f"record.plan.attach(model)"]  # fmt: skip


def _with_optimizer_notes(made: GrowPlan, optimizer: Any) -> GrowPlan:
    if optimizer is None:
        return made
    every = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    reasons = [inexact_reason(part) for one in every for part in getattr(one, "parts", [one])]
    return replace(made, notes=tuple(dict.fromkeys([*made.notes, *(r for r in reasons if r)])))


def fill(small: nn.Module, big: nn.Module, made: GrowPlan) -> None:
    """Write every tensor of the big model that the grow plan names."""
    sources = tensors_of(small)
    targets = tensors_of(big)
    with torch.no_grad():
        for growth in made.tensors:
            source, target = sources[growth.source], targets[growth.name]
            write(target, grown(growth, source.detach()))
            if isinstance(target, nn.Parameter) and target.requires_grad != source.requires_grad:
                target.requires_grad_(source.requires_grad)  # what is frozen stays frozen


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their names in the user's own model (wrappers' prefixes dropped)."""
    found = {name: p.module._parameters[p.attribute] for name, p in parameters_of(model).items()}
    tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
    buffers = {clean(name): b for name, b in model.named_buffers(remove_duplicate=False)}
    return {**buffers, **tensors}


def _verified(
    small: nn.Module, big: nn.Module, made: GrowPlan, batches: Any, loss: Any, optimizer: Any, big_optimizer: Any,
    steps: int | None, clip: Any, outputs_only: bool = False,
) -> tuple[Verification | None, list[str]]:  # fmt: skip
    if batches is None:
        guess = guessed_batch(small)
        if guess is None:
            return None, ["not verified: the model takes none of the guessed inputs; give batches= (and loss=)"]
        batches, loss = [guess], guessed_loss
        note = ["verified on guessed inputs; batches= and loss= verify on yours, and training steps with them"]
        steps = 0 if steps is None else steps
    else:
        note = []
    count = (STEPS if optimizer is not None else 0) if steps is None else steps
    pair = (optimizer, big_optimizer) if count else (None, None)
    return verify_growth(
        small,
        big,
        made,
        batches,
        loss,
        optimizer=pair[0],
        big_optimizer=pair[1],
        steps=count,
        clip=clip,
        outputs_only=outputs_only,
    ), note


def _noise(noise: Noise, made: GrowPlan, big: nn.Module, optimizer: Any, seed: int) -> list[str]:
    if not noise:
        return []
    tensors = tensors_of(big)
    whole = {t.name: full(tensors[t.name]) for t in made.tensors if t.row is not None}
    notes = [*apply_noise(noise, made, lambda name: whole[name], seed)]
    every = [] if optimizer is None else optimizer if isinstance(optimizer, list) else [optimizer]
    with torch.no_grad():
        for growth in made.tensors:
            if growth.row is None:
                continue
            if whole[growth.name] is not tensors[growth.name]:  # sharded
                write(tensors[growth.name], whole[growth.name])
            states = [one.state.get(tensors[growth.name], {}) for one in every] if noise.moments else []
            for key, value in ((k, v) for state in states for k, v in state.items() if isinstance(v, Tensor)):
                write(value, noisy_moment(noise, growth, full(value), key, seed, made.plan[growth.row]))
    return notes


def _one(optimizer: Any) -> Any:
    return (
        optimizer[0]
        if isinstance(optimizer, list) and len(optimizer) == 1
        else None
        if isinstance(optimizer, list)
        else optimizer
    )


def _schedule(scheduler: Any, optimizer: Any, big_optimizer: Any, small: nn.Module, made: GrowPlan) -> Any:
    from mutransfer.growth.schedule import grow_scheduler

    if big_optimizer is None:
        raise InputError(
            "scheduler= goes with the optimizer that it drives: grow(model, optimizer, to=big, scheduler=…)"
        )
    if isinstance(big_optimizer, list):
        driven = getattr(scheduler, "optimizer", None)
        place = next((i for i, one in enumerate(optimizer) if one is driven), None)
        if place is None:
            raise InputError("scheduler= drives none of the optimizers given")
        big_optimizer = big_optimizer[place]
    return grow_scheduler(scheduler, big_optimizer, small, made)


def _average(average: Any, big: nn.Module, made: GrowPlan) -> Any:
    from mutransfer.growth.schedule import grow_average

    return grow_average(average, big, made)
