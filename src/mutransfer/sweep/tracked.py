"""A tracker that hears of every run of a sweep: the driver logs for all workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mutransfer.sweep.driver import Record
from mutransfer.sweep.shown import told_apart
from mutransfer.sweep.wanted import Wanted


class Tracked:
    """A watcher of `Driver` that passes everything on to the tracker of that name."""

    def __init__(self, name: str, project: str, folder: Path, varying: Sequence[str]) -> None:
        from mutransfer.train.trackers import open_tracker

        self.tracker, self.varying = open_tracker(name, project, folder), varying
        self.runs: dict[str, Any] = {}

    def started(self, run: Wanted) -> None:
        """Open the run under the fields that tell it apart."""
        name = "_".join(told_apart(run.fields, self.varying)).replace("/", "-")
        self.runs[run.result] = self.tracker.start(name or run.key[:8], run.config.to_dict())

    def point(self, run: Wanted, point: Mapping[str, Any]) -> None:
        """Log a point."""
        self.runs[run.result].log(point, int(point["step"]))

    def ended(self, run: Wanted, record: Record) -> None:
        """Close the run."""
        tracked = self.runs.pop(run.result, None)
        if tracked is not None:
            tracked.finish(record["status"], record["metrics"])
