"""`mutransfer grow` end to end: what it prints, its exit codes, and that wrong input is one line that leaves nothing behind."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mutransfer.cli import main
from mutransfer.growth import build
from mutransfer.growth.files import verifying
from mutransfer.growth.tensors import GrowPlan
from mutransfer.models import GPTConfig, MLPConfig, mlp_factory
from mutransfer.train import RunConfig, load_checkpoint, train

MODEL = """
from torch import nn
from mutransfer.models import mlp_factory

make = mlp_factory(inputs=5, outputs=3, depth=1)


def number(width):
    return width


def strange(width):
    return nn.Sequential(nn.Linear(5, width), nn.Linear(width, 3))
"""
RUN = RunConfig(
    model=MLPConfig(width=16, depth=1), base={"width": 8}, steps=8, warmup=2, data="digits", batch=8, val_batches=1, device="cpu",
)  # fmt: skip
GPT = GPTConfig(vocab_size=103, context=8, width=16, depth=1, head_size=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints of every kind, right and wrong; tests work on a copy."""
    folder = tmp_path_factory.mktemp("made")
    train(RUN, folder=folder / "run", until=4)
    train(replace(RUN, steps=4), folder=folder / "finished")
    train(replace(RUN, model=GPT, data="topics"), folder=folder / "gpt", until=4)
    (folder / "user_model.py").write_text(MODEL)
    torch.manual_seed(0)
    model = mlp_factory(inputs=5, outputs=3, depth=1)(width=8)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 5)).square().mean().backward()
    optimizer.step()
    torch.save(model.state_dict(), folder / "model.pt")
    torch.save(optimizer.state_dict(), folder / "opt.pt")
    torch.save({"epoch": 1}, folder / "nothing.pt")
    torch.save({"state": {}, "param_groups": [{"params": [0]}]}, folder / "other_opt.pt")
    (folder / "cut.pt").write_bytes((folder / "model.pt").read_bytes()[:1000])
    (folder / "bad.safetensors").write_bytes(b"hello, world")
    (folder / "full").mkdir()
    (folder / "full" / "a").write_text("")
    (folder / "empty").mkdir()
    (folder / "dcp").mkdir()
    (folder / "dcp" / ".metadata").write_text("")
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    (folder / "nohf").mkdir()
    (folder / "nohf" / "config.json").write_text("{}")
    diverged = load_checkpoint(folder / "run" / "checkpoint.pt")
    (folder / "diverged").mkdir()
    saved = {**diverged, "config": RUN.to_dict(), "status": "diverged", "reason": "loss is nan"}
    torch.save(saved, folder / "diverged" / "checkpoint.pt")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name == "user_model"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def listing(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts}


def test_a_run_grows_and_the_printed_command_continues_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grow", "run", "--to", "width=32", "--noise", "relative:0.05", "--out", "big"]) == 0
    said = capsys.readouterr().out
    assert "Grow plan" in said and "PASS" in said and listing(folder / "big") == {"checkpoint.pt", "grow.json"}
    command = said.strip().splitlines()[-1].partition("continue it: ")[2]
    assert main(shlex.split(command)[1:]) == 0
    assert "8 updates" in capsys.readouterr().out
    assert json.loads((folder / "big" / "grow.json").read_text())["verified"] is True


def test_a_grown_gpt_generates_evaluates_and_grows_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grow", "gpt/checkpoint.pt", "--to", "width=32", "depth=2", "--out", "big", "--noise", "0.02"]) == 0
    assert main(["generate", "big", "--tokens", "5", "--prompt", "the "]) == 0
    assert main(["evaluate", "big", "--tokens", "200"]) in (0, 2)
    assert main(["grow", "big", "--to", "width=64", "--out", "bigger"]) == 0
    assert "without noise the copies stay equal" in capsys.readouterr().out


def test_plain_files_grow_by_the_factory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "grow model.pt --model user_model:make --from width=8 --to width=16 --optimizer-state opt.pt --out big --json"
    )
    assert main(line.split()) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verified"] is True and listing(folder / "big") == {"model.pt", "opt.pt", "grow.json", "plan.json"}


