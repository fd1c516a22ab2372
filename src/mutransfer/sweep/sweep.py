"""A whole sweep: what is missing, what it will cost, whether to start, and the runs themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutransfer.commands.output import duration
from mutransfer.errors import InputError
from mutransfer.sweep.cost import Cost, estimate
from mutransfer.sweep.driver import Driver, Record, Search, Watcher, fail_if_all_failed
from mutransfer.sweep.executor import Executor
from mutransfer.sweep.live import Live
from mutransfer.sweep.store import Store
from mutransfer.sweep.wanted import Wanted
from mutransfer.sweep.workers import Workers, available_cores

EXECUTORS = ("local", "ray", "slurm")


@dataclass(frozen=True)
class Options:
    """How the runs are made; nothing here changes a result.

    `workers`: runs at once (by default one per core, or what the cluster has). `ranks`: devices of each run, by DDP.
    `limit`: seconds of estimated time above which it asks before it starts, unless `yes`. `checkpoints`: save runs as often
    as their config says even if it says never, at a tenth of the run; `keep`: keep the checkpoints of ended runs.
    """

    executor: str = "local"
    workers: int | None = None
    ranks: int = 1
    limit: float = 600.0
    yes: bool = False
    keep: bool = False
    slurm: tuple[str, ...] = ()
    tracker: tuple[str, ...] = ()


def sweep(
    runs: Sequence[Wanted],
    folder: Path,
    options: Options | None = None,
    *,
    searches: Callable[[Driver], Sequence[Search]] | None = None,
    label: str = "sweep",
    share: tuple[float, str] = (1.0, ""),
) -> list[Record]:
    """Make those of `runs` that the store in `folder` does not hold, and return the records of all, in order.

    With `searches`, only the runs that these ask for are made, out of `runs`; the records of those are returned. `share`:
    what part of the cost of all runs the search is expected to need, and the words that say so.
    Raises InputError for bad options, when the user says no, and when every run failed.
    """
    options = options or Options()
    _check(options)
    known = _known(folder)
    unknown = {run.result: run for run in runs if run.result not in known}
    with Store(folder) as store:
        if not unknown and searches is None:
            driver = Driver(store, _Nobody(), ranks=options.ranks)
            return _follow(driver, runs, None)
        with open_executor(options, len(unknown), folder) as executor:
            cost = estimate(list(unknown.values()), executor, options.ranks, list(known.values()))
            if unknown:
                _say(_estimate_words(cost, runs, unknown, share, options))
                _confirm(cost, share[0], options)
            watchers: list[Watcher] = []
            live = Live(label, varying(runs), len(unknown), cost)
            watchers.append(live)
            if options.tracker:
                from mutransfer.sweep.tracking import Tracked

                watchers.append(Tracked(options.tracker, label, folder, live.varying))
            driver = Driver(store, executor, watchers, ranks=options.ranks, keep=options.keep)
            with live:
                return _follow(driver, runs, searches)


def _follow(
    driver: Driver, runs: Sequence[Wanted], searches: Callable[[Driver], Sequence[Search]] | None
) -> list[Record]:
    from mutransfer.sweep.driver import Ask

    records: list[Record] = []

    def everything() -> Search:
        records.extend((yield [Ask(run) for run in sorted(runs, key=_work, reverse=True)]))

    driver.run([everything()] if searches is None else searches(driver))
    if searches is None:
        by_key = {record["key"]: record for record in records}
        records = [by_key[run.key] for run in runs]
    else:
        ended = driver.store.records()
        records = [ended[run.key] for run in runs if run.key in ended]
    fail_if_all_failed(records)
    return records


def _work(run: Wanted) -> float:
    """The longest runs go first: short ones fill the end."""
    from mutransfer.sweep.cost import flops_of
    from mutransfer.sweep.wanted import Call

    return 0.0 if isinstance(run.config, Call) else flops_of(run.config)


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    """result → record of what is there; nothing is created."""
    from mutransfer.sweep.store import FILE

    if not (folder / FILE).is_file():
        return {}
    with Store(folder, create=False) as store:
        return {r["result"]: r for r in store.records().values() if r["status"] != "failed"}


def varying(runs: Sequence[Wanted]) -> tuple[str, ...]:
    """The fields by which the runs differ, in the order of the config's own."""
    seen: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.fields.items():
            seen.setdefault(name, set()).add(repr(value))
    return tuple(name for name, values in seen.items() if len(values) > 1) or ("lr",)


def open_executor(options: Options, runs: int, folder: Path) -> Any:
    """The executor that the options name, as a context manager."""
    if options.executor == "ray":
        from mutransfer.sweep.ray import RayCluster

        return RayCluster(options.workers)
    if options.executor == "slurm":
        from mutransfer.sweep.slurm import Slurm

        return Slurm(folder, options.workers, options.slurm)
    places = options.workers or max(1, available_cores() // options.ranks)
    return Workers(max(1, min(places, max(runs, 1))))


def _check(options: Options) -> None:
    if options.executor not in EXECUTORS:
        raise InputError(f"executor={options.executor!r}: choose from {', '.join(EXECUTORS)}")
    for name, value in (("workers", options.workers), ("ranks", options.ranks)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value}: give a whole number of at least 1")


def _estimate_words(
    cost: Cost, runs: Sequence[Wanted], unknown: dict[str, Wanted], share: tuple[float, str], options: Options
) -> str:
    total = len({run.result for run in runs})
    known = f", {total - len(unknown)} known" if len(unknown) < total else ""
    alike = f" ({len(runs)} points of the grid, some of which must come out alike)" if len(runs) > total else ""
    places = f"{cost.places} worker{'s' * (cost.places > 1)}" + f" of {options.ranks} ranks" * (options.ranks > 1)
    if not cost.known:
        return f"{len(unknown)} runs{alike}{known} on {places}; how long they take is known after the first of them"
    flops = sum(cost.flops.values())
    about = f"{len(unknown)} runs{alike}{known} on {places}: about {duration(cost.wall)}, {flops:.2g} FLOP"
    return about if share[0] == 1 else f"at most {about}; {share[1]}: about {duration(share[0] * cost.wall)}"


def _confirm(cost: Cost, share: float, options: Options) -> None:
    """Ask before something long. Raises InputError when the answer is no, or when there is nobody to ask."""
    if options.yes or not cost.known or share * cost.wall <= options.limit:
        return
    if not sys.stdin.isatty():
        raise InputError(
            f"this takes about {duration(share * cost.wall)}, more than --limit {options.limit / 60:g} minutes: add --yes to start it"
        )
    print("start? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise InputError("not started")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Nobody:
    """The executor of a sweep in which nothing is to be done."""

    count = queue = 0

    def submit(self, job: str, function: Any, *arguments: Any) -> None:
        raise AssertionError(job)

    def events(self, timeout: float | None = None) -> list[Any]:
        return []

    def close(self) -> None:
        pass


_: type[Executor] = _Nobody
