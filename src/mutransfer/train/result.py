"""What a run leaves behind: a row. A run that diverged is a result too, with the update at which it did."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class LogPoint:
    """The state of a run after `step` updates; `loss` (nats) is that of the whole batch of update `step`, before it."""

    step: int
    loss: float
    lr: float
    """The base learning rate times the schedule's multiplier; each group has this times its own ratio."""
    grad_norm: float
    """Before clipping; the plan's width-invariant norm or torch's, as the config's `clip_norm` says."""
    val_loss: float | None
    tokens: int
    """Tokens (text) or rows (tables, images) consumed so far."""
    seconds: float
    """Wall time so far, over every session of the run."""


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run. A diverged run has infinite losses, so that no minimum ever picks it."""

    config_hash: str
    status: Literal["finished", "diverged", "paused"]
    reason: str | None
    """Why the run ended early; None when it finished."""
    diverged_at: int | None
    """The update (1-based) whose loss, or the validation loss after it, was the first one not finite."""
    losses: tuple[float, ...]
    """The loss of every update, up to and including the first that is not finite."""
    points: tuple[LogPoint, ...]
    train_loss: float
    """Mean loss of the last 50 updates; inf when diverged."""
    val_loss: float | None
    """Validation loss after the last update; None without validation, inf when diverged."""
    flops: float
    """Floating-point operations of the matrix products of the forward and backward passes of the updates made."""
    seconds: float
    params: int
    grow_flops: float = 0.0
    """The part of `flops` that the small model took, in a run that starts grown; `seconds`, too, has its part in it."""
    grow_loss: float | None = None
    """Loss of the small model when it was grown: validation, or training without one; inf when it diverged."""

    def summary(self) -> dict[str, Any]:
        """The numbers and words of the outcome by name, without the loss curve."""
        return {name: value for name, value in asdict(self).items() if name not in ("losses", "points")}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a number that is not finite becomes None (`status` says why)."""
        return _finite_or_none(asdict(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RunResult":
        """The inverse of `to_dict`, up to which non-finite number it was: NaN in the loss curve, inf in its summary."""
        diverged = data["status"] == "diverged"
        points = tuple(
            LogPoint(**{**p, "loss": _nan(p["loss"]), "grad_norm": _nan(p["grad_norm"])}) for p in data["points"]
        )
        summary = {k: math.inf if diverged and data[k] is None else data[k] for k in ("train_loss", "val_loss")}
        if data["diverged_at"] == 0:  # the small model did
            summary["grow_loss"] = math.inf
        return cls(**{**data, "points": points, "losses": tuple(_nan(x) for x in data["losses"]), **summary})


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite_or_none(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_or_none(v) for v in value]
    return value
