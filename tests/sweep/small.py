"""What the tests of sweeps share: rows, small runs, an executor without processes, functions for workers.

Imports no torch: processes that only write to a store start in a moment.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutransfer.sweep import Call, Wanted
from mutransfer.sweep.executor import Event, Function, Send, answer

if TYPE_CHECKING:
    from mutransfer.train import RunConfig

SPEC = f"{Path(__file__)}:user_run"


def row(key: str, status: str = "finished", **changes: Any) -> dict[str, Any]:
    """A record as the store takes it."""
    plain = {
        "key": key, "result": key, "status": status, "reason": None, "config": {"lr": 0.5}, "metrics": {"loss": 1.5},
        "flops": 10.0, "seconds": 1.0, "cpu_seconds": 1.0, "copied_from": None, "version": "0", "environment": {},
        "git": "", "ended": "",
    }  # fmt: skip
    return {**plain, **changes}


def points(count: int) -> list[dict[str, Any]]:
    """Logged points."""
    return [{"step": step, "loss": 1 / step, "lr": 0.5} for step in range(1, count + 1)]


def gpt(**changes: Any) -> RunConfig:
    """40 updates of a one-layer GPT on the embedded text."""
    from mutransfer.models import GPTConfig
    from mutransfer.train import RunConfig
    from tests.train.runs import text

    width = changes.pop("width", 16)
    model = GPTConfig(vocab_size=text().vocab_size, context=16, width=width, depth=1, head_size=8)
    settings = {"batch": 8, "steps": 40, "warmup": 4, "log_every": 5, "val_batches": 0, "device": "cpu"}
    return RunConfig(model=model, **{"base": {"width": 16}, **settings, **changes})


def call(**point: Any) -> Wanted:
    """A call of `user_run`."""
    return Wanted.of(Call(SPEC, str(Path.cwd()), point))


def user_run(lr: float, log: str = "", seed: int = 0, seconds: float = 0.0, report: Any = None) -> float:
    """A user's training function: says in a log that it ended, fails at lr 0 and diverges above 1."""
    if report is not None:
        report(1, lr)
    time.sleep(seconds)
    if log:
        with Path(log).open("a") as file:
            file.write(f"{lr} {seed}\n")
    if lr == 0:
        raise ValueError("no learning rate")
    return float("inf") if lr > 1 else (lr - 0.3) ** 2 + seed


class Inline:
    """An executor that does one job whenever it is asked for events; `lose` says which attempts to lose."""

    def __init__(self, count: int = 1, lose: Callable[[str], bool] = lambda job: False) -> None:
        self.count = self.queue = count
        self.lose, self.jobs, self.done = lose, deque[tuple[str, Function, tuple[Any, ...]]](), list[str]()

    def submit(self, job: str, function: Function, *arguments: Any) -> None:
        self.jobs.append((job, function, arguments))

    def events(self, timeout: float | None = None) -> list[Event]:
        if not self.jobs:
            return []
        job, function, arguments = self.jobs.popleft()
        if self.lose(job):
            return [Event(job, "lost", "its worker process ended by signal 9")]
        found: list[Event] = []
        kind, value = answer(function, arguments, lambda message: found.append(Event(job, "message", message)))
        self.done.append(job)
        return [*found, Event(job, kind, value)]

    def close(self) -> None:
        self.jobs.clear()


def tell(count: int, pause: float, send: Send) -> dict[str, Any]:
    """A job that reports `count` times who does it."""
    import torch

    for i in range(count):
        send({"i": i, "pid": os.getpid()})
        time.sleep(pause)
    return {"pid": os.getpid(), "threads": torch.get_num_threads()}


def wrong(send: Send) -> None:
    """A job that fails."""
    print("a word on stdout")
    raise ZeroDivisionError("no number")


def gone(pid: int, within: float = 10.0) -> bool:
    """Whether a process ends soon."""
    end = time.monotonic() + within
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
