"""Numbers that do not fit together: a wrong unit, two units in one column, C that is far from 6ND."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.draft import Draft, is_text_model
from mutransfer.predict.units import PF_DAY

Array = np.ndarray
BINARY = {1e3: 2.0**10, 1e6: 2.0**20, 1e9: 2.0**30}
_SAID = {1.0: "1", 1e3: "10^3", 1e6: "10^6", 1e9: "10^9", 2.0**10: "2^10", 2.0**20: "2^20", 2.0**30: "2^30"}
EXACT = 1e-3  # 12·depth is met this closely by the right unit, given numbers of three digits
FITS = 3e-3  # largest relative residual of params = p·width + q·width²
MOST_DEPTH = 200
LOW, HIGH = 0.2, 5.0  # C / (6ND) between these: another count of the embedding or of attention, or a forward pass only
LEAST_PLAIN = {"params": 1e5, "non_embedding": 1e5, "tokens": 1e6, "unique_tokens": 1e6, "compute": 1e12}
"""Below these a number beside others far above is in another unit: no model of 40 parameters stands beside one of 80 million."""
JUMP = (
    300.0  # a gap between two neighbouring sizes that nobody leaves without a change of unit, next to much smaller ones
)


def check_units(draft: Draft) -> None:
    """Settle the unit of sizes (10^6 or 2^20) where the width shows it; raise InputError where numbers contradict one another."""
    _settle(draft)
    _grows_with_width(draft)
    for name in ("params", "non_embedding", "tokens", "unique_tokens", "compute"):
        _one_unit(draft, name)
    _six_nd(draft)
    _falls_with_size(draft)


def _settle(draft: Draft) -> None:
    """params = p·width + 12·depth·width² to the last digit: the unit is the one in which 12·depth is a whole multiple of 12.

    The total of a Transformer with 4·width hidden units (Kaplan et al. 2001.08361, eq. 2.1) and an embedding, norms and biases linear in width. Where
    the depth is in no column it is one whole number for all rows; `draft.values["depth"]` is then set.
    """
    column = draft.columns.get("params")
    if column is None or not {"params", "width"} <= set(draft.values) or not is_text_model(draft):
        return
    n, w, depth = draft.values["params"], draft.values["width"], draft.values.get("depth")
    known = np.isfinite(n) & np.isfinite(w) & (np.isfinite(depth) if depth is not None else True)
    n, w = n[known], w[known]
    if len(np.unique(w)) < 4:
        return
    layers = np.ones(len(n)) if depth is None else depth[known]
    terms = [w, 12 * layers * w**2] + ([layers * w] if len(np.unique(layers)) > 1 else [])
    design = np.stack(terms, 1) / n[:, None]
    scale = np.linalg.norm(design, axis=0)
    if len(n) <= len(terms) or np.linalg.matrix_rank(design / scale) < len(terms):
        return
    solved = np.linalg.lstsq(design / scale, np.ones(len(n)), rcond=None)[0] / scale
    if np.abs(design @ solved - 1).max() > FITS:
        return
    stated = column.unit
    options = [stated] if stated is not None else [1.0] if (n >= 1e4).all() else [1e3, 1e6, 1e9]
    base = 1.0 if stated is None else stated
    units = options if column.declared else [unit for one in options for unit in (one, BINARY.get(one, one))]
    tried = {unit: _off(float(solved[1]) * unit / base, depth is not None) for unit in units}
    best = min(tried, key=lambda unit: (tried[unit], -unit))
    decimal = next((unit for unit in options if BINARY.get(unit) == best), best)
    if tried[best] > EXACT:
        return
    if best != decimal and tried[decimal] < 3 * max(tried[best], EXACT / 3):
        best = decimal
    found = round(float(solved[1]) * best / base)
    if best != base:
        draft.values["params"] = draft.values["params"] * best / base
        instead = (
            f", which in units of {_SAID[decimal]} is {12 * float(solved[1]) * decimal / base:.4g}"
            if best != decimal
            else ""
        )
        multiple = f"12·{found}" if depth is None else "12·depth"
        draft.notes.append(f"{column.name} is in units of {_SAID[best]}: the share of params that grows as width² is then {multiple}{instead}")  # fmt: skip
    if depth is None:
        draft.values["depth"] = np.full(len(draft), float(found))
        draft.notes.append(f"params = p·width + 12·{found}·width² in every row, to {np.abs(design @ solved - 1).max():.1%}: depth {found}")  # fmt: skip


def _off(multiple: float, known: bool) -> float:
    """How far q/12 is from a whole depth (from 1 where the depth is known), relative; infinite where no depth is like it."""
    whole = 1.0 if known else float(round(multiple))
    return abs(multiple / whole - 1) if 1 <= whole <= MOST_DEPTH else math.inf


def _grows_with_width(draft: Draft) -> None:
    """Raise InputError where, at one depth, params fall with width, or grow faster than any architecture's."""
    if not {"params", "width"} <= set(draft.values):
        return
    n, w = draft.values["params"], draft.values["width"]
    depth = draft.values.get("depth")
    slack = 1.5 if depth is not None else 100.0
    order = [int(i) for i in np.argsort(w, kind="stable") if math.isfinite(n[i]) and math.isfinite(w[i])]
    for before, after in pairwise(order):
        if w[after] <= w[before] or (depth is not None and depth[after] != depth[before]):
            continue
        grown, most = n[after] / n[before], (w[after] / w[before]) ** 3
        if grown < 1 / slack or grown > slack * 10 * most:
            rows = [before, after]
            raise InputError(
                f"params: {draft.place(rows)} are {n[before]:.4g} at width {w[before]:g} and {n[after]:.4g} at width {w[after]:g}: "
                "two units in one column? Write every row in the same one"
            )


