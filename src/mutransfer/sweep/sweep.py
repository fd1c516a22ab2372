"""A whole sweep: what is missing, what it will cost, whether to start, and the runs themselves."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mutransfer.commands.output import duration
from mutransfer.errors import InputError
from mutransfer.sweep.adaptive import adaptive
from mutransfer.sweep.cost import Cost, estimate
from mutransfer.sweep.driver import Driver, Record, Search, Watcher, fail_if_all_failed, grid
from mutransfer.sweep.executor import Executor
from mutransfer.sweep.live import Live
from mutransfer.sweep.points import every, groups
from mutransfer.sweep.store import FILE, Store
from mutransfer.sweep.tracked import Tracked
from mutransfer.sweep.tune import tune
from mutransfer.sweep.wanted import Wanted
from mutransfer.sweep.workers import Workers, available_cores

EXECUTORS = ("local", "ray", "slurm")
SEARCHES = ("grid", "adaptive", "optuna")


@dataclass(frozen=True)
class Options:
    """How the runs are made; nothing here changes a result.

    `workers`: runs at once (by default one per core, or what the cluster has). `ranks`: devices of each run, by DDP.
    `limit`: seconds of estimated time above which it asks before it starts, unless `yes`. `keep`: keep the checkpoints of
    ended runs. `command` is noted in the store. `search`, with the `metric` that it minimises and the `trials` of "optuna", decides which runs are made.
    """

    executor: str = "local"
    workers: int | None = None
    ranks: int = 1
    limit: float = 600.0
    yes: bool = False
    keep: bool = False
    slurm: tuple[str, ...] = ()
    tracker: tuple[str, ...] = ()
    search: str = "grid"
    metric: str = "train_loss"
    trials: int = 30
    command: str = ""


def sweep(
    runs: Sequence[Wanted], folder: Path, options: Options | None = None, *, label: str = "sweep"
) -> list[Record]:
    """Make those of `runs` that the store in `folder` does not hold, and return the records.

    With `options.search` other than "grid", runs are made only where the search needs them, at learning rates of its own
    too; the records are those of the runs that it asked for.
    Raises InputError for bad options, when the user says no, and when every run failed.
    """
    options = options or Options()
    _check(options, runs)
    known, missing = missing_runs(runs, folder)
    with contextlib.ExitStack() as stack:
        executor: Executor = _Nobody()
        cost = Cost({}, {}, None, 1)
        if missing or options.search != "grid":
            executor = stack.enter_context(open_executor(options, len(missing), folder))
            cost = estimate(list(missing.values()), executor, options.ranks, list(known.values()))
        if missing:
            share = expected_share(runs, options, cost)
            _say(_estimate_words(cost, runs, missing, share, options))
            _confirm(cost, share, options)
        return make(runs, folder, options, executor, cost, label)


def make(
    runs: Sequence[Wanted], folder: Path, options: Options, executor: Executor, cost: Cost, label: str
) -> list[Record]:
    """The sweep itself, on an executor that is there, at a cost that is known."""
    missing = missing_runs(runs, folder)[1]
    plain = options.search == "grid"
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store(folder))
        if missing and options.command:
            store.note("command", options.command)
        watchers: list[Watcher] = []
        if missing or not plain:
            live = stack.enter_context(Live(label, varying(runs), len(missing), cost, bounded=not plain))
            watchers = [live, *(Tracked(name, label, folder, live.varying) for name in options.tracker)]
        driver = Driver(store, executor, watchers, ranks=options.ranks, keep=options.keep)
        asked: dict[str, None] = {}
        driver.run([_noted(search, asked) for search in searches(runs, options, driver)])
        ended = store.records()
    records: list[Record] = [ended[key] for key in ([run.key for run in runs] if plain else asked)]
    fail_if_all_failed(records)
    return records


def missing_runs(runs: Sequence[Wanted], folder: Path) -> tuple[dict[str, Record], dict[str, Wanted]]:
    """By result: the records that are in the store, and the runs that are to be made. Nothing is created."""
    known: dict[str, Record] = {}
    if (folder / FILE).is_file():
        with Store(folder, create=False) as store:
            known = {r["result"]: r for r in store.records().values() if r["status"] != "failed"}
    return known, {run.result: run for run in runs if run.result not in known}


def searches(runs: Sequence[Wanted], options: Options, driver: Driver) -> list[Search]:
    """What asks for runs: the grid, one adaptive search per group, or optuna's."""
    if options.search == "adaptive":
        return [adaptive(group, options.metric, driver.stop) for group in groups(runs)]
    if options.search == "optuna":
        return [tune(runs, options.metric, options.trials, driver.executor.count, partial(driver.store.note, "tuned"))]
    return [grid(sorted(runs, key=_work, reverse=True))]


