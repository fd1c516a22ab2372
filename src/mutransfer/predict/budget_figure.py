"""The picture of a budget: the best size and the lowest loss over compute with their bands, isoFLOP curves, and what the next runs bring."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.files import write_whole
from mutransfer.predict.budget import Budgets
from mutransfer.predict.frontier import Frontier, Optimum
from mutransfer.predict.isoflop import IsoFlop
from mutransfer.predict.planning import NextRuns
from mutransfer.predict.target import Reaching
from mutransfer.predict.units import from_nats
from mutransfer.verdict.estimate import Estimate
from mutransfer.verdict.figure import FORMATS, figure_format

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray
INK, BLUE, ORANGE, GREEN, GREY = "#33383f", "#3f6fa8", "#d9532c", "#22875c", "#8a8f98"
KNOTS = 32  # budgets at which the bands are computed
NAMES = {"params": "parameters", "non_embedding": "parameters without embedding", "flops_per_token": "FLOPs per token"}


def save_budget(found: Budgets, path: str | os.PathLike[str]) -> Path:
    """`draw_budget` into a PNG, SVG or PDF file, whole or not at all. Raises InputError for another ending."""
    return write_whole(Path(path), draw_budget(found, figure_format(path)))


def draw_budget(found: Budgets, format: str = "png") -> bytes:
    """A panel for whatever was asked: best size over compute, loss over compute, isoFLOP curves, the law over its one variable, next runs."""
    if format not in FORMATS:
        raise InputError(f"format={format!r}: write one of {', '.join(FORMATS)}")
    import matplotlib
    from matplotlib.figure import Figure

    panels: list[Callable[[Axes], None]] = []
    front = found.frontier
    if front is not None:
        table = front.table(np.geomspace(*_span(found, front), KNOTS))
        panels += [lambda axes: _sizes(axes, found, front, table), lambda axes: _losses(axes, found, front, table)]
    elif found.law is not None and len(found.law.variables) == 1:
        panels.append(lambda axes: _one(axes, found))
    elif found.law is not None and found.runs is not None and "tokens" in found.law.variables:
        panels.append(lambda axes: _places(axes, found))
    if found.curves is not None:
        curves = found.curves
        panels.append(lambda axes: _curves(axes, curves))
        if front is None:
            panels.append(lambda axes: _line(axes, curves))
    if found.runs is not None:
        runs = found.runs
        panels.append(lambda axes: _widths(axes, runs))
    if not panels:
        raise InputError("there is nothing to draw: the law has several variables and no frontier was asked for; ask for compute or for runs")  # fmt: skip
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 * columns, 4.8 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    for i, draw in enumerate(panels):
        wide = i == len(panels) - 1 and len(panels) % columns  # the last of an odd number has the row to itself
        axes = figure.add_subplot(grid[i // columns, :] if wide else grid[i // columns, i % columns])
        draw(axes)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    still: dict[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[
        format
    ]  # the same runs, the same bytes
    with matplotlib.rc_context({"svg.hashsalt": "mutransfer"}):
        figure.savefig(buffer, format=format, dpi=130, metadata=still)
    return buffer.getvalue()


def _span(found: Budgets, front: Frontier) -> tuple[float, float]:
    low, high = front.computes
    high = max([high, *(o.compute for o in found.optima)])
    if found.reaching is not None and "compute" in found.reaching.at:
        wanted = found.reaching.at["compute"]
        high = max([high, *(v for v in (wanted.value, wanted.high) if np.isfinite(v) and v < 1e6 * high)])
    return low / 1.3, high * 1.6


def _band(axes: Axes, x: Array, values: list[Estimate], colour: str, label: str) -> None:
    low, mid, high = (np.array([getattr(v, k) for v in values]) for k in ("low", "value", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    axes.plot(x, mid, color=colour, lw=1.8, label=label)


def _bars(axes: Axes, x: float, e: Estimate, colour: str, marker: str, size: float = 6.0, label: str = "") -> None:
    low = e.value - e.low if np.isfinite(e.low) else 0.0
    high = e.high - e.value if np.isfinite(e.high) else 0.0
    axes.errorbar(x, e.value, [[max(low, 0.0)], [max(high, 0.0)]], fmt=marker, color=colour, ms=size, capsize=3, zorder=6, lw=1.4, label=label or None)  # fmt: skip


def _sizes(axes: Axes, found: Budgets, front: Frontier, table: tuple[Optimum, ...]) -> None:
    x = np.array([o.compute for o in table])
    points = front.law.points
    n = points.variables[front.size]
    axes.plot(
        front.factor * n * points.variables["tokens"], n, ".", color=GREY, ms=5, alpha=0.6, label="runs", zorder=1
    )
    _band(axes, x, [o.size for o in table], BLUE, f"best size, C^{front.exponents['a'].value:.3f} (law)")
    for o in found.optima:
        _bars(axes, o.compute, o.size, BLUE, "o")
    if found.curves is not None and found.curves.variable == front.size:
        for i, b in enumerate(found.curves.used):
            _bars(axes, b.compute, b.size, ORANGE, "s", 4.5, "isoFLOP minima" if i == 0 else "")
        line = [found.curves.at(c)[0] for c in x]
        axes.plot(
            x,
            [e.value for e in line],
            color=ORANGE,
            lw=1.2,
            ls="--",
            label=f"their line, C^{found.curves.sizes.slope:.3f}",
        )
    if found.reaching is not None:
        _reached(axes, found.reaching, front.size)
    if found.runs is not None and front.size in found.runs.target.at:
        cost = found.runs.cost
        for i, run in enumerate(found.runs.runs):
            if cost.flops:
                axes.plot(
                    run.cost,
                    run.at[front.size],
                    "*",
                    color=GREEN,
                    ms=11,
                    mec="white",
                    mew=0.6,
                    zorder=7,
                    label="next runs" if i == 0 else None,
                )
        axes.plot(
            found.runs.target_cost, found.runs.target.at[front.size], "D", color=GREEN, ms=6, zorder=7, label="target"
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"compute, FLOPs ({front.formula})")
    axes.set_ylabel(NAMES[front.size])
    axes.set_title(f"compute-optimal size ({front.level:.0%} band)", color=INK, fontsize=11)
    axes.legend(frameon=False, fontsize=9)


def _reached(axes: Axes, reaching: Reaching, name: str) -> None:
    size, compute = reaching.at.get(name), reaching.at.get("compute")
    if size is None or compute is None or not np.isfinite(compute.value):
        return
    _bars(axes, compute.value, size, GREEN, "P", 8.0, f"loss {reaching.loss:g}")


def _losses(axes: Axes, found: Budgets, front: Frontier, table: tuple[Optimum, ...]) -> None:
    points = front.law.points
    x = np.array([o.compute for o in table])
    c = front.factor * points.variables[front.size] * points.variables["tokens"]
    axes.plot(c, np.asarray(from_nats(points.loss, points.loss_unit)), ".", color=GREY, ms=5, alpha=0.6, label="runs")
    _band(axes, x, [o.loss for o in table], BLUE, "lowest loss (band: of a run)")
    for o in found.optima:
        _bars(axes, o.compute, o.loss, BLUE, "o")
    best = [o.loss.low for o in table]
    top = float(np.asarray(from_nats(np.quantile(points.loss, 0.97), points.loss_unit)))
    if found.reaching is not None:
        wanted = found.reaching
        axes.axhline(wanted.loss, color=GREEN, lw=1.1, ls="--", label=f"loss {wanted.loss:g}")
        e = wanted.at["compute"]
        if np.isfinite(e.value):
            low, high = e.value - e.low, (e.high - e.value if np.isfinite(e.high) else x[-1] - e.value)
            axes.errorbar(e.value, wanted.loss, xerr=[[max(low, 0)], [max(high, 0)]], fmt="P", color=GREEN, ms=8, capsize=3, zorder=6)  # fmt: skip
        best.append(wanted.loss)
        if wanted.limit is not None and wanted.limit.value > 0:
            axes.axhline(
                wanted.limit.value,
                color=INK,
                lw=1.0,
                ls=":",
                label=_limit(wanted),
            )
            best.append(wanted.limit.value)
    low = min(best)
    axes.set_ylim(low - 0.05 * (top - low), top + 0.04 * (top - low))
    axes.set_xscale("log")
    axes.set_xlabel(f"compute, FLOPs ({front.formula})")
    axes.set_ylabel(points.columns.get("loss") or "loss")
    axes.set_title("what the budget buys", color=INK, fontsize=11)
    axes.legend(frameon=False, fontsize=9)


def _curves(axes: Axes, curves: IsoFlop) -> None:
    from matplotlib import colormaps

    unit = curves.points.loss_unit
    tops = []
    for i, b in enumerate(curves.budgets):
        colour = colormaps["viridis"](0.05 + 0.85 * i / max(1, len(curves.budgets) - 1))
        sizes, losses = curves.levelled(b)
        axes.plot(sizes, losses, "o" if not b.why else "x", color=colour, ms=3.6 if not b.why else 4.5, zorder=4)
        tops.append(float(losses.max()))
        if b.curvature > 0 and np.isfinite(b.size.value):
            grid = np.geomspace(sizes.min() / 1.1, sizes.max() * 1.1, 120)
            axes.plot(
                grid,
                curves.curve(b, grid),
                color=colour,
                lw=1.3,
                ls="-" if not b.why else ":",
                label=f"{b.compute:.2g}",
            )
        if not b.why:
            height = float(from_nats(b.loss, unit))
            axes.plot(
                [b.size.low, b.size.high], [height, height], color="black", lw=2.2, zorder=5, solid_capstyle="butt"
            )
            axes.plot(b.size.value, height, "o", mfc="white", mec="black", ms=5.5, zorder=6)
    axes.set_xscale("log")
    every = np.concatenate([curves.levelled(b)[0] for b in curves.budgets])
    axes.set_xlim(every.min() / 1.4, every.max() * 1.4)
    floor = min(float(from_nats(b.loss, unit)) for b in curves.used)
    axes.set_ylim(floor - 0.04 * (max(tops) - floor), max(tops) + 0.03 * (max(tops) - floor))
    axes.set_xlabel(NAMES[curves.variable])
    axes.set_ylabel(curves.points.columns.get("loss") or "loss")
    axes.set_title(
        f"isoFLOP curves and their minima ({curves.level:.0%}); × and dots: left out", color=INK, fontsize=11
    )
    axes.legend(frameon=False, fontsize=8, title="FLOPs", title_fontsize=8, ncols=2, loc="upper right")


def _line(axes: Axes, curves: IsoFlop) -> None:
    c = np.array([b.compute for b in curves.used])
    x = np.geomspace(c.min() / 2, c.max() * 10, KNOTS)
    _band(axes, x, [curves.at(v)[0] for v in x], ORANGE, f"C^{curves.sizes.slope:.3f}")
    for b in curves.used:
        _bars(axes, b.compute, b.size, ORANGE, "s", 5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("compute, FLOPs")
    axes.set_ylabel(NAMES[curves.variable])
    axes.set_title("best size of each budget", color=INK, fontsize=11)
    axes.legend(frameon=False, fontsize=9)


def _one(axes: Axes, found: Budgets) -> None:
    """A law in one variable: runs, curve and, where a loss is asked for, the sizes that reach it."""
    law = found.law
    assert law is not None
    name = law.variables[0]
    v = law.points.variables[name]
    ends = [float(v.min()), float(v.max())]
    if found.reaching is not None:
        e = found.reaching.at[name]
        ends += [q for q in (e.value, e.low, e.high) if np.isfinite(q) and q < 1e6 * ends[1]]
    if found.runs is not None:
        ends += [found.runs.target.at[name], *(run.at[name] for run in found.runs.runs)]
    x = np.geomspace(min(ends) / 1.2, max(ends) * 1.2, 80)
    known = law.predict_many([{name: float(q)} for q in x])
    loss = np.asarray(from_nats(law.points.loss, law.unit))
    axes.plot(v, loss, "o", color=GREY, ms=5, label="runs", zorder=4)
    level = known[0].level
    _band(
        axes,
        x,
        [Estimate(p.loss, max(p.low, 0.5 * p.loss), min(p.high, 2 * p.loss)) for p in known],
        BLUE,
        f"the law (band: of a run, {level:.0%})",
    )
    if found.reaching is not None:
        wanted = found.reaching
        axes.axhline(wanted.loss, color=GREEN, lw=1.1, ls="--", label=f"loss {wanted.loss:g}")
        e = wanted.at[name]
        if np.isfinite(e.low):
            axes.plot(
                [e.low, min(e.high, x[-1])], [wanted.loss] * 2, color=GREEN, lw=4, solid_capstyle="butt", zorder=5
            )
        if np.isfinite(e.value):
            axes.plot(e.value, wanted.loss, "P", color=GREEN, ms=8, zorder=6)
        if wanted.limit is not None:
            axes.axhline(
                wanted.limit.value,
                color=INK,
                lw=1.0,
                ls=":",
                label=_limit(wanted),
            )
    if found.runs is not None:
        target = found.runs.target
        at = np.array([run.at[name] for run in found.runs.runs])
        axes.plot(at, law.curve({name: at}), "*", color=GREEN, ms=12, mec="white", zorder=7, label="next runs")
        _bars(axes, target.at[name], Estimate(target.loss, target.low, target.high), ORANGE, "D", 6, "target, now")
    axes.set_xscale("log")
    axes.set_xlabel(NAMES.get(name, name))
    axes.set_ylabel(law.points.columns.get("loss") or "loss")
    axes.set_title(law.formula, color=INK, fontsize=11)
    axes.legend(frameon=False, fontsize=9)


def _places(axes: Axes, found: Budgets) -> None:
    """Where the next runs are, among those that are there."""
    law, runs = found.law, found.runs
    assert law is not None and runs is not None
    size = law.variables[0]
    n, d = law.points.variables[size], law.points.variables["tokens"]
    axes.plot(n, d, ".", color=GREY, ms=6, label="runs")
    counted: dict[tuple[float, float], int] = {}
    for run in runs.runs:
        key = run.at[size], run.at["tokens"]
        counted[key] = counted.get(key, 0) + 1
    for i, ((x, y), times) in enumerate(counted.items()):
        axes.plot(x, y, "*", color=GREEN, ms=13, mec="white", zorder=6, label="next runs" if i == 0 else None)
        if times > 1:
            axes.annotate(f"×{times}", (x, y), xytext=(7, 5), textcoords="offset points", color=GREEN, fontsize=9)
    axes.plot(runs.target.at[size], runs.target.at["tokens"], "D", color=ORANGE, ms=7, zorder=6, label="target")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(NAMES.get(size, size))
    axes.set_ylabel("training tokens")
    axes.set_title("where to run next", color=INK, fontsize=11)
    axes.legend(frameon=False, fontsize=9)


def _widths(axes: Axes, runs: NextRuns) -> None:
    """The expected half width at the target against how many of the runs are made."""
    x = np.arange(len(runs.runs) + 1)
    y = 100 * np.array([runs.now, *(run.half_width for run in runs.runs)])
    axes.plot(x, y, "o-", color=GREEN, lw=1.6)
    for i, run in enumerate(runs.runs):
        axes.annotate(
            _short(run.cost),
            (i + 1, y[i + 1]),
            xytext=(0, 8),
            textcoords="offset points",
            fontsize=8,
            color=INK,
            ha="center",
        )
    axes.axhline(100 * runs.floor, color=INK, lw=1.0, ls=":", label="stays whatever is run")
    axes.set_ylim(0, 1.12 * float(y[np.isfinite(y)].max(initial=100 * runs.floor)))
    axes.set_xticks(x, ["now", *(str(i) for i in x[1:])])
    axes.set_xlabel(f"runs made (at each point: what it costs, {runs.cost.unit})")
    axes.set_ylabel("half width of the interval at the target, %")
    axes.set_title("what the next runs bring", color=INK, fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="lower left")


def _limit(wanted: Reaching) -> str:
    """What the dotted line is: E 1.81, or the limit where tokens are held."""
    assert wanted.limit is not None
    return f"{wanted.limit_name if len(wanted.limit_name) < 4 else 'limit'} {wanted.limit.value:.3g}"


def _short(cost: float) -> str:
    return f"{cost:.2g}"
