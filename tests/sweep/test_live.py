"""What is told of a sweep while it runs: the live table, plain lines, a tracker."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mutransfer.sweep import Wanted
from mutransfer.sweep.cost import Cost
from mutransfer.sweep.live import Live
from mutransfer.sweep.tracked import Tracked
from tests.sweep.small import gpt

RUNS = [Wanted.of(gpt(lr=2.0**x)) for x in (-8, -7, -6, -5)]
COST = Cost({run.result: 10.0 for run in RUNS}, {run.result: 4e9 for run in RUNS}, 1e9, 2)


def record(seconds: float) -> dict[str, Any]:
    return {"status": "finished", "reason": None, "seconds": seconds, "metrics": {"train_loss": 2.0, "val_loss": None}}


def table(live: Live) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(live._table())
    return out.getvalue()


def test_the_table_shows_run_step_loss_speed_and_the_share_of_the_peak() -> None:
    live = Live("sweep", ("lr",), 4, COST)
    assert live.eta() == "0:20"  # 4 runs of 10 seconds on two workers
    live.started(RUNS[0])
    live.point(RUNS[0], {"step": 10, "loss": 3.25, "tokens": 5000, "seconds": 2.0})
    shown = table(live)
    # a quarter of 40 steps: 1e9 FLOP in 2 seconds, of a peak of 1e9 per second
    for text in ("0 of 4 runs", "lr=2^-8", "10/40", "3.2500", "2,500", "50 %"):
        assert text in shown
    assert live.eta() == "0:19"
    live.ended(RUNS[0], record(20.0))  # twice as long as estimated: so will the others be
    assert live.eta() == "0:30" and "lr=2^-8" not in table(live) and "1 of 4 runs" in table(live)


def test_where_a_search_decides_no_end_is_promised() -> None:
    live = Live("sweep", ("lr",), 4, COST, bounded=True)
    assert live.eta() == "–" and "0 runs" in table(live)


def test_without_a_terminal_there_are_plain_lines_and_a_failure_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mutransfer.sweep.live._EVERY", 0.0)
    with Live("sweep", ("lr",), 4, COST) as live:
        live.started(RUNS[1])
        live.point(RUNS[1], {"step": 20, "loss": 2.5})
        live.ended(RUNS[1], {**record(1.0), "status": "failed", "reason": "out of memory"})
    said = capsys.readouterr().err
    assert "sweep: 0 of 4 runs, ETA " in said and "lr=2^-7 step 20 loss 2.5000" in said
    assert "lr=2^-7 failed: out of memory" in said and "1 of 4 runs, 1 failed" in said


def test_a_tracker_hears_of_every_run_under_the_fields_that_tell_it_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[Any, ...]] = []

    class Run:
        def __init__(self, name: str) -> None:
            self.name = name

        def log(self, point: Mapping[str, Any], step: int) -> None:
            heard.append((self.name, step, point["loss"]))

        def finish(self, status: str, summary: Mapping[str, Any]) -> None:
            heard.append((self.name, status, summary["train_loss"]))

    class Fake:
        def start(self, name: str, config: Mapping[str, Any]) -> Run:
            heard.append((name, "started", config["lr"]))
            return Run(name)

    monkeypatch.setattr("mutransfer.train.trackers.open_tracker", lambda *_: Fake())
    tracked = Tracked("any", "sweep", tmp_path, ("lr", "depth"))
    for run in RUNS[:2]:  # two under way at a time
        tracked.started(run)
    for run in RUNS[:2]:
        tracked.point(run, {"step": 5, "loss": 3.0})
    tracked.ended(RUNS[0], record(1.0))
    tracked.ended(RUNS[2], record(1.0))  # it ended before it logged anything
    names = [f"lr=2^-{8 - i}_depth=1" for i in range(2)]
    assert heard == [
        *((name, "started", 2.0 ** (i - 8)) for i, name in enumerate(names)), *((name, 5, 3.0) for name in names),
        (names[0], "finished", 2.0),
    ]  # fmt: skip
