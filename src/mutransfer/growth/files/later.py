"""A tensor that is not there yet: its shape and type are known, its numbers come when they are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mutransfer.errors import InputError


@dataclass(frozen=True, eq=False)
class Later:
    """`make()` gives the tensor, of this shape and dtype, on the CPU. One object is one tensor: tied names share it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Later:
        """A tensor that is there already."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def data(self) -> memoryview:
        """The numbers as bytes, in the order of the axes. Raises InputError where `make` gave another shape or type."""
        made = self.make()
        if tuple(made.shape) != self.shape or made.dtype != self.dtype:
            raise InputError(
                f"a tensor became {tuple(made.shape)} {made.dtype} where {self.shape} {self.dtype} was planned"
            )
        if not made.numel():
            return memoryview(b"")
        flat = made.detach().cpu().contiguous().view(-1)
        return memoryview(flat.view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType] (an array is a buffer)
