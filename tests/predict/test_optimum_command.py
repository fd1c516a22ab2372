"""`mutransfer optimum` on a table of optima, and wrong words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mutransfer.cli import main


@pytest.fixture
def optima(tmp_path: Path) -> Path:
    """lr* = 2·N^-0.5·D^0.2 with 5 % scatter."""
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(np.log(1e7), np.log(1e9), 20)), np.exp(rng.uniform(np.log(1e9), np.log(1e11), 20))
    lr = 2 * n**-0.5 * d**0.2 * np.exp(0.05 * rng.standard_normal(20))
    path = tmp_path / "optima.csv"
    path.write_text("params,tokens,lr\n" + "".join(f"{a},{b},{c}\n" for a, b, c in zip(n, d, lr, strict=True)))
    return path


def test_exponents_and_target(optima: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimum", str(optima), "--target", "params=7B", "tokens=1T", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["law"]["exponents"]["params"]["value"] == pytest.approx(-0.5, abs=0.05)
    assert found["law"]["exponents"]["tokens"]["value"] == pytest.approx(0.2, abs=0.05)
    (one,) = found["predictions"]
    assert one["low"] < 2 * 7e9**-0.5 * 1e12**0.2 < one["high"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--of", "wd"], "lr or batch"),
        (["--target", "params=7B"], "tokens"),
        (["--target", "params"], "NAME=VALUE"),
        (["--columns", "lr"], "NAME=VALUE"),
        (["--on", "depth"], "depth"),
        (["--level", "3"], "level"),
        (["--where", "recipe=mup"], "recipe"),
    ],
)
def test_wrong_words(optima: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["optimum", str(optima), *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
