"""`mutransfer probe`: facts and exit code 0, reasons and 1, bad input and 2."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mutransfer.cli import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(
        "import torch\n\nclass Mine(torch.optim.SGD):\n    pass\n\n"
        "class Half(torch.optim.Optimizer):\n"
        "    def __init__(self, params, lr=0.1):\n        super().__init__(params, {'lr': lr})\n\n"
        "    @torch.no_grad()\n    def step(self):\n        for group in self.param_groups:\n"
        "            for w in group['params']:\n"
        "                w.sub_(group['lr'] * w.grad.sign() * w.grad.abs().sqrt())\n"
    )


def test_a_users_class_is_probed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "mine:Mine", "--set", "momentum=0.9", "nesterov=true", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reliable"] and found["facts"]["norm"] == "‖G‖₂" and found["confidence"] == 1
    assert main(["probe", "mine.py:Mine"]) == 0
    assert found["line"] in capsys.readouterr().out


def test_no_facts_is_exit_code_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "mine:Half", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["facts"] is None and found["line"] is None and "0.5" in found["reasons"][0]
    assert main(["probe", "mine:Half"]) == 1
    assert "No facts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("probe mine:Nothing", "Nothing"),
        ("probe lbfgs", "closure"),
        ("probe adamww", "adamww"),
        ("probe mine:Mine --set momentum", "momentum"),
        ("probe mine:Mine --set speed=9", "speed"),
        ("probe mine:Mine --set group=1", "--group"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1
