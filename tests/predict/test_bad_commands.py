"""Every wrong `mutransfer predict` is one clear line, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mutransfer.cli import main
from tests.predict.tables import grid
from tests.predict.test_holdout import ladder

# (command line, what its one line must say)
COMMANDS: list[tuple[str, str]] = [
    ("", "also needs FILE"),
    ("absent.csv", "does not exist"),
    ("a_file", "is no table"),
    ("runs.csv more.csv", "more.csv"),
    ("runs.csv --targt params=1e9", "did you mean --target?"),
    ("runs.csv --out folder", "--out"),
    # the law
    ("runs.csv --law powr", "did you mean 'power'"),
    ("runs.csv --law linear", "write one of power"),
    ("runs.csv --law chinchilla", "needs tokens"),
    ("runs.csv --law data-constrained", "needs tokens"),
    ("runs.csv --over depth", "depth is 12 in every row"),
    ("runs.csv --over widht", "did you mean 'width'"),
    ("runs.csv --over tokens", "the table has no tokens"),
    ("runs.csv --over params params", "given twice"),
    ("runs.csv --over params --size params", "one of them"),
    ("grid.csv --law power --over params tokens", "takes 1 variables"),
    ("runs.csv --size tokens", "the table has no tokens"),
    ("runs.csv --size big", "no such variable"),
    ("runs.csv --interval exact", "profile or bootstrap"),
    ("runs.csv --level 90", "between 0.5 and 0.99"),
    ("runs.csv --level -0.9", "between 0.5 and 0.99"),
    ("runs.csv --level nan", "between 0.5 and 0.99"),
    ("runs.csv --level high", "'high' is not a number"),
    # targets
    ("runs.csv --target params", "NAME=VALUE"),
    ("runs.csv --target params=", "NAME=VALUE"),
    ("runs.csv --target =1e9", "NAME=VALUE"),
    ("runs.csv --target params=big", "'big' is not a number"),
    ("runs.csv --target params=-1e9", "is not a number above 0"),
    ("runs.csv --target params=0", "is not a number above 0"),
    ("runs.csv --target params=nan", "is not a number above 0"),
    ("runs.csv --target params=inf", "is not a number above 0"),
    ("runs.csv --target params=1e9,", "is not a number above 0"),
    ("runs.csv --target parms=1e9", "did you mean 'params'"),
    ("runs.csv --target params_M=1400", "in units of one"),
    ("runs.csv --target params=1,400,000,000", "commas separate"),
    ("runs.csv --target params=1,4e9", "commas separate"),
    ("runs.csv --target params=1.4", "times below the smallest run"),
    ("runs.csv --target params=1e9 params=2e9", "given twice"),
    ("runs.csv --target params=1e9 n_params=2e9", "given twice"),
    ("runs.csv --target depth=24", "depth is 12 in every row"),
    ("runs.csv --target lr=0.1", "no size"),
    ("runs.csv --target params=1e9 depth=24", "every run has depth=12"),
    ("runs.csv --target params=1e9 tokens=1e10", "the table has no tokens"),
    ("runs.csv --target params=1e9 --over width", "write width=VALUE"),
    ("runs.csv --target params=1e9 --size width", "write width=VALUE"),
    ("runs.csv --target params=1,2,3,4,5,6,7,8,9,10,11 width=1,2,3,4,5,6,7,8,9,10", "more than 100"),
    ("grid.csv --target params=1e9", "write tokens=VALUE too"),
    ("grid.csv --target tokens=1e9", "write params=VALUE too"),
    ("grid.csv --target compute=1e22", "mutransfer budget"),
    ("grid.csv --target params=1e9 tokens=1e10 compute=1e25", "compute follows from params and tokens"),
    ("tied.csv --target params=1e9 tokens=1e12", "tokens follows from params"),
    # what is held out
    ("runs.csv --hold-out largest", "largest:3"),
    ("runs.csv --hold-out smallest:3", "largest:3"),
    ("runs.csv --hold-out largest:-1", "largest:3"),
    ("runs.csv --hold-out largest:8", "hides 8 of 8"),
    ("runs.csv --hold-out largest:100%", "hides 8 of 8"),
    ("runs.csv --hold-out largest:5", "leaves 3 of 8 runs to fit"),
    ("runs.csv --hold-out params>1", "hides every run"),
    ("runs.csv --hold-out params>1e12", "no run is there"),
    ("runs.csv --hold-out params>big", "'big' is not a number"),
    ("runs.csv --hold-out seed>1", "no variable 'seed'"),
    ("grid.csv --hold-out tokens>1e9", "tokens is 1e+09 in every run that is left"),
    # columns
    ("runs.csv --columns params", "params=n_total"),
    ("runs.csv --columns params=absent", "no such column"),
    ("runs.csv --columns prams=params", "did you mean 'params'"),
    ("runs.csv --columns params=params params=width", "names 'params' twice"),
    ("runs.csv --units params", "params=M"),
    ("runs.csv --units params=smoots", "is no unit"),
    ("runs.csv --loss absent", "no such column"),
    ("runs.csv --loss-unit joule", "nats, bits"),
    ("runs.csv --where width", "recipe=mup"),
    ("runs.csv --where width=5", "no row has it"),
    ("runs.csv --where width=64", "one point"),
    ("runs.csv --by absent", "no such column"),
    ("runs.csv --by width", "width=64 (of 64, 96"),
    ("runs.csv --at worst", "best, shared or a learning rate"),
    ("runs.csv --at -1", "best, shared or a learning rate"),
    ("runs.csv --at 0.1", "no column for the LR"),
    # files
    ("runs.csv --figure loss.bmp", ".png, .svg or .pdf"),
    ("runs.csv --figure loss", ".png, .svg or .pdf"),
    ("runs.csv --figure .", "is a folder"),
    ("runs.csv --figure a_file/loss.png", "cannot be written"),
    ("runs.csv --page loss.pdf", "must end in .html"),
    ("runs.csv --page .", "is a folder"),
    ("runs.csv --page a_file/loss.html", "cannot be written"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's current folder, with tables."""
    tied = [{"params": n, "tokens": 20 * n, "loss": 2 + 900 * n**-0.4 + 0.001 * (-1) ** i} for i, n in enumerate((1e6, 3e6, 1e7, 3e7, 1e8, 3e8))]  # fmt: skip
    for name, rows in {"runs.csv": ladder(), "grid.csv": grid(), "tied.csv": tied}.items():
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    (tmp_path / "a_file").write_text("a file")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("line", "said"), COMMANDS, ids=[line or "nothing" for line, _ in COMMANDS])
def test_a_wrong_command_is_one_line_and_leaves_nothing(
    line: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    code = main(["predict", *line.split()])
    out, err = capsys.readouterr()
    assert code == 2, (out, err)
    assert err.startswith("mutransfer: ") and err.count("\n") == 1 and out == "", (out, err)
    assert said in err and "Traceback" not in err and len(err) < 600, err
    assert sorted(folder.rglob("*")) == before
