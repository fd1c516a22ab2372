"""Several optimizers behind one torch optimizer: Muon on hidden matrices, AdamW on the rest, one interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from mutransfer.errors import InputError


class CombinedOptimizer(Optimizer):
    """Steps each part in turn; groups, state, state dict, schedulers and hooks are those of one ordinary optimizer.

    The parts and this object share the very same group dicts and state, so a scheduler that writes `group["lr"]`, or a
    loaded state dict, reaches the part that owns the group.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        groups = [group for part in parts for group in part.param_groups]
        super().__init__([dict(group) for group in groups], {})
        self.param_groups = groups
        self.parts = list(parts)
        self._share()

    def _share(self) -> None:
        start = 0
        for part in self.parts:
            part.state = self.state
            part.param_groups = self.param_groups[start : start + len(part.param_groups)]
            start += len(part.param_groups)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] # torch declares overloads
        """One step of every part; the closure, if any, is evaluated once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def train(self) -> None:
        """Put parts that average their iterates (schedule-free) on the point where gradients are taken."""
        self._switch("train")

    def eval(self) -> None:
        """Put parts that average their iterates (schedule-free) on the average, for validation and checkpoints."""
        self._switch("eval")

    def _switch(self, mode: str) -> None:
        for part in self.parts:
            if callable(switch := getattr(part, mode, None)):
                switch()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles take the parts along."""
        return {**super().__getstate__(), "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch's (copying, loading a state dict), then the parts are pointed at the new groups and state."""
        super().__setstate__(state)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only at construction: a later group would belong to no part. Raises InputError."""
        if hasattr(self, "parts"):
            raise InputError(
                "a combined optimizer takes no further param group: build it from the plan of the whole model"
            )
        super().add_param_group(param_group)
