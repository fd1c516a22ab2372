"""The picture of a learning curve's law: losses fitted and revealed, the prediction with its band, and the learning rate below."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mutransfer.files import write_whole
from mutransfer.predict.curve_read import Run
from mutransfer.predict.units import from_nats
from mutransfer.verdict.figure import LINES, figure_format

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mutransfer.predict.curve import CurveLaw

PLACES = 160  # steps at which a band is drawn
TITLES = {"nats": "loss (nats)", "bits": "loss (bits)", "bits_per_byte": "bits per byte", "perplexity": "perplexity"}


@dataclass(frozen=True)
class Drawn:
    """One curve of the picture: its name, the schedule it follows (None: that of its run), its run in the law, what is known of it, and up to where."""

    name: str
    schedule: Any
    run: str | None
    known: Run | None
    to: int


def save_curve(law: CurveLaw, drawn: Sequence[Drawn], path: str | os.PathLike[str], level: float = 0.9) -> Path:
    """`draw_curve` into a file, whole or not at all."""
    return write_whole(Path(path), draw_curve(law, drawn, figure_format(path), level))


def draw_curve(law: CurveLaw, drawn: Sequence[Drawn], format: str = "png", level: float = 0.9) -> bytes:
    """Loss against step. Filled dots: fitted; hollow: revealed; line and band: prediction at `level`; dashed: the law where it was fitted."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "mutransfer"
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    falls = any(law.path(one.schedule, one.run) is not None for one in drawn)
    axes = list(figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))) if falls else [figure.subplots()]
    main: Axes = axes[0]
    top: list[float] = []
    for i, one in enumerate(drawn):
        colour = LINES[i % len(LINES)]
        top += _one(main, law, one, colour, level, len(drawn) == 1)
        path = law.path(one.schedule, one.run)
        if path is not None:
            steps = np.unique(np.linspace(1, min(one.to, len(path)), 4 * PLACES).astype(int))
            axes[1].plot(steps, path.lr[steps - 1], color=colour, lw=1.2)
    for number in np.unique(law.rows.run):  # what else was fitted
        name = law.runs[number].name
        if all(one.run != name or one.schedule is not None for one in drawn):
            own = law.rows.run == number
            label = "fitted" if len(law.runs) == 1 else f"{name}, fitted"
            shown = np.asarray(from_nats(law.rows.loss[own], law.unit))
            main.plot(law.rows.step[own], shown, ".", ms=3, color="#7f7f7f", label=label)
            top += shown.tolist()
    if law.until < max(one.to for one in drawn):
        main.axvline(law.until, color="#7f7f7f", lw=0.8, ls=":")
        main.annotate(
            "fitted  ",
            (law.until, 0.98),
            xycoords=("data", "axes fraction"),
            ha="right",
            va="top",
            fontsize=8,
            color="#7f7f7f",
        )
    low, high = min(top), max(top)
    main.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    main.set_ylabel(TITLES[law.unit])
    main.set_title(f"{law.form.name} law, {level:.0%} band", fontsize=10, loc="left")
    if len(drawn) > 1:  # a colour for each curve; what dots are, once
        main.plot([], [], "o", ms=2.8, color="#7f7f7f", ls="none", label="fitted")
        main.plot([], [], "o", ms=2.8, mfc="none", mec="#7f7f7f", mew=0.6, ls="none", label="revealed")
    main.legend(fontsize=8, frameon=False, loc="upper right")
    if falls:
        axes[1].set_ylabel("LR")
        axes[1].set_ylim(bottom=0)
    axes[-1].set_xlabel("step")
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[format]
    figure.savefig(out, format=format, dpi=150, metadata=metadata)
    return out.getvalue()


def _one(main: Axes, law: CurveLaw, one: Drawn, colour: str, level: float, alone: bool) -> list[float]:
    """Draw a curve; the losses that the picture must show."""
    name = one.name if one.name != "run" else ""
    steps = np.unique(np.linspace(law.start, one.to, PLACES).astype(int))
    band = law.band(steps, one.schedule, one.run, level)
    continued = one.schedule is None
    ahead = steps >= law.until if continued else np.ones(len(steps), bool)
    main.fill_between(steps[ahead], band.low[ahead], band.high[ahead], color=colour, alpha=0.18, lw=0)
    main.plot(steps[ahead], band.centre[ahead], color=colour, lw=1.4, label="prediction" if alone or not name else name)
    if not ahead.all():  # the law where it was fitted; the prediction goes on from the run's last error
        main.plot(steps[~ahead], band.centre[~ahead], color=colour, lw=0.9, ls="--", label="law" if alone else None)
    told = [*band.centre.tolist(), *band.low[ahead].tolist()[-1:], *band.high[ahead].tolist()[-1:]]
    if one.known is not None and len(one.known):
        step, loss = one.known.step, np.asarray(from_nats(one.known.loss, law.unit))
        use = (step >= law.start) & (step <= one.to)
        fitted = use & (step <= law.until) & continued
        many = max(1, int(use.sum()) // 250)
        for which, face, label in ((fitted, colour, "fitted"), (use & ~fitted, "none", "revealed")):
            at = np.flatnonzero(which)[::many]
            if len(at):
                main.plot(step[at], loss[at], "o", ms=2.8, mfc=face, mec=colour, mew=0.6, ls="none", label=label if alone else None)  # fmt: skip
                told += [float(np.quantile(loss[which], 0.01)), float(np.quantile(loss[which], 0.99))]
    return told
