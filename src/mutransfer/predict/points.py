"""Runs as a law sees them: positive numbers, one row per run or per step of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

Array = np.ndarray

VARIABLES = (
    "params", "non_embedding", "flops_per_token", "width", "depth", "tokens", "unique_tokens", "compute", "batch", "steps", "lr",
)  # fmt: skip
"""Canonical names: total and non-embedding parameters, FLOPs per token (attention included), width and depth, training tokens
(with repetition) and distinct ones, FLOPs of the whole run, batch, updates, learning rate. All in units of one."""


@dataclass(frozen=True)
class Points:
    """What is fitted. All arrays have shape (n,), float64, finite and above 0, in an order that does not depend on the table's.

    `variables`: by canonical name; `loss`: in nats unless `loss_unit` says otherwise; `run`: rows of one run share a name and
    are correlated; `seed`: "" where there is none; `columns`: which column each variable came from ("" for a derived one).
    """

    variables: Mapping[str, Array]
    loss: Array
    run: tuple[str, ...]
    seed: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    loss_unit: str = "nats"
    notes: tuple[str, ...] = ()
    transfer: str | None = None
    """What the verdict says of the sweep that the runs come from: HOLDS, DRIFTS, INCONCLUSIVE; None where it was no sweep."""
    constants: Mapping[str, float] = field(default_factory=dict)
    """Variables with one value in every row, and context, vocab, epochs where the table has them: no law can use them, plans can."""

    def __len__(self) -> int:
        return len(self.loss)

    def select(self, mask: Array) -> Points:
        """The rows for which `mask` (n,) is true."""
        index = np.flatnonzero(mask)
        return replace(
            self,
            variables={name: values[index] for name, values in self.variables.items()},
            loss=self.loss[index],
            run=tuple(self.run[i] for i in index),
            seed=tuple(self.seed[i] for i in index),
        )


def completed(target: Mapping[str, float]) -> dict[str, float]:
    """A target with what follows from C = 6·N·D (Kaplan et al. 2001.08361, eq. 2.2): the third of params, tokens and compute."""
    have = dict(target)
    if "compute" in have and "params" in have:
        have.setdefault("tokens", have["compute"] / 6 / have["params"])
    if "compute" in have and "tokens" in have:
        have.setdefault("params", have["compute"] / 6 / have["tokens"])
    if "params" in have and "tokens" in have:
        have.setdefault("compute", 6 * have["params"] * have["tokens"])
    return have
