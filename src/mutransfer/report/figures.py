"""The pictures of a sweep's report, each as bytes of a format: PNG, SVG or PDF."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mutransfer.report.html import DPI
from mutransfer.report.judged import Along
from mutransfer.report.prediction import Foretold
from mutransfer.report.runs import METRICS, Layout, Run
from mutransfer.sweep.shown import shown, shown_lr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
_ROW = 2  # verdicts side by side
_COLUMNS = 5  # small panels side by side
_LINES = 6  # lines in a picture of drifts: one for each colour
MOST_PICTURES = 6  # of loss curves at every LR
_HEAD, _FOOT, _LEFT = 0.32, 0.5, 0.65  # inches about the panels
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
Curve = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Drawing:
    """A picture by name, what it shows, and how to draw it in a format."""

    name: str
    alt: str
    draw: Callable[[str], bytes]


def valleys(found: Along) -> list[Drawing]:
    """Loss against LR, SP beside μP; a row of panels is a picture."""
    from mutransfer.verdict.figure import draw_curves

    rows = [row[i : i + _ROW] for row in found.rows for i in range(0, len(row), _ROW)]
    made = []
    for number, row in enumerate(rows, 1):
        part = {title: found.verdicts[title] for title in row}
        name = f"valleys-{found.axis}" + (f"-{number}" if len(rows) > 1 else "")
        alt = f"Loss against log2 learning rate, one curve per {found.axis}: {', '.join(row)}"
        made.append(Drawing(name, alt, lambda format, part=part: draw_curves(part, format)))
    return made


def drift(found: Along) -> list[Drawing]:
    """The optimum against size, a line per group; no more lines in a picture than can be told apart."""
    from mutransfer.verdict.figure import draw_drift

    titles, made = [title for row in found.rows for title in row], []
    for i in range(0, len(titles), _LINES):
        part = {title: found.verdicts[title] for title in titles[i : i + _LINES]}
        name = f"drift-{found.axis}" + (f"-{i // _LINES + 1}" if len(titles) > _LINES else "")
        alt = f"Log2 of the best learning rate against {found.axis}, with intervals: {', '.join(part)}"
        made.append(Drawing(name, alt, lambda format, part=part: draw_drift(part, format)))
    return made


def law(found: Foretold) -> Drawing | None:
    """The fitted laws of the first groups side by side; None where there is none."""
    from mutransfer.predict.figure import draw_prediction

    part = dict(list(found.outcomes.items())[:_ROW])
    if not part:
        return None
    comparison = found.judged.comparison
    name = "-".join(["law", comparison.axis, *(f"{k}{v}" for k, v in comparison.fixed.items())])
    alt = f"Loss against {comparison.axis} with the fitted law: {', '.join(part)}"
    return Drawing(name, alt, lambda format: draw_prediction(part, format))


def best_curves(layout: Layout, found: Along) -> list[Drawing]:
    """Loss against step at every size's best LR of the grid, a panel per group."""
    groups = _logged(layout, found)
    if not groups:
        return []
    alt = f"Loss against step at the best learning rate, one curve per {found.axis or 'size'}, mean over the seeds"
    return [Drawing(f"loss-{found.axis or 'runs'}", alt, lambda format: _draw_best(layout, found.axis, groups, format))]


def all_curves(layout: Layout, found: Along) -> list[Drawing]:
    """Loss against step at every LR: a picture per group (the first ones of many), a panel per size."""
    made = []
    for number, (title, runs) in enumerate(list(_logged(layout, found).items())[:MOST_PICTURES], 1):
        alt = f"{title}: loss against step at every learning rate, a panel per {found.axis or 'size'}; crosses: diverged there"
        name = f"loss-every-lr-{found.axis or 'runs'}-{number}"
        made.append(Drawing(name, alt, lambda format, title=title, runs=runs: _draw_all(layout, found.axis, title, runs, format)))  # fmt: skip
    return made


def _logged(layout: Layout, found: Along) -> dict[str, tuple[Run, ...]]:
    """The groups whose runs have logged points."""
    points = layout.sweep.points
    return {title: runs for title, runs in found.groups.items() if any(points.get(run.key) for run in runs)}


