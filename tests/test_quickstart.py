"""The quickstart at a tiny size: one page, runs that are never made twice, and an honest reading of the curves."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mutransfer.errors import InputError
from mutransfer.quickstart import Setting, jobs, quickstart
from mutransfer.quickstart.optimum import Transfer, optima, optimum, vertex
from mutransfer.quickstart.store import Store
from mutransfer.quickstart.workers import Workers

TINY = Setting(
    check_widths=(16, 32, 64), check_steps=1, check_seeds=1, check_rows=2, widths=(16, 32), log2_lrs=(-8, -6, -4),
    steps=5, warmup=1, batch=2, context=16, depth=1,
)  # fmt: skip


def test_it_writes_one_page_and_makes_no_run_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = quickstart(tmp_path / "out", TINY, workers=1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "transfer.png", "runs.jsonl"}
    rows = (tmp_path / "out" / "runs.jsonl").read_text()
    assert len(rows.splitlines()) == len(TINY.points()) == 9  # 3 rates at the base width, once; 2 × 3 at the other
    said = capsys.readouterr().err
    assert "9 training runs: about" in said and first.checks["sp"]["verdict"] == "FAIL"
    assert first.exit_code in (0, 1, 3) and str(tmp_path) not in (tmp_path / "out" / "report.html").read_text()

    (tmp_path / "out" / "runs.jsonl").write_text(rows[:-30])  # a kill in the middle of the last line
    second = quickstart(tmp_path / "out", TINY, workers=1)
    assert "1 training runs, 8 known" in capsys.readouterr().err
    assert second.transfers == first.transfers
    stored = Store(tmp_path / "out" / "runs.jsonl").rows
    assert {key: row["loss"] for key, row in stored.items()} == {
        row["key"]: row["loss"] for row in map(json.loads, rows.splitlines())
    }


def test_at_the_base_width_both_parametrizations_are_one_run() -> None:
    standard, mup = (jobs.train_point(TINY, recipe, 16, -6) for recipe in ("sp", "mup"))
    assert standard["loss"] == mup["loss"]
    assert jobs.train_point(TINY, "sp", 32, -6)["loss"] != jobs.train_point(TINY, "mup", 32, -6)["loss"]


def test_a_diverged_run_is_stored_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    row = jobs.train_point(replace(TINY, steps=8), "sp", 16, 120)
    assert row["status"] == "diverged" and row["loss"] is None


def test_the_widths_of_the_default_setting_show_four_sizes_and_share_the_base() -> None:
    setting = Setting()
    assert len(setting.check_widths) >= 4 and setting.check_widths[0] == setting.base
    assert not [point for point in setting.points() if point[:2] == ("mup", setting.base)]


def test_a_parabola_gives_back_its_own_minimum() -> None:
    x, y = vertex([(x, 2 + 0.5 * (x + 6.3) ** 2) for x in (-8.0, -6.0, -5.0)])
    assert math.isclose(x, -6.3) and math.isclose(y, 2.0)


def test_an_optimum_at_the_edge_or_beside_a_divergence_is_said_to_be_one() -> None:
    edge = optimum(32, {-8: 2.0, -7: 2.1, -6: 2.3})
    assert edge is not None and edge.edge and edge.log2_lr == -8
    beside = optimum(32, {-8: 2.2, -7: 2.1, -6: math.inf})
    assert beside is not None and not beside.edge and beside.log2_lr == -7
    assert optimum(32, {-8: math.inf, -7: math.inf}) is None


def curve(best: float, lowest: float) -> dict[int, float]:
    return {x: lowest + 0.1 * (x - best) ** 2 for x in range(-10, -3)}


@pytest.mark.parametrize(("curves", "status"), [
    ({32: curve(-6, 2.5), 64: curve(-6.1, 2.4), 128: curve(-6, 2.3)}, "HOLDS"),
    ({32: curve(-6, 2.5), 64: curve(-7, 2.4), 128: curve(-8, 2.3)}, "DRIFTS"),  # the base's rate costs too much
    ({32: curve(-6, 2.5), 64: curve(-6, 2.6), 128: curve(-6, 2.7)}, "DRIFTS"),  # wider is worse
    ({32: curve(-2, 2.5), 64: curve(-2, 2.4)}, "INCONCLUSIVE"),  # both at the edge of the grid
    ({32: curve(-6, 2.5), 64: dict.fromkeys(range(-10, -3), math.inf)}, "INCONCLUSIVE"),
    ({32: curve(-6, 2.5), 64: {**curve(-8, 2.4), -6: math.inf}}, "DRIFTS"),  # the base's rate diverges
])  # fmt: skip
def test_the_transfer_is_judged_by_its_cost_and_by_wider_being_better(
    curves: dict[int, dict[int, float]], status: str
) -> None:
    transfer = Transfer(tuple(optima(curves)), tuple(curves))
    assert transfer.status == status and transfer.words()


def test_workers_hand_back_results_and_bad_input_and_die_loudly() -> None:
    with Workers(1) as pool:
        assert sorted(pool.run([(pow, (2, n)) for n in range(4)])) == [(n, 2**n) for n in range(4)]
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            list(pool.run([(divmod, (1, 0))]))
    with Workers(1) as pool, pytest.raises(RuntimeError, match="worker process died"):
        list(pool.run([(os._exit, (1,))]))


def test_a_store_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        Store(tmp_path / "runs.jsonl")
