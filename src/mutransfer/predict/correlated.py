"""Noise of a learning curve: neighbouring steps err alike. Rows are made independent by a Kalman filter, whose cost is linear in them.

A row's relative error is  e(s) = u(s) + white:  u an AR(1) process in the step (Ornstein–Uhlenbeck, for steps at any distance) with correlation
exp(−|Δs|/τ) and share 1 − w of the variance, white of share w. Runs are independent, but for one that branches off another: it goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Chain:
    """How rows follow one another. gap (n,): steps since the row before, inf at the start of a run; parent (n,): which row that is, −1 at a start;
    white (n,): variance of the white part relative to the usual row's (a mean of more points has less)."""

    gap: Array
    parent: Array
    white: Array

    def __len__(self) -> int:
        return len(self.gap)


@dataclass(frozen=True)
class Filtered:
    """`rows` (B, n, k) whitened columns; log_det (B,) of the correlation; state (B, n, k) and variance (B, n): u after each row, in columns."""

    rows: Array
    log_det: Array
    state: Array
    variance: Array


def whiten(chain: Chain, columns: Array, tau: Array, w: Array) -> Filtered:
    """The Kalman filter over all rows. columns (B, n, k): features and the data, each filtered alike; tau, w (B,)."""
    b, n, k = columns.shape
    rows, state = np.empty((n, b, k)), np.empty((n + 1, b, k))
    variance = np.empty((n + 1, b))
    state[n], variance[n] = 0.0, 1 - w  # what parent −1 refers to
    log_det = np.zeros(b)
    data = np.ascontiguousarray(columns.transpose(1, 0, 2))
    decay = np.exp(-chain.gap[:, None] / tau)
    slow = 1 - w
    for i in range(n):
        p = chain.parent[i]
        a = decay[i]
        x = a[:, None] * state[p]
        before = a * a * variance[p] + slow * (1 - a * a)
        total = before + w * chain.white[i]
        error = data[i] - x
        rows[i] = error / np.sqrt(total)[:, None]
        gain = before / total
        state[i] = x + gain[:, None] * error
        variance[i] = (1 - gain) * before
        log_det += np.log(total)
    return Filtered(rows.transpose(1, 0, 2), log_det, state[:n].transpose(1, 0, 2), variance[:n].T)
