"""The picture of a coordinate check: size, change and own update against width, with the expected slopes."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mutransfer.errors import InputError
from mutransfer.files import write_whole

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from mutransfer.check.report import CheckReport

FORMATS = (".png", ".svg", ".pdf")
COLOURS = {"input": "#4c78a8", "hidden": "#2f9e6e", "output": "#e4572e", "vector": "#8a6fb0", "": "#7f7f7f"}
LABELS = {
    "input": "input",
    "hidden": "hidden",
    "output": "read-out",
    "vector": "gain, bias",
    "": "module without weight",
}
CROWD = 0.6  # share of culprits beyond which they are drawn thinner


def draw(report: CheckReport, path: Path) -> Path:
    """Three panels (output at the start, its change, own update's effect), one line per module or tensor, coloured by role.

    Thin dotted lines show where slope 0 and the head's −½ would run. Culprits keep their role's colour, thicker and with square markers;
    the first one and the worst are named.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"figure {str(path)!r}: the name must end in {', '.join(FORMATS)}")
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    last = max((step for kind, _, step in report.raw.data if kind == "size"), default=0)
    figure = Figure(figsize=(13.5, 4.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _panel(report, left, "size", 0, "output, step 0", _module_role(report))
    _panel(report, middle, "change", last, f"change of output, step {last}", _module_role(report))
    _panel(report, right, "own", last, f"own update's effect |ΔW x|, step {last}", _tensor_role(report))
    left.set_ylabel("root mean square")
    colour = {"PASS": "#2f9e6e", "FAIL": "#c0392b"}.get(report.verdict, "#b7791f")
    line = report.words().splitlines()[0]
    figure.suptitle(line if len(line) < 130 else line[:127] + "…", fontsize=11, color=colour, fontweight="bold")
    handles: dict[str, Artist] = {}
    for axes in (left, middle, right):
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if report.culprits:
        handles["culprit"] = Line2D([], [], color="#444444", lw=2.2, marker="s", ms=5)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles) or 1, frameon=False, fontsize=9)  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=130)
    return write_whole(path, buffer.getvalue())


def _tensor_role(report: CheckReport) -> Callable[[str], str]:
    roles = {info.name: info.role for info in report.tensors}
    return lambda name: roles.get(name.partition(" @ ")[0], "")


def _module_role(report: CheckReport) -> Callable[[str], str]:
    by_module: dict[str, str] = {}
    for site in report.raw.sites.values():
        role = next((info.role for info in report.tensors if info.name == site.param), "")
        by_module.setdefault(site.module, role)
    for info in report.tensors:
        by_module.setdefault(info.name.rpartition(".")[0], info.role)
    return lambda name: by_module.get(name.partition("[")[0], "")


@dataclass
class Line:
    """One drawn quantity."""

    name: str
    y: np.ndarray
    role: str
    guilty: bool
    error: float  # how far its exponent is from where it should be, if it belongs to a culprit


def _lines(report: CheckReport, kind: str, step: int, role_of: Callable[[str], str]) -> list[Line]:
    errors: dict[str, float] = {}
    for f in report.findings:
        if f.severity == "fail":
            errors[f.name] = max(errors.get(f.name, 0.0), abs(f.slope - f.expected))
    modules = {name.rpartition(".")[0]: error for name, error in errors.items()}
    found = []
    for name in report.raw.names(kind):
        array = report.raw.get(kind, name, step)
        if array is None or np.all(np.isnan(array)):
            continue
        with np.errstate(all="ignore"):
            y = np.array([np.nanmean(row) if not np.all(np.isnan(row)) else np.nan for row in array])
        y = np.where(y > 0, y, np.nan)
        if np.all(np.isnan(y)):
            continue
        role = role_of(name) if name != "(model)" else "output"
        tensor = name.partition(" @ ")[0]
        error = errors.get(tensor, modules.get(name.partition("[")[0]) if kind != "own" else None)
        found.append(Line(tensor, y, role if role in COLOURS else "", error is not None, error or 0.0))
    return found


def _panel(report: CheckReport, axes: Axes, kind: str, step: int, title: str, role_of: Callable[[str], str]) -> None:
    x = np.array(report.raw.values)
    lines = _lines(report, kind, step, role_of)
    crowded = sum(line.guilty for line in lines) > CROWD * len(lines)
    for line in sorted(lines, key=lambda one: one.guilty):
        width, size = (1.1, 2.5) if not line.guilty else (1.5, 3.5) if crowded else (2.2, 5.0)
        axes.plot(x, line.y, color=COLOURS[line.role], lw=width, alpha=0.9 if line.guilty else 0.45, marker="s" if line.guilty else "o",
                  ms=size, zorder=3 if line.guilty else 2, label=LABELS[line.role])  # fmt: skip
    _name_worst(axes, x, lines, report.culprits)
    axes.set_xscale("log", base=2)
    if lines:
        axes.set_yscale("log")
        everything = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
        middle = float(np.exp(np.mean(np.log(everything))))
        axes.plot(x, np.full_like(x, middle), color="#999999", ls=":", lw=1, label="slope 0")
        if kind == "size" and report.axis != "depth":
            expected = middle * (x / x[0]) ** -0.5
            axes.plot(x, expected, color="#e4572e", ls=":", lw=1, label="slope −½ (read-out at step 0)")
    else:
        axes.text(0.5, 0.5, "all exactly zero", ha="center", va="center", transform=axes.transAxes)
    axes.set_xticks(x, [f"{v:g}" for v in x])
    axes.minorticks_off()
    axes.set_xlabel(report.axis)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25, lw=0.5)


def _name_worst(axes: Axes, x: np.ndarray, lines: list[Line], culprits: list[str]) -> None:
    """The first culprit and the largest error, by name at their last point; a second name too near the first is left out."""
    guilty = [line for line in lines if line.guilty and np.isfinite(line.y[-1])]
    if not guilty:
        return
    first = next((one for c in culprits for one in guilty if one.name in (c, c.rpartition(".")[0])), guilty[0])
    shown: list[float] = []
    everything = np.concatenate([np.log(line.y[np.isfinite(line.y)]) for line in lines])
    apart = 0.08 * max(float(np.ptp(everything)), 0.5)
    for line in (first, max(guilty, key=lambda one: one.error)):
        height = float(np.log(line.y[-1]))
        if any(abs(height - other) < apart for other in shown):
            continue
        shown.append(height)
        axes.annotate(line.name, (x[-1], line.y[-1]), xytext=(-7, 7), textcoords="offset points", ha="right", fontsize=8, color=COLOURS[line.role],
                      fontweight="bold", zorder=5, bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.8})  # fmt: skip
