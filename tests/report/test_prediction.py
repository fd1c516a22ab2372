"""A prediction on a page: the answer, what it rests on, the tables; and a sweep's own prediction of a larger model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mutransfer.predict.figure import draw_prediction
from mutransfer.predict.outcome import Outcome, foretell
from mutransfer.report import Provenance, prediction_section, render
from mutransfer.report.runs import Layout, SweepRuns
from mutransfer.report.sweep import SweepReport
from tests.predict.test_holdout import ladder
from tests.report import sweeps
from tests.report.test_html import Page

FACTS = Provenance((("command", "mutransfer predict"),))


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return foretell(ladder(seeds=2), hold_out="largest:2", targets=({"params": 1e9}, {"params": 1e11}))


def test_the_page_has_answer_law_tables_and_picture(outcome: Outcome) -> None:
    section = prediction_section(outcome, picture=draw_prediction({"": outcome}))
    assert section.verdict == "HOLDS" and section.mood == "good"
    text = render("Loss prediction", [section], FACTS)
    page = Page(text)
    assert page.open == []
    shown = " ".join("".join(page.text).split())
    first = outcome.predictions[0]
    for part in (
        f"At params 1e+09: loss {first.loss:.4f} [{first.low:.4f}, {first.high:.4f}] at 90%", "a long extrapolation", "Held out (largest:2) before anything was chosen: 2 of 2 inside",
        "matters most: without it", "Predicted", "Held out, predicted, revealed", "Drop one", "L = a·N^b + c", "the law in words",
    ):  # fmt: skip
        assert part in shown, part
    assert "−" in shown and text.count("data:image/png;base64,") == 1
    assert [len(table.rows) for table in section.tables] == [2, 2, 7, 3]


def test_what_does_not_hold_is_badged(outcome: Outcome) -> None:
    rows = [{**row, "loss": row["loss"] * (1.1 if row["width"] >= 384 else 1)} for row in ladder(seeds=2)]
    section = prediction_section(foretell(rows, hold_out="largest:3"))
    assert section.verdict == "FAIL" and any("lie outside" in text for text in section.paragraphs)
    flat = prediction_section(foretell([{**row, "loss": 3 + 0.001 * (i % 3)} for i, row in enumerate(ladder())]))
    assert flat.verdict == "INCONCLUSIVE" and any("does not fall" in text for text in flat.paragraphs)
    assert prediction_section(foretell(ladder(seeds=2))).verdict == ""


def filled(folder: Path, monkeypatch: pytest.MonkeyPatch, widths: tuple[int, ...]) -> SweepReport:
    def loss_at(moves: float, octaves: float, log2_lr: float) -> float:
        away = log2_lr + 6 - moves * octaves
        return math.inf if away > 3.5 else 1.9 + 0.5 * 2 ** (-octaves / 2) + 0.015 * away * away

    monkeypatch.setattr(sweeps, "WIDTHS", widths)
    monkeypatch.setattr(sweeps, "loss_at", loss_at)
    return SweepReport(Layout.of(SweepRuns.read(sweeps.fill(folder))), {})


def test_a_sweep_of_six_sizes_says_what_a_larger_model_will_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    report = filled(tmp_path, monkeypatch, (32, 48, 64, 96, 128, 192))
    (one,) = report.foretold
    assert one.target == 384 and set(one.outcomes) == {"SP", "μP"} and not one.refused
    truth = 1.9 + 0.5 * 12**-0.5  # twelve times as wide as the smallest
    assert one.outcomes["μP"].predictions[0].low < truth < one.outcomes["μP"].predictions[0].high
    assert one.outcomes["SP"].unjudged is not None and one.outcomes["μP"].unjudged is None  # SP drifts
    drawn: list[str] = []
    sections = report.sections(lambda drawing: drawn.append(drawing.name) or b"\x89PNG")
    found = next(section for section in sections if section.title == "What a larger model will reach")
    assert "each size's best learning rate" in found.paragraphs[0] and "law-width" in drawn
    rows = {row[0]: row for row in found.tables[0].rows}
    assert "the verdict of the sweep is DRIFTS" in rows["SP"][-1] and rows["μP"][-1] == ""
    assert [drawing.name for drawing in report.drawings()].count("law-width") == 1
    assert report.to_dict()["predictions"][0]["target"] == 384


def test_a_sweep_of_few_sizes_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = filled(tmp_path, monkeypatch, (32, 64, 128, 256))
    assert report.foretold == ()
    assert all("larger model" not in section.title for section in report.sections(lambda drawing: b"\x89PNG"))
