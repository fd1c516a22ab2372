"""The page is one file that needs nothing else, shows what it was given, and says where it comes from."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mutransfer.errors import InputError
from mutransfer.report import Provenance, Section, Table, check_section, render, write_page
from mutransfer.report.provenance import git_state

PICTURE = b"\x89PNG not really"
SECTIONS = [
    Section(
        "First", verdict="PASS", paragraphs=("a < b & c",), pictures=((PICTURE, "what it shows"),),
        tables=(Table(("name", "value"), (("<script>alert(1)</script>", "3"),), "A table", frozenset({"value"})), Table(("one",), (("2",),), "Folded", folded=True)),
        fixed="│ table │", folded="the plan",
    ),
    Section("Second", verdict="FAIL"),
]  # fmt: skip
FACTS = Provenance.now("mutransfer check gpt --sizes 32 64", seed="0")


class Page(HTMLParser):
    """Open tags must be closed in order; collects attributes and text."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_whole_html_and_needs_nothing_from_outside() -> None:
    text = render("A title", SECTIONS, FACTS)
    page = Page(text)
    assert page.open == []
    links = [value or "" for name, value in page.attributes if name in ("src", "href")]
    assert links and all(value.startswith("data:image/png;base64,") for value in links)
    assert not re.search(r"https?://|@import|url\(|<script", text)
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_everything_given_is_shown_and_escaped() -> None:
    text = render("A title", SECTIONS, FACTS)
    shown = " ".join("".join(Page(text).text).split())
    for part in ("A title", "First", "PASS", "FAIL", "a < b & c", "<script>alert(1)</script>", "│ table │", "the plan"):
        assert part in shown
    assert 'class="badge good"' in text and 'class="badge bad"' in text and 'alt="what it shows"' in text


def test_provenance_names_command_versions_and_the_state_of_the_users_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = dict(FACTS.facts)
    assert facts["command"] == "mutransfer check gpt --sizes 32 64" and facts["seed"] == "0"
    assert {"mutransfer", "torch", "python", "numpy", "repository", "written"} <= facts.keys()
    monkeypatch.chdir(tmp_path)
    assert git_state() == "none"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    assert re.fullmatch("[0-9a-f]{12}", git_state())
    (tmp_path / "file").write_text("2")
    assert git_state().endswith("with uncommitted changes")


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_page(tmp_path / "new" / "page.html", "A title", SECTIONS, FACTS)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    with pytest.raises(InputError, match="cannot write"):
        write_page(tmp_path / "new" / "page.html" / "below.html", "A title", SECTIONS, FACTS)


def test_findings_of_repeated_blocks_are_one_row() -> None:
    finding = {"rule": "init", "what": "its output", "slope": 0.5, "low": 0.4, "high": 0.6, "expected": 0.0,
               "advice": "divide it", "severity": "fail"}  # fmt: skip
    report = {
        "verdict": "FAIL", "words": "FAIL: 2 of 3 tensors\n  more", "axis": "width", "values": [16.0, 32.0],
        "findings": [{**finding, "name": "blocks.0.up.weight"}, {**finding, "name": "blocks.1.up.weight", "slope": 0.52}],
        "table": [
            {"kind": "size", "name": "head", "step": 0, "values": [1.0, None], "slope": None, "low": None, "high": None},
            {"kind": "change", "name": "head", "step": 2, "values": [1.0, 2.0], "slope": 1.0, "low": 0.9, "high": 1.1},
        ],
    }  # fmt: skip
    section = check_section(report, None, "Check")
    assert section.tables[0].rows == (
        (
            "blocks.*.up.weight  ×2",
            "breaks the rule",
            "init",
            "its output",
            "width^+0.50 … +0.52",
            "width^+0",
            "divide it",
        ),
    )
    assert section.tables[1].rows[0][-2:] == ("–", "–") and section.tables[1].rows[1][-2:] == (
        "+1.00",
        "[+0.90, +1.10]",
    )
    assert section.paragraphs[0] == "2 of 3 tensors."
