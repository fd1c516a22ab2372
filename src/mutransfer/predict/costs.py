"""What a run costs: FLOPs where the table or the law says them, else a power of the size, the largest fitted run counting one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.forecast import LossLaw

Array = np.ndarray
FACTOR: Mapping[str, float] = {"params": 6.0, "non_embedding": 6.0, "flops_per_token": 1.0}
"""k of C = k·N·D by size variable (Kaplan et al. 2001.08361, eq. 2.2)."""
EXPONENT = 2.0  # tokens grow with the size on the compute-optimal frontier, so that compute is its square
FOLLOWS = 0.05  # compute that is a power of the law's variables up to this (standard deviation of the logarithm) follows from them


@dataclass(frozen=True)
class Cost:
    """`of(values)`: cost (m,) of runs with the law's variables (m,) each, in `unit`; `said`: how it is counted."""

    of: Callable[[Mapping[str, Array]], Array]
    unit: str
    said: str

    @property
    def flops(self) -> bool:
        """Whether it is in FLOPs."""
        return self.unit == "FLOPs"

    def shown(self, value: float) -> str:
        """`2.1e+20 FLOPs`, or `1.7 of the largest runs`."""
        return f"{value:.3g} FLOPs" if self.flops else f"{value:.3g} × the largest run"


def cost_of(law: LossLaw, exponent: float | None = None, tokens: float | None = None) -> Cost:
    """The cost of a run under a law. `exponent`: cost ∝ size^exponent instead; `tokens`: of every run, where the law is over a size alone.

    6·N·D where the law has both, or the table's tokens are the same in every run; the table's own compute where it follows from the law's
    variables; else size². Raises InputError for what is no number above 0.
    """
    for name, value in (("exponent", exponent), ("tokens", tokens)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < float(value) < 1e40
        ):
            raise InputError(
                f"{name}={value!r}: write a number above 0, such as {'2' if name == 'exponent' else '2e10'}"
            )
    names, points = law.variables, law.points
    first = names[0]
    if exponent is not None:
        return _relative(law, first, float(exponent))
    if first == "compute":
        return Cost(lambda v: v["compute"], "FLOPs", "the law is over compute")
    size = next((name for name in names if name in FACTOR), None)
    if size is not None:
        k = FACTOR[size]
        head = f"{k:g}·" if k != 1 else ""
        if "tokens" in names:
            return Cost(lambda v: k * v[size] * v["tokens"], "FLOPs", f"{head}{size}·tokens")
        every = tokens or (None if "compute" in points.variables else points.constants.get("tokens"))
        if every:
            return Cost(lambda v: k * v[size] * every, "FLOPs", f"{head}{size}·{every:.4g} tokens")
    elif tokens is not None:
        raise InputError(f"tokens={tokens:g}: a law over {' and '.join(names)} has no parameters to count their FLOPs with; write exponent=")  # fmt: skip
    follows = _table(law)
    if follows is not None:
        return follows
    fixed = points.constants.get("params")
    if first == "tokens" and fixed:
        return Cost(lambda v: 6 * fixed * v["tokens"], "FLOPs", f"6·{fixed:.4g} parameters·tokens")
    return _relative(law, first, 1.0 if first in ("tokens", "unique_tokens", "steps", "batch") else EXPONENT)


def _relative(law: LossLaw, name: str, exponent: float) -> Cost:
    largest = float(law.points.variables[name].max())
    return Cost(
        lambda v: (v[name] / largest) ** exponent, "largest runs",
        f"{name}^{exponent:g}, the largest fitted run ({name} {largest:.4g}) counting 1",
    )  # fmt: skip


def _table(law: LossLaw) -> Cost | None:
    """The table's compute, where it is a power of the law's variables."""
    points, names = law.points, law.variables
    if "compute" not in points.variables:
        return None
    design = np.stack([np.ones(len(points)), *(np.log(points.variables[name]) for name in names)], axis=1)
    y = np.log(points.variables["compute"])
    centre = design[:, 1:].mean(0)
    design[:, 1:] -= centre
    solved = np.linalg.lstsq(design, y, rcond=None)[0]
    if float(np.std(y - design @ solved)) > FOLLOWS:
        return None

    def of(values: Mapping[str, Array]) -> Array:
        x = np.stack([np.log(np.asarray(values[name], float)) for name in names], axis=-1) - centre
        return np.exp(solved[0] + x @ solved[1:])

    powers = "·".join(f"{name}^{p:.3g}" for name, p in zip(names, solved[1:], strict=True))
    return Cost(of, "FLOPs", f"the table's compute, ∝ {powers}")
