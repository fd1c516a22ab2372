"""A sweep's report is a function of its store alone, and every number on it follows from the rows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mutransfer.cli import main
from mutransfer.errors import InputError
from mutransfer.models import GPTConfig
from mutransfer.report.figures import Drawing
from mutransfer.report.html import render
from mutransfer.report.ledger import Ledger, clock
from mutransfer.report.runs import Layout, SweepRuns
from mutransfer.report.sweep import SweepReport
from mutransfer.sweep.shown import shown_lr
from mutransfer.sweep.store import Store
from mutransfer.train import RunConfig
from tests.report.sweeps import FLOPS, LOG2_LRS, SEEDS, WIDTHS, config, fill, record
from tests.report.test_html import Page


def no_picture(drawing: Drawing) -> bytes:
    return drawing.name.encode()


def layout(folder: Path, **options: object) -> Layout:
    return Layout.of(SweepRuns.read(folder), **options)  # pyright: ignore[reportArgumentType]


def page(found: Layout) -> str:
    report = SweepReport(found, {})
    return render("Sweep", report.sections(no_picture), report.provenance())


@pytest.fixture(scope="module")
def width(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("width"))


def test_sp_drifts_beside_mup_that_holds(width: Path) -> None:
    report = SweepReport(layout(width), {})
    assert {label: verdict.status for label, verdict in report.judged[0].verdicts.items()} == {
        "SP": "DRIFTS",
        "μP": "HOLDS",
    }
    assert report.axes[0].rows == (("SP", "μP"),)
    text = " ".join("".join(Page(page(report.layout)).text).split())
    assert re.search(r"SP DRIFTS .* μP HOLDS", text)
    assert "Tune at width 32, use at width 128" in text and "mutransfer sweep gpt --grid" in text


def test_the_page_is_a_function_of_the_rows_not_of_their_order_or_of_the_time(width: Path, tmp_path: Path) -> None:
    other = fill(tmp_path / "other", shuffled=True)
    assert page(layout(width)) == page(layout(other))


def test_the_page_needs_nothing_from_outside_and_no_script(width: Path) -> None:
    text = page(layout(width))
    assert Page(text).open == []
    links = [value or "" for name, value in Page(text).attributes if name in ("src", "href")]
    assert links and all(value.startswith("data:image/png;base64,") for value in links)
    assert not re.search(r"https?://|@import|url\(|<script", text)


@pytest.mark.parametrize("format,head", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_figures_are_files_of_every_format_and_the_same_each_time(width: Path, format: str, head: bytes) -> None:
    found = {drawing.name: drawing for drawing in SweepReport(layout(width), {}).drawings()}
    assert set(found) == {
        "valleys-width",
        "drift-width",
        "loss-width",
        "loss-every-lr-width-1",
        "loss-every-lr-width-2",
    }
    drawn = found["loss-every-lr-width-1"].draw(format)
    assert drawn.startswith(head) and drawn == found["loss-every-lr-width-1"].draw(format)


def test_the_ledger_adds_up_and_counts_shared_runs_once(width: Path) -> None:
    ledger = Ledger.of(layout(width))
    each = len(LOG2_LRS) * len(SEEDS)
    assert ledger.total("runs") == 5 * each and ledger.total("shared") == ledger.saved_runs == each
    assert ledger.total("flops") == pytest.approx(FLOPS * each * (2 * sum(w * w for w in WIDTHS) - 32 * 32))
    assert ledger.saved_flops == pytest.approx(FLOPS * each * 32 * 32)
    (sentence, ratio), = ledger.ratios  # fmt: skip
    assert ratio == pytest.approx(1 / 16)
    assert sentence.startswith("Tuning at width 32 costs 6.2 % of the FLOPs of the same grid at width 128")


def test_joint_sizes_are_compared_along_each_with_the_other_fixed(tmp_path: Path) -> None:
    found = layout(fill(tmp_path / "joint", recipes={"mup": 0.0}, depths=(2, 4)))
    assert [one.where for one in found.comparisons] == [
        "over width at depth 2", "over width at depth 4", "over depth at width 32", "over depth at width 64", "over depth at width 128",
    ]  # fmt: skip
    report = SweepReport(found, {})
    assert [one.axis for one in report.axes] == ["width", "depth"]
    assert report.axes[0].rows == (("μP, depth 2", "μP, depth 4"),)


def test_every_field_that_varies_makes_groups_and_those_that_follow_do_not(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        for i, (recipe, optimizer, w, x) in enumerate(
            (r, o, w, x) for o in ("sgd", "adamw") for r in ("mup", "sp") for w in (32, 64) for x in (-6, -5)
        ):
            heads, decay = w // 16, 0.1 if optimizer == "adamw" else 0.0  # follow from the width, from the optimizer
            values = config(recipe, w, x, 0, optimizer=optimizer, heads=heads, weight_decay=decay, final_lr=2.0**x / 10)
            store.add(record(str(i), values, 2.0))
    found = layout(tmp_path / "s")
    assert found.by == ("recipe", "optimizer")
    assert list(found.labels) == ["SP, adamw", "μP, adamw", "SP, sgd", "μP, sgd"]
    assert found.axes == ("width",)
    report = SweepReport(layout(tmp_path / "s", by=("recipe",)), {})
    assert "optimizer varies among these runs: write --by recipe optimizer" in report.judged[0].refused["SP"]


def test_diverged_failed_and_stopped_runs_are_told_with_reasons(tmp_path: Path) -> None:
    folder = fill(tmp_path / "s")
    with Store(folder) as store:
        store.add(
            record(
                "f",
                config("mup", 64, -2, 0),
                2.0,
                status="failed",
                reason="RuntimeError: <no> memory",
                git="abc with uncommitted changes",
            )
        )
        store.add(record("g", config("mup", 64, -1, 0), 2.0, status="stopped", reason="behind at update 100"))
    text = " ".join("".join(Page(page(layout(folder))).text).split())
    for part in ("RuntimeError: <no> memory", "behind at update 100", "loss not finite at update 60", "1 stopped", "1 failed",
                 "2 different: none (97 runs); abc with uncommitted changes (1 run)"):  # fmt: skip
        assert part in text, part


def test_what_cannot_be_judged_is_said_on_the_page(tmp_path: Path) -> None:
    with Store(tmp_path / "one") as store:
        store.add(record("a", config("sp", 64, -6, 0), 2.0), [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}])
    assert "No verdict: width is 64 in every row" in page(layout(tmp_path / "one"))
    with Store(tmp_path / "own") as store:
        row = record("a", {"function": "mine:run", "steps": 3}, 2.0, metrics={"loss": 2.0}, flops=None)
        store.add(row)
    text = page(layout(tmp_path / "own"))
    assert "No verdict: the runs have no learning rate" in text and "mine:run" in text


def test_a_coordinate_check_among_the_notes_is_a_section(tmp_path: Path) -> None:
    folder = fill(tmp_path / "s")
    report = {
        "verdict": "PASS",
        "words": "PASS: all\n",
        "axis": "width",
        "values": [32.0, 64.0],
        "findings": [],
        "table": [],
    }
    with Store(folder) as store:
        store.note("check:mup", {"report": report, "picture": "aGVsbG8="})
    text = " ".join("".join(Page(page(layout(folder))).text).split())
    assert "Coordinate check: μP PASS" in text


def test_bad_input_is_one_line_that_says_what_to_write(width: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--metric val_los: the runs have no such number; did you mean 'val_loss'"):
        layout(width, metric="val_los")
    with pytest.raises(InputError, match="--by recip: the runs have no such field; did you mean 'recipe'"):
        layout(width, by=("recip",))
    with Store(tmp_path / "many") as store:
        for i in range(40):
            store.add(record(str(i), config("mup", 32 + 32 * (i % 2), -6, 0, weight_decay=i / 7), 2.0))
    with pytest.raises(InputError, match=r"weight_decay take 40 combinations.*choose with --by"):
        layout(tmp_path / "many")
    with Store(tmp_path / "empty"):
        pass
    with pytest.raises(InputError, match="holds no ended runs yet"):
        SweepRuns.read(tmp_path / "empty")


def test_numbers_are_written_as_people_write_them() -> None:
    assert [shown_lr(v) for v in (2**-8, 2**-7.5, 0.003, "x")] == ["2^-8", "2^-7.5", "0.003", "x"]
    assert [clock(v) for v in (0.4, 62, 3600 * 3 + 61)] == ["0:00", "1:02", "3:01:01"]


def test_the_command_writes_page_and_figures_and_prints_json(
    width: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "report",
        str(width),
        "--out",
        str(tmp_path / "new" / "page.html"),
        "--figures",
        str(tmp_path / "figures"),
        "--format",
        "svg",
        "--metric",
        "val_loss",
        "--json",
    ]
    known = {"plan:" + key: "a plan" for key in _plan_keys(width)}
    with Store(width, create=False) as store:
        for name, text in known.items():
            store.note(name, text)
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == "val_loss" and found["comparisons"][0]["verdicts"]["μP"]["status"] == "HOLDS"
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")
    assert "a plan" in (tmp_path / "new" / "page.html").read_text()
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(
        Path(name).name for name in found["figures"]
    )
    assert main(["report", str(tmp_path / "nothing")]) == 2
    (tmp_path / "file").write_text("")
    assert main(["report", str(width), "--figures", str(tmp_path / "file")]) == 2
    assert "is a file, not a folder" in capsys.readouterr().err
    assert main(["report", str(width), "--format", "gif"]) == 2
    assert "--format 'gif': write one of png, svg, pdf" in capsys.readouterr().err


def _plan_keys(folder: Path) -> list[str]:
    from mutransfer.report.planned import plan_key, planned

    return [plan_key(run) for run in planned(layout(folder)).values()]


def test_a_page_of_known_plans_never_waits_for_torch(width: Path, tmp_path: Path) -> None:
    with Store(width, create=False) as store:
        for key in _plan_keys(width):
            store.note(f"plan:{key}", "a plan")
    script = f"import sys; from mutransfer.cli import main; main(['report', {str(width)!r}, '--out', {str(tmp_path / 'p.html')!r}]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_plan_and_check_come_from_the_runs_own_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = RunConfig(
        model=GPTConfig(depth=1, head_size=8, context=16, vocab_size=128),
        base={"width": 16},
        batch=2,
        steps=4,
        warmup=0,
    )
    with Store(tmp_path / "s") as store:
        for i, (recipe, size, lr) in enumerate(
            (r, s, lr) for r in ("sp", "mup") for s in (16, 32, 64) for lr in (2**-7, 2**-6)
        ):
            run = replace(base, recipe=recipe, model=replace(base.model, width=size), lr=lr)
            store.add(record(str(i), run.to_dict(), 2.0 + 0.01 * i))
    assert main(["report", str(tmp_path / "s"), "--check"]) == 0
    with Store(tmp_path / "s", create=False) as store:
        notes = store.notes()
    assert set(notes) >= {"check:sp", "check:mup"} and any(name.startswith("plan:") for name in notes)
    assert notes["check:mup"]["report"]["axis"] == "width" and notes["check:mup"]["report"]["verdict"] != "FAIL"
    text = (tmp_path / "s" / "report.html").read_text()
    assert "Coordinate check: μP" in text and "Plan: μP" in text and "Plan: SP" not in text


def test_a_run_given_up_early_is_never_the_best_of_its_size(tmp_path: Path) -> None:
    from mutransfer.report.figures import _best  # its loss is that of an earlier step: it must not be compared

    with Store(tmp_path / "s") as store:
        for i, (x, status) in enumerate(((-6, "finished"), (-5, "stopped"), (-4, "diverged"))):
            store.add(record(str(i), config("mup", 64, x, 0), 2.0 - 0.1 * i, status=status))
    found = layout(tmp_path / "s")
    rate, runs = _best(found, found.sweep.runs)
    assert rate == 2**-6 and [run.key for run in runs] == ["0"]


def test_own_functions_without_learning_rate_still_get_their_curves(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        for i in range(3):
            row = record(str(i), {"function": "mine:run", "noise": i}, 2.0, metrics={"loss": 2.0 + i}, flops=None)
            store.add(row, [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}])
    report = SweepReport(layout(tmp_path / "s"), {})
    assert [drawing.draw("png")[:4] for drawing in report.drawings()] == [b"\x89PNG"] * 4
    assert list(report.layout.labels) == ["noise 0", "noise 1", "noise 2"]


def test_a_config_without_a_plan_is_shown_with_the_reason() -> None:
    from mutransfer.models import MLPConfig
    from mutransfer.report.plans import plan_tables

    good = RunConfig(model=MLPConfig(width=32), base={"width": 16}, recipe="mup", data="digits")
    bad = replace(good, model=MLPConfig(width=32, depth=3), base={"width": 16, "depth": 2}, recipe="completep")
    found = plan_tables({"good": good.to_dict(), "bad": bad.to_dict()})
    assert found["bad"].startswith("no plan: cannot tell which module ends the residual branch")
    assert not found["good"].startswith("no plan")
