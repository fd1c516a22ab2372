"""The pictures: loss against log2 LR per size, parametrizations side by side; and where the optimum goes with size."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mutransfer.errors import InputError
from mutransfer.files import write_whole
from mutransfer.rows.columns import knob

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mutransfer.verdict.verdict import Verdict

FORMATS = ("png", "svg", "pdf")
STATUS = {"HOLDS": "#2f9e6e", "DRIFTS": "#c0392b", "INCONCLUSIVE": "#b7791f"}
LINES = ("#4c78a8", "#e4572e", "#2f9e6e", "#8a6fb0", "#b7791f", "#7f7f7f")
VALLEY = 4.0  # how far above the median the picture reaches, in distances from the lowest to the median


def figure_format(path: str | os.PathLike[str]) -> str:
    """The format of a figure's name. Raises InputError where it is none of PNG, SVG, PDF."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"path={path!r}: give the name of a file, such as 'verdict.png'")
    found = Path(path).suffix.lower().removeprefix(".")
    if found not in FORMATS:
        raise InputError(f"figure {str(path)!r}: the name must end in .png, .svg or .pdf")
    return found


def save_curves(verdicts: Mapping[str, Verdict], path: str | os.PathLike[str]) -> Path:
    """`draw_curves` into a file, whole or not at all."""
    return write_whole(Path(path), draw_curves(verdicts, figure_format(path)))


def draw_curves(verdicts: Mapping[str, Verdict], format: str = "png") -> bytes:
    """Loss against log2 LR, a panel per verdict, a curve per size.

    Dots with bars: each size's optimum and its interval, hollow at the edge of the grid. Crosses at the top: diverged. Dotted: the base's
    optimum carried over.
    """
    figure, panels = _figure(len(verdicts), 5.5 if len(verdicts) > 1 else 7.0)
    low, top = _valley(list(verdicts.values()))
    for axes, (name, verdict) in zip(panels, verdicts.items(), strict=True):
        _curves(axes, name, verdict, low, top)
    panels[0].set_ylabel(next(iter(verdicts.values())).columns["loss"] or "loss")
    named = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=min(6, len(named)), frameon=False)
    return _bytes(figure, format)


def draw_drift(verdicts: Mapping[str, Verdict], format: str = "png") -> bytes:
    """The optimum's log2 LR against size with intervals, a line per verdict; an arrow where the runs do not bound it."""
    figure, (axes,) = _figure(1, 7.0)
    ends = [p[0] for v in verdicts.values() for o in v.optima for p in o.points]
    sizes = sorted({o.size for v in verdicts.values() for o in v.optima})
    for i, (name, verdict) in enumerate(verdicts.items()):
        colour = LINES[i % len(LINES)]
        x = np.array([o.size for o in verdict.optima]) * 2 ** (0.03 * (i - (len(verdicts) - 1) / 2))
        y = np.array([o.log2_lr.value for o in verdict.optima])
        low = np.array([max(o.log2_lr.low, min(ends)) for o in verdict.optima])
        high = np.array([min(o.log2_lr.high, max(ends)) for o in verdict.optima])
        label = (
            f"{name}: {verdict.drift.value:+.2f} per doubling" if name else f"{verdict.drift.value:+.2f} per doubling"
        )
        axes.errorbar(
            x, y, np.maximum([y - low, high - y], 0), color=colour, marker="o", capsize=3, lw=1.6, label=label
        )
        for at, one in zip(x, verdict.optima, strict=True):
            if np.isinf(one.log2_lr.low):
                axes.plot(at, min(ends), "v", color=colour)
            if np.isinf(one.log2_lr.high):
                axes.plot(at, max(ends), "^", color=colour)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{s:g}" for s in sizes])
    axes.minorticks_off()
    axes.set_xlabel(next(iter(verdicts.values())).columns["size"] or "size")
    axes.set_ylabel(f"log2 of the best {_knob(next(iter(verdicts.values())))}")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return _bytes(figure, format)


def _figure(panels: int, width: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, 4.5), layout="constrained")
    return figure, list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])


def _bytes(figure: Figure, format: str) -> bytes:
    if format not in FORMATS:
        raise InputError(f"format={format!r}: write one of {', '.join(FORMATS)}")
    import matplotlib

    buffer = io.BytesIO()
    still = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[format]  # the same runs, the same bytes
    with matplotlib.rc_context({"svg.hashsalt": "mutransfer"}):
        figure.savefig(buffer, format=format, dpi=130, metadata=still)
    return buffer.getvalue()


def _valley(verdicts: list[Verdict]) -> tuple[float, float]:
    """The range of losses that is drawn: a nearly diverged run must not squeeze the valley to a line."""
    finite = sorted(y for v in verdicts for o in v.optima for _, y in o.points if np.isfinite(y))
    best = [o.loss.value for v in verdicts for o in v.optima]
    low, high = min(finite[0], *best), finite[-1]
    reach = max(VALLEY * (finite[len(finite) // 2] - low), 1.5 * (max(best) - low), 1e-3 * abs(low))
    return low, min(high, low + reach)


def _curves(axes: Axes, name: str, verdict: Verdict, low: float, top: float) -> None:
    sizes = verdict.optima
    for i, one in enumerate(sizes):
        colour = _colour(i / max(1, len(sizes) - 1))
        points = [(x, y) for x, y in one.points if np.isfinite(y)]
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=".",
            lw=1.5,
            label=f"{verdict.columns['size']} {one.size:g}",
        )
        gone = [x for x, y in one.points if not np.isfinite(y)]
        if gone:
            axes.plot(gone, [top - 0.02 * i * (top - low) for _ in gone], "x", color=colour, clip_on=False)
        start, end = one.points[0][0], one.points[-1][0]
        x, bars = one.log2_lr.value, one.log2_lr
        left, right = x - max(bars.low, start), min(bars.high, end) - x
        axes.errorbar(x, one.loss.value, xerr=[[max(left, 0)], [max(right, 0)]], marker="o", ms=6, mew=1.6, capsize=4, zorder=5,
                      color=colour, mfc="white" if one.edge else colour, mec=colour)  # fmt: skip
    axes.axvline(sizes[0].log2_lr.value, color="0.6", lw=1, ls=":", zorder=0)
    axes.set_title(
        f"{name}: {verdict.status}" if name else verdict.status,
        fontsize=12,
        color=STATUS[verdict.status],
        fontweight="bold",
    )
    axes.set_xlabel(_knob(verdict))
    ticks = sorted({round(x) for o in sizes for x, _ in o.points})
    ticks = ticks[:: 1 + len(ticks) // 12]
    axes.set_xticks(ticks, [f"$2^{{{t}}}$" for t in ticks])
    axes.set_ylim(low - 0.06 * (top - low), top + 0.03 * (top - low))
    axes.grid(alpha=0.25)


def _knob(verdict: Verdict) -> str:
    name = knob(verdict.columns["lr"])
    return "learning rate" if name == "LR" else name


def _colour(position: float) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    return colormaps["viridis"](0.05 + 0.8 * position)
