"""`mutransfer report`: a sweep as one self-contained HTML page, and its figures as files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg


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
        from mutransfer.commands.output import require_file, show_json
        from mutransfer.report.write import write_report

        page = require_file(self.out or self.folder / "report.html", "--out")
        if self.figures is not None:
            require_file(self.figures / "picture", "--figures")
        written = write_report(
            self.folder, page, metric=self.metric, by=self.by, figures=self.figures, format=self.format, check=self.check,
            tell=lambda text: print(text, file=sys.stderr, flush=True),
        )  # fmt: skip
        report = written.report
        if self.json:
            show_json({**report.to_dict(), "report": page, "figures": written.figures})
            return 0
        for one in report.judged:
            over = f" {one.comparison.where}" if len(report.judged) > 1 else ""
            for label in one.comparison.groups:
                if label in one.verdicts:
                    print(f"{label}{over}: {one.verdicts[label].status}: {one.verdicts[label].reasons[0]}")
                else:
                    print(f"{label}{over}: no verdict: {one.refused[label]}")
        print(f"report: {page}")
        if written.figures:
            print(f"figures: {', '.join(map(str, written.figures))}")
        return 0
