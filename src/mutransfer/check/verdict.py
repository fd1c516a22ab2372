"""The width rules: which tensor's own init or update has the wrong exponent, whatever its neighbours do.

Raw sizes of activations cross over slowly between two exponents and pass an error on to every later layer, so they are shown but do not
accuse. What accuses is local: the weight's own contribution `W₀x` relative to `x`, its own step `ΔW` in units of its fans (for degree-1
optimizers freed from the size of the incoming gradient), and for heads the step's effect on the loss, ⟨G, ΔW⟩. A tensor whose init and
update are both off by one and the same multiplier is right in another gauge (theory §4); the gradient tells that multiplier.
"""

from __future__ import annotations

import numpy as np

from mutransfer.check import heads
from mutransfer.check.expect import GROWS, TensorInfo, exponent
from mutransfer.check.findings import Finding
from mutransfer.check.record import Records
from mutransfer.check.slopes import Slope, drawn, fit, median

EXCLUDED = 0.15  # a FAIL needs an interval that stays away from the expected exponent by this much
TOO_WIDE = 0.75  # half an interval beyond which nothing is known
ROUNDING = (
    1e-5  # of its weight's gradient: below is the rounding of a sum over a batch that cancels (measured: 1e-7 to 2e-6)
)
FEW = 16  # numbers; the spread of fewer draws decides nothing by itself


