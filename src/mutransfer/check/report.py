"""The answer: verdict, culprits, words, table, JSON and picture."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mutransfer.check.expect import TensorInfo
from mutransfer.check.feed import Size
from mutransfer.check.findings import Finding, folded
from mutransfer.check.record import Records
from mutransfer.check.slopes import fit
from mutransfer.errors import InputError
from mutransfer.files import write_whole

MARKS = (("fail", "✗"), ("unclear", "?"), ("warn", "!"), ("note", "·"))
LINES = 12  # of findings in words; all of them are in `findings`


@dataclass(frozen=True)
class CheckReport:
    """What the coordinate check found. `verdict` is "PASS", "FAIL" or "INCONCLUSIVE"; `findings` are most upstream first."""

    verdict: str
    why: str
    findings: tuple[Finding, ...]
    raw: Records
    tensors: tuple[TensorInfo, ...]
    tolerance: float
    level: float

    @property
    def ok(self) -> bool:
        """Whether the verdict is PASS."""
        return self.verdict == "PASS"

    @property
    def culprits(self) -> list[str]:
        """Names of the parameters that break a rule, most upstream first."""
        return list(dict.fromkeys(f.name for f in self.findings if f.severity == "fail"))

    @property
    def sizes(self) -> list[Size]:
        """The sizes that were run, in growing order."""
        return self.raw.sizes

    @property
    def axis(self) -> str:
        """The name of what grows."""
        return self.raw.axis

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every recorded number as one flat row: kind, name, step, size, seed, value."""
        return self.raw.rows()

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per quantity, name and step: the mean over seeds at each size, the slope and its interval.

        A quantity that is zero or missing somewhere has slope None: an exact zero has no logarithm.
        """
        rows = []
        roles = {info.name: info.role for info in self.tensors}
        for (kind, name, step), array in self.raw.data.items():
            slope = fit(self.raw.values, array)
            low, high = (None, None) if slope is None else slope.interval(self.level)
            means = [None if np.all(np.isnan(row)) else float(np.nanmean(row)) for row in array]
            rows.append(
                {"kind": kind, "name": name, "role": roles.get(name.partition(" @ ")[0], ""), "step": step, "values": means,
                 "slope": None if slope is None else slope.mean, "low": low, "high": high}
            )  # fmt: skip
        return rows

    def slope(self, kind: str, name: str, step: int = 0) -> tuple[float, float, float] | None:
        """(slope, low, high) of one quantity, such as ("change", "blocks.0", 4); None when it is zero or unknown."""
        found = fit(self.raw.values, self.raw.get(kind, name, step))
        return None if found is None else (found.mean, *found.interval(self.level))

    def setting(self) -> str:
        """The sizes and seeds in words."""
        sizes = ", ".join(f"{v:g}" for v in self.raw.values)
        return f"over {self.axis} {sizes}, {len(self.raw.seeds)} seed{'s' if len(self.raw.seeds) > 1 else ''}"

    def words(self) -> str:
        """The verdict in words: one line, then one line per finding."""
        setting = self.setting()
        if self.verdict == "PASS":
            head = f"PASS: every tensor's init and update scale as they should {setting}"
        elif self.verdict == "FAIL":
            head = f"FAIL: {len(self.culprits)} of {len(self.tensors)} tensors break a rule {setting}; most upstream: {self.culprits[0]}"
        else:
            head = f"INCONCLUSIVE {setting}: {self.why}"
        names = [info.name for info in self.tensors]
        lines = [f"  {mark} {line}" for severity, mark in MARKS
                 for line in folded([f for f in self.findings if f.severity == severity], self.axis, names)]  # fmt: skip
        if len(lines) > LINES:
            lines = [*lines[:LINES], f"  … and {len(lines) - LINES} more"]
        return "\n".join([head, *lines])

    def __str__(self) -> str:
        lines = [self.words(), "", f"{'module or tensor':40} {'quantity':9} {'step':>4} {'slope':>7}  interval"]
        last = max((step for _, _, step in self.raw.data), default=0)
        for row in self.table:
            shown = (row["kind"] == "size" and row["step"] == 0) or (
                row["kind"] in ("change", "own") and row["step"] == last
            )
            if shown and (row["slope"] is not None):
                interval = f"[{row['low']:+.2f}, {row['high']:+.2f}]"
                lines.append(f"{row['name'][:40]:40} {row['kind']:9} {row['step']:>4} {row['slope']:+7.2f}  {interval}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: verdict, culprits, findings, sizes and the table."""
        return {
            "verdict": self.verdict, "ok": self.ok, "why": self.why, "axis": self.axis, "sizes": self.sizes,
            "values": self.raw.values, "seeds": self.raw.seeds, "culprits": self.culprits,
            "findings": [f.to_dict() for f in self.findings], "table": self.table, "words": self.words(),
        }  # fmt: skip

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_dict()` as JSON, whole or not at all. Raises InputError when the place cannot be written."""
        text = json.dumps(_plain(self.to_dict()), indent=1, allow_nan=False)
        return write_whole(file_path(path, "check.json"), text.encode())

    def figure(self, path: str | os.PathLike[str]) -> Path:
        """Draw the sizes against the axis into a PNG, SVG or PDF file. Raises InputError for another ending or a bad place."""
        from mutransfer.check.figure import draw

        return draw(self, file_path(path, "check.png"))


def _plain(value: Any) -> Any:
    """The same data with NaN and infinities as None, which JSON has no word for."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def file_path(path: str | os.PathLike[str], example: str) -> Path:
    """The path of a file to write. Raises InputError for anything that is no path, and for a folder."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"path={path!r}: give the name of a file, such as {example!r}")
    found = Path(path)
    if found.is_dir():
        raise InputError(f"{str(path)!r} is a folder: give a file, such as {str(found / example)!r}")
    return found
