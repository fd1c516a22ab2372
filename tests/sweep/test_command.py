"""`mutransfer sweep` and `export` as they are typed: what is made, what is known, what is asked, what is refused."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from mutransfer.cli import main
from mutransfer.errors import InputError
from mutransfer.sweep import Store, complete, read_rows

SMALL = "depth=1 head_size=8 context=16 batch=2 steps=24 warmup=2 val_batches=0 log_every=6 device=cpu"
THEIRS = """
import math

def run(width, lr, seed=0, report=None, folder=None, slope=0.0):
    x = math.log2(lr)
    best = -6 + slope * math.log2(width / 32)
    if x > best + 3:
        return math.nan
    if width == 1:
        raise ValueError("width 1 cannot be")
    (folder / "seen").write_text("here")
    for step in (1, 2):
        report(step, 3.0 / step, tokens=step)
    return {"loss": 2.4 - 0.03 * math.log2(width / 32) + 0.03 * (x - best) ** 2, "flops": float(width**2)}

def two(width):
    return "high"
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the user's training function in it."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sweep(line: str) -> int:
    return main(f"sweep {line} --workers 1".split())


def test_only_what_is_missing_is_made_and_alike_runs_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    grid = "--grid recipe=sp,mup width=16,32 lr=2^-8,2^-6"
    assert sweep(f"gpt {grid} --set {SMALL} --out {out}") == 0
    said = capsys.readouterr()
    assert "6 runs (8 points of the grid, some of which must come out alike) on 1 worker: about " in said.err
    assert "8 runs in" in said.out and "8 finished" in said.out
    rows = read_rows(out)
    shared = [row for row in rows if row["copied_from"]]
    assert len(rows) == 8 and len(shared) == 2
    for row in shared:
        (source,) = [r for r in rows if r["key"] == row["copied_from"]]
        assert row["train_loss"] == source["train_loss"] and (row["flops"], row["seconds"]) == (0, 0)
        assert {row["recipe"], source["recipe"]} == {"sp", "mup"} and row["width"] == source["width"] == 16
    assert all(
        row["base.width"] == 16 and row["git"] and row["environment"] and row["cpu_seconds"] is not None for row in rows
    )
    with Store(out, create=False) as store:
        points = store.points()
        assert all([p["step"] for p in points[row["key"]]] == [1, 6, 12, 18, 24] for row in rows)
        assert store.notes()["command"].startswith("mutransfer sweep gpt")

    assert sweep(f"gpt --grid recipe=sp,mup width=16,32 lr=2^-8,2^-6,2^-4 --set {SMALL} --out {out} --json") == 0
    more = json.loads(capsys.readouterr().out)
    assert len(more) == 12
    kept = {row["key"]: row for row in read_rows(out)}
    assert all(kept[row["key"]] == row for row in rows)


def test_a_finished_command_is_answered_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    line = f"gpt --grid lr=2^-8,2^-6 --set width=16 {SMALL} --out {tmp_path / 'runs'}"
    assert sweep(line) == 0
    first = capsys.readouterr().out

    def never(*_: object) -> None:
        raise AssertionError("a config was made")

    monkeypatch.setattr("mutransfer.commands.sweep.Sweep.wanted", never)
    assert sweep(line) == 0
    assert capsys.readouterr().out == first
    monkeypatch.setattr("mutransfer.__version__", "9")
    with pytest.raises(AssertionError):
        from mutransfer.commands.sweep import Sweep

        Sweep("gpt", ("lr=2^-8,2^-6",), tmp_path / "runs", tuple(f"width=16 {SMALL}".split())).run()


def test_the_users_own_code_is_never_taken_as_known(theirs: Path) -> None:
    from mutransfer.commands.sweep import Sweep

    assert complete.request(Sweep("theirs.py:run", ("lr=1,2",), theirs)) is None
    assert complete.request(Sweep("gpt", ("lr=1,2",), theirs, set=("data=mine.txt",))) is None
    assert complete.request(Sweep("gpt", ("lr=1,2",), theirs, set=("data=topics",))) is not None


