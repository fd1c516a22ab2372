"""The report of a sweep's folder, read from its store and written as a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mutransfer.report.figures import Drawing
from mutransfer.report.html import write_page
from mutransfer.report.planned import plan_key, plan_table, planned
from mutransfer.report.runs import Layout, SweepRuns
from mutransfer.report.sweep import SweepReport
from mutransfer.sweep.store import Store


def read_report(folder: Path, metric: str | None = None, by: Sequence[str] = ()) -> SweepReport:
    """The report of a sweep. Raises InputError for a folder without ended runs, an unknown metric or field."""
    layout = Layout.of(SweepRuns.read(folder), metric, by)
    notes = layout.sweep.notes
    known = {name.removeprefix("plan:"): text for name, text in notes.items() if name.startswith("plan:")}
    missing = {plan_key(run): run for run in planned(layout).values() if plan_key(run) not in known}
    made = {key: plan_table(run) for key, run in missing.items()}
    if made:  # kept: making a plan takes longer than all the rest
        with Store(folder, create=False) as store:
            for key, text in made.items():
                store.note(f"plan:{key}", text)
    return SweepReport(layout, {**known, **made})


def write_report(
    folder: Path, page: Path, title: str, draw: Callable[[Drawing], bytes] = lambda drawing: drawing.draw("png")
) -> SweepReport:
    """Write the page of a sweep's folder with everything that its defaults show."""
    report = read_report(folder)
    write_page(page, title, report.sections(draw), report.provenance())
    return report
