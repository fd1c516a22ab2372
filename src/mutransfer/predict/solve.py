"""The solver: Huber on log loss, coefficients eliminated in a global search over the exponents, then Levenberg–Marquardt on all.

Everything is batched: one call refines the restarts of a fit, a thousand bootstrap replicates, or the points of a profile.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mutransfer.predict.laws import Law

Array = np.ndarray
FLOOR = 14.0  # a coefficient whose term is e^-14 of the loss is zero
RESTARTS = 8
_CHUNK = 4_000_000  # numbers per work array


@dataclass(frozen=True)
class Problem:
    """`x` (v, n) normalised logarithms; delta (n,): Huber's, in log loss; weights (n,): what a row's ρ counts."""

    law: Law
    x: Array
    delta: Array
    weights: Array

    def bounds(self, y: Array) -> tuple[Array, Array]:
        """Of u = (log c, θ), each (p,). y (..., n): log losses. The loss' own scale bounds the coefficients of a law without outer power."""
        k = len(self.law.coefficients)
        spread = np.abs(self.x).max(initial=0.0)
        reach = 40.0 + 6.0 * spread
        low = np.array([-reach if self.law.outer is not None else float(y.min()) - FLOOR - 6 * spread] * k)
        high = np.array([reach if self.law.outer is not None else float(y.max()) + 6.0 * spread + 2.0] * k)
        if self.law.outer is None:
            low[0] = float(y.min()) - FLOOR
        theta = np.array(self.law.bounds).reshape(-1, 2)
        return np.concatenate([low, theta[:, 0]]), np.concatenate([high, theta[:, 1]])


@dataclass(frozen=True)
class Solved:
    """u (B, p) and the objective there (B,): Σ w·ρ(r), ρ(r) = r²/2 within delta, else delta·(|r| − delta/2)."""

    u: Array
    objective: Array


def huber(r: Array, delta: Array) -> Array:
    """ρ(r)."""
    a = np.abs(r)
    return np.where(a <= delta, 0.5 * r * r, delta * (a - 0.5 * delta))