def test_plan_only_writes_the_plan_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = listing(folder)
    assert main(["grow", "run", "--to", "width=32", "--plan-only", "--save-plan", "grow_plan.json"]) == 0
    assert listing(folder) - before == {"grow_plan.json"} and "× weight" in capsys.readouterr().out
    assert GrowPlan.load("grow_plan.json").by_name["head.weight"].target_shape == (10, 32)


def test_a_wrong_copy_is_not_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = build.grow_plan

    def wrong(*given: Any, **options: Any) -> GrowPlan:
        plan = right(*given, **options)
        return replace(
            plan, tensors=tuple(replace(t, scale=2 * t.scale) if "head.weight" in t.name else t for t in plan.tensors)
        )

    monkeypatch.setattr(build, "grow_plan", wrong)
    before = listing(folder)
    assert main(["grow", "run", "--to", "width=32", "--out", "big"]) == 1
    assert "head" in capsys.readouterr().out and listing(folder) == before
    monkeypatch.setattr(verifying, "LARGEST", 0)
    assert main(["grow", "run", "--to", "width=32", "--out", "big"]) == 1 and listing(folder) == before
    assert main(["grow", "run", "--to", "width=32", "--out", "big", "--no-verify"]) == 0 and (folder / "big").is_dir()


def test_large_models_are_compared_by_their_outputs(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "LARGEST", 0)
    assert main(["grow", "gpt", "--to", "width=32", "--out", "big"]) == 0
    assert "PASS: outputs differ by" in capsys.readouterr().out


PLAIN = "--model user_model:make --from width=8"
WRONG: list[tuple[str, str]] = [
    ("grow run --to width=32", "--out is missing"),
    ("grow run --out big", "--to"),
    ("grow missing --to width=32 --out big", "'missing' does not exist"),
    ("grow empty --to width=32 --out big", "no checkpoint"),
    ("grow dcp --to width=32 --out big", "dcp_to_torch_save"),
    ("grow user_model.py --to width=32 --out big", "damaged, or no file of torch's"),
    ("grow cut.pt --to width=32 --out big", "cut.pt"),
    (f"grow bad.safetensors --to width=16 --out big {PLAIN}", "bad.safetensors"),
    ("grow run --to width=32 --out full", "exists"),
    ("grow run --to width=32 --out run/big", "lies in the source"),
    ("grow run --to width=32 --out user_model.py/deep", "cannot be written"),
    ("grow run --to width=32 --out user_model.py", "exists"),
    ("grow run --to wide=32 --out big", "no size 'wide'"),
    ("grow run --to width=8 --out big", "nothing can shrink"),
    ("grow run --to width=16 --out big", "nothing grows"),
    ("grow run --to width=large --out big", "whole number"),
    ("grow run --to width=-1 --out big", "whole number"),
    ("grow run --to width --out big", "name=value"),
    ("grow run --to width=24 --out big", "no whole multiple"),
    ("grow run --to outputs=20 --out big", "the data decides"),
    ("grow run --to width=32 --out big --noise much", "noise"),
    ("grow run --to width=32 --out big --noise -1", "-1"),
    ("grow run --to width=32 --out big --steps 4", "made 4 already"),
    ("grow run --to width=32 --out big --model user_model:make", "--model is not for"),
    ("grow run --to width=32 --out big --optimizer-state opt.pt", "--optimizer-state is not for"),
    ("grow run --to width=32 --out big --maps x", "PATTERN:AXIS=MAP"),
    ("grow run --to width=32 --out big --max-shard-size much", "--max-shard-size"),
    ("grow run --to width=32 --out big --plan missing.json", "missing.json"),
    ("grow run --to width=32 --out big --depth-mode sideways", "sideways"),
    ("grow run --to width=32 --plan-only --save-plan user_model.py/deep", "cannot be written"),
    ("grow finished --to width=32 --out big", "--steps"),
    ("grow diverged --to width=32 --out big", "diverged (loss is nan)"),
    ("grow gpt --to width=20 --out big", "width=20"),
    ("grow model.pt --to width=16 --out big", "--model package.module:make_model"),
    ("grow model.pt --to width=16 --out big --model user_model:make", "--from width=256"),
    ("grow model.pt --to depth=2 --out big --model user_model:make --from width=8", "--from does not say what 'depth'"),
    ("grow model.pt --to width=16 --out big --model user_model:nope --from width=8", "nope"),
    ("grow model.pt --to width=16 --out big --model user_model:number --from width=8", "returned a int"),
    ("grow model.pt --to width=16 --out big --model user_model:strange --from width=8", "has no tensor '0.weight'"),
    ("grow model.pt --to width=16 --out big --model user_model:make --from width=4", "'input.weight' has shape (8, 5), and (4, 5)"),
    (f"grow model.pt --to width=4 --out big {PLAIN}", "nothing can shrink"),
    (f"grow model.pt --to width=16 --out big --steps 9 {PLAIN}", "--steps is not for"),
    (f"grow nothing.pt --to width=16 --out big {PLAIN}", "no state dict"),
    (f"grow model.pt --to width=16 --out big --optimizer-state missing.pt {PLAIN}", "missing.pt"),
    (f"grow model.pt --to width=16 --out big --optimizer-state model.pt {PLAIN}", "no optimizer's state"),
    (f"grow model.pt --to width=16 --out big --optimizer-state other_opt.pt {PLAIN}", "param groups of [1] tensors"),
    (f"grow model.pt --to width=16 --out big --optimizer-state opt.pt --optimizer nope {PLAIN}", "nope"),
    ("grow nohf --to n_embd=32 --out big", "model_type"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "said"), WRONG, ids=range(len(WRONG)))
