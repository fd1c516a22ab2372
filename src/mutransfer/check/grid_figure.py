"""The picture of a check over a grid: how far key sizes move over it, which lines hold, and the exponents of the joint fit."""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mutransfer.check.figure import FORMATS
from mutransfer.errors import InputError
from mutransfer.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mutransfer.check.grid_report import GridReport

COLOURS = {"PASS": "#2f9e6e", "FAIL": "#c0392b", "INCONCLUSIVE": "#b7791f"}
RANGE = 2.0  # octaves at which the colours are full
FAR = 1.25  # octaves from which on a number is written in white
WIDEST = 4.0  # exponent beyond which the axis ends
MOST = 24  # rows of exponents
SERIES = ("#4c78a8", "#e08e0b", "#7f7f7f")


@dataclass(frozen=True)
class Panel:
    """One heat map: numbers over the grid, rows along the second axis, and what they are."""

    title: str
    values: np.ndarray


def draw(report: GridReport, path: Path) -> Path:
    """Heat maps of sizes over the grid, as ratios to the smallest model, and the joint fit's exponents of every weight's own effect.

    The labels of rows and columns carry the verdict of their line. White is no change; red grew, blue fell.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"figure {str(path)!r}: the name must end in {', '.join(FORMATS)}")
    from matplotlib.figure import Figure

    panels, rows = _panels(report), _exponents(report)
    m, n = (len(values) for values in report.grid.values)
    high = max(6.4, 2 * (1.2 + 0.5 * n), 1.8 + 0.24 * len(rows))
    figure = Figure(figsize=(2 * max(3.1, 0.3 + 0.62 * m) + 5.6, high), layout="constrained")
    places = figure.add_gridspec(2, 3, width_ratios=[1.0, 1.0, 1.25])
    for k in range(4):
        axes = figure.add_subplot(places[k // 2, k % 2])
        if k < len(panels):
            _heat(report, axes, panels[k])
        else:
            axes.axis("off")
    _forest(report, figure.add_subplot(places[:, 2]), rows)
    head = textwrap.fill(report.words().splitlines()[0], 125, max_lines=2, placeholder=" …")
    figure.suptitle(head, fontsize=11, color=COLOURS[report.verdict], fontweight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=130)
    return write_whole(path, buffer.getvalue())


def _panels(report: GridReport) -> list[Panel]:
    """What the blocks add up to, how the stream and the output change; at last the first culprit's own effect, or the output at the start."""
    last = max((step for kind, _, step in report.raw.data if kind == "change"), default=0)
    stack = next((name for name in report.joint.names("contribution") if name.endswith(".*")), None)
    found = []
    if stack is not None:
        title = f"what all {stack} add at the start\n(number of blocks × their size)"
        found.append(Panel(title, _means(report, "contribution", stack, 0) * _blocks(report, stack)))
        found.append(Panel(f"change of {stack}\nafter step {last}", _means(report, "change", stack, last)))
    found.append(Panel(f"change of the model's output\nafter step {last}", _means(report, "change", "(model)", last)))
    for name in [report.joint.stacks.fold(culprit) for culprit in report.culprits]:
        if np.isfinite(own := _means(report, "own", name, last)).any():
            found.append(Panel(f"own effect |ΔW x| after step {last}\n{name}", own))
            break
    else:
        found.append(Panel("the model's output\nat the start", _means(report, "size", "(model)", 0)))
    return [panel for panel in found if np.isfinite(panel.values).any()]


def _means(report: GridReport, kind: str, name: str, step: int) -> np.ndarray:
    return np.array(report.means(kind, name, step), dtype=float)


def _blocks(report: GridReport, stack: str) -> np.ndarray:
    """The number of blocks of this stack at every point."""
    found = np.full(tuple(len(values) for values in reversed(report.grid.values)), np.nan)
    for (i, j), model in zip(report.joint.places, report.raw.models, strict=True):
        found[j, i] = sum(report.joint.stacks.fold(name) == stack for name, _ in model.named_modules())
    return found


