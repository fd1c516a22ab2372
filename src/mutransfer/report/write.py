"""A sweep's page and figures as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mutransfer.errors import InputError
from mutransfer.files import write_whole
from mutransfer.report.figures import FORMATS, Drawing
from mutransfer.report.html import Section, write_page
from mutransfer.report.planned import PlanMaker, check_recipes, plan_key, planned
from mutransfer.report.runs import Layout, SweepRuns
from mutransfer.report.sweep import SweepReport
from mutransfer.sweep.store import Store


@dataclass(frozen=True)
class Written:
    """The report and the files that were written."""

    report: SweepReport
    page: Path
    figures: tuple[Path, ...]


def write_report(
    folder: Path,
    page: Path | None = None,
    *,
    metric: str | None = None,
    by: Sequence[str] = (),
    figures: Path | None = None,
    format: str = "png",
    check: bool = False,
    title: str | None = None,
    first: Sequence[Section] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> Written:
    """The page of the sweep in `folder` (report.html there by default) and, with `figures`, its pictures as files of a format.

    `check` makes a coordinate check of every group first and keeps it among the store's notes; `first`: sections before all
    others; `tell` hears what takes long. Raises InputError for a folder without runs, bad names and places that cannot be written.
    """
    if format not in FORMATS:
        raise InputError(f"--format {format!r}: write one of {', '.join(FORMATS)}")
    layout = Layout.of(SweepRuns.read(folder), metric, by)
    if check:
        found = check_recipes(layout, tell)
        with Store(folder, create=False) as store:
            for name, note in found.items():
                store.note(f"check:{name}", note)
        layout = Layout.of(SweepRuns.read(folder), metric, by)
    plans = {name.removeprefix("plan:"): text for name, text in layout.sweep.notes.items() if name.startswith("plan:")}
    report = SweepReport(layout, plans)
    drawn: dict[tuple[str, str], bytes] = {}

    def draw(drawing: Drawing, format: str = "png") -> bytes:
        if (drawing.name, format) not in drawn:
            drawn[drawing.name, format] = drawing.draw(format)
        return drawn[drawing.name, format]

    with PlanMaker({plan_key(run): run for run in planned(layout).values() if plan_key(run) not in plans}) as maker:
        for drawing in report.drawings():
            draw(drawing)
        made = maker.result()
    _keep(folder, made)
    plans.update(made)  # what `report` holds, too
    page = page or folder / "report.html"
    sections = [*first, *report.sections(draw)]
    write_page(page, title or f"Sweep: {folder.absolute().name}", sections, report.provenance())
    files = []
    if figures is not None:
        for drawing in report.drawings():
            files.append(write_whole(figures / f"{drawing.name}.{format}", draw(drawing, format)))
    return Written(report, page, tuple(files))


def _keep(folder: Path, plans: dict[str, str]) -> None:
    """Among the store's notes: making a plan takes longer than all the rest of a report."""
    if plans:
        with Store(folder, create=False) as store:
            for key, text in plans.items():
                store.note(f"plan:{key}", text)