def test_wrong_input_is_one_line_and_leaves_nothing(
    line: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listing(folder)
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1, err
    assert listing(folder) == before


def test_a_hugging_face_folder_needs_transformers(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it now raises ImportError
    assert main(["grow", "hf", "--to", "n_embd=32", "--out", "big"]) == 2
    assert "mutransfer[hf]" in capsys.readouterr().err


def test_a_disk_without_space_is_said_before_anything_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # pyright: ignore[reportAttributeAccessIssue]
    assert main(["grow", "run", "--to", "width=32", "--out", "big"]) == 2
    assert "are free there" in capsys.readouterr().err and listing(folder) == before


def test_a_grown_checkpoint_is_compared_with_the_small_one_later(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--against`: the copies pass, preserving noise and a damaged tensor do not, and nothing is written."""
    plain = ["model.pt", "--model", "user_model.py:make", "--from", "width=8", "--to", "width=16"]
    for command, grown in ((["run", "--to", "width=32"], "big"), (plain, "plain")):
        assert main(["grow", *command, "--out", grown]) == 0
        file = grown if grown == "big" else f"{grown}/model.pt"
        before = sorted(p.name for p in folder.iterdir())
        capsys.readouterr()
        assert main(["grow", *command, "--against", file]) == 0
        assert "PASS" in capsys.readouterr().out and before == sorted(p.name for p in folder.iterdir())
    saved = torch.load("plain/model.pt", weights_only=True)
    name = next(iter(saved))
    saved[name][0] *= 1.01
    torch.save(saved, "plain/model.pt")
    assert main(["grow", *plain, "--against", "plain/model.pt", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verification"]["first"]["name"] == name
    for wrong, said in (("model.pt", "shape"), ("absent.pt", "does not exist"), ("nothing.pt", "nothing.pt")):
        assert main(["grow", *plain, "--against", wrong]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1


def test_a_grown_run_keeps_where_it_comes_from_and_counts_what_each_size_cost(folder: Path) -> None:
    assert main(["grow", "run", "--to", "width=32", "--noise", "0.1", "--out", "big"]) == 0
    grown = load_checkpoint(folder / "big" / "checkpoint.pt")
    result = train(grown["config"], folder=folder / "big")
    again = load_checkpoint(folder / "big" / "checkpoint.pt")
    assert again["grown"] == grown["grown"] and len(again["grown"]) == 1
    small = train(replace(RUN, steps=4), folder=folder / "finished").flops
    whole = train(replace(RUN, model=MLPConfig(width=32, depth=1)), folder=folder / "scratch").flops
    assert result.flops == small + whole / 2  # four of eight updates at each width
