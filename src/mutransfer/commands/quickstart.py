"""`mutransfer quickstart`: the main job, end to end, on text that every machine has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import arg


@dataclass(frozen=True)
class Quickstart:
    """Coordinate check and learning-rate transfer, standard parametrization beside μP, in at most five minutes on two cores.

    Trains small GPTs on the Python language reference that every CPython ships: no network, no GPU, no questions.
    Finished runs are kept: the same command continues after an interruption, and is fast the second time.

    Example: mutransfer quickstart --out quickstart
    """

    summary: ClassVar[str] = "coordinate check + learning-rate transfer, SP beside μP, in minutes"

    out: Annotated[Path, arg(metavar="FOLDER")] = Path("quickstart")
    """Report (report.html), picture and runs go there."""
    json: bool = False
    """Print the outcome as JSON."""

    def run(self) -> int:
        """Run it, print the verdict in words. Returns 0 when μP holds, 1 when it does not, 3 when that cannot be told."""
        from mutransfer.commands.output import show_json
        from mutransfer.quickstart import quickstart

        outcome = quickstart(self.out)
        if self.json:
            show_json(outcome.to_dict())
        else:
            print(outcome.words())
        return outcome.exit_code
