"""The picture of a coordinate check: size, change and own update against width, with the expected slopes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mutransfer.check.report import write_whole
from mutransfer.errors import InputError

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
CULPRIT = "#000000"


def draw(report: CheckReport, path: Path) -> Path:
    """Three panels (output at the start, its change, own update's effect), one line per module or tensor, coloured by role.

    Thin dotted lines show where slope 0 and the head's −½ would run. Culprits are black and named.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"figure {str(path)!r}: the name must end in {', '.join(FORMATS)}")
    from matplotlib.figure import Figure

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


def _panel(report: CheckReport, axes: Axes, kind: str, step: int, title: str, role_of: Callable[[str], str]) -> None:
    x = np.array(report.raw.values)
    culprits = set(report.culprits)
    drawn: list[np.ndarray] = []
    for name in report.raw.names(kind):
        array = report.raw.get(kind, name, step)
        if array is None or np.all(np.isnan(array)):
            continue
        with np.errstate(all="ignore"):
            y = np.array([np.nanmean(row) if not np.all(np.isnan(row)) else np.nan for row in array])
        y = np.where(y > 0, y, np.nan)
        if np.all(np.isnan(y)):
            continue
        drawn.append(y)
        role = role_of(name) if name != "(model)" else "output"
        role = role if role in COLOURS else ""
        guilty = name in culprits or any(c.rpartition(".")[0] == name for c in culprits)
        if guilty:
            axes.plot(x, y, color=CULPRIT, lw=2.0, marker="o", ms=4, zorder=3, label="culprit")
            if len(culprits) <= 3 and np.isfinite(y[-1]):
                axes.annotate(
                    name, (x[-1], y[-1]), xytext=(-6, -13), textcoords="offset points", ha="right", fontsize=8
                )
        else:
            axes.plot(x, y, color=COLOURS[role], lw=1.1, alpha=0.75, marker="o", ms=2.5, label=LABELS[role])
    axes.set_xscale("log", base=2)
    if drawn:
        axes.set_yscale("log")
        everything = np.concatenate([y[np.isfinite(y)] for y in drawn])
        middle = float(np.exp(np.mean(np.log(everything))))
        axes.plot(x, np.full_like(x, middle), color="#999999", ls=":", lw=1, label="slope 0")
        if kind == "size" and report.axis != "depth":
            axes.plot(
                x, middle * (x / x[0]) ** -0.5, color="#e4572e", ls=":", lw=1, label="slope −½ (read-out at step 0)"
            )
    else:
        axes.text(0.5, 0.5, "all exactly zero", ha="center", va="center", transform=axes.transAxes)
    axes.set_xticks(x, [f"{v:g}" for v in x])
    axes.minorticks_off()
    axes.set_xlabel(report.axis)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25, lw=0.5)
