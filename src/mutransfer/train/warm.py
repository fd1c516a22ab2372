"""A run that starts grown: the same run of a smaller model first, then its weights and optimizer's state in the big one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mutransfer.errors import InputError

if TYPE_CHECKING:
    from mutransfer.train.config import RunConfig
    from mutransfer.train.loop import Run

FOLDER = "grown-from"
"""Where small runs are kept, each under its config's hash: every run that starts from it finds it there."""


def resolved(grow_from: Mapping[str, Any], model: Any) -> dict[str, int]:
    """The small model's sizes: numbers, and "/2" for half of the big model's, which a grid over sizes needs.

    Raises InputError for a name that is no size of the model, and for a size that is not whole, or not smaller.
    """
    sizes = {f.name: getattr(model, f.name) for f in fields(model) if type(getattr(model, f.name)) is int}
    found: dict[str, int] = {}
    for name in sorted(grow_from, key=str):
        value = grow_from[name]
        if name not in sizes:
            raise InputError(
                f"grow_from={dict(grow_from)!r}: {name} is no size of the model: write one of {', '.join(sizes)}"
            )
        if isinstance(value, str):
            factor = value.removeprefix("/")
            if not (value.startswith("/") and factor.isdigit() and int(factor) > 1) or sizes[name] % int(factor):
                raise InputError(
                    f"grow_from {name}={value!r} of {name}={sizes[name]}: write a size, or /2 for half of it"
                )
            value = sizes[name] // int(factor)
        if type(value) is not int or not 1 <= value <= sizes[name]:
            raise InputError(
                f"grow_from {name}={value!r}: write a whole number from 1 to the model's {name}={sizes[name]}"
            )
        found[name] = value
    if all(found[name] == sizes[name] for name in found):
        raise InputError(f"grow_from={found!r}: those are the model's own sizes, so nothing grows: write smaller ones")
    return found


def check(config: RunConfig) -> None:
    """Raise InputError for settings of growing that mean nothing."""
    if config.grow_from is None:
        for f in fields(config):
            if f.name.startswith("grow_") and getattr(config, f.name) != f.default:
                raise InputError(f"{f.name}={getattr(config, f.name)!r} is of a run that starts grown: give grow_from={{'width': 32}} too")  # fmt: skip
        return
    if type(config.grow_steps) is not int or config.grow_steps < 1:
        raise InputError(
            f"grow_steps={config.grow_steps!r}: give the updates of the small model, a whole number of at least 1"
        )
    if config.duration is not None:
        raise InputError(
            f"duration={config.duration!r} of a run that starts grown: its settings would change where it grows"
        )
    if config.recipe != "sp" and (missing := [name for name in config.grow_from if name not in config.base]):
        name = missing[0]
        raise InputError(
            f"grow_from={config.grow_from!r} with base={config.base!r}: the base must name {name}, which grows"
        )
    for name, known in (("grow_state", ("copy", "fresh")), ("grow_depth", ("identity", "interleave", "append"))):
        if getattr(config, name) not in known:
            raise InputError(f"{name}={getattr(config, name)!r} is unknown: choose from {', '.join(known)}")
    noise_words(config)
    try:
        small_config(config)
    except InputError as error:
        raise InputError(f"the run of the small model: {error}") from None


def noise_words(config: RunConfig) -> Any:
    """The noise as `mutransfer.grow` takes it: the size with the words of `grow_noise_kind`."""
    from mutransfer.growth.noise import noise_of

    kind = config.grow_noise_kind
    return noise_of(f"{kind}:{config.grow_noise!r}" if isinstance(kind, str) and kind else config.grow_noise)


def without_growth(config: RunConfig) -> RunConfig:
    """The same run, started from fresh weights."""
    plain = {f.name: f.default for f in fields(config) if f.name.startswith("grow_")}
    return replace(config, **plain)


def small_config(config: RunConfig) -> RunConfig:
    """The run of the small model, which decides nothing by what happens after it: runs that differ in that only share it."""
    assert config.grow_from is not None and config.grow_steps is not None
    given = {"lr": config.grow_lr, "warmup": config.grow_warmup, "schedule": config.grow_schedule}
    changes = {name: value for name, value in given.items() if value is not None}
    plain = without_growth(config)
    model = replace(config.model, **config.grow_from)
    return replace(plain, model=model, steps=config.grow_steps, val_every=0, **changes)


