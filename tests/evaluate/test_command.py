"""`mutransfer evaluate`: one line per domain, exit codes that say whether the prediction held, one line for bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mutransfer.cli import main
from mutransfer.models import MLPConfig
from mutransfer.train import RunConfig, train
from tests.evaluate.runs import trained, words


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, texts, and the run of an MLP."""
    folder = tmp_path_factory.mktemp("evaluate")
    trained(folder)
    for name, content in {
        "a.txt": words(400, 1).encode(), "b.txt": words(300, 2).encode(), "empty.txt": b"", "one.txt": b"a",
        "snow.txt": "a\nfew ☃".encode(), "latin.txt": b"gr\xf6\xdfer", "no.json": b"{}",
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)
    (folder / "nothing").mkdir()
    train(RunConfig(model=MLPConfig(), recipe="sp", data="digits", steps=1, warmup=0, batch=8), folder=folder / "mlp")
    return folder


@pytest.fixture
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def run(line: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    assert main([*line.split(), "--device", "cpu", "--json"]) == code
    return json.loads(capsys.readouterr().out)


def predict(folder: Path, *rows: dict[str, Any], **more: Any) -> None:
    (folder / "p.json").write_text(json.dumps({"predictions": list(rows), "columns": {"loss": "val_loss"}, **more}))


def test_by_default_the_held_out_split_is_evaluated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run("evaluate run", capsys)
    assert set(out) == {
        "checkpoint", "model", "sizes", "context", "stride", "domains", "all", "predicted", "inside", "notes",
    }  # fmt: skip
    (row,) = out["domains"]
    assert set(row) == {"domain", "tokens", "bytes", "nats", "stderr", "perplexity", "bits_per_byte", "predicted"}
    assert row["domain"] == "held-out text.txt" and (out["context"], out["stride"]) == (16, 16)
    assert row["perplexity"] == pytest.approx(math.exp(row["nats"])) and row["stderr"] > 0
    assert out["all"]["nats"] == pytest.approx(row["nats"], rel=1e-14)
    assert out["predicted"] is out["inside"] is row["predicted"] is None and out["notes"] == []
    result = json.loads((folder / "run" / "result.json").read_text())
    assert row["nats"] == pytest.approx(result["val_loss"], abs=0.05)


def test_each_file_is_a_domain_and_the_split_comes_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = run("evaluate run --text a.txt b.txt --context 12 --stride 4", capsys)
    assert [row["domain"] for row in files["domains"]] == ["a.txt", "b.txt"]
    assert (files["context"], files["stride"]) == (12, 4)
    assert files["domains"][0]["bytes"] == (folder / "a.txt").stat().st_size
    assert files["all"]["tokens"] == sum(row["tokens"] for row in files["domains"])
    both = run("evaluate run --text a.txt --held-out --batch 3", capsys)
    assert [row["domain"] for row in both["domains"]] == ["held-out text.txt", "a.txt"]


def test_the_table_has_a_line_per_domain(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict(folder, {"at": {"width": 16}, "loss": 2.5, "low": 0.1, "high": 4, "level": 0.9})
    assert main(["evaluate", "run", "--text", "a.txt", "b.txt", "--predicted", "p.json", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("run: gpt of width 16, depth 1")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert {"domain", "a.txt", "b.txt", "all"} <= set(lines)
    assert "±" in lines["a.txt"] and "2.5000 [0.1000, 4.0000]" in lines["a.txt"] and lines["a.txt"].endswith("yes")
    assert "the loss predicted is that of val_loss" in out
    assert "inside: predicted for val_loss at width=16 at 90%" in out


def test_the_exit_code_says_whether_the_prediction_held(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nats = run("evaluate run", capsys)["domains"][0]["nats"]
    params = run("evaluate run", capsys)["sizes"]["params"]
    near = {
        "at": {"params": 1.03 * params},
        "loss": nats + 0.01,
        "low": nats - 0.001,
        "high": nats + 0.03,
        "level": 0.8,
    }
    far = {"at": {"params": 100 * params}, "loss": 1.0, "low": 0.9, "high": 1.1, "level": 0.8}
    predict(folder, far, near)
    out = run("evaluate run --predicted p.json", capsys, 0)
    assert out["inside"] is True and out["predicted"]["at"] == near["at"] and out["predicted"]["column"] == "val_loss"
    said = out["domains"][0]["predicted"]
    assert said["inside"] and said["perplexity"] == pytest.approx(math.exp(nats + 0.01))
    predict(folder, {**near, "low": nats + 0.001})
    assert run("evaluate run --predicted p.json", capsys, 1)["inside"] is False
    assert main(["evaluate", "run", "--predicted", "p.json", "--device", "cpu"]) == 1
    assert "OUTSIDE: predicted for val_loss" in capsys.readouterr().out
    predict(folder, {**near, "loss": nats / math.log(2), "low": 0, "high": None}, loss_unit="bits")
    assert run("evaluate run --predicted p.json", capsys, 0)["domains"][0]["predicted"]["high"] is None


def test_the_held_out_split_decides_where_it_is_among_the_domains(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prediction is for the loss that was fitted: a file of another kind does not refute it."""
    (folder / "other.txt").write_text("lest we forget of mares " * 40)
    held = run("evaluate run --text other.txt --held-out", capsys)["domains"]
    low, high = held[0]["nats"] - 0.1, held[0]["nats"] + 0.1
    assert held[1]["nats"] > high
    predict(folder, {"at": {"width": 16}, "loss": held[0]["nats"], "low": low, "high": high, "level": 0.9})
    out = run("evaluate run --text other.txt --held-out --predicted p.json", capsys, 0)
    assert [row["predicted"]["inside"] for row in out["domains"]] == [True, False]
    assert run("evaluate run --text other.txt --predicted p.json", capsys, 1)["inside"] is False


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("evaluate", "CHECKPOINT"),
        ("evaluate nowhere", "'nowhere' does not exist"),
        ("evaluate nothing", "'nothing' is not a checkpoint"),
        ("evaluate a.txt", "'a.txt' is not a checkpoint"),
        ("evaluate mlp", "only a gpt predicts text"),
        ("evaluate run --device tpu", "device='tpu'"),
        ("evaluate run --text missing.txt", "'missing.txt' does not exist"),
        ("evaluate run --text nothing", "is a folder"),
        ("evaluate run --text empty.txt", "'empty.txt' is empty"),
        ("evaluate run --text one.txt", "'one.txt' has 1 token"),
        ("evaluate run --text latin.txt", "not UTF-8"),
        ("evaluate run --text a.txt snow.txt", "'snow.txt': character '☃' (offset 6, line 2)"),
        ("evaluate run --text a.txt a.txt", "given twice"),
        ("evaluate run --context 17", "--context 17 is longer than the model's 16"),
        ("evaluate run --context 0", "context=0"),
        ("evaluate run --context 8 --stride 9", "stride=9"),
        ("evaluate run --stride 17", "stride=17"),
        ("evaluate run --batch 0", "batch=0"),
        ("evaluate run --predicted missing.json", "missing.json"),
        ("evaluate run --predicted no.json", "holds no predictions"),
        ("evaluate run --predicted big.json", "no prediction is for this checkpoint"),
    ],
)
def test_bad_input_is_one_line(line: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "big.json").write_text(
        json.dumps({"predictions": [{"at": {"params": 1.4e9}, "loss": 2, "low": 1, "high": 3, "level": 0.9}]})
    )
    before = {path for path in folder.rglob("*")}
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("mutransfer: "), (out, err)
    assert said in err and len(err) < 600, err
    assert {path for path in folder.rglob("*")} == before


def test_a_run_that_diverged_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = trained(tmp_path, optimizer="sgd", lr=1e30, clip=None)
    assert result.status == "diverged"
    assert main(["evaluate", str(tmp_path / "run")]) == 2 and "diverged" in capsys.readouterr().err
