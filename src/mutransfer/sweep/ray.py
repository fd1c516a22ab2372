"""The workers as Ray actors: the same jobs on the cores or GPUs of a whole cluster.

Joins the cluster that `RAY_ADDRESS` or `ray start` names, or starts Ray on this machine for as long as the sweep runs. On a
cluster of several nodes mutransfer, the data and the sweep's folder must be at the same paths everywhere: put them on a
shared file system (checkpoints and the outcomes of ended runs are written by the nodes).
"""

from __future__ import annotations

import importlib
import logging
import os
import queue
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mutransfer.errors import InputError
from mutransfer.sweep.executor import Event, Function, answer


class RayCluster:
    """Persistent actors, each of which takes one job after the other; an `Executor`, and a context manager.

    `workers`: actors at most; by default as many as the cluster has room for. `ranks`: devices of each. An actor takes a GPU
    per rank where the cluster has GPUs and the runs are not for "cpu", and a CPU per rank otherwise. One that dies
    (`kill -9`, a lost node) loses its job and is replaced.
    Raises InputError without Ray, and where the named cluster cannot be joined.
    """

    def __init__(self, workers: int | None = None, ranks: int = 1) -> None:
        self._ray = _import()
        self._ours = not self._ray.is_initialized()
        if self._ours:
            _join(self._ray)
        self._workers, self._ranks = workers, ranks
        self._gpu = self._ray.cluster_resources().get("GPU", 0) >= ranks
        self._free: list[_Member] = []
        self._running: dict[str, tuple[_Member, Any]] = {}  # job → its actor, the stream of its messages
        self._waiting: deque[tuple[str, Function, tuple[Any, ...]]] = deque()

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def count(self) -> int:
        """How many actors there are at most."""
        room = int(self._ray.cluster_resources().get("GPU" if self._gpu else "CPU", 0)) // self._ranks
        if room < 1:
            raise InputError(f"ranks={self._ranks}: the Ray cluster has fewer devices; give fewer, or add nodes")
        return room if self._workers is None else min(self._workers, room)

    @property
    def queue(self) -> int:
        """A job is taken when an actor is free for it."""
        return self.count

    @property
    def pids(self) -> list[int]:
        """The processes of the actors that are there now."""
        return [*self.pids_of(self._running), *self._ray.get([member.pid for member in self._free])]

    def pids_of(self, jobs: Iterable[str]) -> list[int]:
        """The processes that these jobs run in."""
        return self._ray.get([self._running[job][0].pid for job in jobs])

    def submit(self, job: str, function: Function, *arguments: Any) -> None:
        """Queue `function(*arguments, send)`."""
        if not self._running and not self._free:
            # every run of a sweep is for the same kind of device: the first one tells which
            devices = [getattr(argument, "device", None) for argument in arguments]
            self._gpu = self._gpu and "cpu" not in devices
        self._waiting.append((job, function, arguments))
        self._dispatch()

    def events(self, timeout: float | None = None) -> list[Event]:
        """What happened, waiting for the first of it; [] after `timeout` seconds, or when nothing is under way."""
        if not self._running:
            return []
        streams = {id(stream): job for job, (_, stream) in self._running.items()}
        listed = [stream for _, stream in self._running.values()]
        ready, _ = self._ray.wait(listed, num_returns=1, timeout=timeout, fetch_local=False)
        if ready and len(listed) > 1:
            ready, _ = self._ray.wait(listed, num_returns=len(listed), timeout=0, fetch_local=False)
        found = [self._next(streams[id(stream)], stream) for stream in ready]
        self._dispatch()
        return found

    def _next(self, job: str, stream: Any) -> Event:
        errors = self._ray.exceptions
        try:
            kind, value = self._ray.get(next(stream))
        except errors.RayTaskError as error:
            kind, value = "error", RuntimeError(str(error.cause or error))
        except (errors.RayError, StopIteration) as error:
            member, _ = self._running.pop(job)
            self._ray.kill(member.actor)
            return Event(job, "lost", f"its Ray actor died: {_first_line(error)}")
        if kind != "message":
            self._free.append(self._running.pop(job)[0])
        return Event(job, kind, value)

    def close(self) -> None:
        """Stop every actor at once, and Ray itself where this object started or joined it."""
        if not self._ray.is_initialized():
            return
        for member in [*self._free, *(member for member, _ in self._running.values())]:
            self._ray.kill(member.actor)
        self._free.clear()
        self._running.clear()
        self._waiting.clear()
        if self._ours:
            self._ray.shutdown()

    def _dispatch(self) -> None:
        while self._waiting and (self._free or len(self._running) < self.count):
            member = self._free.pop() if self._free else self._start()
            job, function, arguments = self._waiting.popleft()
            self._running[job] = (member, member.actor.run.remote(function, arguments))

    def _start(self) -> _Member:
        devices = {"num_gpus": self._ranks} if self._gpu else {"num_cpus": self._ranks}
        actor = self._ray.remote(_Actor).options(**devices, max_restarts=0).remote()
        return _Member(actor, actor.pid.remote())


@dataclass(frozen=True)
class _Member:
    """An actor, and its answer to the question for its process, asked before it has work."""

    actor: Any
    pid: Any


class _Actor:
    """What runs on the cluster, one thread of torch each as in a local worker."""

    def __init__(self) -> None:
        os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # read when torch is loaded

    def pid(self) -> int:
        return os.getpid()

    def run(self, function: Function, arguments: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
        """Yield ("message", ...) while the job works, then ("done", result) or ("error", exception)."""
        messages: queue.Queue[tuple[str, Any]] = queue.Queue()

        def work() -> None:
            import torch

            torch.set_num_threads(1)  # counts for the thread that sets it
            messages.put(answer(function, arguments, lambda message: messages.put(("message", message))))

        threading.Thread(target=work, daemon=True).start()
        while True:
            kind, value = messages.get()
            yield kind, value
            if kind != "message":
                return


def _import() -> Any:
    # Read when it is imported: no statistics to its makers; nothing about GPUs on machines without; and no word on stdout,
    # which is the sweep's own, when an actor dies.
    quiet = {"USAGE_STATS_ENABLED": "0", "ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "DEDUP_LOGS_SKIP_REGEX": "."}
    for name, value in quiet.items():
        os.environ.setdefault(f"RAY_{name}", value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("ray")
    except ImportError:
        raise InputError("--executor ray needs Ray: pip install 'mutransfer[ray]'") from None


def _join(ray: Any) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
    except Exception as error:
        place = os.environ.get("RAY_ADDRESS") or "the cluster of `ray start`, or one on this machine"
        raise InputError(f"cannot use Ray ({place}): {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
