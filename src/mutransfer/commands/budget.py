"""`mutransfer budget`: the best size and tokens of a budget, what a loss costs, and which runs to make next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from mutransfer.errors import InputError


@dataclass(frozen=True)
class Budget:
    """What does a budget buy? Size and tokens of the lowest loss, what a loss costs, which runs to make next. Exit code 3 where a loss may not be reachable.

    Examples:
      mutransfer budget runs.csv --compute 1e22 1e23 --figure frontier.png
      mutransfer budget runs.csv --target-loss 2.1
      mutransfer budget runs.csv --narrow params=70B tokens=1.4T --spend 1e21
    """

    summary: ClassVar[str] = (
        "size and tokens of the lowest loss for a budget, what a loss costs, which runs to make next"
    )

    table: Annotated[Positional[Path], arg(metavar="FILE")]
    """A table with one row per run (CSV, TSV, JSON, JSON lines, parquet), or the folder of a sweep."""
    compute: Annotated[tuple[str, ...], arg(metavar="FLOPS ...", help_behavior_hint="")] = ()
    """Budgets in FLOPs: the compute-optimal size, tokens and loss of each."""
    target_loss: Annotated[float | None, arg(metavar="LOSS", help_behavior_hint="")] = None
    """The size, tokens and compute that reach this loss."""
    narrow: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """A target such as params=70B tokens=1.4T: which runs would narrow the interval there most? Needs --spend or --runs."""
    spend: Annotated[str | None, arg(metavar="FLOPS", help_behavior_hint="")] = None
    """What those runs may cost together; where FLOPs are not known, in runs of the largest fitted size."""
    runs: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """How many runs at most; without --spend none larger than the largest fitted."""
    each: Annotated[str | None, arg(metavar="FLOPS", help_behavior_hint="")] = None
    """What one of them may cost."""
    cost_exponent: Annotated[float | None, arg(metavar="P", help_behavior_hint="")] = None
    """A run costs size^P, counted in runs of the largest fitted size; by default FLOPs where they are known, else P = 2."""
    unique_tokens: Annotated[str | None, arg(metavar="TOKENS", help_behavior_hint="")] = None
    """How many distinct tokens there are, where they are limited."""
    isoflop: bool = False
    """Insist on isoFLOP curves (without it they are shown where the table has them)."""
    law: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """power, chinchilla, kaplan, data-constrained, …; by default what varies in the table decides."""
    size: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """The size variable: params, non_embedding or flops_per_token; by default the one that predicts best inside the table."""
    columns: Annotated[tuple[str, ...], arg(metavar="NAME=COLUMN ...", help_behavior_hint="")] = ()
    """Which column is which variable, such as params=n_total compute=flop; by default guessed by their names, and said."""
    loss: Annotated[str | None, arg(metavar="COLUMN", help_behavior_hint="")] = None
    """The column of the loss."""
    loss_unit: Annotated[str | None, arg(metavar="UNIT", help_behavior_hint="")] = None
    """nats, bits, bits_per_byte or perplexity."""
    units: Annotated[tuple[str, ...], arg(metavar="NAME=UNIT ...", help_behavior_hint="")] = ()
    """Units of variables, such as params=M compute=GFLOPs, where the columns' names do not say them."""
    where: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """Only the rows with these values, such as recipe=mup."""
    level: Annotated[float, arg(metavar="FLOAT")] = 0.9
    """Of all intervals."""
    figure: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Draw it there: PNG, SVG or PDF."""
    json: bool = False
    """Print everything as JSON."""

    def run(self) -> int:
        """Print what was asked in words (or JSON) and draw it. Returns 3 where a loss is not reachable, or perhaps not; else 0."""
        from mutransfer.commands.output import require_file, show_json
        from mutransfer.commands.predict import table_options
        from mutransfer.predict.budget import plan_budget
        from mutransfer.predict.budget_figure import save_budget
        from mutransfer.predict.reading import read_points
        from mutransfer.verdict.figure import figure_format

        if self.figure is not None:
            require_file(self.figure, "--figure")
            figure_format(self.figure)
        numbers: dict[str, Any] = {
            "computes": [v for text in self.compute for v in _numbers("--compute", text)],
            "spend": _number("--spend", self.spend), "each": _number("--each", self.each),
            "unique_tokens": _number("--unique-tokens", self.unique_tokens),
        }  # fmt: skip
        narrow = self._target()
        reading = table_options(self.columns, self.units, self.where)
        points = read_points(self.table, loss=self.loss, loss_unit=self.loss_unit, **reading)
        found = plan_budget(
            points, law=self.law, size=self.size, loss=self.target_loss, narrow=narrow, runs=self.runs, exponent=self.cost_exponent,
            curves=True if self.isoflop else None, level=self.level, **numbers,
        )  # fmt: skip
        if self.figure is not None:
            save_budget(found, self.figure)
        if self.json:
            show_json(found.to_dict())
        else:
            print(found.words())
            if self.figure is not None:
                print(f"figure: {self.figure}")
        return found.exit_code

    def _target(self) -> dict[str, float] | None:
        from mutransfer.predict.asked import parse_targets

        if not self.narrow:
            if self.spend is not None or self.runs is not None or self.each is not None:
                raise InputError("--spend, --runs and --each are for --narrow: write the target too, such as --narrow params=70B tokens=1.4T")  # fmt: skip
            return None
        try:
            targets = parse_targets(self.narrow)
        except InputError as error:
            raise InputError(str(error).replace("--target", "--narrow")) from None
        if len(targets) != 1:
            raise InputError(f"--narrow {' '.join(self.narrow)!r}: write one target, one value per name")
        if self.spend is None and self.runs is None:
            raise InputError("--narrow needs a budget: write --spend 1e20 (what the runs may cost) or --runs 3 (how many)")  # fmt: skip
        return targets[0]


def _numbers(option: str, text: str) -> list[float]:
    """1e21,3e21 or 70B."""
    from mutransfer.predict.units import quantity

    found = []
    for part in text.split(","):
        try:
            value = quantity(part.strip(), option)[0]
        except InputError:
            value = None
        if value is None or not 0 < value < 1e60:
            raise InputError(f"{option} {text!r}: write numbers above 0, such as 1e21")
        found.append(value)
    return found


def _number(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    found = _numbers(option, text)
    if len(found) != 1:
        raise InputError(f"{option} {text!r}: write one number, such as 1e21")
    return found[0]
