"""Labelled examples in rows, standardised by the training split, in an order that depends on the seed alone."""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mutransfer.data.order import epoch_rows, rank_rows, split
from mutransfer.data.text import sha256
from mutransfer.errors import InputError

_HELD_OUT = 0.2


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs of shape (rows, …) and class labels (rows,), split in train and validation.

    Inputs are kept as they came (uint8 images stay uint8) and standardised batch by batch with `mean` and `std`,
    which broadcast against one example and come from the training split alone.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    val_x: np.ndarray
    val_y: np.ndarray
    classes: int
    mean: np.ndarray
    std: np.ndarray
    name: str

    kind = "examples"

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that name the rows, their split and the number of classes."""
        digests = [
            f"{part.dtype}{part.shape}{sha256(part)}" for part in (self.train_x, self.train_y, self.val_x, self.val_y)
        ]
        return hashlib.sha256(f"{digests} {self.classes}".encode()).hexdigest()[:16]

    def batch(
        self, step: int, seed: int, batch: int, device: torch.device | str = "cpu", rank: int = 0, world: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Training batch of `step`: x float32 (batch / world, …), y int64 (batch / world,).

        Steps walk through one permutation per epoch, each a function of (seed, epoch), so every example is seen once
        per epoch whatever the batch size, and resuming needs only the step number.
        """
        mine = rank_rows(batch, rank, world)
        if step < 0:
            raise InputError(f"step={step!r} is negative: steps count from 0")
        rows = epoch_rows(len(self.train_y), seed, step * batch, (step + 1) * batch)[mine]
        return self._tensors(self.train_x[rows], self.train_y[rows], device)

    def val_batches(
        self, batch: int, n: int | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The first `n` batches of the validation split (all full ones when n is None), in a fixed order, equal shapes."""
        rank_rows(batch, 0, 1)
        if n is not None and n < 1:
            raise InputError(f"n={n!r} is not a positive number of validation batches")
        batch = min(batch, len(self.val_y))
        full = len(self.val_y) // batch
        count = full if n is None else min(n, full)
        starts = range(0, count * batch, batch)
        return (self._tensors(self.val_x[i : i + batch], self.val_y[i : i + batch], device) for i in starts)

    def _tensors(self, x: np.ndarray, y: np.ndarray, device: torch.device | str) -> tuple[Tensor, Tensor]:
        standard = (x.astype(np.float32) - self.mean) / self.std
        return torch.from_numpy(standard).to(device), torch.from_numpy(y.astype(np.int64)).to(device)


class TableData(Examples):
    """A table: inputs of shape (rows, features), each feature standardised."""

    kind = "table"

    @property
    def features(self) -> int:
        return self.train_x.shape[1]


def moments(x: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over `axes` as float32, with 1 for the deviation of a constant feature.

    Summed in float64 over slices of rows, so that a large uint8 array is never copied as a whole.
    """
    slices = [x[i : i + 8192] for i in range(0, len(x), 8192)]
    count = x.size / np.mean(slices[0], axis=axes, keepdims=True).size
    mean = sum(s.sum(axis=axes, keepdims=True, dtype=np.float64) for s in slices) / count
    variance = sum(((s - mean) ** 2).sum(axis=axes, keepdims=True) for s in slices) / count
    std = np.sqrt(variance)
    std[std < 1e-12 * np.maximum(np.abs(mean), 1)] = 1.0
    return np.asarray(mean[0], dtype=np.float32), np.asarray(std[0], dtype=np.float32)


def split_rows(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(train_x, train_y, val_x, val_y): one fifth of the rows held out, the same fifth always."""
    train, val = split(len(y), _HELD_OUT)
    return x[train], y[train], x[val], y[val]


def make_table(
    name: str, train_x: np.ndarray, train_y: np.ndarray, val_x: np.ndarray, val_y: np.ndarray, classes: int
) -> TableData:
    """A table from its two splits; mean and deviation of each feature come from the training split."""
    mean, std = moments(train_x, (0,))
    return TableData(train_x, train_y, val_x, val_y, classes, mean, std, name)


def load_digits_arrays() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: images (1797, 8, 8) float32 in 0 … 16 and labels (1797,) int64."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("data 'digits' needs scikit-learn: pip install 'mutransfer[sklearn]'") from None
    bunch = load_digits()
    return bunch.images.astype(np.float32), bunch.target.astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue] -- sklearn is untyped


def read_covertype(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Covertype's comma-separated rows (plain or .gz): 54 cartographic features float32, labels 1 … 7 made 0 … 6."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # numpy only warns about an empty file
            rows = np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)
    except (ValueError, OSError, EOFError, UserWarning) as error:
        raise InputError(f"{str(path)!r} is not Covertype's comma-separated table: {_first_line(error)}") from None
    if rows.shape[0] < 10 or rows.shape[1] != 55:
        raise InputError(
            f"{str(path)!r} has {rows.shape[0]} rows of {rows.shape[1]} columns: Covertype has 54 features and a label"
        )
    labels = rows[:, 54].astype(np.int64) - 1
    if labels.min() < 0 or labels.max() > 6:
        raise InputError(f"{str(path)!r} has labels outside 1 … 7 in its last column: it is not Covertype")
    return rows[:, :54].copy(), labels


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
