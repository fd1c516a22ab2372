"""What runs jobs: local worker processes, a Ray cluster, Slurm. All of them take functions and hand back events."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mutransfer.errors import InputError

Send = Callable[[Any], None]
Function = Callable[..., Any]
"""A picklable `function(*arguments, send)`: `send(message)` reports while it works; what it returns is the result."""


@dataclass(frozen=True)
class Event:
    """What happened to a job. `lost`: the process that ran it died; the job may be submitted again."""

    job: str
    kind: Literal["message", "done", "error", "lost"]
    value: Any = None
    """The message, the result, or the exception; for `lost` a text that says what is known."""


class Executor(Protocol):
    """Runs submitted jobs, as many at once as it has places, in the order of submission."""

    @property
    def count(self) -> int:
        """How many jobs run at once."""
        ...

    @property
    def queue(self) -> int:
        """How many jobs to submit at once: more than `count` only where others decide when jobs start."""
        ...

    def submit(self, job: str, function: Function, *arguments: Any) -> None:
        """Queue `function(*arguments, send)` under the name `job`, which is not under way."""
        ...

    def events(self, timeout: float | None = None) -> list[Event]:
        """Wait for something to happen, at most `timeout` seconds; [] when nothing did or nothing is under way."""
        ...

    def close(self) -> None:
        """Stop everything at once."""
        ...


def answer(function: Function, arguments: tuple[Any, ...], send: Send) -> tuple[Literal["done", "error"], Any]:
    """Call a job's function: ("done", result) or ("error", an exception that surely travels between processes)."""
    try:
        result = function(*arguments, send)
        pickle.dumps(result)
        return "done", result
    except InputError as error:
        return "error", InputError(str(error))
    except Exception as error:
        return "error", RuntimeError(f"{type(error).__name__}: {error}")
