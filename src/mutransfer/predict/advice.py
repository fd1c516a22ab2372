"""A law of the optimal LR or batch in the words of somebody who has to set one, and as plain JSON types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mutransfer.predict.optima import TITLES
from mutransfer.verdict.words import signed, span

if TYPE_CHECKING:
    from mutransfer.predict.optimum import HeldOut, OptimumLaw

SHOWN = 5


def words(law: OptimumLaw, at: Mapping[str, float | str]) -> str:
    """The law, what it says per doubling, how well it held in the backtest; first of all what to use at `at`."""
    lines = _target(law, at) if at else []
    found = law.optima
    lines.append(f"{law.formula}, from {law.measured} sizes ({found.kind})")
    for name, e in law.exponents.items():
        lines.append(
            f"  {_title(law)} per doubling of {name}: {signed(e.value)} {span(e.low, e.high)} octaves: {_movement(law, name)}"
        )
    scatter = (
        f"by {law.scatter:.2g} octaves" if law.scatter >= 0.005 else "no more than the errors of their optima explain"
    )
    lines.append(f"  single sizes scatter about the law {scatter}; intervals at {law.level:.0%}")
    if law.held_out:
        lines.append(f"  backtest: {_backtest(law)}")
        lines += [f"    {_held(one)}" for one in law.held_out[-SHOWN:]]
    if law.dropped:
        lines.append(f"  without any one size the exponents stay within {_stability(law)}")
    lines += [f"  outlier, its pull bounded: {label}" for label in law.outliers[:SHOWN]]
    lines += [f"  an exponent rests on one size: {label}" for label in law.heavy[:SHOWN]]
    lines += [f"  note: {note}" for note in law.notes]
    return "\n".join([*lines, f"  source of the form: {law.source}"])


def _target(law: OptimumLaw, at: Mapping[str, float | str]) -> list[str]:
    p = law.predict(None, **at)
    size = ", ".join(f"{name} {value:.4g}" for name, value in p.at.items())
    return [f"at {size} use {law.of} {p.value:.3g} [{p.low:.3g}, {p.high:.3g}]", *(f"  beware: {note}" for note in p.notes)]  # fmt: skip


def _title(law: OptimumLaw) -> str:
    return f"best {TITLES[law.of]}"


def _movement(law: OptimumLaw, name: str) -> str:
    moves, e = law.movement(name), law.exponents[name]
    if moves:
        return f"it {'falls' if e.value < 0 else 'grows'} with {name}"
    if moves is False:
        return f"it does not move with {name}" + (", as under μP" if law.of == "lr" and name not in ("tokens", "steps", "batch", "compute") else "")  # fmt: skip
    return "whether it moves is not told"


def _backtest(law: OptimumLaw) -> str:
    inside, count = sum(one.inside for one in law.held_out), len(law.held_out)
    worst = max(law.held_out, key=lambda one: abs(one.octaves))
    who = "the largest size" if count == 1 else f"the {count} largest sizes"
    return f"{who} predicted from the smaller: {inside} of {count} inside the interval, worst error {signed(worst.octaves)} octaves"


def _held(one: HeldOut) -> str:
    p = one.predicted
    return f"{one.label}: {one.actual:.3g}, predicted {p.value:.3g} [{p.low:.3g}, {p.high:.3g}], {signed(one.octaves)} octaves{'' if one.inside else ', outside'}"


def _stability(law: OptimumLaw) -> str:
    said = []
    for name in law.on:
        values = [exponents[name] for _, exponents in law.dropped]
        said.append(f"{name} {span(min(values), max(values))}")
    return ", ".join(said)


def plain(law: OptimumLaw) -> dict[str, Any]:
    """Every number of the law, None where unknown or unbounded."""
    o = law.optima
    rows = [
        {**{name: float(values[i]) for name, values in o.variables.items()}, law.of: float(2.0 ** o.log2[i]), "octaves_error": float(o.error[i]),
         "side": int(o.side[i]), "residual": float(law.regression.z[i]), "leverage": float(law.regression.leverage[i])}
        for i in range(len(o))
    ]  # fmt: skip
    return {
        "of": law.of, "on": list(law.on), "formula": law.formula, "source": law.source, "constant": law.constant.to_dict(),
        "exponents": {name: e.to_dict() for name, e in law.exponents.items()}, "moves": {name: law.movement(name) for name in law.on},
        "scatter": law.scatter, "dof": law.regression.dof, "level": law.level, "kind": o.kind, "optima": rows,
        "left_out": [{"label": label, "why": why} for label, why in o.left_out], "columns": dict(o.columns),
        "held_out": [one.to_dict() for one in law.held_out], "dropped": [{"label": label, "exponents": dict(e)} for label, e in law.dropped],
        "relation": str(law.relation) if law.relation else None, "outliers": list(law.outliers), "heavy": list(law.heavy), "notes": list(law.notes),
        "words": law.words(),
    }  # fmt: skip
