"""Every wrong command and call gives one clear line and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mutransfer as mt
from mutransfer.check import coord_check
from mutransfer.cli import main
from mutransfer.errors import InputError
from mutransfer.models import MLP, GPTConfig, MLPConfig, ResNetConfig, mlp_factory
from mutransfer.train import RunConfig, train

USER = """
import torch
from torch import nn

from mutransfer.train import RunConfig
from mutransfer.models import MLPConfig


def make(width):
    return nn.Sequential(nn.Linear(8, width), nn.Linear(width, 2))


def broken(width):
    raise RuntimeError(f"no memory for\\nwidth {width}")


def leaves(width):
    raise SystemExit(3)


def number(width):
    return width


def fixed(width):
    return nn.Linear(8, 2)


def clamped(width):
    return nn.Sequential(nn.Linear(8, min(width, 32)), nn.Linear(min(width, 32), 2))


def build(size):
    model = make(size)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def no_optimizer(size):
    return make(size)


def foreign(size):
    return make(size), torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)


def infinite(size):
    model, optimizer = build(size)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    return model, optimizer


def batches():
    return [torch.ones(4, 8)]


def nothing():
    return []


def breaks():
    yield torch.ones(4, 8)
    raise OSError("disk gone")


def loss(model, batch):
    return model(batch).square().mean()


def vector(model, batch):
    return model(batch)


def failing(model, batch):
    raise KeyError("labels")


def config():
    return RunConfig(model=MLPConfig(), base={"width": 32}, data="digits", steps=2)


def not_a_config():
    return {"lr": 1}


