"""A curve's law in words, its warnings, its plain JSON form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mutransfer.predict.curve_fit import DECAY

if TYPE_CHECKING:
    from mutransfer.predict.curve import CurveLaw, CurvePrediction, Revealed

KNOWN = 0.35  # of the prior's spread: K is known when its own is less
FALLS = 0.02  # a fall of the LR, as a share of its highest, that makes a difference
FEW = 10.0  # independent rows below which an interval rests on little
FAR = 1.5  # steps beyond the fitted ones, in units of them
UNITS = {"nats": "", "perplexity": " perplexity", "bits": " bits", "bits_per_byte": " bits per byte"}


def warnings(law: CurveLaw) -> tuple[str, ...]:
    """Why not to believe it, one sentence each."""
    said: list[str] = []
    runs = [run for run in law.runs if run.schedule is not None]
    if not law.form.nodes:
        falling = [run.name for run in runs if run.schedule is not None and run.schedule.falls() > FALLS]
        if falling:
            said.append(
                "a power law in steps is wrong where the LR decays, as it does here: use law=annealing or multi-power"
            )
        else:
            said.append(
                "a power law in steps is right for a constant LR only: if it decays later, the loss will be lower than predicted"
            )
    elif not decay_known(law):
        fallen = max(run.schedule.falls(int(law.until)) for run in runs if run.schedule is not None)
        so_far = "has not fallen" if fallen < FALLS else f"has fallen by {fallen:.0%} only"
        said.append(
            f"in the fitted steps the LR {so_far}, so what its decay is worth is not known from this run: where it decays, predictions rest on "
            "what decays are worth elsewhere (4 to 15 % of the loss)"
        )  # fmt: skip
    test = law.backtest
    if test is None:
        said.append("too few rows for a backtest")
    elif test.missed:
        said.append(
            f"the law misses its own backtest: it errs by {100 * test.error:.2g} % where it expects {100 * test.expected:.2g} %; intervals are widened by it, "
            "the more the farther away"
        )  # fmt: skip
    if law.worth < FEW:
        said.append(
            f"neighbouring rows err alike (correlation {law.posterior.lag:.3f}): {len(law.rows)} rows are worth {law.worth:.1f} independent ones"
        )
    if law.posterior.effective < 100:
        said.append(f"the parameters are poorly sampled ({law.posterior.effective:.0f} effective draws)")
    return tuple(said)


def decay_known(law: CurveLaw) -> bool:
    """Whether the fitted rows say what the decay is worth."""
    effect = law.posterior.coefficients[:, 2]
    return bool(effect.std() < KNOWN * DECAY * float(law.rows.loss[-1]))


def beyond(law: CurveLaw, prediction: CurvePrediction) -> str | None:
    """A plain warning for a step too far away, or another schedule."""
    last, span = float(law.rows.step.max()), float(np.ptp(law.rows.step))
    if prediction.step > last + FAR * span:
        return f"a long extrapolation: step {prediction.step} from steps {law.rows.step.min():.0f} to {last:.0f}"
    if not prediction.continued:
        return "another schedule than the fitted one: the laws miss what a decay brings by 10 to 15 % of it on published curves, and the interval counts on that"
    return None


def words(law: CurveLaw) -> str:
    """The law with its parameters, what it rests on, warnings and notes."""
    post = law.posterior
    names = ", ".join(run.name for run in law.runs) if len(law.runs) > 1 else ""
    lines = [law.form.formula + (f"  for {names}" if names else "")]
    lines.append(
        "  "
        + "  ".join(f"{n} {e.value:.4g} [{e.low:.4g}, {e.high:.4g}]" for n, e in law.parameters.items())
        + "  (90 %)"
    )
    lines.append(
        f"  fitted: steps {law.rows.step.min():.0f} to {law.rows.step.max():.0f}, {len(law.rows)} rows"
        + (" (means of neighbours)" if law.rows.count.max() > 1 else "")
        + f"; warm-up and the first tenth left out{f'; spikes set aside: {law.spikes}' if law.spikes else ''}"
    )  # fmt: skip
    lines.append(
        f"  noise {100 * float(np.median(post.sigma)):.2g} % of the loss, {float(np.median(1 - post.w)):.0%} of its variance lasting {float(np.median(post.tau)):.3g} steps; "
        f"correlation of neighbours {post.lag:.2g}: worth {law.worth:.3g} independent rows"
    )  # fmt: skip
    test = law.backtest
    if test is not None:
        parts = [
            f"{('without ' + f.without) if f.without else f'to {f.until:.0f}'} {100 * _rms(f.errors):.2g} % ({100 * _rms(f.expected):.2g})" for f in test.folds
        ]  # fmt: skip
        lines.append(f"  backtest, error at the later steps and (expected): {', '.join(parts)}")
    lines += [f"  warning: {text}" for text in law.warnings]
    lines += [f"  note: {text}" for text in law.curves.notes]
    lines.append(f"  source of the law: {law.form.source}")
    return "\n".join(lines)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def predicted(law: CurveLaw, prediction: CurvePrediction, name: str = "") -> str:
    """One line: the step, the loss and its interval."""
    who = f"{name or prediction.run}, " if len(law.runs) > 1 or name else ""
    text = f"{who}step {prediction.step}: loss {prediction.loss:.4f}{UNITS[law.unit]} [{prediction.low:.4f}, {prediction.high:.4f}] at {prediction.level:.0%}"
    return text + f" (±{100 * prediction.half_width:.2g} %)"


def shown(revealed: Revealed) -> str:
    """One line: how the known losses compare."""
    return (
        f"revealed, {revealed.name}: {len(revealed.step)} losses at steps {revealed.step[0]:.0f} to {revealed.step[-1]:.0f}, {revealed.inside:.0%} inside; "
        f"root mean square error {100 * _rms(revealed.errors):.2g} %, mean of the last tenth {100 * revealed.tail:+.2g} %"
    )  # fmt: skip


def to_dict(law: CurveLaw) -> dict[str, Any]:
    """Plain JSON types."""
    test, post = law.backtest, law.posterior
    return {
        "law": law.form.name, "formula": law.form.formula, "needs": law.form.needs, "source": law.form.source, "loss_unit": law.unit,
        "runs": [run.name for run in law.runs], "columns": dict(law.curves.columns), "from": float(law.rows.step.min()), "until": float(law.rows.step.max()),
        "rows": len(law.rows), "independent_rows": law.worth, "spikes": law.spikes,
        "parameters": {name: e.to_dict() for name, e in law.parameters.items()},
        "noise": {"deviation": float(np.median(post.sigma)), "lasting_share": float(np.median(1 - post.w)), "memory": float(np.median(post.tau)), "lag": post.lag},
        "backtest": None if test is None else {
            "error": test.error, "expected": test.expected, "ratio": test.ratio, "misfit": test.misfit,
            "folds": [{"until": f.until, "without": f.without, "error": _rms(f.errors), "expected": _rms(f.expected)} for f in test.folds],
        },
        "warnings": list(law.warnings), "notes": list(law.curves.notes),
    }  # fmt: skip
