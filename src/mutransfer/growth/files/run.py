"""A run of ours: grown, it is a run that `mutransfer train` continues under the same base settings."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mutransfer.build import plan as make_plan
from mutransfer.errors import InputError
from mutransfer.growth.files.checkpoint import Checkpoint
from mutransfer.growth.files.groups import state_later
from mutransfer.growth.files.growing import Growing, check_weights
from mutransfer.growth.files.torch_file import open_torch, save_torch
from mutransfer.growth.optimizer import COUNTERS, LR_KEYS, parts_of
from mutransfer.growth.state import inexact_reason
from mutransfer.plans import Plan
from mutransfer.train import RunConfig, Task
from mutransfer.train.checkpoint import CHECKPOINT, FORMAT
from mutransfer.train.loop import make_optimizer, resolve_plan
from mutransfer.train.schedule import make_scheduler, multiplier

_GIVEN = {"inputs", "outputs", "vocab_size", "channels", "classes", "context"}


def is_run(content: Any) -> bool:
    """Whether this is what a run of ours saved."""
    return isinstance(content, dict) and {"format", "config", "config_hash", "plan", "rng"} <= content.keys()


class Run(Checkpoint):
    """The folder of a run.

    The grown run has the source's base settings, so that the same base LR, decay and eps go on; a run without a recipe (`sp`) is the
    base itself, and goes on under μP from its own sizes. Step counters, the position in the schedule and in the data, the random
    state and the losses are kept. `steps` is the new total; a finished run needs one.
    Raises InputError for a damaged checkpoint, a diverged run, sizes that the model does not have, and a run that has nothing to do.
    """

    def __init__(self, path: Path, to: Mapping[str, Any], steps: int | None = None) -> None:
        self.path = path
        saved = self.saved = open_torch(path)
        if saved["format"] != FORMAT:
            raise InputError(f"{str(path)!r} is of format {saved['format']!r}; this release reads {FORMAT}")
        self.source = RunConfig.from_dict(saved["config"])
        if self.source.hash() != saved["config_hash"]:
            raise InputError(f"{str(path)!r} is damaged (its config does not match its hash)")
        if saved["status"] == "diverged":
            raise InputError(f"{str(path)!r} holds a run that diverged ({saved['reason']}): there is nothing to grow")
        self.config = grown_config(self.source, to, self._steps(steps))
        names = tuple(self.config.base)
        old = Plan.from_dict(saved["plan"])
        self.grown_plan = resolve_plan(self.config, None, None, None)
        config = self.config
        self.plan = make_plan(
            config.make_model, base={n: getattr(self.source.model, n) for n in names}, target=config.target,
            optimizer=config.optimizer, recipe=config.recipe, mode=config.mode, placement=config.placement,
        )  # fmt: skip
        with torch.device("meta"):
            self.small, self.big = old.attach(self.source.make_model()), self.grown_plan.attach(config.make_model())
        self.weights = saved["model"]
        check_weights(self.weights, self.small, repr(str(path)), "the model of its config")
        departures = _departures(old, self.plan, self.grown_plan)
        if (departures or old.placement != self.source.placement) and old != resolve_plan(
            self.source, None, None, None
        ):
            raise InputError(
                f"{str(path)!r} was trained under a plan of its own, not that of its config: grow it with mutransfer.grow"
            )
        reasons = {name: inexact_reason(name) for name in dict.fromkeys(row.optimizer for row in self.plan.rows)}
        self.notes = (*departures, *(f"{name}: {why}" for name, why in reasons.items() if why))

    def _steps(self, steps: int | None) -> int:
        made, planned = int(self.saved["step"]), self.source.steps
        if steps is None:
            if made >= planned:
                raise InputError(f"{str(self.path)!r} has made all of its {planned} updates: give --steps, the new total, such as --steps {2 * planned}")  # fmt: skip
            return planned
        if steps <= made:
            raise InputError(f"--steps {steps}: the run has made {made} already, and the total counts those: give more")
        if steps != planned and self.source.base_steps is not None:
            raise InputError(f"--steps {steps}: the run's settings follow its length (duration={self.source.duration!r}), which cannot change on the way")  # fmt: skip
        return steps

    def words(self) -> str:
        """Kind, sizes, updates."""
        sizes = " ".join(f"{name} {getattr(self.source.model, name)}" for name in self.config.base)
        return f"{self.source.model_kind} of {sizes}, {self.saved['step']} of {self.source.steps} updates ({self.source.recipe}, {self.source.optimizer})"

    def models(self) -> tuple[nn.Module, nn.Module]:
        """With the hooks of their plans."""
        return Plan.from_dict(self.saved["plan"]).attach(self.source.make_model()), self.grown_plan.attach(
            self.config.make_model()
        )

    def batch(self) -> tuple[Any, Callable[[nn.Module, Any], Any], str] | None:
        """The next batch of the run, where its data is here."""
        try:
            task = Task.of(self.source, torch.device("cpu"))
        except InputError:
            return None
        if task.data.fingerprint != self.saved["data"]:
            return None
        return task.batch(int(self.saved["step"])), _loss, "on the run's next batch"

    def provenance(self) -> dict[str, Any]:
        """With the source's config, its hash and its step: from them the cost of the whole history follows."""
        return {
            **super().provenance(),
            "config": self.source.to_dict(),
            "config_hash": self.source.hash(),
            "step": int(self.saved["step"]),
        }

    def content(self, growing: Growing, record: dict[str, Any]) -> dict[str, Any]:
        """One file, as `mutransfer train` writes it, with `grown`: the records of all growths so far."""
        saved = self.saved
        weights = {name: growing.weight(name) for name in growing.plan.by_name}
        optimizer, scheduler = self._optimizer(growing)
        return {CHECKPOINT: {
            **saved,
            "config": self.config.to_dict(), "config_hash": self.config.hash(), "plan": self.grown_plan.to_dict(),
            "model": {name: weights[name] for name in self.big.state_dict()},
            "optimizer": optimizer, "scheduler": scheduler,
            "status": "running", "reason": None, "diverged_at": None, "val_loss": None,
            "grown": [*saved.get("grown", ()), record],
        }}  # fmt: skip

    def _optimizer(self, growing: Growing) -> tuple[dict[str, Any], dict[str, Any]]:
        """The optimizer's and the scheduler's state dicts: the base's settings as the grown plan scales them, at the step reached."""
        config, saved = self.config, self.saved
        old = saved["optimizer"]
        ours = any("scale" in group for group in old["param_groups"])  # the class that ran it: see mutransfer.engines
        model = self.big if not ours else self.big.to_empty(device="cpu")  # memory that nobody touches
        optimizer = make_optimizer(config, self.grown_plan, model)
        curve = {
            name: getattr(config, name)
            for name in ("steps", "warmup", "schedule", "final_lr_ratio", "wsd_decay_fraction")
        }
        scheduler = make_scheduler(optimizer, **curve)
        step = int(saved["step"])
        rates = [group["initial_lr"] * multiplier(step, **curve) for group in optimizer.param_groups]
        made = optimizer.state_dict()
        for group, rate in zip(made["param_groups"], rates, strict=True):
            group["lr"] = rate
        held = {
            name: (group, old["state"].get(index, {}))
            for group in old["param_groups"]
            for index, name in zip(group["params"], group["names"], strict=True)
        }
        made["state"] = {}
        for group in made["param_groups"]:
            before = held[growing.of(group["names"][0]).source][0]
            counted = parts_of({k: v for k, v in before.items() if k != "params"}, before["names"], growing.plan, group["optimizer"])  # fmt: skip
            if not growing.fresh_state:
                group |= {
                    k: v for k, v in counted[0].settings.items() if k in COUNTERS and k in group and k not in LR_KEYS
                }
            for index, name in zip(group["params"], group["names"], strict=True):
                source_group, state = held[growing.of(name).source]
                if state and not growing.of(name).fresh and not growing.fresh_state:
                    made["state"][index] = state_later(growing, name, group["optimizer"], state, source_group)
        return made, {**saved["scheduler"], "base_lrs": list(scheduler.base_lrs), "_last_lr": rates}

    def write(self, folder: Path, content: dict[str, Any]) -> None:
        """Write checkpoint.pt."""
        save_torch(folder / CHECKPOINT, content[CHECKPOINT])

    def next_steps(self, out: Path) -> str:
        """The command that continues the run; where its words cannot say the config, the call that does."""
        try:
            words = command(self.config, out)
        except InputError:  # its data, or its tokenizer, is not here
            words = None
        if words is not None:
            return f"continue it: {shlex.join(words)}"
        path = str(out / CHECKPOINT)
        return f"continue it: mutransfer.train.train(mutransfer.train.load_checkpoint(Path({path!r}))['config'], folder=Path({str(out)!r}))"


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def grown_config(config: RunConfig, to: Mapping[str, Any], steps: int) -> RunConfig:
    """The config of the run after growing: the new sizes and length, everything else as it was.

    The base stays: a size that the base did not name was the source's in both. Under a recipe that scales nothing, the source is the base.
    Raises InputError for a name that is no size of the model, and for one that shrinks.
    """
    known = {f.name for f in fields(config.model) if type(getattr(config.model, f.name)) is int} - _GIVEN
    for name, size in to.items():
        if name in _GIVEN:
            raise InputError(f"--to {name}={size}: the data decides that, and the run goes on with the same data")
        if name not in known:
            raise InputError(
                f"--to {name}={size}: a {config.model_kind} has no size {name!r}: write one of {', '.join(sorted(known))}"
            )
        before = getattr(config.model, name)
        if type(size) is not int or size < 1:
            raise InputError(f"--to {name}={size}: write a whole number, such as {name}={2 * before}")
        if size < before:
            raise InputError(f"--to {name}={size}: the checkpoint has {name}={before}, and nothing can shrink")
    if all(getattr(config.model, name) == size for name, size in to.items()):
        raise InputError(
            f"--to {' '.join(f'{n}={s}' for n, s in to.items())}: those are the checkpoint's sizes; nothing grows"
        )
    standard = config.recipe == "sp"
    own = {name: getattr(config.model, name) for name in (*config.base, *to)}
    base = own if standard else {**own, **config.base}
    recipe = "mup" if standard else config.recipe
    return replace(config, model=replace(config.model, **to), base=base, recipe=recipe, steps=steps)


