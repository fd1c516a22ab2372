"""`mutransfer verdict`: do the best hyperparameters transfer in this table of runs, and what does it cost if not?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from mutransfer.verdict import Verdict as Found

EXIT = {"HOLDS": 0, "DRIFTS": 1, "INCONCLUSIVE": 3}
WORST = ("DRIFTS", "INCONCLUSIVE", "HOLDS")  # the exit code of several groups is that of the first of these among them


@dataclass(frozen=True)
class Verdict:
    """Do the best hyperparameters transfer in this table of runs? Exit code 0 yes, 1 no, 3 cannot tell; with --by, the worst group's.

    Examples:
      mutransfer verdict runs.csv --size n_embd --loss val/loss
      mutransfer verdict sweeps/shakespeare --by recipe --figure transfer.png
    """

    summary: ClassVar[str] = "do the best hyperparameters transfer in this table of runs, and what does it cost if not?"

    table: Annotated[Positional[Path], arg(metavar="FILE")]
    """A table with one row per run (CSV, TSV, JSON, JSON lines, parquet), or the folder of a sweep."""
    size: Annotated[str | None, arg(metavar="COLUMN", help_behavior_hint="")] = None
    """The column of the size; by default the first known one that varies: width, n_embd, d_model, depth, …"""
    lr: Annotated[str | None, arg(metavar="COLUMN", help_behavior_hint="")] = None
    """The column of the hyperparameter that is to transfer; by default the learning rate: lr, learning_rate, …"""
    loss: Annotated[str | None, arg(metavar="COLUMN", help_behavior_hint="")] = None
    """The column of the loss; by default loss, train_loss, val_loss, …; nan or nothing where a run diverged."""
    seed: Annotated[str | None, arg(metavar="COLUMN", help_behavior_hint="")] = None
    """The column of the seed; by default seed, if there is one."""
    by: Annotated[str | None, arg(metavar="COLUMN", help_behavior_hint="")] = None
    """One verdict per value of this column, such as recipe."""
    where: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """Only the rows with these values, such as recipe=mup depth=2."""
    level: Annotated[float, arg(metavar="FLOAT")] = 0.9
    """Of all intervals."""
    tolerance: Annotated[float, arg(metavar="FLOAT")] = 0.01
    """The cost of the small size's LR that is acceptable at the larger ones, as a share of the loss."""
    figure: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Draw loss against LR per size there: PNG, SVG or PDF."""
    json: bool = False
    """Print the verdict as JSON."""

    def run(self) -> int:
        """Print the verdict in words (or JSON) and draw it. Returns the exit code of the worst group."""
        from mutransfer.commands.output import require_file, show_json
        from mutransfer.commands.user_code import assignments
        from mutransfer.verdict import transfer_verdict, transfer_verdicts
        from mutransfer.verdict.figure import figure_format, save_curves

        if self.figure is not None:
            require_file(self.figure, "--figure")
            figure_format(self.figure)
        options: dict[str, Any] = dict(
            size=self.size, lr=self.lr, loss=self.loss, seed=self.seed, where=assignments(self.where, "--where", "NAME=VALUE, such as recipe=mup"),
            level=self.level, tolerance=self.tolerance,
        )  # fmt: skip
        verdicts: dict[str, Found] = (
            {"": transfer_verdict(self.table, **options)}
            if self.by is None
            else transfer_verdicts(self.table, self.by, **options)
        )
        if self.figure is not None:
            save_curves(verdicts, self.figure)
        if self.json:
            show_json(verdicts[""].to_dict() if self.by is None else {k: v.to_dict() for k, v in verdicts.items()})
        else:
            for name, verdict in verdicts.items():
                print((f"{self.by} {name}: " if name else "") + verdict.words())
            if self.figure is not None:
                print(f"figure: {self.figure}")
        return EXIT[next(status for status in WORST if any(v.status == status for v in verdicts.values()))]