value = 7
"""

DEEP = "BELOW/deep"  # a folder below a regular file: unwritable for everybody, root too
SIZES = "--base width=32 --target width=64"
OWN = "--sizes 16 32 64 --batches user_code:batches --loss user_code:loss"

# (command line, what its one line must say)
COMMANDS: list[tuple[str, str]] = [
    # the command line itself
    ("plna", "did you mean 'plan'"),
    ("--nonsense", "--nonsense"),
    ("plan", "MODEL"),
    ("plan gpt --base width=64", "--target"),
    (f"plan gpt {SIZES} --optimiser sgd", "--optimiser"),
    (f"plan gpt {SIZES} extra", "extra"),
    ("check gpt --sizes 64 large", "large"),
    ("check gpt --sizes 64 128.5", "128.5"),
    ("check gpt --sizes", "--sizes"),
    ("check gpt --sizes 32 64 --steps many", "many"),
    ("data", "list, prepare"),
    ("data fetch", "fetch"),
    ("data prepare", "NAME"),
    # plan: names and sizes
    ("plan gpt --base width --target width=64", "name=value"),
    ("plan gpt --base width=32 width=64 --target width=64", "twice"),
    (f"plan gpt {SIZES} --fixed width=16", "--fixed"),
    ("plan gpt --base width=33 --target width=66 --fixed head_size=16", "width=33"),
    ("plan gpt --base width=0 --target width=64", "width=0"),
    ("plan gpt --base width=-64 --target width=64", "width=-64"),
    ("plan gpt --base widht=32 --target widht=64", "widht"),
    ("plan gpt --base width=wide --target width=64", "wide"),
    (f"plan mlp {SIZES} --recipe muup", "muup"),
    (f"plan mlp {SIZES} --optimizer adamwx", "adamwx"),
    (f"plan mlp {SIZES} --mode sharp", "sharp"),
    (f"plan mlp {SIZES} --placement nowhere", "nowhere"),
    (f"plan mlp {SIZES} --fallback muon --optimizer muon", "fallback"),
    (f"plan mlp {SIZES} --axes pattern", "pattern"),
    (f"plan mlp {SIZES} --roles =output", "=output"),
    (f"plan mlp {SIZES} --save {DEEP}/plan.json", "cannot be written"),
    (f"plan mlp {SIZES} --save .", "is a folder"),
    # plan: the user's own code
    (f"plan resnet34 {SIZES}", "resnet34"),
    (f"plan no_such_package.model:make {SIZES}", "no_such_package"),
    (f"plan user_code:mak {SIZES}", "did you mean 'make'"),
    (f"plan user_code:value {SIZES}", "not a function"),
    (f"plan user_code: {SIZES}", "names no"),
    (f"plan no_such_file.py:make {SIZES}", "no_such_file.py"),
    (f"plan syntax.py:make {SIZES}", "SyntaxError"),
    (f"plan imports.py:make {SIZES}", "no_such_dependency"),
    (f"plan raises.py:make {SIZES}", "ZeroDivisionError: division by zero (raises.py:1)"),
    (f"plan exits.py:make {SIZES}", "SystemExit"),
    (f"plan user_code:broken {SIZES}", "RuntimeError: no memory for width 32 (user_code.py:"),
    (f"plan user_code:leaves {SIZES}", "SystemExit: 3"),
    (f"plan user_code:number {SIZES}", "not an nn.Module"),
    (f"plan user_code:fixed {SIZES}", "same shapes"),
    (f"plan user_code:clamped {SIZES}", "same shapes"),
    ("plan user_code:make --base depth=2 --target depth=4", "TypeError"),
    (f"plan user_code:make {SIZES} --optimizer user_code:Nope", "Nope"),
    # check
    ("check gpt --sizes 64", "two different sizes"),
    ("check gpt --sizes 64 64 128", "two different sizes"),
    ("check gpt --sizes 0 64 128", "above 0"),
    ("check gpt --sizes 40 64", "width=40"),
    ("check gpt --sizes 32 64 --steps 0", "--steps 0"),
    ("check gpt --sizes 32 64 --seeds 0", "--seeds 0"),
    ("check gpt --sizes 32 64 --batch 0", "--batch 0"),
    ("check gpt --sizes 32 64 --lr -0.1", "--lr"),
    ("check gpt --sizes 32 64 --lr nan", "--lr nan"),
    ("check gpt --sizes 32 64 --clip -1", "clip"),
    ("check gpt --sizes 32 64 --recipe mip", "did you mean 'mup'"),
    ("check gpt --sizes 32 64 --optimizer adamm", "adam"),
    ("check gpt --sizes 32 64 --data shakespear", "did you mean 'shakespeare'"),
    ("check gpt --sizes 32 64 --data wikitext-103", "mutransfer data prepare wikitext-103"),
    ("check gpt --sizes 32 64 --data empty.txt", "empty"),
    ("check gpt --sizes 32 64 --data binary.txt", "binary.txt"),
    ("check gpt --sizes 32 64 --data missing.txt", "missing.txt"),
    ("check gpt --sizes 32 64 --context 1000000", "context"),
    ("check gpt --sizes 32 64 --data digits", "gpt cannot read"),
    ("check resnet --sizes 8 16 --data digits", "resnet cannot read"),
    ("check resnet --sizes 2 4 --axis depth", "no depth"),
    ("check gpt --sizes 32 64 --axis heads", "--axis 'heads'"),
    ("check gpt --sizes 32 64 --fixed width=32", "--fixed"),
    ("check gpt --sizes 32 64 --fixed norm=batchnorm", "batchnorm"),
    ("check user_code:build --sizes 16 32 --fixed depth=2", "your own code"),
    ("check user_code:build --sizes 16 32 --data digits --batches user_code:batches", "write one of them"),
    (f"check user_code:no_optimizer {OWN}", "model alone"),
    (f"check user_code:number {OWN}", "(model, optimizer)"),
    (f"check user_code:foreign {OWN}", "none of the model's parameters"),
    (f"check user_code:infinite {OWN}", "NaN"),
    (f"check user_code:broken {OWN}", "RuntimeError"),
    ("check user_code:build --sizes 16 32 64 --batches user_code:batches", "loss"),
    ("check user_code:build --sizes 16 32 64 --batches user_code:nothing", "empty"),
    ("check user_code:build --sizes 16 32 64 --batches user_code:value", "batches=7"),
    ("check user_code:build --sizes 16 32 --batches user_code:batches --loss user_code:vector", "scalar"),
    ("check user_code:build --sizes 16 32 --batches user_code:batches --loss user_code:failing", "KeyError: 'labels'"),
    ("check user_code:build --sizes 16 32 --data digits", "RuntimeError"),
    (f"check gpt --sizes 32 64 --out {DEEP}", "cannot be written"),
    ("check gpt --sizes 32 64 --out user_code.py", "is a file"),
    ("check user_code:build --sizes 16 32 64 --batches user_code:breaks --loss user_code:loss", "OSError: disk gone"),
    ("check gpt --sizes 32 64 --steps 100000000", "at most 1000"),
    ("check gpt --sizes 32 64 --lr 1e40", "--lr 1e+40"),
    ("train gpt --set model=7 --out out", "model=7: write its fields"),
    ("train gpt --set base=32 recipe=mup --out out", "base.width=64"),
    ("train gpt --set width=64 --set depth=2 --out out", "--set is given twice"),
    ("check gpt --sizes=32,64", "'32,64' cannot be read"),
    (f"plan gpt {SIZES} --head-size x", "--head-size 'x' cannot be read"),
    # data
    ("data prepare shakspeare --folder out", "did you mean 'shakespeare'"),
    ("data prepare shakespeare --folder out --source missing.txt", "missing.txt"),
    ("data prepare shakespeare --folder out --source user_code.py --limit 3", "limit=3"),
    ("data prepare shakespeare --folder out --source user_code.py --tokenizer words", "words"),
    ("data prepare shakespeare --folder out --source empty.txt", "empty"),
    ("data prepare covertype --folder out --tokenizer char", "tokenizer"),
    (f"data prepare topics --folder {DEEP}", "cannot write"),
    # train and generate
    ("train gpt", "--out"),
    ("train gpt --set lr --out out", "name=value"),
    ("train gpt --set lr=-1 --out out", "lr=-1"),
    ("train gpt --set lr=fast --out out", "fast"),
    ("train gpt --set steps=0 --out out", "steps=0"),
    ("train gpt --set steps=2.5 --out out", "steps=2.5"),
    ("train gpt --set stesp=5 --out out", "did you mean 'steps'"),
    ("train gpt --set warmup=50 steps=10 --out out", "warmup=50"),
    ("train gpt --set batch=5 accumulation=2 --out out", "batch=5"),
    ("train gpt --set recipe=mup --out out", "base"),
    ("train gpt --set recipe=mup base.wdth=32 --out out", "wdth"),
    ("train gpt --set width=100 head_size=64 --out out", "width=100"),
    ("train gpt --set data=nowhere.txt --out out", "nowhere.txt"),
    ("train gpt --set schedule=cosin --out out", "did you mean 'cosine'"),
    ("train mlp --set device=tpu --out out", "tpu"),
    ("train mlp --set inputs=3 --out out", "inputs=3"),
    ("train resnet --set data=digits --out out", "resnet cannot read"),
    ("train user_code:not_a_config --out out", "returned a dict"),
    ("train user_code:confg --out out", "did you mean 'config'"),
    (f"train user_code:config --out {DEEP}", "cannot be written"),
    ("generate out", "not a checkpoint"),
    ("generate damaged --tokens 5", "damaged"),
    ("generate out --tokens some", "some"),
    # experiments and quickstart
    ("experiments coord-lader --out out", "did you mean 'coord-ladder'"),
    ("experiments coord-ladder", "--out"),
    ("experiments coord-ladder --size huge --out out", "huge"),
    (f"experiments coord-ladder --out {DEEP}", "cannot be written"),
    (f"quickstart --out {DEEP}", "cannot be written"),
    ("quickstart --out user_code.py", "is a file"),
    ("quickstart --steps 5", "--steps"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: some code, right and wrong, and some files; the current folder of the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUTRANSFER_DATA", str(tmp_path / "data"))
    for name, text in {
        "user_code.py": USER, "syntax.py": "def make(:\n", "imports.py": "import no_such_dependency\n",
        "raises.py": "1 / 0\n", "exits.py": "raise SystemExit('usage')\n", "empty.txt": "", "BELOW": "a file",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    (tmp_path / "binary.txt").write_bytes(b"text \xff\xfe\x00 and more")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "checkpoint.pt").write_bytes(b"PK\x03\x04 not a zip file")
    monkeypatch.delitem(sys.modules, "user_code", raising=False)
    return tmp_path


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(("line", "said"), COMMANDS, ids=[line[:60] for line, _ in COMMANDS])
def test_a_wrong_command_is_one_line_and_leaves_nothing(
    line: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listing(folder)
    code = main(line.split())
    out, err = capsys.readouterr()
    assert code == 2, (out, err)
    assert err.startswith("mutransfer: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert said in err and out == "", (out, err)
    assert "Traceback" not in err and len(err) < 600, err
    assert listing(folder) == before


BATCH = torch.ones(4, 8)
RUN = RunConfig(model=MLPConfig(), base={"width": 32}, data="digits", steps=2, warmup=0)


def build(size: int) -> tuple[MLP, torch.optim.Optimizer]:
    model = MLP(MLPConfig(inputs=8, outputs=2, width=size))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


# (call, what its one line must say)
CALLS: list[tuple[Callable[[], object], str]] = [
    (lambda: mt.plan(mlp_factory(), base={"width": 32}, target={"width": 64}, recipe="nup"), "nup"),
    (lambda: mt.plan(mlp_factory(), base={"width": 32}, target={"width": 64}, optimizer="adan"), "adan"),
    (lambda: mt.plan(mlp_factory(), base={"width": 32}), "target"),
    (lambda: mt.plan(mlp_factory(), base={"wide": 32}, target={"wide": 64}), "wide"),
    (lambda: mt.plan(MLP(MLPConfig()), base={"width": 32}), "module"),
    (lambda: mt.Plan.load("missing.json"), "missing.json"),
    (lambda: mt.Plan.load("BELOW"), "not a plan"),
    (lambda: mt.Plan.load("BELOW/plan.json"), "cannot read"),
    (lambda: mt.Plan.from_dict({"version": 99}), "version 99"),
    (lambda: mt.facts_for("sdg"), "sdg"),
    (lambda: GPTConfig(width=100, head_size=64), "width=100"),
    (lambda: GPTConfig(dropout=1.5), "dropout=1.5"),
    (lambda: MLPConfig(depth=0), "depth=0"),
    (lambda: ResNetConfig(blocks=(2, 0)), "blocks"),
    (lambda: replace(RUN, lr=-1.0), "lr=-1.0"),
    (lambda: replace(RUN, lr=float("nan")), "lr=nan"),
    (lambda: replace(RUN, betas=(0.9,)), "betas"),
    (lambda: replace(RUN, clip=0.0), "clip"),
    (lambda: RunConfig.from_dict({**RUN.to_dict(), "learning_rate": 1}), "learning_rate"),
    (lambda: train(replace(RUN, data="digit")), "digits"),
    (lambda: train(replace(RUN, data="topics")), "topics"),
    (lambda: train(RUN, folder=Path("BELOW/run")), "cannot be written"),
    (lambda: coord_check(build, [16], BATCH, loss), "two sizes"),
    (lambda: coord_check(build, [16, 16], BATCH, loss), "twice"),
    (lambda: coord_check(build, [16, -32], BATCH, loss), "positive"),
    (lambda: coord_check(build, 64, BATCH, loss), "sizes=64"),  # pyright: ignore[reportArgumentType] (that is the point)
    (lambda: coord_check(build, [16, 32], None, loss), "batches=None"),
    (lambda: coord_check(build, [16, 32], BATCH, loss, steps=0), "steps=0"),
    (lambda: coord_check(build, [16, 32], BATCH, loss, seeds=0), "seeds=0"),
    (lambda: coord_check(build, [16, 32], BATCH, loss, clip=-1.0), "clip=-1.0"),
]


@pytest.mark.parametrize(("call", "said"), CALLS, ids=range(len(CALLS)))
def test_a_wrong_call_is_one_clear_line_and_leaves_nothing(call: Callable[[], object], said: str, folder: Path) -> None:
    before = listing(folder)
    with pytest.raises(InputError) as caught:
        call()
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert listing(folder) == before


def test_an_empty_argument_is_not_the_current_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--out", ""]) == 2
    assert "argument 3 is empty" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "code"), [("plan mlp --base width=32 --target width=64", 0), ("check gpt", 2)])
def test_a_terminal_that_knows_ascii_only_is_served(line: str, code: int, folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii:strict"}
    command = [sys.executable, "-m", "mutransfer.cli", *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert code == 0 or done.stderr == "mutransfer: check also needs --sizes INT ... (see: mutransfer check --help)\n"


@pytest.mark.parametrize("line", ["plan user_code:broken --base width=32 --target width=64", "chek", "plan --nope"])
def test_the_installed_command_exits_with_2_and_one_line(line: str, folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mutransfer.cli", *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("mutransfer: ")


@pytest.mark.parametrize(("line", "module", "said"), [
    ("check mlp --sizes 16 32 64", "sklearn", "mutransfer[sklearn]"),
    ("data prepare digits --folder out", "sklearn", "mutransfer[sklearn]"),
    ("data prepare wikitext-2 --folder out --tokenizer byte", "datasets", "mutransfer[hf]"),
    ("train gpt --set tokenizer=gpt2 --out out", "tiktoken", "mutransfer[hf]"),
])  # fmt: skip
def test_a_missing_extra_is_one_line_that_says_how_to_install_it(
    line: str, module: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # importing it now raises ImportError, as if it were not installed
    before = listing(folder)
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and out == "" and listing(folder) == before
