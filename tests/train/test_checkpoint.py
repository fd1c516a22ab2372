"""A run killed at any moment continues as if nothing had happened, or says in one line why it will not."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mutransfer.build import plan
from mutransfer.errors import InputError
from mutransfer.files import write_atomic
from mutransfer.train import LogPoint, RunConfig, RunResult, Task, load_checkpoint, load_run
from mutransfer.train import train as train_from_config
from tests.train.runs import digits_run, gpt_run, text


def train(config: RunConfig, **options: Any) -> RunResult:
    """As `mutransfer.train.train`, with the text that all runs share loaded once."""
    return train_from_config(config, **({"data": text()} if config.data == "topics" else {}) | options)


class Killed(Exception):
    """Stands for a process that dies."""


def kill_at(step: int) -> Callable[[LogPoint], None]:
    def on_log(point: LogPoint) -> None:
        if point.step >= step:
            raise Killed

    return on_log


def assert_same_run(one: Path, other: Path) -> None:
    """Same weights, optimizer state, losses and points (but for the clock), bit for bit."""
    a, b = (load_checkpoint(folder / "checkpoint.pt") for folder in (one, other))
    for key in ("model", "optimizer", "scheduler", "rng", "losses"):
        _assert_equal(a[key], b[key])
    _assert_equal(*([{**p, "seconds": 0} for p in content["points"]] for content in (a, b)))
    assert a["val_loss"] == b["val_loss"]


def _assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            _assert_equal(x, y)
    else:
        assert a == b


RUNS = {
    "adamw": gpt_run(sizes={"dropout": 0.1}, accumulation=2, checkpoint_every=4, log_every=1, val_every=6),
    "sgd": gpt_run(
        sizes={"dropout": 0.1}, accumulation=2, checkpoint_every=4, log_every=1, optimizer="sgd", lr=0.5, momentum=0.9
    ),
    "completep": gpt_run(recipe="completep", schedule="wsd", checkpoint_every=4, log_every=1, autocast="bf16"),
    "hooks": gpt_run(
        sizes={"tied": True, "norm": "none", "depth": 2},
        placement="multiplier",
        recipe="completep",
        clip=None,
        checkpoint_every=4,
        log_every=1,
    ),
    "batch norm": digits_run("resnet", checkpoint_every=4, log_every=1),
}


if hasattr(torch.optim, "Muon"):
    RUNS["muon"] = gpt_run(optimizer="muon-kimi", checkpoint_every=4, log_every=1)


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_continues_bit_for_bit(name: str, tmp_path: Path) -> None:
    config = RUNS[name]
    undisturbed = train(config, folder=tmp_path / "undisturbed")
    for step in (1, 8, 23):  # before the first checkpoint, right at one, and late between two
        folder = tmp_path / f"killed at {step}"
        with pytest.raises(Killed):
            train(config, folder=folder, on_log=kill_at(step))
        torch.rand(3)  # whatever happens between the sessions does not matter
        resumed = train(config, folder=folder)
        assert resumed.losses == undisturbed.losses
        assert resumed.val_loss == undisturbed.val_loss
        assert_same_run(tmp_path / "undisturbed", folder)


def test_it_continues_from_the_checkpoint_and_not_from_the_start(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(RUNS["adamw"], folder=tmp_path, on_log=kill_at(11))
    seen: list[LogPoint] = []
    train(RUNS["adamw"], folder=tmp_path, on_log=seen.append)
    assert [p.step for p in seen] == list(range(9, 25))


SCRIPT = """
import json, sys, torch
from pathlib import Path
from mutransfer.train import RunConfig, train
torch.set_num_threads(1)
config = RunConfig.from_dict(json.loads(sys.argv[1]))
train(config, folder=Path(sys.argv[2]), on_log=lambda point: print(point.step, flush=True))
"""


def test_a_process_really_killed_continues_bit_for_bit(tmp_path: Path) -> None:
    config = replace(RUNS["adamw"], steps=200, warmup=50, checkpoint_every=25, val_every=0)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(config.to_dict()), str(tmp_path / "b")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            if int(line) >= 60:
                process.send_signal(signal.SIGKILL)
                break
    assert process.wait() == -signal.SIGKILL
    reached = load_checkpoint(tmp_path / "b" / "checkpoint.pt")["step"]
    assert 50 <= reached < 200
    assert train(config, folder=tmp_path / "b").losses == train(config, folder=tmp_path / "a").losses
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_paused_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    config = replace(RUNS[name], checkpoint_every=0)
    whole = train(config, folder=tmp_path / "whole")
    for until in (5, 12):
        paused = train(config, folder=tmp_path / "parts", until=until)
        assert paused.status == "paused" and paused.losses == whole.losses[:until]
        assert not (tmp_path / "parts" / "result.json").exists()
    assert train(config, folder=tmp_path / "parts").losses == whole.losses
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(InputError, match="needs a folder"):
        train(config, until=3)


def test_a_finished_or_diverged_run_is_returned_without_training(tmp_path: Path) -> None:
    lost = gpt_run(optimizer="sgd", lr=1e30, clip=None, warmup=0)
    for config, folder in ((gpt_run(), tmp_path / "a"), (lost, tmp_path / "b")):
        first = train(config, folder=folder)
        again = train(config, folder=folder, on_log=kill_at(0))
        assert repr(again) == repr(first)  # as text: NaN is not equal to itself
        assert (folder / "result.json").is_file()
        assert sorted(p.name for p in folder.iterdir()) == ["checkpoint.pt", "result.json"]
    assert train(gpt_run(), folder=tmp_path / "a", resume=False).losses == train(gpt_run()).losses


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"lr": 0.5}, "lr=0.5 differs from lr=0.00390625"),
    ({"steps": 25}, "steps=25 differs from steps=24"),
    ({"base": {"width": 8}}, "base={'width': 8} differs"),
    ({"model": replace(gpt_run().model, width=64)}, "model.width=64 differs from model.width=32"),
    ({"clip": None}, "clip=None differs from clip=1.0"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=[words for _, words in CHANGES])
def test_another_config_is_refused_by_the_name_of_the_field(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(gpt_run(checkpoint_every=4, log_every=1), folder=tmp_path, on_log=kill_at(5))
    with pytest.raises(InputError) as caught:
        train(replace(gpt_run(checkpoint_every=4, log_every=1), **change), folder=tmp_path)
    assert words in str(caught.value) and "checkpoint.pt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_data_under_the_same_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(gpt_run(checkpoint_every=4, log_every=1), folder=tmp_path, on_log=kill_at(5))
    other = replace(text(), train=text().train[5:], fingerprint="")
    with pytest.raises(InputError, match="is not what"):
        train(gpt_run(checkpoint_every=4, log_every=1), folder=tmp_path, data=other)


def test_a_run_does_not_continue_under_another_plan(tmp_path: Path) -> None:
    config = gpt_run(checkpoint_every=4, log_every=1)
    sizes = {"base": {"width": 16}, "target": {"width": 32}}
    own, other = (plan(config.make_model, **sizes, recipe=recipe) for recipe in ("mup", "sp"))
    with pytest.raises(Killed):
        train(config, folder=tmp_path, plan=own, on_log=kill_at(5))
    with pytest.raises(InputError, match="the plan given differs from the plan in"):
        train(config, folder=tmp_path, plan=other)
    assert train(config, folder=tmp_path, plan=own).losses == train(config).losses


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "one bit", "other file"])
def test_a_damaged_checkpoint_is_one_clear_line(damage: str, tmp_path: Path) -> None:
    config = gpt_run(steps=2, warmup=0)
    train(config, folder=tmp_path)
    path = tmp_path / "checkpoint.pt"
    raw = bytearray(path.read_bytes())
    if damage == "one bit":
        weight = next(iter(load_checkpoint(path)["model"].values())).numpy().tobytes()
        raw[raw.index(weight) + len(weight) // 2] ^= 1  # in a number, not in the padding between two
    if damage == "other file":
        torch.save({"weights": torch.ones(2)}, path)
    else:
        cut = {"truncated": raw[: len(raw) // 2], "empty": b"", "text": b"not a checkpoint", "one bit": raw}
        path.write_bytes(bytes(cut[damage]))
    with pytest.raises(InputError) as caught:
        train(config, folder=tmp_path)
    assert "delete it to start the run over" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert train(config, folder=tmp_path, resume=False).status == "finished"


class Evil:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("evil",))


def test_loading_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "config": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "evil").exists()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file: Any) -> None:
        file.write(b"half")
        raise Killed

    with pytest.raises(Killed):
        write_atomic(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt.x1.part").write_bytes(b"half")
    train(gpt_run(steps=1, warmup=0), folder=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "result.json"]


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        train(gpt_run(), folder=tmp_path / "file" / "runs")


def test_bad_input_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        train(gpt_run(data="digits"), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["adamw", "hooks"])
def test_the_trained_model_comes_back_with_its_plan(name: str, tmp_path: Path) -> None:
    config = replace(RUNS[name], accumulation=1)
    result = train(config, folder=tmp_path)
    again, model, own = load_run(tmp_path)
    assert again == config and not model.training
    assert own.to_dict() == load_checkpoint(tmp_path / "checkpoint.pt")["plan"]
    batches = list(text().val_batches(config.batch, 16, config.val_batches))
    with torch.no_grad():
        losses = [torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()) for x, y in batches]
    assert torch.stack(losses).double().mean().item() == result.val_loss


def test_the_data_order_does_not_depend_on_width_or_learning_rate() -> None:
    runs: list[RunConfig] = [gpt_run(), gpt_run(sizes={"width": 64}), gpt_run(lr=1.0), gpt_run(recipe="sp")]
    batches = [Task.of(config, torch.device("cpu"), text()).batch(7)[0] for config in runs]
    assert all(torch.equal(a, b) for a, b in itertools.pairwise(batches))
