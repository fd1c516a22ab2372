"""What growing needs of a checkpoint, whatever its format."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mutransfer.growth.files.growing import Growing
from mutransfer.plans import Plan
from mutransfer.sample import Call, calls


class Checkpoint(abc.ABC):
    """A checkpoint and the model that it is to become. Reading is lazy: no tensor is in memory before it is used.

    `small` and `big` are on the meta device; `plan` goes from one to the other.
    """

    path: Path
    small: nn.Module
    big: nn.Module
    plan: Plan
    weights: Mapping[str, Tensor]
    """By the small model's names."""
    notes: tuple[str, ...] = ()
    """What is to be said of it."""

    @abc.abstractmethod
    def words(self) -> str:
        """What it is, in a few words."""

    @abc.abstractmethod
    def models(self) -> tuple[nn.Module, nn.Module]:
        """Small and big on the CPU, in float32 or better, with any weights."""

    @abc.abstractmethod
    def content(self, growing: Growing, record: dict[str, Any]) -> dict[str, Any]:
        """File name → what goes into it, large tensors as `Later`. `record` says where it comes from."""

    @abc.abstractmethod
    def write(self, folder: Path, content: dict[str, Any]) -> None:
        """Fill an empty folder with `content`."""

    def provenance(self) -> dict[str, Any]:
        """Plain JSON: what was grown."""
        return {"source": str(self.path), "what": self.words()}

    def inputs(self) -> Iterable[Call]:
        """Arguments of the model's forward to compare outputs on; guessed where nothing is known of the data."""
        return calls(self.small)

    def batch(self) -> tuple[Any, Callable[[nn.Module, Any], Any], str] | None:
        """A batch that the model was trained on, its loss(model, batch), and words for it; None where the data is not known."""
        return None

    def call(self) -> Call | None:
        """Arguments of forward to trace the models on; None: guessed ones."""
        return None

    def next_steps(self, out: Path) -> str:
        """What the user does with the grown checkpoint, in a line."""
        return ""
