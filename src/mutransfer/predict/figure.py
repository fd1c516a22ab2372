"""The picture of a prediction: runs, law and band, what was held out and what it reached, targets; below, how far runs are from the law."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mutransfer.errors import InputError
from mutransfer.files import write_whole
from mutransfer.predict.forecast import LossLaw, Prediction
from mutransfer.predict.intervals import student
from mutransfer.predict.noise import cells
from mutransfer.predict.outcome import Outcome
from mutransfer.predict.units import from_nats
from mutransfer.verdict.figure import FORMATS, figure_format

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray
DPI = 130
INK, BLUE, ORANGE, GREEN, GREY = "#33383f", "#3f6fa8", "#d9532c", "#22875c", "#8a8f98"
KNOTS = 9  # places at which the band is computed; between them it is interpolated
COLOURS = 8  # sizes with a curve of their own
TITLES = {
    "params": "parameters", "non_embedding": "parameters without embedding", "flops_per_token": "FLOPs per token", "width": "width", "depth": "depth",
    "tokens": "training tokens", "unique_tokens": "distinct tokens", "compute": "training FLOPs", "batch": "batch", "steps": "updates", "lr": "learning rate",
}  # fmt: skip


def save_prediction(outcomes: Mapping[str, Outcome], path: str | os.PathLike[str]) -> Path:
    """`draw_prediction` into a PNG, SVG or PDF file, whole or not at all. Raises InputError for another ending."""
    return write_whole(Path(path), draw_prediction(outcomes, figure_format(path)))


def draw_prediction(outcomes: Mapping[str, Outcome], format: str = "png") -> bytes:
    """Outcomes by name, side by side where laws have one variable, else below one another.

    Filled: fitted; hollow: held out; crosses: set aside; diamonds: targets. Bars and band: where a run lies at the level.
    """
    if format not in FORMATS:
        raise InputError(f"format={format!r}: write one of {', '.join(FORMATS)}")
    from matplotlib.figure import Figure

    single = all(len(one.law.variables) == 1 for one in outcomes.values())
    count = len(outcomes)
    if single:
        figure = Figure(figsize=(7.6 if count == 1 else 5.1 * count, 5.4), layout="constrained")
        panels = figure.subplots(
            2, count, squeeze=False, sharex="col", sharey="row", gridspec_kw={"height_ratios": [3.2, 1]}
        )
        spans = [_one(panels[0][i], panels[1][i], name, outcome) for i, (name, outcome) in enumerate(outcomes.items())]
        panels[0][0].set_ylim(min(low for low, _, _ in spans), max(high for _, high, _ in spans))
        panels[1][0].set_ylim(-max(off for _, _, off in spans), max(off for _, _, off in spans))
        panels[0][0].set_ylabel(_loss_title(next(iter(outcomes.values())).law))
        panels[1][0].set_ylabel("actual from\nthe law, %")
    else:
        figure = Figure(figsize=(10.2, 5.0 * count), layout="constrained")
        for part, (name, outcome) in zip(figure.subfigures(count, 1, squeeze=False)[:, 0], outcomes.items(), strict=True):  # fmt: skip
            grid = part.add_gridspec(2, 2, width_ratios=[1.35, 1], height_ratios=[2.4, 1])
            actual = part.add_subplot(grid[0, 1])
            _several(part.add_subplot(grid[:, 0]), actual, part.add_subplot(grid[1, 1], sharex=actual), name, outcome)
    return _bytes(figure, format)


def _one(axes: Axes, below: Axes, name: str, outcome: Outcome) -> tuple[float, float, float]:
    """A law in one variable: loss against it, and differences from the law. Returns (lowest, highest, largest difference) to be shown."""
    law, level = outcome.law, outcome.level
    variable = law.variables[0]
    v = law.points.variables[variable]
    known = [*(one.prediction for one in outcome.revealed), *outcome.predictions]
    ends = [*v.tolist(), *(p.at[variable] for p in known)]
    span = (max(ends) / min(ends)) ** 0.04
    grid = np.geomspace(min(ends) / span, max(ends) * span, 300)
    line = law.curve({variable: grid})
    low, high = _band(law, level, grid, known)
    axes.fill_between(grid, low, high, color=BLUE, alpha=0.16, lw=0, label=f"{level:.0%} interval of a new run")
    axes.plot(grid, line, color=BLUE, lw=1.8, label=_formula(law))
    fitted, aside = _rows(law)
    loss = from_nats(law.points.loss, law.unit)
    axes.plot(v[fitted], loss[fitted], "o", color=BLUE, ms=6, mec="white", mew=0.7, zorder=4, label="fitted")
    if aside:
        axes.plot(v[aside], loss[aside], "x", color=GREY, ms=7, mew=1.8, zorder=4, label="set aside as outliers")
    held = outcome.revealed
    at = np.array([one.at[variable] for one in held for _ in one.losses])
    reached = np.array([value for one in held for value in one.losses])
    if held:
        # the bar is what was predicted, the ring what the run reached
        _bars(
            axes,
            [one.at[variable] for one in held],
            [one.prediction for one in held],
            ORANGE,
            "",
            "interval predicted for it",
        )
        axes.plot(at, reached, "o", mfc="white", mec=ORANGE, mew=1.8, ms=7, zorder=6, ls="none", label="held out, revealed")  # fmt: skip
    if outcome.predictions:
        _bars(axes, [p.at[variable] for p in outcome.predictions], outcome.predictions, GREEN, "D", "target")
    low_end, high_end = _span([*loss, *reached], known, line)
    axes.set_title(name or _variables(law), fontsize=11, fontweight="bold" if name else "normal", color=INK)
    axes.legend(framealpha=0.85, edgecolor="none", fontsize=9)
    axes.grid(alpha=0.22, lw=0.6)
    # below: the same in per cent of the law
    below.fill_between(grid, 100 * (low / line - 1), 100 * (high / line - 1), color=BLUE, alpha=0.16, lw=0)
    below.axhline(0, color=BLUE, lw=1.4)
    below.plot(v[fitted], _off(law, {variable: v[fitted]}, loss[fitted]), "o", color=BLUE, ms=5, mec="white", mew=0.6, zorder=4)  # fmt: skip
    if aside:
        below.plot(v[aside], _off(law, {variable: v[aside]}, loss[aside]), "x", color=GREY, ms=6, mew=1.5)
    if held:
        below.plot(at, _off(law, {variable: at}, reached), "o", mfc="white", mec=ORANGE, mew=1.6, ms=6, zorder=6)  # fmt: skip
    off = [*_off(law, {variable: v[fitted]}, loss[fitted]), *(_off(law, {variable: at}, reached) if held else ())]
    inside = (grid >= min(v)) & (grid <= max([*v.tolist(), *(one.at[variable] for one in held)]))
    reach = 1.15 * max(float(np.nanmax(np.abs(100 * (edge / line - 1)[inside]))) for edge in (low, high))
    most = max(1.2 * max(map(abs, off)), min(reach, 6 * max(map(abs, off)) + 1e-9), 1e-3)
    below.grid(alpha=0.22, lw=0.6)
    _log_axis(below, grid[0], grid[-1], np.array(ends) if len(set(ends)) <= 12 else None)
    below.set_xlabel(TITLES[variable])
    return low_end, high_end, most


def _band(law: LossLaw, level: float, grid: Array, known: Sequence[Prediction]) -> tuple[Array, Array]:
    """The interval of a new run along `grid`: computed at a few places, interpolated in log loss between them; NaN where it is unbounded."""
    from scipy.interpolate import PchipInterpolator

    variable = law.variables[0]
    largest = float(law.points.variables[variable].max())  # beyond it the band widens by the misfit
    places = [*np.geomspace(grid[0], grid[-1], KNOTS), *([largest] if largest < grid[-1] else [])]
    found = {float(place): p for place, p in zip(places, (law.predict(level, **{variable: float(one)}) for one in places), strict=True)}  # fmt: skip
    found |= {p.at[variable]: p for p in known if p.level == level} if len(known) <= KNOTS else {}
    x = np.log(np.array(sorted(found)))
    spaced = np.concatenate([[True], np.diff(x) > 1e-6])
    chosen = [found[place] for place, keep in zip(sorted(found), spaced, strict=True) if keep]
    x = x[spaced]
    line = law.curve({variable: grid})
    ends = []
    for end in ("low", "high"):
        ratio = np.array([getattr(p, end) / p.loss for p in chosen])
        good = np.isfinite(ratio) & (ratio > 0)
        if good.sum() < 2:
            ends.append(np.full(len(grid), math.nan))
            continue
        between = PchipInterpolator(x[good], np.log(ratio[good]), extrapolate=False)(np.log(grid))
        ends.append(line * np.exp(between))
    return ends[0], ends[1]


def _several(axes: Axes, right: Axes, below: Axes, name: str, outcome: Outcome) -> None:
    """A law in several variables: loss against compute or tokens, a colour per size; predicted against actual; differences."""
    from matplotlib.colors import LogNorm

    law, points = outcome.law, outcome.law.points
    fitted, aside = _rows(law)
    own = np.stack([points.variables[name] for name in law.variables])
    held = np.array([[one.at[name] for name in law.variables] for one in outcome.revealed]).reshape(-1, len(law.variables)).T  # fmt: skip
    wanted = np.array([[p.at[name] for name in law.variables] for p in outcome.predictions]).reshape(-1, len(law.variables)).T  # fmt: skip
    loss = from_nats(points.loss, law.unit)
    sizes = np.concatenate([own[0], held[0], wanted[0]])
    norm = LogNorm(sizes.min() / 1.001, sizes.max() * 1.001)
    first = np.concatenate([own, held, wanted], axis=1)
    title = _curves(axes, law, own, held, wanted, norm)
    style: dict[str, Any] = {"cmap": _map(), "norm": norm}
    x = _across(law, own)
    predicted = law.curve(dict(zip(law.variables, own, strict=True)))
    if len(law.variables) > 2:  # no curves: a dash where the law puts each run
        axes.plot(x, predicted, "_", color=INK, ms=7, mew=0.8, alpha=0.5, zorder=3)
    axes.scatter(x[fitted], loss[fitted], c=own[0, fitted], s=26, ec="white", lw=0.4, zorder=4, **style)
    if aside:
        axes.plot(x[aside], loss[aside], "x", color=GREY, ms=6, mew=1.4, zorder=4)
    actual = np.array([one.loss for one in outcome.revealed])
    if len(actual):
        axes.scatter(_across(law, held), actual, facecolor="white", edgecolor=_map()(norm(held[0])), s=40, lw=1.7, zorder=6)  # fmt: skip
    if outcome.predictions:
        _bars(axes, list(_across(law, wanted)), outcome.predictions, GREEN, "D", "")
    axes.set_ylim(*_span([*loss, *actual], outcome.predictions))
    across = _across(law, first)
    _log_axis(axes, across.min() / 1.3, across.max() * 1.3, None)
    axes.set_xlabel(title)
    axes.set_ylabel(_loss_title(law))
    axes.set_title(f"{name}: {_formula(law)}" if name else _formula(law), fontsize=10.5, color=INK)
    axes.grid(alpha=0.22, lw=0.6)
    # right: predicted against actual, and the difference
    right.scatter(loss[fitted], predicted[fitted], c=own[0, fitted], s=20, ec="white", lw=0.4, zorder=3, **style)
    below.scatter(loss[fitted], 100 * (loss[fitted] / predicted[fitted] - 1), c=own[0, fitted], s=16, ec="white", lw=0.3, zorder=3, **style)  # fmt: skip
    if len(actual):
        given = [one.prediction for one in outcome.revealed]
        _bars(right, list(actual), given, ORANGE, "o", "", hollow=True)
        centre = np.array([p.loss for p in given])
        off = 100 * (actual / centre - 1)
        ends = [np.clip(np.abs(100 * (np.array([getattr(p, end) for p in given]) / centre - 1)), 0, 1e3) for end in ("low", "high")]  # fmt: skip
        below.errorbar(actual, 0 * off, ends, fmt="none", ecolor=ORANGE, alpha=0.35, lw=2.2, zorder=2)
        below.plot(actual, off, "o", mfc="white", mec=ORANGE, mew=1.3, ms=4.5, zorder=5)
        spread = 1.2 * max(float(np.abs(off).max()), float(np.quantile(np.concatenate(ends), 0.9)))
    else:
        spread = 0.0
    residual = np.abs(100 * (loss[fitted] / predicted[fitted] - 1))
    spread = max(spread, 1.15 * float(residual.max()))
    below.set_ylim(-spread, spread)
    noise = 100 * student(outcome.level, law.fit.dof) * law.fit.sigma
    below.axhspan(-noise, noise, color=BLUE, alpha=0.13, lw=0, zorder=0)
    below.axhline(0, color=BLUE, lw=1.2, zorder=1)
    ends = [min([*loss[fitted], *actual]), max([*loss[fitted], *actual])]
    room = 0.04 * (ends[1] - ends[0])
    right.set_xlim(ends[0] - room, ends[1] + room)
    right.set_ylim(*_span([*loss[fitted], *actual, *predicted[fitted]], [one.prediction for one in outcome.revealed]))
    right.axline((ends[0], ends[0]), slope=1, color=BLUE, lw=1.2, zorder=1)
    right.set_ylabel("predicted")
    right.tick_params(labelbottom=False)
    below.set_xlabel("actual loss")
    below.set_ylabel("actual from\npredicted, %")
    for one in (right, below):
        one.grid(alpha=0.22, lw=0.6)
    _legend(axes, right, law, outcome, own[0], norm, bool(aside))


def _curves(axes: Axes, law: LossLaw, own: Array, held: Array, wanted: Array, norm: Any) -> str:
    """Curves of a few sizes over the range of the other variable; the title of the axis."""
    if len(law.variables) == 2:
        every = np.concatenate([own, held, wanted], axis=1)
        for size in _few(own[0], held[0], wanted[0]):
            near = np.abs(np.log(every[0] / size)) < math.log(1.5)
            low, high = every[1, near].min(), every[1, near].max()
            grid = np.geomspace(low / 1.6, high * 1.6, 120)
            both = np.stack([np.full(len(grid), size), grid])
            axes.plot(_across(law, both), law.curve(dict(zip(law.variables, both, strict=True))), color=_map()(norm(size)), lw=1.3, alpha=0.9, zorder=2)  # fmt: skip
    if law.variables[0] in ("params", "non_embedding") and "tokens" in law.variables:
        return "training FLOPs, 6·N·D"
    return TITLES[law.variables[1]]


def _across(law: LossLaw, values: Array) -> Array:
    """The horizontal axis: 6·N·D, else the second variable."""
    if law.variables[0] in ("params", "non_embedding") and "tokens" in law.variables:
        return 6 * values[0] * values[law.variables.index("tokens")]
    return values[1]


def _few(own: Array, held: Array, wanted: Array) -> list[float]:
    """The sizes with a curve: all of a few, else spread evenly among the fitted ones; targets' always."""
    logs = np.log(np.concatenate([own, held]))
    place = cells(logs[None])
    each = np.array(sorted(float(np.exp(logs[place == c].mean())) for c in set(place.tolist())))
    room = max(COLOURS - len(set(wanted.tolist())), 3)
    if len(each) > room:
        steps = np.linspace(math.log(each[0]), math.log(each[-1]), room)
        each = each[sorted({int(np.argmin(np.abs(np.log(each) - step))) for step in steps})]
    extra = [w for w in dict.fromkeys(wanted.tolist()) if np.abs(np.log(each / w)).min() > 0.05]
    return [*each.tolist(), *extra[:3]]