def _heat(report: GridReport, axes: Axes, panel: Panel) -> None:
    there = panel.values[np.isfinite(panel.values) & (panel.values > 0)]
    with np.errstate(all="ignore"):
        ratios = panel.values / (there[0] if there.size else 1.0)
        octaves = np.where(ratios > 0, np.log2(ratios), np.nan)
    axes.imshow(octaves, origin="lower", cmap="RdBu_r", vmin=-RANGE, vmax=RANGE, aspect="auto")
    gone = {report.joint.places[p] for p, _ in report.raw.diverged}
    for j, i in np.ndindex(*ratios.shape):
        white = np.isfinite(octaves[j, i]) and abs(octaves[j, i]) > FAR
        text = "NaN" if (i, j) in gone else _ratio(float(ratios[j, i]))
        axes.text(i, j, text, ha="center", va="center", fontsize=9, color="white" if white else "#222222")
    for along, (axis, values) in enumerate(zip(report.grid.axes, report.grid.values, strict=True)):
        (axes.set_xticks if along == 0 else axes.set_yticks)(range(len(values)), list(map(str, values)))
        (axes.set_xlabel if along == 0 else axes.set_ylabel)(axis)
        (axes.set_xticks if along == 0 else axes.set_yticks)(np.arange(-0.5, len(values)), minor=True)
    axes.set_title(panel.title, fontsize=9)
    axes.tick_params(which="both", length=0)
    axes.grid(which="minor", color="white", lw=2)
    for side in axes.spines.values():
        side.set_visible(False)
    _verdicts(report, axes)


def _ratio(value: float) -> str:
    """`×1.25`; nothing where there is no number, and 0 for an exact zero."""
    if not np.isfinite(value) or value == 0:
        return "0" if value == 0 else ""
    return f"×{value:.2f}" if 0.1 <= value < 10 else f"×{value:.0f}" if 10 <= value < 1e5 else f"×{value:.0e}"


def _verdicts(report: GridReport, axes: Axes) -> None:
    """Tick labels in the colour of their line's verdict: a row is a line along the first axis, a column one along the second."""
    marks = {(line.along, line.at): line.verdict for line in report.lines}
    signs = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?"}
    for along, labels in ((1, axes.get_xticklabels()), (0, axes.get_yticklabels())):
        shown = []
        for at, label in enumerate(labels):
            verdict = marks.get((along, at))
            shown.append(f"{label.get_text()} {signs.get(str(verdict), '')}".rstrip())
            if verdict is not None:
                label.set_color(COLOURS[verdict])
                label.set_fontweight("bold")
        (axes.set_xticklabels if along == 1 else axes.set_yticklabels)(shown)


def _exponents(report: GridReport) -> list[tuple[str, bool, list[tuple[float, float, float]]]]:
    """(name, guilty, exponents of both axes and the interaction over the grid's span) of what changes, in order of execution."""
    last = max((step for kind, _, step in report.raw.data if kind == "own"), default=0)
    guilty = {report.joint.stacks.fold(name) for name in report.culprits}
    found = []
    for name in report.joint.names("own"):
        fit = report.fit("own", name, last)
        if fit is None:
            continue
        slopes = (fit.first, fit.second, fit.interaction * max(report.joint.spans))
        found.append((name, name in guilty, [(s.mean, *s.interval(report.level)) for s in slopes]))
    keep = [row for row in found if row[1]]
    rest = [row for row in found if not row[1]]
    kept = [*keep[:MOST], *rest[: max(0, MOST - len(keep))]]
    return [row for row in found if row in kept]


def _forest(report: GridReport, axes: Axes, rows: list[tuple[str, bool, list[tuple[float, float, float]]]]) -> None:
    first, second = report.grid.axes
    labels = (first, second, f"change of {first}'s over {second}")
    for k, (label, colour, marker) in enumerate(zip(labels, SERIES, "osD", strict=True)):
        y = [len(rows) - 1 - r + 0.22 * (1 - k) for r in range(len(rows))]
        mean, low, high = (np.array([row[2][k][e] for row in rows]) for e in range(3))
        axes.errorbar(mean, y, xerr=[mean - low, high - mean], fmt=marker, ms=4, lw=1, color=colour, label=label)
    axes.axvline(0.0, color="#999999", lw=1, ls=":")
    axes.set_yticks([len(rows) - 1 - r for r in range(len(rows))], [row[0] for row in rows], fontsize=8)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(COLOURS["FAIL"] if row[1] else "#222222")
        label.set_fontweight("bold" if row[1] else "normal")
    edge = 1.1 * min(WIDEST, max((abs(end) for row in rows for one in row[2] for end in one), default=0.5))
    axes.set_xlim(-max(0.6, edge), max(0.6, edge))
    axes.set_title("exponents of every weight's own effect |ΔW x|", fontsize=9)
    axes.set_xlabel("exponent, joint fit over the grid")
    axes.grid(alpha=0.25, lw=0.5, axis="x")
    if rows:
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.09), ncols=3, handletextpad=0.2, columnspacing=1.0)  # fmt: skip
