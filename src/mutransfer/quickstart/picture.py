"""One picture: loss against log2 learning rate, a curve per width, the two parametrizations side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

from mutransfer.quickstart.optimum import Transfer
from mutransfer.quickstart.setting import TITLES

Curves = Mapping[int, Mapping[int, float]]


def draw(curves: Mapping[str, Curves], transfers: Mapping[str, Transfer]) -> bytes:
    """PNG bytes. Diverged runs are crosses at the top; dots mark each width's optimum, hollow at the edge of the grid."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    finite = [
        v for widths in curves.values() for losses in widths.values() for v in losses.values() if math.isfinite(v)
    ]
    low, high = min(finite), max(finite)
    # the valley must fill the picture: a nearly diverged run would squeeze it to a line
    top = min(high, low + 4 * (sorted(finite)[len(finite) // 2] - low) + 1e-3)
    for axis, (recipe, widths) in zip(axes, curves.items(), strict=True):
        transfer = transfers[recipe]
        for i, (width, losses) in enumerate(sorted(widths.items())):
            color = _color(i / max(1, len(widths) - 1))
            grid = sorted(losses)
            shown = [lr for lr in grid if math.isfinite(losses[lr])]
            axis.plot(shown, [losses[lr] for lr in shown], color=color, marker=".", lw=1.6, label=f"width {width}")
            gone = [lr for lr in grid if lr not in shown]
            if gone:
                axis.plot(gone, [top] * len(gone), "x", color=color)
        for i, best in enumerate(transfer.optima):
            color = _color(i / max(1, len(widths) - 1))
            face = "white" if best.edge else color
            axis.plot(best.log2_lr, best.loss, "o", ms=9, color=color, mfc=face, mew=1.6, zorder=5)
        if transfer.optima:
            axis.axvline(transfer.optima[0].log2_lr, color="0.6", lw=1, ls=":", zorder=0)
        axis.set_title(f"{TITLES[recipe]}: {transfer.status}", fontsize=12)
        axis.set_xlabel("learning rate (of the base)")
        ticks = sorted({lr for losses in widths.values() for lr in losses})
        axis.set_xticks(ticks, [f"$2^{{{lr}}}$" for lr in ticks])
        axis.set_ylim(low - 0.06 * (top - low), top + 0.03 * (top - low))
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, loc="upper center")
    axes[0].set_ylabel("training loss, mean of the last 50 steps (nats)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _color(position: float) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    return colormaps["viridis"](0.05 + 0.8 * position)