def _legend(axes: Axes, right: Axes, law: LossLaw, outcome: Outcome, sizes: Array, norm: Any, aside: bool) -> None:
    from matplotlib.lines import Line2D

    held = np.array([one.at[law.variables[0]] for one in outcome.revealed])
    wanted = np.array([p.at[law.variables[0]] for p in outcome.predictions])
    named = [Line2D([], [], color=_map()(norm(size)), lw=2, label=_short(size)) for size in _few(sizes, held, wanted)]
    axes.legend(handles=named, frameon=False, fontsize=8.5, title=TITLES[law.variables[0]], title_fontsize=8.5)
    kinds = [Line2D([], [], ls="none", marker="o", color=INK, ms=4.5, label="fitted")]
    if outcome.revealed:
        kinds.append(Line2D([], [], ls="none", marker="o", mfc="white", mec=ORANGE, mew=1.4, ms=6, label=f"held out, {outcome.level:.0%} interval"))  # fmt: skip
    if aside:
        kinds.append(Line2D([], [], ls="none", marker="x", color=GREY, ms=6, label="set aside (left)"))
    if outcome.predictions:
        kinds.append(Line2D([], [], ls="none", marker="D", color=GREEN, ms=5, label="target (left)"))
    if len(law.variables) > 2:
        kinds.append(Line2D([], [], ls="none", marker="_", color=INK, ms=7, label="the law (left)"))
    right.legend(handles=kinds, frameon=False, fontsize=8.5, loc="upper left")


