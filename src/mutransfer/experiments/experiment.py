"""What an experiment is: a name, where it was published, and a function that runs it in one of two sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZES = ("small", "paper")
"""Minutes on two CPU cores, with the same structure; or the published grid, for a GPU."""


@dataclass(frozen=True)
class Experiment:
    """`run(size, out)` writes a report into `out` and returns at least "exit_code" and "words"."""

    name: str
    about: str
    source: str
    run: Callable[[str, Path], dict[str, Any]]
