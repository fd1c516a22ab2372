"""The sweep while it runs: a live table on a terminal, plain lines without one. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from mutransfer.commands.output import duration
from mutransfer.sweep.cost import Cost
from mutransfer.sweep.driver import Record
from mutransfer.sweep.shown import told_apart
from mutransfer.sweep.wanted import Call, Wanted

_EVERY = 5.0  # seconds between plain lines


@dataclass
class _Run:
    """A run under way as the table shows it."""

    name: str
    steps: int | None
    flops: float | None
    began: float
    step: int = 0
    loss: float = float("nan")
    tokens: float = 0.0
    seconds: float = 0.0


class Live:
    """Run, step, loss, tokens/s, share of the matmul peak (MFU), and when the whole will be done.

    `varying`: the names of the fields that tell the runs apart. `total`: how many runs there will be; with `bounded`, a
    search decides which of them, and the remaining time is not known. The remaining
    time is the estimate of what is left, corrected by how the runs done so far compare with theirs.
    """

    def __init__(self, label: str, varying: Sequence[str], total: int, cost: Cost, *, bounded: bool = False) -> None:
        self.bounded = bounded
        self.label, self.varying, self.total, self.cost = label, varying, total, cost
        self.runs: dict[str, _Run] = {}
        self.done = self.bad = 0
        self.expected = self.took = 0.0  # worker seconds of the runs done: estimated, and real
        self.left = dict(cost.seconds)
        self.start = self.shown = time.perf_counter()
        self._live: Any = None

    def __enter__(self) -> Live:
        self.start = self.shown = time.perf_counter()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live as Screen

            self._live = Screen(
                console=Console(stderr=True, highlight=False),
                get_renderable=self._table,
                refresh_per_second=4,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        if kind is None:
            print(f"{self.label}: {self._counts()}, in {self._passed()}", file=sys.stderr, flush=True)

    def started(self, run: Wanted) -> None:
        """A run's first point is about to come."""
        config = run.config
        steps = None if isinstance(config, Call) else config.steps
        self.runs[run.result] = _Run(self._name(run), steps, self.cost.flops.get(run.result), time.perf_counter())

    def point(self, run: Wanted, point: Mapping[str, Any]) -> None:
        """A point of a run."""
        shown = self.runs.get(run.result)
        if shown is not None:
            shown.step, shown.loss = int(point["step"]), float(point["loss"])
            shown.tokens, shown.seconds = float(point.get("tokens", 0)), float(point.get("seconds", 0))
        self._line()

    def ended(self, run: Wanted, record: Record) -> None:
        """A run's end."""
        self.runs.pop(run.result, None)
        self.done += 1
        self.bad += record["status"] == "failed"
        expected = self.left.pop(run.result, None)
        if expected is not None and expected == expected and record["status"] == "finished":
            self.expected += expected
            self.took += record["seconds"] or 0.0
        if record["status"] == "failed":
            text = f"{self.label}: {self._name(run)} failed: {record['reason']}"
            self._live.console.print(text) if self._live is not None else print(text, file=sys.stderr, flush=True)
        self._line()

    def _name(self, run: Wanted) -> str:
        return " ".join(told_apart(run.fields, self.varying))

    def eta(self) -> str:
        """The remaining time of the whole, 0:00 when all is done."""
        if self.bounded:
            return "–"
        pace = self.took / self.expected if self.expected > 0 else 1.0
        left = [seconds for seconds in self.left.values() if seconds == seconds]
        if len(left) < len(self.left):
            if not self.done:
                return "–"
            left = [(time.perf_counter() - self.start) / self.done * self.cost.places] * len(self.left)
        under_way = sum(self.left.get(r, 0.0) * s.step / s.steps for r, s in self.runs.items() if s.steps)
        return duration(max(0.0, pace * (sum(left) - under_way) / self.cost.places))

    def _counts(self) -> str:
        failed = f", {self.bad} failed" if self.bad else ""
        if self.bounded or self.done >= self.total:
            return f"{self.done} runs{failed}"
        return f"{self.done} of {self.total} runs{failed}"

    def _passed(self) -> str:
        return duration(time.perf_counter() - self.start)

    def _line(self) -> None:
        now = time.perf_counter()
        if self._live is None and now - self.shown >= _EVERY:
            self.shown = now
            latest = max(self.runs.values(), key=lambda run: run.step, default=None)
            shown = f"; {latest.name} step {latest.step} loss {latest.loss:.4f}" if latest is not None else ""
            print(f"{self.label}: {self._counts()}, ETA {self.eta()}{shown}", file=sys.stderr, flush=True)

    def _table(self) -> Any:
        from rich.table import Table

        table = Table(title=f"{self.label}: {self._counts()}, {self._passed()} passed, ETA {self.eta()}")
        for name in ("run", "step", "loss", "tokens/s", "MFU"):
            table.add_column(name, justify="left" if name == "run" else "right", no_wrap=name != "run")
        for run in self.runs.values():
            of = f"/{run.steps}" if run.steps else ""
            speed = run.tokens / run.seconds if run.seconds > 0 and run.tokens else None
            mfu = ""
            if speed is not None and run.flops and run.steps and self.cost.peak and run.step:
                mfu = f"{100 * run.flops * run.step / run.steps / run.seconds / self.cost.peak:.0f} %"
            table.add_row(run.name, f"{run.step}{of}", f"{run.loss:.4f}", "" if speed is None else f"{speed:,.0f}", mfu)
        return table