def _draw_best(layout: Layout, axis: str, groups: Mapping[str, Sequence[Run]], format: str) -> bytes:
    figure, panels = _panels(len(groups), 2 if len(groups) <= 4 else 3, 5.4 if len(groups) <= 4 else 3.7, 3.4)
    sizes = sorted({run.fields.get(axis, 0) for runs in groups.values() for run in runs})
    colours = dict(zip(sizes, _colours(len(sizes), "viridis"), strict=True))
    drawn: list[Curve] = []
    for axes, (label, runs) in zip(panels, groups.items(), strict=False):
        for size, same in _split(runs, lambda run: run.fields.get(axis, 0)).items():
            rate, chosen = _best(layout, same)
            if not chosen:
                continue
            curve, gone = _mean_curve(layout, chosen)
            name = f"{axis} {shown(size)}" if axis else ""
            axes.plot(*curve, color=colours[size], lw=1.4, label=", ".join(filter(None, (name, _tex(rate)))))
            _crosses(axes, gone, colours[size])
            drawn.append(curve)
        axes.set_title(label, fontsize=11, fontweight="bold")
        if any(not str(line.get_label()).startswith("_") for line in axes.lines):
            axes.legend(frameon=False, fontsize=8, loc="upper right")
    _frame(panels, drawn, layout)
    return _bytes(figure, format)


def _draw_all(layout: Layout, axis: str, label: str, runs: Sequence[Run], format: str) -> bytes:
    cells = _split(runs, lambda run: run.fields.get(axis, 0))
    figure, panels = _panels(len(cells), _COLUMNS, 11 / min(max(len(cells), 3), _COLUMNS), 2.4, below=0.3, above=0.3)
    rates = sorted({_rate(layout, run) for run in runs})
    colours = dict(zip(rates, _colours(len(rates), "plasma"), strict=True))
    best: list[Curve] = []
    for axes, (size, same) in zip(panels, cells.items(), strict=False):
        top, _ = _best(layout, same)
        for rate, chosen in _split(same, lambda run: _rate(layout, run)).items():
            curve, gone = _mean_curve(layout, chosen)
            first = rate == top
            if len(curve[0]):
                axes.plot(*curve, color=colours[rate], lw=2.2 if first else 0.9, zorder=3 if first else 2)
            _crosses(axes, gone, colours[rate])
            if first:
                best.append(curve)
        title = f"{axis} {shown(size)}" if axis else label
        axes.set_title(f"{title}, best {_tex(top)}" if not math.isnan(top) else title, fontsize=10)
    _frame(panels, best, layout)
    from matplotlib.lines import Line2D

    room = int(figure.get_figwidth() / 0.65)
    few = rates[:: 1 + (len(rates) - 1) // room]
    handles = [Line2D([], [], color=colours[rate], lw=2) for rate in few]
    figure.legend(handles, [_tex(rate) for rate in few], loc="lower center", ncols=len(few), frameon=False, fontsize=8,
                  handlelength=1.2, columnspacing=1.0)  # fmt: skip
    figure.text(0.5, 1 - 0.08 / figure.get_figheight(), label, fontsize=11, fontweight="bold", ha="center", va="top")
    return _bytes(figure, format)


def _split(runs: Iterable[Run], of: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    found: dict[Any, list[Run]] = {}
    for run in runs:
        found.setdefault(of(run), []).append(run)
    return {value: found[value] for value in sorted(found)}


def _rate(layout: Layout, run: Run) -> float:
    value = run.fields.get(layout.lr) if layout.lr else None
    return float(value) if isinstance(value, int | float) else math.nan


def _best(layout: Layout, runs: Sequence[Run]) -> tuple[float, list[Run]]:
    """The LR of the grid with the lowest mean loss among those at which every run finished; and its runs."""
    found = {}
    for rate, same in _split(runs, lambda run: _rate(layout, run)).items():
        kept = [run for run in same if run.status != "failed"]
        losses = [run.metric(layout.metric) if run.status == "finished" else None for run in kept]
        if losses and all(loss is not None for loss in losses):
            found[rate] = float(np.mean([loss for loss in losses if loss is not None])), kept
    if not found:
        return math.nan, []
    rate = min(found, key=lambda rate: found[rate][0])
    return rate, found[rate][1]


def _mean_curve(layout: Layout, runs: Sequence[Run]) -> tuple[Curve, list[tuple[float, float]]]:
    """Mean over the runs at each step that most of them logged, and (step, last loss) of those that diverged."""
    sums: dict[int, list[float]] = {}
    gone, kept = [], 0
    for run in runs:
        points = [(p["step"], p["loss"]) for p in layout.sweep.points.get(run.key, ()) if p.get("loss") is not None]
        kept += bool(points)
        for step, loss in points:
            sums.setdefault(step, []).append(loss)
        if run.status == "diverged":
            at = run.record["metrics"].get("diverged_at") or (points[-1][0] if points else 0)
            gone.append((float(at), points[-1][1] if points else math.inf))
    steps = [step for step in sorted(sums) if 2 * len(sums[step]) >= kept]
    return (np.array(steps, float), np.array([np.mean(sums[step]) for step in steps])), gone


def _crosses(axes: Axes, gone: Sequence[tuple[float, float]], colour: Any) -> None:
    """On the picture's upper edge, at the step of divergence."""
    if gone:
        axes.plot([step for step, _ in gone], [0.97] * len(gone), "x", color=colour, ms=5, mew=1.4, transform=axes.get_xaxis_transform(), zorder=4)  # fmt: skip


def _frame(panels: Sequence[Axes], best: Sequence[Curve], layout: Layout) -> None:
    """The range that the best curves cover after an eighth of the run: the start and what diverges must not squeeze it."""
    low, high = math.inf, -math.inf
    for steps, losses in best:
        settled = losses[steps >= steps[-1] / 8] if len(steps) else losses
        if len(settled):
            low, high = min(low, float(settled.min())), max(high, float(settled.max()))
    for i, axes in enumerate(panels):
        place = axes.get_subplotspec()
        if low < high:
            axes.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))
        axes.grid(alpha=0.25, lw=0.5)
        axes.tick_params(labelsize=8)
        if place is None or i + place.get_gridspec().ncols >= len(panels):
            axes.set_xlabel("step", fontsize=9)
        if place is None or place.is_first_col():
            axes.set_ylabel("training loss" if layout.metric in METRICS else "loss", fontsize=9)


