"""`mutransfer predict`: what loss will the big model reach, by a law fitted to a table of smaller runs?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from mutransfer.errors import InputError

if TYPE_CHECKING:
    from mutransfer.predict.outcome import Outcome

WORST = (1, 3, 0)  # the exit code of several groups is that of the first of these among them


@dataclass(frozen=True)
class Predict:
    """What loss will the big model reach? A law is fitted to a table of smaller runs and judged on larger ones that were hidden from it.

    Exit code 0; 1 where more held-out losses lie outside their intervals than chance allows; 3 where nothing can be judged: the verdict of the sweep
    is not HOLDS, or the loss does not fall with size. With --by, the worst group's.

    Examples:
      mutransfer predict runs.csv --hold-out largest:3 --target params=1.4e9
      mutransfer predict runs.csv --target params=7B,70B tokens=1.4T --figure loss.png --page loss.html
      mutransfer predict sweeps/shakespeare --by recipe --target width=4096
      mutransfer predict --law list
    """

    summary: ClassVar[str] = "what loss will the big model reach, by a law fitted to a table of smaller runs?"

    table: Annotated[Positional[Path | None], arg(metavar="FILE")] = None
    """A table with one row per run (CSV, TSV, JSON, JSON lines, parquet), or the folder of a sweep."""
    hold_out: Annotated[str | None, arg(metavar="SPEC", help_behavior_hint="")] = None
    """Hide these runs, predict them, reveal them: largest:3, largest:20%, or a comparison such as 'params>1e9'."""
    target: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """Predict a run of this size, such as params=1.4e9 tokens=30B; several values (params=1B,7B) make several targets."""
    law: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """power, chinchilla, kaplan, data-constrained, broken, additive, by default what varies in the table decides; list: all of them."""
    over: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """The law's variables, the size first, such as params tokens; by default they are chosen."""
    size: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """The size variables to choose from by backtest, such as params non_embedding; by default all that the targets give."""
    columns: Annotated[tuple[str, ...], arg(metavar="NAME=COLUMN ...", help_behavior_hint="")] = ()
    """Which column is which variable, such as params=n_total tokens=seen; by default guessed by their names, and said."""
    units: Annotated[tuple[str, ...], arg(metavar="NAME=UNIT ...", help_behavior_hint="")] = ()
    """Units of columns, such as params=M compute=PF-days, where their names do not say them. Targets are in units of one."""
    loss: Annotated[str | None, arg(metavar="COLUMN", help_behavior_hint="")] = None
    """The column of the loss; by default loss, train_loss, val_loss, …"""
    loss_unit: Annotated[str | None, arg(metavar="UNIT", help_behavior_hint="")] = None
    """nats, bits, bits_per_byte or perplexity; by default what the column's name says, else nats."""
    by: Annotated[str | None, arg(metavar="COLUMN", help_behavior_hint="")] = None
    """One law per value of this column, such as recipe."""
    where: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """Only the rows with these values, such as recipe=mup."""
    at: Annotated[str, arg(metavar="LR")] = "best"
    """Of a sweep of LRs, which runs: best (each size's own best LR), shared (the smallest size's best one), or an LR."""
    level: Annotated[float, arg(metavar="FLOAT")] = 0.9
    """Of all intervals."""
    interval: Annotated[str, arg(metavar="KIND")] = "profile"
    """profile (of the likelihood) or bootstrap (over runs and seeds)."""
    figure: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Draw runs, law, band, what was held out and predictions there: PNG, SVG or PDF."""
    page: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write a page with everything there: one HTML file that needs nothing else."""
    json: bool = False
    """Print everything as JSON, which mutransfer evaluate --predicted reads."""

    def run(self) -> int:
        """Print law, predictions, held-out runs and leave-outs in words (or JSON); draw and write them. Returns the exit code."""
        from mutransfer.commands.output import require_file, show_json
        from mutransfer.predict.asked import parse_targets
        from mutransfer.verdict.figure import figure_format

        if self.law == "list":
            return self._list()
        if self.table is None:
            raise InputError("predict also needs FILE: a table of runs, or the folder of a sweep (see: mutransfer predict --help)")  # fmt: skip
        if self.figure is not None:
            require_file(self.figure, "--figure")
            figure_format(self.figure)
        if self.page is not None:
            require_file(self.page, "--page")
            if self.page.suffix.lower() not in (".html", ".htm"):
                raise InputError(f"--page {str(self.page)!r}: the name must end in .html")
        reading = table_options(self.columns, self.units, self.where)
        where = reading.pop("where")
        options: dict[str, Any] = dict(
            law=self.law, over=self.over or None, size=self.size or None, hold_out=self.hold_out, targets=parse_targets(self.target),
            level=self.level, interval=self.interval, loss=self.loss, loss_unit=self.loss_unit, at=self._at(), **reading,
        )  # fmt: skip
        outcomes = self._outcomes(where, options)
        if self.figure is not None or self.page is not None:
            self._write(outcomes)
        if self.json:
            show_json(outcomes[""].to_dict() if self.by is None else {k: v.to_dict() for k, v in outcomes.items()})
        else:
            print("\n\n".join((f"{self.by} {name}: " if name else "") + one.words() for name, one in outcomes.items()))
            for what, path in (("figure", self.figure), ("page", self.page)):
                if path is not None:
                    print(f"{what}: {path}")
        return next(code for code in WORST if any(one.exit_code == code for one in outcomes.values()))

    def _outcomes(self, where: dict[str, str], options: dict[str, Any]) -> dict[str, Outcome]:
        """One per value of the column --by, by value; else one without a name."""
        from mutransfer.predict.outcome import foretell
        from mutransfer.rows.cells import filtered, values
        from mutransfer.rows.columns import choose, listed
        from mutransfer.rows.read import read

        if self.by is None:
            return {"": foretell(self.table, where=where or None, **options)}
        rows = read(self.table)
        names = list(dict.fromkeys(name for row in rows for name in row))
        column = choose("by", self.by, (), names)[0]
        found = sorted(values(filtered(rows, names, where), column), key=_order)
        if not found:
            raise InputError(f"by={self.by!r}: the column is empty")
        made = {}
        for value in found:
            try:
                made[value] = foretell(self.table, where={**where, column: value}, **options)
            except InputError as error:
                raise InputError(f"{column}={value} (of {listed(found)}): {error}") from None
        return made

    def _write(self, outcomes: dict[str, Outcome]) -> None:
        from mutransfer.commands.output import command_line
        from mutransfer.predict.figure import draw_prediction, save_prediction

        if self.figure is not None:
            save_prediction(outcomes, self.figure)
        if self.page is not None:
            from mutransfer.report import Provenance, prediction_section, write_page

            picture = draw_prediction(outcomes)
            sections = [
                prediction_section(one, f"{self.by} {name}: what will it reach?" if name else "What will the big model reach?", picture if i == 0 else None)
                for i, (name, one) in enumerate(outcomes.items())
            ]  # fmt: skip
            assert self.table is not None
            write_page(self.page, f"Loss prediction: {self.table.name}", sections, Provenance.now(command_line(), data=self.table.name))  # fmt: skip

    def _at(self) -> str | float:
        from mutransfer.rows.cells import number

        if self.at in ("best", "shared"):
            return self.at
        try:
            value = number(self.at)
        except ValueError:
            value = None
        if value is None or not 0 < value < float("inf"):
            raise InputError(f"--at {self.at!r}: write best, shared or a learning rate such as 2^-8")
        return value

    def _list(self) -> int:
        from mutransfer.commands.output import show_json
        from mutransfer.predict.laws import LAWS

        if self.json:
            show_json([{"law": name, "formula": one.formula, "needs": one.needs, "source": one.source} for name, one in LAWS.items()])  # fmt: skip
            return 0
        for name, one in LAWS.items():
            print(f"{name}: {one.formula}\n    needs {one.needs}\n    source: {one.source}")
        return 0


def table_options(columns: Sequence[str], units: Sequence[str], where: Sequence[str]) -> dict[str, Any]:
    """The options that say how a table is read, as `read_points` takes them. Raises InputError."""
    from mutransfer.commands.user_code import assignments

    given = (("columns", columns, "params=n_total"), ("units", units, "params=M"), ("where", where, "recipe=mup"))
    return {name: assignments(words, f"--{name}", f"NAME=VALUE, such as {example}") for name, words, example in given}


def _order(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
