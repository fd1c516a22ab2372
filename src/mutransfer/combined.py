"""Several optimizers behind one torch optimizer: Muon on hidden matrices, AdamW on the rest, one interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer


class CombinedOptimizer(Optimizer):
    """Steps each part in turn; groups, state, state dict, schedulers and hooks are those of one ordinary optimizer.

    The parts and this object share the very same group dicts and state, so a scheduler that writes `group["lr"]`, or a
    loaded state dict, reaches the part that owns the group.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__([dict(group) for group in groups], {})
        self.param_groups = groups
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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, then the parts are pointed at the loaded groups and state."""
        super().load_state_dict(state_dict)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only at construction: a later group would belong to no part."""
        if hasattr(self, "state") and self.state:
            raise RuntimeError("a combined optimizer cannot take another param group; build it from a new plan")
        super().add_param_group(param_group)
