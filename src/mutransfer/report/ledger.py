"""What a sweep cost: runs, FLOPs and time by group and size, what shared runs saved, and small against large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mutransfer.report.html import Table
from mutransfer.report.runs import Layout, Run
from mutransfer.sweep.shown import shown


@dataclass(frozen=True)
class Entry:
    """One group at one size. `shared`: runs taken over from others that come out alike; they cost nothing."""

    label: str
    size: tuple[Any, ...]
    runs: int
    shared: int
    flops: float
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Ledger:
    """Every entry, the FLOPs and seconds that sharing saved, and the axes that the sizes are of."""

    axes: tuple[str, ...]
    entries: tuple[Entry, ...]
    saved_runs: int
    saved_flops: float
    saved_seconds: float
    ratios: tuple[tuple[str, float], ...]
    """(sentence, cost of a run at the smallest size as a share of one at the largest)."""

    @classmethod
    def of(cls, layout: Layout) -> Ledger:
        """Add up the rows."""
        sources = {run.key: run for run in layout.sweep.runs}
        entries, saved = [], []
        for label, runs in layout.labels.items():
            cells: dict[tuple[Any, ...], list[Run]] = {}
            for run in runs:
                cells.setdefault(layout.size(run), []).append(run)
            for size in sorted(cells):
                shared = [run for run in cells[size] if run.record["copied_from"]]
                saved += [sources[run.record["copied_from"]] for run in shared if run.record["copied_from"] in sources]
                sums = (_sum(cells[size], name) for name in ("flops", "seconds", "cpu_seconds"))
                entries.append(Entry(label, size, len(cells[size]) - len(shared), len(shared), *sums))
        return cls(layout.axes, tuple(entries), len(saved), _sum(saved, "flops"), _sum(saved, "seconds"), _ratios(layout, sources))  # fmt: skip

    def total(self, name: str) -> float:
        """Sum over the entries."""
        return sum(getattr(entry, name) for entry in self.entries)

    def table(self) -> Table:
        """By group and size, with the share of everything (of the FLOPs where they are known, else of the time)."""
        by = "flops" if self.total("flops") else "seconds"
        whole = self.total(by) or 1.0
        rows = [
            (e.label, *map(shown, e.size), str(e.runs), str(e.shared or ""), _flops(e.flops), f"{100 * getattr(e, by) / whole:.1f} %",
             clock(e.seconds), clock(e.cpu_seconds))
            for e in self.entries
        ]  # fmt: skip
        empty = [""] * len(self.axes)
        rows.append(("all", *empty, f"{self.total('runs'):.0f}", f"{self.total('shared'):.0f}" if self.total('shared') else "", _flops(self.total("flops")), "100 %",
                     clock(self.total("seconds")), clock(self.total("cpu_seconds"))))  # fmt: skip
        columns = ("", *self.axes, "runs made", "shared", "FLOPs", "share", "run time", "CPU time")
        return Table(columns, tuple(rows), "Cost; run time is that of all workers together", frozenset(columns[1:]))

    def sentences(self) -> list[str]:
        """What sharing saved, and what tuning small costs against tuning large."""
        said = [sentence for sentence, _ in self.ratios]
        if self.saved_runs:
            flops = f"{_flops(self.saved_flops)} FLOPs and " if self.saved_flops else ""
            said.append(
                f"{self.saved_runs} runs were not made because others come out bit for bit alike (at its base a parametrization "
                f"is the standard one): that saved {flops}{clock(self.saved_seconds)} of run time."
            )
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "entries": [{**asdict(e), "size": dict(zip(self.axes, e.size, strict=False))} for e in self.entries],
            "saved_runs": self.saved_runs, "saved_flops": self.saved_flops, "saved_seconds": self.saved_seconds,
            "runs": self.total("runs"), "flops": self.total("flops"), "seconds": self.total("seconds"),
            "cpu_seconds": self.total("cpu_seconds"),
        }  # fmt: skip


def clock(seconds: float) -> str:
    """0:42, 12:05 or 3:07:15."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _ratios(layout: Layout, sources: Mapping[str, Run]) -> tuple[tuple[str, float], ...]:
    """A run at the smallest size as a share of one at the largest, along every axis, over all groups."""
    found = []
    for comparison in layout.comparisons:
        if not comparison.axis:
            continue
        cells: dict[float, list[Run]] = {}
        for runs in comparison.groups.values():
            for run in runs:
                if run.status == "finished":
                    source = sources.get(run.record["copied_from"] or "", run)
                    cells.setdefault(run.fields[comparison.axis], []).append(source)
        if len(cells) < 2:
            continue
        low, high = min(cells), max(cells)
        by = "flops" if _sum(cells[low], "flops") and _sum(cells[high], "flops") else "seconds"
        each = [_sum(cells[size], by) / len(cells[size]) for size in (low, high)]
        if not each[1]:
            continue
        ratio = each[0] / each[1]
        held = "".join(f", {name} {shown(value)}" for name, value in comparison.fixed.items())
        axis, what = comparison.axis, "FLOPs" if by == "flops" else "time"
        found.append((
            f"Tuning at {axis} {shown(low)}{held} costs {_share(ratio)} of the {what} of the same grid at {axis} {shown(high)}: one run there costs as "
            f"much as {1 / ratio:.0f} at {axis} {shown(low)}.", ratio,
        ))  # fmt: skip
    return tuple(found)


def _share(ratio: float) -> str:
    return f"{100 * ratio:.2g} %" if ratio < 0.995 else f"{100 * ratio:.0f} %"


def _sum(runs: Sequence[Run], name: str) -> float:
    return float(sum(run.record[name] or 0.0 for run in runs))


def _flops(value: float) -> str:
    return f"{value:.2e}" if value else "–"
