"""The prediction for a checkpoint, found among those of `mutransfer predict --json`, beside what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutransfer.errors import InputError
from mutransfer.evaluate.score import DomainScore
from mutransfer.predict.units import check_loss_unit, to_nats

EXACT = ("width", "depth", "batch", "steps")
"""Compared exactly; other sizes within `NEAR` (one counts positions among the parameters, another does not)."""
NEAR = 0.05


@dataclass(frozen=True)
class Beside:
    """A prediction in nats per token of one domain, and whether the measured nats are inside its interval."""

    loss: float
    low: float
    high: float
    inside: bool

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 709.0))


@dataclass(frozen=True)
class Predicted:
    """A predicted loss with its interval, in `unit`, of the model `at` these sizes."""

    at: Mapping[str, float]
    loss: float
    low: float  # −inf, inf: unbounded
    high: float
    level: float | None
    unit: str = "nats"
    column: str | None = None
    """Which loss was fitted, by the name of the table's column."""

    @property
    def words(self) -> str:
        """What was predicted, and for what."""
        sizes = ", ".join(f"{name}={value:g}" for name, value in self.at.items()) or "no size"
        level = "" if self.level is None else f" at {self.level:.0%}"
        return f"predicted for {self.column or 'the fitted loss'} at {sizes}{level}"

    def beside(self, score: DomainScore) -> Beside | None:
        """The prediction beside a score; None where bits per byte were predicted and the domain's bytes are not known.

        Bits per byte become nats per token with the domain's own bytes per token.
        """
        if self.unit == "bits_per_byte":
            if not score.bytes:
                return None
            factor = math.log(2) * score.bytes / score.tokens
            loss, low, high = (value * factor for value in (self.loss, self.low, self.high))
        else:
            loss, low, high = (_nats(value, self.unit) for value in (self.loss, self.low, self.high))
        return Beside(loss, low, high, low <= score.nats <= high)


def read_predictions(path: Path) -> tuple[Predicted, ...]:
    """The predictions in a file of `mutransfer predict --json`. Raises InputError for any other file."""
    name = f"--predicted {str(path)!r}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError:  # not UTF-8, or not JSON
        raise InputError(f"{name} is not JSON: write it with mutransfer predict RUNS --target … --json") from None
    listed = content.get("predictions") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{name} holds no predictions: write it with mutransfer predict RUNS --target … --json")
    columns = content.get("columns")
    column = columns.get("loss") if isinstance(columns, dict) else None
    unit = content.get("loss_unit") or "nats"
    check_loss_unit(unit)
    return tuple(_prediction(item, i, name, unit, column) for i, item in enumerate(listed))


def matching(predictions: Sequence[Predicted], sizes: Mapping[str, float]) -> Predicted:
    """The prediction made for a model of these sizes: all that both name agree, and of several the nearest in params.

    Width, depth, batch and steps must be equal, the others within 5 %. Raises InputError where none is, and where two
    equally near ones differ.
    """
    fitting = [
        p for p in predictions if _names(p, sizes) and all(_agree(n, p.at[n], sizes[n]) for n in _names(p, sizes))
    ]
    if not fitting:
        known = {name for p in predictions for name in p.at} & set(sizes) or {"params", "width"} & set(sizes)
        own = ", ".join(f"{name}={sizes[name]:g}" for name in sizes if name in known)
        made = "; ".join(", ".join(f"{n}={v:g}" for n, v in p.at.items()) or "no size" for p in predictions[:6])
        more = f" and {len(predictions) - 6} more" if len(predictions) > 6 else ""
        raise InputError(f"no prediction is for this checkpoint, of {own}: they are for {made}{more}")
    nearest = min(_distance(p, sizes) for p in fitting)
    best = [p for p in fitting if _distance(p, sizes) <= nearest + 1e-9]
    if any((p.loss, p.low, p.high) != (best[0].loss, best[0].low, best[0].high) for p in best):
        made = "; ".join(f"{p.loss:.4g} [{p.low:.4g}, {p.high:.4g}]" for p in best[:6])
        raise InputError(f"{len(best)} predictions are for this checkpoint and differ, {made}: keep one of them")
    return best[0]


def unchecked(predicted: Predicted, sizes: Mapping[str, float]) -> tuple[str, ...]:
    """What the prediction is made for and nothing is known of in the checkpoint."""
    return tuple(name for name in predicted.at if name not in sizes)


def _names(predicted: Predicted, sizes: Mapping[str, float]) -> list[str]:
    return [name for name in predicted.at if name in sizes]


def _agree(name: str, predicted: float, own: float) -> bool:
    return predicted == own if name in EXACT else abs(predicted - own) <= NEAR * own


def _distance(predicted: Predicted, sizes: Mapping[str, float]) -> float:
    return max(abs(math.log(predicted.at[name] / sizes[name])) for name in _names(predicted, sizes))


def _nats(value: float, unit: str) -> float:
    if unit == "perplexity" and value <= 0:
        return -math.inf
    return float(to_nats(value, unit))


def _prediction(item: Any, index: int, name: str, unit: str, column: Any) -> Predicted:
    def refuse(what: str) -> InputError:
        return InputError(f"{name}: predictions[{index}] {what}")

    if not isinstance(item, dict):
        raise refuse("is not an object with at, loss, low and high")
    at = item.get("at")
    if not isinstance(at, dict) or not all(_finite(value) and value > 0 for value in at.values()):
        raise refuse(f"has at={at!r}: write the sizes as numbers above 0, such as {{'params': 1.4e9}}")
    loss, level = item.get("loss"), item.get("level")
    if not isinstance(loss, int | float) or not _finite(loss):
        raise refuse(f"has loss={loss!r}: write a finite number")
    ends = []
    for key, open_end in (("low", -math.inf), ("high", math.inf)):
        value = item.get(key, "missing")
        if value is not None and not _finite(value):
            raise refuse(f"has {key}={value!r}: write a number, or null for no bound")
        ends.append(open_end if value is None else float(value))
    if ends[0] > ends[1]:
        raise refuse(f"has low={ends[0]:g} above high={ends[1]:g}")
    return Predicted(
        {str(key): float(value) for key, value in at.items()},
        float(loss),
        *ends,
        level=float(level) if isinstance(level, int | float) and _finite(level) else None,
        unit=unit,
        column=column if isinstance(column, str) and column else None,
    )


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
