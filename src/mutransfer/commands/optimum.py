"""`mutransfer optimum`: how the best learning rate (or batch) goes with size and tokens, and what to use at the target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from mutransfer.errors import InputError


@dataclass(frozen=True)
class Optimum:
    """How do the best LR and batch go with size and tokens? lr* = k·N^a·D^b, fitted to sweeps or to a table of optima; what to use at the target.

    Examples:
      mutransfer optimum runs.csv --target params=7B tokens=140B
      mutransfer optimum optima.csv --of batch --on tokens
      mutransfer optimum sweeps/shakespeare --where recipe=sp --on width --target width=1024
    """

    summary: ClassVar[str] = "how the best learning rate or batch goes with size and tokens: lr* = k·N^a·D^b"

    table: Annotated[Positional[Path], arg(metavar="FILE")]
    """Runs at several learning rates per size, or one row per size with its best one; or the folder of a sweep."""
    of: Annotated[str, arg(metavar="NAME")] = "lr"
    """lr or batch."""
    on: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """The law's variables, such as params tokens; by default what varies."""
    target: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """What to use there: params=7B tokens=140B; several values make several targets."""
    hold_out: Annotated[str | None, arg(metavar="SPEC", help_behavior_hint="")] = None
    """Predict the largest sizes from the others: largest:2; by default a few."""
    columns: Annotated[tuple[str, ...], arg(metavar="NAME=COLUMN ...", help_behavior_hint="")] = ()
    """Which column is which variable, such as params=n_total lr=best_lr."""
    units: Annotated[tuple[str, ...], arg(metavar="NAME=UNIT ...", help_behavior_hint="")] = ()
    """Units of columns, such as params=M, where their names do not say them."""
    loss: Annotated[str | None, arg(metavar="COLUMN", help_behavior_hint="")] = None
    """The column of the loss, where the table holds runs."""
    where: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """Only the rows with these values, such as recipe=sp."""
    level: Annotated[float, arg(metavar="FLOAT")] = 0.9
    """Of all intervals."""
    json: bool = False
    """Print law and predictions as JSON."""

    def run(self) -> int:
        """Print the law in words, after what it says of each target. Returns 0."""
        from mutransfer.commands.output import show_json
        from mutransfer.commands.predict import table_options
        from mutransfer.predict.asked import parse_targets
        from mutransfer.predict.optimum import fit_optimum

        if self.of not in ("lr", "batch"):
            raise InputError(f"--of {self.of!r}: write lr or batch")
        targets = parse_targets(self.target)
        options = table_options(self.columns, self.units, self.where)
        law = fit_optimum(
            self.table, self.of, self.on or None, level=self.level, hold_out=self.hold_out, loss=self.loss, **options
        )
        if self.json:
            predicted = [
                {"at": at, "value": p.value, "low": p.low, "high": p.high, "level": self.level}
                for at, p in ((at, law.predict(**at)) for at in targets)
            ]
            show_json({"law": law.to_dict(), "predictions": predicted})
        else:
            for at in targets[:-1]:
                print(law.words(**at).splitlines()[0])
            print(law.words(**(targets[-1] if targets else {})))
        return 0
