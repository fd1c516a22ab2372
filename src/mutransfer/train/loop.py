"""One training run: config → plan → model and optimizer → updates → result. Interrupted runs continue bit for bit."""

import inspect
import json
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from mutransfer.build import plan as make_plan
from mutransfer.clip import grad_norm
from mutransfer.data import Data
from mutransfer.engines import class_of
from mutransfer.errors import InputError
from mutransfer.files import write_atomic
from mutransfer.optimizers.classes import ready, run_settings
from mutransfer.plans import Plan
from mutransfer.train import warm
from mutransfer.train.checkpoint import (
    CHECKPOINT,
    RESULT,
    load_checkpoint,
    refuse_other_config,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from mutransfer.train.config import RunConfig
from mutransfer.train.flops import flops_per_row
from mutransfer.train.ranks import Ranks, resolve_device
from mutransfer.train.result import LogPoint, RunResult
from mutransfer.train.schedule import make_scheduler, multiplier
from mutransfer.train.task import Task


def train(
    config: RunConfig,
    *,
    folder: Path | None = None,
    resume: bool = True,
    until: int | None = None,
    on_log: Callable[[LogPoint], None] | None = None,
    plan: Plan | None = None,
    data: Data | None = None,
    small: Path | None = None,
) -> RunResult:
    """Train once as `config` says and return the outcome; a loss that is not finite is an outcome, not an exception.

    With a `folder`, checkpoints and the result are written there, and a run found there is continued exactly (losses
    and weights bit for bit those of an undisturbed run) or, once it has ended, returned without training.
    `resume=False` starts it over. `until` pauses the run after that many updates, with its checkpoint in `folder`: the
    result says "paused", and a later call goes on exactly. `on_log` is called at every logged update. `plan` and `data` replace those
    that the config names (to share them between runs). The caller's random generators are left as they were.
    A run that starts grown (`grow_from`) trains its small model first, in a folder of its own in `small` (by default "grown-from" in `folder`):
    other runs find it there.
    Under torchrun the ranks share the run: each calls this and gets the result, rank 0 alone logs and writes.
    Raises `InputError` for a config that does not fit its data or this machine, for a damaged checkpoint, and for a
    checkpoint of another config.
    """
    if until is not None and folder is None:
        raise InputError(f"until={until} pauses the run, which needs a folder for its checkpoint: give folder=...")
    ranks = Ranks.join(config.device)
    device = ranks.device
    path = None if folder is None else Path(folder) / CHECKPOINT
    saved = load_checkpoint(path) if path is not None and resume and path.exists() else None
    if saved is not None and path is not None:
        refuse_other_config(path, saved["config"], config)
    if len(set(ranks.gather(saved and saved["step"]))) > 1:
        raise InputError(f"folder {folder} holds another checkpoint for each rank: give one that all ranks share")
    task = Task.of(config, device, data, ranks)
    if saved is not None and saved["data"] != task.data.fingerprint:
        raise InputError(f"data={config.data!r} is not what {path} was trained on: restore it, or give another folder")
    plan = resolve_plan(config, plan, saved, path)
    callers = rng_state(device)
    try:
        run = Run(config, plan, task, device, path)
        if saved is not None:
            run.restore(saved)
        elif config.small is not None:
            warm.grow_from(run, config.small, small or (path and path.parent / warm.FOLDER), resume)
        if folder is not None and ranks.main:  # only now: bad input leaves no folder behind
            make_folder(Path(folder))
        return run.finish(on_log if ranks.main else None, until)
    finally:
        set_rng_state(callers, device)


def load_run(folder: Path, device: str = "cpu") -> tuple[RunConfig, nn.Module, Plan]:
    """The config, the model with its trained weights (eval mode) and the plan of the run saved in `folder`."""
    saved = load_checkpoint(Path(folder) / CHECKPOINT)
    config, plan = saved["config"], Plan.from_dict(saved["plan"])
    model = config.make_model()
    plan.attach(model)
    model.load_state_dict(saved["model"])
    return config, model.to(resolve_device(device)).eval(), plan


class Run:
    """A run in progress: its model, optimizer and record, advanced one `update` at a time.

    Seeds torch's global generators: `train` puts the caller's back, a user of this class does so himself.
    """

    def __init__(self, config: RunConfig, plan: Plan, task: Task, device: torch.device, path: Path | None) -> None:
        self.config, self.plan, self.task, self.device, self.path = config, plan, task, device, path
        self.ranks = task.ranks
        torch.manual_seed(config.seed)
        model = config.make_model()  # drawn on the CPU: every device starts from the same weights
        plan.initialize(model, seed=config.seed)
        plan.attach(model)
        self.model = model.to(device).train()
        self.network = self.ranks.wrap(self.model)
        self.optimizer: Optimizer = make_optimizer(config, plan, self.model)
        self.curve = {
            "steps": config.steps,
            "warmup": config.warmup,
            "schedule": config.schedule,
            "final_lr_ratio": config.final_lr_ratio,
            "wsd_decay_fraction": config.wsd_decay_fraction,
        }
        self.scheduler = make_scheduler(self.optimizer, **self.curve)
        plan.verify(self.optimizer, self.model)
        # the stream that dropout draws from must not depend on how many numbers the initialisation took
        torch.manual_seed(self.ranks.seed(config.seed + 1))
        self.step = 0
        self.status, self.reason, self.diverged_at = "running", None, None
        self.losses: list[float] = []
        self.pending: list[Tensor] = []  # losses still on the device: fetching each one would wait for it
        self.points: list[LogPoint] = []
        self.val_loss: float | None = None
        self.seconds = 0.0
        self.before: dict[str, Any] = {}  # flops, seconds and loss of the small model that it grew from
        self.grown: list[dict[str, Any]] = []  # what `mutransfer grow` made this run of, one entry each time

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from a checkpoint's content."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        streams = [saved["rng"], *saved.get("rng_others", ())]
        if self.ranks.rank < len(streams):  # a rank that the checkpoint does not know keeps its own stream's start
            set_rng_state(streams[self.ranks.rank], self.device)
        self.losses = saved["losses"].tolist()
        self.points = [LogPoint(**point) for point in saved["points"]]
        for name in ("step", "status", "reason", "diverged_at", "val_loss", "seconds"):
            setattr(self, name, saved[name])
        self.before, self.grown = saved.get("before", {}), saved.get("grown", [])
        self.plan.verify(self.optimizer, self.model)

    def finish(self, on_log: Callable[[LogPoint], None] | None, until: int | None = None) -> RunResult:
        """Make the updates that remain, or those up to `until`, and return the result."""
        end = self.config.steps if until is None else min(until, self.config.steps)
        if self.status == "running":
            ready(self.optimizer)
            self._loop(on_log, end)
            if self.status == "finished":
                self._average()  # what the run leaves behind is the model that was validated
            self._save()
        result = self.result()
        if self.path is not None and self.status != "running" and self.ranks.main:
            text = json.dumps(result.to_dict(), allow_nan=False).encode()
            write_atomic(self.path.with_name(RESULT), lambda file: file.write(text))
        self.ranks.gather(None)  # no rank goes on before the files are there for all
        return result

    def _loop(self, on_log: Callable[[LogPoint], None] | None, end: int) -> None:
        config, earlier, start = self.config, self.seconds, time.perf_counter()
        while self.step < end:
            step = self.step + 1
            log_due = step % config.log_every == 0 or step in (1, config.steps)
            val_due = bool(config.val_batches) and (
                step == config.steps or (config.val_every > 0 and step % config.val_every == 0)
            )
            save_due = config.checkpoint_every > 0 and step % config.checkpoint_every == 0 and step < config.steps
            norm = self.update(self.step, log_due or val_due)
            self.step = step
            # on a CPU a loss is there already: stop at once when it is lost
            if (log_due or val_due or save_due or self.device.type == "cpu") and not self._fetch():
                break
            if log_due or val_due or save_due:
                val_loss = self._validate() if val_due else None
                self.seconds = earlier + time.perf_counter() - start
                if log_due or val_due:
                    self._log(norm, val_loss, on_log)
                if val_loss is not None and not math.isfinite(val_loss):
                    self._diverge(step, f"validation loss is {val_loss} after update {step}")
                    break
                if save_due:
                    self._save()
        self.seconds = earlier + time.perf_counter() - start
        if self.status == "running" and self._fetch() and self.step == config.steps:
            self.status = "finished"

    def update(self, step: int, want_norm: bool) -> Tensor | None:
        """Update number `step` (0-based): the mean gradient of the whole batch, in equal micro-batches."""
        config = self.config
        x, y = self.task.batch(step)
        count = self.task.micro_batches
        total: Tensor | None = None
        for i, (rows, labels) in enumerate(zip(x.chunk(count), y.chunk(count), strict=True)):
            with self.ranks.accumulate(self.network, last=i == count - 1):
                loss = self._loss(self.network, rows, labels) / count
                loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        self.pending.append(total)
        norm = self._clip() if config.clip is not None else self._norm() if want_norm else None
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _loss(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy in nats, in float32 whatever the matrix products use."""
        with self._autocast():
            logits = network(x)
        return F.cross_entropy(logits.flatten(0, -2).float(), y.flatten())

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.config.autocast == "bf16" else nullcontext()

    def _clip(self) -> Tensor:
        assert self.config.clip is not None
        if self.config.clip_norm == "plan":
            return self.plan.clip_grad_norm_(self.model, self.config.clip)
        return nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)

    def _norm(self) -> Tensor:
        if self.config.clip_norm == "plan":
            return grad_norm(self.plan, self.model)
        return nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def _fetch(self) -> bool:
        """Bring the pending losses to the host; False, and the run is diverged, when one of them is not finite.

        Every rank sees the same means, so that all of them stop at the same update.
        """
        fetched = self.ranks.mean(torch.stack(self.pending)).tolist() if self.pending else []
        self.pending = []
        for loss in fetched:
            self.losses.append(loss)
            if not math.isfinite(loss):
                self._diverge(len(self.losses), f"loss is {loss} at update {len(self.losses)}")
                return False
        return True

    def _diverge(self, step: int, reason: str) -> None:
        self.status, self.diverged_at, self.reason = "diverged", step, reason
        self.step = step

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean loss over the validation batches in eval mode; touches neither the weights nor the generators."""
        self.model.eval()
        self._average()
        losses = [self._mean_loss(x, y) for x, y in self.task.validation()]
        ready(self.optimizer)
        self.model.train()
        own = torch.stack(losses).cpu().double() if losses else torch.zeros(0, dtype=torch.float64)
        total, count = self.ranks.sum(torch.stack([own.sum(), own.new_tensor(len(own))])).tolist()
        self.val_loss = mean = total / count
        return mean

    def _average(self) -> None:
        """Put a schedule-free optimizer's averaged iterate into the model, where it has one."""
        if callable(switch := getattr(self.optimizer, "eval", None)):
            switch()

    def _mean_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a validation batch, no more rows at once than a micro-batch has: no more memory than training."""
        rows = self.task.micro_rows
        parts = zip(x.split(rows), y.split(rows), strict=True)
        return torch.stack([self._loss(self.model, *part) * (len(part[0]) / len(x)) for part in parts]).sum()

    def _log(self, norm: Tensor | None, val_loss: float | None, on_log: Callable[[LogPoint], None] | None) -> None:
        config = self.config
        point = LogPoint(
            step=self.step,
            loss=self.losses[-1],
            lr=config.lr * multiplier(self.step - 1, **self.curve),
            grad_norm=math.nan if norm is None else float(norm),
            val_loss=val_loss,
            tokens=self.step * config.batch * self.task.tokens_per_row,
            seconds=self.seconds,
        )
        self.points.append(point)
        if on_log is not None:
            on_log(point)

    def _save(self) -> None:
        if self.path is None:
            return
        rng, *others = self.ranks.gather(rng_state(self.device))
        if not self.ranks.main:
            return
        state = {
            "plan": self.plan.to_dict(),
            "data": self.task.data.fingerprint,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": rng,
            "rng_others": others,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "points": [asdict(point) for point in self.points],
            **({"before": self.before} if self.before else {}),
            **({"grown": self.grown} if self.grown else {}),
        }
        names = ("step", "status", "reason", "diverged_at", "val_loss", "seconds")
        save_checkpoint(self.path, self.config, {**state, **{name: getattr(self, name) for name in names}})

    def result(self) -> RunResult:
        """The outcome so far."""
        config, diverged = self.config, self.status == "diverged"
        last = self.losses[-50:]
        before = self.before.get("flops", 0.0)
        return RunResult(
            config_hash=config.hash(),
            status="paused" if self.status == "running" else "diverged" if diverged else "finished",
            reason=self.reason,
            diverged_at=self.diverged_at,
            losses=tuple(self.losses),
            points=tuple(self.points),
            train_loss=math.inf if diverged else sum(last) / len(last) if last else math.nan,
            val_loss=math.inf if diverged and config.val_batches else self.val_loss,
            flops=self._flops() + before,
            seconds=self.seconds + self.before.get("seconds", 0.0),
            params=sum(p.numel() for p in self.model.parameters()),
            grow_flops=before,
            grow_loss=self.before.get("loss"),
        )

    def _flops(self) -> float:
        """Of all updates so far, each at the size that the model then had."""
        total, since = 0.0, 0
        for record in self.grown:
            then = RunConfig.from_dict(record["config"])
            total += flops_per_row(then.model, self.task.row_shape) * then.batch * (record["step"] - since)
            since = record["step"]
        return total + flops_per_row(self.config.model, self.task.row_shape) * self.config.batch * (
            len(self.losses) - since
        )


def make_optimizer(config: RunConfig, plan: Plan, model: nn.Module) -> Optimizer:
    """The plan's optimizer with those of the config's settings that its class (or, in a mix, each of them) takes.

    Adafactor keeps its own eps₁, a clamp that the eps of other optimizers would turn into a part of the step.
    """
    each: dict[str, dict[str, Any]] = {}
    takes_eps = False
    for name in {row.optimizer for row in plan.rows}:
        cls = class_of(plan, name)
        each[name] = run_settings(cls, config.betas, config.momentum)
        takes_eps |= "eps" in inspect.signature(cls).parameters and not plan.facts[name].floor
    eps: dict[str, Any] = {"eps": config.eps} if takes_eps else {}
    return plan.optimizer(model, lr=config.lr, weight_decay=config.weight_decay, each=each, **eps)


def resolve_plan(config: RunConfig, given: Plan | None, saved: dict[str, Any] | None, path: Path | None) -> Plan:
    """The checkpoint's plan, else the caller's, else the config's own; no run continues under another plan."""
    if saved is not None:
        if given is not None and given.to_dict() != saved["plan"]:
            raise InputError(
                f"the plan given differs from the plan in {path}: leave out plan= to continue, or give another folder"
            )
        return Plan.from_dict(saved["plan"])
    if given is not None:
        return given
    return make_plan(
        config.make_model,
        base=config.base,
        target=config.target,
        optimizer=config.optimizer,
        recipe=config.recipe,
        mode=config.mode,
        placement=config.placement,
        **config.longer,
    )


def make_folder(folder: Path) -> None:
    """Make it, and see that it can be written. Raises InputError where it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
        for part in folder.glob(f".{CHECKPOINT}.*.part"):  # of a process killed while it wrote
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"folder {folder} cannot be written ({error.strerror}): give one that can") from error