def _noted(search: Search, asked: dict[str, None]) -> Search:
    """The search, with the keys of all its runs kept in order."""
    records: Sequence[Record] | None = None
    while True:
        try:
            asks = next(search) if records is None else search.send(records)
        except StopIteration:
            return
        asked |= {ask.run.key: None for ask in asks}
        records = yield asks


def expected_share(runs: Sequence[Wanted], options: Options, cost: Cost) -> float:
    """The part of the whole grid's time that a search is expected to need."""
    if options.search == "grid":
        return 1.0
    total = needed = 0.0
    for group in groups(runs) if options.search == "adaptive" else [every(runs)]:
        seeds = len(group.seeds)
        each = sum(1 for run in runs if run.result in cost.seconds) / (len(group.sizes) * seeds) or 1.0
        for place, size in enumerate(group.sizes):
            took = [cost.seconds.get(group.templates[size, seed].result, 0.0) for seed in group.seeds]
            one = sum(took) / len(took)
            if options.search == "adaptive":
                each = len(group.log2_lrs)
                # coarse rates, two finer ones, three of another seed
                coarse = 3 if place else 1 + group.log2_lrs[-1] - group.log2_lrs[0]
                here = min(coarse + 2 + 3 * (seeds > 1), each * seeds)
            else:
                here = 3 * seeds + options.trials * (place == 0)
            total, needed = total + one * each * seeds, needed + one * here
    return needed / total if total else 1.0


def _work(run: Wanted) -> float:
    """The longest runs go first: short ones fill the end."""
    from mutransfer.sweep.cost import flops_of
    from mutransfer.sweep.wanted import Call

    return 0.0 if isinstance(run.config, Call) else flops_of(run.config)


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

        return RayCluster(options.workers, options.ranks)
    if options.executor == "slurm":
        from mutransfer.sweep.slurm import Slurm

        return Slurm(folder, options.workers, options.slurm)
    places = options.workers or max(1, available_cores() // options.ranks)
    return Workers(max(1, min(places, max(runs, 1))))


def _check(options: Options, runs: Sequence[Wanted]) -> None:
    for name, value, known in (("executor", options.executor, EXECUTORS), ("search", options.search, SEARCHES)):
        if value not in known:
            raise InputError(f"{name}={value!r}: choose from {', '.join(known)}")
    if options.slurm and options.executor != "slurm":
        raise InputError(f"--slurm {options.slurm[0]} is for --executor slurm: add that, or leave it out")
    for tracker in options.tracker:
        from mutransfer.train.trackers import open_tracker

        open_tracker(tracker, "", Path())
    if options.search == "adaptive":
        groups(runs)
    for name, value in (("workers", options.workers), ("ranks", options.ranks), ("trials", options.trials)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value}: give a whole number of at least 1")


def _estimate_words(
    cost: Cost, runs: Sequence[Wanted], unknown: dict[str, Wanted], share: float, options: Options
) -> str:
    total = len({run.result for run in runs})
    known = f", {total - len(unknown)} known" if len(unknown) < total else ""
    alike = f" ({len(runs)} points of the grid, some of which must come out alike)" if len(runs) > total else ""
    places = f"{cost.places} worker{'s' * (cost.places > 1)}" + f" of {options.ranks} ranks" * (options.ranks > 1)
    if not cost.known:
        return f"{len(unknown)} runs{alike}{known} on {places}; how long they take is known after the first of them"
    flops = sum(cost.flops.values())
    about = f"{len(unknown)} runs{alike}{known} on {places}: about {duration(cost.wall)}, {flops:.2g} FLOP"
    if options.search == "grid":
        return about
    return f"the whole grid is {about}; --search {options.search} is expected to need {100 * share:.0f} % of it, about {duration(share * cost.wall)}"


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
