"""The commands do what they say: verdicts become exit codes, `--json` is JSON, a run continues, help is quick."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mutransfer as mt
from mutransfer import commands
from mutransfer.cli import main
from mutransfer.commands.plan import Plan
from mutransfer.experiments import EXPERIMENTS, ladder
from mutransfer.train import RunResult

PLAN = ["plan", "gpt", "--base", "width=32", "--target", "width=64"]
CHECK = "check mlp --sizes 16 32 64 --steps 2 --seeds 2 --lr 0.01 --json"
TRAIN = "train gpt --set width=16 head_size=16 depth=1 context=16 batch=4 warmup=2 lr=0.01 checkpoint_every=2"

USER = """
import torch
from torch import nn

import mutransfer as mt
from mutransfer.models import MLPConfig
from mutransfer.train import RunConfig


def make(width, depth=1):
    return nn.Sequential(nn.Linear(8, width), *(nn.Linear(width, width) for _ in range(depth)), nn.Linear(width, 2))


def standard(size):
    model = make(size)
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


class OwnAdamW(torch.optim.AdamW):
    pass


mt.register_optimizer("OwnAdamW", mt.facts_for("adamw"))

batches = [torch.ones(4, 8), -torch.ones(4, 8)]


def loss(model, batch):
    return (model(batch) - 1).square().mean()


def config():
    return RunConfig(model=MLPConfig(width=16), base={"width": 16}, data="digits", steps=4, warmup=1, batch=8)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's current folder, with a module of theirs."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUTRANSFER_DATA", str(tmp_path / "data"))
    (tmp_path / "my_code.py").write_text(USER)
    monkeypatch.delitem(sys.modules, "my_code", raising=False)
    return tmp_path