def test_the_users_own_function_is_swept(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = "--grid width=1,32,64 lr=2^-7,2^-6,2^-2 seed=0..1"
    assert sweep(f"theirs.py:run {grid} --out runs") == 1  # those of width 1 failed
    said = capsys.readouterr()
    assert "4 failed" in said.out and "ValueError: width 1 cannot be" in said.err
    rows = read_rows(theirs / "runs")
    assert len(rows) == 18
    for row in rows:
        x, width = math.log2(row["lr"]), row["width"]
        if x == -2 and width > 1:
            assert (row["status"], row["loss"]) == ("diverged", None) and "nan" in row["reason"]
        elif width == 1 and x < -3:
            assert row["status"] == "failed" and "width 1 cannot be" in row["reason"]
        elif width > 1:
            assert row["loss"] == pytest.approx(2.4 - 0.03 * math.log2(width / 32) + 0.03 * (x + 6) ** 2)
            assert row["flops"] == width**2
    with Store(theirs / "runs", create=False) as store:
        (key,) = [r["key"] for r in rows if (r["width"], r["lr"], r["seed"]) == (32, 2**-6, 1)]
        assert [(p["step"], p["loss"], p["tokens"]) for p in store.points([key])[key]] == [(1, 3.0, 1), (2, 1.5, 2)]


def test_the_adaptive_search_of_the_users_function_and_its_verdict(
    theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = "--grid width=32,64,128 lr=2^-11..2^-3/2 seed=0,1 slope=0.0,-1.0"
    assert sweep(f"theirs.py:run {grid} --search adaptive --out runs") == 0
    rows = read_rows(theirs / "runs")
    assert len(rows) < 0.5 * 17 * 3 * 2 * 2
    capsys.readouterr()
    assert main(["verdict", "runs", "--by", "slope", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert "HOLDS" in json.dumps(found) and "DRIFTS" in json.dumps(found)
    before = {row["key"] for row in rows}
    assert sweep(f"theirs.py:run {grid} --search adaptive --out runs") == 0
    assert {row["key"] for row in read_rows(theirs / "runs")} == before


def test_hopeless_runs_are_given_up_half_way_and_promising_ones_go_on_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "adaptive", tmp_path / "grid"
    line = f"gpt --grid lr=2^-16..2^-4 --set width=16 {SMALL} --out"
    assert sweep(f"{line} {out} --search adaptive") == 0
    assert sweep(f"{line} {whole}") == 0
    rows, full = read_rows(out), {row["key"]: row for row in read_rows(whole)}
    given_up = [row for row in rows if row["status"] == "stopped"]
    assert given_up and all("given up half-way" in row["reason"] and row["updates"] == 12 for row in given_up)
    done = [row for row in rows if row["status"] == "finished" and row["key"] in full]
    assert done and all(row["train_loss"] == full[row["key"]]["train_loss"] for row in done)
    best = min((row for row in full.values()), key=lambda row: row["train_loss"])
    assert best["key"] in {row["key"] for row in done}
    assert all(row["flops"] == pytest.approx(0.5 * full[row["key"]]["flops"]) for row in given_up)
    assert not (out / "checkpoints").exists() or not list((out / "checkpoints").iterdir())


def test_optuna_tunes_at_the_smallest_size_and_the_best_is_run_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    out = tmp_path / "runs"
    line = (
        f"gpt --grid width=16,32 lr=2^-10..2^-4 init_std=0.02,0.2 --set {SMALL} --search optuna --trials 6 --out {out}"
    )
    assert sweep(line) == 0
    first = capsys.readouterr().out
    assert "best of 6 trials at the smallest size: " in first
    with Store(out, create=False) as store:
        tuned = store.notes()["tuned"]
    rows = read_rows(out)
    small, large = ([row for row in rows if row["width"] == width] for width in (16, 32))
    assert len(large) == 3 and {row["init_std"] for row in large} == {tuned["values"]["init_std"]}
    assert sorted(row["lr"] / tuned["values"]["lr"] for row in large) == pytest.approx([0.5, 1, 2])
    assert min(row["train_loss"] for row in small) <= tuned["loss"] <= sorted(row["train_loss"] for row in small)[2]
    assert all(
        2**-10 <= row["lr"] <= 2**-4 or row["lr"] in {0.5 * tuned["values"]["lr"], 2 * tuned["values"]["lr"]}
        for row in small
    )


def test_something_long_is_asked_for_and_without_a_terminal_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (
        f"gpt --grid lr=2^-8,2^-6 --set width=16 {SMALL.replace('steps=24', 'steps=1000000')} --out {tmp_path / 'runs'}"
    )
    assert sweep(line) == 2
    said = capsys.readouterr().err
    assert "more than --limit 10 minutes: add --yes to start it" in said and not (tmp_path / "runs").exists()

    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return "n\n"

    monkeypatch.setattr("sys.stdin", Terminal())
    assert sweep(line) == 2
    assert (
        "start? [y/N]" in (said := capsys.readouterr().err)
        and "not started" in said
        and not (tmp_path / "runs").exists()
    )


@pytest.mark.parametrize(("line", "said"), [
    ("gpt --grid lr=2^-8 --set lr=0.1", "lr is in --grid and in --set"),
    ("theirs.py:run --grid width=32 lr=fast", "--grid lr=fast: give numbers above 0"),
    ("theirs.py:run --grid width=32 lr=0", "--grid lr=0: give numbers above 0"),
    ("theirs.py:run --grid lr=2^-8 --set width=-8", "--set width=-8: give numbers above 0"),
    ("theirs.py:run --grid width=32 lr=2^-8,2^-7 --search adaptive --metric accuracy", "the runs have no such number; write one of loss"),
    ("gpt --grid lr", "write name=values"),
    ("gpt --grid rate=1,2", "has a field 'rate'"),
    ("gpt --grid width=15 lr=2^-8", "head_size"),
    ("gpt --grid lr=2^-8 --search random", "choose from grid, adaptive, optuna"),
    ("gpt --grid lr=2^-8 --executor cloud", "choose from local, ray, slurm"),
    ("gpt --grid lr=2^-8 --ranks 0", "at least 1"),
    ("gpt --grid lr=2^-8 --slurm time=60", "is for --executor slurm"),
    ("gpt --grid lr=2^-8 --executor slurm --slurm tasks_per_node=2", "every run is one task"),
    ("gpt --grid width=64,128 --search adaptive", "needs learning rates"),
    ("gpt --grid lr=2^-8 --tracker paper", "tracker 'paper' is unknown"),
    ("nothing.py:run --grid lr=1", "there is no file"),
    ("theirs.py:run --grid lr=1 --set width=32 size=3", "takes no 'size'"),
    ("theirs.py:run --grid lr=1", "needs 'width'"),
    ("theirs.py:two --grid width=1,2", "every run failed; the first: theirs.py:two returned 'high'"),
])  # fmt: skip
def test_what_cannot_be_swept_is_one_line(
    line: str, said: str, theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(f"{line} --out runs") == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert said in err[-1] and "Traceback" not in " ".join(err)


def test_runs_are_exported_as_csv_and_parquet(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("theirs.py:run --grid width=32,64 lr=2^-7,2^-2 --out runs") == 0
    assert main(["export", "runs", "--out", "runs.csv"]) == 0
    with (theirs / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["width"], row["status"], bool(row["loss"])) for row in rows] == [
        (row["width"], row["status"], row["status"] == "finished") for row in rows
    ]
    assert {row["key"] for row in rows} == {row["key"] for row in read_rows(theirs / "runs")}
    capsys.readouterr()
    assert main(["export", "runs", "--out", "points.csv", "--points", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 4
    parquet = pytest.importorskip("pyarrow.parquet")
    assert main(["export", "runs", "--out", "runs.parquet"]) == 0
    assert parquet.read_table(theirs / "runs.parquet").num_rows == 4
    for line, said in (
        ("export runs --out runs.txt", "end it in .csv or .parquet"),
        ("export nowhere --out x.csv", "holds no sweep"),
    ):
        assert main(line.split()) == 2
        assert said in capsys.readouterr().err


def test_a_returned_number_never_stands_for_what_the_run_was(theirs: Path) -> None:
    (theirs / "clash.py").write_text(
        'def run(width, lr):\n    return {"loss": 2.0, "lr": 9.0, "status": 1.0, "key": 3}\n'
    )
    assert sweep("clash.py:run --grid width=32 lr=2^-7 --out runs") == 0
    (row,) = read_rows(theirs / "runs")
    assert (row["lr"], row["status"], row["loss"]) == (2**-7, "finished", 2.0)
    assert (row["returned.lr"], row["returned.status"], row["returned.key"]) == (9.0, 1.0, 3.0)


@pytest.mark.parametrize(("returned", "said"), [
    ('{"loss": 2.0, "note": "high"}', "odd:run returned 'note': 'high', not a number"),
    ('{"loss": None}', "odd:run returned 'loss': None, not a number"),
    ("True", "odd:run returned True, not a number"),
    ('{"val": 1.0}', "odd:run returned {'val': 1.0}: return the loss"),
    ("[1.0]", "odd:run returned [1.0], not a number"),
])  # fmt: skip
def test_what_is_no_loss_is_named(returned: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mutransfer.sweep import jobs

    monkeypatch.setattr(jobs, "import_function", lambda spec, cwd: lambda: eval(returned))
    with pytest.raises(InputError) as caught:
        jobs.call_function("odd:run", str(tmp_path), {}, None, print)
    assert said in str(caught.value)


def test_a_loss_with_its_graph_is_a_loss_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from mutransfer.sweep import jobs

    monkeypatch.setattr(jobs, "import_function", lambda spec, cwd: lambda: 2 * torch.ones(1, requires_grad=True))
    assert jobs.call_function("theirs:run", str(tmp_path), {}, None, print)["metrics"] == {"loss": 2.0}


def test_a_sweep_without_points_or_results_says_so(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (theirs / "mute.py").write_text("def run(width, lr):\n    return 1 / (width - 1)\n")
    assert sweep("mute.py:run --grid width=1 lr=2^-7,2^-6 --out failed") == 2
    assert sweep("mute.py:run --grid width=2 lr=2^-7 --out runs") == 0
    for line, said in (
        ("verdict failed", "no run of the table has a result"),
        ("export runs --out points.csv --points", "holds no points, for none of its runs logged any"),
    ):
        capsys.readouterr()
        assert main(line.split()) == 2
        assert said in capsys.readouterr().err
    assert not (theirs / "points.csv").exists()
