"""The workers as Slurm jobs, through submitit: one job array of all runs, of which so many run at once.

The sweep's folder, the data and the Python environment must be on a file system that the nodes share: a job reports through
files in the folder `slurm` beside the store, and leaves its checkpoints and outcome there. Jobs go on in the queue when the
process that submitted them is killed; the next command on the same store waits for them instead of submitting them again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import os
import pickle
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutransfer.errors import InputError
from mutransfer.files import write_whole
from mutransfer.sweep.executor import Event, Function, answer

_PLACES = 16  # runs at once where nothing is said: a cluster's queue does not tell how many it would allow
_ARRAY = 1000  # jobs in one array: Slurm's own default limit
_SHARED = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "name")  # submitit's own names for parameters
_ONE = ("nodes", "tasks_per_node", "ntasks_per_node", "array_parallelism")


@dataclass
class _Job:
    """A submitted job; its files are `stem` with a suffix."""

    handle: Any
    stem: Path
    read: int = 0
    """Bytes of its messages that have been read."""
    since: float = field(default_factory=time.monotonic)
    gone: float | None = None
    """Since when the cluster has said that it is over, though it has not answered."""


class Slurm:
    """Jobs on a Slurm cluster; an `Executor`, and a context manager.

    `parameters`: words such as partition=gpu time=60 (minutes) gpus_per_node=1 mem_gb=16, submitit's names without `slurm_`;
    cluster=local runs the jobs as processes of this machine, to try things without Slurm. A job that fails, times out or is
    preempted for good is lost, and says why; runs with checkpoints then go on from them.
    Raises InputError without submitit, without Slurm, and for parameters that do not exist.
    """

    def __init__(self, folder: Path, workers: int | None = None, parameters: tuple[str, ...] = ()) -> None:
        submitit = _import()
        given = _parse(parameters)
        self._cluster = str(given.pop("cluster", "slurm"))
        self._workers = workers or (os.cpu_count() or 1 if self._cluster == "local" else _PLACES)
        self.folder = (folder / "slurm").absolute()
        if self._cluster == "slurm" and shutil.which("srun") is None:
            raise InputError("--executor slurm: there is no Slurm here (no srun); start it on a node that submits jobs")
        try:
            self._executor = submitit.AutoExecutor(folder=self.folder, cluster=self._cluster)
            names = {n: v for n, v in given.items() if n in _SHARED}
            own = {f"slurm_{n}": v for n, v in given.items() if n not in _SHARED}
            own["slurm_array_parallelism"] = self._workers
            self._executor.update_parameters(**{"name": "mutransfer", "timeout_min": 24 * 60, **names}, **own)
        except (NameError, ValueError, AssertionError, RuntimeError, OSError) as error:
            raise InputError(f"--slurm {' '.join(parameters)}: {' '.join(str(error).split())[:300]}") from None
        self._waiting: list[tuple[str, Function, tuple[Any, ...]]] = []
        self._running: dict[str, _Job] = {}
        self._over: list[_Job] = []

    def __enter__(self) -> Slurm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def count(self) -> int:
        """How many jobs run at once."""
        return self._workers

    @property
    def queue(self) -> int:
        """All jobs wait in the cluster's queue, where waiting counts."""
        return self._workers if self._cluster == "local" else _ARRAY

    def submit(self, job: str, function: Function, *arguments: Any) -> None:
        """Queue `function(*arguments, send)`; what is queued until `events` is called becomes one job array."""
        self._waiting.append((job, function, arguments))

    def events(self, timeout: float | None = None) -> list[Event]:
        """What happened, waiting for the first of it; [] after `timeout` seconds, or when nothing is under way."""
        self._flush()
        start, pause = time.monotonic(), 0.02
        while self._running:
            found = [event for job in list(self._running) for event in self._look(job)]
            if found or (timeout is not None and time.monotonic() - start > timeout):
                return found
            time.sleep(pause)
            pause = min(1.0 if self._cluster != "local" else 0.1, 1.5 * pause)
        return []

    def close(self) -> None:
        """Cancel every job that is not over, and remove the files of those that are."""
        for known in self._running.values():
            with contextlib.suppress(Exception):
                known.handle.cancel(check=False)
        for known in [*self._over, *self._running.values()]:
            process = getattr(known.handle, "_process", None)
            if process is not None:
                process.wait()  # a local one: its end is seconds away
            self._remove(known)
        self._waiting.clear()
        self._running.clear()
        self._over.clear()

    def _flush(self) -> None:
        fresh: list[tuple[str, Path, Function, tuple[Any, ...]]] = []
        for job, function, arguments in self._waiting:
            stem = self.folder / _name(job, function, arguments)
            adopted = self._adopt(stem)
            if adopted is not None:
                self._running[job] = adopted
            else:
                fresh.append((job, stem, function, arguments))
        self._waiting.clear()
        for start in range(0, len(fresh), _ARRAY):
            part = fresh[start : start + _ARRAY]
            try:
                with self._executor.batch():
                    handles = [
                        self._executor.submit(_run, str(stem), function, arguments)
                        for _, stem, function, arguments in part
                    ]
            except Exception as error:  # of sbatch, whatever it finds wrong
                raise InputError(f"Slurm took no job: {' '.join(str(error).split())[:300]}") from None
            for (job, stem, _, _), handle in zip(part, handles, strict=True):
                write_whole(stem.with_suffix(".job"), json.dumps(handle.job_id))
                self._running[job] = _Job(handle, stem)

    def _adopt(self, stem: Path) -> _Job | None:
        """The same job where a killed process submitted it and it is not over; else its old files are removed."""
        try:
            job_id = json.loads(stem.with_suffix(".job").read_text())
        except (OSError, ValueError):
            return None
        known = _Job(self._executor._executor.job_class(self.folder, job_id), stem)
        if stem.with_suffix(".answer").exists() or not self._is_over(known):
            return known
        self._remove(known)
        return None

    def _is_over(self, known: _Job) -> bool:
        if self._cluster == "local" and known.handle._process is None:  # submitted by another process
            try:
                os.kill(int(known.handle.job_id), 0)
            except ProcessLookupError:
                return True
            return False
        return known.handle.done()

    def _look(self, job: str) -> list[Event]:
        known = self._running[job]
        over = self._is_over(known)  # before its files are read: what it wrote last is there then
        found = [Event(job, "message", message) for message in _messages(known)]
        with contextlib.suppress(FileNotFoundError):
            kind, value = pickle.loads(known.stem.with_suffix(".answer").read_bytes())
            return [*found, self._end(job, Event(job, kind, value))]
        if over:
            known.gone = known.gone or time.monotonic()
            # a shared file system may show the answer only later
            if self._cluster == "local" or time.monotonic() - known.gone > 15:
                found.append(self._end(job, Event(job, "lost", _reason(known.handle))))
        return found

    def _end(self, job: str, event: Event) -> Event:
        known = self._running.pop(job)
        self._over.append(known)
        for suffix in (".job", ".answer", ".messages"):
            known.stem.with_suffix(suffix).unlink(missing_ok=True)
        return event

    def _remove(self, known: _Job) -> None:
        paths = known.handle.paths
        for suffix in (".job", ".answer", ".messages"):
            known.stem.with_suffix(suffix).unlink(missing_ok=True)
        for path in (paths.submitted_pickle, paths.result_pickle, paths.stdout, paths.stderr):
            path.unlink(missing_ok=True)


