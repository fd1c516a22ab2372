"""The laws of a learning curve: what the loss of one model at a step follows from its learning rates up to there.

All are  L(s) = L0 + A·S(s)^(−α) − K·φ(s; θ)  with coefficients ≥ 0 and φ the share of its peak by which the LR has fallen, each fall counted
as far as it has taken effect. In units of the peak η: S(s) = S1(s)/η and

    annealing     φ = Σ_{k≤s} (η_{k−1} − η_k)/η · (1 − λ^(s−k+1))                          K = C·η/(1 − λ)
    multi-power   φ = Σ_{k≤s} (η_{k−1} − η_k)/η · (1 − (1 + c·(η_k/η)^(−γ)·S_k(s)/η)^(−β))   K = B·η,  c = C·η^(1−γ)

so that φ → 1 long after a fall to nothing in both, and K, in nats, is what the whole decay is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from mutransfer.errors import InputError
from mutransfer.predict.schedules import Schedule

Array = np.ndarray
KNOTS = 240  # intervals over which the falls of the LR are summed
LEAST_LR = 1e-6  # of the peak: what an LR of 0 counts as in η^(−γ)


@dataclass(frozen=True)
class CurveForm:
    """One law. `nodes`: the axes of θ on which φ is tabulated; between them it is interpolated, in `scale`d coordinates.

    `prior`: mean and deviation of each (scaled) θ: the published values, widely; `drops(schedule, steps (n,), θ (G, q), peak)` gives φ (G, n);
    `raw(K, θ, peak)` the published parameters beside L0, A and α.
    """

    name: str
    formula: str
    needs: str
    source: str
    names: tuple[str, ...]
    nodes: tuple[Array, ...]
    prior: tuple[tuple[float, float], ...]
    drops: Callable[[Schedule, Array, Array, float], Array]
    raw: Callable[[Array, Array, float], dict[str, Array]]

    @property
    def count(self) -> int:
        """Parameters fitted."""
        return 3 + len(self.nodes) + (1 if self.nodes else 0)

    def table(self, schedule: Schedule, steps: Array, peak: float) -> Array:
        """φ at every node: (nodes…, n)."""
        thetas = np.array(list(product(*(axis.tolist() for axis in self.nodes))))
        found = self.drops(schedule, np.asarray(steps, int), thetas, peak)
        return found.reshape(*(len(axis) for axis in self.nodes), len(steps))

    def between(self, table: Array, theta: Array) -> Array:
        """φ (B, n) at θ (B, q), by multilinear interpolation of a `table`."""
        places, shares = [], []
        for i, axis in enumerate(self.nodes):
            at = np.clip(np.searchsorted(axis, theta[:, i]) - 1, 0, len(axis) - 2)
            places.append(at)
            shares.append(np.clip((theta[:, i] - axis[at]) / (axis[at + 1] - axis[at]), 0.0, 1.0))
        out = np.zeros((len(theta), table.shape[-1]))
        for corner in product((0, 1), repeat=len(self.nodes)):
            weight = np.ones(len(theta))
            for share, side in zip(shares, corner, strict=True):
                weight = weight * (share if side else 1 - share)
            out += weight[:, None] * table[tuple(p + c for p, c in zip(places, corner, strict=True))]
        return out


def _annealed(schedule: Schedule, steps: Array, thetas: Array, peak: float) -> Array:
    """S2·(1 − λ)/η: with m_i = λ·m_{i−1} + (η_{i−1} − η_i) and S2 = Σ m, (1 − λ)·S2(s) = Σ_{k≤s} (η_{k−1} − η_k) − λ·m_s."""
    from scipy.signal import lfilter

    drops = schedule.drops[: int(steps.max())] / peak
    fallen = np.concatenate([[0.0], np.cumsum(drops)])[steps]
    out = []
    for forgets in np.exp(thetas[:, 0]):
        momentum = np.asarray(lfilter([1.0], [1.0, forgets - 1.0], drops))
        out.append(fallen - (1 - forgets) * np.concatenate([[0.0], momentum])[steps])
    return np.array(out)


def _multi_power(schedule: Schedule, steps: Array, thetas: Array, peak: float) -> Array:
    """LD/(B·η). Falls are summed over intervals, each as if it came at the interval's middle."""
    last = int(steps.max())
    drops, area = schedule.drops[:last], schedule.area
    fallen = np.concatenate([[0.0], np.cumsum(np.abs(drops))])
    if fallen[-1] <= 0:
        return np.zeros((len(thetas), len(steps)))
    # intervals that end at the steps asked for, and cut the falls into equal parts
    equal = np.searchsorted(fallen, np.linspace(0, fallen[-1], KNOTS))
    ends = np.unique(np.concatenate([[0, last], steps, np.clip(equal, 0, last), np.clip(equal - 1, 0, last)]))
    net = np.concatenate([[0.0], np.cumsum(drops)])[ends]
    part = np.diff(net) / peak
    use = np.abs(part) > 1e-12
    a, b, part = ends[:-1][use], ends[1:][use], part[use]
    middle = (a + b + 1) // 2  # the update in the middle, which is the only one of an interval of one
    lr = np.maximum(schedule.lr[middle - 1] / peak, LEAST_LR)
    since = np.maximum((area[steps][:, None] - area[middle - 1]) / peak, 0.0)
    weight = np.where(b <= steps[:, None], part, 0.0)
    out = np.empty((len(thetas), len(steps)))
    known: tuple[float, float, Array] = (np.nan, np.nan, since)
    for i, (log_rate, log_beta, gamma) in enumerate(thetas[np.lexsort(thetas.T[[1, 2, 0]])]):
        if (log_rate, gamma) != known[:2]:
            known = (log_rate, gamma, np.log1p(np.exp(log_rate) * lr**-gamma * since))
        out[i] = -(weight * np.expm1(-np.exp(log_beta) * known[2])).sum(1)
    back = np.empty_like(out)
    back[np.lexsort(thetas.T[[1, 2, 0]])] = out
    return back


