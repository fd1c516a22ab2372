"""The driver: every run once, whatever asks for it, dies or runs beside it."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mutransfer.sweep import Store, Wanted
from mutransfer.sweep.driver import Ask, Driver, Record, Search, grid
from mutransfer.sweep.workers import Workers
from mutransfer.train import train
from tests.sweep.small import Inline, call, gpt


def made(folder: Path, runs: list[Wanted], executor: Any = None, **changes: Any) -> tuple[list[Record], Any]:
    """The records of the runs, and the executor that made them."""
    executor = executor or Inline()
    records: list[Record] = []

    def search() -> Search:
        records.extend((yield [Ask(run) for run in runs]))

    with Store(folder) as store:
        Driver(store, executor, **changes).run([search()])
    return records, executor


def test_second_command_makes_nothing(tmp_path: Path) -> None:
    runs = [call(lr=lr) for lr in (0.1, 0.2, 0.3)]
    first, executor = made(tmp_path, runs)
    assert len(executor.done) == 3
    again, executor = made(tmp_path, [*runs, call(lr=0.4)])
    assert executor.done == [call(lr=0.4).result]
    assert [r["metrics"] for r in again[:3]] == [r["metrics"] for r in first]


def test_failed_is_tried_again_by_the_next_command_and_diverged_is_not(tmp_path: Path) -> None:
    runs = [call(lr=0.0), call(lr=2.0), call(lr=0.5)]
    first, executor = made(tmp_path, runs)
    assert [r["status"] for r in first] == ["failed", "diverged", "finished"]
    assert "no learning rate" in first[0]["reason"] and "inf" in first[1]["reason"]
    _, executor = made(tmp_path, runs)
    assert executor.done == [runs[0].result]

    with Store(tmp_path) as store:  # its cause is gone
        failed = store.records()[runs[0].key]
        store.add({**failed, "status": "finished", "reason": None, "metrics": {"loss": 1.0}})
    last, executor = made(tmp_path, runs)
    assert executor.done == [] and [r["status"] for r in last] == ["finished", "diverged", "finished"]


def test_a_run_that_fails_is_not_repeated_by_the_searches_of_one_command(tmp_path: Path) -> None:
    run = call(lr=0.0)
    seen: list[str] = []

    def stubborn() -> Search:
        for _ in range(3):
            (record,) = yield [Ask(run)]
            seen.append(record["status"])

    executor = Inline()
    with Store(tmp_path) as store:
        Driver(store, executor).run([stubborn(), stubborn()])
    assert seen == ["failed"] * 6 and len(executor.done) == 1


def test_run_whose_process_always_dies_fails_after_three_attempts(tmp_path: Path) -> None:
    bad = call(lr=0.1)
    records, _ = made(tmp_path, [bad, call(lr=0.2)], Inline(lose=lambda job: job == bad.result))
    assert [r["status"] for r in records] == ["failed", "finished"]
    assert "signal 9" in records[0]["reason"] and "3 times" in records[0]["reason"]
    lost = iter([True, True])
    records, _ = made(tmp_path, [bad], Inline(lose=lambda job: next(lost, False)))
    assert records[0]["status"] == "finished"
    with Store(tmp_path) as store:
        assert store.records()[bad.key]["attempts"] == 3


def test_alike_runs_are_made_once_and_the_copy_costs_nothing(tmp_path: Path) -> None:
    # at the base's own sizes every recipe is the standard parametrization
    runs = [Wanted.of(gpt(recipe=recipe, base=base)) for recipe, base in (("sp", {}), ("mup", {"width": 16}))]
    assert runs[0].key != runs[1].key and runs[0].result == runs[1].result
    records, executor = made(tmp_path, runs)
    assert len(executor.done) == 1
    own, copy = records
    assert own["copied_from"] is None and own["flops"] > 0
    assert copy["copied_from"] == own["key"] and copy["flops"] == copy["seconds"] == copy["cpu_seconds"] == 0
    assert copy["metrics"] == own["metrics"] and copy["config"]["recipe"] == "mup"
    with Store(tmp_path) as store:
        first, second = store.points([own["key"]])[own["key"]], store.points([copy["key"]])[copy["key"]]
    assert first == second
    for run in runs:
        config = run.config
        assert not hasattr(config, "spec")
        assert train(config).train_loss == own["metrics"]["train_loss"]  # pyright: ignore[reportArgumentType] - no Call


def test_alike_runs_share_a_checkpoint(tmp_path: Path) -> None:
    sp, mup = (Wanted.of(gpt(recipe=recipe)) for recipe in ("sp", "mup"))

    def begin() -> Search:
        yield [Ask(sp, until=20)]

    with Store(tmp_path) as store:
        Driver(store, Inline()).run([begin()])
        assert store.statuses() == {}
    (record,), _ = made(tmp_path, [mup])
    assert record["status"] == "finished" and not (tmp_path / "checkpoints" / mup.result).exists()
    (whole,), _ = made(tmp_path / "other", [mup])
    assert record["metrics"] == whole["metrics"]


def test_two_searches_pause_and_finish_one_run(tmp_path: Path) -> None:
    run = Wanted.of(gpt())
    seen: list[str] = []

    def first_half() -> Search:
        (record,) = yield [Ask(run, until=20)]
        seen.append(record["status"])

    def all_of_it() -> Search:
        (record,) = yield [Ask(run)]
        seen.append(record["status"])

    with Store(tmp_path) as store:
        Driver(store, Inline()).run([first_half(), all_of_it()])
    assert seen == ["paused", "finished"]


def test_two_drivers_share_the_work(tmp_path: Path) -> None:
    runs = [call(lr=i / 8, log=str(tmp_path / "log")) for i in range(1, 7)]
    with Store(tmp_path) as one, Store(tmp_path) as other:
        executors = Inline(), Inline()
        first, second = (Driver(store, executor) for store, executor in zip((one, other), executors, strict=True))

        def beside() -> Search:  # the second takes what the first has not begun, while that is under way
            yield [Ask(run) for run in runs[:1]]
            assert one.claim(runs[1].result)
            second.run([grid(runs[2:])])
            one.release(runs[1].result)
            yield [Ask(run) for run in runs]

        first.run([beside()])
        assert len(one.statuses()) == 6
    assert [len(executor.done) for executor in executors] == [2, 4]
    assert len((tmp_path / "log").read_text().splitlines()) == 6


def test_work_of_a_process_that_gave_up_is_taken_over(tmp_path: Path) -> None:
    run = call(lr=0.25)
    with Store(tmp_path) as other:
        assert other.claim(run.result)

        class Quits(Inline):
            def events(self, timeout: float | None = None) -> list[Any]:
                if not self.jobs:
                    other.close()
                return super().events(timeout)

        (record,), executor = made(tmp_path, [run], Quits())
    assert record["status"] == "finished" and executor.done == [run.result]


def test_outcome_of_a_killed_sweep_is_not_made_again(tmp_path: Path) -> None:
    run = call(lr=0.25)
    (record,), _ = made(tmp_path / "other", [run])
    outcome = {name: record[name] for name in ("status", "reason", "metrics", "flops", "seconds", "cpu_seconds")}
    left = tmp_path / f".ended-{run.result}.json"
    left.write_text(json.dumps({**outcome, "points": []}))
    (found,), executor = made(tmp_path, [run])
    assert executor.done == [] and found["metrics"] == record["metrics"]
    assert not left.exists()


class _Points:
    """A watcher that keeps the steps it hears of, and may act at one."""

    def __init__(self, act: Any = lambda step: None) -> None:
        self.steps, self.act = list[int](), act

    def started(self, run: Wanted) -> None: ...
    def ended(self, run: Wanted, record: Record) -> None: ...

    def point(self, run: Wanted, point: Any) -> None:
        self.steps.append(point["step"])
        self.act(point["step"])


@contextmanager
def _one_worker() -> Iterator[Workers]:
    with Workers(1) as workers:
        yield workers


def test_killed_run_goes_on_from_its_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    config = gpt(steps=200, log_every=10, checkpoint_every=50, val_batches=1)
    run = Wanted.of(config)
    killed: list[int] = []

    def kill(step: int) -> None:
        if step >= 120 and not killed:
            killed.extend(workers.pids)
            os.kill(workers.pids[0], signal.SIGKILL)

    with _one_worker() as workers:
        watcher = _Points(kill)
        (record,), _ = made(tmp_path, [run], workers, watchers=[watcher])
    assert killed and record["status"] == "finished"
    at = watcher.steps.index(200)
    back = [b for a, b in zip(watcher.steps[:at], watcher.steps[1:], strict=False) if b <= a]
    assert len(back) == 1 and back[0] > 100  # from the checkpoint of update 100, not from the start
    whole = train(replace(config, checkpoint_every=0))
    assert record["metrics"]["train_loss"] == whole.train_loss and record["metrics"]["val_loss"] == whole.val_loss
    with Store(tmp_path) as store:
        points = store.points()[run.key]
        assert store.records()[run.key]["attempts"] == 2
    assert [p["loss"] for p in points] == [p.loss for p in whole.points]


@pytest.mark.parametrize("keep", [False, True])
def test_checkpoints_of_ended_runs_are_removed_unless_kept(tmp_path: Path, keep: bool) -> None:
    run = Wanted.of(gpt(checkpoint_every=10))
    made(tmp_path, [run], keep=keep)
    assert (tmp_path / "checkpoints" / run.result).exists() == keep
