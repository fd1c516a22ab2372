"""Persistent one-thread worker processes: on a CPU they outrun one process with as many threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from mutransfer.errors import InputError

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
Job = tuple[Callable[..., Any], tuple[Any, ...]]


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """`count` processes that take jobs one at a time until the end of the `with` block, which stops them."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._all: list[tuple[Any, Connection]] = []
        before = {name: os.environ.get(name) for name in _ONE_THREAD}
        # the number of threads is fixed when torch is loaded: lowering it later leaves a spinning thread behind
        os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
        try:
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs,), daemon=True)
                process.start()
                theirs.close()
                self._all.append((process, ours))
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process, connection in self._all:
            process.terminate()
            connection.close()
        for process, _ in self._all:
            process.join()

    @property
    def count(self) -> int:
        """How many processes there are."""
        return len(self._all)

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        """(index of the job, its result) as each is done. Raises what a job raised; RuntimeError when a process dies."""
        waiting = list(enumerate(jobs))[::-1]
        running: dict[Connection, int] = {}
        free = [connection for _, connection in self._all]
        while waiting or running:
            while waiting and free:
                index, job = waiting.pop()
                connection = free.pop()
                connection.send(job)
                running[connection] = index
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                try:
                    done, value = connection.recv()
                except EOFError:
                    raise RuntimeError("a worker process died (out of memory?); finished runs are kept") from None
                if not done:
                    raise value
                free.append(connection)
                yield running.pop(connection), value

    def each(self, job: Job) -> list[Any]:
        """The same job in every process at once; all results."""
        for _, connection in self._all:
            connection.send(job)
        results = [connection.recv() for _, connection in self._all]
        for done, value in results:
            if not done:
                raise value
        return [value for _, value in results]


def _work(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interruption means
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*arguments))
        except InputError as error:
            answer = (False, error)
        except Exception as error:  # only what surely travels through the pipe
            answer = (False, RuntimeError(f"{type(error).__name__}: {error}"))
        connection.send(answer)
