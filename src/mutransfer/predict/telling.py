"""A fitted law in the words of somebody who has to decide about a big run; its warnings; its plain JSON form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mutransfer.predict.backtest import growth
from mutransfer.predict.sizes import SIZES, confounders, varies
from mutransfer.rows.columns import listed

if TYPE_CHECKING:
    from mutransfer.predict.fit import Fit
    from mutransfer.predict.forecast import LossLaw, Prediction

FEW = 3  # spare points below which an interval is mostly Student's t
DERIVED = (
    "compute",
    "flops_per_token",
    "non_embedding",
    "lr",
    "steps",
)  # follow from others, or were chosen for each size
LONG = 1.0  # spans of the fitted runs beyond which an extrapolation is long
SHOWN = 6


def label(law: LossLaw, rows: Sequence[int]) -> str:
    """How to name a fitted place: its variables, "params 8.94e+06"."""
    v = law.points.variables
    return ", ".join(f"{name} {float(np.mean([v[name][i] for i in rows])):.4g}" for name in law.variables)


def warnings(law: LossLaw) -> tuple[str, ...]:
    """Why not to believe it, one sentence each."""
    fit, points = law.fit, law.points
    said: list[str] = []
    if points.transfer == "DRIFTS":
        said.append(
            "the runs come from a sweep whose best LR drifts with size (verdict DRIFTS): their losses do not continue to a size that is not tuned by itself"
        )
    elif points.transfer == "INCONCLUSIVE":
        said.append(
            "whether the best LR stays the same over size cannot be told from this sweep (verdict INCONCLUSIVE): the extrapolation rests on that"
        )
    spare = len(fit.y) - fit.law.count
    if spare < FEW:
        said.append(
            f"few points: {len(fit.y)} for {fit.law.count} parameters; noise is judged by {spare} spare {'one' if spare == 1 else 'ones'}, so intervals are wide"
        )
    test = law.backtest
    if test is None:
        said.append(f"too few places for a backtest: {fit.law.count + 2} or more are needed")
    elif test.chance <= 0.05:
        said.append(
            f"the law misses its own backtest: fitted on the smaller runs it errs by {100 * test.error:.2g} % on the larger ones already there, "
            f"{test.error / max(test.expected, 1e-12):.1f} times what noise explains; intervals are widened by it, the more the farther away"
        )  # fmt: skip
    if fit.lack_of_fit is not None and fit.lack_of_fit < 0.05:
        said.append(
            f"sizes scatter about the law by more than their repetitions explain (lack of fit, p = {fit.lack_of_fit:.2g}): means of sizes are fitted"
        )
    hidden = [name for name in confounders(points, law.variables) if name not in DERIVED]
    if hidden:
        said.append(
            f"{' and '.join(hidden)} {'varies' if len(hidden) == 1 else 'vary'} among runs of the same {' and '.join(law.variables)}: the law takes "
            "that for noise; fit over it too, or pick rows with where"
        )
    elif (
        "tokens" in points.variables
        and "tokens" not in law.variables
        and varies(points.variables["tokens"])
        and law.variables[0] in SIZES
    ):
        said.append(f"tokens grow with {law.variables[0]}: the law is for runs in which they go on doing so")
    for index, name in _flat(fit):
        said.append(f"the loss does not fall with {name}: its term has gone to zero" if index else "")
    k = len(fit.law.coefficients)
    low = fit.problem.bounds(fit.y)[0]
    if fit.law.outer is None and fit.u[0] <= low[0] + 2.0:
        said.append(
            "the data show no irreducible loss (E = 0): the law keeps falling, and far away it will fall too far"
        )
    bounds = np.array(fit.law.bounds)
    published = {index: name for name, index in fit.law.own.items()}
    for i, name in enumerate(published.get(k + i, name) for i, name in enumerate(fit.law.exponents)):
        if fit.u[k + i] >= bounds[i, 1] - 1e-6 or fit.u[k + i] <= bounds[i, 0] + 1e-6:
            said.append(f"the data do not bound {name}: it stands at the end of its range")
    if fit.agreeing < max(2, len(fit.restarts.u) // 4) and len(fit.restarts.u) > 1 and _rivals(fit):
        said.append("several valleys fit nearly as well: the parameters are not told apart, only their sum is")
    return tuple(text for text in said if text)


def _flat(fit: Fit) -> list[tuple[int, str]]:
    """Terms whose share of the loss is nothing anywhere."""
    k = len(fit.law.coefficients)
    if fit.law.outer is not None:
        return []
    logs = fit.u[:k, None] + fit.law.log_terms(fit.u[k:], fit.x, fit.u[:k])
    share = (logs - fit.log_loss(fit.x)).max(1)
    names = ("", *fit.law.variables)
    return [(i, names[i]) for i in range(1, min(k, len(names))) if share[i] < -9.0]


def _rivals(fit: Fit) -> bool:
    value = fit.restarts.objective
    different = np.abs(fit.restarts.u - fit.u).max(1) > 0.1
    return bool(np.any(different & (value < value[0] * 1.02)))


def beyond(law: LossLaw, prediction: Prediction) -> str | None:
    """A plain warning for a target too far away."""
    if prediction.reach <= LONG:
        return None
    own = growth(law.fit, law.fit.x)
    span = (own.max() - own.min()) / math.log(10)
    return f"a long extrapolation: {prediction.reach * span:.1f} decades beyond runs that span {span:.1f}; nothing in the data says that the law goes on so far"


def words(law: LossLaw) -> str:
    """The law with its parameters, how it was chosen, what it rests on, warnings and notes."""
    fit = law.fit
    lines = [f"{fit.law.formula}  over {', '.join(_column(law, name) for name in law.variables)}"]
    lines.append(
        "  "
        + "  ".join(
            f"{name} {_number(e.value)} [{_number(e.low)}, {_number(e.high)}]" for name, e in law.parameters.items()
        )
        + "  (90 %)"
    )
    rows = f"{len(fit.y)} {'means of sizes' if any(len(r) > 1 for r in fit.rows) else 'points'}"
    lines.append(
        f"  {rows}, noise of one run {100 * fit.sigma:.2g} % of the loss ({_source(fit)}); Huber δ {fit.delta:.2g}; "
        f"{fit.agreeing} of {len(fit.restarts.u)} restarts agree"
    )  # fmt: skip
    test = law.backtest
    if test is not None:
        lines.append(
            f"  backtest, smallest {', '.join(str(len(f.fitted)) for f in test.folds)} predict the rest: error {100 * test.error:.2g} %, "
            f"noise explains {100 * test.expected:.2g} %"
        )  # fmt: skip
    if len(law.tried) > 1:
        shown = ", ".join(
            f"{c.size} {100 * c.error:.2g} %"
            if c.test is not None
            else f"{c.size} {'not fitted' if c.fit is None else 'no backtest'}"
            for c in law.tried
        )
        lines.append(f"  size variable by that backtest: {shown}; taken: {law.variables[0]}")
    if fit.aside:
        lines.append(f"  set aside as outliers: {listed((_named(law, r) for r in fit.aside), SHOWN)}")
    elif fit.outliers:
        lines.append(f"  outliers: {listed((_named(law, fit.rows[i]) for i in fit.outliers), SHOWN)}")
    if fit.heavy:
        lines.append(f"  the fit leans on: {listed((label(law, fit.rows[i]) for i in fit.heavy), SHOWN)}")
    lines += [f"  warning: {text}" for text in law.warnings]
    lines += [f"  note: {text}" for text in law.points.notes]
    lines.append(f"  source of the law: {fit.law.source}")
    return "\n".join(lines)


def _source(fit: Fit) -> str:
    if fit.repeats.dof:
        levels = f", seeds' own levels {100 * fit.repeats.spread:.2g} %" if fit.repeats.levels else ""
        return f"{fit.dof} degrees of freedom, {fit.repeats.dof} of repetitions{levels}"
    return f"one run per size: from what the law leaves, {fit.dof} degrees of freedom"


def _named(law: LossLaw, rows: tuple[int, ...]) -> str:
    loss = float(np.mean(law.points.loss[list(rows)]))
    return f"{label(law, rows)} (loss {loss:.4g})"


def _column(law: LossLaw, name: str) -> str:
    column = law.points.columns.get(name)
    return name if not column or column == name else f"{name} (column {column})"


def _number(value: float) -> str:
    return f"{value:.4g}"


def predicted(law: LossLaw, prediction: Prediction) -> str:
    """One line: the loss, its interval, and how far away it is."""
    at = ", ".join(f"{name} {value:.4g}" for name, value in prediction.at.items())
    unit = {"nats": "", "perplexity": " perplexity"}.get(law.unit, f" {law.unit.replace('_', ' ')}")
    text = f"{at}: loss {prediction.loss:.4f}{unit} [{prediction.low:.4f}, {prediction.high:.4f}] at {prediction.level:.0%}"
    return text + f" (±{100 * prediction.half_width:.2g} %)"


def to_dict(law: LossLaw) -> dict[str, Any]:
    """Plain JSON types."""
    fit, test = law.fit, law.backtest
    return {
        "law": fit.law.name, "formula": fit.law.formula, "source": fit.law.source, "variables": list(law.variables),
        "parameters": {name: e.to_dict() for name, e in law.parameters.items()}, "loss_unit": law.unit, "points": len(law.points),
        "fitted": len(fit.y), "noise": fit.sigma, "dof": fit.dof, "delta": fit.delta,
        "restarts": [{"objective": float(o), "parameters": {n: float(v) for n, v in fit.raw(u).items()}} for u, o in zip(fit.restarts.u, fit.restarts.objective, strict=True)],
        "backtest": None if test is None else {
            "error": test.error, "expected": test.expected, "chance": test.chance, "misfit": test.misfit,
            "folds": [{"fitted": len(f.fitted), "hidden": [{"at": label(law, fit.rows[i]), "error": float(e)} for i, e in zip(f.hidden, f.errors, strict=True)]} for f in test.folds],
        },
        "sizes_tried": [{"size": c.size, "error": None if math.isnan(c.error) else c.error, "refused": c.refused} for c in law.tried],
        "outliers": [_named(law, r) for r in (*fit.aside, *(fit.rows[i] for i in fit.outliers))], "set_aside": len(fit.aside),
        "leverage": [label(law, fit.rows[i]) for i in fit.heavy], "transfer": law.points.transfer,
        "warnings": list(law.warnings), "notes": list(law.points.notes), "columns": dict(law.points.columns),
    }  # fmt: skip