class Judge:
    """Reads the records as errors of exponents; every threshold is here."""

    def __init__(self, records: Records, infos: list[TensorInfo], tolerance: float, level: float) -> None:
        self.records, self.infos, self.tolerance, self.level = records, infos, tolerance, level
        self.verified_attention: set[str] = set()  # queries and keys whose logits were found right
        self.read_outs: dict[str, list[str]] = {}  # asked for by every module
        self._init_errors: dict[tuple[str, str | None], list[Slope]] = {}
        self.cancelled = cancelled(records, infos)

    # measuring -------------------------------------------------------------------------------------------------------

    def slope(self, kind: str, name: str, step: int = 0) -> Slope | None:
        """The exponent of one recorded quantity."""
        return fit(self.records.values, self.records.get(kind, name, step))

    def typical(self, kind: str, name: str) -> Slope | None:
        """The median exponent over all steps at which every run has a positive value."""
        return median([self.slope(kind, name, step) for step in self.records.steps(kind, name)])

    def within(self, error: Slope | None) -> bool:
        """Whether this error is inside the tolerance (or was not measurable)."""
        return error is None or abs(error.mean) <= self.tolerance

    def grade(self, error: Slope | None) -> str:
        """ "ok", "fail" or "unclear" for one error of an exponent."""
        if error is None:
            return "ok"
        low, high = error.interval(self.level)
        if abs(error.mean) > self.tolerance:
            return "fail" if low > EXCLUDED or high < -EXCLUDED else "unclear"
        return "unclear" if (high - low) / 2 > TOO_WIDE else "ok"

    def grows(self, label: str) -> bool:
        """Whether the last axis (or the channels) of this module's output grows."""
        channels = self.records.channels.get(label, [])
        known = len(channels) == len(self.records.values)
        return known and exponent(self.records.values, np.array(channels, dtype=float)) > GROWS

    def finding(
        self, name: str, rule: str, what: str, error: Slope, expected: float, advice: str, severity: str
    ) -> Finding:
        """A finding whose measured slope is the expected one plus this error."""
        low, high = error.interval(self.level)
        return Finding(
            name, rule, what, error.mean + expected, low + expected, high + expected, expected, advice, severity
        )

    @property
    def ratio(self) -> float:
        """Largest over smallest size."""
        return self.records.values[-1] / self.records.values[0]

    def factor(self, exponent: float) -> str:
        """A correction as a factor at the largest size."""
        value = self.ratio**exponent
        shown = f"×{value:.3g}" if value >= 1 else f"÷{1 / value:.3g}"
        return f"{self.records.axis}^{exponent:+.2g} ({shown} at {self.records.values[-1]:g} against {self.records.values[0]:g})"

    # the three statistics --------------------------------------------------------------------------------------------

    def _update(self, info: TensorInfo, step: int) -> Slope | None:
        """Error of the update's exponent at one step, before any multiplier is considered."""
        norms, rms = (
            self.records.get("update operator norm", info.name, step),
            self.records.get("update", info.name, step),
        )
        candidates = []
        if rms is not None and not (info.kind == "matrix" and norms is not None):
            candidates.append(rms * info.fan_in[:, None])
        if norms is not None and info.kind in ("matrix", "unknown"):
            candidates.append(norms * np.sqrt(info.fan_in / info.fan_out)[:, None])
        slopes = [s for s in (fit(self.records.values, c) for c in candidates) if s is not None]
        if not slopes:
            return None
        best = min(slopes, key=lambda s: abs(s.mean))
        if info.degree == 0:
            return best
        gradient = self.slope("gradient norm", info.name, step)
        if gradient is None:
            return None
        error = best - (gradient - info.gradient_exponent)
        # what comes back to a fixed-size layer inside the net adds up over the width at random or aligned: both are right
        return (
            error - float(np.clip(error.mean, -info.a / 2, 0.0)) if info.role == "output" and not info.head else error
        )

    def update_error(self, info: TensorInfo) -> Slope | None:
        """Median over steps of `_update`; a degree-1 step remembers other gradients later on, so only its first one counts."""
        slopes = [self._update(info, step) for step in self.records.steps("update", info.name)]
        known = [slope for slope in slopes if slope is not None]
        return median(known[:1] if info.degree else known)

    def init_errors(self, info: TensorInfo, site: str | None) -> list[Slope]:
        """Errors of the init's exponent: measured on the data, and predicted from the weight's RMS (no luck of one draw)."""
        if (info.name, site) not in self._init_errors:
            self._init_errors[info.name, site] = self._measured_init(info, site)
        return self._init_errors[info.name, site]

    def _measured_init(self, info: TensorInfo, site: str | None) -> list[Slope]:
        weight = self._weight(info)
        if weight is None:
            return []
        if site is None:
            return [weight + {"hidden": info.a / 2, "input": info.a / 2, "output": info.a}.get(info.role, 0.0)]
        fans = np.array(self.records.fans[site], dtype=float)
        growth = fit(self.records.values, fans[:, :1])
        operand = self.slope("operand", site) or 0.0 * weight
        predicted = weight + (0.5 * growth.mean if growth is not None else 0.0)
        product = self.slope("product", site)
        return [predicted] if product is None else [predicted, product - operand]

    def _weight(self, info: TensorInfo) -> Slope | None:
        """The exponent of its RMS at the start; of vectors and of few numbers with the scatter of the draw."""
        if len(info.shape) > 1 and np.prod(info.shape) >= FEW:
            return self.slope("weight", info.name)
        shapes = [dict(model.named_parameters())[info.name].shape for model in self.records.models]
        numel = np.array([float(np.prod(shape)) for shape in shapes])
        return drawn(self.records.values, self.records.get("weight", info.name), numel)

    def gradient_excess(self, info: TensorInfo) -> Slope | None:
        """The exponent by which this tensor's gradient exceeds the expected one: its multiplier, if all else is right."""
        slope = self.typical("gradient norm", info.name)
        return None if slope is None else slope - info.gradient_exponent

    def common_excesses(self) -> list[Slope]:
        """What of `gradient_excess` may come from elsewhere (a head's wrong multiplier, a clip, a draw of data).

        Either what weights that are right as they stand have in common, or the median over the whole body.
        """
        body = [i for i in self.infos if i.role in ("hidden", "input", "vector") and i.name not in self.cancelled]
        right = [
            i for i in body if i.role != "vector" and all(self.within(e) for e in self._plain(i)) and self._plain(i)[1]
        ]
        medians = [median([self.gradient_excess(info) for info in chosen]) for chosen in (right, body)]
        return [m for m in medians if m is not None]

    def _plain(self, info: TensorInfo) -> tuple[Slope | None, Slope | None]:
        """(init error, update error) of a body tensor without any multiplier."""
        errors = self.init_errors(info, info.sites[0] if info.sites else None)
        if info.role == "output" and not info.head:  # a fixed size inside the net may start like a head or at size one
            errors = [e - float(np.clip(e.mean, -info.a / 2, 0.0)) for e in errors]
        return min(errors, key=lambda s: abs(s.mean)) if errors else None, self.update_error(info)

    # judging ---------------------------------------------------------------------------------------------------------

    def judge(self) -> list[Finding]:
        """Findings of all tensors, most upstream first."""
        common = self.common_excesses()
        found: list[Finding] = []
        for info in self.infos:
            if self.unused(info):
                found.append(Finding(info.name, "unused", "no operation used it and no gradient reached it", 0, 0, 0, 0,
                                     "it was not checked", "note"))  # fmt: skip
            elif info.role == "unknown":
                found.append(Finding(info.name, "unknown axes", "its axes cannot be told from its shape", 0, 0, 0, 0,
                                     "only its neighbours were checked", "note"))  # fmt: skip
            elif info.name in self.cancelled:
                found.append(Finding(info.name, "no effect", "its gradient is only rounding", 0, 0, 0, 0,
                                     "what follows, such as a norm, takes it out again: it was not judged", "note"))  # fmt: skip
            elif info.head:
                found += heads.judge_head(self, info, info.sites[0])
            else:
                found += self._body(info, common)
                if info.role != "output":
                    for site in heads.sites_of(self, info):
                        found += heads.judge_tied(self, info, site)
        return found + self._unseen()

    def unused(self, info: TensorInfo) -> bool:
        """Whether neither the forward nor the gradient knows this tensor."""
        used = any(self.records.first_use.get(m) is not None for m in (info.name.rpartition(".")[0],) if m)
        return not info.sites and not used and self._gradient(info) == 0.0

    def _gradient(self, info: TensorInfo) -> float:
        arrays = [self.records.get("gradient", info.name, step) for step in self.records.steps("gradient", info.name)]
        return max((float(np.nanmax(a)) for a in arrays if a is not None and np.any(np.isfinite(a))), default=0.0)

    def _unseen(self) -> list[Finding]:
        """Matrices whose gradient was exactly zero all along, such as those behind a zero-initialised head in a single step."""
        unseen = [
            i.name
            for i in self.infos
            if i.sites and i.role in ("hidden", "input", "output") and self._gradient(i) == 0.0
        ]
        zero = [
            i.name for i in self.infos if (w := self.records.get("weight", i.name)) is not None and not np.any(w > 0)
        ]
        if not unseen:
            return []
        zero = [i.name for i in self.infos if i.sites and i.name in zero]
        more = bool(zero)
        advice = (
            f"zero-initialised tensors hide it ({zero[0]}): take at least 3 steps" if more else "is it used at all?"
        )
        what = f"its gradient is exactly zero at every step (as of {len(unseen) - 1} others)"
        return [Finding(unseen[0], "not seen", what, 0, 0, 0, 0, advice, "unclear" if more else "note")]

    def _body(self, info: TensorInfo, common: list[Slope]) -> list[Finding]:
        init, update = self._plain(info)
        if init is not None and info.role in ("vector", "scalar") and init.mean < 0:
            falling, init = init, None  # a bias drawn like 1/√fan_in only starts closer to zero
        else:
            falling = init
        if self.within(init) and self.within(update):
            return self._unclear(info, init, update)
        if self._rescued(info, falling, init, update, common):
            return []
        return self._accuse(info, init, update)

    def _rescued(
        self, info: TensorInfo, falling: Slope | None, init: Slope | None, update: Slope | None, common: list[Slope]
    ) -> bool:
        """Whether one forward multiplier explains both errors: then the tensor is right in another gauge."""
        power = 1 + info.degree
        start = falling if falling is not None else init
        consistent = start is not None and update is not None and self.within(update - power * start)
        # |q|·|k|·scale is right: a factor 1/√d may sit in a query or key
        zero = start is None and update is not None and self.within(update + 0.5 * power)
        if info.name in self.verified_attention and (consistent or zero):
            return True
        carried = self._sibling_gain(info)
        if carried is not None and update is not None and self.within(update - power * carried):
            return True
        excess = self.gradient_excess(info)
        if excess is None or update is None:
            return False
        bias = info.role in ("vector", "scalar") and info.name.endswith("bias")
        if start is not None and not consistent and not bias:
            return False
        for multiplier in [excess, *(excess - other for other in common)]:
            moves = abs(multiplier.mean) > self.tolerance and self.within(update + power * multiplier)
            if moves and (start is None or bias or self.within(start + multiplier)):
                return True
        return False

    def _sibling_gain(self, info: TensorInfo) -> Slope | None:
        """The exponent of the multiplier that a bias's own module carries in its gain or weight, where it carries one."""
        if info.role not in ("vector", "scalar") or not info.name.endswith("bias"):
            return None
        own = next((i for i in self.infos if i.name == f"{info.name[:-4]}weight"), None)
        if own is None:
            return None
        start = self._plain(own)[0]
        return None if self.within(start) else start

    def _unclear(self, info: TensorInfo, init: Slope | None, update: Slope | None) -> list[Finding]:
        found = []
        for what, error in (("init", init), ("update", update)):
            if error is not None and self.grade(error) == "unclear":
                found.append(
                    self.finding(
                        info.name, "noise", f"its {what}", error, 0.0, "run more seeds or more sizes", "unclear"
                    )
                )
        return found

    def _accuse(self, info: TensorInfo, init: Slope | None, update: Slope | None) -> list[Finding]:
        found = []
        if init is not None and (grade := self.grade(init)) != "ok":
            what = "the size of its output relative to its input" if info.sites else "its initial size"
            found.append(self.finding(info.name, "init", what, init, 0.0,
                                      f"multiply its init std by {self.factor(-init.mean)}", grade))  # fmt: skip
        if update is not None and (grade := self.grade(update)) != "ok":
            found.append(self.update_finding(info, update, grade))
        return found

    def update_finding(self, info: TensorInfo, update: Slope, grade: str) -> Finding:
        what = "the effect of its own update"
        if update.mean < 0 and self._eps_bites(info):
            eps = self.records.data["eps", info.name, 0]
            return self.finding(
                info.name, "eps", what, update, 0.0,
                f"eps {float(np.nanmax(eps)):.2g} is larger than its gradient at {self.records.values[-1]:g}: "
                "lower it, or scale it like the gradient", grade,
            )  # fmt: skip
        return self.finding(info.name, "learning rate", what, update, 0.0,
                            f"multiply its learning rate by {self.factor(-update.mean)}", grade)  # fmt: skip

    def _eps_bites(self, info: TensorInfo) -> bool:
        eps, gradient = self.records.get("eps", info.name), self.records.get("gradient", info.name)
        if info.degree != 0 or eps is None or gradient is None or np.all(np.isnan(gradient[-1])):
            return False
        if info.kind == "matrix":
            gradient = gradient * np.sqrt(float(np.prod(info.shape)))
        return float(np.nanmedian(gradient[-1])) <= 10 * float(np.nanmax(eps[-1]))


def cancelled(records: Records, infos: list[TensorInfo]) -> set[str]:
    """Vectors without any effect: a bias in front of a norm, or of a key, has a gradient that is zero but for rounding.

    Its measure is the weight of the same module, or the median tensor where there is none.
    """

    def gradient(name: str) -> np.ndarray | None:  # (steps, sizes, seeds)
        arrays = [records.get("gradient", name, step) for step in records.steps("gradient", name)]
        return np.stack([a for a in arrays if a is not None]) if arrays else None

    known = {info.name: g for info in infos if (g := gradient(info.name)) is not None}
    typical = np.median([np.nanmedian(g) for g in known.values() if np.any(g > 0)] or [0.0])
    found = set()
    for info in infos:
        own, weight = known.get(info.name), f"{info.name.rpartition('.')[0]}.weight"
        if own is None or len(info.shape) > 1 or not np.any(own > 0):
            continue
        measure = known.get(weight) if weight != info.name else None
        if measure is None or measure.shape != own.shape or not np.any(measure > 0):
            measure = np.full_like(own, typical)
        there = np.isfinite(own) & (measure > 0)
        if np.any(there) and np.median(own[there] / measure[there]) < ROUNDING:
            found.add(info.name)
    return found
