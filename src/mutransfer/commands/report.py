"""`mutransfer report`: a sweep as one self-contained HTML page, and its figures as files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from mutransfer.errors import InputError

if TYPE_CHECKING:
    from mutransfer.report.runs import Layout


@dataclass(frozen=True)
class Report:
    """A sweep as one HTML page that needs nothing else: verdicts, pictures, tables, cost, provenance.

    Examples:
      mutransfer report runs
      mutransfer report runs --metric val_loss --figures figures --format svg
    """

    summary: ClassVar[str] = "a sweep as one HTML page, and its figures as files"

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """The folder of a sweep; it may be under way."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The page; by default report.html in that folder."""
    figures: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Write every picture there as a file of its own."""
    format: Annotated[str, arg(metavar="KIND")] = "png"
    """Of those files: png, svg or pdf."""
    metric: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """The number to judge by; by default train_loss, or the loss that your own function returned."""
    by: Annotated[tuple[str, ...], arg(metavar="FIELD ...", help_behavior_hint="")] = ()
    """The fields whose values stand side by side; by default all that vary, but for sizes, learning rate and seed."""
    check: bool = False
    """Make a small coordinate check of every parametrization at the sweep's sizes now, and keep it with the runs."""
    json: bool = False
    """Print the verdicts and the cost as JSON."""

    def run(self) -> int:
        """Write the page and the figures. Returns 0."""
        from mutransfer.commands.output import require_file, require_folder, show_json
        from mutransfer.files import write_whole
        from mutransfer.report.figures import FORMATS, Drawing
        from mutransfer.report.html import write_page
        from mutransfer.report.runs import Layout, SweepRuns
        from mutransfer.report.sweep import SweepReport

        page = require_file(self.out or self.folder / "report.html", "--out")
        if self.format not in FORMATS:
            raise InputError(f"--format {self.format!r}: write one of {', '.join(FORMATS)}")
        if self.figures is not None:
            require_folder(self.figures)
        layout = Layout.of(SweepRuns.read(self.folder), self.metric, self.by)
        if self.check:
            self._check(layout)
            layout = Layout.of(SweepRuns.read(self.folder), self.metric, self.by)
        report = SweepReport(layout, self._plans(layout))
        drawn: dict[tuple[str, str], bytes] = {}

        def draw(drawing: Drawing, format: str = "png") -> bytes:
            if (drawing.name, format) not in drawn:
                drawn[drawing.name, format] = drawing.draw(format)
            return drawn[drawing.name, format]

        sections = report.sections(draw)
        name = self.folder.absolute().name
        write_page(page, f"Sweep: {name}", sections, report.provenance())
        files = []
        if self.figures is not None:
            for drawing in report.drawings():
                files.append(write_whole(self.figures / f"{drawing.name}.{self.format}", draw(drawing, self.format)))
        if self.json:
            show_json({**report.to_dict(), "report": page, "figures": files})
            return 0
        for one in report.judged:
            over = f" {one.comparison.where}" if len(report.judged) > 1 else ""
            for label in one.comparison.groups:
                if label in one.verdicts:
                    print(f"{label}{over}: {one.verdicts[label].status}: {one.verdicts[label].reasons[0]}")
                else:
                    print(f"{label}{over}: no verdict: {one.refused[label]}")
        print(f"report: {page}")
        if files:
            print(f"figures: {', '.join(str(file) for file in files)}")
        return 0

    def _plans(self, layout: Layout) -> dict[str, str]:
        """The printed plans, from the store's notes or made now and kept there: making one takes longer than all the rest."""
        from mutransfer.report.planned import plan_key, plan_table, planned
        from mutransfer.sweep.store import Store

        known = {
            name.removeprefix("plan:"): text for name, text in layout.sweep.notes.items() if name.startswith("plan:")
        }
        missing = {plan_key(run): run for run in planned(layout).values() if plan_key(run) not in known}
        made = {key: plan_table(run) for key, run in missing.items()}
        if made:
            with Store(self.folder, create=False) as store:
                for key, text in made.items():
                    store.note(f"plan:{key}", text)
        return {**known, **made}

    def _check(self, layout: Layout) -> None:
        from mutransfer.report.planned import check_recipes
        from mutransfer.sweep.store import Store

        found: dict[str, Any] = check_recipes(layout, lambda text: print(text, file=sys.stderr, flush=True))
        with Store(self.folder, create=False) as store:
            for label, note in found.items():
                store.note(f"check:{label}", note)
