"""Noise of a learning curve: neighbouring steps err alike. Rows are made independent by a Kalman filter, whose cost is linear in them.

A row's relative error is  e(s) = u(s) + white:  u an AR(1) process in the step (Ornstein–Uhlenbeck, for steps at any distance) with correlation
exp(−|Δs|/τ) and share 1 − w of the variance, white of share w. Runs are independent, but for one that branches off another: it goes on from there
(from what the rows up to there say of it; what later rows of the other one say is left out).
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
    data = np.ascontiguousarray(columns.transpose(1, 2, 0))  # draws last: every step is arithmetic on whole vectors
    rows, state = np.empty((n, k, b)), np.empty((n + 1, k, b))
    variance, totals = np.empty((n + 1, b)), np.empty((n, b))
    state[n], variance[n] = 0.0, 1 - w  # what parent −1 refers to
    decay = np.exp(-chain.gap[:, None] / tau)
    square = decay**2
    fresh = (1 - w) * (1 - square)
    white = w * chain.white[:, None]
    for i, p in enumerate(chain.parent.tolist()):
        before = square[i] * variance[p] + fresh[i]
        total = before + white[i]
        gain = before / total
        ahead = decay[i] * state[p]
        error = data[i] - ahead
        rows[i] = error
        state[i] = ahead + gain * error
        variance[i] = (1 - gain) * before
        totals[i] = total
    rows /= np.sqrt(totals)[:, None, :]
    return Filtered(rows.transpose(2, 0, 1), np.log(totals).sum(0), state[:n].transpose(2, 0, 1), variance[:n].T)
