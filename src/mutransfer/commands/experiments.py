"""`mutransfer experiments`: the published experiments that can be run, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from mutransfer.errors import InputError


@dataclass(frozen=True)
class Experiments:
    """The published experiments, in a small size (minutes on two cores) and in the size of the paper.

    Examples:
      mutransfer experiments
      mutransfer experiments coord-ladder --size small --out ladder
      mutransfer experiments nanogpt-lr --size small --out nanogpt --yes
    """

    summary: ClassVar[str] = "list the published experiments, or run one"

    name: Annotated[Positional[str], arg(metavar="NAME")] = "list"
    """An experiment, or list."""
    size: Annotated[str, arg(metavar="SIZE")] = "small"
    """small or paper."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Report, pictures and rows go there; needed to run one. Runs found there are kept: the same command continues."""
    executor: Annotated[str, arg(metavar="KIND")] = "local"
    """How runs of a sweep are made: local, ray or slurm."""
    workers: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Runs at once; by default one per core."""
    limit: Annotated[float, arg(metavar="MINUTES")] = 10.0
    """Ask before starting a sweep that takes longer."""
    yes: bool = False
    """Do not ask."""
    json: bool = False
    """Print the list, or the outcome, as JSON."""

    def run(self) -> int:
        """List or run. Returns the experiment's exit code."""
        from mutransfer.commands.builtin import close_name
        from mutransfer.commands.output import require_folder, show_json
        from mutransfer.experiments import EXPERIMENTS, SIZES

        if self.size not in SIZES:
            raise InputError(f"--size {self.size!r}: write {' or '.join(SIZES)}")
        if self.name == "list":
            if self.json:
                show_json([{"name": e.name, "source": e.source, "about": e.about} for e in EXPERIMENTS.values()])
            else:
                for experiment in EXPERIMENTS.values():
                    print(f"{experiment.name:18} {experiment.about} ({experiment.source})")
            return 0
        if self.name not in EXPERIMENTS:
            raise InputError(f"there is no experiment {self.name!r}: {close_name(self.name, tuple(EXPERIMENTS))}")
        if self.out is None:
            raise InputError(f"experiment {self.name!r} writes a report: give --out FOLDER")
        from mutransfer.sweep import Options

        outcome = EXPERIMENTS[self.name].run(
            self.size,
            require_folder(self.out),
            Options(self.executor, self.workers, limit=60 * self.limit, yes=self.yes),
        )
        if self.json:
            show_json(outcome)
        else:
            print(outcome["words"])
        return int(outcome["exit_code"])
