"""Tables come in as people have them, and give the same points whatever their order; everything assumed is said."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mutransfer.errors import InputError
from mutransfer.predict.points import Points
from mutransfer.predict.reading import read_points, too_few
from mutransfer.sweep import Store
from tests.predict.tables import WIDTHS, changed, gpt_params, grid, history, ladder
from tests.sweep.small import row as record


def same(one: Points, two: Points) -> bool:
    """Whether two readings are the same in everything."""
    arrays = one.variables.keys() == two.variables.keys() and all(
        np.array_equal(one.variables[k], two.variables[k]) for k in one.variables
    )
    rest = ("run", "seed", "columns", "loss_unit", "notes", "transfer", "constants")
    return arrays and np.array_equal(one.loss, two.loss) and all(getattr(one, k) == getattr(two, k) for k in rest)


def untidy() -> list[dict[str, Any]]:
    """Sizes by tokens with seeds, a diverged run, a failed one and a row that is there twice."""
    rows = [
        {**row, "seed": s, "recipe": "mup", "loss": row["loss"] * (1 + 0.001 * s), "status": "finished"}
        for row in grid() for s in (0, 1)
    ]  # fmt: skip
    rows = changed(rows, (4,), status="diverged", loss=float("nan"))
    return [*changed(rows, (9,), status="failed", loss=None), rows[2]]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_points_do_not_depend_on_the_order_of_rows_and_columns(data: st.DataObject) -> None:
    for rows in (untidy(), history(), ladder()):
        reference = read_points(rows)
        names = data.draw(st.permutations(list(rows[0])))
        shuffled = [{name: row[name] for name in names if name in row} for row in data.draw(st.permutations(rows))]
        assert same(read_points(shuffled), reference)


def test_points_are_what_the_table_holds() -> None:
    points = read_points(untidy())
    assert len(points) == 22 and points.loss_unit == "nats"
    assert points.columns == {"params": "N", "tokens": "D", "compute": "", "loss": "loss", "seed": "seed"}
    truth = 1.7 + 400 / points.variables["params"] ** 0.34 + 410 / points.variables["tokens"] ** 0.28
    assert points.loss == pytest.approx(truth * (1 + 0.001 * np.array([int(s) for s in points.seed])))
    said = " | ".join(points.notes)
    assert "left out: 1 failed" in said and "without a finite loss (diverged or given up), left out: 1" in said
    assert "there twice, counted once: 1" in said and "compute = 6 × params × tokens" in said


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


class Frame:
    """What a pandas data frame looks like from here."""

    columns = tuple(grid()[0])

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return grid()


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "arrays", "frame", "parquet"])
def test_every_kind_of_table_gives_the_same_points(kind: str, tmp_path: Path) -> None:
    rows = grid()
    if kind == "csv":
        table: Any = write_csv(tmp_path / "runs.csv", rows)
    elif kind in ("json", "jsonl"):
        table = tmp_path / f"runs.{kind}"
        table.write_text(json.dumps(rows) if kind == "json" else "\n".join(json.dumps(row) for row in rows))
    elif kind == "arrays":
        table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "runs.parquet")
        table = tmp_path / "runs.parquet"
    else:
        table = Frame()
    assert same(read_points(table), read_points(rows))


@pytest.mark.parametrize(
    "names, variables",
    [
        (("Model Size", "Training FLOP", "loss"), {"params", "tokens", "compute"}),
        (("model_params", "tokens", "losses"), {"params", "tokens", "compute"}),
        (("config.model.n_embd", "config.steps", "summary.eval/loss"), {"width", "steps"}),
        (("n_layer", "Training Tokens", "Test Cross-Entropy"), {"depth", "tokens"}),
    ],
)
def test_tables_as_they_are_published(names: tuple[str, str, str], variables: set[str]) -> None:
    rows = [
        {names[0]: 64 * 2**i, names[1]: 6e17 * 3**i, names[2]: 3 - i / 10, "color": "#fff", "x": i} for i in range(6)
    ]
    points = read_points(rows)
    assert set(points.variables) == variables and points.columns["loss"] == names[2]


def test_a_wandb_export_of_runs_is_read() -> None:
    rows = [
        {"Name": f"fine-{w}", "State": "finished", "Created": "2024", "Runtime": 9 * w, "config.n_embd": w, "config/block_size": 256, "config.lr": 0.01,
         "train/loss": 3 - i / 10, "_step": 999, "_timestamp": 1e9 + i}
        for i, w in enumerate(WIDTHS)
    ]  # fmt: skip
    points = read_points(
        [*rows, {**rows[0], "Name": "late", "State": "running"}, {**rows[1], "Name": "gone", "State": "crashed"}]
    )
    assert points.variables["width"].tolist() == sorted(WIDTHS) and points.run[0] == "fine-128"
    assert any("1 crashed, 1 running" in note for note in points.notes)
    assert points.constants["context"] == 256


def test_the_store_of_a_sweep_is_read_by_run_and_by_step(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for width in (32, 64, 128, 256):
            params = 24 * width**2 + 264 * width
            model = {"kind": "gpt", "width": width, "depth": 2, "context": 64, "vocab_size": 100, "tied": False}
            config = {"model": model, "lr": 2**-8, "batch": 16, "steps": 100, "seed": 0, "recipe": "mup"}
            logged = [
                {"step": s, "loss": 2 + 10 / width + 1 / s, "lr": 1e-3, "tokens": 1024 * s} for s in (1, 20, 50, 100)
            ]
            metrics = {"train_loss": 2 + 10 / width, "params": params, "updates": 100}
            store.add(record(f"k{width}", config=config, metrics=metrics, flops=6.0 * params * 102400), logged)
    points = read_points(tmp_path)
    assert points.loss == pytest.approx([2 + 10 / w for w in (256, 128, 64, 32)][::-1])
    assert points.run == ("k32", "k64", "k128", "k256") and points.constants["tokens"] == 102400
    assert points.variables["non_embedding"] == pytest.approx([24 * w**2 + 64 * w for w in (32, 64, 128, 256)])
    curves = read_points(tmp_path, steps=True)
    assert len(curves) == 16 and curves.variables["steps"].max() == 100
    assert curves.variables["compute"] == pytest.approx(6 * curves.variables["params"] * curves.variables["tokens"])


@pytest.mark.parametrize("named", [True, False])
def test_a_history_gives_the_last_step_or_all(named: bool) -> None:
    rows = [row if named else {k: v for k, v in row.items() if k != "run"} for row in history()]
    last = read_points(rows)
    assert len(last) == 5 and last.constants["steps"] == 100 and last.constants["tokens"] == 8 * 128 * 100
    curves = read_points(rows, steps=True)
    assert len(curves) == 20 and len(set(curves.run)) == 5
    assert sorted(set(curves.variables["tokens"])) == [8 * 128 * s for s in (10, 20, 50, 100)]
    for run in set(curves.run):
        mine = np.array([one == run for one in curves.run])
        assert len(set(curves.variables["params"][mine])) == 1 and mine.sum() == 4


def test_a_learning_rate_written_step_by_step_is_the_runs_highest() -> None:
    rows = [{**row, "lr": 0.01 * (1 - row["_step"] / 100)} for row in history()]
    assert read_points(rows).constants["lr"] == pytest.approx(0.009)
    lrs = read_points(rows, steps=True).variables["lr"]
    assert lrs.min() > 0 and lrs.max() == pytest.approx(0.009)


def test_a_run_whose_log_ends_early_is_left_out() -> None:
    points = read_points([row for row in history() if not (row["run"] == "w384" and row["_step"] > 20)])
    assert len(points) == 4 and any("w384" in note and "1 run ends before 90%" in note for note in points.notes)
    by_plan = [{**row, "max_steps": 100} for row in history() if row["_step"] < 100 or row["width"] > 200]
    assert len(read_points(by_plan)) == 4


def test_runs_of_different_length_by_design_stay() -> None:
    rows = [row for row in history() if row["_step"] <= {128: 20, 256: 20, 384: 50, 512: 50, 640: 100}[row["width"]]]
    assert sorted(read_points(rows).variables["steps"]) == [20, 20, 50, 50, 100]


def test_columns_can_be_named() -> None:
    rows = [{"my size": row["params"], "score": row["loss"], "loss": 9.0} for row in ladder()]
    points = read_points(rows, columns={"params": "my size"}, loss="score")
    assert points.columns == {"params": "my size", "loss": "score"}
    assert points.loss == pytest.approx([row["loss"] for row in ladder()])


def test_a_unit_in_the_name_of_a_named_column_counts() -> None:
    rows = [{"sz_M": row["params"] / 1e6, "loss": row["loss"]} for row in ladder()]
    assert read_points(rows, columns={"params": "sz_M"}).variables["params"][0] == pytest.approx(gpt_params(128))


def test_rows_can_be_chosen() -> None:
    rows = [
        {**row, "recipe": name, "loss": row["loss"] + add}
        for row in ladder()
        for name, add in (("sp", 0.1), ("mup", 0.0))
    ]
    assert read_points(rows, where={"recipe": "mup"}).loss == pytest.approx([row["loss"] for row in ladder()])
    assert any("recipe is sp" in note for note in read_points(rows, where={"recipe": "sp"}).notes)


def test_what_varies_beside_the_variables_is_refused_with_what_to_write() -> None:
    for field, low, high in (("recipe", "sp", "mup"), ("optimizer", "adamw", "muon"), ("weight_decay", 0.0, 0.1)):
        rows = [{**row, field: value} for row in ladder() for value in (low, high)]
        rows = changed(rows, tuple(range(0, 14, 2)), loss=lambda v: v + 0.1)
        with pytest.raises(InputError, match=rf'{field} varies too .*write where=\{{"{field}": '):
            read_points(rows)


def test_what_follows_from_the_sizes_or_names_the_rows_is_no_other_series() -> None:
    rows = [
        {**r, "n_head": i + 1, "model": f"gpt-{i}", "warmup": r["D"] / 1e6, "n_layer": 2 + r["N"] // 1e7}
        for i, r in enumerate(grid())
    ]
    assert set(read_points(rows).variables) == {"params", "tokens", "compute", "depth"}


def test_tokens_batch_and_steps_are_variables() -> None:
    rows = [{**row, "batch_size": 64 * (1 + i % 2), "steps": 100 * (1 + i % 3)} for i, row in enumerate(grid())]
    assert {"batch", "steps"} <= set(read_points(rows).variables)


def test_repetitions_are_kept_and_said() -> None:
    rows = [{**row, "loss": row["loss"] + add} for row in ladder() for add in (0.0, 0.01)]
    points = read_points(rows)
    assert len(points) == 14 and any("14 rows are of the same sizes (no seed column)" in note for note in points.notes)
    assert len(set(points.run)) == 14  # two runs are never taken for one


def test_identical_rows_count_once_but_rounded_losses_that_agree_do_not() -> None:
    assert len(read_points(ladder() + ladder()[:3])) == 7
    rows = [{**row, "seed": s, "loss": round(row["loss"], 2)} for row in ladder() for s in (0, 1)]
    assert len(read_points(rows)) == 14
    rows = [{**row, "loss": row["loss"] + 1e-7 * i} for row in ladder() for i in (0, 1)]
    assert len(read_points(rows)) == 14
    noted = [{**row, "note": str(i)} for i, row in enumerate(ladder() + ladder())]
    assert len(read_points(noted)) == 7  # a loss to sixteen digits is the same run


def test_rows_of_one_run_at_several_lengths_share_its_name() -> None:
    rows = [{**row, "run_name": f"n{row['N']:g}"} for row in grid()]
    assert len(set(read_points(rows).run)) == 4
    rows = [{**row, "name": "family"} for row in grid()]
    assert len(set(read_points(rows).run)) == 12


def test_gaps_leave_out_rows_of_sizes_and_columns_of_the_rest() -> None:
    rows = changed(grid(batch=64), (3, 5), D=None)
    points = read_points(changed(rows, (1,), batch=None))
    assert len(points) == 10 and "batch" not in points.constants
    assert any("rows without tokens, left out: 2" in note for note in points.notes)


def test_select_keeps_everything_together() -> None:
    points = read_points(untidy())
    part = points.select(points.variables["params"] < 5e7)
    assert part.run == points.run[: len(part)] and part.constants == points.constants and len(part.seed) == len(part)


@pytest.mark.parametrize(
    "count, parameters, enough", [(2, 3, False), (3, 3, False), (4, 3, True), (6, 5, True), (5, 5, False)]
)
def test_a_law_needs_more_points_than_parameters(count: int, parameters: int, enough: bool) -> None:
    said = too_few(count, parameters, "the power law")
    assert (said is None) == enough
    assert enough or f"the power law with {parameters} parameters needs {parameters + 1} or more" in str(said)
