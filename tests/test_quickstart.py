"""The quickstart at a tiny size: one page, runs that are never made twice, and verdicts that are the sweep's own."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from mutransfer.data import TextData, load
from mutransfer.quickstart import Outcome, Setting, quickstart
from mutransfer.sweep import Wanted, read_rows
from mutransfer.verdict import transfer_verdicts

TINY = Setting(
    check_widths=(16, 32, 64), check_steps=1, check_seeds=1, check_rows=2, widths=(16, 32), log2_lrs=(-9, -8, -7, -6, -5),
    seeds=(0,), steps=5, warmup=1, batch=2, context=16, depth=1,
)  # fmt: skip


def test_it_writes_one_page_and_makes_no_run_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    first = quickstart(out, TINY, workers=1)
    assert {path.name for path in out.iterdir()} == {"report.html", "transfer.png", "runs.sqlite"}
    said = capsys.readouterr().err
    assert "2 coordinate checks and 15 training runs, 0 known" in said and ": about " in said
    rows = read_rows(out)
    assert len(rows) == 20 and sum(row["copied_from"] is not None for row in rows) == 5  # the base is run once for both
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Coordinate check" in page and str(tmp_path) not in page
    assert first.checks["sp"]["verdict"] == "FAIL" and first.exit_code in (0, 1, 3)
    assert json.dumps(first.to_dict(), allow_nan=False)

    second = quickstart(out, replace(TINY, log2_lrs=(-10, *TINY.log2_lrs)), workers=1)
    assert "0 coordinate checks and 3 training runs, 15 known" in capsys.readouterr().err
    again = {row["key"]: row for row in read_rows(out)}
    assert all(again[row["key"]] == row for row in rows)
    assert set(second.transfers) == {"sp", "mup"}

    third = quickstart(out, TINY, workers=1)
    assert third.transfers == first.transfers  # the rows of other grids in the same store do not count
    assert "training" not in capsys.readouterr().err.replace("0 training runs", "")


def test_the_default_grid_shares_the_base_and_has_two_seeds() -> None:
    setting = Setting()
    data = load(setting.data, context=setting.context)
    assert isinstance(data, TextData)
    runs = [Wanted.of(config) for config in setting.runs(data.vocab_size)]
    assert len(runs) == len({run.key for run in runs}) == 80
    assert len({run.result for run in runs}) == 70
    assert len(setting.check_widths) >= 4 and setting.check_widths[0] == setting.base


def outcome(mup_check: str, drift: float, worse: float = 0.0) -> Outcome:
    """With μP's optimum moving by `drift` octaves per doubling and its losses by `worse`; SP's moves by one octave."""

    def rows(recipe: str, drift: float, worse: float) -> list[dict[str, object]]:
        return [
            {"recipe": recipe, "width": width, "lr": 2.0**x, "seed": seed, "status": "finished",
             "train_loss": 2.4 + (worse or -0.03) * i + 0.03 * (x + 6 - drift * i) ** 2 + 0.001 * math.sin(9 * x + 5 * seed + i)}
            for i, width in enumerate((32, 64, 128, 256)) for x in range(-9, -4) for seed in (0, 1)
        ]  # fmt: skip

    found = transfer_verdicts([*rows("sp", -0.8, 0.0), *rows("mup", drift, worse)], by="recipe", size="width")
    checks = {
        "sp": {"verdict": "FAIL", "culprits": ["a"], "words": ""},
        "mup": {"verdict": mup_check, "culprits": [], "words": ""},
    }
    return Outcome(checks, {"sp": found["sp"], "mup": found["mup"]}, Setting(), Path("out"), 1.0)


@pytest.mark.parametrize(("mup_check", "drift", "worse", "code"), [
    ("PASS", 0.0, 0.0, 0),
    ("FAIL", 0.0, 0.0, 1),
    ("PASS", -0.7, 0.0, 1),
    ("PASS", 0.0, 0.03, 1),  # the optimum stays and wider is worse: that does not hold
    ("INCONCLUSIVE", 0.0, 0.0, 3),
])  # fmt: skip
def test_the_exit_code_is_that_of_mup(mup_check: str, drift: float, worse: float, code: int) -> None:
    found = outcome(mup_check, drift, worse)
    assert found.exit_code == code
    assert found.conclusion() in found.words()
    assert ("the learning rate transfers" in found.words()) == (code == 0)