def run(line: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    """The JSON that a command prints."""
    assert main(line.split()) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", ["", *commands.COMMANDS])
def test_help_describes_every_option_and_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    out, err = capsys.readouterr()
    assert "xample" in out and f"mutransfer {command}".strip() in out and err == ""
    kind: Any = commands.COMMANDS.get(command)
    for name in () if kind is None else [field.name for field in dataclasses.fields(kind)]:
        if name not in ("model", "build", "config", "checkpoint", "name", "action", "folder", "table"):
            assert f"--{name.rstrip('_').replace('_', '-')}" in out


def test_nothing_to_do_shows_help_and_version_is_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0 and "quickstart" in capsys.readouterr().out
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"mutransfer {mt.__version__}\n"


def test_help_loads_nothing_that_it_does_not_need() -> None:
    code = (
        "import sys; from mutransfer.cli import main; main(['check', '--help']); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    loaded = set(done.stderr.split())
    assert not loaded & {
        "matplotlib",
        "jinja2",
        "scipy",
        "sklearn",
        "mutransfer.train",
        "mutransfer.data",
    }


@pytest.mark.parametrize(("options", "verdict", "code"), [
    ("", "PASS", 0), ("--recipe sp", "FAIL", 1), ("--sizes 16 32", "INCONCLUSIVE", 3),
])  # fmt: skip
def test_the_verdict_is_the_exit_code(
    options: str, verdict: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    base = CHECK.replace("--sizes 16 32 64 ", "") if "--sizes" in options else CHECK
    assert run(f"{base} {options}", capsys, code)["verdict"] == verdict


def test_a_users_own_code_is_checked_and_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "check my_code:standard --sizes 16 32 64 128 --batches my_code:batches --loss my_code:loss --out report"
    assert main(line.split()) == 1
    out = capsys.readouterr().out
    assert out.startswith("FAIL") and "report/report.html" in out
    assert {path.name for path in (folder / "report").iterdir()} == {"report.html", "check.png", "check.json"}
    assert json.loads((folder / "report" / "check.json").read_text())["verdict"] == "FAIL"
    page = (folder / "report" / "report.html").read_text()
    assert "FAIL" in page and str(folder) not in page


def test_a_plan_is_printed_saved_and_read_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--base width=32 depth=2 --target width=128 depth=4"
    printed = run(f"plan my_code:make {sizes} --optimizer my_code:OwnAdamW --save plan.json --json", capsys)
    plan = mt.Plan.load(folder / "plan.json")
    assert printed == json.loads(json.dumps(plan.to_dict()))
    assert plan["1.weight"].ratios.lr == 0.25 and plan["1.weight"].target_shape == (128, 128)
    assert main(f"plan gpt {sizes} --recipe completep --fixed head_size=16".split()) == 0
    out = capsys.readouterr().out
    assert "completep" in out and "lr=" in out


def test_sizes_are_read_as_python_writes_them() -> None:
    from mutransfer.commands.user_code import pairs

    read = pairs(["a=3", "b=0.5", "c=true", "d=None", "e=rmsnorm", "f=(1,2)", "g=1e-3", "h=x=y"], "--set")
    assert read == {"a": 3, "b": 0.5, "c": True, "d": None, "e": "rmsnorm", "f": (1, 2), "g": 1e-3, "h": "x=y"}


def test_a_training_run_is_continued_by_the_same_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(f"{TRAIN} steps=6 --out whole --json", capsys)
    assert whole["status"] == "finished" and len(whole["losses"]) == 6
    written = (folder / "whole" / "result.json").stat().st_mtime_ns
    again = run(f"{TRAIN} steps=6 --out whole --json", capsys)
    assert again["losses"] == whole["losses"] and (folder / "whole" / "checkpoint.pt").stat().st_mtime_ns <= written
    fresh = run(f"{TRAIN} steps=6 --out whole --fresh --json", capsys)
    assert fresh["losses"] == whole["losses"]
    assert main(f"{TRAIN} steps=8 --out whole".split()) == 2  # another config does not continue it
    assert "steps=8 differs from steps=6" in capsys.readouterr().err


def test_a_diverged_run_is_a_result_with_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    settings = "train mlp --set optimizer=sgd lr=1e30 clip=none steps=6 warmup=0 batch=4 log_every=1"
    assert run(f"{settings} --out gone --json", capsys, 1)["status"] == "diverged"
    assert main(f"{settings} --out gone".split()) == 1 and "DIVERGED" in capsys.readouterr().out


def test_a_config_function_describes_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    result = run("train my_code:config --set steps=3 --out run --json", capsys)
    assert result["config"]["steps"] == 3 and result["config"]["data"] == "digits"
    assert RunResult.from_dict({k: v for k, v in result.items() if k not in ("folder", "config")}).status == "finished"


def test_a_trained_gpt_generates_the_same_text_for_the_same_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"{TRAIN} steps=4 --out model".split()) == 0
    capsys.readouterr()
    first = run("generate model --prompt The --tokens 12 --json", capsys)
    assert len(first["text"]) == 12 and first == run(
        "generate model/checkpoint.pt --prompt The --tokens 12 --json", capsys
    )
    assert first != run("generate model --prompt The --tokens 12 --seed 1 --json", capsys)
    assert main(["generate", "model", "--prompt", "☃"]) == 2 and "☃" in capsys.readouterr().err


def test_data_is_listed_and_prepared_from_a_local_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "play.txt").write_text("To be, or not to be.\n" * 30)
    assert not {row["name"]: row for row in run("data list --json", capsys)}["wikitext-2"]["present"]
    made = run("data prepare wikitext-2 --source play.txt --tokenizer byte --json", capsys)
    assert made["meta"]["train_tokens"] + made["meta"]["val_tokens"] == 21 * 30 and not made["cached"]
    assert run("data prepare wikitext-2 --source play.txt --tokenizer byte --json", capsys)["cached"]
    assert {row["name"]: row for row in run("data list --json", capsys)}["wikitext-2"]["present"]
    assert main(["data", "list"]) == 0 and "shakespeare" in capsys.readouterr().out


def test_experiments_are_listed_and_the_ladder_removes_the_growth(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {row["name"] for row in run("experiments --json", capsys)} == set(EXPERIMENTS)
    tiny = ladder.Config((16, 32, 64), head_size=16, context=16, batch=2, seeds=1, data="topics", steps=3)
    monkeypatch.setattr(ladder, "config", lambda size: tiny)
    outcome = run("experiments coord-ladder --out ladder --json", capsys)
    assert outcome["verdicts"]["SP"] == "FAIL" and outcome["verdicts"][ladder.RUNGS[-1]] == "PASS"
    slopes = {(row["rung"], row["panel"]): row["last"] for row in outcome["slopes"]}
    assert slopes["SP", "MLP"] > 0.8 and abs(slopes[ladder.RUNGS[-1], "MLP"]) < 0.3
    assert {path.name for path in (folder / "ladder").iterdir()} == {"ladder.png", "ladder.json", "report.html"}


def test_an_interruption_is_one_line_and_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: Plan) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Plan, "run", interrupted)
    assert main(PLAN) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bug_shows_its_traceback_and_is_not_mistaken_for_a_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Plan) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(Plan, "run", broken)
    assert main(PLAN) == 70
    assert "Traceback" in capsys.readouterr().err


def test_work_of_an_earlier_process_does_not_shorten_the_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from mutransfer.commands import output

    clock = [0.0]
    monkeypatch.setattr(output.time, "perf_counter", lambda: clock[0])
    progress = output.Progress("train", 100.0)
    clock[0] = 3.0
    progress.skip(80.0)
    assert progress.eta() == "ETA –"
    clock[0] = 13.0
    progress.advance(5.0)
    assert progress.eta() == "ETA 0:30"  # 2 s a step, 15 left