def _bars(axes: Axes, x: Sequence[float], given: Sequence[Prediction], colour: str, marker: str, label: str, hollow: bool = False) -> None:  # fmt: skip
    """Predictions with their intervals; an end without bound leaves the picture."""
    y = np.array([p.loss for p in given])
    low = np.array([max(p.low, 0.0) for p in given])
    high = np.array([p.high if math.isfinite(p.high) else 10 * p.loss for p in given])
    size = 6.5 if marker == "D" else 5
    axes.errorbar(
        x, y, [np.maximum(y - low, 0), np.maximum(high - y, 0)], fmt=marker or "none", color=colour, ms=size, capsize=4, lw=1.5, mew=1.6,
        mfc="white" if hollow else colour, zorder=5, label=label or None,
    )  # fmt: skip


def _rows(law: LossLaw) -> tuple[list[int], list[int]]:
    """(rows of the points that were fitted, rows that were set aside)."""
    aside = [i for rows in law.fit.aside for i in rows]
    gone = set(aside)
    return [i for i in range(len(law.points)) if i not in gone], aside


def _off(law: LossLaw, at: Mapping[str, Array], loss: Array) -> Array:
    """How far losses are from the law, per cent of it."""
    return 100 * (loss / law.curve(at) - 1)


def _span(losses: Sequence[float], known: Sequence[Prediction], line: Array | None = None) -> tuple[float, float]:
    """The range that shows all losses and predictions, and intervals as far as they do not squeeze the rest."""
    centre = [*losses, *(p.loss for p in known), *([] if line is None else [float(line[0]), float(line[-1])])]
    low, high = min(centre), max(centre)
    reach = 0.6 * (high - low)
    low = max(min([low, *(p.low for p in known)]), low - reach)
    high = min(max([high, *(p.high for p in known)]), high + reach)
    room = 0.06 * (high - low)
    return max(low - room, 0.0), high + room


