"""Sections as one HTML file that needs nothing else: no network, no scripts, light and dark, printable."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mutransfer.files import write_whole
from mutransfer.report.provenance import Provenance

DPI = 130  # of the pictures
# verdict → the class of its badge: how good the news is
_MOOD = {
    "PASS": "good", "HOLDS": "good", "FAIL": "bad", "DRIFTS": "bad", "INCONCLUSIVE": "unclear",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table of texts; numbers are right-aligned by the names of their columns in `right`."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    right: frozenset[str] = frozenset()
    folded: bool = False
    """Whether the table is folded away under its caption."""


@dataclass(frozen=True)
class Answer:
    """A verdict in a frame of its own: what it is about, the verdict (or none), and its sentences, the first one first."""

    title: str
    verdict: str
    lines: tuple[str, ...]

    @property
    def mood(self) -> str:
        """The badge's class: good, bad or unclear."""
        return _MOOD.get(self.verdict, "unclear")


@dataclass(frozen=True)
class Section:
    """One part of a page: a heading with an optional verdict, answers, paragraphs, pictures (PNG bytes, description), tables, fixed text."""

    title: str
    verdict: str = ""
    paragraphs: tuple[str, ...] = ()
    answers: tuple[Answer, ...] = ()
    pictures: tuple[tuple[bytes, str], ...] = ()
    tables: tuple[Table, ...] = ()
    fixed: str = ""
    folded: str = ""
    """With a label here, the fixed text is folded away under it."""

    @property
    def mood(self) -> str:
        """The badge's class: good, bad or unclear."""
        return _MOOD.get(self.verdict, "unclear")

    @property
    def images(self) -> list[tuple[str, str, int | None]]:
        """(data URI, description, width on the page in pixels) of each picture."""
        return [(f"data:image/png;base64,{base64.b64encode(data).decode()}", alt, _width(data)) for data, alt in self.pictures]  # fmt: skip


def _width(png: bytes) -> int | None:
    """A picture of 7 inches fills 7 inches of the page: its letters have one size in all pictures. None for what is no PNG."""
    return int.from_bytes(png[16:20], "big") * 96 // DPI if png[12:16] == b"IHDR" else None


def render(title: str, sections: Sequence[Section], provenance: Provenance) -> str:
    """The whole page as HTML text; everything from the user is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mutransfer", "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("page.html.j2")
    return page.render(title=title, sections=sections, facts=provenance.facts)


def write_page(path: Path, title: str, sections: Sequence[Section], provenance: Provenance) -> None:
    """Render into a file, whole or not at all. Raises InputError when the place cannot be written."""
    write_whole(path, render(title, sections, provenance))
