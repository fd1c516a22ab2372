"""What an experiment is: a name, where it was published, and a function that runs it in one of two sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mutransfer.sweep import Options

SIZES = ("small", "paper")
"""Minutes on two CPU cores, with the same structure; or the published grid, for a GPU."""


@dataclass(frozen=True)
class Experiment:
    """`run(size, out, options)` writes a report into `out` and returns at least "exit_code" and "words".

    `options` say how the runs of a sweep are made; an experiment without a sweep has no use for them.
    """

    name: str
    about: str
    source: str
    run: Callable[[str, Path, Options], dict[str, Any]]
