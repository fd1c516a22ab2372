"""Persistent worker processes, one thread each: on a CPU they outrun one process with as many threads.

A worker takes one job after the other, so that only its first one pays for starting Python and torch. When it dies (out of
memory, `kill -9`) its job is lost and a new worker takes its place; when the parent dies, so do the workers.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections import deque
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from mutransfer.sweep.executor import Event, Function, answer

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """`count` processes on this machine, started when the first jobs come; an `Executor`, and a context manager."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._processes: dict[Connection, Any] = {}
        self._running: dict[Connection, str] = {}
        self._waiting: deque[tuple[str, Function, tuple[Any, ...]]] = deque()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def count(self) -> int:
        """How many processes there are at most."""
        return self._count

    @property
    def queue(self) -> int:
        """A job is taken when a process is free for it, so that other sweeps of the same store find some left."""
        return self._count

    @property
    def pids(self) -> list[int]:
        """The processes that are there now."""
        return [process.pid for process in self._processes.values()]

    def submit(self, job: str, function: Function, *arguments: Any) -> None:
        """Queue `function(*arguments, send)`."""
        self._waiting.append((job, function, arguments))
        self._dispatch()

    def events(self, timeout: float | None = None) -> list[Event]:
        """What happened, waiting for the first of it; [] after `timeout` seconds, or when nothing is under way."""
        if not self._running:
            return []
        found: list[Event] = []
        for connection in wait(list(self._running), timeout):
            assert isinstance(connection, Connection)
            job = self._running[connection]
            try:
                kind, value = connection.recv()
            except (EOFError, OSError):
                found.append(Event(job, "lost", self._bury(connection)))
                continue
            if kind != "message":
                del self._running[connection]
            found.append(Event(job, kind, value))
        self._dispatch()
        return found

    def close(self) -> None:
        """Stop every process at once, whatever it is doing."""
        atexit.unregister(self.close)
        self._waiting.clear()
        self._running.clear()
        for connection, process in self._processes.items():
            process.terminate()
            connection.close()
        for process in self._processes.values():
            process.join()
        self._processes.clear()

    def _dispatch(self) -> None:
        while self._waiting:
            free = [connection for connection in self._processes if connection not in self._running]
            if free:
                connection = free[0]
            elif len(self._processes) < self._count:
                connection = self._start()
            else:
                return
            job, function, arguments = self._waiting.popleft()
            self._running[connection] = job
            try:
                connection.send((function, arguments))
            except (BrokenPipeError, ConnectionResetError):
                pass  # the process has died: waiting for its answer says so
            except BaseException:
                del self._running[connection]
                raise

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        before = {name: os.environ.get(name) for name in _ONE_THREAD}
        # the number of threads is fixed when torch is loaded: lowering it later leaves a spinning thread behind
        os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
        try:
            ours, theirs = context.Pipe()
            # no daemon: a user's job may start processes of its own, such as those of a data loader
            process = context.Process(target=_work, args=(theirs,), daemon=False)
            _start_deaf(process)
            atexit.register(self.close)
            theirs.close()
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        self._processes[ours] = process
        return ours

    def _bury(self, connection: Connection) -> str:
        process = self._processes.pop(connection)
        del self._running[connection]
        connection.close()
        process.join()
        code = process.exitcode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        return f"its worker process ended {how}" + (" (out of memory?)" if code == -signal.SIGKILL else "")


def _start_deaf(process: BaseProcess) -> None:
    """Start a process that an interruption of the terminal cannot reach while it is still being loaded."""
    if not hasattr(signal, "pthread_sigmask"):
        process.start()
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by the new process
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interruption means
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.dup2(2, 1)  # what a user's function prints must not mix with the sweep's own output
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        connection.send(answer(function, arguments, lambda message: connection.send(("message", message))))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