def _panels(
    count: int, most: int, width: float, height: float, below: float = 0.0, above: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """Panels in rows of nearly equal length, at places of our own: solving for them takes half of the drawing time."""
    from matplotlib.figure import Figure

    down = -(-count // most)
    across = -(-count // down)
    wide, high = width * across, (height + _HEAD) * down + _FOOT + below + above
    figure = Figure(figsize=(wide, high))
    every = figure.subplots(down, across, sharey=True, sharex=True, squeeze=False).ravel()
    figure.subplots_adjust(
        left=_LEFT / wide, right=1 - 0.15 / wide, top=1 - (_HEAD + above) / high, bottom=(_FOOT + below) / high,
        wspace=0.06, hspace=(_HEAD + 0.05) / height,
    )  # fmt: skip
    for i, axes in enumerate(every):
        axes.set_visible(i < count)
        axes.xaxis.set_tick_params(labelbottom=i + across >= count)  # nothing below it
    return figure, list(every[:count])


def _colours(count: int, name: str) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps[name](0.05 + 0.75 * i / max(1, count - 1)) for i in range(count)]


def _tex(rate: float) -> str:
    """2⁻⁸: whole powers as plain letters, which draw much faster than formulas do."""
    text = "" if math.isnan(rate) else shown_lr(rate)
    if not text.startswith("2^"):
        return text
    return f"$2^{{{text[2:]}}}$" if "." in text else "2" + text[2:].translate(_RAISED)


def _bytes(figure: Figure, format: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    still: Mapping[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[format]
    with matplotlib.rc_context({"svg.hashsalt": "mutransfer"}):  # the same runs, the same bytes
        figure.savefig(buffer, format=format, dpi=DPI, metadata=dict(still))
    return buffer.getvalue()