@contextlib.contextmanager
def alone(folder: Path | None) -> Iterator[None]:
    """While one process trains the small model in `folder`, others that need it wait. A killed one lets go."""
    if folder is None or sys.platform == "win32":
        yield
        return
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system releases it however the process ends
        yield


def grow_from(run: Run, config: RunConfig, cache: Path | None, resume: bool) -> None:
    """Train the small model, or find it in its folder in `cache`, and start the big run from it.

    Raises InputError where it cannot grow, before anything is trained, and for what is no checkpoint of the small run.
    """
    from mutransfer.train.checkpoint import CHECKPOINT, load_checkpoint, refuse_other_config
    from mutransfer.train.loop import Run, make_folder, resolve_plan
    from mutransfer.train.task import Task

    folder = None if cache is None else cache.absolute() / config.hash()[:32]
    path, ranks = None if folder is None else folder / CHECKPOINT, run.ranks
    small = Run(
        config,
        resolve_plan(config, None, None, None),
        Task.of(config, run.device, run.task.data, ranks),
        run.device,
        path,
    )
    if path is None or not path.exists():
        check_growing(run, small)
    with alone(folder) if ranks.size == 1 else contextlib.nullcontext():
        if path is not None and path.exists() and resume:
            saved = load_checkpoint(path)
            refuse_other_config(path, saved["config"], config)
            if saved["data"] != run.task.data.fingerprint or saved["plan"] != small.plan.to_dict():
                raise InputError(
                    f"{path} was trained on other data or by another release: remove {folder} to train it again"
                )
            small.restore(saved)
        elif folder is not None and ranks.main:
            make_folder(folder)
        small.finish(None)
    start(run, small)
    torch.manual_seed(
        ranks.seed(run.config.seed + 1)
    )  # what the big run draws does not depend on what the small one drew


def check_growing(run: Run, small: Run) -> None:
    """Raise InputError where the small model cannot become the big one; before it is trained."""
    from mutransfer.growth.build import grow_plan
    from mutransfer.growth.relative import relative_plan

    relative = relative_plan(small.model, run.model, small.optimizer, _plan(run))
    grow_plan(small.model, run.model, relative, batch=((run.task.batch(0)[0],), {}), depth=_depth(run))


def start(run: Run, small: Run) -> None:
    """Put the ended small run into the big one, which has not begun: weights, optimizer's state, noise; and what it cost.

    Outputs and gradients are compared on the run's first batch before the noise (GrowthError where they differ). Under `sp` the weights and
    the state are the same as under μP, of which the function is kept; only the rates that follow are the standard ones.
    """
    from mutransfer.growth.grow import grow
    from mutransfer.optimizers.classes import ready

    config = run.config
    result = small.result()
    run.before = {"flops": result.flops, "seconds": result.seconds, "loss": result.val_loss if result.val_loss is not None else result.train_loss}  # fmt: skip
    if result.status == "diverged":
        run.status, run.diverged_at, run.reason = "diverged", 0, f"the small model, before growing: {result.reason}"
        return
    ready(small.optimizer)
    small.model.train()
    state = "copy" if config.grow_state == "copy" else "fresh"
    made = grow(
        small.model, small.optimizer, to=run.model, plan=_plan(run), noise=noise_words(config), seed=config.seed,
        optimizer_state=state, depth=_depth(run), batches=[run.task.batch(0)], loss=_loss, steps=0, show=False,
    )  # fmt: skip
    run.model.train()
    if state == "copy":
        _take_state(run.optimizer, made.optimizer)


def _plan(run: Run) -> Any:
    return None if run.config.recipe == "sp" else run.plan


def _depth(run: Run) -> Any:
    return run.config.grow_depth


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def _take_state(optimizer: torch.optim.Optimizer, grown: torch.optim.Optimizer) -> None:
    """The state of the grown optimizer, whose groups and rates are those of growing, in the run's own."""
    ours, theirs = (getattr(one, "parts", [one]) for one in (optimizer, grown))
    held = {p: state for part in theirs for p, state in part.state.items()}
    for part in ours:
        for group in part.param_groups:
            for p in group["params"]:
                if p in held:
                    part.state[p] = held[p]
