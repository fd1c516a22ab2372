"""`mutransfer curve`: what the loss of a run will be at a later step, or under another learning rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from mutransfer.errors import InputError

if TYPE_CHECKING:
    from mutransfer.predict.curve import CurveLaw, Revealed
    from mutransfer.predict.curve_figure import Drawn


@dataclass(frozen=True)
class Curve:
    """What will the loss of this run be at a later step, or under another schedule? Exit code 1 where revealed losses lie outside the interval.

    Examples:
      mutransfer curve history.csv --until 60% --to 24000 --figure curve.png
      mutransfer curve cosine.csv --schedule schedule=wsd steps=24000 lr=3e-4 warmup=2000
      mutransfer curve cosine.csv --schedule wsd.csv --law multi-power
    """

    summary: ClassVar[str] = "what will the loss of this run be at a later step, or under another schedule?"

    table: Annotated[Positional[Path], arg(metavar="FILE")]
    """A history with step, lr and loss (CSV, TSV, JSON, JSON lines, parquet), or the folder of a sweep. Several runs of one model share the law."""
    until: Annotated[str | None, arg(metavar="STEP|SHARE", help_behavior_hint="")] = None
    """The last step that is fitted, such as 12000 or 60%; by default all. Later losses of the table are revealed."""
    to: Annotated[int | None, arg(metavar="STEP", help_behavior_hint="")] = None
    """The step to predict; by default the last one whose LR is known."""
    run_name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """This run of the table only; by default all, which then must be of one model."""
    law: Annotated[str | None, arg(metavar="LAW", help_behavior_hint="")] = None
    """annealing, multi-power or power; by default annealing where the LR is known."""
    schedule: Annotated[tuple[str, ...], arg(metavar="FILE|NAME=VALUE ...", help_behavior_hint="")] = ()
    """Predict another run, with this schedule: a table with step and lr, or schedule=cosine steps=24000 lr=3e-4 warmup=2000 final_lr_ratio=0.1."""
    loss: Annotated[str | None, arg(metavar="COLUMN", help_behavior_hint="")] = None
    """The column of the loss; by default the most usual one that is logged often."""
    loss_unit: Annotated[str | None, arg(metavar="UNIT", help_behavior_hint="")] = None
    """nats, bits, bits_per_byte or perplexity; by default what the column's name says, else nats."""
    where: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """Only the rows with these values, such as width=256."""
    level: Annotated[float, arg(metavar="FLOAT")] = 0.9
    """Of all intervals."""
    figure: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Draw losses, prediction and band there: PNG, SVG or PDF."""
    json: bool = False
    """Print law, predictions and revealed errors as JSON."""

    def run(self) -> int:
        """Print the law and what it predicts, in words or JSON, and draw it. Returns 1 where revealed losses lie outside more than the level allows."""
        from mutransfer.commands.output import require_file, show_json
        from mutransfer.commands.user_code import assignments
        from mutransfer.predict import curve_words
        from mutransfer.predict.curve import fit_curve
        from mutransfer.predict.curve_figure import save_curve
        from mutransfer.verdict.figure import figure_format

        if self.figure is not None:
            require_file(self.figure, "--figure")
            figure_format(self.figure)
        if not 0.5 <= self.level <= 0.99:
            raise InputError(f"--level {self.level}: write a level between 0.5 and 0.99, such as 0.9")
        law = fit_curve(
            self.table, self.law, fit_until=self.until, run=self.run_name, loss=self.loss, loss_unit=self.loss_unit,
            where=assignments(self.where, "--where", "NAME=VALUE, such as width=256"),
        )  # fmt: skip
        drawn = self._targets(law)
        predictions = [
            law.predict(one.to, one.schedule, one.run, self.level) for one in drawn if self._is_ahead(law, one)
        ]
        revealed = [found for one in drawn if (found := self._reveal(law, one)) is not None]
        if self.figure is not None:
            save_curve(law, drawn, self.figure, self.level)
        if self.json:
            found = [self._known(one) for one in revealed]
            show_json({**law.to_dict(), "predictions": [p.to_dict() for p in predictions], "revealed": found})
        else:
            print(law.words())
            for one, prediction in zip((d for d in drawn if self._is_ahead(law, d)), predictions, strict=True):
                print(curve_words.predicted(law, prediction, one.name if one.schedule is not None else ""))
                said = curve_words.beyond(law, prediction)
                if said:
                    print(f"  warning: {said}")
            if not predictions:
                print("nothing to predict: all steps are fitted; give --until, --to or --schedule")
            for one in revealed:
                print(curve_words.shown(one))
            if self.figure is not None:
                print(f"figure: {self.figure}")
        return 0 if all(one.holds for one in revealed) else 1

    def _targets(self, law: CurveLaw) -> list[Drawn]:
        """What is predicted: the table's runs, or one under another schedule."""
        from mutransfer.commands.user_code import assignments
        from mutransfer.predict.curve_figure import Drawn
        from mutransfer.predict.curve_read import read_schedule
        from mutransfer.predict.schedules import of_config

        if not self.schedule:
            return [
                Drawn(one.name, None, one.name, one, law.check_step(self.to if self.to is not None else _end(law, one), one.schedule))
                for one in law.runs if not law.form.nodes or one.schedule is not None
            ]  # fmt: skip
        if len(self.schedule) == 1 and "=" not in self.schedule[0]:
            path, known = read_schedule(self.schedule[0])
            name = Path(self.schedule[0]).stem
        else:
            settings = assignments(self.schedule, "--schedule", "NAME=VALUE, such as schedule=cosine")
            path, known, name = of_config(settings), None, settings["schedule"]
        return [Drawn(name, path, None, known, law.check_step(self.to, path))]

    def _is_ahead(self, law: CurveLaw, one: Drawn) -> bool:
        return one.schedule is not None or one.to > law.until

    def _reveal(self, law: CurveLaw, one: Drawn) -> Revealed | None:
        if one.known is None:
            return None
        after = 0.0 if one.schedule is not None else law.until
        return law.reveal(one.known, one.schedule, after, one.to, self.level, one.run)

    def _known(self, one: Revealed) -> dict[str, Any]:
        return {
            "run": one.name, "step": one.step.tolist(), "loss": one.loss.tolist(), "predicted": one.band.centre.tolist(), "low": one.band.low.tolist(),
            "high": one.band.high.tolist(), "inside": one.inside, "tail": one.tail, "holds": one.holds,
        }  # fmt: skip


def _end(law: CurveLaw, run: Any) -> int:
    return len(run.schedule) if run.schedule is not None else int(max(one.step[-1] for one in law.runs))
