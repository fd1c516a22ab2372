"""What the adaptive search costs and finds beside the full grid, on real runs, for ten pairs of seeds.

First the full grid: GPTs of three widths, SP and μP, 15 learning rates in steps of √2, ten seeds; about 750 short runs, kept in
FOLDER. Then the search is followed ten times with two seeds each, taking its runs from the grid. Printed: the share of the
grid's FLOPs (runs given up half-way count half), and how far its optima lie from those that the verdict finds on all of the grid.

    python -m benchmarks.adaptive_search [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mutransfer.sweep import Options, Wanted, grid_configs, sweep
from mutransfer.sweep.adaptive import adaptive
from mutransfer.sweep.driver import Ask, Record
from mutransfer.sweep.points import groups
from mutransfer.sweep.store import flat_row
from mutransfer.verdict import transfer_verdict

WIDTHS, SEEDS = [16, 32, 64], list(range(10))
LOG2_LRS = [-10 + i / 2 for i in range(15)]
SETTING: dict[str, Any] = {
    "model": {"kind": "gpt", "context": 32, "depth": 2, "head_size": 8, "init_std": 0.1131}, "data": "topics", "batch": 16,
    "steps": 100, "warmup": 10, "val_batches": 0, "device": "cpu",
}  # fmt: skip


class Replay:
    """Stands in for the driver: runs are rows of the grid; keeps account of what the search used."""

    def __init__(self, records: dict[str, Record]) -> None:
        self.records = records
        self.flops: dict[str, float] = {}
        self.ended: dict[str, Record] = {}

    def answer(self, ask: Ask) -> Record:
        """The record of a whole run, or of its first half."""
        record = self.records[ask.run.key]
        whole = record["flops"] or self.records[record["copied_from"]]["flops"]
        if ask.until is not None and record["status"] == "finished" and ask.run.key not in self.ended:
            self.flops[ask.run.key] = max(whole / 2, self.flops.get(ask.run.key, 0.0))
            return {**record, "status": "paused", "points": []}
        self.flops[ask.run.key] = whole
        self.ended[ask.run.key] = record
        return record

    def stop(self, run: Wanted, paused: Record, reason: str) -> Record:
        """A run that is given up."""
        self.ended[run.key] = {**paused, "status": "stopped"}
        return self.ended[run.key]


def follow(runs: Sequence[Wanted], records: dict[str, Record]) -> tuple[float, list[Record]]:
    """(FLOPs that the search used, the records that it ended with)."""
    replay = Replay(records)
    (group,) = groups(runs)
    search = adaptive(group, "train_loss", replay.stop)
    asks = next(search)
    while True:
        try:
            asks = search.send([replay.answer(ask) for ask in asks])
        except StopIteration:
            return sum(replay.flops.values()), list(replay.ended.values())


def optima(records: Sequence[Record]) -> dict[float, float]:
    """The verdict's optimum of every width."""
    rows = [flat_row(record) for record in records]
    verdict = transfer_verdict(rows, size="width", loss="train_loss")
    return {found.size: found.log2_lr.value for found in verdict.optima}


def main() -> None:
    """Print one line per parametrization; the runs are kept in the folder that is given."""
    if len(sys.argv) < 2:
        with tempfile.TemporaryDirectory() as folder:
            return measure(Path(folder))
    return measure(Path(sys.argv[1]))


def measure(folder: Path) -> None:
    """Make the runs that the folder lacks, follow the search, print."""
    from mutransfer.commands.builtin import fitted
    from mutransfer.data import load

    SETTING["model"] |= fitted("gpt", load("topics"))
    axes = {"recipe": ["sp", "mup"], "width": WIDTHS, "lr": [2.0**x for x in LOG2_LRS], "seed": SEEDS}
    runs = [Wanted.of(config) for config in grid_configs(SETTING, axes)]
    made = sweep(runs, folder, Options(yes=True), label="full grid")
    records = {record["key"]: record for record in made}
    print(
        "| parametrization | FLOPs of the full grid: mean, most | optima within 0.25 octave | median, most |Δ| in octaves |"
    )
    print("|---|---|---|---|")
    for recipe in axes["recipe"]:
        shares, off = [], []
        for trial in range(len(SEEDS)):
            seeds = (SEEDS[trial], SEEDS[(trial + 1) % len(SEEDS)])
            mine = [run for run in runs if run.fields["recipe"] == recipe and run.fields["seed"] in seeds]
            used, ended = follow(mine, records)
            whole = [records[run.key] for run in mine]
            shares.append(used / sum(r["flops"] or records[r["copied_from"]]["flops"] for r in whole))
            found, full = optima(ended), optima(whole)
            off += [abs(found[width] - full[width]) for width in full]
        near = np.mean([d <= 0.25 for d in off])
        print(
            f"| {recipe} | {np.mean(shares):.0%}, {max(shares):.0%} | {near:.0%} of {len(off)} | "
            f"{np.median(off):.2f}, {max(off):.2f} |"
        )


if __name__ == "__main__":
    main()