def command(config: RunConfig, out: Path) -> list[str] | None:
    """The words of `mutransfer train` that give this config; None where words cannot. Raises InputError where its data is not here."""
    from mutransfer.commands.builtin import described
    from mutransfer.commands.user_code import literal

    kind = config.model_kind
    plain = config.to_dict()
    given: dict[str, Any] = {}
    first = RunConfig.from_dict(described(kind, {"recipe": "sp"})).to_dict()
    for name, value in plain["model"].items():
        if name != "kind" and first["model"].get(name) != value:
            given[name] = value
    given |= {f"base.{name}": size for name, size in config.base.items()}
    given |= {n: v for n, v in plain.items() if n not in ("model", "base") and (first.get(n) != v or n == "recipe")}
    texts = {name: value if isinstance(value, str) else str(value).replace(" ", "") for name, value in given.items()}
    back = RunConfig.from_dict(described(kind, {name: literal(text) for name, text in texts.items()}))
    if back != config:
        return None
    return ["mutransfer", "train", kind, "--set", *(f"{n}={t}" for n, t in texts.items()), "--out", str(out)]


def _departures(old: Plan, step: Plan, new: Plan) -> tuple[str, ...]:
    """Where the grown run's settings are not the source's times what its copies need: recipes that are no group in width."""
    for row in new.rows:
        relative = step[row.name]
        before = old[relative.base_name].ratios
        for key in ("lr", "decay", "l2", "eps"):
            now, was, ratio = (getattr(r, key) for r in (row.ratios, before, relative.ratios))
            if None not in (now, was, ratio) and abs(now - was * ratio) > 1e-6 * abs(now):
                return (
                    f"recipe {new.recipe!r} does not compose: {key} of {row.name!r} is {now / was:.4g} times the "
                    f"source's where its copies need {ratio:.4g}; growing under it is not exact",
                )
    return ()