def _no_drop(schedule: Schedule, steps: Array, thetas: Array, peak: float) -> Array:
    return np.zeros((len(thetas), len(steps)))


def _raw_annealing(effect: Array, theta: Array, peak: float) -> dict[str, Array]:
    forgets = np.exp(theta[:, 0])
    return {"C": effect * forgets / peak, "λ": 1 - forgets}


def _raw_multi_power(effect: Array, theta: Array, peak: float) -> dict[str, Array]:
    gamma = theta[:, 2]
    return {"B": effect / peak, "C": np.exp(theta[:, 0]) * peak ** (gamma - 1), "β": np.exp(theta[:, 1]), "γ": gamma}


CURVE_LAWS: Mapping[str, CurveForm] = {
    law.name: law
    for law in (
        CurveForm(
            "annealing", "L = L0 + A·S1^(-α) − C·S2,  S1 = Σ lr_i,  S2 = Σ_{i≤s} Σ_{k≤i} (lr_{k-1} − lr_k)·λ^(i-k)",
            "the LR of every step; one run whose LR has begun to fall, else what the decay brings is a guess", "Tissue, Wang & Wang 2408.11029",
            ("log(1-λ)",), (np.log(np.geomspace(1e-4, 0.3, 25)),), ((np.log(2e-3), 1.5),), _annealed, _raw_annealing,
        ),
        CurveForm(
            "multi-power", "L = L0 + A·S1^(-α) − B·Σ_k (lr_{k-1} − lr_k)·(1 − (1 + C·lr_k^(-γ)·Σ_{i=k..s} lr_i)^(-β))",
            "the LR of every step; a run whose LR falls far, or better two with different schedules", "Luo et al. 2503.12811",
            ("log c", "log β", "γ"), (np.log(np.geomspace(1e-3, 2.0, 10)), np.log(np.geomspace(0.15, 2.4, 7)), np.linspace(0.0, 1.2, 5)),
            ((np.log(0.13), 1.2), (np.log(0.6), 0.4), (0.65, 0.25)), _multi_power, _raw_multi_power,
        ),
        CurveForm(
            "power", "L = L0 + A·s^(-α)", "an LR that stays constant, up to the step that is predicted: where it decays, the loss will be lower",
            "Kaplan et al. 2001.08361; Henighan et al. 2010.14701", (), (), (), _no_drop, lambda effect, theta, peak: {},
        ),
    )
}  # fmt: skip


def curve_law(name: str) -> CurveForm:
    """The law of that name. Raises InputError."""
    if name not in CURVE_LAWS:
        raise InputError(f"law={name!r}: write one of {', '.join(CURVE_LAWS)}")
    return CURVE_LAWS[name]


def features(law: CurveForm, area: Array, table: Array, z: Array) -> Array:
    """(B, n, 3): 1, (S/S_ref)^(−α), −φ. area (n,) is S/S_ref; z (B, 1 + q): log α, then θ."""
    power = np.exp(-np.exp(z[:, :1]) * np.log(area))
    drop = law.between(table, z[:, 1:]) if law.nodes else np.zeros_like(power)
    return np.stack([np.ones_like(power), power, -drop], axis=-1)


def prior_of(law: CurveForm) -> tuple[Array, Array]:
    """Means and deviations of (log α, θ): the published α lie between 0.43 and 0.51 for language models; others within a factor of two."""
    pairs: Sequence[tuple[float, float]] = ((np.log(0.5), 0.6), *law.prior)
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