def _run(stem: str, function: Function, arguments: tuple[Any, ...]) -> None:
    """What a job does: messages as lines of a file, then its answer as another."""
    stopped = importlib.import_module("submitit.core.utils").UncompletedJobError
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # read when torch is loaded
    import torch

    torch.set_num_threads(1)
    path = Path(stem)
    with path.with_suffix(".messages").open("a", encoding="utf-8") as file:

        def send(message: Any) -> None:
            file.write(json.dumps(message) + "\n")
            file.flush()

        found = answer(functools.partial(_unless_stopped, stopped, function), arguments, send)
    write_whole(path.with_suffix(".answer"), pickle.dumps(found))


class _Stopped(BaseException):
    """The job's time is over; no error of the run."""


def _unless_stopped(stops: type[Exception], function: Function, *arguments: Any) -> Any:
    """submitit ends a job by raising in the middle of it, which must not count as the run's own error."""
    try:
        return function(*arguments)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, stops):
                raise _Stopped(str(cause)) from None
            cause = cause.__cause__
        raise


def _messages(known: _Job) -> list[Any]:
    """The whole lines that are new in a job's messages."""
    try:
        with known.stem.with_suffix(".messages").open("rb") as file:
            file.seek(known.read)
            text = file.read()
    except FileNotFoundError:
        return []
    text = text[: text.rfind(b"\n") + 1]
    known.read += len(text)
    return [json.loads(line) for line in text.splitlines()]


def _reason(handle: Any) -> str:
    said = ""
    if handle.paths.result_pickle.exists():
        with contextlib.suppress(Exception):
            lines = str(handle.exception()).strip().splitlines()
            said = f": {lines[-1].strip()}" if lines else ""
    elif handle.paths.stderr.exists():
        lines = handle.paths.stderr.read_text(errors="replace").strip().splitlines()
        said = f": {lines[-1].strip()}" if lines else ""
    return f"its job {handle.job_id} ended without an answer, state {handle.state}{said}"


def _name(job: str, function: Function, arguments: tuple[Any, ...]) -> str:
    """The same for the same work in another process."""
    work = f"{job} {function.__module__}.{function.__qualname__} {arguments!r}"
    return hashlib.sha256(work.encode()).hexdigest()[:32]


def _parse(parameters: tuple[str, ...]) -> dict[str, Any]:
    from mutransfer.commands.user_code import assignments

    found: dict[str, Any] = {}
    for name, value in assignments(parameters, "--slurm", "name=value, such as partition=gpu").items():
        if name in _ONE:
            raise InputError(
                f"--slurm {name}={value}: every run is one task of its own; use --workers for how many at once"
            )
        found[name] = int(value) if value.isdecimal() else value
    for name in ("time", "timeout_min"):
        if name in found and not isinstance(found[name], int):
            raise InputError(f"--slurm {name}={found[name]!r}: give whole minutes")
    if "time" in found:
        found["timeout_min"] = found.pop("time")
    return found


def _import() -> Any:
    try:
        return importlib.import_module("submitit")
    except ImportError:
        raise InputError("--executor slurm needs submitit: pip install 'mutransfer[slurm]'") from None
