"""The picture of a comparison at equal compute: a panel per task, loss against total FLOPs, with intervals over seeds."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mutransfer.verdict.figure import LINES

Line = Sequence[tuple[float, tuple[float, float, float]]]
"""Total FLOPs and the loss there: its mean and the ends of its interval."""
STYLES: tuple[dict[str, Any], ...] = (
    {"color": LINES[0], "ls": "-"},
    {"color": LINES[1], "ls": "-"},
    {"color": LINES[1], "ls": ":", "mfc": "white", "alpha": 0.8},
)


def draw(tasks: Mapping[str, Mapping[str, Line]]) -> bytes:
    """PNG. Losses are on a logarithmic axis; a mean that is not finite is left out, as is an interval that nothing bounds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.5, 4.4 * len(tasks)), 4.6), layout="constrained")
    handles: dict[str, Any] = {}
    for axes, (name, lines) in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks.items(), strict=True):
        for style, (label, line) in zip(STYLES, lines.items(), strict=True):
            kept = [(x, *loss) for x, loss in line if math.isfinite(loss[0])]
            if not kept:
                continue
            x, mean, low, high = (list(column) for column in zip(*kept, strict=True))
            ends = [[m - a for m, a in zip(mean, low, strict=True)], [b - m for m, b in zip(mean, high, strict=True)]]
            bars = ends if all(map(math.isfinite, (*low, *high))) else None
            handles[label] = axes.errorbar(x, mean, bars, marker="o", ms=4, capsize=3, lw=1.6, **style)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _ticks(axes.xaxis, [x for line in lines.values() for x, _ in line], _power)
        _ticks(axes.yaxis, list(axes.get_ylim()), lambda value: f"{value:g}")
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("total FLOPs, tuning counted")
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("validation loss")
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _power(value: float) -> str:
    exponent = math.floor(math.log10(value) + 1e-9)
    return f"{value / 10**exponent:.2g}e{exponent}"


def _ticks(axis: Any, values: Sequence[float], text: Any) -> None:
    """Round numbers within the range, few enough to be read, and nothing between them."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    low, high = min(values), max(values)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(x / 10 for x in range(10, 100))):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [m * 10.0**e for e in powers for m in steps if low / 1.02 <= m * 10.0**e <= 1.02 * high]
        if len(ticks) >= 3:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([text(tick) for tick in ticks]))
    axis.set_minor_locator(NullLocator())