def _one_unit(draft: Draft, name: str) -> None:
    """Raise InputError where some numbers of a column are too small beside the others to be in their unit (10, 20, 40, 8e7)."""
    if name not in draft.values:
        return
    values = draft.values[name]
    known = np.flatnonzero(np.isfinite(values))
    ordered = known[np.argsort(values[known], kind="stable")]
    if len(ordered) < 2:
        return
    steps = values[ordered][1:] / values[ordered][:-1]
    at = int(np.argmax(steps))
    low, high = ordered[: at + 1], ordered[at + 1 :]
    if steps[at] < JUMP:
        return
    least = LEAST_PLAIN[name]
    absurd = {"params": 1e14, "non_embedding": 1e14, "tokens": 1e17, "unique_tokens": 1e17, "compute": 1e32}[name]
    if (values[low].max() < least <= values[high].min()) or (
        values[high].max() > absurd and values[low].min() < absurd
    ):
        few = low if len(low) <= len(high) else high
        rest = high if few is low else low
        column = draft.column(name) or name
        raise InputError(
            f"{column}: {draft.place(few)} ({values[few[0]]:.4g}{', …' if len(few) > 1 else ''}) and the others ({values[rest[0]]:.4g}, …) "
            "cannot be in one unit: write every row in the same one"
        )


def _six_nd(draft: Draft) -> None:
    """Raise InputError where C / (6ND) is off by a power of 1000: in some rows (two units) or in all (a wrong unit)."""
    if not {"params", "tokens", "compute"} <= set(draft.values):
        return
    n, d, c = (draft.values[name].astype(float) for name in ("params", "tokens", "compute"))
    log = np.log10(c) - np.log10(6.0) - np.log10(n) - np.log10(d)
    known = np.flatnonzero(np.isfinite(log))
    if not len(known):
        return
    middle = float(np.median(log[known]))
    jumps = known[np.abs(log[known] - middle) > 2.3]
    if len(jumps):
        ratios = ", ".join(f"{10 ** log[i]:.2g}" for i in jumps[:2])
        raise InputError(
            f"compute / (6 × params × tokens) is {10**middle:.2g} in most rows and {ratios} in {draft.place(jumps)}: "
            "one of the three is in another unit there"
        )
    if math.log10(LOW) <= middle <= math.log10(HIGH):
        return
    names = {name: draft.column(name) or name for name in ("params", "tokens", "compute")}
    days = middle + math.log10(PF_DAY)
    if abs(days) < 0.7:
        raise InputError(f"{names['compute']} is 1/8.64e19 of 6 × params × tokens: it is in PF-days; write units={{\"compute\": \"PF-days\"}}")  # fmt: skip
    thousands = 3 * round(middle / 3)
    if thousands and abs(middle - thousands) < 0.7:
        raise InputError(_which(draft, names, thousands))
    draft.notes.append(
        f"compute / (6 × params × tokens) is {10**middle:.3g}, far from 1: the three are taken as they stand"
    )


def _which(draft: Draft, names: dict[str, str], power: int) -> str:
    """Which unit to declare where C / (6ND) is 10^power in every row."""
    head = f"{names['compute']} / (6 × {names['params']} × {names['tokens']}) is near 10^{power} in every row: the unit of one of them is wrong"
    small = [name for name in ("params", "tokens") if np.nanmax(draft.values[name]) < 1e5]
    if power < 0:
        return f'{head}; if it is {names["compute"]}, write units={{"compute": 1e{-power}}}'
    guess = (small or ["params"])[0]
    other = "tokens" if guess == "params" else "params"
    if len(small) == 2 and power > 9:
        first, second = (9, power - 9) if power >= 15 else (6, power - 6)
        return f'{head}; write units={{"params": 1e{second}, "tokens": 1e{first}}}' if second else head
    return f'{head}; if it is {names[guess]}, write units={{"{guess}": 1e{power}}} (or of {names[other]}, if it is that one)'


def _falls_with_size(draft: Draft) -> None:
    """Raise InputError where a few sizes written in a larger unit (125, 350, 1.3, 2.7) would make the loss fall with every size.

    Looked for only where the size is all that varies and no compute can show it.
    """
    if "params" not in draft.values or any(name in draft.values for name in ("tokens", "compute", "width")):
        return
    values, finite = draft.values["params"], np.isfinite(draft.loss)
    known = np.flatnonzero(finite & np.isfinite(values))
    if len(np.unique(values[known])) < 5 or "lr" in draft.values:
        return
    order = known[np.argsort(values[known], kind="stable")]
    x, y = values[order], draft.loss[order]
    if _falling(x, y) > 0.75:
        return
    for at in range(1, len(x)):
        if x[at] / x[at - 1] < 1.5:
            continue
        for factor in (1e3, 1e6):
            if _falling(np.where(np.arange(len(x)) < at, x * factor, x), y) > 0.98 and at >= 2 and len(x) - at >= 2:
                raise InputError(
                    f"{draft.column('params') or 'params'}: {draft.place(order[:at])} ({x[0]:.4g}, …) have lower losses than larger sizes do; "
                    f"in units {factor:.0e} larger than the others' they would not: write every row in the same unit"
                )


def _falling(x: Array, y: Array) -> float:
    """The share of pairs in which the larger size has the lower loss."""
    i, j = np.triu_indices(len(x), 1)
    told = x[i] != x[j]
    return float(np.mean(((x[i] < x[j]) == (y[i] > y[j]))[told])) if told.any() else 1.0
