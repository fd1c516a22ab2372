"""Makes the runs that a search asks for: known ones from the store, the others by an executor, each of them once."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from mutransfer.errors import InputError
from mutransfer.sweep import jobs
from mutransfer.sweep.executor import Event, Executor
from mutransfer.sweep.outcome import Outcomes, kept_outcome
from mutransfer.sweep.store import Store
from mutransfer.sweep.wanted import Call, Wanted, without_base

SMALL = "grown-from"
"""The folder beside the store in which the small models are trained that runs grow from."""

Record = Mapping[str, Any]
"""An ended run as `Store.add` takes it; a paused one has the status "paused" and is not in the store."""


@dataclass(frozen=True)
class Ask:
    """A run that is asked for; with `until`, only its first updates for now."""

    run: Wanted
    until: int | None = None


Search = Generator[Sequence[Ask], Sequence[Record], None]
"""Yields the runs that it wants next and is sent their records, in the same order; it decides by these alone, so that an
interrupted sweep takes the same decisions again."""

_ATTEMPTS = 3  # a job whose process died is tried so often
_POLL = 0.5  # seconds between looks at runs that another process has under way


class Watcher(Protocol):
    """What is told of everything that happens: the live table, a tracker."""

    def started(self, run: Wanted) -> None: ...
    def point(self, run: Wanted, point: Mapping[str, Any]) -> None: ...
    def ended(self, run: Wanted, record: Record) -> None: ...


@dataclass
class _Group:
    """One search, and what it waits for."""

    search: Search
    asks: Sequence[Ask]
    records: dict[int, Record] = field(default_factory=dict)


@dataclass
class Driver:
    """`ranks`: devices of each run. `keep`: keep the checkpoints of ended runs; under way, a run has them where its config says so."""

    store: Store
    executor: Executor
    watchers: Sequence[Watcher] = ()
    ranks: int = 1
    keep: bool = False

    def __post_init__(self) -> None:
        self._known: dict[str, Record] = dict(self.store.records())
        self._by_result: dict[str, Record] = {}
        for record in self._known.values():
            if record["status"] != "failed":
                self._by_result.setdefault(record["result"], record)
        self._failed: dict[str, Record] = {}  # key → record of what failed in this command: tried again by the next one
        self._waiting: dict[str, _Job] = {}
        self._under_way: dict[str, _Job] = {}
        self._elsewhere: dict[str, _Job] = {}
        self._looked = time.monotonic()
        self._outcomes = Outcomes(self.store.folder)
        for result in self._outcomes:
            if result in self._by_result:
                self._outcomes.forget(result)
        self._cpu: dict[str, float] = {}  # of the parts of paused runs

    def run(self, searches: Sequence[Search]) -> None:
        """Follow every search to its end, all of them at once. Raises what a watcher raises; runs that fail are records."""
        groups = [_Group(search, ()) for search in searches]
        active = [group for group in groups if self._advance(group, None)]
        while active:
            self._fill()
            ready = [group for group in active if len(group.records) == len(group.asks)]
            for group in ready:
                if not self._advance(group, [group.records[i] for i in range(len(group.asks))]):
                    active.remove(group)
            if ready:
                continue
            events = self.executor.events(_POLL if self._elsewhere else None)
            for event in events:
                self._handle(event)
            if self._elsewhere and (not events or time.monotonic() - self._looked > _POLL):
                self._look_elsewhere()
                if not self._under_way and not self._waiting:
                    time.sleep(_POLL)

    def _fill(self) -> None:
        """Submit what there is room for. A run is claimed only now: other processes take what is left."""
        while self._waiting and len(self._under_way) < self.executor.queue:
            result = next(iter(self._waiting))
            job = self._waiting.pop(result)
            if self.store.claim(result):
                self._under_way[result] = job
                self._submit(job)
            else:
                self._elsewhere[result] = job

    def _advance(self, group: _Group, records: Sequence[Record] | None) -> bool:
        """Ask a search for its next runs and start them; False at its end."""
        try:
            group.asks = next(group.search) if records is None else group.search.send(records)
        except StopIteration:
            return False
        group.records = {}
        for place, ask in enumerate(group.asks):
            known = self._find(ask.run)
            if known is not None:
                group.records[place] = known
            else:
                self._want(ask, group, place)
        return True

    def _find(self, run: Wanted) -> Record | None:
        """The run's record: its own, or a copy of one that must come out alike."""
        own = self._known.get(run.key)
        if own is not None and own["status"] != "failed":
            return own
        alike = self._by_result.get(run.result) or self._failed.get(run.result)
        return None if alike is None else alike if alike["key"] == run.key else self._copy(run, alike)

    def _copy(self, run: Wanted, record: Record) -> Record:
        copied = {
            **record, "key": run.key, "config": run.config.to_dict(), "copied_from": record["copied_from"] or record["key"],
            "flops": 0.0, "seconds": 0.0, "cpu_seconds": 0.0,
        }  # fmt: skip
        if record["status"] != "paused":
            self._keep(copied, self.store.points([record["key"]]).get(record["key"], []))
        return copied

    def _want(self, ask: Ask, group: _Group, place: int) -> None:
        result = ask.run.result
        job = self._under_way.get(result) or self._elsewhere.get(result) or self._waiting.get(result)
        if job is None:
            job = self._waiting[result] = _Job(ask.run, ask.until)
        job.wanted.append((ask, group, place))

    def _submit(self, job: _Job) -> None:
        config, folder, result = job.run.config, self.folder(job.run), job.run.result
        job.points = []
        ended = self._outcomes.find(result)
        if ended is not None:  # a process was killed between the end of this run and its row
            self._handle(Event(result, "done", ended))
            return
        place: str | None = str(folder)
        if isinstance(config, Call):
            work = (jobs.call_function, config.spec, config.folder, dict(config.point), place)
        else:
            kept = self.keep or job.until is not None or config.checkpoint_every > 0 or folder.exists()
            # runs that must come out alike share a checkpoint: the config in it must not depend on which of them was first
            train = jobs.train_config
            if config.small is not None:  # shared by every run that grows from it, and kept
                train = functools.partial(train, small=str(self.store.folder.absolute() / SMALL))
            work = (train, without_base(config), place if kept else None, job.until, self.ranks)
        self.executor.submit(result, kept_outcome, str(self._outcomes.path(result)), *work)

    def folder(self, run: Wanted) -> Path:
        """Where the run's checkpoints are."""
        return (self.store.folder / "checkpoints" / run.result).absolute()

    def _look_elsewhere(self) -> None:
        """Runs of other processes: take over their records when they are done, and their work when they are dead."""
        self._looked = time.monotonic()
        for result, job in list(self._elsewhere.items()):
            del self._elsewhere[result]
            record = self.store.find(result)
            if record is None or record["ended"] == self._known.get(record["key"], {}).get("ended"):
                self._waiting[result] = job  # perhaps its process is dead: try to claim it
            else:
                self._learn(record)
                self._deliver(job, record)

    def _handle(self, event: Event) -> None:
        job = self._under_way.get(event.job)
        if job is None:
            return
        if event.kind == "message":
            if not job.points:
                for watcher in self.watchers:
                    watcher.started(job.run)
            job.points.append(event.value)
            for watcher in self.watchers:
                watcher.point(job.run, event.value)
            return
        if event.kind == "lost" and job.attempts < _ATTEMPTS:
            job.attempts += 1
            self._submit(job)
            return
        del self._under_way[event.job]
        if event.kind == "done" and event.value["status"] == "paused":
            self.store.release(job.run.result)
            self._cpu[event.job] = self._cpu.get(event.job, 0.0) + event.value["cpu_seconds"]
            self._deliver(job, {"key": job.run.key, "copied_from": None, **event.value})
            return
        self._end(job, event)

    def _end(self, job: _Job, event: Event) -> None:
        if event.kind == "done":
            outcome = event.value
        elif event.kind == "lost":
            outcome = {"status": "failed", "reason": f"{event.value}, {_ATTEMPTS} times", "points": job.points}
        else:
            outcome = {"status": "failed", "reason": " ".join(str(event.value).split()), "points": job.points}
        record = self.record(job.run, outcome)
        self._keep(record, outcome["points"], job.attempts)
        for watcher in self.watchers:
            watcher.ended(job.run, record)
        self._deliver(job, record)
        if not self.keep and record["status"] != "failed":
            self.clean(job.run)

    def clean(self, run: Wanted) -> None:
        """Remove what a run left behind, once it has a record."""
        import shutil

        if self.folder(run).exists() and not isinstance(run.config, Call):
            shutil.rmtree(self.folder(run), ignore_errors=True)

    def stop(self, run: Wanted, paused: Record, reason: str) -> Record:
        """Give a paused run up: its record says so, and why."""
        record = self.record(run, {**paused, "status": "stopped", "reason": reason})
        self._keep(record, paused["points"])
        for watcher in self.watchers:
            watcher.ended(run, record)
        if not self.keep:
            self.clean(run)
        return record

    def record(self, run: Wanted, outcome: Mapping[str, Any]) -> dict[str, Any]:
        """What the store keeps of a run."""
        cpu = outcome.get("cpu_seconds")
        if outcome["status"] != "stopped" and cpu is not None:
            cpu += self._cpu.pop(run.result, 0.0)
        return {
            "key": run.key, "result": run.result, "status": outcome["status"], "reason": outcome["reason"],
            "config": run.config.to_dict(), "metrics": outcome.get("metrics", {}), "flops": outcome.get("flops"),
            "seconds": outcome.get("seconds"), "cpu_seconds": cpu, "copied_from": None,
            **provenance(), "ended": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        }  # fmt: skip

    def _keep(self, record: dict[str, Any], points: Sequence[Mapping[str, Any]], attempts: int = 1) -> None:
        self.store.add(record, points, attempts=attempts)
        self._outcomes.forget(record["result"])
        self._learn(record)

    def _learn(self, record: Record) -> None:
        self._known[record["key"]] = record
        by_result = self._failed if record["status"] == "failed" else self._by_result
        by_result.setdefault(record["result"], record)

    def _deliver(self, job: _Job, record: Record) -> None:
        for ask, group, place in job.wanted:
            if record["status"] == "paused" and ask.until != job.until:
                self._want(ask, group, place)  # another search needs more of it
            else:
                group.records[place] = record if ask.run.key == record["key"] else self._copy(ask.run, record)


@dataclass
class _Job:
    """A run under way, and who waits for it."""

    run: Wanted
    until: int | None
    wanted: list[tuple[Ask, _Group, int]] = field(default_factory=list)
    points: list[Mapping[str, Any]] = field(default_factory=list)
    attempts: int = 1


@functools.cache
def provenance() -> dict[str, Any]:
    """Version of this package, the machine, the state of the user's repository: the same for every run of a process."""
    import torch

    from mutransfer import __version__
    from mutransfer.report.provenance import git_state

    environment = {
        "python": platform.python_version(), "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
    }  # fmt: skip
    return {"version": __version__, "environment": environment, "git": git_state()}


def grid(runs: Sequence[Wanted]) -> Search:
    """Every run, whatever the others say."""
    yield [Ask(run) for run in runs]


def fail_if_all_failed(records: Sequence[Record]) -> None:
    """Raises InputError with the first reason when no run of a sweep has a result: nothing could be judged."""
    if records and all(record["status"] == "failed" for record in records):
        raise InputError(f"every run failed; the first: {records[0]['reason']}")
