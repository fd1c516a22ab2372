"""What a published sweep of learning rates got wrong, and this one must not: one test each."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mutransfer.cli import main
from mutransfer.data import TextData
from mutransfer.errors import InputError
from mutransfer.models import GPT, GPTConfig, generate
from mutransfer.sweep.jobs import metrics, train_config
from mutransfer.sweep.store import flat_row
from mutransfer.sweep.wanted import data_of
from mutransfer.train import RunConfig, Task, load_run, train
from mutransfer.train.schedule import SCHEDULES
from mutransfer.verdict import transfer_verdict

MODEL = GPTConfig(context=16, width=16, depth=1, head_size=8, init_std=0.08)


def run(**changes: object) -> RunConfig:
    """A run of seconds on the embedded text."""
    model = replace(MODEL, vocab_size=_vocabulary(), **changes.pop("sizes", {}))  # pyright: ignore[reportArgumentType, reportCallIssue] -- fields by name
    settings = {"base": {"width": 16}, "batch": 8, "steps": 6, "warmup": 1, "val_batches": 0, "device": "cpu"}
    return RunConfig(model=model, **(settings | changes))  # pyright: ignore[reportArgumentType] -- fields by name


def _vocabulary() -> int:
    from mutransfer.data import load

    data = load("topics")
    assert isinstance(data, TextData)
    return data.vocab_size


def test_one_seed_gives_the_same_data_at_every_width_depth_rate_and_recipe() -> None:
    configs = [
        run(), run(sizes={"width": 64}), run(sizes={"depth": 4}), run(lr=1.0), run(recipe="sp"), run(steps=60, weight_decay=0.0)
    ]  # fmt: skip
    batches = [Task.of(config, torch.device("cpu"), data_of(config)).batch(3) for config in configs]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in itertools.pairwise(batches))
    other = run(seed=1)
    assert not torch.equal(Task.of(other, torch.device("cpu"), data_of(other)).batch(3)[0], batches[0][0])


def test_a_diverged_run_is_no_low_loss_although_its_log_begins_low() -> None:
    config = run(optimizer="sgd", lr=1e30, clip=None, warmup=0, steps=20)
    outcome = train_config(config, None, None, 1, lambda message: None)
    assert outcome["status"] == "diverged" and outcome["points"][0]["loss"] < 10
    losses = [v for name, v in outcome["metrics"].items() if name.endswith("loss")]
    assert losses and all(value is None for value in losses)
    # and the verdict takes it for a wall: not the best of its size, however good its first losses
    rows = [
        {"width": width, "lr": 2.0**x, "seed": 0, "loss": 3 + (x + 6) ** 2 / 20, "status": "finished"}
        for width in (32, 64)
        for x in range(-10, -3)
    ]
    record = {"key": "", "reason": None, "config": config.to_dict(), "environment": {}, **outcome}
    wall = flat_row(record) | {"lr": 2.0**-3}
    rows += [
        {"width": w, "lr": wall["lr"], "seed": 0, "loss": wall["train_loss"], "status": wall["status"]}
        for w in (32, 64)
    ]
    for best in transfer_verdict(rows).optima:
        assert best.walls == (-3.0,) and best.log2_lr.value == pytest.approx(-6, abs=0.3)


@pytest.mark.parametrize("std", [0.01, 0.3])
@pytest.mark.parametrize(("recipe", "width"), [("sp", 64), ("mup", 16), ("mup", 64)])
def test_init_std_is_what_the_model_starts_from(std: float, recipe: str, width: int, tmp_path: Path) -> None:
    """Hidden weights at σ·√(base/width) under μP, at σ under SP; a run of no step has it in its checkpoint."""
    config = run(sizes={"init_std": std, "width": width}, recipe=recipe, lr=1e-12, weight_decay=0.0, steps=1, warmup=0)
    train(config, folder=tmp_path, data=data_of(config))
    _, model, _ = load_run(tmp_path)
    expected = std * math.sqrt(16 / width) if recipe == "mup" else std
    assert model.get_parameter("blocks.0.mlp.up.weight").std().item() == pytest.approx(expected, rel=0.05)
    assert model.get_parameter("wte.weight").std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_ends_within_the_run(schedule: str) -> None:
    config = run(schedule=schedule, steps=12, warmup=3, log_every=1, lr=2**-6)
    rates = [point.lr for point in train(config, data=data_of(config)).points]
    assert max(rates) == rates[3] == 2**-6 and rates[0] < rates[1] < rates[2] < rates[3]
    assert rates[-1] == pytest.approx(2**-6 * (1.0 if schedule == "constant" else 0.1))


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(InputError, match=r"warmup=2000 is longer than the run, steps=1000"):
        run(steps=1000, warmup=2000)


def test_sampling_applies_the_output_multiplier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tied head without a norm gain cannot absorb 1/N: it lives in a hook, which a loaded model must carry."""
    config = run(sizes={"width": 64, "tied": True, "norm": "none"}, placement="multiplier", lr=2**-6)
    train(config, folder=tmp_path, data=data_of(config))
    _, model, plan = load_run(tmp_path)
    assert isinstance(model, GPT) and any(hook.module == "head" for hook in plan.hooks)
    bare = GPT(model.config)
    bare.load_state_dict(model.state_dict())
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids), bare.eval()(ids) * 16 / 64)
    prompt = torch.zeros(64, 1, dtype=torch.int64)
    assert not torch.equal(generate(model, prompt, 8), generate(bare, prompt, 8))
    # the command line samples from the same model
    assert main(["generate", str(tmp_path), "--prompt", "a", "--tokens", "20", "--seed", "3", "--json"]) == 0
    data = data_of(config)
    assert isinstance(data, TextData)
    start = torch.from_numpy(data.tokenizer.encode("a").astype("int64"))[None]
    text = data.tokenizer.decode(generate(model, start, 20, seed=3)[0, 1:].tolist())
    assert json.loads(capsys.readouterr().out)["text"] == text


def test_resuming_trusts_the_checkpoint_and_refuses_another_command_line(tmp_path: Path) -> None:
    config = run(checkpoint_every=2)
    paused = train(config, folder=tmp_path, until=3, data=data_of(config))
    assert paused.status == "paused"
    for change, field in (({"lr": 0.5}, "lr=0.5"), ({"model": replace(config.model, width=32)}, "model.width=32")):
        with pytest.raises(InputError, match=f"{field} differs from"):
            train(replace(config, **change), folder=tmp_path)
    # what the checkpoint says is what is loaded, whatever anybody passes
    assert load_run(tmp_path)[0] == config


def test_the_metric_is_a_mean_over_whole_batches_and_many_updates() -> None:
    config = run(steps=60, batch=8)
    whole = train(config, data=data_of(config))
    parts = train(replace(config, accumulation=4), data=data_of(config))
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)  # each of them that of all micro-batches
    found = metrics(config, whole)
    assert found["train_loss"] == pytest.approx(sum(whole.losses[-50:]) / 50)
    assert found["mean_loss"] == pytest.approx(sum(whole.losses) / 60)