def search(problem: Problem, y: Array, most: int = RESTARTS) -> Array:
    """Starts (≤ most, p): the best local minima, over a grid of exponents, of the relative least-squares error with coefficients ≥ 0 eliminated."""
    law, x = problem.law, problem.x
    axes = law.grids(x)
    mesh = np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=1)
    k = len(law.coefficients)
    log_c = np.zeros((len(mesh), k))
    outer = np.ones(len(mesh)) if law.outer is None else law.outer(mesh)
    target = y / outer[:, None]  # (G, n): the logarithm of loss^(1/p)
    errors, log_coefficients = np.empty(len(mesh)), np.empty((len(mesh), k))
    step = max(1, _CHUNK // max(1, k * len(y)))
    for i in range(0, len(mesh), step):
        part = slice(i, i + step)
        logs = law.log_terms(mesh[part], x, log_c[part]) - target[part, None, :]
        top = logs.max(-1)  # every term is 1 at its largest: nothing overflows
        errors[part], coefficients = _nonnegative(np.exp(logs - top[..., None]), problem.weights)
        log_coefficients[part] = np.log(np.maximum(coefficients, 1e-300)) - top
    errors = errors * outer**2  # the residual is in loss^(1/p)
    order = _local_minima(errors.reshape([len(a) for a in axes]), most)
    tiny = problem.bounds(y)[0][:k]
    return np.concatenate([np.maximum(log_coefficients[order], tiny), mesh[order]], axis=1)


def _nonnegative(phi: Array, weights: Array) -> tuple[Array, Array]:
    """min Σ w (Σ_j c_j φ_j − 1)², c ≥ 0, for every φ (G, k, n): the best of all supports. Returns errors (G,) and c (G, k)."""
    k = phi.shape[1]
    scale = np.sqrt((phi**2 * weights).sum(-1))
    scale = np.where(scale > 0, scale, 1.0)
    unit = phi / scale[..., None]
    gram = np.einsum("gin,gjn,n->gij", unit, unit, weights)
    right = np.einsum("gin,n->gi", unit, weights)
    best, chosen = np.full(len(phi), np.inf), np.zeros((len(phi), k))
    for size in range(1, k + 1):
        for support in combinations(range(k), size):
            index = np.array(support)
            matrix = gram[:, index[:, None], index] + 1e-13 * np.eye(size)
            c = np.linalg.solve(matrix, right[:, index, None])[..., 0]
            error = weights.sum() - np.einsum("gi,gi->g", c, right[:, index])
            better = np.all(c >= 0, axis=1) & (error < best)
            best = np.where(better, error, best)
            full = np.zeros((len(phi), k))
            full[:, index] = c
            chosen[better] = full[better]
    return np.maximum(best, 0.0), chosen / scale


def _local_minima(errors: Array, most: int) -> Array:
    """Flat indices of the lowest cells that are no higher than their neighbours along every axis."""
    low = np.isfinite(errors)
    for axis in range(errors.ndim):
        padded = np.pad(errors, [(1, 1) if a == axis else (0, 0) for a in range(errors.ndim)], constant_values=np.inf)
        n = errors.shape[axis]
        low &= (errors <= padded.take(range(n), axis)) & (errors <= padded.take(range(2, n + 2), axis))
    flat = np.flatnonzero(low.ravel())
    every = np.argsort(errors.ravel(), kind="stable")
    found = flat[np.argsort(errors.ravel()[flat], kind="stable")]
    return np.concatenate([found, every[~np.isin(every, found)]])[:most] if len(found) < 2 else found[:most]


def refine(
    problem: Problem, y: Array, u: Array, iterations: int = 60, tolerance: float = 1e-11, fixed: int | None = None
) -> Solved:
    """Levenberg–Marquardt with Huber weights from every start u (B, p), on y (n,) or (B, n), within the bounds.

    `fixed`: the parameter that keeps the value it has in each start.
    """
    y = np.broadcast_to(y, (len(u), y.shape[-1]))
    step = max(1, _CHUNK // max(1, y.shape[1] * u.shape[1]))
    if len(u) > step:
        parts = [
            refine(problem, y[i : i + step], u[i : i + step], iterations, tolerance, fixed)
            for i in range(0, len(u), step)
        ]
        return Solved(np.concatenate([p.u for p in parts]), np.concatenate([p.objective for p in parts]))
    low, high = problem.bounds(y)
    u = np.clip(u, low, high)
    held = np.arange(u.shape[1]) == fixed
    residual = problem.law.log_mean(u, problem.x) - y
    value = (problem.weights * huber(residual, problem.delta)).sum(-1)
    damping = np.full(len(u), 1e-3)
    active = np.arange(len(u))
    calm = np.zeros(len(u), int)
    for _ in range(iterations):
        part, r = u[active], residual[active]
        jacobian = problem.law.derivative(part, problem.x)
        w = problem.weights * np.minimum(1.0, problem.delta / np.maximum(np.abs(r), 1e-300))
        gradient = np.einsum("bnp,bn->bp", jacobian, w * r)
        hessian = np.matmul(jacobian.transpose(0, 2, 1) * w[:, None, :], jacobian)
        stuck = ((part <= low) & (gradient > 0)) | ((part >= high) & (gradient < 0))
        stuck |= held
        free = ~stuck
        hessian = hessian * (free[:, :, None] & free[:, None, :])
        size = np.maximum(np.einsum("bpp->bp", hessian), 1e-12)
        lifted = hessian + np.einsum("bp,pq->bpq", damping[active, None] * size + stuck, np.eye(u.shape[1]))
        move = -np.linalg.solve(lifted + 1e-14 * np.eye(u.shape[1]), (gradient * free)[..., None])[..., 0]
        trial = np.clip(part + np.clip(move, -3.0, 3.0), low, high)
        new = problem.law.log_mean(trial, problem.x) - y[active]
        now = (problem.weights * huber(new, problem.delta)).sum(-1)
        better = now < value[active]
        gain = np.where(better, value[active] - now, 0.0)
        rows = active[better]
        small = gain <= tolerance * (value[active] + 1e-300)
        u[rows], residual[rows], value[rows] = trial[better], new[better], now[better]
        damping[active] = np.where(
            better, np.maximum(damping[active] * 0.2, 1e-12), np.minimum(damping[active] * 6.0, 1e12)
        )
        calm[active] = np.where(
            small & (better | (damping[active] > 1e6)), calm[active] + 1, np.where(better, 0, calm[active])
        )
        active = active[calm[active] < 2]
        if not len(active):
            break
    return Solved(u, value)


def solve(problem: Problem, y: Array, starts: Array | None = None, iterations: int = 200) -> tuple[Solved, Solved]:
    """The global minimum and every restart, best first. y (n,)."""
    found = refine(problem, y, search(problem, y) if starts is None else starts, iterations)
    order = np.argsort(found.objective, kind="stable")
    every = Solved(found.u[order], found.objective[order])
    return Solved(every.u[:1], every.objective[:1]), every
