"""Two kinds of loss in one column: bits among nats, perplexities among losses."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.draft import Draft

Array = np.ndarray
SMOOTH = 0.03  # with every row in one unit, losses lie this close (log, root mean square) to a quadratic in the logarithms of the sizes
TIMES = 5.0  # and without, this many times farther
NEAR = 0.02  # the jump between the two kinds, estimated freely, is at least this close to log(1/ln 2): another jump is an outlier's
SLACK = 0.003  # and as close as the scatter allows, and this: numbers of three digits
BITS = -math.log(math.log(2))
MOST_STARTS = 60
MOST_FLIPS = 600  # rows up to which single rows are moved from one kind to the other
_SIZE, _LENGTH = ("params", "non_embedding", "flops_per_token", "width", "depth"), ("tokens", "compute", "steps")


def check_losses(draft: Draft, column: str) -> None:
    """Raise InputError where some rows are in bits, or are perplexities, and the others in nats, and the sizes show it plainly."""
    design = _design(draft)
    if design is None:
        return
    basis = np.linalg.qr(design)[0]
    y = np.log(draft.loss)
    spread = _rms(_residual(basis, y))
    if spread < SMOOTH:
        return
    enough = min(SMOOTH, spread / TIMES)
    bits = _bits(basis, design, y)
    if bits is not None:
        left = _rms(_residual(basis, y - BITS * bits))
        sure = NEAR if bits.sum() > 1 else min(NEAR, 3 * left + SLACK)  # one row may as well be an outlier
        if left < enough and abs(_jump(basis, y, bits) - BITS) < sure:
            _refuse(draft, column, np.flatnonzero(bits), "higher by 1/ln 2 = 1.4427", "bits among nats")
    for above in _above(draft.loss):
        nats = np.where(above, np.log(np.maximum(draft.loss, 1.0 + 1e-9)), draft.loss)
        if _rms(_residual(basis, np.log(nats))) < enough:
            _refuse(
                draft,
                column,
                np.flatnonzero(above),
                "exponentials of what the others lead one to expect",
                "perplexities among losses",
            )


def _refuse(draft: Draft, column: str, rows: Array, how: str, what: str) -> None:
    some = ", ".join(f"{draft.loss[i]:.4g}" for i in rows[:2]) + (", …" if len(rows) > 2 else "")
    raise InputError(
        f'{column}: the values in {draft.place(rows)} ({some}) are {how}: {what}? Write every row in one unit, or loss_unit="nats" if they are right'
    )


def _design(draft: Draft) -> Array | None:
    """Columns of a quadratic (or plane, where rows are few) in the logarithms of the size and the length of training."""
    axes: list[Array] = []
    for group in (_SIZE, _LENGTH):
        name = next((n for n in group if n in draft.values and np.ptp(np.log(draft.values[n])) > 1e-6), None)
        if name is not None:
            z = np.log(draft.values[name])
            z = (z - z.mean()) / z.std()
            if not axes or abs(float(np.mean(axes[0] * z))) < 0.999:
                axes.append(z)
    if not axes:
        return None
    linear = np.stack([np.ones(len(draft)), *axes], 1)
    squares = [a * b for i, a in enumerate(axes) for b in axes[i:]]
    full = np.concatenate([linear, np.stack(squares, 1)], 1)
    for design in (full, linear):
        if len(draft) >= design.shape[1] + 3 and np.linalg.matrix_rank(design) == design.shape[1]:
            return design
    return None


def _residual(basis: Array, y: Array) -> Array:
    return y - basis @ (basis.T @ y)


def _rms(residual: Array) -> float:
    return float(np.sqrt(np.mean(residual**2)))


def _jump(basis: Array, y: Array, high: Array) -> float:
    """By how much the rows in `high` are above the others, log, estimated freely."""
    left = _residual(basis, high)
    return float(left @ y) / max(float(left @ left), 1e-12)


def _bits(basis: Array, design: Array, y: Array) -> Array | None:
    """(n,) 1 for the rows that are in bits in the smoothest reading, 0 for the others; None where there are not both."""
    found: list[tuple[float, tuple[float, ...]]] = []
    for start in _starts(design, y):
        z = start.astype(float)
        for _ in range(20):
            level = y - BITS * z
            new = (y - (level - _residual(basis, level)) > BITS / 2).astype(float)
            if (new == z).all():
                break
            z = new
        found.append((_rms(_residual(basis, y - BITS * z)), tuple(z)))
    best = sorted(set(found))[:5]
    if len(y) <= MOST_FLIPS:
        flat = (_rms(_residual(basis, y)), tuple(np.zeros(len(y))))
        best = [_flipped(basis, y, np.array(z)) for _, z in (*best, flat)]
    both = [(score, z) for score, z in best if 0 < sum(z) < len(z)]
    if not both:
        return None
    least = min(score for score, _ in both)  # of readings that are equally smooth, the one with the fewest bits
    return np.array(min((z for score, z in both if score <= 1.05 * least + 1e-9), key=lambda z: (sum(z), z)))


def _flipped(basis: Array, y: Array, z: Array) -> tuple[float, tuple[float, ...]]:
    """Move the row whose move smooths the losses most from one kind to the other, until none does."""
    away = np.eye(len(y)) - basis @ basis.T
    left = away @ (y - BITS * z)
    for _ in range(len(y)):
        sign = 1 - 2 * z
        change = -2 * BITS * sign * left + BITS**2 * np.diag(away)  # of the squared residual, row by row
        i = int(np.argmin(change))
        if change[i] > -1e-12:
            break
        left = left - BITS * sign[i] * away[:, i]
        z[i] = 1 - z[i]
    return _rms(left), tuple(z)


def _starts(design: Array, y: Array) -> Iterator[Array]:
    """Rows above a smooth trend, above a plane (which follows bits less far), and those of the largest or the smallest sizes."""
    for columns in (design, design[:, :2], design[:, :3]):
        residual = _residual(np.linalg.qr(columns)[0], y)
        for cut in np.unique(np.quantile(residual, np.linspace(0.05, 0.95, 13))):
            yield residual > cut
    axis = design[:, 1]
    for cut in np.unique(np.quantile(axis, np.linspace(0, 1, min(len(axis), MOST_STARTS))))[1:]:
        yield axis >= cut
        yield axis < cut


def _above(loss: Array) -> Iterator[Array]:
    """The rows above each of the three widest gaps between neighbouring losses."""
    ordered = np.sort(loss)
    ratios = ordered[1:] / ordered[:-1]
    for at in np.argsort(-ratios)[:3]:
        if ratios[at] > 1.3 and ordered[at + 1] > 1:
            yield loss >= ordered[at + 1]