def _log_axis(axes: Axes, low: float, high: float, own: Array | None) -> None:
    """A logarithmic axis with few, plain labels: the sizes themselves where they are few and small, else powers and their halves."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    decades = math.log10(high / low)
    if own is not None and own.max() < 1e5:
        ticks: list[float] = []
        for value in sorted(set(own.tolist()), reverse=True):
            if not ticks or math.log10(ticks[-1] / value) > decades / 9:
                ticks.append(value)
    else:
        steps = (1,) if decades > 3.5 else (1, 3) if decades > 1.8 else (1, 2, 5)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [m * 10.0**k for k in powers for m in steps if low <= m * 10.0**k <= high]
        ticks = ticks[:: 1 + len(ticks) // 10]
    axes.set_xticks(ticks, [_short(t) for t in ticks])
    axes.minorticks_off()


def _short(value: float) -> str:
    """8.9M, 1.4B, 10²¹."""
    for factor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if 1 <= value / factor < 1000 and value >= 1e4:
            return f"{value / factor:.3g}{letter}"
    if value >= 1e15:
        power = math.floor(math.log10(value) + 1e-9)
        head = value / 10**power
        return f"$10^{{{power}}}$" if abs(head - 1) < 0.01 else f"${head:.2g}·10^{{{power}}}$"
    return f"{value:.4g}"


def _formula(law: LossLaw) -> str:
    """The law with its numbers."""
    raw = law.fit.raw()
    p = {name: f"{value:.3g}" for name, value in raw.items()}
    if law.fit.law.name == "power":
        return f"$L = {_tex(raw['a'])}\\,x^{{{p['b']}}} + {_tex(raw['c'])}$"
    if law.fit.law.name == "chinchilla":
        return f"$L = {_tex(raw['E'])} + {_tex(raw['A'])}/N^{{{p['α']}}} + {_tex(raw['B'])}/D^{{{p['β']}}}$"
    return f"{law.fit.law.name} law"


def _tex(value: Any) -> str:
    """960, 7.01·10³ as TeX."""
    if value < 1e-4:
        return "0"
    if 0.01 <= value < 1e4:
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    power = math.floor(math.log10(value))
    return f"{value / 10**power:.2g}\\cdot 10^{{{power}}}"


def _variables(law: LossLaw) -> str:
    return f"{law.fit.law.name} law over {' and '.join(TITLES[name] for name in law.variables)}"


def _loss_title(law: LossLaw) -> str:
    column = law.points.columns.get("loss") or "loss"
    unit = law.unit.replace("_", " ")
    return column if unit in column else f"{column} ({unit})"


def _map() -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"](np.linspace(0.03, 0.86, 256)))


def _bytes(figure: Figure, format: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    still: Mapping[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[format]
    with matplotlib.rc_context({"svg.hashsalt": "mutransfer"}):  # the same runs, the same bytes
        figure.savefig(buffer, format=format, dpi=DPI, metadata=dict(still))
    return buffer.getvalue()
